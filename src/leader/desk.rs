//! The `forward` thread: answers the batches that other leaders pass on.
//!
//! Each is begun here without waiting, by a handler that passes nothing on: a batch makes one hop
//! at most, and a leader that does not serve answers as it would its own client. What can only wait
//! is parked here, until its waker or its deadline continues it. So calls of peers take neither
//! workers nor the poller from this leader's own clients, and the thread that reads the link, which
//! carries Raft's messages too, only queues them.
//!
//! # Limits
//!
//! [`CALLS_MAX`] calls of [`BYTES_MAX`] bytes in all are taken, waiting or parked; more are refused
//! as busy. A batch of reads is answered [`READ_BYTES_MAX`] at a time, or one message, so that a
//! follower which asks for much holds little and Raft's answers do not wait behind it. One thread
//! steps all batches: it does what workers do between two waits, some tens of microseconds each.
//!
//! Lock: the inbox, held for a few moves; wakers of batches take it with locks of theirs held.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use crate::clock::{Clock, Instant};
use crate::leader::handler::ClientHandler;
use crate::net::{Handler, Parked, Progress, Waker};
use crate::protocol::request::Batch;
use crate::rpc::message::{Refusal, Response};
use crate::rpc::server::Responder;

/// Calls that wait or are parked: as many batches as a server parks for its own clients.
const CALLS_MAX: usize = 4096;

/// Their frames, together: four followers with all that they may have in flight.
const BYTES_MAX: usize = 64 << 20;

/// Payload bytes that a batch of reads is answered with at a time, unless it is one message.
pub const READ_BYTES_MAX: u64 = 1 << 20;

/// What a payload takes until its reply is on the link: itself, and its place in the frame.
const REPLY_GROWTH: usize = 2;

/// Where calls of peers arrive.
#[derive(Default)]
pub struct Desk {
    inbox: Mutex<Inbox>,
    /// Signalled when something was put in.
    arrived: Condvar,
}

#[derive(Default)]
struct Inbox {
    calls: VecDeque<Call>,
    /// Tickets of parked batches that may go on.
    woken: BTreeSet<u64>,
    /// Calls that were taken and not answered, and their bytes.
    taken: usize,
    bytes: usize,
    is_stopped: bool,
}

struct Call {
    batch: Batch,
    bytes: usize,
    responder: Responder,
}

/// A batch that waits for its waker or its deadline.
struct Waiting {
    batch: Box<dyn Parked>,
    deadline: Instant,
    bytes: usize,
    responder: Responder,
}

impl Desk {
    /// Takes a call, whose frame had so many bytes, or refuses it. Does not block.
    pub fn take(&self, batch: Batch, bytes: usize, responder: Responder) {
        let mut inbox = self.inbox.lock();
        let is_full = inbox.taken >= CALLS_MAX || inbox.bytes.saturating_add(bytes) > BYTES_MAX;
        if inbox.is_stopped || (is_full && inbox.taken > 0) {
            let refusal = match inbox.is_stopped {
                true => Refusal::NotLeader,
                false => Refusal::Busy,
            };
            drop(inbox);
            return responder.send(Response::Refused(refusal));
        }
        inbox.taken += 1;
        inbox.bytes += bytes;
        inbox.calls.push_back(Call {
            batch,
            bytes,
            responder,
        });
        drop(inbox);
        self.arrived.notify_one();
    }

    /// Ends the thread. What is parked then is refused with its connection gone: nobody hears it.
    pub fn stop(&self) {
        self.inbox.lock().is_stopped = true;
        self.arrived.notify_one();
    }

    fn wake(&self, ticket: u64) {
        self.inbox.lock().woken.insert(ticket);
        self.arrived.notify_one();
    }

    fn answered(&self, bytes: usize) {
        let mut inbox = self.inbox.lock();
        inbox.taken -= 1;
        inbox.bytes -= bytes;
    }

    /// The next calls and tickets, waiting for them until `deadline`; `None` at the end.
    fn next(
        &self,
        clock: &dyn Clock,
        deadline: Option<Instant>,
    ) -> Option<(VecDeque<Call>, BTreeSet<u64>)> {
        let mut inbox = self.inbox.lock();
        let waits = |inbox: &mut Inbox| {
            inbox.calls.is_empty() && inbox.woken.is_empty() && !inbox.is_stopped
        };
        match deadline {
            Some(deadline) => {
                let timeout = deadline.since(clock.now());
                self.arrived.wait_while_for(&mut inbox, waits, timeout);
            }
            None => self.arrived.wait_while(&mut inbox, waits),
        }
        let taken = |inbox: &mut Inbox| {
            let calls = std::mem::take(&mut inbox.calls);
            (calls, std::mem::take(&mut inbox.woken))
        };
        (!inbox.is_stopped).then(|| taken(&mut inbox))
    }
}

/// The body of the thread.
pub struct DeskThread {
    desk: Arc<Desk>,
    handler: ClientHandler,
    clock: Arc<dyn Clock>,
    parked: BTreeMap<u64, Waiting>,
    /// Of what is parked.
    deadlines: BTreeSet<(Instant, u64)>,
    last_ticket: u64,
}

impl DeskThread {
    /// Answers by `handler`, which passes nothing on.
    pub fn new(desk: Arc<Desk>, handler: ClientHandler, clock: Arc<dyn Clock>) -> DeskThread {
        assert!(!handler.passes_on(), "one hop at most");
        DeskThread {
            desk,
            handler,
            clock,
            parked: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            last_ticket: 0,
        }
    }

    /// Works until the desk is stopped.
    pub fn run(mut self) {
        loop {
            let due = self.deadlines.first().map(|(at, _)| *at);
            let Some((calls, mut woken)) = self.desk.next(&*self.clock, due) else {
                return;
            };
            let now = self.clock.now();
            let late = self.deadlines.iter().take_while(|(at, _)| *at <= now);
            woken.extend(late.map(|(_, ticket)| *ticket));
            for ticket in woken {
                // One that is not parked any more was woken twice.
                if let Some(waiting) = self.parked.remove(&ticket) {
                    self.deadlines.remove(&(waiting.deadline, ticket));
                    let progress = waiting.batch.resume(false);
                    self.settle(progress, waiting.bytes, waiting.responder);
                }
            }
            for call in calls {
                let progress = self.handler.begin(call.batch, false, REPLY_GROWTH);
                self.settle(progress, call.bytes, call.responder);
            }
        }
    }

    fn settle(&mut self, progress: Progress, bytes: usize, responder: Responder) {
        match progress {
            Progress::Done(replies, room) => {
                self.desk.answered(bytes);
                responder.send(Response::Forward(replies));
                drop(room);
            }
            Progress::Parked(mut batch) => {
                self.last_ticket += 1;
                let ticket = self.last_ticket;
                let desk = Arc::clone(&self.desk);
                batch.arm(Waker::calling(move || desk.wake(ticket)));
                let deadline = batch.deadline();
                self.deadlines.insert((deadline, ticket));
                let waiting = Waiting {
                    batch,
                    deadline,
                    bytes,
                    responder,
                };
                self.parked.insert(ticket, waiting);
            }
        }
    }
}
