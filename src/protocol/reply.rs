//! The closed set of replies that every client protocol writes out. Pure.

use std::fmt;

use bytes::Bytes;
use serde::Serialize;

use crate::error::Failure;
use crate::ids::{Key, Revision};

/// The answer to one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// A message was stored.
    Stored {
        /// The write's revision.
        revision: Revision,
        /// Whether there was no such message before.
        created: bool,
    },
    /// A message was deleted.
    Deleted,
    /// When a message expires was changed.
    ExpirySet,
    /// The write's condition does not hold; nothing changed.
    Mismatch {
        /// What the message was written by; `None`: there is no such message.
        revision: Option<Revision>,
    },
    /// No such message: said only by applied metadata of a confirmed leader (A11).
    NotFound,
    /// A message.
    Value {
        /// The revision that wrote it.
        revision: Revision,
        /// Its bytes.
        payload: Bytes,
    },
    /// What became of each step of a transaction, in order: none of these again. Of an atomic one
    /// that was not done because of a condition, it is `Mismatch` there and `Failed` elsewhere.
    Transaction(Vec<Reply>),
    /// When a message expires.
    TimeToLive {
        /// Milliseconds left; `None`: it does not expire.
        ms: Option<u64>,
    },
    /// A page of keys.
    Keys(KeyPage),
    /// All messages of a bulk write were stored.
    BulkStored {
        /// The lowest id.
        first: u64,
        /// The highest id.
        last: u64,
    },
    /// Where a message's copies are.
    Location {
        /// The revision that wrote it.
        revision: Revision,
        /// Its length.
        bytes: u64,
        /// The members that hold a copy.
        replicas: Vec<ReplicaStatus>,
    },
    /// The number of messages.
    Count(u64),
    /// What this node knows of the cluster.
    Status(Box<ClusterStatus>),
    /// What this node knows of the group of leaders.
    Group(Box<GroupTable>),
    /// The group of leaders is as was asked.
    GroupChanged,
    /// It was not done, or its outcome is unknown.
    Failed(Failure),
}

impl Reply {
    /// Payload bytes in it.
    pub fn payload_len(&self) -> u64 {
        match self {
            Reply::Value { payload, .. } => payload.len() as u64,
            Reply::Transaction(replies) => replies.iter().map(Reply::payload_len).sum(),
            _ => 0,
        }
    }
}

/// The answer to a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPage {
    /// In bytewise order of the keys' text; as many as were asked for at most.
    pub keys: Vec<ListedKey>,
    /// Whether there are more behind them.
    pub has_more: bool,
}

/// A message in a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedKey {
    /// Its name.
    pub key: Key,
    /// What wrote it.
    pub revision: Revision,
    /// Its length.
    pub bytes: u64,
}

/// What the active leader believes of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MemberState {
    /// Connected and answering.
    Up,
    /// Connected, and late with an answer: chosen last.
    Suspect,
    /// Not connected, or silent for too long.
    Down,
    /// Its name has another id: its copies are given up, unless its data directory comes back.
    Retired,
    /// Of a copy: the member is known not to have it, or not whole.
    Missing,
}

impl fmt::Display for MemberState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MemberState::Up => "up",
            MemberState::Suspect => "suspect",
            MemberState::Down => "down",
            MemberState::Retired => "retired",
            MemberState::Missing => "missing",
        })
    }
}

/// One replica of a message: `name@address:state`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaStatus {
    /// The member's name, without `:`, `,` and `@`.
    pub name: String,
    /// The member's RPC address, `host:port`.
    pub address: String,
    /// What the leader believes of it.
    pub state: MemberState,
}

impl fmt::Display for ReplicaStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}:{}", self.name, self.address, self.state)
    }
}

/// The answer to `STATUS`; its JSON form is the serialisation of this.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ClusterStatus {
    /// The answering node's name.
    pub node: String,
    /// Its role: `leader` (the active one), `follower`, `removed` from its group, `waiting` (it
    /// was elected and does not serve yet), or `stuck` (it cannot follow the one that leads).
    pub role: String,
    /// Why it waits or is stuck; absent if it is neither.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Which acknowledged writes were found lost since it started; absent if none were.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lost: Option<String>,
    /// Client address of the active leader, when it is known.
    pub leader: Option<String>,
    /// The Raft term.
    pub term: u64,
    /// How many members hold each message; one less may be lost.
    pub tolerance: u8,
    /// The placement strategy.
    pub strategy: String,
    /// How many messages there are.
    pub messages: u64,
    /// All registered members, by name.
    pub members: Vec<MemberStatus>,
}

/// One member in [`ClusterStatus`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MemberStatus {
    /// Its name.
    pub name: String,
    /// Its id, 16 hexadecimal digits.
    pub id: String,
    /// Its RPC address.
    pub address: String,
    /// What the leader believes of it.
    pub state: MemberState,
    /// Why it is isolated; absent if it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How many copies it holds by the leader's metadata, without those that are missing.
    pub messages: u64,
    /// How many copies the metadata lists for it that it is known not to have; absent if none.
    #[serde(skip_serializing_if = "is_zero")]
    pub missing: u64,
    /// Payload bytes of those copies.
    pub bytes: u64,
    /// Free bytes of its disk, by its last heartbeat; absent before the first.
    pub free: Option<u64>,
    /// Milliseconds since its last heartbeat or answer; absent before the first.
    pub last_seen_ms: Option<u64>,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// The answer to `GROUP`; its JSON form is the serialisation of this.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GroupTable {
    /// The answering node's name.
    pub node: String,
    /// Client address of the active leader, when it is known.
    pub leader: Option<String>,
    /// The Raft term.
    pub term: u64,
    /// All that take part, by name.
    pub peers: Vec<PeerStatus>,
}

/// One leader in [`GroupTable`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PeerStatus {
    /// Its id, 16 hexadecimal digits.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Where other nodes reach it.
    pub rpc: String,
    /// Where clients reach it.
    pub client: String,
    /// Where it serves HTTP; empty: nowhere.
    pub http: String,
    /// What it takes part as.
    pub role: PeerRole,
    /// How it is, as far as the answering node knows.
    pub state: PeerState,
    /// Its journal is known to agree up to this entry; known to the active leader only.
    pub matched: Option<u64>,
}

/// What a leader takes part as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PeerRole {
    /// It has a vote.
    Voter,
    /// It has none, until it has caught up.
    Learner,
    /// It loses its vote with the change that is under way.
    Leaving,
}

impl fmt::Display for PeerRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PeerRole::Voter => "voter",
            PeerRole::Learner => "learner",
            PeerRole::Leaving => "leaving",
        })
    }
}

/// How a leader is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PeerState {
    /// It is the active one.
    Leader,
    /// It follows.
    Follower,
    /// The active leader has not heard of it for an election time-out.
    Silent,
    /// The answering node is not the active leader.
    Unknown,
}

impl fmt::Display for PeerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PeerState::Leader => "leader",
            PeerState::Follower => "follower",
            PeerState::Silent => "silent",
            PeerState::Unknown => "unknown",
        })
    }
}
