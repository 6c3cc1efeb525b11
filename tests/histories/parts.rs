//! Histories with conditions, batches and times to live.
//!
//! Written as those in the file above; the parts of a request and its answers are separated by
//! commas, `ATOMIC` before them makes them all or nothing, `@` stands before a revision. `TTL 5-9`
//! is a time to live of 5 at least and 9 at most.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;

use crate::support::history::{Ask, Command, Condition, History, Life, Outcome, Part, Told};
use crate::support::linearize::{Rule, check, check_within};
use crate::{Line, record, seed};

fn history(text: &str) -> History {
    let lines: Vec<Line> = text.split(';').map(line).collect();
    record(&lines)
}

pub(crate) fn line(text: &str) -> Line {
    let (request, answer) = text.split_once("->").expect("an arrow");
    let (times, request) = request.trim().split_once(' ').expect("times");
    let (client, mut request) = request.split_once(' ').expect("a client");
    let (call, end) = times.split_once("..").expect("two times");
    let mut token = None;
    if let Some(rest) = request.strip_prefix("ONCE ") {
        let (name, rest) = rest.split_once(' ').expect("a token");
        (token, request) = (Some(name.to_owned()), rest);
    }
    let atomic = request.strip_prefix("ATOMIC ");
    let parts: Vec<Part> = atomic.unwrap_or(request).split(',').map(part).collect();
    let outcome = match answer.trim() {
        "unknown" => Outcome::Unknown,
        "failed" => Outcome::Failed,
        answer => Outcome::Told(parts.iter().zip(answer.split(',')).map(told).collect()),
    };
    Line {
        client: client.parse().expect("a client"),
        token,
        command: Command::parts(parts, atomic.is_some()),
        call: call.parse().expect("a time"),
        end: end.parse().ok(),
        outcome,
    }
}

fn part(text: &str) -> Part {
    let mut words: Vec<&str> = text.split_whitespace().collect();
    let condition = (words[0] == "IF").then(|| match words.drain(..2).next_back() {
        Some("0") => Condition::Absent,
        Some("*") => Condition::Exists,
        revision => Condition::Revision(revision.expect("one").parse().expect("a revision")),
    });
    let life = |text: &str| {
        let (least, most) = text.split_once('-').expect("a range");
        let least = least.parse().expect("a time");
        Some(Life {
            asked: least,
            least,
            most: most.parse().ok(),
        })
    };
    let value = |text: &str| Bytes::from(text.to_owned());
    let (key, ask) = match words[..] {
        ["SET", key, value_] => (
            key,
            Ask::Set {
                value: value(value_),
                life: None,
            },
        ),
        ["SET", key, value_, "TTL", ttl] => (
            key,
            Ask::Set {
                value: value(value_),
                life: life(ttl),
            },
        ),
        ["GET", key] => (key, Ask::Get),
        ["DEL", key] => (key, Ask::Del),
        ["EXPIRE", key, ttl] => (key, Ask::Expire(life(ttl))),
        ["PERSIST", key] => (key, Ask::Expire(None)),
        ["TTL", key] => (key, Ask::Left),
        _ => panic!("not a part: {text}"),
    };
    Part {
        key: value(key),
        ask,
        condition,
    }
}

fn told((_, text): (&Part, &str)) -> Told {
    let number = |text: &str| text.parse().expect("a number");
    match text.trim() {
        "OK" => Told::Done,
        "NOT_FOUND" => Told::NotFound,
        "NOT_APPLIED" => Told::NotApplied,
        "NONE" => Told::Left(None),
        "failed" => Told::Failed,
        text => match text.split_once('@') {
            Some(("OK", revision)) => Told::Stored(number(revision)),
            Some(("LEFT", left)) => Told::Left(Some(number(left))),
            Some(("MISMATCH", "0")) => Told::Mismatch(None),
            Some(("MISMATCH", revision)) => Told::Mismatch(Some(number(revision))),
            Some((value, revision)) => Told::Found {
                value: Bytes::from(value.to_owned()),
                revision: Some(number(revision)),
            },
            None => Told::Found {
                value: Bytes::from(text.to_owned()),
                revision: None,
            },
        },
    }
}

