//! A bulk write: reserves consecutive message ids, then stores one payload under each of them in
//! write batches, some at a time. Pure.
//!
//! Not atomic. After the first failure no more batches are started and the ones in flight are
//! awaited; the reply then names the ids stored without a gap from the first one on, and the
//! failure of the first id that was not. Messages behind it may be stored too.
//!
//! Every message shares one payload in memory; its batches are made as they start.
//!
//! With a token the reservation and every part carry it, and the replicated state remembers which
//! messages were stored (why that is right, says `metadata::state`, module `once`). A repeat is
//! told the ids of the first attempt and what was stored of them; it stores the rest with its own
//! copies and revisions, beside the first attempt if that is still running. What apply finds stored
//! before counts as stored here, and its copies are released. So whoever ends says `OK` only if all
//! were stored by somebody, and a partial failure tells ids as without a token.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;

use super::write::Kind;
use super::{
    Effect, Event, Limits, NEVER, Revisions, Settlement, Tag, WriteBatch, refused, repeated,
};
use crate::clock::Instant;
use crate::cluster::Cluster;
use crate::error::Failure;
use crate::ids::{Key, Token};
use crate::metadata::command::{Applied, Change, Command};
use crate::metadata::once::OnceChange;
use crate::protocol::reply::Reply;
use crate::protocol::request::{Step, Write};

/// The tag of the reservation; parts are numbered from 1 on.
const RESERVATION: Tag = Tag(0);

/// One bulk write.
#[derive(Debug)]
pub struct BulkWrite {
    limits: Limits,
    tolerance: u8,
    /// One for each message.
    revisions: Revisions,
    payload: Bytes,
    token: Option<Token>,
    /// Positions to store, from the first id on, as ascending ranges; all unless it is a repeat.
    missing: Vec<Range<u64>>,
    /// How many positions these are.
    missing_count: u64,
    /// Messages in a part, the last one may have fewer.
    part_messages: u64,
    /// Parts that may be in flight.
    parts_max: usize,
    /// The lowest id, once it is reserved.
    first_id: u64,
    /// Missing messages in parts that were started.
    started: u64,
    /// Parts in flight by number; part n begins at missing message (n - 1) * `part_messages`.
    parts: BTreeMap<u32, WriteBatch>,
    /// The first message that is known to have failed, by position, and why.
    failed: Option<(u64, Failure)>,
    /// When the reservation is given up.
    deadline: Instant,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    New,
    Reserving,
    Storing,
    Done,
}

