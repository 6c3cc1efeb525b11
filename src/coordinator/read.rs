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
//! The reads of a transaction are of exactly one record each, which is not released meanwhile: "no
//! such revision" is the next replica then.
//!
//! Replies of more than [`Limits::unreserved_bytes_max`] are not fetched before there is room for
//! them, as large as they are encoded: the batch waits for it until the read time-out, then it is
//! answered `busy`. The time for reading counts from then on.
//!
//! A batch answers its first requests that have 8 MiB of payload in all, at least one, and leaves
//! the rest to a later one (A8). A message that grows while the batch reads is not counted again.
//!
//! `NotFound` is said only by metadata looked at after leadership was confirmed (A11).

mod fetches;

use std::collections::BTreeMap;

use bytes::Bytes;

use super::events::Tags;
use super::{Effect, Event, Flaw, Found, Limits, NEVER, Tag};
use crate::clock::Instant;
use crate::cluster::Cluster;
use crate::error::Failure;
use crate::ids::{Key, MemberId, Revision};
use crate::metadata::message_index::Entry;
use crate::protocol::reply::Reply;

/// What a message weighs besides its bytes when work is spread: a frame header, a look-up, a seek.
const MESSAGE_WEIGHT: u64 = 256;

/// The most weight that is asked of one member while others have none. Some 20 small messages cost
/// less in one call than in one for each of their replicas; more of them, or larger ones, are
/// quicker read by several members at the same time.
const TOGETHER_WEIGHT_MAX: u64 = 8 << 10;

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
    /// Whether room for the replies is still to be asked for, if they are large.
    asks_room: bool,
    /// Payload bytes of the replies, if those are so large that room is asked for; else 0.
    large_bytes: u64,
    /// Slots without a reply.
    unanswered: usize,
    /// Fetches that were not answered.
    calls: BTreeMap<Tag, Call>,
    /// Look-ups that were not answered.
    lookups: BTreeMap<Tag, Vec<Missing>>,
    tags: Tags,
    /// When the reads arrived, if leadership was confirmed after that.
    confirmed_since: Option<Instant>,
    deadline: Instant,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    New,
    Confirming,
    /// Nothing is fetched before there is room for the replies.
    Reserving,
    Reading,
    Done,
}

/// One GET.
#[derive(Debug)]
struct Slot {
    key: Key,
    /// What the last look-up found.
    entry: Option<Entry>,
    /// The payload of that revision, if no member needs to be asked.
    at_hand: Option<Bytes>,
    /// Replicas that were asked for that revision.
    asked: Asked,
    /// Fetches of that revision that were not answered.
    open_calls: usize,
    /// Look-ups of it that were not answered.
    open_lookups: usize,
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
}

/// A slot that is looked up, and who said that the revision does not exist.
#[derive(Debug)]
struct Missing {
    slot: usize,
    copy: Option<(MemberId, Revision)>,
}

/// Members, and the messages to fetch from each in one step of the batch.
type Outgoing = BTreeMap<MemberId, Share>;

/// The messages to fetch from one member in one step of the batch.
#[derive(Debug, Default)]
struct Share {
    /// Positions of the messages in the slots of the batch.
    slots: Vec<usize>,
    /// Bytes of their payloads together.
    bytes: u64,
    /// The same, and [`MESSAGE_WEIGHT`] for each message.
    weight: u64,
}

impl Share {
    fn add(&mut self, entry: &Entry) {
        self.bytes += u64::from(entry.length);
        self.weight += weight(entry);
    }
}

fn weight(entry: &Entry) -> u64 {
    u64::from(entry.length) + MESSAGE_WEIGHT
}

/// Members of a replica set, by their positions in it.
#[derive(Clone, Copy, Debug, Default)]
struct Asked(u8);

impl Asked {
    fn contains(self, position: usize) -> bool {
        self.0 & (1 << position) != 0
    }

    fn insert(&mut self, position: usize) {
        self.0 |= 1 << position;
    }

    fn remove(&mut self, position: usize) {
        self.0 &= !(1 << position);
    }
}