const RIGHT: &[(&str, &str)] = &[
    (
        "compare-and-set, one after another",
        "0..1 1 IF 0 SET a x -> OK@1; 2..3 2 IF 1 SET a y -> OK@2;
         4..5 1 IF 1 SET a z -> MISMATCH@2;
         6..7 1 GET a -> y@2; 8..9 1 IF 2 DEL a -> OK; 10..11 2 IF * SET a w -> MISMATCH@0;
         12..13 2 IF 2 SET a w -> MISMATCH@0; 14..15 2 GET a -> NOT_FOUND",
    ),
    (
        "one of two wins",
        "0..1 1 SET a x -> OK@1; 2..9 1 IF 1 SET a y -> OK@3; 2..9 2 IF 1 SET a z -> MISMATCH@3",
    ),
    (
        "an unknown compare-and-set took effect",
        "0..1 1 SET a x -> OK@1; 2..9 1 IF 1 SET a y -> unknown;
         10..11 2 IF 1 SET a z -> MISMATCH@5;
         12..13 2 IF 5 SET a w -> OK@6; 14..15 1 GET a -> w",
    ),
    (
        "an unknown compare-and-set took no effect",
        "0..1 1 SET a x -> OK@1; 2..9 1 IF 1 SET a y -> unknown; 10..11 2 IF 1 SET a z -> OK@5;
         12..13 2 GET a -> z",
    ),
    (
        "a batch sees its own writes",
        "0..1 1 SET a x, GET a, DEL a, GET a, SET a y -> OK@1, x@1, OK, NOT_FOUND, OK@2;
         2..3 1 GET a -> y",
    ),
    (
        "all or nothing, done",
        "0..1 1 ATOMIC IF 0 SET a x, SET b y -> OK@1, OK@2; 2..3 2 GET a, GET b -> x, y;
         4..5 1 ATOMIC IF 1 SET a z, IF 2 DEL b, GET b -> OK@3, OK, NOT_FOUND",
    ),
    (
        "all or nothing, not done",
        "0..1 1 SET a x -> OK@1; 2..3 1 ATOMIC SET b y, IF 7 SET a z -> NOT_APPLIED, MISMATCH@1;
         4..5 2 GET b -> NOT_FOUND; 6..7 2 ATOMIC SET b y, IF 0 SET b z -> NOT_APPLIED, MISMATCH@9;
         8..9 2 GET b -> NOT_FOUND",
    ),
    (
        "each on its own",
        "0..1 1 SET a x -> OK@1; 2..3 1 SET b y, IF 7 SET a z -> OK@2, MISMATCH@1;
         4..5 2 GET b -> y",
    ),
    (
        "all or nothing, done, with a read that failed",
        "0..1 1 SET a x -> OK@1; 2..3 1 ATOMIC GET b, GET a, SET a y -> failed, x@1, OK@2;
         4..5 2 GET a -> y",
    ),
    (
        "an unknown batch took effect",
        "0..1 1 ATOMIC SET a x, SET b y -> unknown; 2..3 2 GET a -> NOT_FOUND; 4..5 2 GET b -> y;
         6..7 2 GET a -> x",
    ),
    (
        "an unknown batch of single parts took effect in part",
        "0..1 1 SET a x, SET b y -> unknown; 2..3 2 GET b -> y; 4..5 2 GET a -> NOT_FOUND",
    ),
    (
        "a repeated compare-and-set gets the first answer",
        "0..1 1 ONCE t IF 0 SET a x -> OK@1; 2..3 2 SET a y -> OK@2;
         4..5 1 ONCE t IF 0 SET a x -> OK@1; 6..7 2 GET a -> y@2",
    ),
    (
        "a repeat reads anew",
        "0..1 1 ONCE t ATOMIC SET a x, GET b -> unknown; 2..3 2 GET a -> x; 4..5 2 SET b y -> OK@2;
         6..7 1 ONCE t ATOMIC SET a x, GET b -> OK@1, y",
    ),
    (
        "it vanishes in time",
        "0..1 1 SET a x TTL 10-20 -> OK@1; 5..6 2 GET a -> x; 9..12 2 GET a -> NOT_FOUND;
         30..31 2 IF 0 SET a y -> OK@2; 90..91 2 GET a -> y",
    ),
    (
        "it is there to the last moment",
        "0..1 1 SET a x TTL 10-20 -> OK@1; 20..30 2 GET a -> x; 31..32 2 GET a -> NOT_FOUND",
    ),
    (
        "without an end it may stay",
        "0..1 1 SET a x TTL 10- -> OK@1; 90..91 2 GET a -> x; 92..93 2 GET a -> NOT_FOUND",
    ),
    (
        "a write without a time to live ends it",
        "0..1 1 SET a x TTL 10-20 -> OK@1; 5..6 1 SET a y -> OK@2; 90..91 2 GET a -> y;
         92..93 2 TTL a -> NONE",
    ),
    (
        "longer, shorter, for ever",
        "0..1 1 SET a x -> OK@1; 2..3 1 EXPIRE a 10-20 -> OK; 4..5 1 TTL a -> LEFT@9;
         6..7 1 EXPIRE a 90-100 -> OK; 50..51 1 GET a -> x; 52..53 1 PERSIST a -> OK;
         200..201 1 GET a -> x; 202..203 1 EXPIRE b 1-2 -> NOT_FOUND;
         204..205 2 TTL b -> NOT_FOUND",
    ),
    (
        "an unknown one of a limited time",
        "0..1 1 SET a x TTL 10-20 -> unknown; 5..6 2 GET a -> x; 12..13 2 GET a -> NOT_FOUND",
    ),
    (
        "a write that is read later waits for a read of nothing",
        "0..1 1 SET a x -> OK@1; 2..3 1 DEL a -> OK; 4..5 2 DEL a -> unknown;
         4..5 3 SET a w -> unknown; 10..20 1 SET a y -> OK@2; 14..16 2 GET a -> NOT_FOUND;
         17..40 3 IF 0 SET b z, GET a -> OK@3, y@2",
    ),
    (
        "two unknown ones, the second by what the first did",
        "0..1 1 SET a x -> OK@1; 2..9 1 IF 1 SET a y -> unknown;
         2..9 2 ATOMIC IF 7 DEL a, SET b w -> unknown; 10..11 3 GET b -> w;
         12..13 3 GET a -> NOT_FOUND",
    ),
    (
        "an unknown one before what overwrites half of it",
        "0..9 1 ATOMIC SET a x, SET b x -> unknown; 10..11 2 SET a y -> OK@5; 12..13 2 GET b -> x;
         14..15 2 GET a -> y",
    ),
    (
        "the same value again",
        "0..1 1 SET a x -> OK@1; 2..3 1 SET a y -> OK@2; 4..5 2 GET a -> y; 6..7 1 SET a x -> OK@3;
         8..9 2 GET a -> x",
    ),
    (
        "of two unknown ones that do the same, the later one first",
        "0..1 1 SET a x -> OK@1; 2..3 1 EXPIRE a 10- -> unknown; 20..21 1 EXPIRE a 10- -> unknown;
         21..22 2 TTL a -> LEFT@9; 23..24 2 SET a y -> OK@2; 25..26 2 TTL a -> LEFT@5;
         27..28 2 GET a -> NOT_FOUND",
    ),
    (
        "unknown parts take effect apart",
        "0..1 1 SET a x, SET b y, GET c -> unknown; 2..3 2 GET a -> x; 4..5 2 GET b -> NOT_FOUND;
         6..7 2 DEL a -> OK; 8..9 2 GET b -> y; 10..11 2 GET a -> NOT_FOUND",
    ),
];

