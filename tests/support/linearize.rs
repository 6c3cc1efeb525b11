//! Was every answer in a history allowed? The checker of clients' histories.
//!
//! A history is split by key, and each key is searched for an order of its operations in which a
//! register with SET, GET and DEL gives just these answers, and in which an operation that ended
//! before another was called comes first. What failed did not happen. What is unknown may take
//! effect once, at any time from its call on. The calls of one token are one write: it takes effect
//! between the first call and the first answer, and all answers are equal. Bulk ids have a checker
//! of their own: they come from a counter that only grows, so no range overlaps another, and what
//! is called later gets higher ones; each id's write joins the history of its key. Keys with
//! conditions, batches or times to live are searched by `parts`, those that a batch joins as one.
//!
//! The search is a depth-first one that places an operation at a time and remembers which sets of
//! placed operations it has seen with which value (by a 128-bit hash, so a collision is out of
//! reach). Three things keep it small without losing an order: a read that the present value
//! satisfies is placed at once; unknown writes, which can wait for ever, are placed only just
//! before an operation that needs them; values that nobody read are one value. Neither the stack
//! nor the work for an operation grows with the length of the history, only with what is
//! concurrent. The number of states is bounded, and reaching the bound is a fault: undecided is
//! not right.
//!
//! On failure a history is narrowed: an answer is forgotten where the rest is wrong without it.
//! What is left is shown, one line an operation, with the longest order that was found.
//!
//! Sources: Wing and Gong, "Testing and Verifying Concurrent Objects"; Lowe, "Testing for
//! Linearizability" (remembering states); Porcupine, `checker.go` (the list of events).
//!
//! Known limits: that all keys together have one order is not checked, nor need it be: histories
//! are linearizable when those of their keys are. An id that a bulk write was given must have been
//! unused at some time during the call, which need not be the same for all its ids.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::RangeInclusive;

use bytes::Bytes;
use rustc_hash::FxHashSet;

use super::history::{self, Command, History, Moment, Operation, Outcome, Told, text};

// By its path, since this file is a module of different parents.
#[path = "parts.rs"]
mod parts;

/// States a key's search may visit. A good history of 100,000 operations needs about as many; this
/// many take some seconds and 130 MB, and a search that needs more hardly ever ends.
const STATES_MAX: usize = 4_000_000;

/// The same for each try while a failure is narrowed, where giving up costs only a longer report.
const NARROWING_STATES_MAX: usize = 200_000;

/// Tries to leave something out of a failure.
const NARROWING_TRIES_MAX: usize = 2_000;

/// Lines of a kind in a report.
const LINES_MAX: usize = 30;

/// Which rule a history breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// The answers for a key fit no order.
    Order,
    /// The search for an order reached its bound.
    Undecided,
    /// An answer does not belong to its command.
    Answer,
    /// A repeat with the same token gets the first answer.
    Repeat,
    /// Bulk ids are fresh, consecutive, and as many as asked for.
    Ids,
    /// A revision names one write.
    Revision,
}

/// A history that is not allowed, or not decided.
#[derive(Clone, Debug)]
pub struct Fault {
    /// The rule.
    pub rule: Rule,
    /// The key, where it is about one.
    pub key: Option<Bytes>,
    /// What is wrong, and the operations concerned, one a line.
    pub report: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.report)
    }
}

impl Fault {
    fn of(rule: Rule, what: &str, operations: &[&Operation]) -> Fault {
        let mut report = what.to_owned();
        for operation in operations {
            report += &format!("\n  {operation}");
        }
        let key = None;
        Fault { rule, key, report }
    }
}

/// What a check has seen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Summary {
    /// Keys with answers to check.
    pub keys: usize,
    /// Operations on them that were searched.
    pub operations: usize,
    /// States visited.
    pub states: usize,
}

/// Checks everything.
pub fn check(history: &History) -> Result<Summary, Fault> {
    check_within(history, STATES_MAX)
}

