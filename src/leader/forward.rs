//! `redirect = "forward"`: a follower passes a client's batch on to the active leader and gives its
//! client what that one answers.
//!
//! The batch goes as one call over the link to that leader, and is parked until the answer comes:
//! no worker waits for it, and the next batch of its connection begins behind it, so replies keep
//! their order. The leader that gets it answers it itself, whatever it is by then
//! ([`crate::leader::desk`]): nothing is passed on twice.
//!
//! # The three outcomes
//!
//! * Before it is sent (no leader known, no link, no room) nothing happened, and the client is told
//!   so: `not leader`, `no leader elected` or `busy`.
//! * The leader's answer is the client's.
//! * Sent, and no answer: the link was lost, or the time is over. What was written may or may not
//!   have happened, and that is said; it is never sent again. A read has no effect, so it is told
//!   to ask elsewhere, or that its time is over.
//!
//! # Room for replies
//!
//! Replies to reads are not fetched before there is room for them, as those of the active leader to
//! its own clients ([`crate::net::budget`]): how large they will be is looked up in this leader's
//! copy of the metadata. A batch waits for its room until the read time-out, then it is `busy`.
//! Replies to messages that this leader has not heard of yet count once they are there.
//!
//! # Limits
//!
//! Bytes on their way are [`BYTES_IN_FLIGHT_MAX`], or one larger batch: they share the link with
//! Raft's messages, which must not wait long behind them; beyond it a batch is answered `busy`.
//! How many there are is bounded by the parked batches of the server. A batch is waited for as long
//! as it may take by this leader's own settings, and [`GRACE`]: a leader that is slower for good
//! reasons is not waited for. `STATUS` and `GROUP` are about a leader and are not passed on.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use log::debug;

use crate::clock::Instant;
use crate::coordinator::Limits;
use crate::error::Failure;
use crate::ids::Key;
use crate::leader::desk::READ_BYTES_MAX;
use crate::leader::links::MemberLink;
use crate::leader::slot::Slot;
use crate::leader::state::Shared;
use crate::net::budget::{Request as RoomRequest, Reservation};
use crate::net::room::Need;
use crate::net::{Parked, Progress, Waker};
use crate::protocol::reply::Reply;
use crate::protocol::request::{Batch, Step};
use crate::rpc::envelope::forwarded_bytes;
use crate::rpc::link::CallError;
use crate::rpc::message::{Refusal, Request, Response};

/// Bytes of batches that were sent and not answered. A second of a 128 Mbit/s network; twice of it
/// would keep an acknowledgement of Raft waiting for an election time-out on a 1 Gbit/s one.
const BYTES_IN_FLIGHT_MAX: usize = 16 << 20;

/// What the way there and back may take beyond the time of the batch.
const GRACE: Duration = Duration::from_millis(500);

/// What each message of a bulk write is taken to need beyond its bytes: ten times what it does.
const BULK_MESSAGE_TIME: Duration = Duration::from_micros(100);

/// The lane of replies from the active leader, for [`Need::fetches`]: no member has that id.
const LEADER_LANE: u64 = u64::MAX;

/// The way to the active leader: a link in a process, something made up in tests.
pub trait Onward: Send + Sync {
    /// The open link to the leader that this one knows to lead.
    fn link(&self) -> Option<Arc<dyn MemberLink>>;
}

/// Over the links to the peers.
pub struct PeerLinks {
    shared: Arc<Shared>,
}

impl PeerLinks {
    /// Those of this leader.
    pub fn new(shared: Arc<Shared>) -> PeerLinks {
        PeerLinks { shared }
    }
}

impl Onward for PeerLinks {
    fn link(&self) -> Option<Arc<dyn MemberLink>> {
        let leader = self.shared.group.status().leader?;
        Some(self.shared.view.peers.link(leader)?)
    }
}

/// Bytes that were sent and not answered.
#[derive(Default)]
pub struct InFlight {
    bytes: AtomicUsize,
}

impl InFlight {
    /// Room for so many more, until the value is dropped.
    fn enter(self: &Arc<Self>, bytes: usize) -> Option<Share> {
        let before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let share = Share {
            all: Arc::clone(self),
            bytes,
        };
        (before == 0 || before + bytes <= BYTES_IN_FLIGHT_MAX).then_some(share)
    }
}