const WRONG: &[(&str, Rule, &str)] = &[
    (
        "stale compare-and-set",
        Rule::Order,
        "0..1 1 SET a x -> OK@1; 2..3 2 SET a y -> OK@2; 4..5 1 IF 1 SET a z -> OK@3",
    ),
    (
        "two winners of one revision",
        Rule::Order,
        "0..1 1 SET a x -> OK@1; 2..9 1 IF 1 SET a y -> OK@2; 2..9 2 IF 1 SET a z -> OK@3",
    ),
    (
        "two winners of an absence",
        Rule::Order,
        "0..9 1 IF 0 SET a y -> OK@2; 0..9 2 IF 0 SET a z -> OK@3",
    ),
    (
        "a condition that holds refused",
        Rule::Order,
        "0..1 1 SET a x -> OK@1; 2..3 1 IF 1 SET a y -> MISMATCH@1",
    ),
    (
        "a revision that was not there",
        Rule::Order,
        "0..1 1 SET a x -> OK@1; 2..3 1 SET a y -> OK@2; 4..5 1 IF 7 SET a z -> MISMATCH@1",
    ),
    (
        "a refused write took effect",
        Rule::Order,
        "0..1 1 SET a x -> OK@1; 2..3 1 IF 7 SET a y -> MISMATCH@1; 4..5 2 GET a -> y",
    ),
    (
        "a value of another revision",
        Rule::Order,
        "0..1 1 SET a x -> OK@1; 2..3 2 GET a -> x@2",
    ),
    (
        "one revision, two writes",
        Rule::Revision,
        "0..1 1 SET a x -> OK@1; 2..3 2 SET b y -> OK@1",
    ),
    (
        "one revision, two values",
        Rule::Revision,
        "0..1 1 SET a x -> OK@1; 2..9 1 SET a y -> unknown; 10..11 2 GET a -> y@1",
    ),
    (
        "half of a batch was seen",
        Rule::Order,
        "0..9 1 ATOMIC SET a x, SET b y -> OK@1, OK@2; 1..2 2 GET a -> x;
         3..4 2 GET b -> NOT_FOUND",
    ),
    (
        "half of an unknown batch was seen",
        Rule::Order,
        "0..9 1 ATOMIC SET a x, SET b y -> unknown; 10..11 2 GET a -> x;
         12..13 2 GET b -> NOT_FOUND",
    ),
    (
        "half of two batches was left",
        Rule::Order,
        "0..9 1 ATOMIC SET a x, SET b x -> OK@1, OK@2; 0..9 2 ATOMIC SET a y, SET b y -> OK@3, OK@4;
         10..11 3 GET a, GET b -> x, y",
    ),
    (
        "half of a batch done that was not to be done",
        Rule::Order,
        "0..1 1 SET a x -> OK@1; 2..3 1 ATOMIC SET b y, IF 7 SET a z -> NOT_APPLIED, MISMATCH@1;
         4..5 2 GET b -> y",
    ),
    (
        "done in spite of its condition",
        Rule::Order,
        "0..1 1 SET a x -> OK@1; 2..3 1 ATOMIC SET b y, IF 7 SET a z -> OK@2, OK@3",
    ),
    (
        "all or nothing, some",
        Rule::Order,
        "0..1 1 SET a x -> OK@1; 2..3 1 ATOMIC SET b y, IF 7 SET a z -> OK@2, MISMATCH@1",
    ),
    (
        "a read misses its batch's own write",
        Rule::Order,
        "0..1 1 SET a x -> OK@1; 2..3 1 SET a y, GET a -> OK@2, x@1",
    ),
    (
        "a read sees a later write of its batch",
        Rule::Order,
        "0..1 1 SET a x -> OK@1; 2..3 1 GET a, SET a y -> y, OK@2",
    ),
    (
        "two keys read at two moments",
        Rule::Order,
        "0..1 1 SET a x, SET b x -> OK@1, OK@2; 2..3 1 SET a y -> OK@3; 4..5 1 SET b y -> OK@4;
         2..9 2 GET a, GET b -> x, y",
    ),
    (
        "resurrected after it expired",
        Rule::Order,
        "0..1 1 SET a x TTL 10-20 -> OK@1; 12..13 2 GET a -> NOT_FOUND; 14..15 2 GET a -> x",
    ),
    (
        "expired too early",
        Rule::Order,
        "0..1 1 SET a x TTL 10-20 -> OK@1; 5..6 2 GET a -> NOT_FOUND",
    ),
    (
        "expired too late",
        Rule::Order,
        "0..1 1 SET a x TTL 10-20 -> OK@1; 22..23 2 GET a -> x",
    ),
    (
        "expired although written again",
        Rule::Order,
        "0..1 1 SET a x TTL 10-20 -> OK@1; 5..6 1 SET a y -> OK@2; 30..31 2 GET a -> NOT_FOUND",
    ),
    (
        "expired although it was to stay",
        Rule::Order,
        "0..1 1 SET a x TTL 10-20 -> OK@1; 5..6 1 PERSIST a -> OK; 30..31 2 GET a -> NOT_FOUND",
    ),
    (
        "the first time to live, not the second",
        Rule::Order,
        "0..1 1 SET a x TTL 10-20 -> OK@1; 5..6 1 EXPIRE a 90-99 -> OK;
         30..31 2 GET a -> NOT_FOUND",
    ),
    (
        "a condition saw what had expired",
        Rule::Order,
        "0..1 1 SET a x TTL 10-20 -> OK@1; 12..13 2 GET a -> NOT_FOUND;
         14..15 2 IF 1 SET a y -> OK@2",
    ),
    (
        "an unknown write twice",
        Rule::Order,
        "0..9 1 IF 0 SET a x -> unknown; 10..11 2 GET a -> x; 12..13 2 DEL a -> OK;
         14..15 2 GET a -> x",
    ),
    (
        "half of an unknown batch behind what came before it",
        Rule::Order,
        "0..9 1 ATOMIC SET a x, SET b x -> unknown; 10..11 2 SET a y -> OK@5;
         12..13 2 GET b -> NOT_FOUND; 14..15 2 GET b -> x; 16..17 2 GET a -> y",
    ),
    (
        "what an unknown one deleted comes back",
        Rule::Order,
        "0..1 1 SET a x -> OK@1; 2..9 2 IF 1 DEL a -> unknown; 2..9 3 SET a w -> unknown;
         10..11 1 GET a -> NOT_FOUND; 12..13 1 GET a -> x",
    ),
    (
        "another answer to a repeat",
        Rule::Repeat,
        "0..1 1 ONCE t IF 0 SET a x -> OK@1; 4..5 1 ONCE t IF 0 SET a x -> MISMATCH@1",
    ),
    (
        "an answer to something else",
        Rule::Answer,
        "0..1 1 GET a -> OK@1",
    ),
    (
        "a condition that nobody had",
        Rule::Answer,
        "0..1 1 SET a x -> MISMATCH@1",
    ),
];