/// The same with a bound on the states of each key.
pub fn check_within(history: &History, states_max: usize) -> Result<Summary, Fault> {
    let operations = history.operations();
    if let Some(wrong) = operations.iter().find(|operation| !fits(operation)) {
        return Err(Fault::of(Rule::Answer, "not an answer to that:", &[wrong]));
    }
    let requests = requests(operations)?;
    check_ids(operations, &requests)?;
    check_revisions(operations, &requests)?;
    let mut summary = Summary::default();
    let mut keys = split(&requests);
    for (keys, ops) in groups(&mut keys, &requests) {
        summary.keys += keys.len();
        summary.operations += ops.len();
        let (verdict, states) = parts::decide(&ops, states_max);
        summary.states += states;
        match verdict {
            Verdict::Right => {}
            Verdict::Undecided => return Err(Report::undecided(keys[0], ops.len(), states_max)),
            Verdict::Wrong => return Err(Report::wrong_parts(&keys, &ops, &requests, operations)),
        }
    }
    for (key, steps) in keys {
        let steps = steps.steps;
        summary.keys += 1;
        summary.operations += steps.len();
        let mut search = Search::new(&steps);
        let report = match search.run(states_max, None) {
            Verdict::Right => {
                summary.states += search.visited.len();
                continue;
            }
            Verdict::Undecided => Report::undecided(key, steps.len(), states_max),
            Verdict::Wrong => Report::wrong(key, &steps, &requests, operations),
        };
        return Err(report);
    }
    Ok(summary)
}

/// Whether the answer is one to the command.
fn fits(operation: &Operation) -> bool {
    match (&operation.command, &operation.outcome) {
        (_, Outcome::Failed | Outcome::Unknown)
        | (Command::Set { .. } | Command::Del { .. }, Outcome::Ok)
        | (Command::Get { .. }, Outcome::Found(_))
        | (Command::Get { .. } | Command::Del { .. }, Outcome::NotFound)
        | (Command::Bulk { .. }, Outcome::Ids { .. } | Outcome::Partial { .. }) => true,
        (Command::Parts { parts, .. }, Outcome::Told(told)) => {
            parts.len() == told.len() && parts.iter().zip(told).all(fits_part)
        }
        (_, Outcome::Ok | Outcome::Found(_) | Outcome::NotFound)
        | (_, Outcome::Ids { .. } | Outcome::Partial { .. } | Outcome::Told(_)) => false,
    }
}

fn fits_part((part, told): (&history::Part, &Told)) -> bool {
    use history::Ask;
    match (&part.ask, told) {
        (_, Told::Mismatch(_)) => part.condition.is_some(),
        (_, Told::NotApplied | Told::Failed)
        | (Ask::Set { .. }, Told::Stored(_))
        | (Ask::Get, Told::Found { .. })
        | (Ask::Del | Ask::Expire(_), Told::Done)
        | (Ask::Get | Ask::Del | Ask::Expire(_) | Ask::Left, Told::NotFound)
        | (Ask::Left, Told::Left(_)) => true,
        (_, Told::Stored(_) | Told::Found { .. } | Told::Done)
        | (_, Told::NotFound | Told::Left(_)) => false,
    }
}

/// What takes effect at most once: a call, or all that share a token.
struct Request<'a> {
    command: &'a Command,
    /// The first call.
    call: Moment,
    /// The first answer.
    end: Option<Moment>,
    /// The answer; `Unknown` if there is none.
    outcome: &'a Outcome,
    /// The calls, by position in the history.
    calls: Vec<usize>,
}

impl Request<'_> {
    /// The ids that a bulk write was given.
    fn reserved(&self) -> Option<RangeInclusive<u64>> {
        let Command::Bulk { count, .. } = self.command else {
            return None;
        };
        match self.outcome {
            Outcome::Ids { first, .. }
            | Outcome::Partial {
                stored: Some((first, _)),
            } => Some(*first..=first.saturating_add(count - 1)),
            _ => None,
        }
    }
}

