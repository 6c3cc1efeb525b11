//! What leaders and members say to each other, in our own types; `envelope.rs` maps them to
//! protobuf and checks them. Pure.
//!
//! Calls from a leader to a member carry a [`Fence`]; others do not. [`Request::Raft`] is one-way:
//! it is posted, not called, and has no answer; Raft itself repeats what was lost.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::ids::{ClusterId, Fence, Key, LogPosition, MemberId, PeerId, Revision};
use crate::protocol::reply::Reply;
use crate::protocol::request::Batch;

/// What a process is, as its certificate's common name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Coordinates requests; may store, fetch and release on members, and talk with its peers.
    Leader,
    /// Stores payloads; may register and send heartbeats.
    Member,
    /// May do neither.
    Client,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Leader => "leader",
            Role::Member => "member",
            Role::Client => "client",
        })
    }
}

/// What a leader calls on a link to a member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Purpose {
    /// Everything.
    #[default]
    All,
    /// Fetches and nothing else: large ones, so that stores and small fetches do not wait behind
    /// their answers.
    Fetches,
}

/// The first frame each way on a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Version of the protocol; both sides must name the same.
    pub protocol: u32,
    /// Both sides must be of the same cluster.
    pub cluster_id: ClusterId,
    /// The node's name, the same as in its certificate's SAN.
    pub name: String,
    /// The node's [`MemberId`] or `PeerId` as an integer.
    pub node_id: u64,
    /// How often the node's data directory has been started.
    pub incarnation: u64,
    /// Random, new at each start: tells a reconnect from a second process on a cloned disk.
    pub nonce: u64,
    /// On a leader's link the number of it, to a member that of its fences; 0 on a passing link to
    /// another leader, and on those of others.
    pub link: u64,
    /// Checked against the certificate.
    pub role: Role,
    /// What is called on this link; each purpose has a link of its own.
    pub purpose: Purpose,
    /// From a member: it takes a second link of a leader, for fetches.
    pub separates_fetches: bool,
}

/// A call, or what is said one way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Leader to member: store records.
    Store(StoreRequest),
    /// Leader to member: read records.
    Fetch(FetchRequest),
    /// Leader to member: forget records.
    Release(ReleaseRequest),
    /// Leader to member: which of these records are there?
    Holds(HoldsRequest),
    /// Member to leader: take this member into the registry.
    Register(RegisterRequest),
    /// Member to leader: still here; once a second.
    Heartbeat(HeartbeatRequest),
    /// Leader to leader, one-way: Raft messages.
    Raft(RaftRequest),
    /// Leader to leader: a part of a snapshot file.
    Snapshot(SnapshotChunk),
    /// Leader to leader: belong to this group.
    Join(JoinRequest),
    /// Leader to leader: answer this batch of a client, yourself. About messages only.
    Forward(Batch),
    /// Leader to leader: do I take part still?
    Standing,
}

/// What is asked; `Display` is its name in logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// See [`Request::Store`].
    Store,
    /// See [`Request::Fetch`].
    Fetch,
    /// See [`Request::Release`].
    Release,
    /// See [`Request::Holds`].
    Holds,
    /// See [`Request::Register`].
    Register,
    /// See [`Request::Heartbeat`].
    Heartbeat,
    /// See [`Request::Raft`].
    Raft,
    /// See [`Request::Snapshot`].
    Snapshot,
    /// See [`Request::Join`].
    Join,
    /// See [`Request::Forward`].
    Forward,
    /// See [`Request::Standing`].
    Standing,
}

impl Kind {
    /// The only role that may call it.
    pub fn caller(self) -> Role {
        match self {
            Kind::Store | Kind::Fetch | Kind::Release | Kind::Holds => Role::Leader,
            Kind::Raft | Kind::Snapshot | Kind::Join => Role::Leader,
            Kind::Forward | Kind::Standing => Role::Leader,
            Kind::Register | Kind::Heartbeat => Role::Member,
        }
    }

    /// Whether it is posted and never answered; all others are called.
    pub fn is_one_way(self) -> bool {
        match self {
            Kind::Raft => true,
            Kind::Store | Kind::Fetch | Kind::Release | Kind::Holds => false,
            Kind::Register | Kind::Heartbeat => false,
            Kind::Snapshot | Kind::Join | Kind::Forward | Kind::Standing => false,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Store => "store",
            Kind::Fetch => "fetch",
            Kind::Release => "release",
            Kind::Holds => "holds",
            Kind::Register => "register",
            Kind::Heartbeat => "heartbeat",
            Kind::Raft => "raft",
            Kind::Snapshot => "snapshot",
            Kind::Join => "join",
            Kind::Forward => "forward",
            Kind::Standing => "standing",
        })
    }
}

