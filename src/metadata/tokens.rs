//! Idempotency tokens that are remembered, and what each of them did. Pure.
//!
//! A token is remembered from the entry in which its write took effect, for the window that this
//! entry carries; only what was decided is remembered, a failure is not. Who finds it here does not
//! write again but gets the first answer (`metadata::state`, module `once`).
//!
//! **Time** is the leader's, carried in commands: the table's clock is the highest time of any
//! command so far, so it never goes back. A token is *live* while it expires after the clock; one
//! that is not live is as good as forgotten, whether it was dropped already or not. So what apply
//! decides depends on the commands alone (A3), and not on how much was swept.
//!
//! **Bounds.** A token weighs 1, one of an unfinished bulk write as many as it has gaps, plus 1,
//! one of a transaction as many as it has steps;
//! all together weigh at most [`WEIGHT_MAX`]. Beyond it a token is refused and nothing is written.
//! Each command drops at most [`SWEPT_MAX`] tokens that are not live, and as many more as it may
//! add itself: so a token is refused only if [`WEIGHT_MAX`] is reached by live ones.
//!
//! **Bulk writes.** The token of a bulk write that is under way holds the range of ids reserved
//! for it and which positions of it were stored ([`Progress`]), whatever became of the messages
//! since; complete, it holds the reply.
//!
//! Memory: 230 bytes a token of 20 bytes. Shards are shared with a snapshot that is being
//! taken and copied before their first change after its index ([`Frozen`]).
//!
//! Known limit: what tokens an old leader of another clock remembered expires by the new leader's
//! time: early, if its clock is ahead by more than the time between. `leader` sees to it that its
//! time does not jump while it runs, and goes on from the table's clock if that is ahead.

pub(super) mod bytes;
mod progress;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub use self::progress::{Progress, RANGES_MAX};
use crate::ids::{Revision, Token};
use crate::metadata::command::OperationResult;
use crate::metadata::message_index::mix;
use crate::metadata::once::TokenRefusal;
use crate::metadata::state::digest::Digest;

/// What all remembered tokens may weigh together: about a million of them, or 8,700 new ones a
/// second with a window of 2 minutes.
pub const WEIGHT_MAX: usize = 1 << 20;

/// Tokens that one command drops beyond the room it needs: some 0.2 ms of work.
const SWEPT_MAX: usize = 256;

/// Copied each on its own while a snapshot is taken: 32 tokens of a full table. A batch of 4,096
/// new tokens then copies an eighth of the table at most, once for a snapshot: 36 ms. Few while
/// states are fuzzed, which make some in each of thousands of runs a second.
const SHARDS: usize = if cfg!(fuzzing) { 1 << 4 } else { 1 << 15 };

/// What a write did that had a token: the first answer, which its repeats get too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A message was stored.
    Stored {
        /// The write's revision.
        revision: Revision,
        /// Whether there was no such message before.
        created: bool,
    },
    /// A message was deleted.
    Deleted,
    /// When a message expires was changed.
    ExpirySet,
    /// The condition did not hold; the revision that the message had.
    Mismatch(Option<Revision>),
    /// A step of a transaction: nothing, because of the step at this position.
    NotApplied {
        /// From 0 on.
        position: u32,
    },
    /// A step of a transaction: a read, which a repeat does anew.
    Read,
    /// There was no message to delete.
    NotFound,
    /// All messages of a bulk write were stored.
    Bulk {
        /// The lowest id.
        first: u64,
        /// The highest id.
        last: u64,
    },
}

/// What a token was used for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Use {
    /// For a write that is complete.
    Done(Outcome),
    /// For a bulk write that is under way, or was given up on the way.
    Bulk(Progress),
    /// For a transaction: what became of each of its steps.
    Transaction(Arc<[Outcome]>),
}

#[derive(Clone, Debug)]
struct Remembered {
    /// Live while the clock is below it.
    expires_ms: u64,
    used: Use,
}

/// A part of the table: what its tokens were used for.
type Shard = Arc<BTreeMap<Token, Remembered>>;

/// The table.
#[derive(Debug)]
pub struct Tokens {
    shards: Vec<Shard>,
    /// When each token expires.
    expiry: BTreeSet<(u64, Token)>,
    /// The highest time of any command, in milliseconds since the Unix epoch.
    clock_ms: u64,
    /// See [`Use::weight`].
    weight: usize,
    /// [`WEIGHT_MAX`], less in tests.
    weight_max: usize,
}

/// The table at one index, for a snapshot.
pub(super) struct Frozen {
    shards: std::vec::IntoIter<Shard>,
    /// What is left of the one before.
    shard: std::collections::btree_map::IntoIter<Token, Remembered>,
}

impl Default for Tokens {
    fn default() -> Tokens {
        Tokens::new(WEIGHT_MAX)
    }
}

impl Use {
    fn weight(&self) -> usize {
        match self {
            Use::Done(_) => 1,
            Use::Bulk(progress) => progress.stored().len().max(1),
            Use::Transaction(outcomes) => outcomes.len(),
        }
    }
}

impl Tokens {
    pub(super) fn new(weight_max: usize) -> Tokens {
        Tokens {
            shards: vec![Shard::default(); SHARDS],
            expiry: BTreeSet::new(),
            clock_ms: 0,
            weight: 0,
            weight_max,
        }
    }

