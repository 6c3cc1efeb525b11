//! What happens in the world, and when.
//!
//! Equal times are told apart by the order of scheduling, so a run has one order of events.

use std::sync::Arc;

use parking_lot::Mutex;
use tolerex::clock::Instant;
use tolerex::group::IncomingChunk;
use tolerex::ids::{MemberId, PeerId};
use tolerex::protocol::reply::Reply;
use tolerex::protocol::request::Batch;
use tolerex::rpc::link::Completion;
use tolerex::rpc::message::{Request, Response};

/// What the real code wants of others, taken out of it behind each event.
pub type Outbox = Arc<Mutex<Vec<Out>>>;

/// See [`Outbox`].
pub enum Out {
    /// Keep a link to this member.
    Dial {
        leader: usize,
        epoch: u32,
        member: MemberId,
    },
    /// Close this link.
    Close { link: usize },
    /// Call a member.
    Call {
        link: usize,
        call: u64,
        request: Arc<Request>,
        deadline: Instant,
        completion: Completion,
    },
    /// A member's answer.
    Answer {
        link: usize,
        call: u64,
        response: Response,
    },
    /// A batch has something to do.
    Woken {
        leader: usize,
        epoch: u32,
        ticket: u64,
    },
    /// A leader's answer to a registration.
    Registered { ends: Ends, response: Response },
    /// What became of a chunk of a snapshot.
    ChunkTaken {
        from: usize,
        to: usize,
        transfer: u64,
        is_taken: bool,
    },
}

/// A member and a leader, each in one of its starts.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    pub member: usize,
    pub member_epoch: u32,
    pub leader: usize,
    pub leader_epoch: u32,
}

/// What happens.
pub enum Event {
    Tick {
        leader: usize,
        epoch: u32,
    },
    Journal {
        leader: usize,
        epoch: u32,
    },
    Desk {
        leader: usize,
        epoch: u32,
    },
    House {
        leader: usize,
        epoch: u32,
        is_periodic: bool,
    },
    Resume {
        leader: usize,
        epoch: u32,
        ticket: u64,
    },
    Raft {
        from: usize,
        /// Its id when it sent this.
        sender: PeerId,
        to: usize,
        bytes: Vec<u8>,
    },
    Chunk {
        from: usize,
        to: usize,
        chunk: IncomingChunk,
    },
    ChunkDone {
        from: usize,
        to: usize,
        transfer: u64,
        is_taken: bool,
    },
    Connect {
        leader: usize,
        epoch: u32,
        member: MemberId,
    },
    Break {
        link: usize,
    },
    Request {
        link: usize,
        call: u64,
        request: Arc<Request>,
    },
    Answer {
        link: usize,
        call: u64,
        response: Response,
    },
    CallDue {
        leader: usize,
        epoch: u32,
        call: u64,
    },
    Append {
        member: usize,
        epoch: u32,
    },
    Read {
        member: usize,
        epoch: u32,
    },
    Rest {
        member: usize,
        epoch: u32,
    },
    Beat {
        member: usize,
        epoch: u32,
        leader: usize,
    },
    Register {
        ends: Ends,
    },
    Registered {
        ends: Ends,
        response: Response,
    },
    /// A member's heartbeat reaches a leader.
    Heartbeat {
        ends: Ends,
    },
    Next {
        client: usize,
    },
    Submit {
        client: usize,
        request: u64,
        leader: usize,
        batch: Batch,
    },
    Reply {
        client: usize,
        request: u64,
        replies: Option<Vec<Reply>>,
    },
    StartLeader {
        leader: usize,
    },
    StartMember {
        member: usize,
    },
    Fault,
    /// Something happens to a member's disk.
    Disk,
    /// A copy of a leader's disk is kept.
    KeepCopy,
    /// The leader of the copy stops, if it is time for that.
    StopForCopy,
    /// It starts on the copy.
    StartOnCopy,
    /// Nothing passes in this direction for a while.
    Cut {
        from: usize,
        to: usize,
        until: u64,
    },
    /// A server ends, and comes back.
    Crash {
        node: usize,
        is_power: bool,
        down: u64,
    },
    /// A leader that was removed from the group may come back as another one.
    Rejoin {
        leader: usize,
    },
    Calm,
    Look,
}

/// An event in the queue.
pub struct Scheduled {
    /// When, in nanoseconds.
    pub at: u64,
    /// Events of one time happen in the order in which they were scheduled.
    pub sequence: u64,
    /// What.
    pub event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Scheduled) -> bool {
        (self.at, self.sequence) == (other.at, other.sequence)
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Scheduled) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Scheduled) -> std::cmp::Ordering {
        (self.at, self.sequence).cmp(&(other.at, other.sequence))
    }
}
