//! Does the checker of histories reject what is wrong, and accept what is right?
//!
//! Histories known to be right and to be wrong, each named by what went wrong; then random small
//! ones, on which the checker and a brute force that tries every order must agree. The brute force
//! shares nothing with the checker: it runs each call against a register that remembers tokens.
//!
//! Histories are written as `CALL..END CLIENT COMMAND -> ANSWER`, separated by `;`.

#[path = "histories/brute.rs"]
mod brute;
#[path = "histories/large.rs"]
mod large;
#[path = "histories/parts.rs"]
mod parts;
mod support;

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use support::history::{Command, History, Operation, Outcome};
use support::linearize::{Fault, Rule, check, check_within};
use tolerex::clock::{Clock, SystemClock};

/// A call before it is recorded.
#[derive(Clone, Debug)]
struct Line {
    client: u32,
    token: Option<String>,
    command: Command,
    call: u64,
    end: Option<u64>,
    outcome: Outcome,
}

/// Records calls in the order of their events.
fn record(lines: &[Line]) -> History {
    let mut events = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        events.push((line.call, index, false));
        events.extend(line.end.map(|end| (end, index, true)));
    }
    events.sort_by_key(|(time, _, _)| *time);
    let mut history = History::default();
    let mut calls = HashMap::new();
    for (time, index, is_end) in events {
        let line = &lines[index];
        if is_end {
            history.end(calls[&index], time, line.outcome.clone());
            continue;
        }
        let command = line.command.clone();
        let call = match &line.token {
            Some(token) => history.call_once(line.client, time, token.clone(), command),
            None => history.call(line.client, time, command),
        };
        calls.insert(index, call);
    }
    history
}

fn history(text: &str) -> History {
    let lines: Vec<Line> = text.split(';').map(line).collect();
    record(&lines)
}

fn line(text: &str) -> Line {
    let (request, answer) = text.split_once("->").expect("an arrow");
    let mut words: Vec<String> = request.split_whitespace().map(str::to_owned).collect();
    let times = words.remove(0);
    let (call, end) = times.split_once("..").expect("two times");
    let client = words.remove(0).parse().expect("a client");
    let token = (words[0] == "ONCE").then(|| words.drain(..2).next_back().expect("a token"));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let command = match words[..] {
        ["SET", key, value] => Command::set(key.to_owned(), value.to_owned()),
        ["GET", key] => Command::get(key.to_owned()),
        ["DEL", key] => Command::del(key.to_owned()),
        [count, "SET", value] => Command::bulk(count.parse().expect("a count"), value.to_owned()),
        _ => panic!("not a command: {text}"),
    };
    let range = |text: &str| {
        let (first, last) = text.split_once('-').expect("a range");
        (first.parse().expect("an id"), last.parse().expect("an id"))
    };
    let answer: Vec<&str> = answer.split_whitespace().collect();
    let outcome = match answer[..] {
        ["OK"] => Outcome::Ok,
        ["OK", ids] => Outcome::Ids {
            first: range(ids).0,
            last: range(ids).1,
        },
        ["NOT_FOUND"] => Outcome::NotFound,
        ["failed"] => Outcome::Failed,
        ["unknown"] => Outcome::Unknown,
        ["stored", "none"] => Outcome::Partial { stored: None },
        ["stored", ids] => Outcome::Partial {
            stored: Some(range(ids)),
        },
        [value] => Outcome::Found(Bytes::from(value.to_owned())),
        _ => panic!("not an answer: {text}"),
    };
    Line {
        client,
        token,
        command,
        call: call.parse().expect("a time"),
        end: end.parse().ok(),
        outcome,
    }
}