/// Joins the calls of each token, and drops those that did nothing.
fn requests(operations: &[Operation]) -> Result<Vec<Request<'_>>, Fault> {
    let mut requests: Vec<Request<'_>> = Vec::new();
    let mut by_token: HashMap<&[u8], usize> = HashMap::new();
    for (index, operation) in operations.iter().enumerate() {
        if operation.outcome == Outcome::Failed {
            continue;
        }
        let end = operation.end;
        let request = Request {
            command: &operation.command,
            call: operation.call,
            end: end.filter(|_| operation.outcome != Outcome::Unknown),
            outcome: &operation.outcome,
            calls: vec![index],
        };
        let Some(token) = &operation.token else {
            requests.push(request);
            continue;
        };
        match by_token.get(token.as_ref()) {
            None => {
                by_token.insert(token, requests.len());
                requests.push(request);
            }
            Some(first) => join(&mut requests[*first], request, operations)?,
        }
    }
    Ok(requests)
}

/// Adds a repeat.
fn join<'a>(
    request: &mut Request<'a>,
    repeat: Request<'a>,
    operations: &[Operation],
) -> Result<(), Fault> {
    assert_eq!(request.command, repeat.command, "one token, two commands");
    let ids = request.reserved().zip(repeat.reserved());
    request.calls.extend_from_slice(&repeat.calls);
    request.call = request.call.min(repeat.call);
    let is_partial = |outcome: &Outcome| matches!(outcome, Outcome::Partial { .. });
    let is_right = match (request.end, repeat.end) {
        (_, None) => true,
        (None, Some(_)) => {
            (request.end, request.outcome) = (repeat.end, repeat.outcome);
            true
        }
        // A repeat may go on with what was left half done, and says how far it came.
        (Some(end), Some(repeated))
            if is_partial(request.outcome) || is_partial(repeat.outcome) =>
        {
            request.end = Some(end.max(repeated));
            if is_partial(request.outcome) && repeat.reserved().is_some() {
                request.outcome = repeat.outcome;
            }
            ids.is_none_or(|(ids, repeated)| ids == repeated)
        }
        (Some(end), Some(repeated)) => {
            request.end = Some(end.min(repeated));
            is_same(request.outcome, repeat.outcome)
        }
    };
    if is_right {
        return Ok(());
    }
    let calls: Vec<_> = request
        .calls
        .iter()
        .map(|call| &operations[*call])
        .collect();
    Err(Fault::of(
        Rule::Repeat,
        "a repeat got another answer:",
        &calls,
    ))
}

/// Whether a repeat's answer is the first one. What it reads, it reads anew.
fn is_same(first: &Outcome, repeated: &Outcome) -> bool {
    let (Outcome::Told(first), Outcome::Told(repeated)) = (first, repeated) else {
        return first == repeated;
    };
    first.len() == repeated.len()
        && first
            .iter()
            .zip(repeated)
            .all(|(first, repeated)| first == repeated || (is_read(first) && is_read(repeated)))
}

/// Whether it may be the answer to a read.
fn is_read(told: &Told) -> bool {
    matches!(told, Told::Found { .. } | Told::NotFound | Told::Failed)
}

