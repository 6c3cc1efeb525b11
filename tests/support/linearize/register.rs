//! The search for an order of the operations on one key.
//!
//! It is a depth-first one that places an operation at a time and remembers which sets of placed
//! operations it has seen with which value, by a 128-bit hash: a collision is out of reach.
//! Three things keep it small without losing an order: a read that the present value satisfies is
//! placed at once; unknown writes, which can wait for ever, are placed only just before an
//! operation that needs them; values that nobody read are one value. Neither the stack nor the work
//! for an operation grows with the length of the history, only with what is concurrent.

use rustc_hash::FxHashSet;

use super::super::history::Moment;
use super::narrow::narrowed;
use super::ring::Ring;
use super::split::{ABSENT, Action, Step, UNREAD, Value};

/// States that a try to narrow a failure may visit, where giving up costs only a longer report.
const NARROWING_STATES_MAX: usize = 200_000;

/// Tries to leave something out of a failure.
const NARROWING_TRIES_MAX: usize = 2_000;

/// What a search found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Right,
    Wrong,
    /// The bound was reached, or the depth at which to stop.
    Undecided,
}

/// Unknown writes of one value (of [`ABSENT`]: deletes), which differ in nothing but their calls.
#[derive(Clone, Debug, Default)]
struct Spares {
    /// Calls in order, and the step of each.
    calls: Vec<(Moment, usize)>,
    /// How many of them are placed: always the earliest.
    used: usize,
}

/// A step that was placed.
#[derive(Clone, Copy, Debug)]
struct Placed {
    step: usize,
    /// The value before.
    before: Value,
    /// An unknown write of this value was placed just before it.
    spare: Option<Value>,
    /// Which of the ways to place the step this was; `None` if there was nothing to choose.
    way: Option<usize>,
}

/// The search for an order of the steps on one key.
pub(super) struct Search {
    /// Those that must be placed have an end.
    steps: Vec<Step>,
    /// Those of them that are not placed.
    ring: Ring,
    /// By value.
    spares: Vec<Spares>,
    /// Values that have spares, without [`ABSENT`].
    spare_values: Vec<Value>,
    /// Steps that must be placed.
    required: usize,
    /// The present value.
    value: Value,
    placed: Vec<Placed>,
    /// Hash of the set of placed steps.
    hash: u128,
    pub visited: FxHashSet<u128>,
    /// The most that were placed at once.
    pub deepest: usize,
}

impl Search {
    pub fn new(steps: &[Step]) -> Search {
        let mut steps = steps.to_vec();
        let most = |step: &Step| match step.action {
            Action::Write(value) | Action::See(value) => value,
            Action::Take | Action::Clear => UNREAD,
        };
        let values = 1 + steps.iter().map(most).max().unwrap_or(UNREAD);
        let mut is_read = vec![false; values.max(UNREAD + 1)];
        for step in &steps {
            if let Action::See(value) = step.action {
                is_read[value] = true;
            }
        }
        let mut spares = vec![Spares::default(); is_read.len()];
        let mut events = Vec::with_capacity(2 * steps.len());
        for (index, step) in steps.iter_mut().enumerate() {
            if let Action::Write(value) = &mut step.action {
                *value = if is_read[*value] { *value } else { UNREAD };
            }
            match (step.end, step.action) {
                (Some(end), _) => {
                    events.extend([(step.call, 2 * index), (end, 2 * index + 1)]);
                }
                (None, Action::Write(value)) => spares[value].calls.push((step.call, index)),
                (None, Action::Clear) => spares[ABSENT].calls.push((step.call, index)),
                // Nobody was told.
                (None, Action::See(_) | Action::Take) => {}
            }
        }
        spares
            .iter_mut()
            .for_each(|spares| spares.calls.sort_unstable());
        let has_spares = |value: &Value| !spares[*value].calls.is_empty();
        let spare_values = (UNREAD..spares.len()).filter(has_spares).collect();
        Search {
            required: events.len() / 2,
            ring: Ring::new(events, steps.len()),
            steps,
            spares,
            spare_values,
            value: ABSENT,
            placed: Vec::new(),
            hash: 0,
            visited: FxHashSet::default(),
            deepest: 0,
        }
    }

    /// Looks for an order of all steps, or stops where `depth` of them are placed.
    pub fn run(&mut self, states_max: usize, depth: Option<usize>) -> Verdict {
        self.place_reads();
        let mut from = (self.ring.first(), 0);
        loop {
            self.deepest = self.deepest.max(self.placed.len());
            if self.placed.len() == self.required {
                return Verdict::Right;
            }
            if depth.is_some_and(|depth| self.placed.len() >= depth) {
                return Verdict::Undecided;
            }
            if let Some(choice) = self.choice(from) {
                self.place(choice);
                self.place_reads();
                if self.visited.insert(self.hash ^ mix(2, self.value, 0)) {
                    if self.visited.len() > states_max {
                        return Verdict::Undecided;
                    }
                    from = (self.ring.first(), 0);
                    continue;
                }
            }
            match self.undo() {
                Some(next) => from = next,
                None => return Verdict::Wrong,
            }
        }
    }

