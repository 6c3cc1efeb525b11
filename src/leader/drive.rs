//! Steps a batch on a worker: effects out, then parked until events come or its deadline passes.
//!
//! A [`Run`] is one [`Coordinator`] and the [`Inbox`] in which answers arrive, from the reader
//! threads of the links and from the Raft thread. The worker that owns it carries out what the
//! coordinator asks for, and parks the batch when it can only wait.
//!
//! What outlives the batch is done where the answer arrives, not here: a store ends its charge, and
//! an applied entry settles its revisions, even when the client got its reply long before.

use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;

use log::{debug, error};
use parking_lot::Mutex;

use crate::clock::Instant;
use crate::coordinator::{
    Answer, Charge, Coordinator, Effect, Event, Flaw, Question, Settlement, Tag,
};
use crate::error::Failure;
use crate::faults::{self, Fault};
use crate::group::{ProposalOutcome, ReadConfirmation, ReadOutcome, Reason};
use crate::ids::{Fence, MemberId, Revision};
use crate::leader::state::{ReleaseHold, RunningBatch, Shared};
use crate::logging;
use crate::metadata::command::Command;
use crate::metadata::state::forget_met_conditions;
use crate::net::budget::Request as RoomRequest;
use crate::net::room::Need;
use crate::net::{Parked, Progress, Waker};
use crate::protocol::reply::Reply;
use crate::rpc::link::{CallError, Completion};
use crate::rpc::message::{
    FetchRequest, FetchResult, Refusal, Request, Response, StoreRecord, StoreRequest, StoreResult,
};

/// Where events for one batch arrive, from any thread.
#[derive(Default)]
pub struct Inbox {
    state: Mutex<InboxState>,
}

#[derive(Default)]
struct InboxState {
    events: Vec<Event>,
    /// Set while the batch is parked, with the number of events that it waits for: to wake it for
    /// one that only brings others nearer would be wasted.
    waker: Option<(Waker, usize)>,
}

impl Inbox {
    /// Adds an event and wakes who waits for it.
    pub fn push(&self, event: Event) {
        let is_good_news = event.is_good_news();
        let mut state = self.state.lock();
        state.events.push(event);
        let count = state.events.len();
        let waker = state
            .waker
            .take_if(|(_, awaited)| !is_good_news || count >= *awaited);
        drop(state);
        if let Some((waker, _)) = waker {
            waker.wake();
        }
    }

    /// Takes all events.
    fn take(&self, into: &mut Vec<Event>) {
        mem::swap(&mut self.state.lock().events, into);
    }

    /// Wakes `waker` when there are `count` events, or one that changes what is waited for; now if
    /// that is so already.
    fn arm(&self, waker: Waker, count: usize) {
        let mut state = self.state.lock();
        if state.events.len() < count && state.events.iter().all(Event::is_good_news) {
            state.waker = Some((waker, count));
        } else {
            drop(state);
            waker.wake();
        }
    }
}

/// A batch under way.
pub struct Run {
    shared: Arc<Shared>,
    coordinator: Coordinator,
    inbox: Arc<Inbox>,
    /// The number of the batch, in the log.
    number: u64,
    /// The term it began in; its calls and its entry carry this one and no other (R2).
    term: u64,
    /// Taken from the inbox, or answered on the spot; not yet stepped.
    pending: VecDeque<Event>,
    /// While it reads records that its entry lists.
    hold: Option<ReleaseHold>,
    /// Room for the replies that was asked for.
    room: Option<RoomRequest>,
    _running: RunningBatch,
}

impl Run {
    /// A batch that begins now; `running` was there before the term was looked at.
    pub fn new(
        shared: Arc<Shared>,
        coordinator: Coordinator,
        (number, term): (u64, u64),
        running: RunningBatch,
    ) -> Run {
        Run {
            _running: running,
            shared,
            coordinator,
            inbox: Arc::default(),
            hold: None,
            room: None,
            number,
            term,
            pending: VecDeque::from([Event::Start]),
        }
    }

