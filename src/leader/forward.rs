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
use crate::leader::links::MemberLink;
use crate::leader::slot::Slot;
use crate::leader::state::Shared;
use crate::net::{Parked, Progress, Waker};
use crate::protocol::reply::Reply;
use crate::protocol::request::Batch;
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

/// Passes a batch about messages on, or says why not.
pub fn begin(
    shared: &Arc<Shared>,
    onward: &dyn Onward,
    in_flight: &Arc<InFlight>,
    batch: Batch,
) -> Progress {
    let requests = batch.reply_count();
    let failed = |failure| Progress::done(vec![Reply::Failed(failure); requests]);
    let Some(link) = onward.link() else {
        let leader = shared.leader_address();
        return failed(Failure::NotLeader { leader });
    };
    let Some(share) = in_flight.enter(forwarded_bytes(&batch)) else {
        return failed(Failure::Busy);
    };
    let lost = Lost::of(&batch);
    let deadline = shared.clock.now() + time_of(&batch, &shared.limits);
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
            return failed(match error {
                CallError::Busy => Failure::Busy,
                CallError::LinkLost(_) | CallError::TimedOut | CallError::TooLarge { .. } => {
                    let leader = shared.leader_address();
                    Failure::NotLeader { leader }
                }
            });
        }
    }
    Progress::Parked(Box::new(PassedOn {
        shared: Arc::clone(shared),
        slot,
        deadline,
        requests,
        lost,
    }))
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
    let bytes = (forwarded_bytes(batch) as u64).saturating_mul(times);
    Duration::from_millis(bytes.saturating_mul(1000) / limits.drain_bytes_per_second.max(1))
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

    fn resume(self: Box<Self>, _may_wait: bool) -> Progress {
        let result = match self.slot.take() {
            Some(result) => result,
            None if self.shared.clock.now() >= self.deadline => Err(CallError::TimedOut),
            None => return Progress::Parked(self),
        };
        Progress::done(self.replies(result))
    }
}