#[test]
fn right_histories_with_conditions_are_accepted() {
    for (name, text) in RIGHT {
        if let Err(fault) = check(&history(text)) {
            panic!("{name}: {fault}");
        }
    }
}

#[test]
fn wrong_histories_with_conditions_are_rejected() {
    for (name, rule, text) in WRONG {
        let fault = check(&history(text)).expect_err(name);
        println!("{name}: {fault}");
        assert_eq!(fault.rule, *rule, "{name}: {fault}");
    }
}

/// A store that does one request after the other.
#[derive(Default)]
pub(crate) struct Store {
    messages: BTreeMap<Bytes, Message>,
    pub(crate) revision: u64,
}

#[derive(Clone)]
struct Message {
    value: Bytes,
    revision: u64,
    vanishes: Option<u64>,
}

impl Store {
    pub(crate) fn perform(&mut self, parts: &[Part], is_atomic: bool, now: u64) -> Vec<Told> {
        self.messages
            .retain(|_, message| message.vanishes.is_none_or(|at| now < at));
        let before = self.messages.clone();
        let told: Vec<Told> = parts.iter().map(|part| self.part(part, now)).collect();
        let is_refused = |told: &Told| matches!(told, Told::Mismatch(_));
        let Some(refused) = told.iter().position(is_refused).filter(|_| is_atomic) else {
            return told;
        };
        self.messages = before;
        let told = told.into_iter().enumerate();
        let told = told.map(|(position, told)| match position == refused {
            true => told,
            false => Told::NotApplied,
        });
        told.collect()
    }

