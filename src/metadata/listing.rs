//! Pages of keys in bytewise order of their text, message ids too. Pure.
//!
//! Words are kept in order in each shard, so a page seeks in every shard and merges. Ids are not:
//! order by text is not order by number, and an index for it would cost each of them more than its
//! slot may. So a page looks at every id, which is a comparison with numbers worked out beforehand:
//! some 5 ms for a million (`cargo bench -- listing`). Where no id can be on the page, as behind a
//! prefix with letters, none is looked at. It runs on a worker and holds a shard for some
//! microseconds, so that `apply` goes on beside it.
//!
//! A page is not a snapshot: shards are looked at one after the other. What was there all the time
//! is in it, what never was is not, and so it is for all pages of a listing together.

use crate::ids::{Key, Revision};
use crate::metadata::message_index::Slot;
use crate::metadata::state::Shards;
use crate::protocol::reply::{KeyPage, ListedKey};
use crate::protocol::request::ListRequest;

/// A page ends with the key that makes its text this long in all: 256 KiB.
pub const PAGE_TEXT_BYTES_MAX: usize = 256 << 10;

/// Decimal digits of the largest id.
const DIGITS_MAX: usize = 20;

/// The page that is asked for.
pub fn list<S: Shards>(shards: &S, request: &ListRequest) -> KeyPage {
    let mut candidates = Candidates::new(request);
    for shard in 0..shards.shard_count() {
        shards.read_shard(shard, |shard| {
            if !candidates.ids.is_empty() {
                for (id, slot) in shard.ids() {
                    if candidates.ids.may_have(id) {
                        candidates.add(id.to_string().into(), || Key::Id(id), slot);
                    }
                }
            }
            let (from, is_after) = candidates.words_from();
            for (word, slot) in shard.words_from(from, is_after) {
                if !candidates.takes(word) {
                    break;
                }
                candidates.add(word.into(), || Key::Word(word.into()), slot);
            }
        });
    }
    candidates.page()
}

/// The keys found so far that may be on the page.
struct Candidates<'a> {
    request: &'a ListRequest,
    /// One more than the page takes, so that it is known whether there are more.
    count_max: usize,
    found: Vec<Candidate>,
    /// Nothing from this text on is wanted any more.
    below: Option<Box<str>>,
    ids: IdRanges,
}

struct Candidate {
    text: Box<str>,
    key: Key,
    revision: Revision,
    bytes: u64,
}

impl<'a> Candidates<'a> {
    fn new(request: &'a ListRequest) -> Candidates<'a> {
        Candidates {
            request,
            count_max: request.limit as usize + 1,
            found: Vec::new(),
            below: None,
            ids: IdRanges::new(&request.prefix, request.after.as_deref()),
        }
    }

    /// The text from which words on are looked at, and whether that one is left out.
    fn words_from(&self) -> (&'a str, bool) {
        match &self.request.after {
            Some(after) if **after >= *self.request.prefix => (after, true),
            Some(_) | None => (&self.request.prefix, false),
        }
    }

    /// Whether a word behind [`Candidates::words_from`] is wanted; if not, none behind it is.
    fn takes(&self, word: &str) -> bool {
        word.starts_with(&*self.request.prefix)
            && self.below.as_deref().is_none_or(|below| word < below)
    }

    fn add(&mut self, text: Box<str>, key: impl FnOnce() -> Key, slot: Slot) {
        self.found.push(Candidate {
            text,
            key: key(),
            revision: slot.revision,
            bytes: u64::from(slot.length),
        });
        // Seldom enough for its cost to be small beside what it spares.
        if self.found.len() >= 2 * self.count_max {
            self.sort();
            self.found.truncate(self.count_max);
            let last = self.found.last().expect("a page has room for a key");
            self.ids.end_before(last.text.as_bytes());
            self.below = Some(last.text.clone());
        }
    }

    fn sort(&mut self) {
        self.found.sort_unstable_by(|a, b| a.text.cmp(&b.text));
    }

    fn page(mut self) -> KeyPage {
        self.sort();
        let mut has_more = self.found.len() >= self.count_max;
        self.found.truncate(self.count_max - 1);
        let mut bytes = 0;
        let mut fits = 0;
        for candidate in &self.found {
            bytes += candidate.text.len();
            fits += 1;
            if bytes >= PAGE_TEXT_BYTES_MAX {
                break;
            }
        }
        has_more |= fits < self.found.len();
        self.found.truncate(fits);
        let listed = |candidate: Candidate| ListedKey {
            key: candidate.key,
            revision: candidate.revision,
            bytes: candidate.bytes,
        };
        KeyPage {
            keys: self.found.into_iter().map(listed).collect(),
            has_more,
        }
    }
}

/// Which ids are wanted, for each number of digits: among texts of equal length the order by text
/// is that by number.
struct IdRanges {
    /// For one digit and more; of no numbers beyond those that have so many.
    by_digits: [IdRange; DIGITS_MAX],
}

/// Consecutive ids.
#[derive(Clone, Copy)]
struct IdRange {
    first: u64,
    count: u64,
}

impl IdRange {
    /// From one number on, up to another; those that are no ids are left out.
    fn new(from: u128, end: u128) -> IdRange {
        let end = end.min(u128::from(u64::MAX) + 1);
        let count = u64::try_from(end.saturating_sub(from));
        IdRange {
            first: u64::try_from(from).unwrap_or(u64::MAX),
            count: count.expect("ids of the same number of digits"),
        }
    }

