//! The write path: places the messages of a batch, collects their copies, replaces failed ones,
//! proposes one entry and answers. Pure.
//!
//! Messages are placed in **runs**: up to 32 consecutive ones, or a third of a larger batch, share
//! one choice of members and one fate. A run's copy on a member counts when the member stored every
//! record of it, otherwise another member is asked; so one full disk moves a run, never half of it.
//! All runs chosen for a member in one step travel in one store.
//!
//! A run has its copies when `tolerance` members acknowledged it, late ones included: a late
//! acknowledgement answers a store of this leader, term and purpose like any other (R9), so it
//! counts as long as the batch collects. The first `tolerance` members in the order they were asked
//! are the replica set; every other copy that may exist is given up (R7). What is answered after
//! the proposal changes nothing: its copy was given up, or named, by then.
//!
//! A run **fails** when nobody is left who could complete it, or the write time-out passed:
//! `NotEnoughMembers`, where *have* counts the members that stored it; `NoSpace`, if those that
//! answered that their disks are full would have been enough; or `Busy`, if members that were never
//! asked had no room in flight. Its requests are left out of the entry, and the others
//! go on (R15).
//!
//! Limits: a failed copy of a run is stored elsewhere whole, though some of its records may have
//! been taken; the commit has a time-out of its own, so a write ends within twice the write
//! time-out.

mod answers;
mod proposal;
mod runs;
mod transaction;

use std::collections::BTreeMap;
use std::sync::Arc;

use super::events::Tags;
use super::{Charge, Effect, Event, Limits, NEVER, Revisions, Tag};
use crate::clock::Instant;
use crate::cluster::Cluster;
use crate::error::Failure;
use crate::faults::{self, Fault};
use crate::ids::{Key, MemberId};
use crate::protocol::reply::Reply;
use crate::protocol::request::{Step, Write};
use crate::rpc::message::StoreRecord;
use runs::{Copy, CopyState, Outcome, Run};
pub(super) use transaction::Kind;
use transaction::Reads;

/// Runs of a batch at most: a member is given a frame, a wake-up and a sync for each batch that has
/// a run for it, whatever the run's length. Runs of 32 alone spread a batch of 1,000 over all of 30
/// members: 72 syncs for 1,000 messages instead of 16.
const RUNS_MAX: usize = 3;

/// A batch of writes, or a transaction.
#[derive(Debug)]
pub struct WriteBatch {
    limits: Limits,
    /// Copies that each message needs.
    tolerance: usize,
    /// One for each SET, in order.
    revisions: Revisions,
    /// The requests.
    steps: Vec<Step>,
    kind: Kind,
    /// The keys of the reads, once it is proposed.
    read_keys: Vec<Key>,
    /// Positions in `steps` of the SETs; the i-th has the i-th revision.
    sets: Vec<usize>,
    /// The SETs in runs.
    runs: Vec<Run>,
    /// Stores that were not answered.
    calls: BTreeMap<Tag, Call>,
    tags: Tags,
    /// When the first step came; the write time-out counts from here.
    started: Instant,
    /// When open runs fail: grows with what is queued ahead of the copies.
    give_up_at: Instant,
    /// When to look for room in flight again; set only while a run waits for it.
    retry_at: Option<Instant>,
    /// One for each request; those in the entry stay empty until it is settled.
    replies: Vec<Option<Reply>>,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    New,
    Collecting,
    Proposed { tag: Tag, deadline: Instant },
    Reading(Box<Reads>),
    Done,
}

#[derive(Debug)]
struct Call {
    member: MemberId,
    /// Positions in `runs`, in the order of the records.
    runs: Vec<usize>,
    /// When it is late.
    deadline: Instant,
    late: bool,
    /// The member was late with another answer when this was sent: it may not answer at all.
    is_suspect: bool,
}

/// For each member the runs that it was chosen for in this step.
type Outgoing = BTreeMap<MemberId, Vec<usize>>;

