//! What the answers to come need of what is stored. Pure.
//!
//! Counts, over the requests that are not placed yet: who reads a value, who can store it, who asks
//! for a revision. From these follow what must not be lost, and what need not be told apart.

use rustc_hash::FxHashMap;

use super::super::history::Condition;
use super::parts::{Act, Ask, Op, State, Told};
use super::split::{UNREAD, Value};

/// A revision that no answer to come speaks of.
const FORGOTTEN: u64 = 0;

/// The counts.
#[derive(Default)]
pub(super) struct Needs {
    /// Answers that show a value of a slot.
    reads: FxHashMap<(usize, Value), u32>,
    /// Requests that would store it.
    writes: FxHashMap<(usize, Value), u32>,
    /// Answers that need a revision to be there.
    revisions: FxHashMap<u64, u32>,
    /// Requests and answers that name it.
    mentions: FxHashMap<u64, u32>,
}

impl Needs {
    /// Of all that is to be placed or may be.
    pub fn new(ops: &[Op]) -> Needs {
        let mut needs = Needs::default();
        ops.iter().for_each(|op| needs.take_back(op));
        needs
    }

    /// One is placed.
    pub fn place(&mut self, op: &Op) {
        self.count(op, |count| *count -= 1);
    }

    /// One is not placed any more.
    pub fn take_back(&mut self, op: &Op) {
        self.count(op, |count| *count += 1);
    }

    fn count(&mut self, op: &Op, change: impl Fn(&mut u32)) {
        for act in &op.acts {
            if let Some(Told::Found(value, _)) = act.told {
                change(self.reads.entry((act.slot, value)).or_default());
            }
            if let Ask::Set(value, _) = act.ask
                && value != UNREAD
            {
                change(self.writes.entry((act.slot, value)).or_default());
            }
            if let Some(revision) = needed(act) {
                change(self.revisions.entry(revision).or_default());
            }
            for revision in [asked(act), told(act)].into_iter().flatten() {
                change(self.mentions.entry(revision).or_default());
            }
        }
    }

    /// Whether something needed is gone for good: by requests, that are placed now, between these
    /// states.
    pub fn is_lost<'a>(
        &self,
        ops: impl Iterator<Item = &'a Op>,
        before: &State,
        after: &State,
    ) -> bool {
        ops.flat_map(|op| &op.acts).any(|act| {
            let now = after[act.slot];
            let was = before[act.slot];
            let stored = match act.ask {
                Ask::Set(value, _) => Some(value),
                _ => None,
            };
            let is_lost = |value: Value| {
                now.is_none_or(|now| now.value != value)
                    && has(&self.reads, &(act.slot, value))
                    && !has(&self.writes, &(act.slot, value))
            };
            let is_gone = |revision: u64| {
                now.is_none_or(|now| now.revision != Some(revision))
                    && has(&self.revisions, &revision)
            };
            was.map(|was| was.value)
                .into_iter()
                .chain(stored)
                .any(is_lost)
                || was.and_then(|was| was.revision).is_some_and(is_gone)
        })
    }

    /// Makes one of what no answer to come can tell apart. All such answers come after `until`.
    pub fn forget(&self, state: &mut State, until: Option<u64>) {
        for (slot, message) in state.iter_mut().enumerate() {
            let Some(message) = message else { continue };
            if !has(&self.reads, &(slot, message.value)) {
                message.value = UNREAD;
            }
            if let Some(revision) = &mut message.revision
                && !has(&self.mentions, revision)
            {
                *revision = FORGOTTEN;
            }
            if let Some((least, _)) = &mut message.vanishes
                && until.is_none_or(|until| *least <= until)
            {
                *least = 0;
            }
        }
    }
}

fn has<K: std::hash::Hash + Eq>(counts: &FxHashMap<K, u32>, of: &K) -> bool {
    counts.get(of).is_some_and(|count| *count > 0)
}

/// The revision that its condition names.
fn asked(act: &Act) -> Option<u64> {
    match act.condition {
        Some(Condition::Revision(revision)) => Some(revision),
        Some(Condition::Absent | Condition::Exists) | None => None,
    }
}

/// The revision that was found there.
fn told(act: &Act) -> Option<u64> {
    match act.told {
        Some(Told::Found(_, revision) | Told::Mismatch(revision)) => revision,
        _ => None,
    }
}

/// The revision that must be there for it to be answered so.
fn needed(act: &Act) -> Option<u64> {
    match act.told {
        None | Some(Told::NotApplied | Told::Failed) => None,
        Some(Told::Mismatch(revision)) => revision,
        Some(_) => told(act).or(asked(act)),
    }
}