const RIGHT: &[(&str, &str)] = &[
    (
        "nothing was stored",
        "0..1 1 GET a -> NOT_FOUND; 2..3 1 DEL a -> NOT_FOUND",
    ),
    (
        "one after another",
        "0..1 1 SET a x -> OK; 2..3 2 GET a -> x; 4..5 1 SET a y -> OK; 6..7 2 GET a -> y;
         8..9 1 DEL a -> OK; 10..11 1 GET a -> NOT_FOUND; 12..13 2 DEL a -> NOT_FOUND",
    ),
    (
        "a read beside a write sees either",
        "0..9 1 SET a x -> OK; 1..2 2 GET a -> NOT_FOUND; 3..4 2 GET a -> x; 5..6 3 GET a -> x",
    ),
    (
        "equal values written twice",
        "0..1 1 SET a x -> OK; 2..3 1 SET a y -> OK; 4..5 2 GET a -> y; 6..7 1 SET a x -> OK;
         8..9 2 GET a -> x",
    ),
    (
        "two deletes beside a second write",
        "0..1 1 SET a x -> OK; 2..9 1 SET a y -> OK; 3..4 2 DEL a -> OK; 5..10 3 DEL a -> OK;
         11..12 2 GET a -> NOT_FOUND",
    ),
    (
        "an unknown write takes effect late",
        "0..2 1 SET a x -> unknown; 3..4 2 SET a y -> OK; 5..6 2 GET a -> y; 90..91 2 GET a -> x",
    ),
    (
        "an unknown write never takes effect",
        "0..2 1 SET a x -> unknown; 3..4 2 SET a y -> OK; 5..6 2 GET a -> y",
    ),
    (
        "a call still under way is unknown",
        "0.. 1 SET a x -> unknown; 3..4 2 GET a -> NOT_FOUND; 5..6 2 GET a -> x",
    ),
    (
        "an unknown delete takes effect late",
        "0..1 1 SET a x -> OK; 2..3 1 DEL a -> unknown; 4..5 2 GET a -> x;
         6..7 2 GET a -> NOT_FOUND",
    ),
    (
        "a delete leaves the unknown value that is read later",
        "0..1 1 SET a x -> unknown; 0..1 2 SET a y -> unknown; 0..1 3 SET a y -> unknown;
         2..3 4 DEL a -> OK; 4..5 4 GET a -> x; 6..7 4 GET a -> y",
    ),
    (
        "a delete finds what an unknown write left",
        "0..1 1 SET a x -> unknown; 2..3 2 DEL a -> OK; 4..5 2 GET a -> NOT_FOUND",
    ),
    (
        "a failed delete",
        "0..1 1 SET a x -> OK; 2..3 1 DEL a -> failed; 4..5 2 GET a -> x",
    ),
    (
        "reads without an answer say nothing",
        "0..1 1 SET a x -> OK; 2..3 2 GET a -> failed; 2..4 3 GET a -> unknown",
    ),
    (
        "a repeated write takes effect once",
        "0..1 1 ONCE t SET a x -> unknown; 2..5 1 ONCE t SET a x -> OK; 3..4 2 SET a y -> OK;
         6..7 2 GET a -> y; 8..9 1 ONCE t SET a x -> OK; 10..11 2 GET a -> y",
    ),
    (
        "a token whose every try is unknown takes effect late",
        "0..1 1 ONCE t SET a x -> unknown; 2..3 1 ONCE t SET a x -> failed;
         4..5 2 GET a -> NOT_FOUND;
         6..7 2 GET a -> x",
    ),
    (
        "a repeated delete gets the first answer",
        "0..1 1 SET a x -> OK; 2..3 1 ONCE t DEL a -> OK; 4..5 1 ONCE t DEL a -> OK;
         6..7 1 GET a -> NOT_FOUND",
    ),
    (
        "bulk ids are fresh and read back",
        "0..1 1 3 SET v -> OK 1-3; 2..3 2 GET 2 -> v; 4..5 2 2 SET w -> OK 4-5; 6..7 1 GET 5 -> w;
         8..9 1 GET 6 -> NOT_FOUND; 10..11 1 SET 2 x -> OK; 12..13 2 GET 2 -> x",
    ),
    (
        "a partial bulk write may have stored more",
        "0..1 1 5 SET v -> stored 1-2; 2..3 1 GET 2 -> v; 4..5 1 GET 3 -> NOT_FOUND;
         6..7 1 GET 4 -> v; 8..9 1 GET 3 -> v",
    ),
    (
        "an unknown bulk write may have stored some",
        "0..1 1 2 SET v -> unknown; 2..3 1 GET 7 -> NOT_FOUND; 4..5 1 GET 7 -> v;
         6..7 1 DEL 8 -> OK",
    ),
    (
        "a repeat completes a bulk write",
        "0..1 1 ONCE t 3 SET v -> stored 4-5; 2..3 2 GET 6 -> NOT_FOUND;
         4..5 1 ONCE t 3 SET v -> OK 4-6; 6..7 2 GET 6 -> v",
    ),
    (
        "a key that only looks like an id",
        "0..1 1 1 SET v -> OK 1-1; 2..3 1 GET 01 -> NOT_FOUND; 4..5 1 GET 1x -> NOT_FOUND",
    ),
];

