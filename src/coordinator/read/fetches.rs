//! The fetches of a batch of reads: whom to ask, what an answer means. Pure.

use std::time::Duration;

use super::{Asked, Call, Missing, Outgoing, ReadBatch, Share, TOGETHER_WEIGHT_MAX, weight};
use crate::clock::Instant;
use crate::cluster::Cluster;
use crate::coordinator::{Answer, Effect, Flaw, Tag, replica_statuses};
use crate::error::Failure;
use crate::ids::{Key, MemberId, Revision};
use crate::metadata::message_index::Entry;
use crate::protocol::reply::Reply;
use crate::rpc::message::{FetchResult, Refusal};

impl ReadBatch {
    pub(super) fn fetch_answered(
        &mut self,
        tag: Tag,
        answer: Answer<FetchResult>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(call) = self.calls.remove(&tag) else {
            return;
        };
        let results = match answer {
            Answer::Results(results) if results.len() == call.slots.len() => results,
            Answer::Refused(Refusal::StaleFence { highest }) if highest.term > self.term => {
                let member = call.member;
                effects.push(Effect::Deposed { member, highest });
                if highest.is_absurd_above(self.term) {
                    // The member is broken, this leader is not.
                    for (at, revision) in call.slots {
                        self.copy_failed(at, revision);
                    }
                } else {
                    let above = highest.term;
                    self.fail_rest(&Failure::TermOver { above });
                }
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
                        self.slots[at].may_ask_again(call.member);
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

    /// Asks the next replica for every slot that wants one.
    pub(super) fn fetch(&mut self, now: Instant, cluster: &Cluster, effects: &mut Vec<Effect>) {
        let mut outgoing = Outgoing::new();
        for at in 0..self.slots.len() {
            let slot = &mut self.slots[at];
            if !std::mem::take(&mut slot.wants_next) || slot.reply.is_some() {
                continue;
            }
            let Some(entry) = &slot.entry else {
                continue;
            };
            match next_replica(entry, slot.asked, &outgoing, cluster, now) {
                Some(position) => {
                    let member = entry.replicas.as_slice()[position];
                    let share = outgoing.entry(member).or_default();
                    share.add(entry);
                    share.slots.push(at);
                    slot.asked.insert(position);
                    slot.open_calls += 1;
                }
                None if slot.open_calls == 0 && slot.open_lookups == 0 => {
                    let statuses = replica_statuses(cluster, entry.revision, &entry.replicas, now);
                    let replicas: Vec<String> = statuses.iter().map(|s| s.to_string()).collect();
                    let replicas = replicas.join(",");
                    self.reply(at, Reply::Failed(Failure::Unavailable { replicas }));
                }
                None => {}
            }
        }
        for (member, share) in outgoing {
            self.send(member, share.slots, now, effects);
        }
    }

    /// Payload bytes that [`ReadBatch::fetch`] would ask each member for now.
    pub(super) fn fetches_expected(&self, now: Instant, cluster: &Cluster) -> Vec<(MemberId, u64)> {
        let mut outgoing = Outgoing::new();
        let is_fetched = |slot: &&super::Slot| slot.reply.is_none() && slot.at_hand.is_none();
        for slot in self.slots.iter().filter(is_fetched) {
            if let Some(entry) = &slot.entry
                && let Some(position) = next_replica(entry, slot.asked, &outgoing, cluster, now)
            {
                let member = entry.replicas.as_slice()[position];
                outgoing.entry(member).or_default().add(entry);
            }
        }
        let bytes = |(member, share): (MemberId, Share)| (member, share.bytes);
        outgoing.into_iter().map(bytes).collect()
    }

    fn length(&self, at: usize) -> u64 {
        let entry = self.slots[at].entry.as_ref();
        entry.map_or(0, |entry| u64::from(entry.length))
    }

    /// When a fetch of so many bytes is late.
    fn hedge_at(&self, now: Instant, bytes: u64) -> Instant {
        let at = now + self.limits.hedge_after;
        if !self.is_large() {
            return at;
        }
        // As much again may be ahead of it.
        let rate = self.limits.hedge_bytes_per_second.max(1);
        at + Duration::from_micros(bytes.saturating_mul(2_000_000) / rate)
    }

    /// Fetches of a bounded size, at least one message each.
    fn send(
        &mut self,
        member: MemberId,
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
            let asked: u64 = chunk.iter().map(|(at, _)| self.length(*at)).sum();
            let tag = self.tags.next();
            effects.push(Effect::Fetch {
                tag,
                member,
                revisions: chunk.iter().map(|(_, revision)| *revision).collect(),
            });
            let call = Call {
                member,
                slots: chunk,
                hedge_at: self.hedge_at(now, asked),
                late: false,
            };
            self.calls.insert(tag, call);
        }
    }
}

/// The best connected replica that was not asked, by its position in the replica set. Among equally
/// good ones small messages stay together; else the one with the least work in this step is taken.
fn next_replica(
    entry: &Entry,
    asked: Asked,
    outgoing: &Outgoing,
    cluster: &Cluster,
    now: Instant,
) -> Option<usize> {
    let weight = weight(entry);
    let rank = |(position, member): (usize, &MemberId)| {
        let rank = cluster.read_rank(*member, entry.revision, now)?;
        let work = match outgoing.get(member).map_or(0, |share| share.weight) {
            begun if begun > 0 && begun + weight <= TOGETHER_WEIGHT_MAX => 0,
            begun => 1 + begun,
        };
        Some((rank.health, work, rank, position))
    };
    let replicas = entry.replicas.as_slice().iter().enumerate();
    let others = replicas.filter(|(position, _)| !asked.contains(*position));
    let (_, _, _, position) = others.filter_map(rank).min()?;
    Some(position)
}