/// No two writes have one revision.
fn check_revisions(operations: &[Operation], requests: &[Request<'_>]) -> Result<(), Fault> {
    let mut stored: HashMap<u64, usize> = HashMap::new();
    for request in requests {
        let Outcome::Told(told) = request.outcome else {
            continue;
        };
        for told in told {
            if let Told::Stored(revision) = told
                && let Some(other) = stored.insert(*revision, request.calls[0])
            {
                let calls = [&operations[other], &operations[request.calls[0]]];
                return Err(Fault::of(
                    Rule::Revision,
                    "one revision, two writes:",
                    &calls,
                ));
            }
        }
    }
    Ok(())
}

/// Checks the ids of bulk writes against each other.
fn check_ids(operations: &[Operation], requests: &[Request<'_>]) -> Result<(), Fault> {
    let call = |request: &Request<'_>| &operations[request.calls[0]];
    let mut given = Vec::new();
    for request in requests {
        let Some(ids) = request.reserved() else {
            continue;
        };
        let (&first, Command::Bulk { count, .. }) = (ids.start(), request.command) else {
            continue;
        };
        let is_right = match request.outcome {
            Outcome::Ids { last, .. } => first.checked_add(count - 1) == Some(*last),
            Outcome::Partial {
                stored: Some((_, last)),
            } => (first..first.saturating_add(count - 1)).contains(last),
            _ => true,
        };
        if !is_right || first == 0 {
            let what = "not the ids that were asked for:";
            return Err(Fault::of(Rule::Ids, what, &[call(request)]));
        }
        given.push((ids, request));
    }
    given.sort_by_key(|(ids, _)| *ids.start());
    for pair in given.windows(2) {
        if pair[0].0.end() >= pair[1].0.start() {
            let what = "ids handed out twice:";
            let calls = [call(pair[0].1), call(pair[1].1)];
            return Err(Fault::of(Rule::Ids, what, &calls));
        }
    }
    // From the highest ids down: the earliest end among those with higher ids.
    let mut earliest: Option<(Moment, &Request<'_>)> = None;
    for (_, request) in given.iter().rev() {
        if let Some((_, higher)) = earliest.filter(|(end, _)| *end < request.call) {
            let what = "the counter of ids went back:";
            return Err(Fault::of(Rule::Ids, what, &[call(higher), call(request)]));
        }
        let end = request.end.map(|end| (end, *request));
        earliest = [earliest, end]
            .into_iter()
            .flatten()
            .min_by_key(|(end, _)| *end);
    }
    Ok(())
}

/// A value of one key, by order of appearance.
type Value = usize;

/// No value: what DEL leaves behind.
const ABSENT: Value = 0;
/// Any value that no GET returned. Such values need no telling apart.
const UNREAD: Value = 1;

/// What an operation does to a register, or needs of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    /// SET.
    Write(Value),
    /// GET, or a DEL that found nothing.
    See(Value),
    /// A DEL that found something.
    Take,
    /// A DEL of which nothing is known.
    Clear,
}

/// A request as seen by one key.
#[derive(Clone, Copy, Debug)]
struct Step {
    /// By position.
    request: usize,
    action: Action,
    call: Moment,
    /// `None` if it may happen at any time after the call, or never.
    end: Option<Moment>,
}

/// The steps on one key.
#[derive(Default)]
struct KeySteps<'a> {
    steps: Vec<Step>,
    values: HashMap<&'a [u8], Value>,
}

impl<'a> KeySteps<'a> {
    fn value(&mut self, value: &'a [u8]) -> Value {
        let next = UNREAD + 1 + self.values.len();
        *self.values.entry(value).or_insert(next)
    }

    fn push(&mut self, request: usize, action: Action, call: Moment, end: Option<Moment>) {
        self.steps.push(Step {
            request,
            action,
            call,
            end,
        });
    }
}

/// Splits by key.
fn split<'a>(requests: &'a [Request<'a>]) -> BTreeMap<&'a [u8], KeySteps<'a>> {
    let mut keys: BTreeMap<&[u8], KeySteps<'a>> = BTreeMap::new();
    for (index, request) in requests.iter().enumerate() {
        let (call, end) = (request.call, request.end);
        match request.command {
            Command::Set { key, value } => {
                let key = keys.entry(key).or_default();
                let action = Action::Write(key.value(value));
                key.push(index, action, call, end);
            }
            Command::Get { key } => {
                let key = keys.entry(key).or_default();
                let seen = match request.outcome {
                    Outcome::Found(value) => key.value(value),
                    Outcome::NotFound => ABSENT,
                    _ => continue,
                };
                key.push(index, Action::See(seen), call, end);
            }
            Command::Del { key } => {
                let action = match request.outcome {
                    Outcome::Ok => Action::Take,
                    Outcome::NotFound => Action::See(ABSENT),
                    _ => Action::Clear,
                };
                keys.entry(key).or_default().push(index, action, call, end);
            }
            Command::Bulk { .. } => {}
            Command::Parts { parts, .. } => {
                for part in parts {
                    keys.entry(&part.key).or_default();
                }
            }
        }
    }
    add_bulk_writes(&mut keys, requests);
    keys
}

/// Takes out the keys that requests of several parts name: those that such requests join, and what
/// is done to them.
fn groups<'a>(
    keys: &mut BTreeMap<&'a [u8], KeySteps<'a>>,
    requests: &'a [Request<'a>],
) -> Vec<(Vec<&'a [u8]>, Vec<parts::Op>)> {
    // Each key's group, by a key of it.
    let mut group: BTreeMap<&[u8], &[u8]> = BTreeMap::new();
    for request in requests {
        if let Command::Parts { parts, .. } = request.command {
            let mut names = parts.iter().map(|part| part.key.as_ref());
            let first: &[u8] = names.next().expect("at least one");
            let joined = *group.entry(first).or_insert(first);
            for name in names {
                let other = *group.entry(name).or_insert(name);
                let members = group.values_mut().filter(|one| **one == other);
                members.for_each(|one| *one = joined);
            }
        }
    }
    let mut found: BTreeMap<&[u8], Vec<&[u8]>> = BTreeMap::new();
    for (name, joined) in group {
        found.entry(joined).or_default().push(name);
    }
    let found = found.into_values().map(|names| {
        let mut steps: Vec<KeySteps<'a>> = names
            .iter()
            .map(|name| keys.remove(name).expect("each is there"))
            .collect();
        let slot_of = |name: &[u8]| names.iter().position(|one| *one == name);
        let mut ops = Vec::new();
        for (index, request) in requests.iter().enumerate() {
            if let Command::Parts { parts, is_atomic } = request.command
                && slot_of(&parts[0].key).is_some()
            {
                let slot_of = |name: &[u8]| slot_of(name).expect("joined");
                let told: Vec<Option<&Told>> = match request.outcome {
                    Outcome::Told(told) => told.iter().map(Some).collect(),
                    _ => vec![None; parts.len()],
                };
                let is_repeated = request.calls.len() > 1;
                let acts = parts.iter().zip(told).map(|(part, told)| {
                    // A repeat reads anew, perhaps long after the writes.
                    let is_anew = is_repeated && part.ask == history::Ask::Get;
                    let told = told.filter(|told| !(is_anew && is_read(told)));
                    let slot = slot_of(&part.key);
                    act(part, told, slot, &mut steps[slot])
                });
                let op = parts::Op {
                    request: index,
                    call: request.call,
                    end: request.end,
                    acts: acts.collect(),
                    is_atomic: *is_atomic,
                };
                ops.extend(op.split());
            }
        }
        for (slot, steps) in steps.into_iter().enumerate() {
            let simple = steps.steps.into_iter();
            let simple = simple.map(|step| {
                parts::Op::simple(step.request, slot, step.action, (step.call, step.end))
            });
            ops.extend(simple);
        }
        parts::forget_unread(&mut ops);
        (names, ops)
    });
    found.collect()
}

