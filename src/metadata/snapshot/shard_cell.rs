//! A shard that is copied before its first change while a snapshot is taken. Pure.

use crate::metadata::message_index::Shard;

/// A shard, and the copy of it that a snapshot still has to take.
///
/// Snapshots have ascending numbers from 1; `taken_for` is the last one that has the shard, or a
/// copy of it, as it was when that snapshot began.
#[derive(Debug, Default)]
pub struct ShardCell {
    shard: Shard,
    /// Boxed: there are many shards, and mostly no copies.
    copy: Option<Box<Shard>>,
    taken_for: u64,
}

impl ShardCell {
    /// The shard as it is.
    pub fn shard(&self) -> &Shard {
        &self.shard
    }

    /// The shard, to be changed. If a snapshot is being taken that does not have it, it is copied.
    pub fn change(&mut self, snapshot: Option<u64>) -> &mut Shard {
        if let Some(number) = snapshot
            && self.taken_for != number
        {
            self.copy = Some(Box::new(self.shard.clone()));
            self.taken_for = number;
        }
        &mut self.shard
    }

    /// The shard as it was when the snapshot began; once for each snapshot.
    pub fn take(&mut self, snapshot: u64) -> Shard {
        if self.taken_for != snapshot {
            // A clone, so that it is encoded without the lock that guards this.
            self.taken_for = snapshot;
            return self.shard.clone();
        }
        *self
            .copy
            .take()
            .expect("a shard is taken once for each snapshot")
    }

    /// Drops the copy, if there is one; its snapshot has ended.
    pub fn forget(&mut self) {
        self.copy = None;
    }
}
