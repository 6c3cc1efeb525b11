//! Splits a history by key: what each request does to each, and which keys belong together.

use std::collections::BTreeMap;
use std::collections::HashMap;

use super::super::history::{self, Command, Moment, Outcome, Told};
use super::{Request, is_read, parts};

/// A value of one key, by order of appearance.
pub(super) type Value = usize;

/// No value: what DEL leaves behind.
pub(super) const ABSENT: Value = 0;
/// Any value that no GET returned. Such values need no telling apart.
pub(super) const UNREAD: Value = 1;

/// What an operation does to a register, or needs of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
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
pub(super) struct Step {
    /// By position.
    pub request: usize,
    pub action: Action,
    pub call: Moment,
    /// `None` if it may happen at any time after the call, or never.
    pub end: Option<Moment>,
}

/// The steps on one key.
#[derive(Default)]
pub(super) struct KeySteps<'a> {
    pub steps: Vec<Step>,
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
pub(super) fn split<'a>(requests: &'a [Request<'a>]) -> BTreeMap<&'a [u8], KeySteps<'a>> {
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
pub(super) fn groups<'a>(
    keys: &mut BTreeMap<&'a [u8], KeySteps<'a>>,
    requests: &'a [Request<'a>],
) -> Vec<(Vec<&'a [u8]>, Vec<parts::Op>)> {
    let pieces: Vec<Piece<'a>> = requests.iter().enumerate().flat_map(pieces).collect();
    let names = joined(&pieces);
    // Each key's group, and its slot there.
    let mut places: HashMap<&[u8], (usize, usize)> = HashMap::new();
    let mut groups = Vec::new();
    for (group, names) in names.into_iter().enumerate() {
        let steps = names.iter().enumerate().map(|(slot, name)| {
            places.insert(name, (group, slot));
            keys.remove(name).expect("each is there")
        });
        let steps: Vec<KeySteps<'a>> = steps.collect();
        groups.push((names, steps, Vec::new()));
    }
    for piece in pieces {
        let (group, _) = places[piece.acts[0].0.key.as_ref()];
        let (_, steps, ops) = &mut groups[group];
        let acts = piece.acts.into_iter().map(|(part, told)| {
            let (_, slot) = places[part.key.as_ref()];
            act(part, told, slot, &mut steps[slot])
        });
        let request = &requests[piece.request];
        ops.push(parts::Op {
            request: piece.request,
            call: request.call,
            end: request.end,
            acts: acts.collect(),
            is_atomic: piece.is_atomic,
        });
    }
    let groups = groups.into_iter().map(|(names, steps, mut ops)| {
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
    groups.collect()
}

/// What takes effect at one moment of a request of parts.
struct Piece<'a> {
    request: usize,
    acts: Vec<(&'a history::Part, Option<&'a Told>)>,
    is_atomic: bool,
}

/// Those of a request: all of it, but of an unknown one whose parts take effect each on its own any
/// may have been left out, so each may come by itself. Reads that told nothing do not count.
fn pieces<'a>((index, request): (usize, &'a Request<'a>)) -> Vec<Piece<'a>> {
    let Command::Parts { parts, is_atomic } = request.command else {
        return Vec::new();
    };
    let told: Vec<Option<&Told>> = match request.outcome {
        Outcome::Told(told) => told.iter().map(Some).collect(),
        _ => vec![None; parts.len()],
    };
    let is_repeated = request.calls.len() > 1;
    let acts = parts.iter().zip(told).map(|(part, told)| {
        // A repeat reads anew, perhaps long after the writes.
        let is_anew = is_repeated && part.ask == history::Ask::Get;
        (part, told.filter(|told| !(is_anew && is_read(told))))
    });
    let is_seen = |(part, told): &(&history::Part, Option<&Told>)| {
        let is_read = matches!(part.ask, history::Ask::Get | history::Ask::Left);
        told.is_some() || !is_read || part.condition.is_some()
    };
    let acts: Vec<_> = acts.filter(is_seen).collect();
    let is_whole = *is_atomic || request.end.is_some();
    let pieces: Vec<Vec<_>> = match is_whole {
        true => vec![acts],
        false => acts.into_iter().map(|act| vec![act]).collect(),
    };
    let piece = |acts: Vec<_>| Piece {
        request: index,
        acts,
        is_atomic: *is_atomic,
    };
    let pieces = pieces.into_iter().map(piece);
    pieces.filter(|piece| !piece.acts.is_empty()).collect()
}

/// The keys of the pieces, those together that a piece joins.
fn joined<'a>(pieces: &[Piece<'a>]) -> Vec<Vec<&'a [u8]>> {
    // Each key's group, by a key of it.
    let mut group: BTreeMap<&[u8], &[u8]> = BTreeMap::new();
    for piece in pieces {
        let mut names = piece.acts.iter().map(|(part, _)| part.key.as_ref());
        let first: &[u8] = names.next().expect("at least one");
        let joined = *group.entry(first).or_insert(first);
        for name in names {
            let other = *group.entry(name).or_insert(name);
            let members = group.values_mut().filter(|one| **one == other);
            members.for_each(|one| *one = joined);
        }
    }
    let mut found: BTreeMap<&[u8], Vec<&[u8]>> = BTreeMap::new();
    for (name, joined) in group {
        found.entry(joined).or_default().push(name);
    }
    found.into_values().collect()
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