    /// The first way to place a step, from this event and its way on.
    fn choice(&self, (mut event, mut way): (usize, usize)) -> Option<Placed> {
        while self.ring.is_call(event) {
            if let Some(spare) = self.way(event / 2, way) {
                return Some(Placed {
                    step: event / 2,
                    before: self.value,
                    spare,
                    way: Some(way),
                });
            }
            (event, way) = (self.ring.after(event), 0);
        }
        None
    }

    /// The given way to place a step now, if there are so many: with which spare before it, if any.
    fn way(&self, step: usize, way: usize) -> Option<Option<Value>> {
        match self.steps[step].action {
            Action::Write(_) => (way == 0).then_some(None),
            Action::See(value) if value == self.value => (way == 0).then_some(None),
            Action::See(value) => (way == 0 && self.has_spare(value)).then_some(Some(value)),
            Action::Take if self.value != ABSENT => (way == 0).then_some(None),
            // A value that nobody read serves for nothing else, so it is no loss.
            Action::Take if self.has_spare(UNREAD) => (way == 0).then_some(Some(UNREAD)),
            Action::Take => {
                let mut values = self.spare_values.iter().copied();
                let spare = values
                    .by_ref()
                    .filter(|value| self.has_spare(*value))
                    .nth(way);
                spare.map(Some)
            }
            Action::Clear => unreachable!("a delete of unknown outcome has no end"),
        }
    }

    /// Whether there is an unknown write of this value that can come next.
    fn has_spare(&self, value: Value) -> bool {
        let spares = &self.spares[value];
        let Some((call, _)) = spares.calls.get(spares.used) else {
            return false;
        };
        let end = self.ring.ends_first().and_then(|step| self.steps[step].end);
        end.is_none_or(|end| *call < end)
    }

    /// Places the reads that the present value satisfies. They change nothing, so there is no
    /// order that only exists with one of them later.
    fn place_reads(&mut self) {
        let mut event = self.ring.first();
        while self.ring.is_call(event) {
            let before = self.ring.before(event);
            if self.steps[event / 2].action == Action::See(self.value) {
                self.place(Placed {
                    step: event / 2,
                    before: self.value,
                    spare: None,
                    way: None,
                });
                event = self.ring.after(before);
            } else {
                event = self.ring.after(event);
            }
        }
    }

    fn place(&mut self, placed: Placed) {
        if let Some(value) = placed.spare {
            self.hash ^= mix(1, value, self.spares[value].used);
            self.spares[value].used += 1;
        }
        self.hash ^= mix(0, placed.step, 0);
        self.value = match self.steps[placed.step].action {
            Action::Write(value) | Action::See(value) => value,
            Action::Take | Action::Clear => ABSENT,
        };
        self.ring.take(placed.step);
        self.placed.push(placed);
    }

    /// Takes back the last choice and what followed from it; says from where to choose again.
    fn undo(&mut self) -> Option<(usize, usize)> {
        while let Some(placed) = self.placed.pop() {
            self.ring.put_back(placed.step);
            self.value = placed.before;
            self.hash ^= mix(0, placed.step, 0);
            if let Some(value) = placed.spare {
                self.spares[value].used -= 1;
                self.hash ^= mix(1, value, self.spares[value].used);
            }
            if let Some(way) = placed.way {
                return Some((2 * placed.step, way + 1));
            }
        }
        None
    }

    /// The placed steps in order, with the unknown writes between them.
    pub fn order(&self) -> Vec<usize> {
        let mut used = vec![0; self.spares.len()];
        let mut order = Vec::new();
        for placed in &self.placed {
            if let Some(value) = placed.spare {
                order.push(self.spares[value].calls[used[value]].1);
                used[value] += 1;
            }
            order.push(placed.step);
        }
        order
    }
}

/// A hash for a member of a set; those of a set's members are joined by exclusive or.
pub(super) fn mix(kind: u64, a: usize, b: usize) -> u128 {
    let half = |seed: u64| {
        let mut x = seed ^ (kind << 62);
        for part in [a as u64, b as u64] {
            // The finisher of SplitMix64.
            x = (x ^ part).wrapping_add(0x9e37_79b9_7f4a_7c15);
            x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            x ^= x >> 31;
        }
        x
    };
    u128::from(half(0x243f_6a88_85a3_08d3)) << 64 | u128::from(half(0x1319_8a2e_0370_7344))
}

/// Leaves out what a failure does not need: a read is dropped, a write is made unknown.
pub(super) fn narrow(steps: &[Step]) -> Vec<Step> {
    let forget = |step: &mut Step| {
        step.end = None;
        if step.action == Action::Take {
            step.action = Action::Clear;
        }
    };
    let is_wrong =
        |steps: &[Step]| Search::new(steps).run(NARROWING_STATES_MAX, None) == Verdict::Wrong;
    let is_answered = |step: &Step| step.end.is_some();
    narrowed(steps, NARROWING_TRIES_MAX, is_answered, forget, is_wrong)
}
