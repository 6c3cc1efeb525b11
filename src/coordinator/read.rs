//! The read path: confirms leadership, looks the keys up, asks one replica for each message and the
//! next ones when it fails or is late. Pure.
//!
//! Each message is asked for by its revision, so whatever comes is that write or nothing. Messages
//! are grouped by member in fetches of a bounded size; within a batch the work is spread over
//! replicas that are equally well.
//!
//! * Refused, link lost, damaged, foreign: the next replica at once.
//! * Late: the next replica as well; the first good answer counts.
//! * "No such revision": looked up again. Gone: `NotFound`. Another revision: the read starts over
//!   with it. The same: that copy is bad, the next replica is asked.
//! * Every replica failed or has no connection: `Unavailable`, at once. The read time-out passed
//!   while one had not answered: `ReadTimedOut`, since that one may have it.
//!
//! The reads of a transaction are of exactly one record each: "no such revision" is the next replica
//! then, and `Overwritten` at the end.
//!
//! A batch answers its first requests that have 8 MiB of payload in all, at least one, and leaves
//! the rest to a later one (A8). A message that grows while the batch reads is not counted again.
//!
//! `NotFound` is said only by metadata looked at after leadership was confirmed (A11).

use std::collections::BTreeMap;

use super::events::Tags;
use super::{Answer, Effect, Event, Flaw, Found, Limits, NEVER, Tag, replica_statuses};
use crate::clock::Instant;
use crate::cluster::Cluster;
use crate::error::Failure;
use crate::ids::{Key, MemberId, Revision};
use crate::metadata::message_index::Entry;
use crate::protocol::reply::Reply;
use crate::rpc::message::{FetchResult, Refusal};

/// What a message weighs besides its bytes when work is spread: a frame header, a look-up, a seek.
const MESSAGE_WEIGHT: u64 = 256;

/// A batch of GET.
#[derive(Debug)]
pub struct ReadBatch {
    limits: Limits,
    /// The term that the leader serves in: a member with a higher fence has another leader.
    term: u64,
    slots: Vec<Slot>,
    /// Whether `slots` are only those that this batch answers.
    bounded: bool,
    /// Whether only the records that it began with are answers.
    of_records: bool,
    /// Slots without a reply.
    unanswered: usize,
    /// Fetches that were not answered.
    calls: BTreeMap<Tag, Call>,
    /// Look-ups that were not answered.
    lookups: BTreeMap<Tag, Vec<Missing>>,
    tags: Tags,
    deadline: Instant,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    New,
    Confirming,
    Reading,
    Done,
}

/// One GET.
#[derive(Debug)]
struct Slot {
    key: Key,
    /// What the last look-up found.
    entry: Option<Entry>,
    /// Replicas that were asked for that revision.
    asked: Vec<MemberId>,
    /// Fetches of that revision that were not answered.
    open_calls: usize,
    /// Look-ups of it that were not answered.
    open_lookups: usize,
    /// A replica did not have the record that alone is an answer.
    is_gone: bool,
    /// Another replica is to be asked in this step.
    wants_next: bool,
    reply: Option<Reply>,
}

#[derive(Debug)]
struct Call {
    member: MemberId,
    slots: Vec<(usize, Revision)>,
    hedge_at: Instant,
    late: bool,
    /// The member was late with another answer when this was sent: no worker waits for it.
    is_suspect: bool,
}

/// A slot that is looked up, and who said that the revision does not exist.
#[derive(Debug)]
struct Missing {
    slot: usize,
    copy: Option<(MemberId, Revision)>,
}

/// For each member the slots to ask it for in this step.
type Outgoing = BTreeMap<MemberId, Vec<usize>>;

impl Slot {
    /// Whether an answer for `revision` still matters.
    fn awaits(&self, revision: Revision) -> bool {
        self.reply.is_none() && self.entry.as_ref().is_some_and(|e| e.revision == revision)
    }
}