/// A part, for the search.
fn act<'a>(
    part: &'a history::Part,
    told: Option<&'a Told>,
    slot: usize,
    key: &mut KeySteps<'a>,
) -> parts::Act {
    let ask = match &part.ask {
        history::Ask::Set { value, life } => parts::Ask::Set(key.value(value), *life),
        history::Ask::Get => parts::Ask::Get,
        history::Ask::Del => parts::Ask::Del,
        history::Ask::Expire(life) => parts::Ask::Expire(*life),
        history::Ask::Left => parts::Ask::Left,
    };
    let told = told.map(|told| match told {
        Told::Stored(revision) => parts::Told::Stored(Some(*revision)),
        Told::Found { value, revision } => parts::Told::Found(key.value(value), *revision),
        Told::Done => parts::Told::Done,
        Told::NotFound => parts::Told::NotFound,
        Told::Mismatch(revision) => parts::Told::Mismatch(*revision),
        Told::NotApplied => parts::Told::NotApplied,
        Told::Left(left) => parts::Told::Left(left.is_some()),
        Told::Failed => parts::Told::Failed,
    });
    parts::Act {
        slot,
        condition: part.condition,
        ask,
        told,
    }
}

/// Adds the bulk writes to keys that something else used: alone, such a write is always right.
fn add_bulk_writes<'a>(keys: &mut BTreeMap<&[u8], KeySteps<'a>>, requests: &'a [Request<'a>]) {
    let mut ids: BTreeMap<u64, &mut KeySteps<'a>> = BTreeMap::new();
    for (key, steps) in keys.iter_mut() {
        let id = std::str::from_utf8(key)
            .ok()
            .and_then(|key| key.parse::<u64>().ok());
        if let Some(id) = id.filter(|id| id.to_string().as_bytes() == *key) {
            ids.insert(id, steps);
        }
    }
    let mut unclaimed: Vec<u64> = ids.keys().copied().collect();
    let mut lost = Vec::new();
    for (index, request) in requests.iter().enumerate() {
        let Command::Bulk { value, .. } = request.command else {
            continue;
        };
        let Some(range) = request.reserved() else {
            lost.push((index, request, value));
            continue;
        };
        unclaimed.retain(|id| !range.contains(id));
        let sure = match request.outcome {
            Outcome::Partial {
                stored: Some((_, last)),
            } => *last,
            _ => *range.end(),
        };
        for (id, key) in ids.range_mut(range) {
            // What is stored behind a failure may have been given up without a last word.
            let end = request.end.filter(|_| *id <= sure);
            let value = key.value(value);
            key.push(index, Action::See(ABSENT), request.call, request.end);
            key.push(index, Action::Write(value), request.call, end);
        }
    }
    // Nobody knows which ids these got, only that they are not those of others.
    for (index, request, value) in lost {
        for id in &unclaimed {
            let key = ids.get_mut(id).expect("taken from there");
            let value = key.value(value);
            key.push(index, Action::Write(value), request.call, None);
        }
    }
}