impl WriteBatch {
    /// `revisions` holds one for each SET.
    pub fn new(
        writes: Vec<Write>,
        revisions: Revisions,
        tolerance: u8,
        limits: Limits,
    ) -> WriteBatch {
        let steps = writes.into_iter().map(Step::Write).collect();
        WriteBatch::of_kind(0, steps, Kind::Each, revisions, tolerance, limits)
    }

    /// One whose tags carry the number of the part of a bulk write.
    pub(super) fn of_kind(
        part: u32,
        steps: Vec<Step>,
        kind: Kind,
        revisions: Revisions,
        tolerance: u8,
        limits: Limits,
    ) -> WriteBatch {
        assert!(tolerance > 0, "a message needs a copy");
        let sets: Vec<usize> = steps
            .iter()
            .enumerate()
            .filter(|(_, step)| matches!(step, Step::Write(Write::Set { .. })))
            .map(|(position, _)| position)
            .collect();
        assert_eq!(sets.len() as u64, revisions.count, "one revision a message");
        let run_len = limits
            .run_messages_max
            .max(sets.len().div_ceil(RUNS_MAX))
            .max(1);
        let runs = (0..sets.len())
            .step_by(run_len)
            .map(|first| {
                let range = first..(first + run_len).min(sets.len());
                let bytes = sets[range.clone()].iter();
                Run {
                    bytes: bytes.map(|&at| steps[at].payload_len() as u64).sum(),
                    sets: range,
                    copies: Vec::with_capacity(usize::from(tolerance) + 1),
                    outcome: Outcome::Open,
                }
            })
            .collect();
        WriteBatch {
            limits,
            tolerance: usize::from(tolerance),
            revisions,
            replies: vec![None; steps.len()],
            steps,
            kind,
            read_keys: Vec::new(),
            sets,
            runs,
            calls: BTreeMap::new(),
            tags: Tags::of_part(part),
            started: Instant::default(),
            give_up_at: Instant::default(),
            retry_at: None,
            phase: Phase::New,
        }
    }

    /// Takes one event and appends what is to be done.
    pub fn step(
        &mut self,
        event: Event,
        now: Instant,
        cluster: &mut Cluster,
        effects: &mut Vec<Effect>,
    ) {
        match event {
            Event::Start => {
                assert!(matches!(self.phase, Phase::New), "a batch starts once");
                self.started = now;
                self.give_up_at = now + self.limits.write_timeout;
                self.phase = Phase::Collecting;
                self.refuse_if_too_few(cluster);
                self.collect(now, cluster, effects);
            }
            Event::Tick => self.tick(now, cluster, effects),
            Event::StoreAnswered { tag, answer } => {
                self.store_answered(tag, answer, now, cluster, effects);
            }
            Event::Applied { tag, applied } if self.waits_for(tag) => {
                self.applied(applied, now, cluster, effects);
            }
            Event::FetchAnswered { .. } | Event::Reserved { .. } => {
                self.step_reads(event, now, cluster, effects)
            }
            Event::NotProposed { tag, failure } if self.waits_for(tag) => {
                let settlement = self.settlement(|_| None);
                self.settle(settlement, effects);
                self.fail_rest(&failure, effects);
            }
            Event::Superseded { tag, failure } if self.waits_for(tag) => {
                self.fail_rest(&failure, effects);
            }
            Event::OutcomeUnknown { tag } if self.waits_for(tag) => {
                self.fail_rest(&unknown(), effects);
            }
            Event::Applied { .. }
            | Event::NotProposed { .. }
            | Event::Superseded { .. }
            | Event::OutcomeUnknown { .. }
            | Event::ReadConfirmed
            | Event::ReadRefused(_)
            | Event::LookedUp { .. }
            | Event::Told(_) => {}
        }
    }

    /// See [`super::Coordinator::next_deadline`].
    pub fn next_deadline(&self) -> Instant {
        match self.phase {
            Phase::New | Phase::Done => NEVER,
            Phase::Collecting => self
                .calls
                .values()
                .filter(|call| !call.late)
                .map(|call| call.deadline)
                .chain(self.retry_at)
                .fold(self.give_up_at, Instant::min),
            Phase::Proposed { deadline, .. } => deadline,
            Phase::Reading(ref reads) => reads.batch().next_deadline(),
        }
    }