const WRONG: &[(&str, Rule, &str)] = &[
    (
        "stale read",
        Rule::Order,
        "0..1 1 SET a x -> OK; 2..3 1 SET a y -> OK; 4..5 2 GET a -> x",
    ),
    (
        "stale absence",
        Rule::Order,
        "0..1 1 SET a x -> OK; 2..3 2 GET a -> NOT_FOUND; 4..5 2 GET a -> x",
    ),
    (
        "lost update",
        Rule::Order,
        "0..1 1 SET a x -> OK; 2..9 1 SET a y -> OK; 3..8 2 SET a z -> OK; 10..11 3 GET a -> x",
    ),
    (
        "value never written",
        Rule::Order,
        "0..1 1 SET a x -> OK; 2..3 2 GET a -> y",
    ),
    (
        "value of another key",
        Rule::Order,
        "0..1 1 SET a x -> OK; 2..3 1 SET b y -> OK; 4..5 2 GET b -> x",
    ),
    (
        "value of the future",
        Rule::Order,
        "0..1 2 GET a -> x; 2..3 1 SET a x -> OK",
    ),
    (
        "unknown value of the future",
        Rule::Order,
        "0..1 2 GET a -> x; 2..3 1 SET a x -> unknown",
    ),
    (
        "failed write read",
        Rule::Order,
        "0..1 1 SET a x -> failed; 2..3 2 GET a -> x",
    ),
    (
        "failed delete took effect",
        Rule::Order,
        "0..1 1 SET a x -> OK; 2..3 2 DEL a -> failed; 4..5 2 GET a -> NOT_FOUND",
    ),
    (
        "resurrected delete",
        Rule::Order,
        "0..1 1 SET a x -> OK; 2..3 1 DEL a -> OK; 4..5 2 GET a -> x",
    ),
    (
        "value flips back and forth",
        Rule::Order,
        "0..20 1 SET a x -> OK; 0..20 2 SET a y -> OK; 1..2 3 GET a -> x; 3..4 3 GET a -> y;
         5..6 3 GET a -> x",
    ),
    (
        "two readers see two orders",
        Rule::Order,
        "0..20 1 SET a x -> OK; 0..20 2 SET a y -> OK; 1..4 3 GET a -> x; 5..8 3 GET a -> y;
         1..3 4 GET a -> y; 5..7 4 GET a -> x",
    ),
    (
        "two deletes found the one value",
        Rule::Order,
        "0..1 1 SET a x -> OK; 2..9 1 DEL a -> OK; 3..8 2 DEL a -> OK",
    ),
    (
        "delete of nothing",
        Rule::Order,
        "0..1 1 DEL a -> OK; 2..3 1 SET a x -> OK",
    ),
    (
        "delete missed the value",
        Rule::Order,
        "0..1 1 SET a x -> OK; 2..3 2 DEL a -> NOT_FOUND",
    ),
    (
        "unknown write took effect twice",
        Rule::Order,
        "0..1 1 SET a x -> unknown; 2..3 2 GET a -> x; 4..5 2 SET a y -> OK; 6..7 2 GET a -> y;
         8..9 2 GET a -> x",
    ),
    (
        "unknown delete took effect twice",
        Rule::Order,
        "0..1 1 SET a x -> OK; 2..3 1 DEL a -> unknown; 4..5 2 GET a -> NOT_FOUND;
         6..7 2 SET a y -> OK; 8..9 2 GET a -> NOT_FOUND",
    ),
    (
        "two deletes found one unknown value",
        Rule::Order,
        "0..1 1 SET a x -> unknown; 2..3 2 DEL a -> OK; 4..5 2 DEL a -> OK",
    ),
    (
        "token took effect twice",
        Rule::Order,
        "0..1 1 ONCE t SET a x -> unknown; 2..3 2 GET a -> x; 4..5 2 SET a y -> OK;
         6..7 1 ONCE t SET a x -> OK; 8..9 2 GET a -> x",
    ),
    (
        "token took effect after its first answer",
        Rule::Order,
        "0..1 1 ONCE t SET a x -> OK; 2..3 2 SET a y -> OK; 4..5 1 ONCE t SET a x -> OK;
         6..7 2 GET a -> x",
    ),
    (
        "repeat with a different answer",
        Rule::Repeat,
        "0..1 1 SET a x -> OK; 2..3 1 ONCE t DEL a -> OK; 4..5 1 ONCE t DEL a -> NOT_FOUND",
    ),
    (
        "repeated bulk write got new ids",
        Rule::Repeat,
        "0..1 1 ONCE t 2 SET v -> OK 1-2; 2..3 1 ONCE t 2 SET v -> OK 3-4",
    ),
    (
        "repeat went on with other ids",
        Rule::Repeat,
        "0..1 1 ONCE t 2 SET v -> stored 1-1; 2..3 1 ONCE t 2 SET v -> OK 3-4",
    ),
    (
        "acknowledged write lost after a fail-over",
        Rule::Order,
        "0..1 1 SET a x -> OK; 2..3 2 SET a y -> OK; 4..9 1 GET a -> failed; 20..21 1 GET a -> x;
         22..23 2 GET a -> x",
    ),
    (
        "acknowledged first write lost after a fail-over",
        Rule::Order,
        "0..1 1 SET a x -> OK; 2..9 2 SET a y -> unknown; 20..21 1 GET a -> NOT_FOUND",
    ),
    (
        "bulk ids handed out twice",
        Rule::Ids,
        "0..9 1 3 SET v -> OK 1-3; 1..8 2 3 SET w -> OK 3-5",
    ),
    (
        "partial bulk write whose ids were handed out again",
        Rule::Ids,
        "0..1 1 3 SET v -> stored 1-1; 2..3 2 3 SET w -> OK 3-5",
    ),
    ("too few bulk ids", Rule::Ids, "0..1 1 3 SET v -> OK 1-2"),
    ("bulk ids from zero", Rule::Ids, "0..1 1 3 SET v -> OK 0-2"),
    (
        "partial with all stored",
        Rule::Ids,
        "0..1 1 3 SET v -> stored 1-3",
    ),
    (
        "counter of ids went back",
        Rule::Ids,
        "0..1 1 3 SET v -> OK 4-6; 2..3 1 3 SET w -> OK 1-3",
    ),
    (
        "bulk id that was in use",
        Rule::Order,
        "0..1 1 SET 2 x -> OK; 2..3 1 3 SET v -> OK 1-3; 4..5 1 GET 2 -> v",
    ),
    (
        "bulk write lost",
        Rule::Order,
        "0..1 1 3 SET v -> OK 1-3; 2..3 1 GET 3 -> NOT_FOUND",
    ),
    (
        "stored part of a bulk write lost",
        Rule::Order,
        "0..1 1 3 SET v -> stored 1-2; 2..3 1 GET 2 -> NOT_FOUND",
    ),
    (
        "unknown bulk write under an id of another",
        Rule::Order,
        "0..1 1 2 SET v -> unknown; 2..3 2 2 SET w -> OK 1-2; 4..5 1 GET 2 -> v",
    ),
    (
        "value for an answer to SET",
        Rule::Answer,
        "0..1 1 SET a x -> y",
    ),
    (
        "OK for an answer to GET",
        Rule::Answer,
        "0..1 1 GET a -> OK",
    ),
];

