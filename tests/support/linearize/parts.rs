//! Requests that join several keys, or matter to more than a value: conditions, revisions, batches,
//! times to live. What each may do to what is stored, and whether its answers fit. Pure.
//!
//! Keys that one request names are searched as one, by `joined`. The state is what is stored under
//! each: value, revision, and from when on and until when it may vanish. A request changes all of
//! its keys at one moment, or, if its answers do not fit the state, cannot come next.
//!
//! **Revisions.** That of a write is known from its answer, or from a read of its value if no other
//! write has it. What is not known may be any revision that no other write is known to have; that
//! it is always the same one is not checked. The order of revisions means nothing.
//!
//! **Times to live.** A message may vanish just before a request that names it, if its least time
//! is over at the end of every request that comes later. A request that is called when the longest
//! time is over finds it gone. So it vanishes once, and never comes back.

use std::collections::HashMap;

use rustc_hash::FxHashSet;

use super::super::history::{Condition, Life, Moment};
use super::split::{ABSENT, Action, UNREAD, Value};

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
    /// Whether it was not done, so that of all or nothing nothing was.
    pub fn is_refused(&self) -> bool {
        let is_read = matches!(self.ask, Ask::Get | Ask::Left);
        matches!(self.told, Some(Told::Mismatch(_) | Told::NotApplied))
            || (self.told == Some(Told::Failed) && !is_read)
    }

    /// Whether it says how long a message stays at least.
    pub fn lives(&self) -> bool {
        match self.ask {
            Ask::Set(_, Some(life)) | Ask::Expire(Some(life)) => life.least > 0,
            _ => false,
        }
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

    /// What may come by itself, if nothing is known of it.
    pub fn pieces(self) -> impl Iterator<Item = Op> {
        let (request, call, end, is_atomic) = (self.request, self.call, self.end, self.is_atomic);
        let size = if is_atomic { self.acts.len() } else { 1 };
        let acts: Vec<Vec<Act>> = self.acts.chunks(size.max(1)).map(<[Act]>::to_vec).collect();
        acts.into_iter().map(move |acts| Op {
            request,
            call,
            end,
            acts,
            is_atomic,
        })
    }

    /// Whether something is said to be done, though all or nothing was to be and one was refused.
    pub fn contradicts_itself(&self) -> bool {
        let is_done = |act: &Act| matches!(act.told, Some(Told::Stored(_) | Told::Done));
        self.is_atomic && self.acts.iter().any(Act::is_refused) && self.acts.iter().any(is_done)
    }

    /// The slot of each part.
    pub fn slots(&self) -> impl Iterator<Item = usize> {
        self.acts.iter().map(|act| act.slot)
    }

    /// Whether it changes nothing.
    pub fn is_read(&self) -> bool {
        let is_read = |act: &Act| matches!(act.ask, Ask::Get | Ask::Left);
        self.acts.iter().all(is_read)
    }
}

/// Call and end.
pub(super) type Times = (Moment, Option<Moment>);

/// What is stored under a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Message {
    pub value: Value,
    /// If it is known.
    pub revision: Option<u64>,
    /// From when on it may vanish, and until when.
    pub vanishes: Option<(u64, Option<u64>)>,
}

/// By slot.
pub(super) type State = Vec<Option<Message>>;

/// What is known of revisions, for all of a search.
pub(super) struct Facts {
    /// Revisions that a write is known to have.
    known: FxHashSet<u64>,
    /// The revision of a value, where one write has that value.
    of_value: HashMap<(usize, Value), u64>,
}

impl Facts {
    /// From the answers.
    pub fn new(ops: &[Op]) -> Facts {
        let (known, of_value) = revisions(ops);
        Facts { known, of_value }
    }

    /// The state after a request, some of whose messages have vanished before: bit by bit of `way`.
    /// `None`: there are not so many ways; inside it, that this one does not fit.
    /// `until` is the first end of those that are still to come.
    pub fn attempt(
        &self,
        before: &State,
        op: &Op,
        way: usize,
        until: Option<u64>,
    ) -> Option<Option<State>> {
        let mut slots: Vec<usize> = op.acts.iter().map(|act| act.slot).collect();
        slots.sort_unstable();
        slots.dedup();
        slots.retain(|slot| {
            let vanishes = before[*slot].and_then(|message| message.vanishes);
            vanishes.is_some_and(|(least, _)| until.is_none_or(|until| least <= until))
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
        for act in &op.acts {
            if let Some(Message {
                vanishes: Some((least, _)),
                ..
            }) = &mut state[act.slot]
                && until.is_none_or(|until| *least <= until)
            {
                // From now on at any time.
                *least = 0;
            }
        }
        Some((is_right && is_step).then_some(state))
    }

    /// Does it; false if an answer does not fit.
    fn perform(&self, op: &Op, state: &mut State) -> bool {
        if !op.is_atomic {
            return op.acts.iter().all(|act| self.act(op, act, act.told, state));
        }
        let mut after = state.clone();
        if !op.acts.iter().any(Act::is_refused) {
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
                    && (act.is_refused() || told == Some(Told::Failed))
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
                let found = self.of_value.get(&(act.slot, value)).copied();
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
