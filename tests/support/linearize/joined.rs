//! The search for an order of requests on keys that belong together; `decide` says how far it goes.
//!
//! It goes from one answered request to the next. Where one fits what is stored, it is placed; else
//! chains of unknown requests are tried before it, short ones first, none of them before all
//! answered ones that could come next were tried without. A chain is looked for in what can be
//! reached through unknown requests from here, each state once; only those on its own keys matter
//! to a request, and those on the keys of these.
//!
//! What keeps it small, without losing an order:
//!
//! * a read that the present state satisfies is placed at once;
//! * of unknown requests that do the same, the one called first is the next;
//! * an unknown one that may as well come behind the request that its chain leads to waits;
//! * what no answer to come can tell apart is one: values and revisions that nobody will see;
//! * what an answer to come needs, and nothing to come can bring back, must not be lost;
//! * a state that was left before, with the same answered requests placed and no more of the
//!   unknown ones used up, leads to nothing.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};

use rustc_hash::{FxHashMap, FxHashSet, FxHasher};

use super::super::history::Moment;
use super::needs::Needs;
use super::parts::{Act, Facts, Op, State};
use super::register::{Verdict, mix};
use super::ring::Ring;

/// As many comparisons take as long as a state.
const COMPARED_PER_STATE: usize = 2_000;

/// Unknown requests that are placed one after another, and the way of each.
type Chain = Vec<(usize, usize)>;

/// An answered request that can come next, behind a chain.
struct Choice {
    chain: Chain,
    op: usize,
    state: State,
}

/// What can be reached from a state through unknown requests that matter to an answered one.
struct Reach {
    op: usize,
    /// Those that matter.
    unknown: Vec<usize>,
    /// The longest chains so far.
    chains: Vec<(Chain, State)>,
    seen: FxHashMap<State, Vec<Chain>>,
}

/// What is stored when an answered request and the reads behind it are placed.
struct Level {
    state: State,
    /// What was placed to come here.
    placed: Vec<usize>,
    /// Unknown requests used up, by position.
    used: Option<usize>,
    /// The next one to try without a chain: its position among the candidates, and its way.
    next: (usize, usize),
    /// Then those with chains.
    choices: Vec<Choice>,
    reaches: Option<Vec<Reach>>,
    length: usize,
}

/// The last unknown request used up, and by position those before it.
struct Used {
    op: usize,
    before: Option<usize>,
}

/// The search.
pub(super) struct Search<'a> {
    ops: &'a [Op],
    facts: Facts,
    needs: Needs,
    /// Those that must be placed and are not.
    ring: Ring,
    /// The unknown ones on each slot, by their calls.
    unknown: Vec<Vec<usize>>,
    /// Of unknown ones that do the same, by the first of them: the one called first is the next.
    classes: Vec<usize>,
    is_placed: Vec<bool>,
    required: usize,
    left: usize,
    levels: Vec<Level>,
    /// Of the answered ones that are placed.
    hash: u128,
    /// What was used up, by what was placed and is stored.
    visited: FxHashMap<u128, Vec<Option<usize>>>,
    /// All lists of what was used up.
    used: Vec<Used>,
    pub states: usize,
    states_max: usize,
    /// Comparisons with chains that were seen, which may take longer than all else.
    compared: usize,
    /// How long chains may be.
    pub chain_max: usize,
    /// Longer chains were left out.
    pub has_more: bool,
    pub deepest: usize,
}