    /// A command of this time, which may add `room` to the weight: tokens that are not live go.
    pub(super) fn advance(&mut self, now_ms: u64, room: usize) {
        self.clock_ms = self.clock_ms.max(now_ms);
        for _ in 0..SWEPT_MAX + room {
            match self.expiry.first() {
                Some((expires_ms, token)) if *expires_ms <= self.clock_ms => {
                    let token = token.clone();
                    self.forget(&token);
                }
                Some(_) | None => break,
            }
        }
    }

    /// What a token was used for, if it is live.
    pub(super) fn find(&self, token: &Token) -> Option<&Use> {
        let found = self.shards[shard_of(token)].get(token)?;
        (found.expires_ms > self.clock_ms).then_some(&found.used)
    }

    /// Whether one more fits: a token, or a gap in a bulk write.
    pub(super) fn has_room(&self) -> bool {
        self.weight < self.weight_max
    }

    /// Whether a transaction of so many steps fits.
    pub(super) fn has_room_for(&self, steps: usize) -> bool {
        self.weight + steps <= self.weight_max
    }

    /// What becomes of a write with this token without being done: it is a repeat, or is refused.
    pub(super) fn passes_over(&self, token: &Token) -> Option<OperationResult> {
        match self.find(token) {
            Some(Use::Done(first)) => Some(OperationResult::Repeated(*first)),
            Some(Use::Bulk(_)) => Some(OperationResult::Refused(TokenRefusal::InUse)),
            Some(Use::Transaction(_)) => Some(OperationResult::Refused(TokenRefusal::Used)),
            None if !self.has_room() => Some(OperationResult::Refused(TokenRefusal::TooMany)),
            None => None,
        }
    }

    /// Whether one more range fits into a progress that was taken.
    pub(super) fn has_room_beside(&self, progress: &Progress) -> bool {
        let ranges = progress.stored().len();
        ranges < RANGES_MAX && self.weight + ranges < self.weight_max
    }

    /// Remembers a token, or its new use, for `window_ms` from now on.
    pub(super) fn remember(&mut self, token: &Token, used: Use, window_ms: u64) {
        self.insert(token, used, self.clock_ms.saturating_add(window_ms));
    }

    /// Takes the progress of a live bulk write that is under way, to be put back by `remember`.
    pub(super) fn take_progress(&mut self, token: &Token) -> Option<Progress> {
        let Some(Use::Bulk(_)) = self.find(token) else {
            return None;
        };
        match self.forget(token) {
            Some(Use::Bulk(progress)) => Some(progress),
            Some(Use::Done(_) | Use::Transaction(_)) | None => {
                unreachable!("it was found as a bulk write")
            }
        }
    }

    /// The highest time of any command, in milliseconds since the Unix epoch; 0 before the first.
    pub fn clock_ms(&self) -> u64 {
        self.clock_ms
    }

    /// How many tokens are remembered, live or not.
    pub fn len(&self) -> usize {
        self.expiry.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.expiry.is_empty()
    }

    fn insert(&mut self, token: &Token, used: Use, expires_ms: u64) {
        self.forget(token);
        self.weight += used.weight();
        let remembered = Remembered { expires_ms, used };
        Arc::make_mut(&mut self.shards[shard_of(token)]).insert(token.clone(), remembered);
        self.expiry.insert((expires_ms, token.clone()));
    }

    fn forget(&mut self, token: &Token) -> Option<Use> {
        let shard = &mut self.shards[shard_of(token)];
        if !shard.contains_key(token) {
            return None;
        }
        let old = Arc::make_mut(shard).remove(token)?;
        self.weight -= old.used.weight();
        self.expiry.remove(&(old.expires_ms, token.clone()));
        Some(old.used)
    }

    /// The table as it is now.
    pub(super) fn freeze(&self) -> Frozen {
        Frozen {
            shards: self.shards.clone().into_iter(),
            shard: BTreeMap::new().into_iter(),
        }
    }

    /// The clock of a snapshot, whose tokens follow.
    pub(super) fn restore_clock(&mut self, clock_ms: u64) {
        self.clock_ms = clock_ms;
    }

    /// A token of a snapshot; false if it is there already.
    fn restore(&mut self, token: &Token, used: Use, expires_ms: u64) -> bool {
        let is_new = !self.shards[shard_of(token)].contains_key(token);
        self.insert(token, used, expires_ms);
        is_new
    }

    /// Adds the table to a digest of the state; an empty one that was never used adds nothing.
    pub(super) fn digest(&self, digest: &mut Digest) {
        if self.clock_ms == 0 && self.is_empty() {
            return;
        }
        let entries = self.shards.iter().flat_map(|shard| shard.iter());
        let sum = entries.map(|(token, remembered)| {
            let mut bytes = Vec::new();
            bytes::put_use(&mut bytes, &remembered.used);
            let mut digest = Digest::default();
            digest.text(token.as_str());
            digest.number(remembered.expires_ms);
            digest.bytes(&bytes);
            digest.value()
        });
        digest.number(self.clock_ms);
        digest.number(sum.fold(0, u64::wrapping_add));
    }
}

fn shard_of(token: &Token) -> usize {
    let bytes = token.as_str().bytes();
    let hash = bytes.fold(0_u64, |hash, byte| mix(hash ^ u64::from(byte)));
    hash as usize % SHARDS
}