#[test]
fn right_histories_are_accepted() {
    for (name, text) in RIGHT {
        if let Err(fault) = check(&history(text)) {
            panic!("{name}: {fault}");
        }
    }
}

#[test]
fn wrong_histories_are_rejected() {
    for (name, rule, text) in WRONG {
        let fault = check(&history(text)).expect_err(name);
        println!("{name}: {fault}");
        assert_eq!(fault.rule, *rule, "{name}: {fault}");
    }
}

/// Whether some order of the calls is right: tries them all.
struct BruteForce<'a> {
    operations: &'a [Operation],
    is_placed: Vec<bool>,
    answers: HashMap<Bytes, Outcome>,
}

impl BruteForce<'_> {
    fn accepts(history: &History) -> bool {
        let operations = history.operations();
        let mut brute_force = BruteForce {
            operations,
            is_placed: vec![false; operations.len()],
            answers: HashMap::new(),
        };
        brute_force.goes_on_from(None)
    }

    fn goes_on_from(&mut self, value: Option<&Bytes>) -> bool {
        let operations = self.operations;
        let is_answered = |one: &Operation| !matches!(one.outcome, Outcome::Unknown);
        let left: Vec<usize> = (0..operations.len())
            .filter(|index| {
                !self.is_placed[*index] && operations[*index].outcome != Outcome::Failed
            })
            .collect();
        let must: Vec<_> = left.iter().map(|index| &operations[*index]).collect();
        let mut must = must.into_iter().filter(|one| is_answered(one));
        let Some(earliest) = must.by_ref().map(|one| one.end.expect("an end")).min() else {
            return true;
        };
        left.into_iter().any(|index| {
            let one = &operations[index];
            if one.call > earliest {
                return false;
            }
            let remembered = one.token.as_ref().and_then(|token| self.answers.get(token));
            let (answer, after) = match (&one.command, remembered) {
                (_, Some(answer)) => (answer.clone(), value),
                (Command::Set { value, .. }, None) => (Outcome::Ok, Some(value)),
                (Command::Get { .. }, None) => {
                    let found = value.cloned().map(Outcome::Found);
                    (found.unwrap_or(Outcome::NotFound), value)
                }
                (Command::Del { .. }, None) if value.is_some() => (Outcome::Ok, None),
                (Command::Del { .. }, None) => (Outcome::NotFound, None),
                (Command::Bulk { .. } | Command::Parts { .. }, None) => panic!("not here"),
            };
            if is_answered(one) && one.outcome != answer {
                return false;
            }
            let token = one.token.clone().filter(|_| remembered.is_none());
            token
                .iter()
                .for_each(|token| _ = self.answers.insert(token.clone(), answer.clone()));
            self.is_placed[index] = true;
            let is_right = self.goes_on_from(after);
            self.is_placed[index] = false;
            token
                .iter()
                .for_each(|token| _ = self.answers.remove(token));
            is_right
        })
    }
}