/// A part of what is in flight.
struct Share {
    all: Arc<InFlight>,
    bytes: usize,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.all.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Passes a batch about messages on, when there is room for its replies, or says why not.
/// `reply_growth` is that of the client's session.
pub fn begin(
    shared: &Arc<Shared>,
    onward: &Arc<dyn Onward>,
    in_flight: &Arc<InFlight>,
    batch: Batch,
    reply_growth: usize,
) -> Progress {
    let passing = Passing {
        shared: Arc::clone(shared),
        onward: Arc::clone(onward),
        in_flight: Arc::clone(in_flight),
        batch,
    };
    let payload_bytes = payload_bytes(shared, &passing.batch);
    let reply_bytes = payload_bytes.saturating_mul(reply_growth as u64);
    if reply_bytes <= shared.limits.unreserved_bytes_max {
        return passing.send(None);
    }
    let need = Need {
        reply_bytes: usize::try_from(reply_bytes).unwrap_or(usize::MAX),
        fetches: vec![(LEADER_LANE, payload_bytes)],
    };
    let granted = Arc::new(Slot::default());
    let wake = {
        let granted = Arc::clone(&granted);
        move || granted.fill(())
    };
    let now = shared.clock.now();
    match shared.budget.request(need, now, wake) {
        Some(request) => Box::new(AwaitsRoom {
            deadline: now + shared.limits.read_timeout,
            passing,
            request,
            granted,
        })
        .resume(),
        None => passing.failed(Failure::Busy),
    }
}

/// Payload bytes of the replies to a batch, as far as this leader knows its messages. The active
/// leader answers [`READ_BYTES_MAX`] at a time, or one message.
fn payload_bytes(shared: &Shared, batch: &Batch) -> u64 {
    let length = |key: &Key| {
        let entry = shared.view.metadata.find(key);
        entry.map_or(0, |entry| u64::from(entry.length))
    };
    let read = |step: &Step| match step {
        Step::Get(key) => Some(length(key)),
        Step::Write(_) => None,
    };
    match batch {
        Batch::Reads(keys) => at_a_time(keys.iter().map(length)),
        Batch::Transaction(transaction) => at_a_time(transaction.steps.iter().filter_map(read)),
        Batch::Writes(_) | Batch::Bulk { .. } | Batch::Where(_) | Batch::Count => 0,
        Batch::Ttl(_) | Batch::List(_) => 0,
        Batch::Status | Batch::Group(_) => unreachable!("not passed on"),
    }
}

/// The bytes of the first messages that fit into [`READ_BYTES_MAX`], or of the first one.
fn at_a_time(lengths: impl Iterator<Item = u64>) -> u64 {
    let mut bytes: u64 = 0;
    for length in lengths {
        if bytes > 0 && bytes.saturating_add(length) > READ_BYTES_MAX {
            break;
        }
        bytes = bytes.saturating_add(length);
    }
    bytes
}

/// A batch that is to be passed on.
struct Passing {
    shared: Arc<Shared>,
    onward: Arc<dyn Onward>,
    in_flight: Arc<InFlight>,
    batch: Batch,
}

impl Passing {
    fn failed(&self, failure: Failure) -> Progress {
        Progress::done(vec![Reply::Failed(failure); self.batch.reply_count()])
    }

    /// Sends it; `room` is that of its replies.
    fn send(self, room: Option<Reservation>) -> Progress {
        let Some(link) = self.onward.link() else {
            let leader = self.shared.leader_address();
            return self.failed(Failure::NotLeader { leader });
        };
        let Some(share) = self.in_flight.enter(forwarded_bytes(&self.batch)) else {
            return self.failed(Failure::Busy);
        };
        let Passing { shared, batch, .. } = self;
        let requests = batch.reply_count();
        let lost = Lost::of(&batch);
        let reply_bytes = room.as_ref().map_or(0, Reservation::bytes) as u64;
        let time = time_of(&batch, &shared.limits) + shared.limits.drain_time(reply_bytes);
        let deadline = shared.clock.now() + time;
        let slot = Arc::new(Slot::default());
        let answered = Arc::clone(&slot);
        let completion = move |result| {
            drop(share);
            answered.fill(result);
        };
        let term = shared.group.status().term;
        let request = Request::Forward(batch);
        match link.call(term, request, deadline, Box::new(completion)) {
            Ok(call) => debug!(
                "{requests} requests are passed on to {} as call {call}",
                link.name()
            ),
            Err(error) => {
                debug!("{requests} requests are not passed on: {error}");
                let failure = match error {
                    CallError::Busy => Failure::Busy,
                    CallError::LinkLost(_) | CallError::TimedOut | CallError::TooLarge { .. } => {
                        let leader = shared.leader_address();
                        Failure::NotLeader { leader }
                    }
                };
                return Progress::done(vec![Reply::Failed(failure); requests]);
            }
        }
        Progress::Parked(Box::new(PassedOn {
            shared,
            slot,
            deadline,
            requests,
            lost,
            room,
        }))
    }
}

/// A batch that waits for room for its replies.
struct AwaitsRoom {
    passing: Passing,
    request: RoomRequest,
    /// Filled when the room is granted.
    granted: Arc<Slot<()>>,
    deadline: Instant,
}

impl Parked for AwaitsRoom {
    fn deadline(&self) -> Instant {
        self.deadline
    }