    /// In one comparison, as it is done for every id.
    fn contains(self, id: u64) -> bool {
        id.wrapping_sub(self.first) < self.count
    }
}

impl IdRanges {
    fn new(prefix: &str, after: Option<&str>) -> IdRanges {
        let prefix = prefix.as_bytes();
        let mut ranges = IdRanges {
            by_digits: std::array::from_fn(|at| {
                let from = lowest(prefix, at + 1, false);
                let from = after.map_or(from, |after| {
                    from.max(lowest(after.as_bytes(), at + 1, true))
                });
                IdRange::new(from, 10_u128.pow(at as u32 + 1))
            }),
        };
        if let Some(end) = behind_prefix(prefix) {
            ranges.end_before(&end);
        }
        ranges
    }

    /// No text from this one on is wanted.
    fn end_before(&mut self, text: &[u8]) {
        for (at, range) in self.by_digits.iter_mut().enumerate() {
            let end = u128::from(range.first) + u128::from(range.count);
            let end = end.min(lowest(text, at + 1, false));
            *range = IdRange::new(range.first.into(), end);
        }
    }

    /// Whether no id is wanted.
    fn is_empty(&self) -> bool {
        self.by_digits.iter().all(|range| range.count == 0)
    }

    fn may_have(&self, id: u64) -> bool {
        self.by_digits[digits_but_one(id)].contains(id)
    }
}

/// The powers of ten that are ids.
const POWERS: [u64; DIGITS_MAX] = {
    let mut powers = [1; DIGITS_MAX];
    let mut at = 1;
    while at < DIGITS_MAX {
        powers[at] = 10 * powers[at - 1];
        at += 1;
    }
    powers
};

/// One less than the number's decimal digits: `ilog10`, without its branches and divisions.
fn digits_but_one(id: u64) -> usize {
    // It has as many digits, and one at least.
    let id = id | 1;
    // Digits for each bit, rounded so that it holds for 64 bits: log 2 / log 10 is 0.30103.
    let bits = (u64::BITS - id.leading_zeros()) as usize;
    let at = (bits * 1233) >> 12;
    at - usize::from(id < POWERS[at])
}

/// The lowest text above all that begin with `prefix`; `None` if there is none.
fn behind_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let at = prefix.iter().rposition(|byte| *byte < u8::MAX)?;
    let mut end = prefix[..=at].to_vec();
    end[at] += 1;
    Some(end)
}

/// The lowest number whose decimal text has `digits` digits and is not below `text`, or is above it
/// (`is_after`); 10 to the power of `digits` if there is none.
fn lowest(text: &[u8], digits: usize, is_after: bool) -> u128 {
    let mut number = 0_u128;
    for at in 0..digits {
        let rest = 10_u128.pow((digits - at) as u32);
        match text.get(at) {
            // All of `text` is there, and more.
            None => return floor(number * rest, digits),
            Some(digit @ b'0'..=b'9') => number = number * 10 + u128::from(digit - b'0'),
            Some(byte) if *byte < b'0' => return floor(number * rest, digits),
            // Whatever begins with these digits is below `text`.
            Some(_) => return floor((number + 1) * rest, digits),
        }
    }
    let is_below = text.len() > digits || (is_after && text.len() == digits);
    floor(number + u128::from(is_below), digits)
}

