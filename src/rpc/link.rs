//! The calling side of a connection: many calls in flight, each with a deadline.
//!
//! Owns the connection, its two threads, and the call table (65,536 calls; more are
//! [`CallError::Busy`]). Requests are encoded by the calling thread.
//!
//! A completion is called exactly once if [`Link::call`] returned `Ok`, and never otherwise,
//! outside all locks: on the reader thread with the answer or the loss of the link, on the writer
//! thread when the deadline has passed. Whoever removes a call from the table calls its completion;
//! that is why it cannot happen twice. A late answer is dropped.
//!
//! What is posted is not in the table: it leaves in order with the calls, and nobody learns whether
//! it arrived.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use rustc_hash::FxHashMap;

use crate::clock::{Clock, Instant};
use crate::ids::CallId;
use crate::protocol::request::Batch;
use crate::rpc::connection::{Connection, Receiver, SendError, Sender};
use crate::rpc::envelope::{self, Body, Envelope};
use crate::rpc::frame::Frame;
use crate::rpc::greeting::{self, Expected, Greeted, GreetingError};
use crate::rpc::message::{Kind, Purpose, Request, Response};
use crate::rpc::tls::TlsContext;
use crate::rpc::{LocalIdentity, PeerInfo};
use crate::threads::wakeups;

/// Calls in flight on one link: the records that may be in flight to one member, were each its own
/// call. Some 100 bytes each.
const CALLS_MAX: usize = 65_536;

/// Why a call has no answer. After `Busy` and `TooLarge` nothing was sent; otherwise, unless `call`
/// itself returned the error, it may have been executed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The link is closed, or was before the answer came.
    #[error("link lost: {0}")]
    LinkLost(Arc<str>),
    /// The deadline passed.
    #[error("timed out")]
    TimedOut,
    /// Too much waits on this link.
    #[error("link busy")]
    Busy,
    /// The request does not fit a frame.
    #[error("request of {bytes} bytes is larger than {max}")]
    TooLarge {
        /// Its encoded size.
        bytes: usize,
        /// The limit of a frame.
        max: usize,
    },
}

/// What is done with the outcome of a call. It must be quick and must not block, as the link stands
/// still meanwhile; it may call again on the same link, and must not `call_wait` there. Wake-ups
/// are held meanwhile (`threads::wakeups`): those who wait for answers of one read are woken once.
pub type Completion = Box<dyn FnOnce(Result<Response, CallError>) + Send>;

/// The calling side of a connection. Dropping it closes it and joins its threads.
pub struct Link {
    connection: Connection,
    calls: Arc<Calls>,
    number: u64,
    next_call: AtomicU64,
}

