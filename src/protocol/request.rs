//! The closed set of requests that every client protocol maps to. Pure.

use bytes::Bytes;

use crate::ids::{Key, Token};

/// The most requests in one batch.
pub const BATCH_REQUESTS_MAX: usize = 4096;
/// The most payload bytes in one batch; a single larger message is a batch of its own.
pub const BATCH_BYTES_MAX: usize = 8 * 1024 * 1024;
/// The most messages one bulk write may store.
pub const BULK_COUNT_MAX: u64 = 1_000_000;
/// The most payload bytes one bulk write may store, all its messages together: 1 GiB.
pub const BULK_BYTES_MAX: u64 = 1 << 30;

/// One write of a batch. With a token it takes effect at most once in the time for which tokens are
/// remembered; a repeat gets the first reply, whatever it asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Store a message.
    Set {
        /// Its name.
        key: Key,
        /// Its bytes.
        payload: Bytes,
        /// By which a repeat is known.
        token: Option<Token>,
    },
    /// Delete a message.
    Delete {
        /// Its name.
        key: Key,
        /// By which a repeat is known.
        token: Option<Token>,
    },
}

impl Write {
    /// Payload bytes, for the limits of a batch.
    pub fn payload_len(&self) -> usize {
        match self {
            Write::Set { payload, .. } => payload.len(),
            Write::Delete { .. } => 0,
        }
    }
}

/// What a connection hands to the coordinator at a time. The requests of a batch are consecutive
/// requests of one connection; it is answered by as many replies, in their order, except for
/// `Bulk`, which has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Batch {
    /// At most [`BATCH_REQUESTS_MAX`] writes of [`BATCH_BYTES_MAX`] in all, or one larger one.
    Writes(Vec<Write>),
    /// At most [`BATCH_REQUESTS_MAX`] keys to read.
    Reads(Vec<Key>),
    /// `count` messages with the same payload under fresh consecutive ids.
    Bulk {
        /// 1..=[`BULK_COUNT_MAX`].
        count: u64,
        /// The bytes of each message; `count` times its length is at most [`BULK_BYTES_MAX`].
        payload: Bytes,
        /// By which a repeat is known: it stores what is missing under the ids of the first.
        token: Option<Token>,
    },
    /// Where a message's copies are.
    Where(Key),
    /// How many messages there are.
    Count,
    /// What this node knows of the cluster; answered with or without a leader elected.
    Status,
}

impl Batch {
    /// How many replies it gets.
    pub fn reply_count(&self) -> usize {
        match self {
            Batch::Writes(writes) => writes.len(),
            Batch::Reads(keys) => keys.len(),
            Batch::Bulk { .. } | Batch::Where(_) | Batch::Count | Batch::Status => 1,
        }
    }
}