impl ReadBatch {
    /// A batch of reads for a leader that serves in `term`.
    pub fn new(keys: Vec<Key>, term: u64, limits: Limits) -> ReadBatch {
        let slots: Vec<Slot> = keys
            .into_iter()
            .map(|key| Slot {
                key,
                entry: None,
                asked: Vec::new(),
                open_calls: 0,
                open_lookups: 0,
                is_gone: false,
                wants_next: false,
                reply: None,
            })
            .collect();
        ReadBatch {
            limits,
            term,
            bounded: false,
            of_records: false,
            unanswered: slots.len(),
            slots,
            calls: BTreeMap::new(),
            lookups: BTreeMap::new(),
            tags: Tags::of_part(0),
            deadline: Instant::default(),
            phase: Phase::New,
        }
    }

    /// Reads of exactly these records, which confirmed metadata named: no other revision is an
    /// answer. All at once, whatever their bytes; they begin with the next step.
    pub fn of_records(
        records: Vec<(Key, Entry)>,
        term: u64,
        now: Instant,
        limits: Limits,
    ) -> ReadBatch {
        let (keys, entries): (Vec<Key>, Vec<Entry>) = records.into_iter().unzip();
        let mut batch = ReadBatch::new(keys, term, limits);
        for (slot, entry) in batch.slots.iter_mut().zip(entries) {
            slot.entry = Some(entry);
            slot.wants_next = true;
        }
        batch.of_records = true;
        batch.bounded = true;
        batch.deadline = now + limits.read_timeout;
        batch.phase = Phase::Reading;
        batch
    }

    /// Takes one event and appends what is to be done.
    pub fn step(
        &mut self,
        event: Event,
        now: Instant,
        cluster: &mut Cluster,
        effects: &mut Vec<Effect>,
    ) {
        if self.phase == Phase::Done {
            return;
        }
        match event {
            Event::Start => {
                assert_eq!(self.phase, Phase::New, "a batch starts once");
                self.deadline = now + self.limits.read_timeout;
                self.phase = Phase::Confirming;
                effects.push(Effect::ConfirmRead);
            }
            Event::ReadConfirmed if self.phase == Phase::Confirming => {
                self.phase = Phase::Reading;
                let slots = 0..self.slots.len();
                let missing = slots.map(|slot| Missing { slot, copy: None }).collect();
                self.look_up(missing, effects);
            }
            Event::ReadRefused(failure) if self.phase == Phase::Confirming => {
                self.fail_rest(&failure);
            }
            Event::LookedUp { tag, found } => self.looked_up(tag, found, effects),
            Event::FetchAnswered { tag, answer } => self.fetch_answered(tag, answer, effects),
            Event::Tick => self.tick(now, cluster),
            Event::ReadConfirmed
            | Event::ReadRefused(_)
            | Event::StoreAnswered { .. }
            | Event::Applied { .. }
            | Event::NotProposed { .. }
            | Event::Superseded { .. }
            | Event::OutcomeUnknown { .. }
            | Event::Told(_) => {}
        }
        self.fetch(now, cluster, effects);
        if self.unanswered == 0 {
            self.finish(effects);
        }
    }

    /// See [`super::Coordinator::next_deadline`].
    pub fn next_deadline(&self) -> Instant {
        match self.phase {
            Phase::New | Phase::Done => NEVER,
            Phase::Confirming => self.deadline,
            Phase::Reading => self
                .calls
                .values()
                .filter(|call| !call.late)
                .map(|call| call.hedge_at)
                .fold(self.deadline, Instant::min),
        }
    }

    /// See [`super::Coordinator::waits_for_late_only`].
    pub fn waits_for_late_only(&self) -> bool {
        self.phase == Phase::Reading
            && self.lookups.is_empty()
            && self.calls.values().all(|call| call.late || call.is_suspect)
    }

    /// Whether `Done` was emitted.
    pub fn is_done(&self) -> bool {
        self.phase == Phase::Done
    }

    fn look_up(&mut self, missing: Vec<Missing>, effects: &mut Vec<Effect>) {
        if missing.is_empty() {
            return;
        }
        let tag = self.tags.next();
        let mut keys = Vec::with_capacity(missing.len());
        for Missing { slot, .. } in &missing {
            self.slots[*slot].open_lookups += 1;
            keys.push(self.slots[*slot].key.clone());
        }
        self.lookups.insert(tag, missing);
        effects.push(Effect::LookUp { tag, keys });
    }

