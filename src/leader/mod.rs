//! The leader process: takes client commands, chooses members, keeps the metadata.
//!
//! # Threads
//!
//! | thread | owns | waits on | stopped by |
//! |---|---|---|---|
//! | `main` | nothing | the stop signal | the signal |
//! | `poll` | idle client connections | readiness, timers | wake-up, stop |
//! | `work-N` | one connection and one batch at a time | job queue; its inbox | queue closed |
//! | `accept-rpc`, `rx-…`, `tx-…` | links with members | sockets, queues | closing |
//! | `dial-…` | one of the two links to one member | its end, back-off | pool stopped |
//! | `raft` | the group's core, the write side of metadata | its inbox | stop event |
//! | `journal`, `fill` | the journal's files | queues | queues closed |
//! | `snapshot` | the snapshot being written | its queue | queue closed; stop signal |
//! | `forward` | batches that other leaders pass on | its inbox, the next deadline | stopped |
//! | `snap` | a snapshot on its way to a peer | each answer of the peer | its end; stop signal |
//! | `admin` | a change of the group | the network, the group | its deadline; stop signal |
//! | `house` | targets of the pool, releases under way | the bell | stop signal |
//!
//! # A write, thread by thread
//!
//! ```text
//!  poll      the connection is readable ──► job queue
//!  work-N    reads, parses, allots revisions, chooses members, sends one store to each ──► links
//!  rx-…      answers ──► the batch's inbox ──► work-N proposes the entry ──► raft
//!  journal   writes and syncs it ──► raft applies, settles, answers ──► the batch's inbox
//!  work-N    replies, gives the connection back ──► poll
//! ```
//!
//! # Locks
//!
//! Taken in this order, none over I/O: a shard of the message index, the table of replica sets, the
//! cluster, the releases, a shard of the cache, an inbox.

pub mod cache;
pub mod command_time;
pub mod comparison;
pub mod control;
pub mod desk;
mod doors;
pub mod drive;
pub mod expiry;
pub mod forward;
pub mod gate;
pub mod group_admin;
pub mod handler;
pub mod housekeeping;
pub mod http;
pub mod links;
pub mod machine;
pub mod members;
pub mod peers;
pub mod reports;
pub mod server;
mod slot;
pub mod standing;
pub mod state;
pub mod stats;
pub mod status;

#[cfg(test)]
mod tests;
