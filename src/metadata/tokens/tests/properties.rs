//! Any use of tokens against a simple model.

use OperationResult::Stored;

use super::*;

/// Everything naive: only what is live, sets of positions, sums over all.
#[derive(Default)]
struct Model {
    clock_ms: u64,
    live: BTreeMap<String, (u64, ModelUse)>,
    messages: BTreeSet<u64>,
    reserved_until: u64,
    weight_max: usize,
}

#[derive(Clone)]
enum ModelUse {
    Done(Outcome),
    Bulk(u64, u64, BTreeSet<u64>),
}

impl Model {
    fn begin(&mut self, now_ms: u64) {
        self.clock_ms = self.clock_ms.max(now_ms);
        let clock_ms = self.clock_ms;
        self.live
            .retain(|_, (expires_ms, _)| *expires_ms > clock_ms);
    }

    fn is_full(&self) -> bool {
        let weight = |used: &ModelUse| match used {
            ModelUse::Done(_) => 1,
            ModelUse::Bulk(_, _, stored) => {
                let begins = stored
                    .iter()
                    .filter(|at| **at == 0 || !stored.contains(&(*at - 1)));
                begins.count().max(1)
            }
        };
        self.live
            .values()
            .map(|(_, used)| weight(used))
            .sum::<usize>()
            >= self.weight_max
    }

    fn keep(&mut self, text: &str, window_ms: u64, used: ModelUse) {
        let expires_ms = self.clock_ms + window_ms;
        self.live.insert(text.to_owned(), (expires_ms, used));
    }

    fn write(&mut self, text: &str, operation: &Operation, window_ms: u64) -> OperationResult {
        match self.live.get(text) {
            Some((_, ModelUse::Done(outcome))) => return Repeated(*outcome),
            Some((_, ModelUse::Bulk(..))) => return Refused(TokenRefusal::InUse),
            None if !text.is_empty() && self.is_full() => return Refused(TokenRefusal::TooMany),
            None => {}
        }
        let (result, outcome) = match operation {
            Operation::Set { key, revision, .. } => {
                let Key::Id(id) = key else { panic!("an id") };
                let created = self.messages.insert(*id);
                let revision = *revision;
                (Stored { created }, Outcome::Stored { revision, created })
            }
            Operation::Delete { key } => {
                let Key::Id(id) = key else { panic!("an id") };
                match self.messages.remove(id) {
                    true => (Deleted, Outcome::Deleted),
                    false => (NotFound, Outcome::NotFound),
                }
            }
        };
        if !text.is_empty() {
            self.keep(text, window_ms, ModelUse::Done(outcome));
        }
        result
    }

    fn reserve(&mut self, text: &str, count: u64, window_ms: u64) -> Applied {
        match self.live.get(text).cloned() {
            Some((_, ModelUse::Done(outcome))) => return Applied::Repeated(outcome),
            Some((_, ModelUse::Bulk(first, of, positions))) if of == count => {
                let mut stored: Vec<(u32, u32)> = Vec::new();
                for at in positions.iter().map(|at| *at as u32) {
                    match stored.last_mut().filter(|range| range.1 == at) {
                        Some(range) => range.1 += 1,
                        None => stored.push((at, at + 1)),
                    }
                }
                self.keep(text, window_ms, ModelUse::Bulk(first, of, positions));
                return Applied::Resumed { first, stored };
            }
            Some(_) => return Applied::Refused(TokenRefusal::InUse),
            None if self.is_full() => return Applied::Refused(TokenRefusal::TooMany),
            None => {}
        }
        let is_free = |id: &u64| (*id..*id + count).all(|id| !self.messages.contains(&id));
        let first = (self.reserved_until + 1..)
            .find(is_free)
            .expect("ids are left");
        self.reserved_until = first + count - 1;
        self.keep(
            text,
            window_ms,
            ModelUse::Bulk(first, count, BTreeSet::new()),
        );
        Applied::Reserved { first }
    }