    fn looked_up(&mut self, tag: Tag, found: Vec<Option<Found>>, effects: &mut Vec<Effect>) {
        let Some(missing) = self.lookups.remove(&tag) else {
            return;
        };
        assert_eq!(found.len(), missing.len(), "one answer for each key");
        if !std::mem::replace(&mut self.bounded, true) {
            self.bound(&found);
        }
        for (Missing { slot: at, copy }, found) in missing.into_iter().zip(found) {
            if at >= self.slots.len() {
                break;
            }
            let slot = &mut self.slots[at];
            slot.open_lookups -= 1;
            if slot.reply.is_some() {
                continue;
            }
            let Some(Found { entry, cached }) = found else {
                self.reply(at, Reply::NotFound);
                continue;
            };
            if slot.awaits(entry.revision) {
                // It is listed still: the copy that was asked for is bad.
                if let Some((member, revision)) = copy.filter(|c| c.1 == entry.revision) {
                    effects.push(Effect::CorruptCopy {
                        member,
                        revision,
                        key: slot.key.clone(),
                        flaw: Flaw::Missing,
                    });
                }
            } else {
                slot.asked.clear();
                slot.open_calls = 0;
            }
            let (revision, length) = (entry.revision, entry.length);
            slot.entry = Some(entry);
            slot.wants_next = true;
            if let Some(payload) = cached {
                assert_eq!(payload.len() as u64, u64::from(length), "cached otherwise");
                self.reply(at, Reply::Value { revision, payload });
            }
        }
    }

    /// Leaves out the requests that have no room, at the first look-up: nothing was fetched yet.
    fn bound(&mut self, found: &[Option<Found>]) {
        let mut bytes = 0_u64;
        let fits = |found: &&Option<Found>| {
            bytes += found.as_ref().map_or(0, |f| u64::from(f.entry.length));
            bytes <= self.limits.read_bytes_max
        };
        let count = found.iter().take_while(fits).count().max(1);
        self.slots.truncate(count);
        self.unanswered = self.slots.len();
    }

    fn fetch_answered(&mut self, tag: Tag, answer: Answer<FetchResult>, effects: &mut Vec<Effect>) {
        let Some(call) = self.calls.remove(&tag) else {
            return;
        };
        let results = match answer {
            Answer::Results(results) if results.len() == call.slots.len() => results,
            Answer::Refused(Refusal::StaleFence { highest }) if highest.term > self.term => {
                let member = call.member;
                effects.push(Effect::Deposed { member, highest });
                self.fail_rest(&Failure::NotLeader { leader: None });
                return;
            }
            Answer::Results(_) | Answer::Refused(_) | Answer::LinkLost | Answer::NotSent => {
                for (at, revision) in call.slots {
                    self.copy_failed(at, revision);
                }
                return;
            }
        };
        let mut missing = Vec::new();
        // An answer that brings nothing at all is no reason to ask the same again.
        let progress = results.iter().any(|r| *r != FetchResult::Omitted);
        for ((at, revision), result) in call.slots.into_iter().zip(results) {
            if !self.slots[at].awaits(revision) {
                continue;
            }
            let flaw = match result {
                FetchResult::Found { key, payload } => {
                    if self.accept(at, revision, &key, payload, effects) {
                        continue;
                    }
                    Flaw::Foreign
                }
                FetchResult::Damaged => Flaw::Damaged,
                FetchResult::Missing if self.of_records => {
                    self.slots[at].is_gone = true;
                    self.copy_failed(at, revision);
                    continue;
                }
                FetchResult::Missing => {
                    self.slots[at].open_calls -= 1;
                    let copy = Some((call.member, revision));
                    missing.push(Missing { slot: at, copy });
                    continue;
                }
                FetchResult::Omitted => {
                    self.copy_failed(at, revision);
                    if progress {
                        self.slots[at].asked.retain(|member| *member != call.member);
                    }
                    continue;
                }
            };
            effects.push(Effect::CorruptCopy {
                member: call.member,
                revision,
                key: self.slots[at].key.clone(),
                flaw,
            });
            self.copy_failed(at, revision);
        }
        self.look_up(missing, effects);
    }