    /// See [`super::Coordinator::answers_awaited`].
    pub fn answers_awaited(&self) -> usize {
        // Those that are late, or were before they were asked, may never come: once only they are
        // missing, the batch is parked.
        let expected = |call: &&Call| !call.late && !call.is_suspect;
        match self.phase {
            // A run asks for no more copies than it lacks, so each of these is needed.
            Phase::Collecting => self.calls.values().filter(expected).count().max(1),
            Phase::New | Phase::Proposed { .. } | Phase::Reading(_) | Phase::Done => 1,
        }
    }

    /// Whether `Done` was emitted.
    pub fn is_done(&self) -> bool {
        matches!(self.phase, Phase::Done)
    }

    fn waits_for(&self, proposal: Tag) -> bool {
        matches!(self.phase, Phase::Proposed { tag, .. } if tag == proposal)
    }

    /// With fewer connected members than copies nothing is sent: it could only be given up again.
    fn refuse_if_too_few(&mut self, cluster: &Cluster) {
        let (have, need) = (cluster.connected_count(), self.tolerance);
        if have < need {
            for run in &mut self.runs {
                run.outcome = Outcome::Failed(Failure::NotEnoughMembers { have, need });
            }
        }
    }

    /// Brings every open run forward; proposes once none is open.
    fn collect(&mut self, now: Instant, cluster: &mut Cluster, effects: &mut Vec<Effect>) {
        let mut outgoing = Outgoing::new();
        self.retry_at = None;
        for position in 0..self.runs.len() {
            if self.runs[position].is_open() {
                self.advance(position, now, cluster, &mut outgoing);
            }
        }
        self.send(outgoing, now, cluster, effects);
        if !self.runs.iter().any(Run::is_open) {
            self.propose(now, effects);
        }
    }

    /// Places a run, fails it, or asks as many more members as it lacks.
    fn advance(
        &mut self,
        position: usize,
        now: Instant,
        cluster: &mut Cluster,
        outgoing: &mut Outgoing,
    ) {
        let need = self.tolerance;
        let run = &mut self.runs[position];
        let have = run.count(CopyState::Stored);
        if have >= need {
            run.outcome = Outcome::Placed(run.replica_set(need));
            return;
        }
        let mut asked = run.count(CopyState::Asked);
        if have + asked < need {
            let records = run.sets.len() as u64;
            let lacking = need - have - asked;
            let chosen = cluster.choose(lacking, &run.members(), records, run.bytes, now);
            for member in chosen {
                let state = CopyState::Asked;
                run.copies.push(Copy {
                    member,
                    state,
                    is_full: false,
                });
                outgoing.entry(member).or_default().push(position);
                asked += 1;
            }
        }
        if have + asked >= need {
            return;
        }
        let untried = run.untried(cluster);
        let late = run.count(CopyState::Late);
        if untried > 0 {
            self.retry_at = Some(now + self.limits.room_retry);
        }
        // Those that were asked in time are awaited even so: `have` is to count them.
        if asked == 0 && have + late + untried < need {
            run.outcome = Outcome::Failed(run.shortage(need));
        }
    }

    /// One store for each member that was chosen.
    fn send(
        &mut self,
        outgoing: Outgoing,
        now: Instant,
        cluster: &Cluster,
        effects: &mut Vec<Effect>,
    ) {
        // Mostly each run goes to the same members as its neighbours.
        let mut sent: Vec<(Tag, Arc<Vec<StoreRecord>>)> = Vec::with_capacity(outgoing.len());
        for (member, runs) in outgoing {
            let bytes = runs.iter().map(|&run| self.runs[run].bytes).sum();
            let same = sent.iter().find(|(tag, _)| self.calls[tag].runs == runs);
            let records = match same {
                Some((_, records)) => Arc::clone(records),
                None => Arc::new(self.records(&runs)),
            };
            let charge = Charge {
                records: records.len() as u64,
                bytes,
            };
            // What was charged for this store itself is queued ahead of its answer as well.
            let queued = self.limits.drain_time(cluster.bytes_in_flight(member));
            let give_up_at = self.started + self.limits.write_timeout + queued;
            self.give_up_at = self.give_up_at.max(give_up_at);
            let tag = self.tags.next();
            let call = Call {
                member,
                runs,
                deadline: now + self.limits.copy_timeout + queued,
                late: false,
                is_suspect: cluster.is_late(member),
            };
            self.calls.insert(tag, call);
            sent.push((tag, Arc::clone(&records)));
            effects.push(Effect::Store {
                tag,
                member,
                records,
                charge,
            });
        }
    }

