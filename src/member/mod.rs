//! The member process: stores payloads on disk, named by revision. It knows nothing of a key's
//! current state.
//!
//! # Threads
//!
//! Started and joined by [`server::run`], beside those of `rpc` (`accept-rpc`, `rx-`, `tx-`). An
//! `rx-` answers a small fetch itself if all of it is in memory.
//!
//! | thread | owns | waits on | stopped by |
//! |---|---|---|---|
//! | `append` | engine, fence file | append queue, timer | queue closed, after a last sync |
//! | `fill` (engine `log`) | the segment being zero-filled | request | stop signal |
//! | `compact` (engine `log`) | the segment it reads, hint files | timer | stop, between steps |
//! | `read-N` | one fetch at a time, of what is not in memory | read queue | queue closed |
//! | `read-large` | one large fetch at a time | its queue | queue closed |
//! | `beat-N` | registration with the N-th leader address | timer, call | stop signal |
//! | `trim` (`resources::allocator`) | nothing | timer | stop signal |
//! | `log` (`logging`) | standard error | its queue; its writes | queue closed, last |
//!
//! # Stop
//!
//! On the stop signal: the queues close (a request that comes later is refused as busy), `append`
//! drains its queue, commits, and marks the log as synced to its end, `read-N` drain theirs; then
//! the RPC server sends the answers that wait and closes. When a part fails, the others stop in the
//! same way and [`server::run`] returns the error; nothing is acknowledged after a failed sync.
//!
//! # Locks
//!
//! One at a time, none over I/O: the log engine's index, a queue's sender, the shared fence. Under
//! any of them a line may be logged: the queue of log lines comes last.
//!
//! # Files
//!
//! In the data directory: `LOCK`, `cluster.id`, `member.id`, `incarnation` and `fence` (see
//! [`identity`]), `log/` or `files/` (see `storage::opening`).

pub mod append;
pub mod handler;
pub mod identity;
pub mod registration;
pub mod server;
pub mod witness;

#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::ids::ClusterId;
use crate::rpc;
use crate::rpc::tls::TlsSettings;
use crate::storage::{EngineKind, WriteMode};

/// What a member is told at its start.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Its name, as in its certificate.
    pub name: String,
    /// Where leaders' connections are accepted; port 0 takes a free one.
    pub rpc_bind: SocketAddr,
    /// `host:port` where leaders reach it; by default the address really bound.
    pub rpc_advertise: Option<String>,
    /// `host:port` of the RPC of every leader.
    pub leaders: Vec<String>,
    /// Where everything is kept; made if absent.
    pub data_dir: PathBuf,
    /// The cluster it belongs to; refused if the data directory belongs to another.
    pub cluster_id: ClusterId,
    /// Placement zone, empty for none.
    pub zone: String,
    /// A new id may take the name from one that holds messages, whose copies are given up; an
    /// identity that is not complete is given up too.
    pub replace: bool,
    /// Its certificate.
    pub tls: TlsSettings,
    /// How payloads are kept on disk; refused if the data directory has it otherwise.
    pub engine: EngineKind,
    /// What was done before a record is acknowledged.
    pub io: WriteMode,
    /// Size of a segment of the log, in bytes.
    pub segment_bytes: u64,
    /// Limits of queues and threads.
    pub limits: Limits,
}

/// The limits of a member; what is beyond a queue's is refused as busy.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Stores and releases that wait for the append thread.
    pub append_queue_requests: usize,
    /// Bytes of the requests that wait for the append thread. A request larger than all of it is
    /// taken when none waits.
    pub append_queue_bytes: usize,
    /// Bytes that unfinished frames above 64 KiB may hold together.
    pub unfinished_bytes: usize,
    /// Fetches that wait for a reader.
    pub read_queue_requests: usize,
    /// Reader threads.
    pub read_threads: usize,
}

impl Default for Limits {
    /// A leader keeps at most 64 MiB and 65,536 records in flight to a member; up to five leaders
    /// may have been active shortly after each other. Twice as much costs memory only, half as much
    /// lets a take-over refuse stores that would have found room.
    fn default() -> Limits {
        Limits {
            append_queue_requests: 8192,
            append_queue_bytes: 256 << 20,
            unfinished_bytes: rpc::server::Limits::default().unfinished_bytes,
            read_queue_requests: 1024,
            read_threads: 4,
        }
    }
}