/// What a search found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
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
struct Search {
    /// Those that must be placed have an end.
    steps: Vec<Step>,
    /// Events in order, as a ring: 2i is the call of step i, 2i + 1 its end, the last one the head.
    next: Vec<usize>,
    previous: Vec<usize>,
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
    visited: FxHashSet<u128>,
    /// The most that were placed at once.
    deepest: usize,
}

impl Search {
    fn new(steps: &[Step]) -> Search {
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
        events.sort_unstable();
        spares
            .iter_mut()
            .for_each(|spares| spares.calls.sort_unstable());
        let has_spares = |value: &Value| !spares[*value].calls.is_empty();
        let spare_values = (UNREAD..spares.len()).filter(has_spares).collect();
        let head = 2 * steps.len();
        let mut next = vec![head; head + 1];
        let mut previous = next.clone();
        let mut last = head;
        for (_, event) in &events {
            (next[last], previous[*event]) = (*event, last);
            last = *event;
        }
        (next[last], previous[head]) = (head, last);
        Search {
            steps,
            next,
            previous,
            spares,
            spare_values,
            required: events.len() / 2,
            value: ABSENT,
            placed: Vec::new(),
            hash: 0,
            visited: FxHashSet::default(),
            deepest: 0,
        }
    }

    /// Looks for an order of all steps, or stops where `depth` of them are placed.
    fn run(&mut self, states_max: usize, depth: Option<usize>) -> Verdict {
        self.place_reads();
        let mut from = (self.first(), 0);
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
                    from = (self.first(), 0);
                    continue;
                }
            }
            match self.undo() {
                Some(next) => from = next,
                None => return Verdict::Wrong,
            }
        }
    }

    /// The first event of a step not yet placed, which is a call, or the head.
    fn first(&self) -> usize {
        self.next[self.next.len() - 1]
    }

    /// Whether it is a call. Only steps called before the first end can be the next ones.
    fn is_call(&self, event: usize) -> bool {
        event + 1 < self.next.len() && event.is_multiple_of(2)
    }

    /// The first way to place a step, from this event and its way on.
    fn choice(&self, (mut event, mut way): (usize, usize)) -> Option<Placed> {
        while self.is_call(event) {
            if let Some(spare) = self.way(event / 2, way) {
                return Some(Placed {
                    step: event / 2,
                    before: self.value,
                    spare,
                    way: Some(way),
                });
            }
            (event, way) = (self.next[event], 0);
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
        let mut event = self.first();
        while self.is_call(event) {
            event = self.next[event];
        }
        let end = self.steps.get(event / 2).and_then(|step| step.end);
        end.is_none_or(|end| *call < end)
    }

    /// Places the reads that the present value satisfies. They change nothing, so there is no
    /// order that only exists with one of them later.
    fn place_reads(&mut self) {
        let mut event = self.first();
        while self.is_call(event) {
            let before = self.previous[event];
            if self.steps[event / 2].action == Action::See(self.value) {
                self.place(Placed {
                    step: event / 2,
                    before: self.value,
                    spare: None,
                    way: None,
                });
                event = self.next[before];
            } else {
                event = self.next[event];
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
        for event in [2 * placed.step, 2 * placed.step + 1] {
            let (previous, next) = (self.previous[event], self.next[event]);
            (self.next[previous], self.previous[next]) = (next, previous);
        }
        self.placed.push(placed);
    }

    /// Takes back the last choice and what followed from it; says from where to choose again.
    fn undo(&mut self) -> Option<(usize, usize)> {
        while let Some(placed) = self.placed.pop() {
            // In reverse, so that each finds its neighbours as it left them.
            for event in [2 * placed.step + 1, 2 * placed.step] {
                let (previous, next) = (self.previous[event], self.next[event]);
                (self.next[previous], self.previous[next]) = (event, event);
            }
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
    fn order(&self) -> Vec<usize> {
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
fn mix(kind: u64, a: usize, b: usize) -> u128 {
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

/// Leaves out what the failure does not need: a read is dropped, a write is made unknown, as long
/// as the rest is still wrong. Both only allow more orders, so what is left is wrong by itself.
fn narrow(steps: &[Step]) -> Vec<Step> {
    let mut steps = steps.to_vec();
    let mut tries = 0;
    let mut chunk = steps.len();
    loop {
        let mut needed: Vec<usize> = (0..steps.len()).collect();
        needed.retain(|index| steps[*index].end.is_some());
        chunk = (chunk / 2).clamp(1, needed.len().max(1));
        let mut is_smaller = false;
        for some in needed.chunks(chunk) {
            let mut fewer = steps.clone();
            for index in some {
                let step = &mut fewer[*index];
                step.end = None;
                if step.action == Action::Take {
                    step.action = Action::Clear;
                }
            }
            tries += 1;
            if tries > NARROWING_TRIES_MAX {
                return steps;
            }
            if Search::new(&fewer).run(NARROWING_STATES_MAX, None) == Verdict::Wrong {
                steps = fewer;
                is_smaller = true;
            }
        }
        if chunk == 1 && !is_smaller {
            return steps;
        }
    }
}

/// Makes faults of what searches found.
struct Report;

impl Report {
    fn undecided(key: &[u8], steps: usize, states_max: usize) -> Fault {
        let key_text = text(key);
        Fault {
            rule: Rule::Undecided,
            key: Some(Bytes::copy_from_slice(key)),
            report: format!(
                "key {key_text}: not decided: {steps} operations, {states_max} states visited"
            ),
        }
    }

    fn wrong_parts(
        keys: &[&[u8]],
        ops: &[parts::Op],
        requests: &[Request<'_>],
        operations: &[Operation],
    ) -> Fault {
        let core = parts::narrow(ops);
        let mut search = parts::Search::new(&core);
        search.run(STATES_MAX, None);
        let deepest = search.deepest;
        let mut search = parts::Search::new(&core);
        search.run(STATES_MAX, Some(deepest));
        let order = search.order();
        let is_stuck = |index: &usize| core[*index].end.is_some() && !order.contains(index);
        let stuck: Vec<usize> = (0..core.len()).filter(is_stuck).collect();
        let names: Vec<String> = keys.iter().map(|key| text(key)).collect();
        let count = core.iter().filter(|op| op.end.is_some()).count();
        let mut report = format!(
            "keys {}: no order fits {count} of {} operations",
            names.join(" "),
            ops.len()
        );
        for (title, indices) in [
            ("the longest order found", order),
            ("cannot come next", stuck),
        ] {
            report += &format!("\n {title}:");
            let hidden = indices.len().saturating_sub(LINES_MAX);
            for index in &indices[hidden..] {
                let request = &requests[core[*index].request];
                report += &format!("\n  {}", operations[request.calls[0]]);
            }
        }
        Fault {
            rule: Rule::Order,
            key: Some(Bytes::copy_from_slice(keys[0])),
            report,
        }
    }

    fn wrong(
        key: &[u8],
        steps: &[Step],
        requests: &[Request<'_>],
        operations: &[Operation],
    ) -> Fault {
        let core = narrow(steps);
        let mut search = Search::new(&core);
        search.run(STATES_MAX, None);
        let deepest = search.deepest;
        let mut search = Search::new(&core);
        search.run(STATES_MAX, Some(deepest));
        let order = search.order();
        let is_left = |index: &usize| !order.contains(index);
        let mut stuck: Vec<usize> = (0..core.len()).filter(is_left).collect();
        stuck.retain(|index| core[*index].end.is_some());
        let mut unknown: Vec<usize> = (0..core.len()).filter(is_left).collect();
        unknown.retain(|index| matters(&core[*index], &core));

        let shown = |index: &usize| {
            let request = &requests[core[*index].request];
            let calls = request
                .calls
                .iter()
                .map(|call| operations[*call].to_string());
            let mut shown = calls.collect::<Vec<String>>().join("\n    same token: ");
            let is_bulk = matches!(request.command, Command::Bulk { .. });
            if is_bulk && core[*index].action == Action::See(ABSENT) {
                shown += " (so the id was unused)";
            }
            shown
        };
        let count = core.iter().filter(|step| step.end.is_some()).count();
        let total = steps.len();
        let key_text = text(key);
        let mut report = format!("key {key_text}: no order fits {count} of {total} operations");
        let mut list = |title: &str, indices: &[usize]| {
            if indices.is_empty() {
                return;
            }
            report += &format!("\n {title}:");
            let hidden = indices.len().saturating_sub(LINES_MAX);
            if hidden > 0 {
                report += &format!("\n  ({hidden} more)");
            }
            let last = indices.iter().skip(hidden);
            last.for_each(|index| report += &format!("\n  {}", shown(index)));
        };
        list("the longest order found", &order);
        list("cannot come next", &stuck);
        list("may have happened or not, or overwritten", &unknown);
        Fault {
            rule: Rule::Order,
            key: Some(Bytes::copy_from_slice(key)),
            report,
        }
    }
}

/// Whether a step without an end could have helped one of those that have one.
fn matters(step: &Step, core: &[Step]) -> bool {
    let mut needs = core.iter().filter(|other| {
        other.end.is_some_and(|end| step.call < end)
            && match step.action {
                Action::Write(value) => {
                    other.action == Action::Take || other.action == Action::See(value)
                }
                Action::Clear => other.action == Action::See(ABSENT),
                Action::See(_) | Action::Take => false,
            }
    });
    step.end.is_none() && needs.next().is_some()
}