impl Link {
    /// Dials `host:port`, greets, and starts the threads. Blocks for 1 s (each address) plus 5 s at
    /// most. `number` goes into our Hello (see `Hello::link`): the `link` of a leader's fences; 0
    /// for others, and for a leader that passes by another one with a call or two.
    pub fn dial(
        address: &str,
        expected: &Expected,
        tls: &TlsContext,
        identity: &LocalIdentity,
        number: u64,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Link>, GreetingError> {
        let socket = greeting::connect(address)?;
        let greeted = greeting::dial(
            socket,
            expected,
            tls,
            identity,
            (number, Purpose::All),
            &*clock,
        )?;
        Link::start(greeted, number, clock)
    }

    /// Starts the threads of a connection that was greeted.
    pub(crate) fn start(
        greeted: Greeted,
        number: u64,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Link>, GreetingError> {
        let calls = Arc::new(Calls {
            peer: greeted.peer.to_string(),
            table: Mutex::new(Table::default()),
            ended: Condvar::new(),
        });
        let connection = Connection::start(greeted, clock, calls.clone())?;
        Ok(Arc::new(Link {
            connection,
            calls,
            number,
            next_call: AtomicU64::new(1),
        }))
    }

    /// The other end.
    pub fn peer(&self) -> &PeerInfo {
        &self.connection.sender().peer
    }

    /// The link number given to our Hello.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Sends a request. Never blocks for I/O. `completion` is called exactly once if this returns
    /// `Ok` (perhaps before it does), and never if it returns `Err`.
    pub fn call(
        &self,
        term: u64,
        request: Request,
        deadline: Instant,
        completion: Completion,
    ) -> Result<CallId, CallError> {
        assert!(!request.kind().is_one_way(), "{} called", request.kind());
        let id = CallId(self.next_call.fetch_add(1, Ordering::Relaxed));
        let pending = Pending {
            kind: request.kind(),
            results: results_of(&request),
            deadline,
            completion,
        };
        let kind = pending.kind;
        let frame = encode(id, term, request)?;
        let bytes = frame.len();
        self.calls.insert(id, pending)?;
        log::debug!("call {id} to {}: {kind}, {bytes} bytes", self.calls.peer);
        if let Err(error) = self.connection.sender().send(frame, Some(deadline)) {
            // If the call is gone from the table, its completion was called: it has its outcome.
            if self.calls.remove(id).is_some() {
                return Err(error.into());
            }
        }
        Ok(id)
    }

    /// Sends a one-way request: it has no answer, and `Ok` says only that it is queued. Never
    /// blocks for I/O.
    pub fn post(&self, term: u64, request: Request) -> Result<(), CallError> {
        let kind = request.kind();
        assert!(kind.is_one_way(), "{kind} posted");
        let frame = encode(CallId(0), term, request)?;
        log::debug!("post to {}: {kind}, {} bytes", self.calls.peer, frame.len());
        Ok(self.connection.sender().send(frame, None)?)
    }

    /// Sends a request and waits for its outcome. Not from a completion.
    pub fn call_wait(
        &self,
        term: u64,
        request: Request,
        deadline: Instant,
    ) -> Result<Response, CallError> {
        type Slot = (Mutex<Option<Result<Response, CallError>>>, Condvar);
        let slot: Arc<Slot> = Arc::default();
        let filled = slot.clone();
        let completion = move |outcome| {
            *filled.0.lock() = Some(outcome);
            filled.1.notify_one();
        };
        self.call(term, request, deadline, Box::new(completion))?;
        let mut outcome = slot.0.lock();
        loop {
            // Without a timeout: the completion is called, at the deadline at the latest.
            match outcome.take() {
                Some(outcome) => return outcome,
                None => slot.1.wait(&mut outcome),
            }
        }
    }

    /// Closes the connection at once; calls in flight complete with `LinkLost`. Does not block.
    pub fn close(&self) {
        self.connection.sender().close("closed by this side");
    }

    /// Whether calls are taken.
    pub fn is_open(&self) -> bool {
        self.connection.sender().is_open()
    }

    /// Bytes that wait to be written.
    pub fn bytes_queued(&self) -> usize {
        self.connection.sender().bytes_queued()
    }

    /// How often `write(2)` was called: fewer than frames when they are coalesced.
    pub fn writes(&self) -> u64 {
        self.connection.sender().writes()
    }

    /// Calls without an outcome yet.
    pub fn calls_in_flight(&self) -> usize {
        self.calls.table.lock().pending.len()
    }

    /// Waits for the link's end and the completion of all its calls, `timeout` at most; true when
    /// that has come. Not from a completion.
    pub fn wait_closed(&self, timeout: Duration) -> bool {
        let mut table = self.calls.table.lock();
        let going_on = |table: &mut Table| !table.settled;
        !self
            .calls
            .ended
            .wait_while_for(&mut table, going_on, timeout)
            .timed_out()
    }
}

impl From<SendError> for CallError {
    fn from(error: SendError) -> CallError {
        match error {
            SendError::Busy => CallError::Busy,
            SendError::Closed(reason) => CallError::LinkLost(reason),
        }
    }
}

fn encode(call: CallId, term: u64, request: Request) -> Result<Frame, CallError> {
    let body = Body::Request(request);
    envelope::encode(Envelope { call, term, body }).map_err(|error| CallError::TooLarge {
        bytes: error.bytes,
        max: error.max,
    })
}

/// How many results an answer must have, for the kinds that have them.
fn results_of(request: &Request) -> RangeInclusive<usize> {
    let exactly = |count| count..=count;
    match request {
        Request::Store(request) => exactly(request.records.len()),
        Request::Fetch(request) => exactly(request.revisions.len()),
        Request::Holds(request) => exactly(request.revisions.len()),
        Request::Forward(Batch::Reads(keys)) => 1..=keys.len(),
        Request::Forward(batch) => exactly(batch.reply_count()),
        Request::Release(_) | Request::Register(_) | Request::Heartbeat(_) => exactly(0),
        Request::Raft(_) | Request::Snapshot(_) | Request::Join(_) => exactly(0),
        Request::Standing => exactly(0),
    }
}

/// A call without an outcome.
struct Pending {
    kind: Kind,
    results: RangeInclusive<usize>,
    deadline: Instant,
    completion: Completion,
}

impl Pending {
    fn fits(&self, response: &Response) -> bool {
        match (self.kind, response) {
            (_, Response::Refused(_)) => true,
            (Kind::Store, Response::Store(results)) => self.results.contains(&results.len()),
            (Kind::Fetch, Response::Fetch(results)) => self.results.contains(&results.len()),
            (Kind::Holds, Response::Holds(held)) => self.results.contains(&held.len()),
            (Kind::Forward, Response::Forward(replies)) => self.results.contains(&replies.len()),
            (Kind::Release, Response::Release)
            | (Kind::Register, Response::Register)
            | (Kind::Heartbeat, Response::Heartbeat(_))
            | (Kind::Snapshot, Response::Snapshot)
            | (Kind::Join, Response::Join(_))
            | (Kind::Standing, Response::Standing(_)) => true,
            (Kind::Store | Kind::Fetch | Kind::Release | Kind::Holds, _)
            | (Kind::Register | Kind::Heartbeat, _)
            | (Kind::Raft | Kind::Snapshot | Kind::Join | Kind::Forward | Kind::Standing, _) => {
                false
            }
        }
    }
}

struct Calls {
    /// The peer, for log lines.
    peer: String,
    /// Held alone (ranked before the TLS session). Completions are taken out of it and called
    /// after.
    table: Mutex<Table>,
    /// Signalled when `settled` is set.
    ended: Condvar,
}

#[derive(Default)]
struct Table {
    pending: FxHashMap<CallId, Pending>,
    /// No deadline in `pending` is earlier. It may be too early, as answered calls leave it alone.
    earliest: Option<Instant>,
    /// The link is lost: nothing is added to `pending` any more.
    lost: Option<Arc<str>>,
    /// The link is lost and the completions of all its calls were called.
    settled: bool,
}

impl Calls {
    fn insert(&self, id: CallId, pending: Pending) -> Result<(), CallError> {
        let mut table = self.table.lock();
        if let Some(reason) = &table.lost {
            return Err(CallError::LinkLost(reason.clone()));
        }
        if table.pending.len() >= CALLS_MAX {
            return Err(CallError::Busy);
        }
        let deadline = pending.deadline;
        table.earliest = Some(table.earliest.map_or(deadline, |at| at.min(deadline)));
        table.pending.insert(id, pending);
        Ok(())
    }

    fn remove(&self, id: CallId) -> Option<Pending> {
        self.table.lock().pending.remove(&id)
    }
}

impl Receiver for Calls {
    fn frame(&self, _sender: &Arc<Sender>, body: Bytes) -> Result<(), String> {
        let bytes = body.len();
        let envelope = envelope::decode(body).map_err(|error| error.to_string())?;
        let id = envelope.call;
        let response = match envelope.body {
            Body::Response(response) => response,
            Body::Request(request) => return Err(format!("called {}", request.kind())),
            Body::Hello(_) => return Err("said hello again".to_owned()),
        };
        if id == CallId(0) {
            return Err("answered what has no answer".to_owned());
        }
        let Some(pending) = self.remove(id) else {
            log::debug!("call {id} to {}: late answer, {bytes} bytes", self.peer);
            return Ok(());
        };
        let kind = pending.kind;
        if !pending.fits(&response) {
            let reason = format!("answer to {kind} {id} does not fit it");
            (pending.completion)(Err(CallError::LinkLost(Arc::from(reason.as_str()))));
            return Err(reason);
        }
        log::debug!("call {id} to {}: {kind} answered, {bytes} bytes", self.peer);
        (pending.completion)(Ok(response));
        Ok(())
    }

    fn wake(&self, now: Instant) -> Option<Instant> {
        let mut table = self.table.lock();
        if table.earliest.is_none_or(|at| now < at) {
            return table.earliest;
        }
        let expired: Vec<(CallId, Pending)> = table
            .pending
            .extract_if(|_, pending| pending.deadline <= now)
            .collect();
        let earliest = table.pending.values().map(|pending| pending.deadline).min();
        table.earliest = earliest;
        drop(table);
        let _held = wakeups::hold();
        for (id, pending) in expired {
            log::debug!("call {id} to {}: {} timed out", self.peer, pending.kind);
            (pending.completion)(Err(CallError::TimedOut));
        }
        earliest
    }

    fn closed(&self, reason: &Arc<str>) {
        let mut table = self.table.lock();
        table.lost = Some(reason.clone());
        let pending = std::mem::take(&mut table.pending);
        drop(table);
        let held = wakeups::hold();
        for pending in pending.into_values() {
            (pending.completion)(Err(CallError::LinkLost(reason.clone())));
        }
        drop(held);
        self.table.lock().settled = true;
        self.ended.notify_all();
    }
}