impl Request {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Request::Store(_) => Kind::Store,
            Request::Fetch(_) => Kind::Fetch,
            Request::Release(_) => Kind::Release,
            Request::Holds(_) => Kind::Holds,
            Request::Register(_) => Kind::Register,
            Request::Heartbeat(_) => Kind::Heartbeat,
            Request::Raft(_) => Kind::Raft,
            Request::Snapshot(_) => Kind::Snapshot,
            Request::Join(_) => Kind::Join,
            Request::Forward(_) => Kind::Forward,
            Request::Standing => Kind::Standing,
        }
    }
}

/// An answer; its kind is that of the request, or `Refused`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Response {
    /// One result for each record, in order.
    Store(Vec<StoreResult>),
    /// One result for each revision, in order.
    Fetch(Vec<FetchResult>),
    /// All named revisions are forgotten, durably.
    Release,
    /// For each revision, in order, whether there is a record of it.
    Holds(Vec<bool>),
    /// The member is in the registry.
    Register,
    /// Noted.
    Heartbeat(HeartbeatAnswer),
    /// The chunk is taken; after the last one, the whole file is.
    Snapshot,
    /// It belongs to the group, and says where it is reached.
    Join(JoinAnswer),
    /// One reply for each request of the batch, in order; to reads perhaps fewer, at least one.
    Forward(Vec<Reply>),
    /// Whether the asking leader takes part; said by the active leader only.
    Standing(StandingAnswer),
    /// The whole request was refused and had no effect.
    Refused(Refusal),
}

/// Store records under their revisions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreRequest {
    /// Compared when the request is executed.
    pub fence: Fence,
    /// What to store; shared by the requests to all members that store the same.
    pub records: Arc<Vec<StoreRecord>>,
}

/// One record to store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreRecord {
    /// Its name on members.
    pub revision: Revision,
    /// The message it was written for.
    pub key: Key,
    /// The message's bytes.
    pub payload: Bytes,
}

/// What became of one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreResult {
    /// It has reached the member's write mode: this copy counts.
    Stored,
    /// There is no space; nothing was stored.
    DiskFull,
    /// The revision exists with another key or other bytes; nothing was stored (R11).
    Conflict,
    /// The system refused it for now, for want of something else than space; nothing was stored.
    Refused,
}

/// Read records by revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchRequest {
    /// A lower one than the member has executed is refused; a fetch does not raise it.
    pub fence: Fence,
    /// What to read.
    pub revisions: Vec<Revision>,
}

/// One record, or why it did not come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FetchResult {
    /// The record, its checksum verified.
    Found {
        /// The message it was written for.
        key: Key,
        /// The message's bytes.
        payload: Bytes,
    },
    /// No such revision here.
    Missing,
    /// The record is there and its checksum does not match, or it cannot be read.
    Damaged,
    /// Left out because the answer would have become too large: ask again.
    Omitted,
}

/// Forget records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReleaseRequest {
    /// Compared when the request is executed.
    pub fence: Fence,
    /// What to forget; unknown revisions are passed over.
    pub revisions: Vec<Revision>,
}

/// Which of these records are there?
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HoldsRequest {
    /// A lower one than the member has executed is refused; the question does not raise it.
    pub fence: Fence,
    /// What is asked for, [`HOLDS_REVISIONS_MAX`] at most.
    pub revisions: Vec<Revision>,
}

/// The most revisions in a [`HoldsRequest`]: 32 KiB, some 200 us of the member's index lock.
pub const HOLDS_REVISIONS_MAX: usize = 4096;

/// Take a member into the registry; id, name, incarnation and nonce are those of its Hello.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegisterRequest {
    /// Where leaders reach the member's RPC, `host:port`.
    pub address: String,
    /// Placement zone, empty for none.
    pub zone: String,
    /// The name may be taken from a member id that holds messages, whose copies are given up.
    pub replace: bool,
    /// Acknowledged records may be missing or damaged on the member's disk.
    pub incomplete: bool,
    /// Live records at the time of the call. `None`: an older build, which does not know
    /// [`Request::Holds`].
    pub records: Option<u64>,
    /// What it has seen of leaders.
    pub seen: Seen,
}