    /// The records of these runs.
    fn records(&self, runs: &[usize]) -> Vec<StoreRecord> {
        let count = runs.iter().map(|&run| self.runs[run].sets.len()).sum();
        let mut records = Vec::with_capacity(count);
        for &run in runs {
            records.extend(self.runs[run].sets.clone().map(|set| self.record(set)));
        }
        records
    }

    fn record(&self, set: usize) -> StoreRecord {
        match &self.steps[self.sets[set]] {
            Step::Write(Write::Set { key, payload, .. }) => StoreRecord {
                revision: self.revisions.at(set as u64),
                key: key.clone(),
                payload: payload.clone(),
            },
            Step::Write(_) | Step::Get(_) => unreachable!("only a SET is in a run"),
        }
    }

    fn tick(&mut self, now: Instant, cluster: &mut Cluster, effects: &mut Vec<Effect>) {
        match self.phase {
            Phase::New | Phase::Done => {}
            Phase::Collecting => {
                for call in self.calls.values_mut() {
                    if !call.late && call.deadline <= now {
                        call.late = true;
                        cluster.late(call.member, call.deadline);
                        for &run in &call.runs {
                            self.runs[run].answered(call.member, CopyState::Late);
                        }
                    }
                }
                if self.give_up_at <= now {
                    self.give_up(cluster);
                }
                self.collect(now, cluster, effects);
            }
            Phase::Proposed { deadline, .. } => {
                if deadline <= now {
                    self.fail_rest(&unknown(), effects);
                }
            }
            Phase::Reading(_) => self.step_reads(Event::Tick, now, cluster, effects),
        }
    }

    /// The write time-out: what has its copies is placed, everything else fails.
    fn give_up(&mut self, cluster: &Cluster) {
        let need = self.tolerance;
        for run in self.runs.iter_mut().filter(|run| run.is_open()) {
            let have = run.count(CopyState::Stored);
            if have < need {
                run.outcome = Outcome::Failed(match run.untried(cluster) {
                    0 => run.shortage(need),
                    _ => Failure::Busy,
                });
            }
        }
    }

    /// Answers every request that has no answer.
    fn fail_rest(&mut self, failure: &Failure, effects: &mut Vec<Effect>) {
        if let Kind::Transaction { failure: whole, .. } = &mut self.kind {
            *whole = Some(failure.clone());
        }
        for reply in self.replies.iter_mut().filter(|reply| reply.is_none()) {
            *reply = Some(Reply::Failed(failure.clone()));
        }
        self.finish(effects);
    }

    fn finish(&mut self, effects: &mut Vec<Effect>) {
        let replies = std::mem::take(&mut self.replies).into_iter();
        let replies = replies.map(|reply| reply.expect("every request is answered"));
        let replies = replies.collect();
        effects.push(Effect::Done(match &mut self.kind {
            Kind::Each | Kind::Part { .. } => replies,
            Kind::Transaction { failure, .. } => vec![match failure.take() {
                Some(failure) => Reply::Failed(failure),
                None => Reply::Transaction(replies),
            }],
        }));
        self.phase = Phase::Done;
        self.calls.clear();
    }
}

/// The deadline came behind the proposal.
fn unknown() -> Failure {
    match faults::has(Fault::UnknownAsFailed) {
        true => Failure::Busy,
        false => Failure::WriteTimedOut,
    }
}