impl<'a> Search<'a> {
    pub fn new(ops: &'a [Op]) -> Search<'a> {
        let slots = ops.iter().flat_map(|op| &op.acts).map(|act| act.slot);
        let slots = slots.max().map_or(0, |slot| slot + 1);
        let mut events = Vec::with_capacity(2 * ops.len());
        let mut unknown = vec![Vec::new(); slots];
        for (index, op) in ops.iter().enumerate() {
            match op.end {
                Some(end) => events.extend([(op.call, 2 * index), (end, 2 * index + 1)]),
                None if op.is_read() => {}
                None => op.slots().for_each(|slot| unknown[slot].push(index)),
            }
        }
        for one in &mut unknown {
            one.sort_unstable_by_key(|index| (ops[*index].call, *index));
            one.dedup();
        }
        Search {
            ops,
            facts: Facts::new(ops),
            needs: Needs::new(ops),
            unknown,
            classes: classes(ops),
            is_placed: vec![false; ops.len()],
            required: events.len() / 2,
            left: events.len() / 2,
            ring: Ring::new(events, ops.len()),
            levels: Vec::new(),
            hash: 0,
            visited: FxHashMap::default(),
            used: Vec::new(),
            states: 0,
            states_max: usize::MAX,
            compared: 0,
            chain_max: usize::MAX,
            has_more: false,
            deepest: 0,
        }
    }

    /// Looks for an order of all, or stops where `depth` of them are placed.
    pub fn run(&mut self, states_max: usize, depth: Option<usize>) -> Verdict {
        let first = Choice {
            chain: Vec::new(),
            op: usize::MAX,
            state: vec![None; self.unknown.len()],
        };
        self.states_max = states_max;
        self.enter(first);
        loop {
            if self.left == 0 {
                return Verdict::Right;
            }
            let is_deep = depth.is_some_and(|depth| self.required - self.left >= depth);
            if is_deep || self.is_at_bound() {
                return Verdict::Undecided;
            }
            match self.choice() {
                Some(choice) => self.enter(choice),
                // Chains may have been left out.
                None if self.is_at_bound() => return Verdict::Undecided,
                None => {
                    self.leave();
                    if self.levels.is_empty() {
                        return Verdict::Wrong;
                    }
                }
            }
        }
    }

    fn is_at_bound(&self) -> bool {
        self.states + self.compared / COMPARED_PER_STATE > self.states_max
    }

    /// The next choice from here.
    fn choice(&mut self) -> Option<Choice> {
        let here = self.levels.len() - 1;
        let (mut position, mut way) = self.levels[here].next;
        let until = self.until();
        for op in self.candidates().into_iter().skip(position) {
            let state = &self.levels[here].state;
            while let Some(result) = self.facts.attempt(state, &self.ops[op], way, until) {
                way += 1;
                if let Some(state) = result {
                    self.levels[here].next = (position, way);
                    let chain = Vec::new();
                    return Some(Choice { chain, op, state });
                }
            }
            (position, way) = (position + 1, 0);
        }
        self.levels[here].next = (position, 0);
        loop {
            if let Some(choice) = self.levels[here].choices.pop() {
                return Some(choice);
            }
            let mut reaches = match self.levels[here].reaches.take() {
                Some(reaches) => reaches,
                None => self.reaches(),
            };
            reaches.retain(|reach| !reach.chains.is_empty() && !reach.unknown.is_empty());
            if reaches.is_empty() {
                self.levels[here].reaches = Some(reaches);
                return None;
            }
            if self.levels[here].length == self.chain_max {
                self.has_more = true;
                return None;
            }
            self.levels[here].length += 1;
            let mut choices = Vec::new();
            for reach in &mut reaches {
                self.lengthen(reach, &mut choices);
            }
            choices.reverse();
            self.levels[here].choices = choices;
            self.levels[here].reaches = Some(reaches);
        }
    }

    /// What can be reached before each candidate, to begin with.
    fn reaches(&self) -> Vec<Reach> {
        let state = &self.levels[self.levels.len() - 1].state;
        let reach = |op: usize| Reach {
            op,
            unknown: self.that_matter(op),
            chains: vec![(Vec::new(), state.clone())],
            seen: FxHashMap::from_iter([(state.clone(), vec![Vec::new()])]),
        };
        self.candidates().into_iter().map(reach).collect()
    }

    /// Unknown requests on the keys of this one, on those of these, and so on, by their calls.
    fn that_matter(&self, op: usize) -> Vec<usize> {
        let until = self.first_end();
        let mut slots: Vec<usize> = self.ops[op].slots().collect();
        let mut found = FxHashSet::default();
        let mut done = 0;
        while done < slots.len() {
            let unknown = self.unknown[slots[done]].iter();
            let is_called = |op: &&usize| until.is_none_or(|until| self.ops[**op].call < until);
            for op in unknown.take_while(is_called) {
                if !self.is_placed[*op] && found.insert(*op) {
                    let more = self.ops[*op].slots();
                    let more: Vec<usize> = more.filter(|slot| !slots.contains(slot)).collect();
                    slots.extend(more);
                }
            }
            done += 1;
        }
        let mut found: Vec<usize> = found.into_iter().collect();
        found.sort_unstable_by_key(|op| (self.ops[*op].call, *op));
        found
    }

    /// Chains longer by one, and what comes behind them.
    fn lengthen(&mut self, reach: &mut Reach, choices: &mut Vec<Choice>) {
        let until = self.until();
        for (chain, before) in std::mem::take(&mut reach.chains) {
            let mut classes = FxHashSet::default();
            for op in &reach.unknown {
                let is_used = chain.iter().any(|(used, _)| used == op);
                if is_used || !classes.insert(self.classes[*op]) {
                    continue;
                }
                let mut way = 0;
                while let Some(result) = self.facts.attempt(&before, &self.ops[*op], way, until) {
                    let link = (*op, way);
                    way += 1;
                    let Some(state) = result.filter(|state| *state != before) else {
                        continue;
                    };
                    let mut longer = chain.clone();
                    longer.push(link);
                    if self.is_at_bound() {
                        return;
                    }
                    let is_part = |less: &Chain| less.iter().all(|one| holds(&longer, one.0));
                    let seen = reach.seen.entry(state.clone()).or_default();
                    self.compared += 1 + seen.len();
                    if seen.iter().any(is_part) {
                        continue;
                    }
                    seen.push(longer.clone());
                    self.states += 1;
                    self.choices_behind(&longer, reach.op, &state, choices);
                    reach.chains.push((longer, state));
                }
            }
        }
    }

    fn choices_behind(&self, chain: &Chain, op: usize, state: &State, choices: &mut Vec<Choice>) {
        let until = self.until();
        let mut way = 0;
        while let Some(result) = self.facts.attempt(state, &self.ops[op], way, until) {
            if let Some(state) = result
                && !self.can_wait(chain, (op, way), &state)
            {
                let chain = chain.clone();
                choices.push(Choice { chain, op, state });
            }
            way += 1;
        }
    }

    /// Whether one of a chain may be left out, or as well come behind the request.
    fn can_wait(&self, chain: &Chain, last: (usize, usize), after: &State) -> bool {
        let until = self.until();
        let go = |state: &State, (op, way): (usize, usize)| {
            self.facts
                .attempt(state, &self.ops[op], way, until)
                .flatten()
        };
        (0..chain.len()).any(|without| {
            let mut state = self.levels[self.levels.len() - 1].state.clone();
            for (position, link) in chain.iter().enumerate() {
                if position != without {
                    // An unknown one that does nothing is left out, too.
                    state = go(&state, *link).unwrap_or(state);
                }
            }
            let Some(state) = go(&state, last) else {
                return false;
            };
            state == *after || go(&state, chain[without]).as_ref() == Some(after)
        })
    }

    /// Goes on with a choice, unless that leads to nothing.
    fn enter(&mut self, choice: Choice) {
        let Choice { chain, op, state } = choice;
        let mut used = self.levels.last().and_then(|level| level.used);
        let mut placed = Vec::with_capacity(chain.len() + 1);
        for (op, _) in &chain {
            let (op, before) = (*op, used);
            self.used.push(Used { op, before });
            used = Some(self.used.len() - 1);
            placed.push(op);
        }
        placed.extend(Some(op).filter(|op| *op < self.ops.len()));
        placed.iter().for_each(|op| self.place(*op));
        let is_lost = self.levels.last().is_some_and(|before| {
            let ops = placed.iter().map(|op| &self.ops[*op]);
            self.needs.is_lost(ops, &before.state, &state)
        });
        self.levels.push(Level {
            state,
            placed,
            used,
            next: (0, 0),
            choices: Vec::new(),
            reaches: None,
            length: 0,
        });
        self.place_reads();
        self.deepest = self.deepest.max(self.required - self.left);
        if self.left > 0 && (is_lost || self.was_here()) {
            self.leave();
        }
    }

    /// Whether the search was here before, with no more used up.
    fn was_here(&mut self) -> bool {
        let until = self.until();
        let level = self.levels.last_mut().expect("just entered");
        self.needs.forget(&mut level.state, until);
        let half = |seed: u64| {
            let mut hasher = FxHasher::default();
            (seed, &level.state).hash(&mut hasher);
            hasher.finish()
        };
        let hash = u128::from(half(1)) << 64 | u128::from(half(0x9e37_79b9_7f4a_7c15));
        let before = self.visited.entry(self.hash ^ hash).or_default();
        let is_less = |of: &Option<usize>| {
            let used = |position: Option<usize>| position.map(|position| &self.used[position]);
            let mut all = std::iter::successors(used(*of), |one| used(one.before));
            all.all(|one| self.is_placed[one.op])
        };
        if before.iter().any(is_less) {
            return true;
        }
        before.push(level.used);
        self.states += 1;
        false
    }

    /// Places the reads that the present state satisfies: they change nothing.
    fn place_reads(&mut self) {
        let mut event = self.ring.first();
        while self.ring.is_call(event) {
            let (op, before) = (event / 2, self.ring.before(event));
            let here = self.levels.len() - 1;
            let state = &self.levels[here].state;
            let is_satisfied = self.ops[op].is_read()
                && matches!(
                    self.facts.attempt(state, &self.ops[op], 0, self.until()),
                    Some(Some(_))
                );
            event = match is_satisfied {
                true => {
                    self.place(op);
                    self.levels[here].placed.push(op);
                    self.ring.after(before)
                }
                false => self.ring.after(event),
            };
        }
    }

    /// Answered ones that may come next: called before the first end. Those that end first, first.
    fn candidates(&self) -> Vec<usize> {
        let mut found: Vec<usize> = self.ring.candidates().collect();
        found.sort_unstable_by_key(|op| (self.ops[*op].end, *op));
        found
    }

    /// The first end of one that is not placed.
    fn first_end(&self) -> Option<Moment> {
        self.ring.ends_first().and_then(|op| self.ops[op].end)
    }

    fn until(&self) -> Option<u64> {
        self.first_end().map(|end| end.time)
    }

    fn place(&mut self, op: usize) {
        self.is_placed[op] = true;
        self.needs.place(&self.ops[op]);
        if self.ops[op].end.is_some() {
            self.left -= 1;
            self.hash ^= mix(0, op, 0);
            self.ring.take(op);
        }
    }

    /// Goes back by a choice and what followed from it.
    fn leave(&mut self) {
        let level = self.levels.pop().expect("entered before");
        for op in level.placed.into_iter().rev() {
            self.is_placed[op] = false;
            self.needs.take_back(&self.ops[op]);
            if self.ops[op].end.is_some() {
                self.left += 1;
                self.hash ^= mix(0, op, 0);
                self.ring.put_back(op);
            }
        }
    }

    /// The placed ones in order.
    pub fn order(&self) -> Vec<usize> {
        let placed = self.levels.iter().flat_map(|level| &level.placed);
        placed.copied().collect()
    }
}

fn holds(chain: &Chain, op: usize) -> bool {
    chain.iter().any(|(one, _)| *one == op)
}

/// The first of those unknown ones that do the same as each.
fn classes(ops: &[Op]) -> Vec<usize> {
    let mut first = HashMap::new();
    let class = |(index, op): (usize, &Op)| {
        let is_like_others = op.end.is_none() && !op.acts.iter().any(Act::lives);
        match is_like_others {
            true => *first
                .entry(format!("{:?} {}", op.acts, op.is_atomic))
                .or_insert(index),
            false => index,
        }
    };
    ops.iter().enumerate().map(class).collect()
}