/// At least the lowest number with so many digits: a message id has no leading zeros.
fn floor(number: u128, digits: usize) -> u128 {
    match digits {
        1 => number,
        _ => number.max(10_u128.pow(digits as u32 - 1)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::metadata::message_index::shard_of;
    use crate::metadata::replica_sets::SetId;
    use crate::metadata::state::PlainShards;

    fn shards_of(keys: &[Key]) -> PlainShards {
        let mut shards = PlainShards::new(4);
        for (number, key) in keys.iter().enumerate() {
            let slot = Slot {
                revision: Revision::new(1, number as u64),
                set: SetId(0),
                length: number as u32,
            };
            let shard = shard_of(key, 4);
            shards.write_shard(shard, |shard| _ = shard.insert(key, slot));
        }
        shards
    }

    fn texts(page: &KeyPage) -> Vec<String> {
        page.keys
            .iter()
            .map(|listed| listed.key.to_string())
            .collect()
    }

    fn request(prefix: &str, after: Option<&str>, limit: u32) -> ListRequest {
        ListRequest {
            prefix: prefix.into(),
            after: after.map(Into::into),
            limit,
        }
    }

    fn key() -> impl Strategy<Value = Key> {
        let id = prop_oneof![0..30_u64, 95..130_u64, any::<u64>()];
        let word = "[0-9ab/:\u{e4}]{1,3}";
        prop_oneof![
            id.prop_map(Key::Id),
            word.prop_map(|word| Key::parse(word.as_bytes()).expect("a key")),
        ]
    }

    proptest! {
        #[test]
        fn pages_are_what_sorting_all_keys_gives(
            keys in vec(key(), 0..80),
            prefix in prop_oneof![Just(String::new()), "[019ab/:]{0,2}", "\u{e4}"],
            after in proptest::option::of("[0-9ab/:\u{e4}]{0,4}"),
            limit in 1..20_u32,
        ) {
            let shards = shards_of(&keys);
            let mut expected: Vec<String> = keys.iter().map(Key::to_string).collect();
            expected.sort_unstable();
            expected.dedup();
            expected.retain(|text| text.starts_with(&prefix));
            expected.retain(|text| after.as_ref().is_none_or(|after| text > after));
            let mut found = Vec::new();
            let mut after = after;
            loop {
                let page = list(&shards, &request(&prefix, after.as_deref(), limit));
                let full = page.keys.len() == limit as usize;
                prop_assert!(full || !page.has_more, "{page:?}");
                found.extend(texts(&page));
                after = found.last().cloned();
                if !page.has_more {
                    break;
                }
            }
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn digits_are_counted_around_every_power_of_ten_and_two() {
        let powers = POWERS.into_iter().chain((0..u64::BITS).map(|bit| 1 << bit));
        let around = powers.flat_map(|power| [power - 1, power, power + 1]);
        for id in around.chain([u64::MAX - 1, u64::MAX]) {
            assert_eq!(digits_but_one(id) + 1, id.to_string().len(), "{id}");
        }
    }

    #[test]
    fn a_page_of_long_keys_ends_before_its_count() {
        let long = |number: u32| format!("{number:03}{}", "x".repeat(509));
        let keys: Vec<Key> = (0..600)
            .map(|number| Key::parse(long(number).as_bytes()).expect("a key"))
            .collect();
        let page = list(&shards_of(&keys), &request("", None, 1000));
        assert_eq!((page.keys.len(), page.has_more), (512, true));
        let last = page.keys.last().expect("keys").key.to_string();
        let rest = list(&shards_of(&keys), &request("", Some(&last), 1000));
        assert_eq!((rest.keys.len(), rest.has_more), (88, false));
    }

    #[test]
    fn a_listed_key_has_its_revision_and_length() {
        let keys = [Key::Id(5), Key::parse(b"a").expect("a key")];
        let page = list(&shards_of(&keys), &request("a", None, 10));
        let expected = ListedKey {
            key: keys[1].clone(),
            revision: Revision::new(1, 1),
            bytes: 1,
        };
        assert_eq!(page.keys, [expected]);
    }
}
