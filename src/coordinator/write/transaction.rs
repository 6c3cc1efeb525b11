//! What a transaction has beyond a batch of writes: its failure as a whole, and what it reads.
//! Pure.
//!
//! Its SETs collect their copies as in any batch. All or nothing, or with a token, it fails as a
//! whole if one of them cannot have its copies: then nothing is proposed. A token remembers what
//! became of each step, and cannot of one that is not in the entry.
//!
//! **Reads** are decided by the entry: apply says which record a message had then. A record that
//! this transaction wrote is at hand; any other is fetched from its replicas, by its revision, also
//! if a later entry replaced it: releases are held meanwhile. Together the values are
//! [`Limits::read_bytes_max`] at most, or one larger one; beyond it a read fails
//! ([`Failure::ValuesTooLarge`]). If there is no room for the values in time, the reads fail as
//! busy; what was written is.

use bytes::Bytes;

use super::{Phase, WriteBatch};
use crate::clock::Instant;
use crate::cluster::Cluster;
use crate::coordinator::{Effect, Event, ReadBatch, Revisions};
use crate::error::Failure;
use crate::ids::{Key, Revision, Token};
use crate::metadata::message_index::Entry;
use crate::protocol::reply::Reply;
use crate::protocol::request::{Step, Transaction, Write};

#[cfg(doc)]
use crate::coordinator::Limits;

/// What a batch of writes is.
#[derive(Debug)]
pub(in crate::coordinator) enum Kind {
    /// Single writes.
    Each,
    /// A part of a bulk write, whose token its messages share.
    Part {
        /// Of the bulk write.
        token: Option<Token>,
    },
    /// A transaction, answered by one reply.
    Transaction {
        /// All or nothing.
        is_atomic: bool,
        /// Of the whole.
        token: Option<Token>,
        /// Why all of it failed, once it has.
        failure: Option<Failure>,
        /// The payloads that it stores, if it reads.
        payloads: Vec<Bytes>,
    },
}

/// The reads of a transaction, after its entry.
#[derive(Debug)]
pub(super) struct Reads {
    /// The places of its steps among all.
    positions: Vec<usize>,
    batch: ReadBatch,
}

impl Kind {
    /// Of a transaction with these steps.
    pub(in crate::coordinator) fn of(transaction: Transaction) -> (Kind, Vec<Step>) {
        let Transaction {
            steps,
            is_atomic,
            token,
        } = transaction;
        let reads = steps.iter().any(|step| matches!(step, Step::Get(_)));
        let payload = |step: &Step| match step {
            Step::Write(Write::Set { payload, .. }) if reads => Some(payload.clone()),
            Step::Write(_) | Step::Get(_) => None,
        };
        let kind = Kind::Transaction {
            is_atomic,
            token,
            failure: None,
            payloads: steps.iter().filter_map(payload).collect(),
        };
        (kind, steps)
    }

    /// Whether all of it fails with one of its writes.
    pub(super) fn is_whole(&self) -> bool {
        match self {
            Kind::Each | Kind::Part { .. } => false,
            Kind::Transaction {
                is_atomic, token, ..
            } => *is_atomic || token.is_some(),
        }
    }

    /// The payload of a record that this batch stored.
    fn payload(&self, revisions: Revisions, revision: Revision) -> Option<&Bytes> {
        let Kind::Transaction { payloads, .. } = self else {
            return None;
        };
        let at = revision.as_u64().checked_sub(revisions.first.as_u64())?;
        payloads.get(usize::try_from(at).ok()?)
    }
}

impl WriteBatch {
    /// The first failure of a write that keeps the whole from being proposed.
    pub(super) fn failure_of_the_whole(&self) -> Option<Failure> {
        if !self.kind.is_whole() {
            return None;
        }
        self.replies.iter().flatten().find_map(|reply| match reply {
            Reply::Failed(failure) => Some(failure.clone()),
            _ => None,
        })
    }

    /// Answers what the transaction reads: from what it stored, and by fetching the rest.
    pub(super) fn read(
        &mut self,
        got: Vec<(usize, Key, Option<Entry>)>,
        now: Instant,
        cluster: &mut Cluster,
        effects: &mut Vec<Effect>,
    ) {
        let mut positions = Vec::new();
        let mut wanted = Vec::new();
        let mut bytes = 0;
        for (position, key, entry) in got {
            let Some(entry) = entry else {
                self.replies[position] = Some(Reply::NotFound);
                continue;
            };
            let is_first = bytes == 0;
            bytes += u64::from(entry.length);
            if bytes > self.limits.read_bytes_max && !is_first {
                self.replies[position] = Some(Reply::Failed(Failure::ValuesTooLarge));
            } else {
                let at_hand = self.kind.payload(self.revisions, entry.revision);
                positions.push(position);
                wanted.push((key, entry, at_hand.cloned()));
            }
        }
        if positions.is_empty() {
            return self.finish(effects);
        }
        let term = self.revisions.first.term();
        let batch = ReadBatch::of_records(wanted, term, now, self.limits);
        self.phase = Phase::Reading(Box::new(Reads { positions, batch }));
        self.step_reads(Event::Tick, now, cluster, effects);
    }

    /// An event for the fetches.
    pub(super) fn step_reads(
        &mut self,
        event: Event,
        now: Instant,
        cluster: &mut Cluster,
        effects: &mut Vec<Effect>,
    ) {
        let Phase::Reading(reads) = &mut self.phase else {
            return;
        };
        let mut own = Vec::new();
        reads.batch.step(event, now, cluster, &mut own);
        for effect in own {
            let Effect::Done(replies) = effect else {
                effects.push(effect);
                continue;
            };
            for (position, reply) in reads.positions.iter().zip(replies) {
                self.replies[*position] = Some(reply);
            }
        }
        if reads.batch.is_done() {
            self.finish(effects);
        }
    }
}

impl Reads {
    pub(super) fn batch(&self) -> &ReadBatch {
        &self.batch
    }
}