impl Slot {
    /// A replica that was asked may be asked once more.
    fn may_ask_again(&mut self, member: MemberId) {
        let replicas = self.entry.iter().flat_map(|e| e.replicas.as_slice());
        if let Some(position) = replicas.copied().position(|id| id == member) {
            self.asked.remove(position);
        }
    }

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
                at_hand: None,
                asked: Asked::default(),
                open_calls: 0,
                open_lookups: 0,
                wants_next: false,
                reply: None,
            })
            .collect();
        ReadBatch {
            limits,
            term,
            bounded: false,
            of_records: false,
            asks_room: true,
            large_bytes: 0,
            unanswered: slots.len(),
            slots,
            calls: BTreeMap::new(),
            lookups: BTreeMap::new(),
            tags: Tags::of_part(0),
            confirmed_since: None,
            deadline: Instant::default(),
            phase: Phase::New,
        }
    }

    /// Reads that arrived at `since`, after which leadership was confirmed.
    pub fn confirmed(keys: Vec<Key>, term: u64, since: Instant, limits: Limits) -> ReadBatch {
        ReadBatch {
            confirmed_since: Some(since),
            ..ReadBatch::new(keys, term, limits)
        }
    }

    /// Reads of exactly these records, which confirmed metadata named: no other revision is an
    /// answer. Some payloads are at hand. All at once, whatever their bytes; they begin with the
    /// next step.
    pub fn of_records(
        records: Vec<(Key, Entry, Option<Bytes>)>,
        term: u64,
        now: Instant,
        limits: Limits,
    ) -> ReadBatch {
        let keys = records.iter().map(|(key, ..)| key.clone()).collect();
        let mut batch = ReadBatch::new(keys, term, limits);
        for (slot, (_, entry, at_hand)) in batch.slots.iter_mut().zip(records) {
            slot.entry = Some(entry);
            slot.at_hand = at_hand;
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
                self.deadline = self.confirmed_since.unwrap_or(now) + self.limits.read_timeout;
                match self.confirmed_since {
                    Some(_) => self.look_up_all(effects),
                    None => {
                        self.phase = Phase::Confirming;
                        effects.push(Effect::ConfirmRead);
                    }
                }
            }
            Event::ReadConfirmed if self.phase == Phase::Confirming => self.look_up_all(effects),
            Event::ReadRefused(failure) if self.phase == Phase::Confirming => {
                self.fail_rest(&failure);
            }
            Event::LookedUp { tag, found } => self.looked_up(tag, found, effects),
            Event::FetchAnswered { tag, answer } => self.fetch_answered(tag, answer, effects),
            Event::Tick => self.tick(now, cluster),
            Event::Reserved { granted } if self.phase == Phase::Reserving => {
                match granted {
                    true => self.phase = Phase::Reading,
                    false => self.fail_rest(&Failure::Busy),
                }
                let time = self.limits.read_timeout + self.limits.drain_time(self.large_bytes);
                self.deadline = now + time;
            }
            Event::ReadConfirmed
            | Event::ReadRefused(_)
            | Event::Reserved { .. }
            | Event::StoreAnswered { .. }
            | Event::Applied { .. }
            | Event::NotProposed { .. }
            | Event::Superseded { .. }
            | Event::OutcomeUnknown { .. }
            | Event::Told(_) => {}
        }
        if self.phase == Phase::Reading && self.lookups.is_empty() && self.asks_room {
            self.asks_room = false;
            self.reserve(now, cluster, effects);
        }
        if self.phase == Phase::Reading {
            self.answer_at_hand();
            self.fetch(now, cluster, effects);
        }
        if self.unanswered == 0 {
            self.finish(effects);
        }
    }

    /// See [`super::Coordinator::next_deadline`].
    pub fn next_deadline(&self) -> Instant {
        match self.phase {
            Phase::New | Phase::Done => NEVER,
            Phase::Confirming | Phase::Reserving => self.deadline,
            Phase::Reading => self
                .calls
                .values()
                .filter(|call| !call.late)
                .map(|call| call.hedge_at)
                .fold(self.deadline, Instant::min),
        }
    }

    /// Whether `Done` was emitted.
    pub fn is_done(&self) -> bool {
        self.phase == Phase::Done
    }

    /// Whether room was asked for.
    fn is_large(&self) -> bool {
        self.large_bytes > 0
    }

    /// Asks for room if the replies are not small; until then nothing is fetched.
    fn reserve(&mut self, now: Instant, cluster: &Cluster, effects: &mut Vec<Effect>) {
        let unanswered = self.slots.iter().filter(|slot| slot.reply.is_none());
        let entries = unanswered.filter_map(|slot| slot.entry.as_ref());
        let payload_bytes: u64 = entries.map(|entry| u64::from(entry.length)).sum();
        let bytes = payload_bytes.saturating_mul(self.limits.reply_growth);
        if bytes <= self.limits.unreserved_bytes_max {
            return;
        }
        self.large_bytes = payload_bytes;
        self.phase = Phase::Reserving;
        let fetches = self.fetches_expected(now, cluster);
        effects.push(Effect::Reserve { bytes, fetches });
    }

    fn answer_at_hand(&mut self) {
        for at in 0..self.slots.len() {
            let slot = &mut self.slots[at];
            if let (None, Some(entry), Some(payload)) =
                (&slot.reply, &slot.entry, slot.at_hand.take())
            {
                let revision = entry.revision;
                self.reply(at, Reply::Value { revision, payload });
            }
        }
    }

    fn look_up_all(&mut self, effects: &mut Vec<Effect>) {
        self.phase = Phase::Reading;
        let slots = 0..self.slots.len();
        let missing = slots.map(|slot| Missing { slot, copy: None }).collect();
        self.look_up(missing, effects);
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
                slot.asked = Asked::default();
                slot.open_calls = 0;
            }
            let length = entry.length;
            slot.entry = Some(entry);
            slot.wants_next = true;
            if let Some(payload) = &cached {
                assert_eq!(payload.len() as u64, u64::from(length), "cached otherwise");
            }
            slot.at_hand = cached;
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
        match self.phase {
            Phase::New | Phase::Done => {}
            _ if now < self.deadline => {}
            Phase::Reserving => self.fail_rest(&Failure::Busy),
            Phase::Confirming | Phase::Reading => self.fail_rest(&Failure::ReadTimedOut),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coordinator::Answer;
    use crate::coordinator::testing::{World, key, member};
    use crate::metadata::replica_sets::ReplicaSet;
    use crate::rpc::message::FetchResult;
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
    fn few_small_messages_are_asked_of_one_member_and_others_of_both() {
        for (length, count, most) in [(100, 20, 20), (100, 100, 50), (3000, 20, 10)] {
            let mut world = World::new(2, 2);
            for sequence in 1..=count {
                let entry = Entry {
                    revision: Revision::new(crate::coordinator::testing::TERM, sequence),
                    replicas: ReplicaSet::new(&[member(1), member(2)]).expect("distinct"),
                    length,
                };
                world.put(Key::Id(sequence), &vec![0; length as usize].into(), entry);
            }
            read(&mut world, count);
            let asked = [1, 2].map(|id| {
                let its = world.fetches.iter().filter(|f| f.member == member(id));
                its.map(|fetch| fetch.revisions.len() as u64).sum::<u64>()
            });
            assert_eq!(asked[0] + asked[1], count);
            let more = asked[0].max(asked[1]);
            assert!(
                more.abs_diff(most) <= 1,
                "{count} of {length} bytes: {asked:?}"
            );
        }
    }

    /// Messages 1, 2, … of these lengths on one member, and a world that grants room when told.
    fn world_of(lengths: &[u32]) -> World {
        let replicas = ReplicaSet::new(&[member(1)]).expect("one");
        let mut world = World::new(1, 1);
        for (sequence, length) in (1..).zip(lengths) {
            let entry = Entry {
                revision: Revision::new(crate::coordinator::testing::TERM, sequence),
                replicas,
                length: *length,
            };
            let payload = Bytes::from(vec![0; *length as usize]);
            world.put(Key::Id(sequence), &payload, entry);
        }
        world.next_sequence = lengths.len() as u64 + 1;
        world.has_room = false;
        world
    }

    fn read(world: &mut World, count: u64) {
        let keys = (1..=count).map(Key::Id).collect();
        world.start(crate::protocol::request::Batch::Reads(keys));
        world.step(Event::ReadConfirmed);
    }

    #[test]
    fn large_replies_are_not_fetched_before_there_is_room() {
        let mut world = world_of(&[60 << 10, 10 << 10]);
        read(&mut world, 2);
        assert_eq!((world.rooms, world.fetches.len()), (1, 0));
        assert!(
            world.log.contains("reserve 71680 bytes m1:71680"),
            "{}",
            world.log
        );
        world.step(Event::Tick);
        assert!(world.fetches.is_empty() && world.done.is_empty());
        world.step(Event::Reserved { granted: true });
        let [call] = world.fetches.as_slice() else {
            panic!("not one fetch");
        };
        let found = call.revisions.iter().map(|r| world.fetched(*r)).collect();
        world.end_fetch(0, Answer::Results(found));
        let is_value = |reply: &Reply| matches!(reply, Reply::Value { .. });
        assert!(world.done.concat().iter().all(is_value));
        assert_eq!((world.rooms, world.done.len()), (1, 1));
    }

    #[test]
    fn room_is_asked_for_by_the_length_of_the_encoded_replies() {
        for (growth, lengths, rooms) in [
            (1, [32 << 10, 32 << 10], 0),
            (1, [32 << 10, (32 << 10) + 1], 1),
            (7, [5 << 10, 5 << 10], 1),
            (7, [4 << 10, 4 << 10], 0),
        ] {
            let mut world = world_of(&lengths);
            world.limits.reply_growth = growth;
            read(&mut world, 2);
            assert_eq!(world.rooms, rooms, "{growth} x {lengths:?}");
            assert_eq!(world.fetches.len(), 1 - rooms);
        }
    }

    #[test]
    fn a_read_without_room_is_busy_at_once_or_in_the_end() {
        for is_refused in [true, false] {
            let mut world = world_of(&[1 << 20]);
            read(&mut world, 1);
            if is_refused {
                world.step(Event::Reserved { granted: false });
            } else {
                world.now = world.now + world.limits.read_timeout;
                world.step(Event::Tick);
            }
            assert_eq!(world.done, [[Reply::Failed(Failure::Busy)]]);
            assert!(world.fetches.is_empty());
        }
    }

    /// Time spent waiting for room is no time spent reading, and 16 MB at 10 MB/s take 1.6 s more
    /// than a small message.
    #[test]
    fn the_time_for_reading_counts_from_the_room_and_grows_with_the_bytes() {
        let mut world = world_of(&[16_000_000]);
        read(&mut world, 1);
        world.now = world.now + world.limits.read_timeout - Duration::from_millis(1);
        world.step(Event::Reserved { granted: true });
        world.now = world.now + Duration::from_millis(3599);
        world.step(Event::Tick);
        assert!(world.done.is_empty());
        world.now = world.now + Duration::from_millis(1);
        world.step(Event::Tick);
        assert_eq!(world.done, [[Reply::Failed(Failure::ReadTimedOut)]]);
    }

    #[test]
    fn what_a_transaction_reads_waits_for_room_too() {
        use crate::protocol::request::{Batch, SetOptions, Step, Transaction, Write};
        let mut world = world_of(&[40 << 10]);
        let payload = Bytes::from(vec![1; 40 << 10]);
        let set = Write::Set {
            key: key("a"),
            payload,
            options: SetOptions::default(),
        };
        let steps = vec![Step::Write(set), Step::Get(key("a")), Step::Get(Key::Id(1))];
        world.start(Batch::Transaction(Transaction {
            steps,
            is_atomic: true,
            token: None,
        }));
        world.end_store(
            0,
            Answer::Results(vec![crate::rpc::message::StoreResult::Stored]),
        );
        world.apply(0);
        assert_eq!((world.rooms, world.fetches.len()), (1, 0));
        assert!(
            world.log.contains("reserve 81920 bytes m1:40960"),
            "{}",
            world.log
        );
        world.step(Event::Reserved { granted: false });
        let done = world.done.concat();
        let [Reply::Transaction(replies)] = done.as_slice() else {
            panic!("{done:?}");
        };
        let busy = Reply::Failed(Failure::Busy);
        assert!(matches!(replies[0], Reply::Stored { .. }), "{replies:?}");
        assert_eq!(replies[1..], [busy.clone(), busy]);
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