impl BulkWrite {
    /// `count` messages with the same payload; `revisions` holds one for each.
    pub fn new(
        count: u64,
        payload: Bytes,
        token: Option<Token>,
        revisions: Revisions,
        tolerance: u8,
        limits: Limits,
    ) -> BulkWrite {
        assert!(count > 0, "a bulk write stores something");
        assert_eq!(count, revisions.count, "one revision a message");
        let message_bytes = (payload.len() as u64).max(1);
        let part_messages = (limits.part_bytes_max / message_bytes)
            .clamp(1, (limits.part_messages_max as u64).max(1))
            .min(count);
        let part_bytes = part_messages.saturating_mul(message_bytes);
        let parts_max = usize::try_from(limits.bulk_bytes_in_flight_max / part_bytes)
            .unwrap_or(usize::MAX)
            .clamp(1, limits.parts_in_flight_max.max(1));
        BulkWrite {
            limits,
            tolerance,
            missing: gaps(&[], count),
            missing_count: count,
            revisions,
            payload,
            token,
            part_messages,
            parts_max,
            first_id: 0,
            started: 0,
            parts: BTreeMap::new(),
            failed: None,
            deadline: Instant::default(),
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
        match self.phase {
            Phase::New => self.start(&event, now, effects),
            Phase::Reserving => self.reserving(event, now, cluster, effects),
            Phase::Storing => {
                if matches!(event, Event::Tick) {
                    let parts: Vec<u32> = self.parts.keys().copied().collect();
                    for part in parts {
                        self.step_part(part, Event::Tick, now, cluster, effects);
                    }
                } else if let Some(tag) = event.tag() {
                    self.step_part(tag.part(), event, now, cluster, effects);
                }
                self.start_parts(now, cluster, effects);
            }
            Phase::Done => {}
        }
    }

    /// See [`super::Coordinator::next_deadline`].
    pub fn next_deadline(&self) -> Instant {
        match self.phase {
            Phase::Reserving => self.deadline,
            Phase::Storing => self
                .parts
                .values()
                .map(WriteBatch::next_deadline)
                .fold(NEVER, Instant::min),
            Phase::New | Phase::Done => NEVER,
        }
    }

    /// Whether `Done` was emitted.
    pub fn is_done(&self) -> bool {
        self.phase == Phase::Done
    }

    fn start(&mut self, event: &Event, now: Instant, effects: &mut Vec<Effect>) {
        if !matches!(event, Event::Start) {
            return;
        }
        self.phase = Phase::Reserving;
        self.deadline = now + self.limits.write_timeout;
        let count = self.revisions.count;
        let change = match self.token.clone() {
            Some(token) => self.limits.once(OnceChange::ReserveIds { token, count }),
            None => Change::ReserveIds { count },
        };
        effects.push(Effect::Propose {
            tag: RESERVATION,
            command: Command {
                term: self.revisions.first.term(),
                change,
            },
            settlement: Settlement {
                closed: self.revisions.part(0, 0),
                given_up: Vec::new(),
            },
            reads: false,
        });
    }

    fn reserving(
        &mut self,
        event: Event,
        now: Instant,
        cluster: &mut Cluster,
        effects: &mut Vec<Effect>,
    ) {
        // Whatever becomes of the reservation, without its answer no message was stored: ids may be
        // skipped, which nobody sees, or wait for a repeat.
        let reply = Reply::Failed(match event {
            Event::Applied {
                tag: RESERVATION,
                applied,
            } => match applied {
                Applied::Reserved { first } => {
                    self.reserved(first, now, cluster, effects);
                    return;
                }
                Applied::Resumed { first, stored } => {
                    self.missing = gaps(&stored, self.revisions.count);
                    self.missing_count = self.missing.iter().map(|gap| gap.end - gap.start).sum();
                    self.reserved(first, now, cluster, effects);
                    return;
                }
                Applied::Repeated(outcome) => {
                    self.close_unstarted(effects);
                    self.finish(repeated(outcome), effects);
                    return;
                }
                Applied::Refused(refusal) => refused(refusal),
                Applied::WrongTerm => Failure::NotLeader { leader: None },
                Applied::IdsExhausted => Failure::Busy,
                Applied::Write { .. }
                | Applied::Transacted { .. }
                | Applied::Expired { .. }
                | Applied::Registered { .. }
                | Applied::StaleIncarnation { .. }
                | Applied::NameHeld { .. }
                | Applied::Retired
                | Applied::Set => unreachable!("a reservation is applied as a reservation"),
            },
            Event::NotProposed {
                tag: RESERVATION,
                failure,
            }
            | Event::Superseded {
                tag: RESERVATION,
                failure,
            } => failure,
            Event::OutcomeUnknown { tag: RESERVATION } => Failure::Busy,
            Event::Tick if self.deadline <= now => Failure::Busy,
            Event::Start
            | Event::Tick
            | Event::StoreAnswered { .. }
            | Event::FetchAnswered { .. }
            | Event::ReadConfirmed
            | Event::ReadRefused(_)
            | Event::LookedUp { .. }
            | Event::Reserved { .. }
            | Event::Told(_)
            | Event::Applied { .. }
            | Event::NotProposed { .. }
            | Event::Superseded { .. }
            | Event::OutcomeUnknown { .. } => return,
        });
        self.close_unstarted(effects);
        self.finish(reply, effects);
    }

    fn reserved(
        &mut self,
        first: u64,
        now: Instant,
        cluster: &mut Cluster,
        effects: &mut Vec<Effect>,
    ) {
        self.first_id = first;
        self.phase = Phase::Storing;
        self.start_parts(now, cluster, effects);
    }

    /// Keeps parts in flight until all are started or one failed; finishes when none is left.
    fn start_parts(&mut self, now: Instant, cluster: &mut Cluster, effects: &mut Vec<Effect>) {
        while self.failed.is_none()
            && self.started < self.missing_count
            && self.parts.len() < self.parts_max
        {
            let count = self.part_messages.min(self.missing_count - self.started);
            let number = u32::try_from(self.started / self.part_messages + 1)
                .expect("a bulk write has at most a million parts");
            let steps = self
                .positions(self.started, count)
                .map(|position| Key::Id(self.first_id + position))
                .map(|key| Step::Write(Write::set(key, self.payload.clone(), None)));
            let revisions = self.revisions.part(self.started, count);
            let token = self.token.clone();
            let part = WriteBatch::of_kind(
                number,
                steps.collect(),
                Kind::Part { token },
                revisions,
                self.tolerance,
                self.limits,
            );
            self.parts.insert(number, part);
            self.started += count;
            self.step_part(number, Event::Start, now, cluster, effects);
        }
        if self.parts.is_empty() {
            self.close_unstarted(effects);
            let reply = self.outcome();
            self.finish(reply, effects);
        }
    }

    /// Steps one part; its replies stay here.
    fn step_part(
        &mut self,
        number: u32,
        event: Event,
        now: Instant,
        cluster: &mut Cluster,
        effects: &mut Vec<Effect>,
    ) {
        let Some(part) = self.parts.get_mut(&number) else {
            return;
        };
        part.step(event, now, cluster, effects);
        if !part.is_done() {
            return;
        }
        self.parts.remove(&number);
        let Some(Effect::Done(replies)) = effects.pop() else {
            unreachable!("done is the last effect of a batch");
        };
        let begin = u64::from(number - 1) * self.part_messages;
        let positions = self.positions(begin, replies.len() as u64);
        let failed = positions.zip(replies).find_map(|(at, reply)| match reply {
            Reply::Failed(failure) => Some((at, failure)),
            _ => None,
        });
        if let Some((at, failure)) = failed {
            let earlier = self.failed.as_ref().is_none_or(|(first, _)| at < *first);
            if earlier {
                self.failed = Some((at, failure));
            }
        }
    }

    /// The positions of `count` missing messages, without the first `skip`.
    fn positions(&self, skip: u64, count: u64) -> impl Iterator<Item = u64> {
        let mut skip = skip;
        let gaps = self.missing.iter().filter_map(move |gap| {
            let skipped = skip.min(gap.end - gap.start);
            skip -= skipped;
            (gap.start + skipped < gap.end).then(|| gap.start + skipped..gap.end)
        });
        gaps.flatten().take(count as usize)
    }

    fn outcome(&mut self) -> Reply {
        let first = self.first_id;
        match self.failed.take() {
            None => Reply::BulkStored {
                first,
                last: first + (self.revisions.count - 1),
            },
            Some((at, failure)) => Reply::Failed(Failure::BulkPartial {
                reason: Box::new(failure),
                stored: (at > 0).then(|| (first, first + at - 1)),
            }),
        }
    }

    /// Closes the revisions that no part will use.
    fn close_unstarted(&mut self, effects: &mut Vec<Effect>) {
        let rest = self.revisions.count - self.started;
        if rest > 0 {
            effects.push(Effect::Settle(Settlement {
                closed: self.revisions.part(self.started, rest),
                given_up: Vec::new(),
            }));
        }
    }

    fn finish(&mut self, reply: Reply, effects: &mut Vec<Effect>) {
        effects.push(Effect::Done(vec![reply]));
        self.phase = Phase::Done;
    }
}

/// What is left of `count` positions beside ascending ranges of them.
fn gaps(stored: &[(u32, u32)], count: u64) -> Vec<Range<u64>> {
    let mut gaps = Vec::with_capacity(stored.len() + 1);
    let mut begin = 0;
    for (from, to) in stored {
        gaps.push(begin..u64::from(*from));
        begin = u64::from(*to);
    }
    gaps.push(begin..count);
    gaps.retain(|gap| !gap.is_empty());
    gaps
}