    fn arm(&mut self, wake: Waker) {
        self.granted.arm(wake);
    }

    fn resume(mut self: Box<Self>) -> Progress {
        match self.request.take() {
            Some(room) => self.passing.send(Some(room)),
            None if self.passing.shared.clock.now() >= self.deadline => {
                self.passing.failed(Failure::Busy)
            }
            None => Progress::Parked(self),
        }
    }
}

/// How long a batch is waited for.
fn time_of(batch: &Batch, limits: &Limits) -> Duration {
    GRACE
        + match batch {
            Batch::Writes(_) => limits.write_timeout + drain_time(batch, 1, limits),
            Batch::Transaction(_) => {
                limits.write_timeout + drain_time(batch, 1, limits) + limits.read_timeout
            }
            Batch::Bulk { count, .. } => {
                let messages = u32::try_from(*count).unwrap_or(u32::MAX);
                let bytes = drain_time(batch, *count, limits);
                limits.write_timeout + bytes + BULK_MESSAGE_TIME * messages
            }
            Batch::Reads(_) | Batch::Where(_) | Batch::Count => limits.read_timeout,
            Batch::Ttl(_) | Batch::List(_) => limits.read_timeout,
            Batch::Status | Batch::Group(_) => unreachable!("not passed on"),
        }
}

fn drain_time(batch: &Batch, times: u64, limits: &Limits) -> Duration {
    limits.drain_time((forwarded_bytes(batch) as u64).saturating_mul(times))
}

/// What no answer means.
#[derive(Clone, Copy)]
enum Lost {
    /// It may have been done.
    Write,
    /// It has no effect.
    Read,
}

impl Lost {
    fn of(batch: &Batch) -> Lost {
        match batch {
            Batch::Writes(_) | Batch::Bulk { .. } | Batch::Transaction(_) => Lost::Write,
            Batch::Reads(_) | Batch::Where(_) | Batch::Count => Lost::Read,
            Batch::Ttl(_) | Batch::List(_) => Lost::Read,
            Batch::Status | Batch::Group(_) => unreachable!("not passed on"),
        }
    }
}

/// A batch that waits for its answer.
struct PassedOn {
    shared: Arc<Shared>,
    slot: Arc<Slot<Result<Response, CallError>>>,
    deadline: Instant,
    requests: usize,
    lost: Lost,
    /// Room for the replies.
    room: Option<Reservation>,
}

impl PassedOn {
    fn replies(&self, result: Result<Response, CallError>) -> Vec<Reply> {
        let not_leader = || Failure::NotLeader {
            leader: self.shared.leader_address(),
        };
        let failure = match (result, self.lost) {
            (Ok(Response::Forward(replies)), _) => {
                return replies.into_iter().map(|reply| self.seen(reply)).collect();
            }
            (Ok(Response::Refused(Refusal::Busy)), _) => Failure::Busy,
            (Ok(Response::Refused(Refusal::NotLeader)), _) => not_leader(),
            (Err(CallError::TimedOut), Lost::Read) => Failure::ReadTimedOut,
            (_, Lost::Read) => not_leader(),
            // An answer that could not be given, too: it was done by then.
            (_, Lost::Write) => Failure::WriteTimedOut,
        };
        vec![Reply::Failed(failure); self.requests]
    }

    /// A reply as our client is to see it: nobody is sent to where they come from.
    fn seen(&self, reply: Reply) -> Reply {
        match reply {
            Reply::Failed(Failure::NotLeader {
                leader: Some(leader),
            }) if leader == self.shared.client_address => {
                Reply::Failed(Failure::NotLeader { leader: None })
            }
            other => other,
        }
    }
}

impl Parked for PassedOn {
    fn deadline(&self) -> Instant {
        self.deadline
    }

    fn arm(&mut self, wake: Waker) {
        self.slot.arm(wake);
    }

    fn resume(mut self: Box<Self>) -> Progress {
        let result = match self.slot.take() {
            Some(result) => result,
            None if self.shared.clock.now() >= self.deadline => Err(CallError::TimedOut),
            None => return Progress::Parked(self),
        };
        let room = self.room.take();
        Progress::Done(self.replies(result), room)
    }
}
