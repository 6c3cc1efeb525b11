//! The closed set of requests that every client protocol maps to. Pure.

use bytes::Bytes;

use crate::ids::{Key, Revision, Token};

/// The most requests in one batch.
pub const BATCH_REQUESTS_MAX: usize = 4096;
/// The most payload bytes in one batch; a single larger message is a batch of its own.
pub const BATCH_BYTES_MAX: usize = 8 * 1024 * 1024;
/// The most messages one bulk write may store.
pub const BULK_COUNT_MAX: u64 = 1_000_000;
/// The most payload bytes one bulk write may store, all its messages together: 1 GiB.
pub const BULK_BYTES_MAX: u64 = 1 << 30;

/// The longest time to live, in milliseconds: 100 years.
pub const TTL_MS_MAX: u64 = 100 * 365 * 24 * 3600 * 1000;
/// The most keys in one page of a listing.
pub const PAGE_KEYS_MAX: u32 = 1000;

/// What a write demands of its key to take effect; compared in `apply`, at its log position (R3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Condition {
    /// The message was written by this revision.
    Revision(Revision),
    /// There is no such message.
    Absent,
    /// There is a message, whichever wrote it.
    Exists,
}

/// One write. With a token it takes effect at most once in the time for which tokens are
/// remembered; a repeat gets the first reply, whatever it asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Store a message.
    Set {
        /// Its name.
        key: Key,
        /// Its bytes.
        payload: Bytes,
        /// How it is stored.
        options: SetOptions,
    },
    /// Delete a message.
    Delete {
        /// Its name.
        key: Key,
        /// By which a repeat is known.
        token: Option<Token>,
        /// What it demands.
        condition: Option<Condition>,
    },
    /// Change when a message expires.
    Expire {
        /// Its name.
        key: Key,
        /// By which a repeat is known.
        token: Option<Token>,
        /// In so many milliseconds from now, 1..=[`TTL_MS_MAX`]; `None`: never.
        ttl_ms: Option<u64>,
    },
}

/// What a SET may carry beside key and payload; by default nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SetOptions {
    /// By which a repeat is known.
    pub token: Option<Token>,
    /// What it demands.
    pub condition: Option<Condition>,
    /// The message expires in so many milliseconds, 1..=[`TTL_MS_MAX`]; `None`: never.
    pub ttl_ms: Option<u64>,
}

impl Write {
    /// Payload bytes, for the limits of a batch.
    pub fn payload_len(&self) -> usize {
        match self {
            Write::Set { payload, .. } => payload.len(),
            Write::Delete { .. } | Write::Expire { .. } => 0,
        }
    }

    /// A SET of a message that never expires, without a condition.
    pub fn set(key: Key, payload: Bytes, token: Option<Token>) -> Write {
        let options = SetOptions {
            token,
            ..SetOptions::default()
        };
        Write::Set {
            key,
            payload,
            options,
        }
    }

    /// A DEL without a condition.
    pub fn delete(key: Key, token: Option<Token>) -> Write {
        Write::Delete {
            key,
            token,
            condition: None,
        }
    }

    /// The message that it is about.
    pub fn key(&self) -> &Key {
        match self {
            Write::Set { key, .. } | Write::Delete { key, .. } | Write::Expire { key, .. } => key,
        }
    }

    /// By which a repeat is known.
    pub fn token(&self) -> Option<&Token> {
        match self {
            Write::Set { options, .. } => options.token.as_ref(),
            Write::Delete { token, .. } | Write::Expire { token, .. } => token.as_ref(),
        }
    }

    /// What it demands of its key.
    pub fn condition(&self) -> Option<Condition> {
        match self {
            Write::Set { options, .. } => options.condition,
            Write::Delete { condition, .. } => *condition,
            Write::Expire { .. } => None,
        }
    }

    /// The time to live that it gives its message.
    pub fn ttl_ms(&self) -> Option<u64> {
        match self {
            Write::Set { options, .. } => options.ttl_ms,
            Write::Expire { ttl_ms, .. } => *ttl_ms,
            Write::Delete { .. } => None,
        }
    }
}

/// Reads and writes that take effect in one entry of the log, in their order: each sees what those
/// before it did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// 1..=[`BATCH_REQUESTS_MAX`] of [`BATCH_BYTES_MAX`] payload bytes in all, or one with a larger
    /// payload.
    pub steps: Vec<Step>,
    /// Whether all take effect or none; else each on its own.
    pub is_atomic: bool,
    /// By which a repeat of the whole is known. A repeat gets the first results, but reads anew.
    pub token: Option<Token>,
}

/// A part of a [`Transaction`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A write without a token of its own.
    Write(Write),
    /// Read a message as it is then.
    Get(Key),
}

impl Step {
    /// Payload bytes, for the limits of a batch.
    pub fn payload_len(&self) -> usize {
        match self {
            Step::Write(write) => write.payload_len(),
            Step::Get(_) => 0,
        }
    }
}

/// Which keys to list: those that begin with `prefix`, in bytewise order of their text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListRequest {
    /// What the keys begin with; empty: all keys.
    pub prefix: Box<str>,
    /// Only keys behind this text.
    pub after: Option<Box<str>>,
    /// How many at most, 1..=[`PAGE_KEYS_MAX`].
    pub limit: u32,
}

/// What a connection hands to the coordinator at a time. The requests of a batch are consecutive
/// requests of one connection; it is answered by as many replies, in their order, except for
/// `Bulk` and `Transaction`, which have one.
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
    /// Reads and writes in one entry of the log; one reply.
    Transaction(Transaction),
    /// When a message expires.
    Ttl(Key),
    /// A page of keys.
    List(ListRequest),
    /// Where a message's copies are.
    Where(Key),
    /// How many messages there are.
    Count,
    /// What this node knows of the cluster; answered with or without a leader elected.
    Status,
    /// About the group of leaders.
    Group(GroupRequest),
}

/// What is asked of the group of leaders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupRequest {
    /// Who takes part; answered by each leader with what it knows.
    View,
    /// The leader whose RPC is there (`host:port`) takes part from here on.
    Add(String),
    /// The leader with this id or name takes part no more.
    Remove(String),
    /// The leader with this id or name becomes the active one.
    Transfer(String),
}

impl Batch {
    /// How many replies it gets.
    pub fn reply_count(&self) -> usize {
        match self {
            Batch::Writes(writes) => writes.len(),
            Batch::Reads(keys) => keys.len(),
            Batch::Bulk { .. } | Batch::Where(_) | Batch::Count => 1,
            Batch::Transaction(_) | Batch::Ttl(_) | Batch::List(_) => 1,
            Batch::Status | Batch::Group(_) => 1,
        }
    }
}