    /// Goes on until the batch is done or can only wait.
    pub fn go_on(mut self) -> Progress {
        let mut events = Vec::new();
        let mut effects = Vec::new();
        self.inbox.take(&mut events);
        self.pending.extend(events.drain(..));
        if self.shared.clock.now() >= self.coordinator.next_deadline() {
            self.pending.push_back(Event::Tick);
        }
        while let Some(event) = self.pending.pop_front() {
            self.step(event, &mut effects);
            for effect in effects.drain(..) {
                if let Effect::Done(mut replies) = effect {
                    debug!("batch {}: done, {} replies", self.number, replies.len());
                    name_leader(&self.shared, self.term, &mut replies);
                    let room = self.room.and_then(|mut request| request.take());
                    return Progress::Done(replies, room);
                }
                self.carry_out(effect);
            }
        }
        debug!("batch {}: parked", self.number);
        Progress::Parked(Box::new(self))
    }

    fn step(&mut self, event: Event, effects: &mut Vec<Effect>) {
        let mut cluster = self.shared.view.cluster.lock();
        // Under the lock, so that the cluster sees times in order.
        let now = self.shared.clock.now();
        self.coordinator.step(event, now, &mut cluster, effects);
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Store {
                tag,
                member,
                records,
                charge,
            } => self.store(tag, member, records, charge),
            Effect::Fetch {
                tag,
                member,
                revisions,
            } => self.fetch(tag, member, revisions),
            Effect::Propose {
                tag,
                command,
                settlement,
                reads,
            } => {
                if reads {
                    self.hold = Some(self.shared.view.hold_releases());
                }
                self.propose(tag, command, settlement);
            }
            Effect::Settle(settlement) => self.shared.view.settle(settlement),
            Effect::ConfirmRead => self.confirm_read(),
            Effect::LookUp { tag, keys } => {
                let found = self.shared.look_up(&keys);
                self.pending.push_back(Event::LookedUp { tag, found });
            }
            Effect::Reserve { bytes, fetches } => self.reserve(bytes, fetches),
            Effect::Ask(question) => self.ask(question),
            Effect::Cache { revision, payload } => self.shared.cache.insert(revision, &payload),
            Effect::CorruptCopy {
                member,
                revision,
                key,
                flaw,
            } => {
                if let Some(more) = logging::seldom("corrupt copy") {
                    let copy = format_args!("message {key} revision {revision}");
                    error!("copy of {copy} on member {member}: {flaw:?}{more}");
                }
                let view = &self.shared.view;
                if view.copy_missing(member, revision, &key) && flaw == Flaw::Missing {
                    view.cluster.lock().suspect_incomplete(member);
                    view.ring();
                }
            }
            Effect::Deposed { member, highest } => self.shared.refused(member, highest),
            Effect::Done(_) => unreachable!("the caller ends at Done"),
        }
    }

    /// A page of a listing looks at every message, so a helper makes it.
    fn ask(&mut self, question: Question) {
        match (&question, self.shared.helpers.get()) {
            (Question::List(_), Some(helpers)) => {
                let (shared, inbox) = (self.shared.clone(), self.inbox.clone());
                helpers.run(move || inbox.push(Event::Told(shared.tell(question))));
            }
            _ => {
                let told = self.shared.tell(question);
                self.pending.push_back(Event::Told(told));
            }
        }
    }

    fn reserve(&mut self, bytes: u64, fetches: Vec<(MemberId, u64)>) {
        let need = Need {
            reply_bytes: usize::try_from(bytes).unwrap_or(usize::MAX),
            fetches: fetches
                .into_iter()
                .map(|(id, bytes)| (id.0, bytes))
                .collect(),
        };
        let inbox = self.inbox.clone();
        let wake = move || inbox.push(Event::Reserved { granted: true });
        let now = self.shared.clock.now();
        self.room = self.shared.budget.request(need, now, wake);
        if self.room.is_none() {
            self.pending.push_back(Event::Reserved { granted: false });
        }
    }

    fn store(
        &mut self,
        tag: Tag,
        member: MemberId,
        records: Arc<Vec<StoreRecord>>,
        charge: Charge,
    ) {
        let Some(link) = self.shared.links.link(member) else {
            self.shared.end_store(member, charge, false);
            let answer = Answer::NotSent;
            self.pending.push_back(Event::StoreAnswered { tag, answer });
            return;
        };
        let fence = self.shared.fence(self.term, &*link);
        let deadline = self.shared.call_deadline(charge.bytes);
        let (shared, inbox) = (self.shared.clone(), self.inbox.clone());
        let completion: Completion = Box::new(move |result| {
            shared.end_store(member, charge, result.is_ok());
            note_fence(&shared, member, fence, &result);
            let answer = store_answer(result);
            inbox.push(Event::StoreAnswered { tag, answer });
        });
        let count = records.len();
        let request = Request::Store(StoreRequest { fence, records });
        match link.call(self.term, request, deadline, completion) {
            Ok(call) => debug!(
                "batch {}: store {count} records on {} as call {call}",
                self.number,
                link.name()
            ),
            Err(error) => {
                debug!("batch {}: store not sent: {error}", self.number);
                self.shared.end_store(member, charge, false);
                let answer = Answer::NotSent;
                self.pending.push_back(Event::StoreAnswered { tag, answer });
            }
        }
    }

    fn fetch(&mut self, tag: Tag, member: MemberId, revisions: Vec<Revision>) {
        let links = &self.shared.links;
        let stores = links.link(member);
        let link = match self.room {
            Some(_) => links.large_link(member),
            None => stores.clone(),
        };
        let Some((stores, link)) = stores.zip(link) else {
            let answer = Answer::NotSent;
            self.pending.push_back(Event::FetchAnswered { tag, answer });
            return;
        };
        // Stores raise the member's fence: with the number of the other link it would be stale.
        let fence = self.shared.fence(self.term, &*stores);
        let deadline = self.shared.call_deadline(0);
        let (shared, inbox) = (self.shared.clone(), self.inbox.clone());
        let completion: Completion = Box::new(move |result| {
            if result.is_ok() {
                shared.answered(member);
            }
            note_fence(&shared, member, fence, &result);
            let answer = fetch_answer(result);
            inbox.push(Event::FetchAnswered { tag, answer });
        });
        let count = revisions.len();
        let request = Request::Fetch(FetchRequest { fence, revisions });
        match link.call(self.term, request, deadline, completion) {
            Ok(call) => debug!(
                "batch {}: fetch {count} records from {} as call {call}",
                self.number,
                link.name()
            ),
            Err(error) => {
                debug!("batch {}: fetch not sent: {error}", self.number);
                let answer = Answer::NotSent;
                self.pending.push_back(Event::FetchAnswered { tag, answer });
            }
        }
    }

    fn propose(&self, tag: Tag, mut command: Command, settlement: Settlement) {
        command.set_time(self.shared.command_ms());
        assert_eq!(
            command.term, self.term,
            "a batch is proposed in its own term"
        );
        if faults::has(Fault::CountEarlierTermCopy) {
            command.term = self.shared.serving_term().unwrap_or(self.term);
        }
        if faults::has(Fault::CompareWhenProposed) {
            let metadata = &self.shared.view.metadata;
            forget_met_conditions(&mut command.change, |key| {
                Some(metadata.find(key)?.revision)
            });
        }
        let (shared, inbox) = (self.shared.clone(), self.inbox.clone());
        debug!("batch {}: propose", self.number);
        self.shared
            .group
            .propose(command.term, command.encode(), move |outcome| {
                let event = match outcome {
                    ProposalOutcome::Applied(applied) => {
                        shared.view.settle(settlement);
                        Event::Applied { tag, applied }
                    }
                    ProposalOutcome::NotProposed(reason) => Event::NotProposed {
                        tag,
                        failure: not_proposed(reason),
                    },
                    ProposalOutcome::Lost => Event::Superseded {
                        tag,
                        failure: Failure::NotLeader { leader: None },
                    },
                    ProposalOutcome::Unknown => Event::OutcomeUnknown { tag },
                };
                inbox.push(event);
            });
    }

    fn confirm_read(&mut self) {
        let inbox = self.inbox.clone();
        let refused = || Event::ReadRefused(Failure::NotLeader { leader: None });
        let confirmation = self.shared.group.confirm_read(move |outcome| {
            inbox.push(match outcome {
                ReadOutcome::Confirmed { .. } => Event::ReadConfirmed,
                ReadOutcome::NotServing => refused(),
                ReadOutcome::Busy => Event::ReadRefused(Failure::Busy),
            });
        });
        match confirmation {
            ReadConfirmation::Immediate { .. } => self.pending.push_back(Event::ReadConfirmed),
            ReadConfirmation::NotServing => self.pending.push_back(refused()),
            ReadConfirmation::Busy => {
                self.pending.push_back(Event::ReadRefused(Failure::Busy));
            }
            ReadConfirmation::Later => {}
        }
    }
}