    fn part(&mut self, part: &Part, now: u64) -> Told {
        let present = self.messages.get(&part.key);
        let revision = present.map(|message| message.revision);
        let holds = match part.condition {
            None => true,
            Some(Condition::Revision(asked)) => revision == Some(asked),
            Some(Condition::Absent) => revision.is_none(),
            Some(Condition::Exists) => revision.is_some(),
        };
        if !holds {
            return Told::Mismatch(revision);
        }
        let at = |life: &Option<Life>| life.map(|life| now + life.least + 2);
        match (&part.ask, present) {
            (Ask::Set { value, life }, _) => {
                self.revision += 1;
                let message = Message {
                    value: value.clone(),
                    revision: self.revision,
                    vanishes: at(life),
                };
                self.messages.insert(part.key.clone(), message);
                Told::Stored(self.revision)
            }
            (_, None) => Told::NotFound,
            (Ask::Get, Some(message)) => Told::Found {
                value: message.value.clone(),
                revision: message
                    .revision
                    .is_multiple_of(2)
                    .then_some(message.revision),
            },
            (Ask::Del, Some(_)) => {
                self.messages.remove(&part.key);
                Told::Done
            }
            (Ask::Expire(life), Some(message)) => {
                let vanishes = at(life);
                let message = Message {
                    vanishes,
                    ..message.clone()
                };
                self.messages.insert(part.key.clone(), message);
                Told::Done
            }
            (Ask::Left, Some(message)) => Told::Left(message.vanishes.map(|at| at - now)),
        }
    }
}