    /// Answers the slot if the record is what the metadata say.
    fn accept(
        &mut self,
        at: usize,
        revision: Revision,
        key: &Key,
        payload: bytes::Bytes,
        effects: &mut Vec<Effect>,
    ) -> bool {
        let slot = &self.slots[at];
        let length = slot.entry.as_ref().map(|entry| entry.length as usize);
        if slot.key != *key || length != Some(payload.len()) {
            return false;
        }
        effects.push(Effect::Cache {
            revision,
            payload: payload.clone(),
        });
        self.reply(at, Reply::Value { revision, payload });
        true
    }

    /// A fetch of the slot ended without the message.
    fn copy_failed(&mut self, at: usize, revision: Revision) {
        let slot = &mut self.slots[at];
        if slot.awaits(revision) {
            slot.open_calls -= 1;
            slot.wants_next = true;
        }
    }

    fn tick(&mut self, now: Instant, cluster: &mut Cluster) {
        for call in self.calls.values_mut() {
            if call.late || call.hedge_at > now {
                continue;
            }
            call.late = true;
            cluster.late(call.member, call.hedge_at);
            for &(at, revision) in &call.slots {
                let slot = &mut self.slots[at];
                slot.wants_next |= slot.awaits(revision);
            }
        }
        if self.phase != Phase::New && self.deadline <= now {
            self.fail_rest(&Failure::ReadTimedOut);
        }
    }

    /// Asks the next replica for every slot that wants one.
    fn fetch(&mut self, now: Instant, cluster: &Cluster, effects: &mut Vec<Effect>) {
        let mut outgoing = Outgoing::new();
        let mut weights = BTreeMap::new();
        for at in 0..self.slots.len() {
            let slot = &mut self.slots[at];
            if !std::mem::take(&mut slot.wants_next) || slot.reply.is_some() {
                continue;
            }
            let Some(entry) = &slot.entry else {
                continue;
            };
            match next_replica(entry, &slot.asked, &weights, cluster, now) {
                Some(member) => {
                    *weights.entry(member).or_insert(0) += u64::from(entry.length) + MESSAGE_WEIGHT;
                    slot.asked.push(member);
                    slot.open_calls += 1;
                    outgoing.entry(member).or_default().push(at);
                }
                None if slot.open_calls == 0 && slot.is_gone => {
                    self.reply(at, Reply::Failed(Failure::Overwritten));
                }
                None if slot.open_calls == 0 && slot.open_lookups == 0 => {
                    let statuses = replica_statuses(cluster, &entry.replicas, now);
                    let replicas: Vec<String> = statuses.iter().map(|s| s.to_string()).collect();
                    let replicas = replicas.join(",");
                    self.reply(at, Reply::Failed(Failure::Unavailable { replicas }));
                }
                None => {}
            }
        }
        for (member, slots) in outgoing {
            let is_suspect = cluster.is_late(member);
            self.send(member, is_suspect, slots, now, effects);
        }
    }

    /// Fetches of a bounded size, at least one message each.
    fn send(
        &mut self,
        member: MemberId,
        is_suspect: bool,
        slots: Vec<usize>,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let mut rest = slots.as_slice();
        while !rest.is_empty() {
            let mut bytes = 0;
            let mut chunk = Vec::new();
            for &at in rest {
                let entry = self.slots[at].entry.as_ref().expect("it was looked up");
                bytes += u64::from(entry.length);
                if bytes > self.limits.fetch_bytes_max && !chunk.is_empty() {
                    break;
                }
                chunk.push((at, entry.revision));
            }
            rest = &rest[chunk.len()..];
            let tag = self.tags.next();
            effects.push(Effect::Fetch {
                tag,
                member,
                revisions: chunk.iter().map(|(_, revision)| *revision).collect(),
            });
            let call = Call {
                member,
                slots: chunk,
                hedge_at: now + self.limits.hedge_after,
                late: false,
                is_suspect,
            };
            self.calls.insert(tag, call);
        }
    }

    fn reply(&mut self, at: usize, reply: Reply) {
        let previous = self.slots[at].reply.replace(reply);
        assert!(previous.is_none(), "a request is answered once");
        self.unanswered -= 1;
    }