impl Parked for Run {
    fn deadline(&self) -> Instant {
        self.coordinator.next_deadline()
    }

    fn arm(&mut self, wake: Waker) {
        self.inbox.arm(wake, self.coordinator.answers_awaited());
    }

    fn resume(self: Box<Self>) -> Progress {
        self.go_on()
    }
}

/// Names the leader in the replies of a batch that lost leadership on its way: who follows is
/// better known now than when that was noticed. Members that refuse `term`, since others used it,
/// are not too few members.
fn name_leader(shared: &Shared, term: u64, replies: &mut [Reply]) {
    let mut leader = None;
    let left = shared.view.gate.left();
    for reply in replies {
        let Reply::Failed(failure) = reply else {
            continue;
        };
        let failure = match failure {
            Failure::BulkPartial { reason, .. } => &mut **reason,
            other => other,
        };
        match failure {
            Failure::NotEnoughMembers { .. } if term <= left => {
                *failure = Failure::TermOver { above: left };
            }
            Failure::NotLeader { leader: None } | Failure::TermOver { .. } => {
                let known = leader.get_or_insert_with(|| shared.leader_address());
                if let Some(leader) = known.clone() {
                    let leader = Some(leader);
                    *failure = Failure::NotLeader { leader };
                }
            }
            _ => {}
        }
    }
}