/// How random histories are made.
struct Shape {
    operations: usize,
    clients: u32,
    keys: usize,
    values: usize,
    /// Of a hundred.
    unknown: u32,
    tokens: u32,
}

/// Calls of closed-loop clients, run by a real register at a random time of each call.
fn execution(random: &mut fastrand::Rng, shape: &Shape) -> Vec<Line> {
    let mut lines = Vec::new();
    let mut points = Vec::new();
    let mut free_at = vec![0; shape.clients as usize];
    for index in 0..shape.operations {
        let client = random.u32(..shape.clients);
        // Calls at multiples of ten, ends between them: ties are for another test.
        let call = free_at[client as usize] + 10 * random.u64(..4);
        let end = call + 10 * random.u64(..6) + 5;
        free_at[client as usize] = end + 5;
        let key = format!("k{}", random.usize(..shape.keys));
        let value = match shape.values {
            0 => format!("v{index}"),
            values => format!("v{}", random.usize(..values)),
        };
        let command = match random.u32(..10) {
            0..4 => Command::set(key.clone(), value),
            4..8 => Command::get(key.clone()),
            _ => Command::del(key.clone()),
        };
        let (token, command) = match random.u32(..100) {
            chance if chance >= shape.tokens => (None, command),
            chance if chance.is_multiple_of(2) => (Some("s"), Command::set("k0", "v0")),
            _ => (Some("d"), Command::del("k0")),
        };
        lines.push(Line {
            client,
            token: token.map(str::to_owned),
            command,
            call,
            end: Some(end),
            outcome: Outcome::Unknown,
        });
        let is_unknown = random.u32(..100) < shape.unknown;
        let time = match is_unknown {
            true if random.bool() => u64::MAX,
            true => random.u64(call + 1..end + 200),
            false => random.u64(call + 1..=end),
        };
        points.push((time, index, is_unknown));
    }
    points.sort_unstable();
    let mut values: HashMap<Bytes, Bytes> = HashMap::new();
    let mut answers: HashMap<String, Outcome> = HashMap::new();
    for (_, index, is_unknown) in points.into_iter().filter(|(time, _, _)| *time < u64::MAX) {
        let line = &mut lines[index];
        let remembered = line.token.as_ref().and_then(|token| answers.get(token));
        let answer = remembered.cloned().unwrap_or_else(|| match &line.command {
            Command::Set { key, value } => {
                values.insert(key.clone(), value.clone());
                Outcome::Ok
            }
            Command::Get { key } => match values.get(key) {
                Some(value) => Outcome::Found(value.clone()),
                None => Outcome::NotFound,
            },
            Command::Del { key } => match values.remove(key) {
                Some(_) => Outcome::Ok,
                None => Outcome::NotFound,
            },
            Command::Bulk { .. } | Command::Parts { .. } => panic!("not here"),
        });
        if let Some(token) = &line.token {
            answers.insert(token.clone(), answer.clone());
        }
        if !is_unknown {
            line.outcome = answer;
        }
    }
    lines
}