    fn fail_rest(&mut self, failure: &Failure) {
        for at in 0..self.slots.len() {
            if self.slots[at].reply.is_none() {
                self.reply(at, Reply::Failed(failure.clone()));
            }
        }
    }

    fn finish(&mut self, effects: &mut Vec<Effect>) {
        let slots = std::mem::take(&mut self.slots).into_iter();
        let replies = slots.map(|slot| slot.reply.expect("every request is answered"));
        effects.push(Effect::Done(replies.collect()));
        self.calls.clear();
        self.lookups.clear();
        self.phase = Phase::Done;
    }
}

/// The best connected replica that was not asked; among equally good ones the one with the least
/// work in this step.
fn next_replica(
    entry: &Entry,
    asked: &[MemberId],
    weights: &BTreeMap<MemberId, u64>,
    cluster: &Cluster,
    now: Instant,
) -> Option<MemberId> {
    let mut order = cluster.read_order(&entry.replicas, now);
    order.retain(|member| !asked.contains(member));
    let best = cluster.state(*order.first()?, now);
    order
        .into_iter()
        .take_while(|member| cluster.state(*member, now) == best)
        .min_by_key(|member| weights.get(member).copied().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coordinator::testing::{World, key, member};
    use crate::metadata::replica_sets::ReplicaSet;
    use std::time::Duration;

    #[test]
    fn what_a_batch_holds_is_bounded_and_the_rest_is_left_for_later() {
        let replica = ReplicaSet::new(&[member(1)]).expect("one");
        for (length, answered) in [(3 << 20, 2), (9 << 20, 1), (1, 5)] {
            let mut world = World::new(1, 1);
            for sequence in 1..=5 {
                let entry = Entry {
                    revision: Revision::new(crate::coordinator::testing::TERM, sequence),
                    replicas: replica,
                    length,
                };
                let payload = bytes::Bytes::from(vec![0; length as usize]);
                world.put(Key::Id(sequence), &payload, entry);
            }
            let keys = (1..=5).map(Key::Id).collect();
            world.start(crate::protocol::request::Batch::Reads(keys));
            world.step(Event::ReadConfirmed);
            let asked: usize = world.fetches.iter().map(|f| f.revisions.len()).sum();
            assert_eq!(asked, answered);
            while let Some(call) = world.fetches.first() {
                let found = call.revisions.iter().map(|r| world.fetched(*r)).collect();
                world.end_fetch(0, Answer::Results(found));
            }
            let [replies] = world.done.as_slice() else {
                panic!("not done once");
            };
            assert_eq!(replies.len(), answered);
            assert!(replies.iter().all(|r| matches!(r, Reply::Value { .. })));
        }
    }

    #[test]
    fn a_copy_that_fails_while_the_key_is_looked_up_again_decides_nothing() {
        let mut world = World::new(2, 2);
        let mut batch = ReadBatch::new(vec![key("a")], 3, Limits::default());
        let mut step = |event| {
            let mut effects = Vec::new();
            world.now = world.now + Duration::from_millis(300);
            batch.step(event, world.now, &mut world.cluster, &mut effects);
            effects
        };
        let found = |revision| {
            let entry = Entry {
                revision: Revision::from_u64(revision),
                replicas: ReplicaSet::new(&[member(1), member(2)]).expect("distinct"),
                length: 0,
            };
            let cached = None;
            vec![Some(Found { entry, cached })]
        };
        let asked = |effects: Vec<Effect>| match effects.as_slice() {
            [Effect::LookUp { tag, .. } | Effect::Fetch { tag, .. }] => *tag,
            other => panic!("not one question: {other:?}"),
        };
        step(Event::Start);
        let tag = asked(step(Event::ReadConfirmed));
        let tag = asked(step(Event::LookedUp {
            tag,
            found: found(1),
        }));
        let second = asked(step(Event::Tick));
        let answer = Answer::Results(vec![FetchResult::Missing]);
        let lookup = asked(step(Event::FetchAnswered { tag, answer }));
        let answer = Answer::LinkLost;
        let tag = second;
        assert_eq!(step(Event::FetchAnswered { tag, answer }), []);
        asked(step(Event::LookedUp {
            tag: lookup,
            found: found(2),
        }));
    }
}