/// What a refused proposal means to a client.
pub fn not_proposed(reason: Reason) -> Failure {
    match reason {
        Reason::NotLeader | Reason::Stopped => Failure::NotLeader { leader: None },
        Reason::Busy | Reason::DiskFull => Failure::Busy,
    }
}

/// A fence of the call's own term that is above the call's: of a later link, or of another leader
/// that used the term. Of later terms the batch speaks, see [`Effect::Deposed`].
fn note_fence(
    shared: &Shared,
    member: MemberId,
    sent: Fence,
    result: &Result<Response, CallError>,
) {
    if let Ok(Response::Refused(Refusal::StaleFence { highest })) = result
        && highest.term == sent.term
    {
        shared.refused(member, *highest);
    }
}

fn store_answer(result: Result<Response, CallError>) -> Answer<StoreResult> {
    match result {
        Ok(Response::Store(results)) => Answer::Results(results),
        Ok(response) => Answer::Refused(refusal(response)),
        Err(_) => Answer::LinkLost,
    }
}

fn fetch_answer(result: Result<Response, CallError>) -> Answer<FetchResult> {
    match result {
        Ok(Response::Fetch(results)) => Answer::Results(results),
        Ok(response) => Answer::Refused(refusal(response)),
        Err(_) => Answer::LinkLost,
    }
}

fn refusal(response: Response) -> Refusal {
    match response {
        Response::Refused(refusal) => refusal,
        Response::Store(_)
        | Response::Fetch(_)
        | Response::Holds(_)
        | Response::Release
        | Response::Register
        | Response::Heartbeat(_)
        | Response::Snapshot
        | Response::Join(_)
        | Response::Forward(_)
        | Response::Standing(_) => Refusal::Other("the answer is of another kind".to_owned()),
    }
}
