//! Who asks, and how each request of a known caller is permitted, counted and timed. Pure.
//!
//! All client protocols meet in one place: a session offers a batch, which has the requests of one
//! connection. The host permits the batch there, through [`Admission::permit`], before its requests
//! join a batch with those of others; and it counts the batch through [`Admission::count`] when the
//! replies are known, before they are written out. A request that another leader forwards was
//! permitted and counted where its client is connected.

use core::net::SocketAddr;

use super::reply::Reply;
use super::request::{Batch, Step, Write};
use crate::clock::Instant;
use crate::error::Failure;

/// A client as its host knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The address of the client's end of the connection.
    pub address: SocketAddr,
}

/// The kinds of batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A run of single writes.
    Write,
    /// A run of single reads.
    Read,
    /// One message stored under many ids.
    Bulk,
    /// A batch of the client's own making.
    Transaction,
    /// The time to live of a message.
    Ttl,
    /// A page of keys.
    List,
    /// Where a message is stored.
    Where,
    /// The number of messages.
    Count,
    /// The state of the cluster.
    Status,
    /// The group of leaders.
    Group,
}

impl Kind {
    /// The kind of a batch.
    pub fn of(batch: &Batch) -> Kind {
        match batch {
            Batch::Writes(_) => Kind::Write,
            Batch::Reads(_) => Kind::Read,
            Batch::Bulk { .. } => Kind::Bulk,
            Batch::Transaction(_) => Kind::Transaction,
            Batch::Ttl(_) => Kind::Ttl,
            Batch::List(_) => Kind::List,
            Batch::Where(_) => Kind::Where,
            Batch::Count => Kind::Count,
            Batch::Status => Kind::Status,
            Batch::Group(_) => Kind::Group,
        }
    }
}

/// A batch that was offered, as it is counted when its replies are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offered {
    /// Its kind.
    pub kind: Kind,
    /// Payload bytes of its requests.
    pub payload_bytes: u64,
    /// When it was offered.
    pub at: Instant,
}

impl Offered {
    /// This batch, offered at `at`.
    pub fn new(batch: &Batch, at: Instant) -> Offered {
        let payload_bytes = match batch {
            Batch::Writes(writes) => writes.iter().map(Write::payload_len).sum(),
            Batch::Bulk { payload, .. } => payload.len(),
            Batch::Transaction(transaction) => {
                transaction.steps.iter().map(Step::payload_len).sum()
            }
            Batch::Reads(_) | Batch::Ttl(_) | Batch::List(_) | Batch::Where(_) => 0,
            Batch::Count | Batch::Status | Batch::Group(_) => 0,
        };
        Offered {
            kind: Kind::of(batch),
            payload_bytes: payload_bytes as u64,
            at,
        }
    }
}

/// What a host asks and tells about the batches of its clients. Called for each batch by the thread
/// that serves the connection: it must not wait.
pub trait Admission: Send + Sync {
    /// Permits the requests of a batch that one connection offers. With an error nothing is
    /// executed and each request is answered with that error.
    fn permit(&self, caller: &Caller, batch: &Batch) -> Result<(), Failure>;

    /// Counts a batch, refused ones included, whose replies are known at `now`. A batch of reads
    /// that is answered in parts is offered, and counted, once for each part.
    fn count(&self, caller: &Caller, offered: &Offered, replies: &[Reply], now: Instant);
}
