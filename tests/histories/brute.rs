//! A brute force for histories with conditions, batches and times to live, which tries every order
//! and shares nothing with the checker; on small random histories both must agree.
//!
//! It holds to the same rules: what is not known of a revision may be any that no write is known to
//! have; the parts of an unknown request that is not atomic may each come by themselves, or not at
//! all; the calls of one token are one request, whose reads are not looked at where there are more.

use std::collections::{BTreeMap, HashMap, HashSet};

use bytes::Bytes;

use crate::parts::execution;
use crate::support::history::{
    Ask, Command, Condition, History, Life, Moment, Outcome, Part, Told,
};
use crate::support::linearize::check;
use crate::{Line, record, seed};

/// A call, or a part of one that may come by itself.
struct Op {
    parts: Vec<(Part, Option<Told>)>,
    is_atomic: bool,
    call: Moment,
    end: Option<Moment>,
}

impl Op {
    /// The same once more. What it reads, it reads anew.
    fn repeat(
        &mut self,
        parts: Vec<(Part, Option<Told>)>,
        call: Moment,
        end: Option<Moment>,
    ) -> Option<()> {
        for ((part, told), (_, again)) in self.parts.iter_mut().zip(parts) {
            let is_read = part.ask == Ask::Get;
            if told.is_some() && again.is_some() && *told != again && !is_read {
                return None;
            }
            *told = told.take().or(again).filter(|_| !is_read);
        }
        self.call = self.call.min(call);
        self.end = [self.end, end].into_iter().flatten().min();
        Some(())
    }
}

#[derive(Clone, PartialEq)]
struct Message {
    value: Bytes,
    revision: Option<u64>,
    vanishes: Option<(u64, Option<u64>)>,
}

type State = BTreeMap<Bytes, Message>;

struct BruteForce {
    ops: Vec<Op>,
    /// Revisions that a write is known to have, and those of values.
    known: HashSet<u64>,
    of_value: HashMap<(Bytes, Bytes), u64>,
    is_placed: Vec<bool>,
}

impl BruteForce {
    /// `None`: a repeat got another answer.
    fn new(history: &History) -> Option<BruteForce> {
        let mut ops: Vec<Op> = Vec::new();
        let mut by_token: HashMap<&Bytes, usize> = HashMap::new();
        for one in history.operations() {
            let Command::Parts { parts, is_atomic } = &one.command else {
                panic!("only parts");
            };
            let told: Vec<Option<Told>> = match &one.outcome {
                Outcome::Told(told) => told.iter().cloned().map(Some).collect(),
                _ => vec![None; parts.len()],
            };
            let parts: Vec<_> = parts.iter().cloned().zip(told).collect();
            let end = one.end.filter(|_| one.outcome != Outcome::Unknown);
            if let Some(first) = one.token.as_ref().and_then(|token| by_token.get(token)) {
                ops[*first].repeat(parts, one.call, end)?;
                continue;
            }
            if let Some(token) = &one.token {
                by_token.insert(token, ops.len());
            }
            let pieces = match end.is_none() && !is_atomic && one.token.is_none() {
                true => parts.into_iter().map(|part| vec![part]).collect(),
                false => vec![parts],
            };
            ops.extend(pieces.into_iter().map(|parts| Op {
                parts,
                is_atomic: *is_atomic,
                call: one.call,
                end,
            }));
        }
        let parts = ops.iter().flat_map(|op| &op.parts);
        let (mut known, mut of_value) = (HashSet::new(), HashMap::new());
        for (part, told) in parts {
            match told {
                Some(Told::Stored(revision)) => _ = known.insert(*revision),
                Some(Told::Found {
                    value,
                    revision: Some(revision),
                }) if is_stored_once(&ops, &part.key, value) => {
                    known.insert(*revision);
                    let of = (part.key.clone(), value.clone());
                    of_value.entry(of).or_insert(*revision);
                }
                _ => {}
            }
        }
        let is_placed = vec![false; ops.len()];
        Some(BruteForce {
            ops,
            known,
            of_value,
            is_placed,
        })
    }

    /// Whether some order is right, from this state on.
    fn goes_on(&mut self, state: &State) -> bool {
        let left = (0..self.ops.len()).filter(|op| !self.is_placed[*op]);
        let left: Vec<usize> = left.collect();
        let ends = left.iter().filter_map(|op| self.ops[*op].end);
        let Some(first_end) = ends.min() else {
            return true;
        };
        left.into_iter().any(|op| {
            if self.ops[op].call > first_end {
                return false;
            }
            // Anything that may have vanished has, or has not.
            let vanishing = state.iter().filter(|(_, message)| {
                let vanishes = message.vanishes;
                vanishes.is_some_and(|(least, _)| least <= first_end.time)
            });
            let vanishing: Vec<&Bytes> = vanishing.map(|(key, _)| key).collect();
            (0..1 << vanishing.len()).any(|gone: u32| {
                let mut after = state.clone();
                for (bit, key) in vanishing.iter().enumerate() {
                    if gone >> bit & 1 == 1 {
                        after.remove(*key);
                    }
                }
                if !self.perform(&self.ops[op], &mut after) {
                    return false;
                }
                self.is_placed[op] = true;
                let is_right = self.goes_on(&after);
                self.is_placed[op] = false;
                is_right
            })
        })
    }