/// Changes one answer to a read or a delete.
fn mutate(random: &mut fastrand::Rng, lines: &mut [Line]) {
    let index = random.usize(..lines.len());
    let found = Outcome::Found(Bytes::from(format!("v{}", random.u32(..2))));
    let line = &mut lines[index];
    line.outcome = match (&line.command, &line.outcome) {
        (_, Outcome::Unknown | Outcome::Failed) => return,
        (Command::Get { .. }, Outcome::NotFound) => found,
        (Command::Get { .. }, _) if random.u32(..3) > 0 => found,
        (Command::Get { .. }, _) | (Command::Del { .. }, Outcome::Ok) => Outcome::NotFound,
        (Command::Del { .. }, _) => Outcome::Ok,
        (Command::Set { .. }, _) => Outcome::Failed,
        (Command::Bulk { .. } | Command::Parts { .. }, _) => return,
    };
}

fn seed() -> u64 {
    let given = std::env::var("SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or_else(|| fastrand::u64(..1_000_000));
    println!("SEED={seed}");
    seed
}

#[test]
fn checker_and_brute_force_agree() {
    let mut random = fastrand::Rng::with_seed(seed());
    let (mut right, mut wrong) = (0, 0);
    for round in 0..30_000 {
        let shape = Shape {
            operations: random.usize(1..=7),
            clients: random.u32(1..=5),
            keys: 1,
            values: 2,
            unknown: random.u32(..50),
            tokens: [0, 40][random.usize(..2)],
        };
        let mut lines = execution(&mut random, &shape);
        for _ in 0..round % 3 {
            mutate(&mut random, &mut lines);
        }
        if round % 5 == 0 {
            // Ties, which the order of recording decides.
            for line in &mut lines {
                line.call /= 20;
                line.end = line.end.map(|end| end / 20);
            }
        }
        let history = record(&lines);
        let expected = BruteForce::accepts(&history);
        let found = check(&history);
        let shown: Vec<String> = history
            .operations()
            .iter()
            .map(ToString::to_string)
            .collect();
        let shown = shown.join("\n");
        assert_eq!(found.is_ok(), expected, "{found:?}\n{shown}");
        right += u32::from(expected);
        wrong += u32::from(!expected);
    }
    println!("{right} right, {wrong} wrong");
    assert!(
        right > 5_000 && wrong > 5_000,
        "{right} right, {wrong} wrong"
    );
}

#[test]
fn executions_of_a_real_register_are_accepted() {
    let mut random = fastrand::Rng::with_seed(seed());
    for _ in 0..1_000 {
        let shape = Shape {
            operations: random.usize(..400),
            clients: random.u32(1..=8),
            keys: random.usize(1..=5),
            values: [0, 2, 5][random.usize(..3)],
            unknown: random.u32(..20),
            tokens: [0, 5][random.usize(..2)],
        };
        let lines = execution(&mut random, &shape);
        check(&record(&lines)).unwrap_or_else(|fault| panic!("{fault}"));
    }
}

/// A stale read in a long history is found, and shown with what it needs alone.
#[test]
fn a_failure_is_narrowed_to_what_is_wrong() {
    let mut text = String::from("0..1 1 SET a x -> OK; 2..3 2 SET a y -> OK");
    for time in (10..4_000).step_by(4) {
        let next = time + 2;
        text += &format!("; {time}..{} 3 SET a z{time} -> OK", time + 1);
        text += &format!("; {next}..{} 4 GET a -> z{time}", next + 1);
    }
    text += "; 5000..5001 5 GET a -> y";
    let fault = check(&history(&text)).expect_err("a stale read");
    assert_eq!(
        (fault.rule, fault.key.as_deref()),
        (Rule::Order, Some(&b"a"[..]))
    );
    assert!(fault.report.lines().count() <= 8, "{fault}");
    assert!(
        fault.report.contains("[5000..5001] client 5: GET a -> y"),
        "{fault}"
    );
    assert!(
        fault.report.contains("[2..3] client 2: SET a y -> OK"),
        "{fault}"
    );
}

#[test]
fn reaching_the_bound_is_a_fault() {
    let mut text = String::from("0..99 1 SET a x -> OK");
    for client in 2..14 {
        text += &format!("; 0..99 {client} SET a v{client} -> OK; 100..101 9 GET a -> v{client}");
    }
    let fault = check_within(&history(&text), 1_000).expect_err("the bound");
    assert_eq!(
        (fault.rule, fault.key.as_deref()),
        (Rule::Undecided, Some(&b"a"[..]))
    );
}

/// Threads have a history each; what they did at the same time may have been in any order.
#[test]
fn joined_histories_are_checked_as_one() {
    let writer = history("0..5 1 SET a x -> OK; 6..7 1 SET a y -> OK");
    let early = History::merged([history("5..6 2 GET a -> NOT_FOUND"), writer.clone()]);
    check(&early).unwrap_or_else(|fault| panic!("{fault}"));
    let late = History::merged([history("8..9 2 GET a -> x"), writer]);
    assert_eq!(check(&late).expect_err("stale").rule, Rule::Order);
}

fn timed(name: &str, shape: &Shape, limit: Duration) {
    let mut random = fastrand::Rng::with_seed(7);
    let history = record(&execution(&mut random, shape));
    let clock = SystemClock::new();
    let start = clock.now();
    let summary = check(&history).unwrap_or_else(|fault: Fault| panic!("{fault}"));
    let took = clock.now().since(start);
    println!("{name}: {took:?}, {summary:?}");
    assert!(took < limit, "{name}: {took:?}");
}

#[test]
fn long_histories_are_quick() {
    let mut shape = Shape {
        operations: 10_000,
        clients: 8,
        keys: 20,
        values: 0,
        unknown: 2,
        tokens: 0,
    };
    timed(
        "10,000 operations, 8 clients, 20 keys",
        &shape,
        Duration::from_secs(1),
    );
    (shape.operations, shape.keys) = (100_000, 1);
    timed(
        "100,000 operations, 8 clients, one key",
        &shape,
        Duration::from_secs(10),
    );
}