pub(crate) fn random_part(
    random: &mut fastrand::Rng,
    keys: usize,
    index: usize,
    last: u64,
) -> Part {
    let life = |random: &mut fastrand::Rng| {
        let least = random.u64(5..60);
        Life {
            asked: least,
            least,
            most: random.bool().then_some(least + 4),
        }
    };
    let ask = match random.u32(..12) {
        0..4 => Ask::Set {
            value: Bytes::from(format!("v{index}")),
            life: (random.u32(..3) == 0).then(|| life(random)),
        },
        4..8 => Ask::Get,
        8 => Ask::Del,
        9 => Ask::Expire(Some(life(random))),
        10 => Ask::Expire(None),
        _ => Ask::Left,
    };
    let condition = match (&ask, random.u32(..6)) {
        (Ask::Set { .. } | Ask::Del, 0..2) => {
            let back = random.u64(..4).min(last.saturating_sub(1));
            (last > 0).then(|| Condition::Revision(last - back))
        }
        (Ask::Set { .. } | Ask::Del, 2) => Some(Condition::Absent),
        (Ask::Set { .. } | Ask::Del, 3) => Some(Condition::Exists),
        _ => None,
    };
    Part {
        key: Bytes::from(format!("k{}", random.usize(..keys))),
        ask,
        condition,
    }
}

/// Calls of closed-loop clients, run by a real store at a random time of each call.
pub(crate) fn execution(
    random: &mut fastrand::Rng,
    count: usize,
    keys: usize,
    unknown: u32,
) -> Vec<Line> {
    let mut store = Store::default();
    let mut lines = Vec::new();
    let mut free_at = [0; 5];
    let mut points = Vec::new();
    for index in 0..count {
        let client = random.usize(..free_at.len());
        let call = free_at[client] + 10 * random.u64(..4);
        let end = call + 10 * random.u64(..6) + 5;
        free_at[client] = end + 5;
        let is_unknown = random.u32(..100) < unknown;
        let point = match is_unknown {
            true if random.bool() => u64::MAX,
            true => random.u64(call + 1..end + 100),
            false => random.u64(call + 1..=end),
        };
        points.push((point, index, client, call, end, is_unknown));
    }
    points.sort_unstable();
    for (point, index, client, call, end, is_unknown) in points {
        let last = store.revision;
        let size = [1, 1, 1, 2, 3][random.usize(..5)];
        let parts: Vec<Part> = (0..size)
            .map(|part| random_part(random, keys, 10 * index + part, last))
            .collect();
        let is_atomic = random.bool();
        let mut outcome = Outcome::Unknown;
        if point < u64::MAX {
            let told = store.perform(&parts, is_atomic, point);
            if !is_unknown {
                outcome = Outcome::Told(told);
            }
        }
        lines.push(Line {
            client: client as u32,
            token: None,
            command: Command::parts(parts, is_atomic),
            call,
            end: Some(end),
            outcome,
        });
    }
    lines
}