/// What a member has seen of the leaders that wrote to it. A leader that was started from an older
/// copy of its directory does not know that any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The highest fence that it has executed.
    pub fence: Fence,
    /// The highest revision of the records that it holds.
    pub revision: Option<Revision>,
    /// The furthest entry of the leaders' log that it was told is committed.
    pub committed: LogPosition,
}

/// What a leader tells a member with each heartbeat.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeartbeatAnswer {
    /// The last entry that is known to be committed; none unless the active leader answers.
    pub committed: LogPosition,
    /// The active leader compared the copies that it lists for the member since that started, and
    /// all of them are there.
    pub has_all: bool,
}

/// A member's counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeartbeatRequest {
    /// Live records.
    pub records: u64,
    /// Payload bytes of live records.
    pub bytes: u64,
    /// Free bytes of the disk.
    pub free: u64,
    /// What it has seen of leaders.
    pub seen: Seen,
}

/// Raft messages for the peer, in the order in which they were made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RaftRequest {
    /// Where the sender's RPC is reached, `host:port`: the receiver may dial it there.
    pub address: String,
    /// Encoded messages, opaque here. At least one.
    pub messages: Vec<Bytes>,
}

/// A part of a snapshot file. Chunks of a transfer come in order, each after the answer to the one
/// before it or not; the receiver refuses what does not follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotChunk {
    /// Names the transfer; chosen by the sender.
    pub transfer: u64,
    /// Where `bytes` belongs in the file; 0 begins anew.
    pub offset: u64,
    /// A part of the file, not empty.
    pub bytes: Bytes,
    /// With the last chunk: the Raft message that the snapshot belongs to, opaque here.
    pub end: Option<Bytes>,
}

/// Belong to this group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinRequest {
    /// The voters with which the group began, each once.
    pub founders: Vec<PeerId>,
}

/// Where a leader is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinAnswer {
    /// By leaders and members, `host:port`.
    pub rpc: String,
    /// By clients, `host:port`.
    pub client: String,
    /// By clients over HTTP, `host:port`; empty: not.
    pub http: String,
    /// It was in a group before: its log is not empty.
    pub has_log: bool,
}

/// How a leader stands to the group that it asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StandingAnswer {
    /// Whether it takes part.
    pub takes_part: bool,
    /// Where clients reach the active leader, which answers, `host:port`.
    pub client: String,
    /// Where they reach it over HTTP; empty: not.
    pub http: String,
}

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The member has executed a higher fence than the request's.
    #[error("fence is lower than {highest}, which was executed already")]
    StaleFence {
        /// The highest fence executed.
        highest: Fence,
    },
    /// The leader asked is not the active one.
    #[error("not the active leader")]
    NotLeader,
    /// A queue is full.
    #[error("busy")]
    Busy,
    /// The member's disk has no space for the fence, without which nothing is stored.
    #[error("no space left to record the fence")]
    NoSpace,
    /// The member's incarnation is lower than one registered, or equal with another nonce: a rolled
    /// back or cloned disk. The member exits.
    #[error("incarnation {incarnation} is not above {registered}, which is registered")]
    StaleIncarnation {
        /// The refused incarnation.
        incarnation: u64,
        /// The registered incarnation.
        registered: u64,
    },
    /// The id belongs to another name, or was retired: its name came with another id.
    #[error("member id {0} is not registered for this name any more")]
    Retired(MemberId),
    /// The member's name belongs to another member id. The process waits and tries again: the
    /// other one may go, or the right data directory come back.
    #[error("{}", name_held(*holder, *messages, *is_up))]
    NameHeld {
        /// The id that has the name.
        holder: MemberId,
        /// How many messages list it.
        messages: u64,
        /// It is up: nothing can take the name from it.
        is_up: bool,
    },
    /// Anything else, in words.
    #[error("{0}")]
    Other(String),
}

fn name_held(holder: MemberId, messages: u64, is_up: bool) -> String {
    if is_up {
        return format!(
            "this name belongs to member id {holder}, whose process is up: stop that one first, or \
             give this one another name"
        );
    }
    format!(
        "this name is held by member id {holder} with {messages} messages; to keep its copies, put \
         its data directory in place (is a disk not mounted?) and start again; to give them up, \
         start with --replace"
    )
}
