//! Was every answer in a history allowed? The checker of clients' histories.
//!
//! A history is split by key, and each key is searched for an order of its operations in which a
//! register with SET, GET and DEL gives just these answers, and in which an operation that ended
//! before another was called comes first. What failed did not happen. What is unknown may take
//! effect once, at any time from its call on. The calls of one token are one write: it takes effect
//! between the first call and the first answer, and all answers are equal. Bulk ids have a checker
//! of their own: they come from a counter that only grows, so no range overlaps another, and what
//! is called later gets higher ones; each id's write joins the history of its key. Keys with
//! conditions, batches or times to live are searched with all that matters to these (`parts`),
//! those that a batch joins as one.
//!
//! The searches (`linearize/register.rs` for a key alone, `linearize/joined.rs` for keys that
//! belong together) remember where they were. The number of states is bounded, and reaching the
//! bound is a fault: undecided is not right.
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

use std::collections::HashMap;
use std::fmt;
use std::ops::RangeInclusive;

use bytes::Bytes;

use super::history::{self, Command, History, Moment, Operation, Outcome, Told};

// By their paths, since this file is a module of different parents.
#[path = "linearize/decide.rs"]
mod decide;
#[path = "linearize/joined.rs"]
mod joined;
#[path = "linearize/narrow.rs"]
mod narrow;
#[path = "linearize/needs.rs"]
mod needs;
#[path = "linearize/parts.rs"]
mod parts;
#[path = "linearize/register.rs"]
mod register;
#[path = "linearize/report.rs"]
mod report;
#[path = "linearize/ring.rs"]
mod ring;
#[path = "linearize/split.rs"]
mod split;
#[path = "linearize/windows.rs"]
mod windows;

use register::{Search, Verdict};
use report::Report;
use split::{groups, split};

/// States a key's search may visit. A good history of 100,000 operations needs about as many; this
/// many take some seconds and 130 MB, and a search that needs more hardly ever ends.
const STATES_MAX: usize = 4_000_000;

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
        let found = decide::decide(&ops, states_max);
        summary.states += found.states;
        match found.verdict {
            Verdict::Right => {}
            Verdict::Undecided => return Err(Report::undecided(keys[0], ops.len(), states_max)),
            Verdict::Wrong => {
                let sizes = (keys.as_slice(), ops.len());
                return Err(Report::wrong_parts(
                    sizes,
                    &found.core,
                    &requests,
                    operations,
                ));
            }
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

/// No two writes have one revision, and what was read under it is what was written.
fn check_revisions(operations: &[Operation], requests: &[Request<'_>]) -> Result<(), Fault> {
    let mut stored: HashMap<u64, usize> = HashMap::new();
    let mut named: HashMap<u64, (&Bytes, &Bytes, usize)> = HashMap::new();
    for request in requests {
        let (Command::Parts { parts, .. }, Outcome::Told(told)) =
            (request.command, request.outcome)
        else {
            continue;
        };
        let call = request.calls[0];
        for (part, told) in parts.iter().zip(told) {
            let (revision, value, before) = match (&part.ask, told) {
                (history::Ask::Set { value, .. }, Told::Stored(revision)) => {
                    (*revision, value, stored.insert(*revision, call))
                }
                (
                    _,
                    Told::Found {
                        value,
                        revision: Some(revision),
                    },
                ) => (*revision, value, None),
                _ => continue,
            };
            let (key, shown, first) = *named.entry(revision).or_insert((&part.key, value, call));
            let differs = (key, shown) != (&part.key, value);
            if let Some(other) = before.or(differs.then_some(first)) {
                let what = "one revision, two writes:";
                let calls = [&operations[other], &operations[call]];
                return Err(Fault::of(Rule::Revision, what, &calls));
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