    fn perform(&self, op: &Op, state: &mut State) -> bool {
        let is_over = |part: &Part| {
            let message = state.get(&part.key);
            let most = message.and_then(|message| message.vanishes?.1);
            most.is_some_and(|most| most < op.call.time)
        };
        if op.end.is_some() && op.parts.iter().any(|(part, _)| is_over(part)) {
            return false;
        }
        let is_refusal =
            |told: &Option<Told>| matches!(told, Some(Told::Mismatch(_) | Told::NotApplied));
        let is_refused = op.is_atomic && op.parts.iter().any(|(_, told)| is_refusal(told));
        let before = state.clone();
        for (part, told) in &op.parts {
            let holds = self.holds(part, state.get(&part.key));
            let fits = match told {
                Some(Told::NotApplied) if is_refused => {
                    _ = holds && self.part(op, part, &None, state);
                    true
                }
                Some(Told::Mismatch(told)) => {
                    let present = state.get(&part.key);
                    let differs = match part.condition {
                        Some(Condition::Revision(asked)) => *told != Some(asked),
                        Some(_) => !holds,
                        None => false,
                    };
                    differs
                        && match (present, told) {
                            (None, None) => true,
                            (Some(message), Some(told)) => self.may_be(message, *told),
                            _ => false,
                        }
                }
                // It is known that all was done.
                Some(told) => {
                    holds && !is_refused && self.part(op, part, &Some(told.clone()), state)
                }
                None if holds => self.part(op, part, &None, state),
                // An unknown one did nothing, or this part of it did not.
                None if op.is_atomic && op.end.is_none() => {
                    *state = before;
                    return true;
                }
                None => !op.is_atomic,
            };
            if !fits {
                return false;
            }
        }
        if is_refused {
            *state = before;
        }
        true
    }

    /// Does a part whose condition holds.
    fn part(&self, op: &Op, part: &Part, told: &Option<Told>, state: &mut State) -> bool {
        let vanishes = |life: &Option<Life>| {
            let most = |life: &Life| Some(op.end?.time + life.most?);
            life.map(|life| (op.call.time + life.least, most(&life)))
        };
        let present = state.get_mut(&part.key);
        let says = |what: Told| told.as_ref().is_none_or(|told| *told == what);
        match (&part.ask, present, told) {
            (Ask::Set { value, life }, _, _) => {
                let revision = match told {
                    Some(Told::Stored(revision)) => Some(*revision),
                    _ => {
                        let of = (part.key.clone(), value.clone());
                        self.of_value.get(&of).copied()
                    }
                };
                let message = Message {
                    value: value.clone(),
                    revision,
                    vanishes: vanishes(life),
                };
                state.insert(part.key.clone(), message);
                matches!(told, None | Some(Told::Stored(_)))
            }
            (_, None, _) => says(Told::NotFound),
            (Ask::Get, Some(message), Some(Told::Found { value, revision })) => {
                *value == message.value
                    && revision.is_none_or(|revision| self.may_be(message, revision))
            }
            (Ask::Left, Some(message), Some(Told::Left(left))) => {
                left.is_some() == message.vanishes.is_some()
            }
            (Ask::Get | Ask::Left, Some(_), told) => told.is_none(),
            (Ask::Del, Some(_), _) => {
                state.remove(&part.key);
                says(Told::Done)
            }
            (Ask::Expire(life), Some(message), _) => {
                message.vanishes = vanishes(life);
                says(Told::Done)
            }
        }
    }

    fn holds(&self, part: &Part, present: Option<&Message>) -> bool {
        match part.condition {
            None => true,
            Some(Condition::Absent) => present.is_none(),
            Some(Condition::Exists) => present.is_some(),
            Some(Condition::Revision(asked)) => {
                present.is_some_and(|message| self.may_be(message, asked))
            }
        }
    }

    fn may_be(&self, message: &Message, revision: u64) -> bool {
        match message.revision {
            Some(known) => known == revision,
            None => !self.known.contains(&revision),
        }
    }
}

/// Whether just one request would store this.
fn is_stored_once(ops: &[Op], key: &Bytes, value: &Bytes) -> bool {
    let parts = ops.iter().flat_map(|op| &op.parts);
    let stores = |(part, _): &&(Part, Option<Told>)| {
        part.key == *key && matches!(&part.ask, Ask::Set { value: stored, .. } if stored == value)
    };
    parts.filter(stores).count() == 1
}

