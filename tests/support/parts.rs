//! The search where several keys belong together, or more than a value matters: conditions,
//! revisions, batches, times to live.
//!
//! Keys that one request names are searched as one. The state is what is stored under each: value,
//! revision, and from when on and until when it may vanish. A request changes all of its keys at
//! one moment, or, if its answers do not fit the state, cannot come next.
//!
//! **Revisions.** That of a write is known from its answer, or from a read of its value if no other
//! write has it. What is not known may be any revision that no other write is known to have; that
//! it is always the same one is not checked.
//!
//! **Times to live.** A message may vanish just before a request that names it, if its least time
//! is over at the end of every request that comes later. A request that is called when the longest
//! time is over finds it gone. So it vanishes once, and never comes back.
//!
//! **Unknown requests** may come next at any time from their call on, or never, and are tried after
//! all others. They can wait, so one is placed only just before what needs it: not before a request
//! on other keys, which may come first, nor where the state behind the next one is the same without
//! it, and those on different keys in one order only.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};

use rustc_hash::{FxHashSet, FxHasher};

use super::super::history::{Condition, Life, Moment};
use super::{ABSENT, Action, UNREAD, Value, Verdict, mix};

/// States that a try to narrow a failure may visit, and how many tries there are: what is left out
/// becomes unknown, of which there are then many.
const NARROWING_STATES_MAX: usize = 2_000;
const NARROWING_TRIES_MAX: usize = 300;

/// What takes effect at one moment.
#[derive(Clone, Debug)]
pub(super) struct Op {
    /// By position.
    pub request: usize,
    pub call: Moment,
    /// When it was answered; `None`: at any time after the call, or never.
    pub end: Option<Moment>,
    pub acts: Vec<Act>,
    /// All or nothing.
    pub is_atomic: bool,
}

/// A part of it, on the key in this slot.
#[derive(Clone, Debug)]
pub(super) struct Act {
    pub slot: usize,
    pub condition: Option<Condition>,
    pub ask: Ask,
    /// `None`: not known.
    pub told: Option<Told>,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Ask {
    Set(Value, Option<Life>),
    Get,
    Del,
    Expire(Option<Life>),
    Left,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// The revision, if that was said.
    Stored(Option<u64>),
    Found(Value, Option<u64>),
    Done,
    NotFound,
    Mismatch(Option<u64>),
    NotApplied,
    /// Whether it is to expire.
    Left(bool),
    Failed,
}

impl Act {
    /// Whether it says how long a message stays.
    fn lives(&self) -> bool {
        matches!(self.ask, Ask::Set(_, Some(_)) | Ask::Expire(Some(_)))
    }
}

impl Op {
    /// A request of those that the other search knows.
    pub fn simple(request: usize, slot: usize, action: Action, times: Times) -> Op {
        let (ask, told) = match action {
            Action::Write(value) => (Ask::Set(value, None), Told::Stored(None)),
            Action::See(ABSENT) => (Ask::Get, Told::NotFound),
            Action::See(value) => (Ask::Get, Told::Found(value, None)),
            Action::Take | Action::Clear => (Ask::Del, Told::Done),
        };
        let act = Act {
            slot,
            condition: None,
            ask,
            told: times.1.map(|_| told),
        };
        Op {
            request,
            call: times.0,
            end: times.1,
            acts: vec![act],
            is_atomic: false,
        }
    }

    /// One whose parts take effect each on its own, and of which nothing is known: any of them may
    /// have been left out, so each may come by itself.
    pub fn split(self) -> Vec<Op> {
        if self.is_atomic || self.end.is_some() {
            return vec![self];
        }
        let (request, call) = (self.request, self.call);
        let single = |act: Act| Op {
            request,
            call,
            end: None,
            acts: vec![act],
            is_atomic: false,
        };
        self.acts.into_iter().map(single).collect()
    }

