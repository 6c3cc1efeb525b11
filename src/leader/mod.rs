//! The leader process: takes client commands, chooses members, keeps the metadata.
//!
//! # Threads
//!
//! | thread | owns | waits on | stopped by |
//! |---|---|---|---|
//! | `main` | nothing | the stop signal | the signal |
//! | `accept` | new client connections | readiness of the listening sockets | wake-up, stop |
//! | `work-N` | its client connections, the batches that it began | its poll | stop |
//! | `help-N` | large JSON, pages of listings | its queue | told to end |
//! | `accept-rpc`, `rx-…`, `tx-…` | links with members | sockets, queues | closing |
//! | `dial-…` | one of the two links to one member | its end, back-off | pool stopped |
//! | `raft` | the group's core, the write side of metadata | its inbox | stop event |
//! | `journal`, `fill` | the journal's files | queues | queues closed |
//! | `snapshot` | the snapshot being written | its queue | queue closed; stop signal |
//! | `snap` | a snapshot on its way to a peer | each answer of the peer | its end; stop signal |
//! | `admin` | a change of the group | the network, the group | its deadline; stop signal |
//! | `house` | targets of the pool, releases under way | the bell | stop signal |
//! | `trim` (`resources::allocator`) | nothing | timer | stop signal |
//! | `log` (`logging`) | standard error | its queue; its writes | queue closed, last |
//!
//! # A write, thread by thread
//!
//! ```text
//!  work-N    its connections are readable: reads, parses, gathers their writes as one
//!            batch, allots revisions, chooses members, sends one store to each ──► links
//!  rx-…      answers ──► the batch's inbox ──► a letter to work-N, which proposes ──► raft
//!  journal   writes and syncs it ──► raft applies, settles, answers ──► the batch's inbox
//!  work-N    by another letter: replies
//! ```
//!
//! # Locks
//!
//! Taken in this order, none over I/O: a shard of the message index, the table of replica sets, the
//! cluster, the releases, a shard of the cache, an inbox, an outbox, a worker's letters, the queue
//! of log lines.

pub mod cache;
pub mod command_time;
pub mod comparison;
mod confirmation;
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
