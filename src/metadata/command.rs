//! The closed set of changes to the metadata, as they stand in the Raft log. Pure.

use crate::ids::{Key, MemberId, Revision};
use crate::metadata::replica_sets::ReplicaSet;

/// One entry of the Raft log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// The term of the leader that made it; `apply` ignores it in a log entry of another term (R2).
    pub term: u64,
    /// The change.
    pub change: Change,
}

/// What a command changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Writes, in order; each takes effect or not on its own.
    Write(Vec<Operation>),
    /// Reserve the next `count` consecutive message ids of which none is in use.
    ReserveIds {
        /// 1..=1,000,000.
        count: u64,
    },
    /// Take a member into the registry, or renew it.
    RegisterMember(Registration),
    /// Set how many members hold each message.
    SetTolerance(u8),
}

/// One write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// The message is now this record; the record it had before is released.
    Set {
        /// The message.
        key: Key,
        /// The record.
        revision: Revision,
        /// The members that acknowledged the record.
        replicas: ReplicaSet,
        /// The payload's length in bytes.
        length: u32,
    },
    /// The message is gone; the record it had is released.
    Delete {
        /// The message.
        key: Key,
    },
}

/// A member as the registry holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// Its id.
    pub id: MemberId,
    /// Its name, unique among members: a new id for a name retires the old one.
    pub name: String,
    /// Where leaders reach its RPC, `host:port`.
    pub address: String,
    /// Placement zone, empty for none.
    pub zone: String,
    /// How often its data directory has been started.
    pub incarnation: u64,
    /// Random for each start.
    pub nonce: u64,
}

/// What `apply` did with a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Applied {
    /// Nothing: the command's term is not the entry's (R2).
    WrongTerm,
    /// One result for each operation, in order, and the copies that no metadata names any more.
    Write {
        /// In the order of the operations.
        results: Vec<OperationResult>,
        /// Replaced, deleted and refused records, with the members that hold them.
        released: Vec<(Revision, ReplicaSet)>,
    },
    /// Message ids `first..first + count` are reserved.
    Reserved {
        /// The lowest.
        first: u64,
    },
    /// No `count` consecutive free ids are left.
    IdsExhausted,
    /// The member is in the registry.
    Registered {
        /// The id that the name had before, if that was another.
        retired: Option<MemberId>,
    },
    /// The registration is older than the registered one.
    StaleIncarnation {
        /// The registered incarnation.
        registered: u64,
    },
    /// The id is registered for another name, or was retired.
    Retired,
    /// The setting holds from here on.
    Set,
}

/// What became of one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperationResult {
    /// The message is stored.
    Stored,
    /// The message was there and is gone.
    Deleted,
    /// There was no message to delete.
    NotFound,
    /// The replica set names a member that is not in the registry; nothing changed.
    UnknownMember,
}