    fn is_read(&self) -> bool {
        let is_read = |act: &Act| matches!(act.ask, Ask::Get | Ask::Left);
        self.acts.iter().all(is_read)
    }
}

/// Call and end.
pub(super) type Times = (Moment, Option<Moment>);

/// What is stored under a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Message {
    value: Value,
    /// If it is known.
    revision: Option<u64>,
    /// From when on it may vanish, and until when.
    vanishes: Option<(u64, Option<u64>)>,
}

type State = Vec<Option<Message>>;

struct Placed {
    op: usize,
    before: State,
    way: usize,
    /// There was nothing to choose.
    is_forced: bool,
}

/// How many unknown requests in a row are tried at first: of many, nearly all do not matter, and
/// with so few an order is found soon if there is one.
const IN_A_ROW_MAX: usize = 3;

/// Whether the requests have an order, and how many states were visited.
pub(super) fn decide(ops: &[Op], states_max: usize) -> (Verdict, usize) {
    let mut states = 0;
    for in_a_row_max in [IN_A_ROW_MAX, usize::MAX] {
        let mut search = Search::new(ops);
        search.in_a_row_max = in_a_row_max;
        let verdict = search.run(states_max, None);
        states += search.visited.len();
        if verdict != Verdict::Wrong || !search.has_more {
            return (verdict, states);
        }
    }
    (Verdict::Wrong, states)
}

/// The search for an order of the requests on some keys.
pub(super) struct Search<'a> {
    ops: &'a [Op],
    /// Revisions that a write is known to have.
    known: FxHashSet<u64>,
    /// The revision of a value, where one write has that value.
    revisions: HashMap<(usize, Value), u64>,
    /// Those that must be placed: calls and ends in order, as a ring with a head.
    next: Vec<usize>,
    previous: Vec<usize>,
    /// The others, by their calls.
    optional: Vec<usize>,
    /// Of unknown ones that do the same, by the first of them: the one called first is the next.
    classes: Vec<usize>,
    is_placed: Vec<bool>,
    required: usize,
    left: usize,
    state: State,
    placed: Vec<Placed>,
    hash: u128,
    /// With the unknown ones that were placed last, as these decide what may follow.
    visited: FxHashSet<u128>,
    /// How many unknown ones may come next to each other, and whether more were tried.
    in_a_row_max: usize,
    has_more: bool,
    /// One of the unknown ones placed last is needed by nothing that follows.
    is_idle: bool,
    pub deepest: usize,
}

