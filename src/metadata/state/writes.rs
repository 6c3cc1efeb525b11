//! SETs and DELs, applied run by run. Pure.

use super::{Shards, State};
use crate::faults::{self, Fault};
use crate::ids::Revision;
use crate::metadata::command::{Applied, Operation, OperationResult};
use crate::metadata::message_index::{Slot, shard_of};
use crate::metadata::replica_sets::ReplicaSet;

impl<S: Shards> State<S> {
    pub(super) fn write(&mut self, operations: &[Operation]) -> Applied {
        let mut outcome = WriteOutcome::with_capacity(operations.len());
        self.run_all(operations, &mut outcome);
        self.end_write(outcome)
    }

    /// Applies operations as a part of a write.
    pub(super) fn run_all(&mut self, operations: &[Operation], outcome: &mut WriteOutcome) {
        for run in operations.chunk_by(Operation::is_of_run) {
            match &run[0] {
                Operation::Set { replicas, .. } => self.set_run(replicas, run, outcome),
                Operation::Delete { .. } => self.delete_run(run, outcome),
            }
        }
    }

    /// All operations of a write were applied.
    pub(super) fn end_write(&mut self, outcome: WriteOutcome) -> Applied {
        let (results, released) = self.end_outcome(outcome);
        Applied::Write { results, released }
    }

    /// The results, and the records that no message has any more.
    pub(super) fn end_outcome(
        &mut self,
        outcome: WriteOutcome,
    ) -> (Vec<OperationResult>, Vec<(Revision, ReplicaSet)>) {
        self.drop_records(&outcome.dropped);
        let WriteOutcome {
            results,
            mut released,
            dropped,
        } = outcome;
        released.extend(dropped.into_iter().filter_map(|record| {
            let set = record.set;
            record.is_released.then_some((record.slot.revision, set))
        }));
        (results, released)
    }

    /// Applies SETs that share a replica set.
    fn set_run(&mut self, replicas: &ReplicaSet, run: &[Operation], outcome: &mut WriteOutcome) {
        let members = replicas.as_slice();
        if !self.are_active(replicas) {
            return outcome.pass_over(run, OperationResult::UnknownMember);
        }
        let set = self
            .shards
            .write_sets(|sets| sets.acquire(replicas, run.len() as u64));
        let mut bytes = 0;
        for operation in run {
            let Operation::Set {
                key,
                revision,
                length,
                ..
            } = operation
            else {
                unreachable!("a run of SETs has only SETs");
            };
            let slot = Slot {
                revision: *revision,
                set,
                length: *length,
            };
            let shard = shard_of(key, self.shards.shard_count());
            let (replaced, expiry) = self.shards.write_shard(shard, |shard| {
                let replaced = shard.insert(key, slot);
                match faults::has(Fault::OldExpiryOfNewMessage) {
                    true => (replaced, None),
                    false => (replaced, shard.set_expiry(key, None)),
                }
            });
            let created = replaced.is_none();
            match replaced {
                // A revision is never used twice; if one were, its record must not be released.
                Some(old) => outcome.drop_later(&self.shards, old, old.revision != *revision),
                None => self.messages += 1,
            }
            self.forget_expiry(key, expiry);
            bytes += u64::from(*length);
            outcome.results.push(OperationResult::Stored { created });
        }
        for id in members {
            self.members.add_copies(*id, run.len() as u64, bytes);
            self.changed.insert(*id);
        }
    }

    fn delete_run(&mut self, run: &[Operation], outcome: &mut WriteOutcome) {
        for operation in run {
            let Operation::Delete { key } = operation else {
                unreachable!("a run of DELs has only DELs");
            };
            let shard = shard_of(key, self.shards.shard_count());
            let (removed, expiry) = self.shards.write_shard(shard, |shard| {
                (shard.remove(key), shard.set_expiry(key, None))
            });
            self.forget_expiry(key, expiry);
            match removed {
                Some(old) => {
                    self.messages -= 1;
                    outcome.drop_later(&self.shards, old, true);
                    outcome.results.push(OperationResult::Deleted);
                }
                None => outcome.results.push(OperationResult::NotFound),
            }
        }
    }

    /// Takes records that no message has any more out of the counters and the table of sets.
    fn drop_records(&mut self, dropped: &[Dropped]) {
        if dropped.is_empty() {
            return;
        }
        // Runs are overwritten as runs, mostly: neighbours with one set are counted at once.
        let same_set = |a: &Dropped, b: &Dropped| a.slot.set == b.slot.set;
        for same in dropped.chunk_by(same_set) {
            let bytes = same
                .iter()
                .map(|record| u64::from(record.slot.length))
                .sum();
            for id in same[0].set.as_slice() {
                self.members.remove_copies(*id, same.len() as u64, bytes);
                self.changed.insert(*id);
            }
        }
        self.shards.write_sets(|sets| {
            for same in dropped.chunk_by(same_set) {
                sets.release(same[0].slot.set, same.len() as u64);
            }
        });
    }
}

/// What is collected while the operations of a write are applied.
pub(super) struct WriteOutcome {
    pub(super) results: Vec<OperationResult>,
    released: Vec<(Revision, ReplicaSet)>,
    dropped: Vec<Dropped>,
}

/// A record that its message has no more.
struct Dropped {
    slot: Slot,
    set: ReplicaSet,
    /// Its copies may go.
    is_released: bool,
}

impl WriteOutcome {
    pub(super) fn with_capacity(operations: usize) -> WriteOutcome {
        WriteOutcome {
            results: Vec::with_capacity(operations),
            released: Vec::new(),
            dropped: Vec::new(),
        }
    }

    /// The operations change nothing; the records that they would name are released.
    pub(super) fn pass_over(&mut self, operations: &[Operation], result: OperationResult) {
        for operation in operations {
            self.results.push(result);
            if let Operation::Set {
                revision, replicas, ..
            } = operation
            {
                self.released.push((*revision, *replicas));
            }
        }
    }

    /// The record's set stays counted, and so resolvable, until all operations are applied.
    fn drop_later<S: Shards>(&mut self, shards: &S, slot: Slot, is_released: bool) {
        let set = match self.dropped.last() {
            Some(last) if last.slot.set == slot.set => last.set,
            _ => shards.read_sets(|sets| sets.set(slot.set)),
        };
        self.dropped.push(Dropped {
            slot,
            set,
            is_released,
        });
    }
}