/// Changes an answer, or when it came.
fn mutate(random: &mut fastrand::Rng, lines: &mut [Line]) {
    let stored: Vec<(Bytes, u64)> = (1..8)
        .map(|revision| (Bytes::from(format!("v{}", 10 * random.u32(..6))), revision))
        .collect();
    let index = random.usize(..lines.len());
    let line = &mut lines[index];
    let Outcome::Told(told) = &mut line.outcome else {
        return;
    };
    let Command::Parts { parts, .. } = &line.command else {
        return;
    };
    let place = random.usize(..told.len());
    let (value, revision) = random.choice(stored).expect("some");
    told[place] = match (&parts[place].ask, &told[place]) {
        (_, Told::Mismatch(Some(_))) if random.bool() => Told::Mismatch(None),
        (_, Told::Mismatch(_)) => Told::Mismatch(Some(revision)),
        (Ask::Get, Told::Found { .. }) if random.u32(..3) == 0 => Told::NotFound,
        (Ask::Get, Told::Found { .. } | Told::NotFound) => Told::Found {
            value,
            revision: random.bool().then_some(revision),
        },
        (Ask::Left, Told::NotFound) => Told::Left(random.bool().then_some(1)),
        (Ask::Left, Told::Left(_)) => Told::NotFound,
        (Ask::Del | Ask::Expire(_), Told::NotFound) => Told::Done,
        (Ask::Del | Ask::Expire(_), Told::Done) => Told::NotFound,
        (Ask::Set { .. }, Told::Stored(_)) if parts[place].condition.is_some() => {
            Told::Mismatch(None)
        }
        _ => return,
    };
}

/// Leaves two values, so that writes share them.
fn collapse(lines: &mut [Line]) {
    let shared = |value: &mut Bytes| {
        let sum: usize = value.iter().map(|byte| usize::from(*byte)).sum();
        *value = Bytes::from(format!("w{}", sum % 2));
    };
    for line in lines {
        if let Command::Parts { parts, .. } = &mut line.command {
            for part in parts {
                if let Ask::Set { value, .. } = &mut part.ask {
                    shared(value);
                }
            }
        }
        if let Outcome::Told(told) = &mut line.outcome {
            for told in told {
                if let Told::Found { value, .. } = told {
                    shared(value);
                }
            }
        }
    }
}

/// Has some calls asked again by their token.
fn repeat(random: &mut fastrand::Rng, lines: &mut Vec<Line>) {
    let index = random.usize(..lines.len());
    let Command::Parts { parts, is_atomic } = &lines[index].command else {
        return;
    };
    let is_read = |part: &Part| matches!(part.ask, Ask::Get | Ask::Left);
    if parts.iter().all(is_read) || !(*is_atomic || parts.len() == 1) {
        return;
    }
    lines[index].token = Some("t".to_owned());
    let mut again = lines[index].clone();
    again.call += 10 * random.u64(..10);
    again.end = again.end.map(|_| again.call + 10 * random.u64(..4) + 5);
    if random.bool() {
        let which = random.bool();
        let unknown = if which { &mut again } else { &mut lines[index] };
        unknown.outcome = Outcome::Unknown;
    }
    lines.push(again);
}

/// Joins all keys, as what is known of revisions is known of keys that belong together.
fn joined(keys: usize) -> Line {
    let part = |key| Part {
        key: Bytes::from(format!("k{key}")),
        ask: Ask::Get,
        condition: None,
    };
    Line {
        client: 9,
        token: None,
        command: Command::parts((0..keys).map(part).collect(), true),
        call: 0,
        end: Some(0),
        outcome: Outcome::Told(vec![Told::NotFound; keys]),
    }
}

#[test]
fn checker_and_brute_force_agree_on_conditions_batches_and_times_to_live() {
    let mut random = fastrand::Rng::with_seed(seed());
    let (mut right, mut wrong) = (0, 0);
    let rounds = std::env::var("ROUNDS")
        .ok()
        .and_then(|rounds| rounds.parse().ok());
    for round in 0..rounds.unwrap_or(12_000) {
        let keys = random.usize(1..=2);
        let count = random.usize(2..=5);
        let unknown = [0, 30, 60][round % 3];
        let mut lines = execution(&mut random, count, keys, unknown);
        if random.u32(..4) == 0 {
            repeat(&mut random, &mut lines);
        }
        for _ in 0..random.usize(..3) {
            mutate(&mut random, &mut lines);
        }
        if random.u32(..4) == 0 {
            collapse(&mut lines);
        }
        for line in &mut lines {
            line.call += 10;
            line.end = line.end.map(|end| end + 10);
        }
        lines.push(joined(keys));
        let history = record(&lines);
        let found = check(&history);
        let brute_force = BruteForce::new(&history);
        let expected = brute_force.is_some_and(|mut brute| brute.goes_on(&State::new()));
        let shown = history.operations().iter().map(ToString::to_string);
        let shown = shown.collect::<Vec<String>>().join("\n");
        let is_about_answers = |fault: &crate::support::linearize::Fault| {
            use crate::support::linearize::Rule;
            matches!(fault.rule, Rule::Answer | Rule::Revision)
        };
        if found.as_ref().is_err_and(is_about_answers) {
            continue;
        }
        assert_eq!(found.is_ok(), expected, "{found:?}\n{shown}");
        right += u32::from(expected);
        wrong += u32::from(!expected);
    }
    println!("{right} right, {wrong} wrong");
    assert!(
        right > 1_000 && wrong > 1_000,
        "{right} right, {wrong} wrong"
    );
}