impl<'a> Search<'a> {
    pub fn new(ops: &'a [Op]) -> Search<'a> {
        let mut events = Vec::with_capacity(2 * ops.len());
        let mut optional = Vec::new();
        for (index, op) in ops.iter().enumerate() {
            match op.end {
                Some(end) => events.extend([(op.call, 2 * index), (end, 2 * index + 1)]),
                None if op.is_read() => {}
                None => optional.push(index),
            }
        }
        events.sort_unstable();
        optional.sort_unstable_by_key(|index| ops[*index].call);
        let head = 2 * ops.len();
        let mut next = vec![head; head + 1];
        let mut previous = next.clone();
        let mut last = head;
        for (_, event) in &events {
            (next[last], previous[*event]) = (*event, last);
            last = *event;
        }
        (next[last], previous[head]) = (head, last);
        let slots = ops.iter().flat_map(|op| &op.acts).map(|act| act.slot);
        let (known, revisions) = revisions(ops);
        Search {
            ops,
            known,
            revisions,
            next,
            previous,
            optional,
            classes: classes(ops),
            is_placed: vec![false; ops.len()],
            required: events.len() / 2,
            left: events.len() / 2,
            state: vec![None; slots.max().map_or(0, |slot| slot + 1)],
            placed: Vec::new(),
            hash: 0,
            visited: FxHashSet::default(),
            in_a_row_max: IN_A_ROW_MAX,
            has_more: false,
            is_idle: false,
            deepest: 0,
        }
    }

    /// Looks for an order of all, or stops where `depth` of them are placed.
    pub fn run(&mut self, states_max: usize, depth: Option<usize>) -> Verdict {
        self.place_reads();
        let mut from = (0, 0);
        loop {
            self.deepest = self.deepest.max(self.required - self.left);
            if self.left == 0 {
                return Verdict::Right;
            }
            if depth.is_some_and(|depth| self.required - self.left >= depth) {
                return Verdict::Undecided;
            }
            if let Some((op, way, state)) = self.choice(from) {
                self.place(op, way, state, false);
                self.place_reads();
                let is_idle = std::mem::take(&mut self.is_idle);
                if !is_idle && self.visited.insert(self.hash ^ self.state_hash()) {
                    if self.visited.len() > states_max {
                        return Verdict::Undecided;
                    }
                    from = (0, 0);
                    continue;
                }
            }
            match self.undo() {
                Some(next) => from = next,
                None => return Verdict::Wrong,
            }
        }
    }

    /// Those that may come next: answered ones that were called before the first end, then unknown
    /// ones called before it.
    fn candidates(&self) -> Vec<usize> {
        let mut found = Vec::new();
        let mut event = self.next[self.next.len() - 1];
        while event + 1 < self.next.len() && event.is_multiple_of(2) {
            found.push(event / 2);
            event = self.next[event];
        }
        let end = self.first_end();
        let is_called = |op: &&usize| end.is_none_or(|end| self.ops[**op].call < end);
        let unknown = self.optional.iter().take_while(is_called);
        let mut classes = FxHashSet::default();
        found.extend(
            unknown.filter(|op| !self.is_placed[**op] && classes.insert(self.classes[**op])),
        );
        found
    }

    /// The first end of one that is not placed.
    fn first_end(&self) -> Option<Moment> {
        let mut event = self.next[self.next.len() - 1];
        while event + 1 < self.next.len() && event.is_multiple_of(2) {
            event = self.next[event];
        }
        self.ops.get(event / 2).and_then(|op| op.end)
    }

    /// The first way to go on: from this candidate and its way on.
    fn choice(&mut self, (position, mut way): (usize, usize)) -> Option<(usize, usize, State)> {
        let candidates = self.candidates();
        let is_full = self.waiting().count() >= self.in_a_row_max;
        for op in candidates.into_iter().skip(position) {
            if is_full && self.ops[op].end.is_none() {
                self.has_more = true;
                break;
            }
            while let Some(result) = self.attempt(&self.state, op, way) {
                if let Some(state) = result
                    && !self.comes_too_late(op, way, &state)
                {
                    return Some((op, way, state));
                }
                way += 1;
            }
            way = 0;
        }
        None
    }

    /// The unknown ones that were placed last, the last one first.
    fn waiting(&self) -> impl Iterator<Item = &Placed> {
        let is_unknown = |placed: &&Placed| self.ops[placed.op].end.is_none();
        self.placed.iter().rev().take_while(is_unknown)
    }

    fn shares_key(&self, one: usize, other: usize) -> bool {
        let others = &self.ops[other].acts;
        let acts = &mut self.ops[one].acts.iter();
        acts.any(|act| others.iter().any(|other| other.slot == act.slot))
    }

    /// Whether one of the unknown ones that were placed last could as well come behind `next`.
    fn has_idle(&self, next: usize) -> bool {
        let mut behind = vec![next];
        for placed in self.waiting() {
            if !behind.iter().any(|op| self.shares_key(placed.op, *op)) {
                return true;
            }
            behind.push(placed.op);
        }
        false
    }

    /// Whether what leads to `state` may as well come in another order, or without the last one.
    fn comes_too_late(&self, op: usize, way: usize, state: &State) -> bool {
        let Some(last) = self.waiting().next() else {
            return false;
        };
        let is_unknown = self.ops[op].end.is_none();
        let is_turned = is_unknown
            && !self.shares_key(last.op, op)
            && (self.ops[op].call, op) < (self.ops[last.op].call, last.op);
        let is_useless = || self.attempt(&last.before, op, way).flatten().as_ref() == Some(state);
        is_turned || (!is_unknown && self.has_idle(op)) || is_useless()
    }

    /// The state after a request, some of whose messages have vanished before: bit by bit of `way`.
    /// `None`: there are not so many ways; inside it, that this one does not fit.
    fn attempt(&self, before: &State, op: usize, way: usize) -> Option<Option<State>> {
        let op = &self.ops[op];
        let end = self.first_end().map(|end| end.time);
        let mut slots: Vec<usize> = op.acts.iter().map(|act| act.slot).collect();
        slots.sort_unstable();
        slots.dedup();
        slots.retain(|slot| {
            let vanishes = before[*slot].and_then(|message| message.vanishes);
            vanishes.is_some_and(|(least, _)| end.is_none_or(|end| least <= end))
        });
        if way >> slots.len() != 0 {
            return None;
        }
        let mut state = before.clone();
        for (bit, slot) in slots.into_iter().enumerate() {
            if way >> bit & 1 == 1 {
                state[slot] = None;
            }
        }
        let is_over = |act: &Act| {
            let vanishes = state[act.slot].and_then(|message| message.vanishes);
            vanishes.is_some_and(|(_, most)| most.is_some_and(|most| most < op.call.time))
        };
        if op.end.is_some() && op.acts.iter().any(is_over) {
            return Some(None);
        }
        let is_right = self.perform(op, &mut state);
        // One that changes nothing and that nobody waits for is no step.
        let is_step = op.end.is_some() || state != *before;
        Some((is_right && is_step).then_some(state))
    }

    /// Does it; false if an answer does not fit.
    fn perform(&self, op: &Op, state: &mut State) -> bool {
        if !op.is_atomic {
            return op.acts.iter().all(|act| self.act(op, act, act.told, state));
        }
        let is_refusal = |act: &Act| {
            let is_read = matches!(act.ask, Ask::Get | Ask::Left);
            matches!(act.told, Some(Told::Mismatch(_) | Told::NotApplied))
                || (act.told == Some(Told::Failed) && !is_read)
        };
        let mut after = state.clone();
        if !op.acts.iter().any(is_refusal) {
            let is_done = op.acts.iter().all(|act| {
                self.holds(act, after[act.slot]) && self.act(op, act, act.told, &mut after)
            });
            if is_done {
                *state = after;
            }
            return is_done || op.end.is_none();
        }
        // Nothing happened; a condition was looked at as if those before it had.
        op.acts.iter().all(|act| match act.told {
            Some(Told::Mismatch(_)) => self.act(op, act, act.told, &mut after),
            told => {
                self.act(op, act, None, &mut after)
                    && (is_refusal(act) || told == Some(Told::Failed))
            }
        })
    }

    /// Does a part of a request; false if what was told does not fit.
    fn act(&self, op: &Op, act: &Act, told: Option<Told>, state: &mut State) -> bool {
        let present = state[act.slot];
        if told == Some(Told::Failed) {
            return true;
        }
        if let Some(Told::Mismatch(revision)) = told {
            let differs = match (act.condition, present) {
                (None, _) => false,
                (Some(Condition::Absent), present) => present.is_some(),
                (Some(Condition::Exists), present) => present.is_none(),
                (Some(Condition::Revision(asked)), _) => revision != Some(asked),
            };
            let fits = match (present, revision) {
                (None, None) => true,
                (Some(message), Some(revision)) => self.may_be(&message, revision),
                (None, Some(_)) | (Some(_), None) => false,
            };
            return differs && fits;
        }
        if !self.holds(act, present) {
            return told.is_none();
        }
        match (act.ask, present, told) {
            (Ask::Set(value, life), _, None | Some(Told::Stored(_))) => {
                let told = match told {
                    Some(Told::Stored(revision)) => revision,
                    _ => None,
                };
                let found = self.revisions.get(&(act.slot, value)).copied();
                state[act.slot] = Some(Message {
                    value,
                    revision: told.or(found),
                    vanishes: life.map(|life| span(op, life)),
                });
                true
            }
            (Ask::Get, Some(message), Some(Told::Found(value, revision))) => {
                message.value == value
                    && revision.is_none_or(|revision| self.may_be(&message, revision))
            }
            (Ask::Del, Some(_), None | Some(Told::Done)) => {
                state[act.slot] = None;
                true
            }
            (Ask::Expire(life), Some(mut message), None | Some(Told::Done)) => {
                message.vanishes = life.map(|life| span(op, life));
                state[act.slot] = Some(message);
                true
            }
            (Ask::Left, Some(message), Some(Told::Left(expires))) => {
                message.vanishes.is_some() == expires
            }
            (Ask::Get | Ask::Left, _, None) => true,
            (Ask::Del | Ask::Expire(_), None, None) => true,
            (Ask::Get | Ask::Del | Ask::Expire(_) | Ask::Left, None, Some(told)) => {
                told == Told::NotFound
            }
            (_, _, Some(_)) => false,
        }
    }

    /// Whether a part's condition may hold.
    fn holds(&self, act: &Act, present: Option<Message>) -> bool {
        match (act.condition, present) {
            (None, _) => true,
            (Some(Condition::Absent), present) => present.is_none(),
            (Some(Condition::Exists), present) => present.is_some(),
            (Some(Condition::Revision(asked)), Some(message)) => self.may_be(&message, asked),
            (Some(Condition::Revision(_)), None) => false,
        }
    }

    /// Whether a message may have this revision.
    fn may_be(&self, message: &Message, revision: u64) -> bool {
        match message.revision {
            Some(known) => known == revision,
            None => !self.known.contains(&revision),
        }
    }

    /// Places the reads that the present state satisfies: they change nothing.
    fn place_reads(&mut self) {
        let mut event = self.next[self.next.len() - 1];
        while event + 1 < self.next.len() && event.is_multiple_of(2) {
            let (op, before) = (event / 2, self.previous[event]);
            let is_read = self.ops[op].is_read();
            event = match is_read.then(|| self.attempt(&self.state, op, 0)) {
                Some(Some(Some(state))) => {
                    self.is_idle |= self.has_idle(op);
                    self.place(op, 0, state, true);
                    self.next[before]
                }
                _ => self.next[event],
            };
        }
    }

    fn place(&mut self, op: usize, way: usize, state: State, is_forced: bool) {
        let before = std::mem::replace(&mut self.state, state);
        self.hash ^= mix(0, op, 0);
        self.is_placed[op] = true;
        if self.ops[op].end.is_some() {
            self.left -= 1;
            for event in [2 * op, 2 * op + 1] {
                let (previous, next) = (self.previous[event], self.next[event]);
                (self.next[previous], self.previous[next]) = (next, previous);
            }
        }
        self.placed.push(Placed {
            op,
            before,
            way,
            is_forced,
        });
    }

    /// Takes back the last choice and what followed from it; says from where to choose again.
    fn undo(&mut self) -> Option<(usize, usize)> {
        while let Some(placed) = self.placed.pop() {
            let op = placed.op;
            if self.ops[op].end.is_some() {
                self.left += 1;
                for event in [2 * op + 1, 2 * op] {
                    let (previous, next) = (self.previous[event], self.next[event]);
                    (self.next[previous], self.previous[next]) = (event, event);
                }
            }
            self.is_placed[op] = false;
            self.hash ^= mix(0, op, 0);
            self.state = placed.before;
            if !placed.is_forced {
                let mut candidates = self.candidates().into_iter();
                let position = candidates.position(|one| one == op);
                return Some((position.expect("it was one"), placed.way + 1));
            }
        }
        None
    }

    fn state_hash(&self) -> u128 {
        let half = |seed: u64| {
            let mut hasher = FxHasher::default();
            (seed, &self.state).hash(&mut hasher);
            for placed in self.waiting() {
                placed.op.hash(&mut hasher);
            }
            hasher.finish()
        };
        u128::from(half(1)) << 64 | u128::from(half(0x9e37_79b9_7f4a_7c15))
    }

    /// The placed ones in order.
    pub fn order(&self) -> Vec<usize> {
        self.placed.iter().map(|placed| placed.op).collect()
    }
}

/// The first of those unknown ones that do the same as each.
fn classes(ops: &[Op]) -> Vec<usize> {
    let mut first = HashMap::new();
    let class = |(index, op): (usize, &Op)| {
        let is_like_others = op.end.is_none() && op.acts.iter().all(|act| !act.lives());
        match is_like_others {
            true => *first.entry(format!("{:?}", op.acts)).or_insert(index),
            false => index,
        }
    };
    ops.iter().enumerate().map(class).collect()
}

/// Values that nobody read need no telling apart.
pub(super) fn forget_unread(ops: &mut [Op]) {
    let acts = ops.iter().flat_map(|op| &op.acts);
    let read: FxHashSet<(usize, Value)> = acts
        .filter_map(|act| match act.told {
            Some(Told::Found(value, _)) => Some((act.slot, value)),
            _ => None,
        })
        .collect();
    for act in ops.iter_mut().flat_map(|op| &mut op.acts) {
        if let Ask::Set(value, _) = &mut act.ask
            && !read.contains(&(act.slot, *value))
        {
            *value = UNREAD;
        }
    }
}

/// When a message that this request stores vanishes.
fn span(op: &Op, life: Life) -> (u64, Option<u64>) {
    let most = life.most.zip(op.end).map(|(most, end)| end.time + most);
    (op.call.time + life.least, most)
}

/// What is known of revisions.
fn revisions(ops: &[Op]) -> (FxHashSet<u64>, HashMap<(usize, Value), u64>) {
    let acts = || ops.iter().flat_map(|op| &op.acts);
    let mut writers: HashMap<(usize, Value), usize> = HashMap::new();
    for act in acts() {
        if let Ask::Set(value, _) = act.ask {
            *writers.entry((act.slot, value)).or_default() += 1;
        }
    }
    let (mut known, mut by_value) = (FxHashSet::default(), HashMap::new());
    for act in acts() {
        match act.told {
            Some(Told::Stored(Some(revision))) => _ = known.insert(revision),
            Some(Told::Found(value, Some(revision)))
                if writers.get(&(act.slot, value)) == Some(&1) =>
            {
                known.insert(revision);
                by_value.entry((act.slot, value)).or_insert(revision);
            }
            _ => {}
        }
    }
    (known, by_value)
}

/// Leaves out what a failure does not need, as long as the rest is still wrong: a read is dropped,
/// a write becomes unknown.
pub(super) fn narrow(ops: &[Op]) -> Vec<Op> {
    let mut ops = ops.to_vec();
    let mut tries = 0;
    let mut chunk = ops.len();
    loop {
        let mut needed: Vec<usize> = (0..ops.len()).collect();
        needed.retain(|index| ops[*index].end.is_some());
        chunk = (chunk / 2).clamp(1, needed.len().max(1));
        let mut is_smaller = false;
        for some in needed.chunks(chunk) {
            let mut fewer = ops.clone();
            for index in some {
                let op = &mut fewer[*index];
                op.end = None;
                op.acts.iter_mut().for_each(|act| act.told = None);
            }
            tries += 1;
            if tries > NARROWING_TRIES_MAX {
                return ops;
            }
            if Search::new(&fewer).run(NARROWING_STATES_MAX, None) == Verdict::Wrong {
                ops = fewer;
                is_smaller = true;
            }
        }
        if chunk == 1 && !is_smaller {
            return ops;
        }
    }
}