#[test]
fn executions_of_a_real_store_are_accepted() {
    let mut random = fastrand::Rng::with_seed(seed());
    for round in 0..600 {
        let (count, keys) = (random.usize(1..150), random.usize(1..=6));
        let lines = execution(&mut random, count, keys, [0, 2, 8][round % 3]);
        let history = record(&lines);
        check(&history).unwrap_or_else(|fault| panic!("{fault}"));
        // With a low bound parts of it are looked at alone: none is wrong either.
        if let Err(fault) = check_within(&history, 1_000) {
            assert_eq!(fault.rule, Rule::Undecided, "{fault}");
        }
    }
}

/// Each change makes an answer that no store gives at any moment of the call: of a history without
/// unknown outcomes and with one client, all is decided.
#[test]
fn changed_answers_of_a_real_store_are_rejected() {
    let mut random = fastrand::Rng::with_seed(seed());
    let mut rejected = HashMap::new();
    for _ in 0..1_500 {
        let mut lines = execution(&mut random, 25, 2, 0);
        lines.sort_by_key(|line| line.call);
        // One after the other, without times to live: the answers follow from the requests.
        let mut store = Store::default();
        for (index, line) in lines.iter_mut().enumerate() {
            let Command::Parts { parts, is_atomic } = &mut line.command else {
                unreachable!("only those were made");
            };
            for part in parts.iter_mut() {
                match &mut part.ask {
                    Ask::Set { life, .. } | Ask::Expire(life) => *life = None,
                    _ => {}
                }
            }
            (line.call, line.end) = (10 * index as u64, Some(10 * index as u64 + 5));
            line.outcome = Outcome::Told(store.perform(parts, *is_atomic, line.call));
        }
        check(&record(&lines)).unwrap_or_else(|fault| panic!("{fault}"));
        let index = random.usize(..lines.len());
        let Outcome::Told(told) = &mut lines[index].outcome else {
            unreachable!("all were answered");
        };
        let part = random.usize(..told.len());
        let (what, changed) = match &told[part] {
            Told::Found { value, .. } if random.bool() => (
                "another revision",
                Told::Found {
                    value: value.clone(),
                    revision: Some(9_999),
                },
            ),
            Told::Found { .. } => ("value not found", Told::NotFound),
            Told::NotFound => (
                "value found",
                Told::Found {
                    value: Bytes::from("v1"),
                    revision: None,
                },
            ),
            Told::Mismatch(revision) => (
                "another mismatch",
                Told::Mismatch(revision.map_or(Some(1), |_| None)),
            ),
            Told::Done => ("nothing there", Told::NotFound),
            Told::Left(_) => ("expires", Told::Left(Some(1))),
            Told::Stored(_) | Told::NotApplied | Told::Failed => continue,
        };
        told[part] = changed;
        let shown: Vec<String> = record(&lines)
            .operations()
            .iter()
            .map(ToString::to_string)
            .collect();
        check(&record(&lines)).expect_err(&format!("{what} at {index}: {}", shown.join("\n")));
        *rejected.entry(what).or_insert(0) += 1;
    }
    println!("{rejected:?}");
    assert!(
        rejected.len() == 6 && rejected.values().all(|count| *count > 10),
        "{rejected:?}"
    );
}

#[test]
fn long_histories_with_conditions_are_quick() {
    use tolerex::clock::{Clock, SystemClock};
    let mut random = fastrand::Rng::with_seed(7);
    let count = std::env::var("N")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(20_000);
    let history = record(&execution(&mut random, count, 12, 0));
    let clock = SystemClock::new();
    let start = clock.now();
    let summary = check(&history).unwrap_or_else(|fault| panic!("{fault}"));
    let took = clock.now().since(start);
    println!("20,000 requests, 12 keys as one: {took:?}, {summary:?}");
    assert!(took < std::time::Duration::from_secs(20), "{took:?}");
}