    /// One message of a bulk write.
    fn part(&mut self, text: &str, id: u64, window_ms: u64) -> OperationResult {
        let expired = Refused(TokenRefusal::Expired);
        let (first, count, mut stored) = match self.live.get(text).cloned() {
            Some((_, ModelUse::Done(Outcome::Bulk { first, last }))) => {
                return match (first..=last).contains(&id) {
                    true => StoredBefore,
                    false => expired,
                };
            }
            Some((_, ModelUse::Bulk(first, count, stored))) => (first, count, stored),
            Some((_, ModelUse::Done(_))) | None => return expired,
        };
        let at = id.wrapping_sub(first);
        let touches = stored.contains(&at.wrapping_sub(1)) || stored.contains(&at.wrapping_add(1));
        let result = if at >= count {
            expired
        } else if stored.contains(&at) {
            StoredBefore
        } else if !stored.is_empty() && !touches && self.is_full() {
            Refused(TokenRefusal::TooMany)
        } else {
            stored.insert(at);
            let created = self.messages.insert(id);
            Stored { created }
        };
        let used = match stored.len() as u64 == count {
            true => ModelUse::Done(Outcome::Bulk {
                first,
                last: first + count - 1,
            }),
            false => ModelUse::Bulk(first, count, stored),
        };
        self.keep(text, window_ms, used);
        result
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// Token or nothing, id, whether it is a SET.
    Write(Vec<(String, u64, bool)>),
    Reserve(String, u64),
    /// Ids relative to the lowest that were reserved last.
    Part(String, Vec<u64>),
    /// The rest goes on in a state restored from a snapshot.
    Restore,
}

fn any_step() -> impl Strategy<Value = Step> {
    let write = ("[abcd]?", 0..20_u64, any::<bool>());
    prop_oneof![
        4 => prop::collection::vec(write, 1..5).prop_map(Step::Write),
        2 => ("[ab]", 1..7_u64).prop_map(|(text, count)| Step::Reserve(text, count)),
        5 => ("[ab]", prop::collection::vec(0..7_u64, 1..5))
            .prop_map(|(text, ids)| Step::Part(text, ids)),
        1 => Just(Step::Restore),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn tokens_agree_with_the_model(
        steps in prop::collection::vec((any_step(), 0..60_u64, 1..150_u64), 1..40),
        weight_max in 1..6_usize,
    ) {
        let mut h = Harness::new(weight_max);
        let mut model = Model { weight_max, ..Model::default() };
        let mut now_ms = 1000;
        let mut first_id = 1;
        // Revisions that were written and not released: those that are listed, in the end.
        let mut records = BTreeSet::new();
        for (step, later_ms, window_ms) in steps {
            // Sometimes a leader whose clock is behind.
            now_ms = (now_ms + later_ms).saturating_sub(20);
            let mut expected = Vec::new();
            if !matches!(step, Step::Restore) {
                model.begin(now_ms);
            }
            let change = match step {
                Step::Write(writes) => {
                    let mut tokens = Vec::new();
                    let mut operations = Vec::new();
                    for (at, (text, id, is_set)) in (0..).zip(writes) {
                        let operation = if is_set { h.set(id, 1 + id % 2) } else { delete(id) };
                        expected.push(model.write(&text, &operation, window_ms));
                        operations.push(operation);
                        tokens.extend((!text.is_empty()).then(|| (at, token(&text))));
                    }
                    OnceChange::Write { tokens, operations }
                }
                Step::Reserve(text, count) => {
                    let token = token(&text);
                    let expected = model.reserve(&text, count, window_ms);
                    let change = OnceChange::ReserveIds { token, count };
                    let applied = h.once(now_ms, window_ms, change);
                    prop_assert_eq!(&applied, &expected);
                    if let Applied::Reserved { first } | Applied::Resumed { first, .. } = applied {
                        first_id = first;
                    }
                    continue;
                }
                Step::Part(text, ids) => {
                    let mut operations = Vec::new();
                    for (at, id) in (0..).zip(ids) {
                        // Neighbours differ in their members, so each is decided on its own.
                        operations.push(h.set(first_id + id, 1 + at % 2));
                        expected.push(model.part(&text, first_id + id, window_ms));
                    }
                    OnceChange::WritePart { token: token(&text), operations }
                }
                Step::Restore => {
                    let (digest, sequence) = (h.state.digest(), h.sequence);
                    h = restored(&snapshot(&mut h, |_| {})).expect("valid");
                    prop_assert_eq!(h.state.digest(), digest);
                    h.sequence = sequence;
                    h.state.tokens.weight_max = weight_max;
                    continue;
                }
            };
            let (OnceChange::Write { operations, .. } | OnceChange::WritePart { operations, .. }) =
                &change
            else {
                unreachable!("a reservation was done");
            };
            for operation in operations {
                if let Operation::Set { revision, .. } = operation {
                    records.insert(*revision);
                }
            }
            let Applied::Write { results, released } = h.once(now_ms, window_ms, change) else {
                panic!("a write");
            };
            prop_assert_eq!(results, expected);
            for (revision, _) in released {
                prop_assert!(records.remove(&revision), "released twice");
            }
            let listed = (0..200).filter_map(|id| h.revision(id));
            let listed: BTreeSet<_> = listed.map(|n| Revision::new(TERM, n)).collect();
            prop_assert_eq!(&records, &listed);
            prop_assert_eq!(h.state.message_count(), model.messages.len() as u64);
        }
    }

    /// However the messages of a bulk write come in entries, each is stored once.
    #[test]
    fn parts_in_any_order_store_each_message_once(
        parts in prop::collection::vec((0..30_u64, 1..12_u64, 1..4_u64), 1..30),
    ) {
        let mut h = Harness::new(1000);
        h.reserve(0, "b", 30);
        let mut seen = BTreeSet::new();
        for (begin, count, run) in parts {
            let ids: Vec<u64> = (begin..(begin + count).min(30)).map(|at| at + 1).collect();
            let operations = ids.iter().map(|id| h.set(*id, 1 + id / run % 2)).collect();
            let part = OnceChange::WritePart { token: token("b"), operations };
            let Applied::Write { results, .. } = h.once(0, 100, part) else {
                panic!("a write");
            };
            for (id, result) in ids.into_iter().zip(results) {
                prop_assert_eq!(result, if seen.insert(id) { CREATED } else { StoredBefore });
            }
            let is_done = matches!(h.state.tokens().find(&token("b")), Some(Use::Done(_)));
            prop_assert_eq!(is_done, seen.len() == 30);
            prop_assert_eq!(h.state.message_count(), seen.len() as u64);
        }
    }
}
