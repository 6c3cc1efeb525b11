//! The message index: key -> revision, replica set, length, in shards. Pure.
//!
//! A [`Shard`] is a plain value; a leader keeps each behind a lock of its own, a test keeps them in
//! a `Vec`. Which shard a key is in follows from the key and the number of shards alone
//! ([`shard_of`]), and nothing outside depends on that number. Message ids and other keys live in
//! separate hash tables, so that an id costs no allocation.
//!
//! Other keys are kept in their order, for listings (`listing`).
//!
//! Memory: a hash table is between 7/16 and 7/8 full while it grows, so an id's slot (24 bytes, and
//! 1 control byte) costs 29 to 57 bytes. A node of an ordered table holds 5 to 11 slots of 32
//! bytes, so another key costs 37 to 89, and its text. Shards are of different widths, up to twice
//! the narrowest, so that their tables do not all double at the same time: together they cost some
//! 40 bytes for an id, however many there are, and what one leaves behind the next one can use. A
//! table that has become less than an eighth full by deletes is made smaller. Replica sets are
//! interned and shared (`replica_sets`).
//!
//! Pauses: a table that is full is copied to one twice its size in one go. With 1,024 shards and
//! 100 million ids that is some 100,000 slots, about a millisecond, under that shard's lock only.
//!
//! Known limits: ids are hashed without a secret, so a client can choose ids that meet in one place
//! of a table and slow down that shard. The order of ids within a shard follows the hashes: what
//! leaves this module in order is sorted first.

use std::collections::hash_map::IntoIter;
use std::collections::{BTreeMap, HashMap, btree_map};
use std::ops::Bound;

use rustc_hash::FxBuildHasher;

use crate::ids::{Key, Revision};
use crate::metadata::replica_sets::{ReplicaSet, SetId};

/// What a lookup returns: where the current record of a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Names the record.
    pub revision: Revision,
    /// The members that hold it.
    pub replicas: ReplicaSet,
    /// The payload's length in bytes.
    pub length: u32,
}

/// Looks messages up in applied metadata.
pub trait Lookup {
    /// The current record of `key`; `None` if there is no such message.
    fn find(&self, key: &Key) -> Option<Entry>;
}

/// What the index holds for a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Names the record.
    pub revision: Revision,
    /// The members that hold it, interned.
    pub set: SetId,
    /// The payload's length in bytes.
    pub length: u32,
}

/// A part of the message index.
#[derive(Clone, Debug, Default)]
pub struct Shard {
    ids: HashMap<u64, Slot, FxBuildHasher>,
    words: BTreeMap<Box<str>, Slot>,
    /// When messages expire, of those that do: milliseconds since the Unix epoch.
    expiry: BTreeMap<Key, u64>,
}

/// All messages of a shard: ids in no order, then other keys; and when those expire that do.
#[derive(Debug, Default)]
pub(super) struct Messages {
    ids: IntoIter<u64, Slot>,
    words: btree_map::IntoIter<Box<str>, Slot>,
    expiry: BTreeMap<Key, u64>,
}

impl Iterator for Messages {
    /// Key, slot, and when it expires.
    type Item = (Key, Slot, Option<u64>);

    fn next(&mut self) -> Option<Self::Item> {
        let (key, slot) = match self.ids.next() {
            Some((id, slot)) => (Key::Id(id), slot),
            None => self
                .words
                .next()
                .map(|(word, slot)| (Key::Word(word), slot))?,
        };
        let expiry = match self.expiry.is_empty() {
            true => None,
            false => self.expiry.remove(&key),
        };
        Some((key, slot, expiry))
    }
}

/// A table below this capacity is not made smaller: there is nothing to gain.
const SHRINK_CAPACITY_MIN: usize = 64;

impl Shard {
    /// The message's record; `None` if there is no such message.
    pub fn find(&self, key: &Key) -> Option<Slot> {
        match key {
            Key::Id(id) => self.ids.get(id),
            Key::Word(word) => self.words.get(&**word),
        }
        .copied()
    }

    /// Whether a message has this id.
    pub fn contains_id(&self, id: u64) -> bool {
        self.ids.contains_key(&id)
    }

    /// The message is now this record; returns the one it had before.
    pub fn insert(&mut self, key: &Key, slot: Slot) -> Option<Slot> {
        match key {
            Key::Id(id) => self.ids.insert(*id, slot),
            Key::Word(word) => match self.words.get_mut(&**word) {
                Some(held) => Some(std::mem::replace(held, slot)),
                None => self.words.insert(word.clone(), slot),
            },
        }
    }

    /// The message is gone; returns the record it had.
    pub fn remove(&mut self, key: &Key) -> Option<Slot> {
        match key {
            Key::Id(id) => {
                let removed = self.ids.remove(id);
                if is_sparse(self.ids.len(), self.ids.capacity()) {
                    self.ids.shrink_to(self.ids.len() * 2);
                }
                removed
            }
            Key::Word(word) => self.words.remove(&**word),
        }
    }

    /// The message, which is there or has just gone, expires then, or never; when it did before.
    pub fn set_expiry(&mut self, key: &Key, expires_ms: Option<u64>) -> Option<u64> {
        match expires_ms {
            Some(expires_ms) => self.expiry.insert(key.clone(), expires_ms),
            None if self.expiry.is_empty() => None,
            None => self.expiry.remove(key),
        }
    }

    /// When the message expires, in milliseconds since the Unix epoch; `None` if it does not.
    pub fn expiry(&self, key: &Key) -> Option<u64> {
        self.expiry.get(key).copied()
    }

    /// How many messages it holds.
    pub fn len(&self) -> usize {
        self.ids.len() + self.words.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The most memory that it takes, in bytes: buckets times their size, nodes that are least
    /// full, the text of the keys. What the allocator adds (8 to 23 bytes for each key that is not
    /// an id) is left out, and so are buckets that deletes have spoiled until the table is next
    /// rebuilt, and when messages expire.
    pub fn memory_bytes(&self) -> usize {
        let texts: usize = self.words.keys().map(|word| word.len()).sum();
        size_of::<Shard>()
            + table_bytes(self.ids.capacity(), size_of::<(u64, Slot)>())
            + tree_bytes(self.words.len(), size_of::<(Box<str>, Slot)>())
            + texts
    }

    /// All messages with an id, in no order.
    pub fn ids(&self) -> impl Iterator<Item = (u64, Slot)> {
        self.ids.iter().map(|(id, slot)| (*id, *slot))
    }

    /// All messages.
    pub(super) fn into_messages(self) -> Messages {
        Messages {
            ids: self.ids.into_iter(),
            words: self.words.into_iter(),
            expiry: self.expiry,
        }
    }

    /// All messages with another key, in bytewise order.
    pub fn words(&self) -> impl Iterator<Item = (&str, Slot)> {
        self.words.iter().map(|(word, slot)| (&**word, *slot))
    }

    /// Those of them from this text on, or behind it (`is_after`).
    pub fn words_from(&self, from: &str, is_after: bool) -> impl Iterator<Item = (&str, Slot)> {
        let from = match is_after {
            true => Bound::Excluded(from),
            false => Bound::Included(from),
        };
        let range = self.words.range::<str, _>((from, Bound::Unbounded));
        range.map(|(word, slot)| (&**word, *slot))
    }

    /// When messages expire, of those that do.
    pub(super) fn expiries(&self) -> impl Iterator<Item = (&Key, u64)> {
        self.expiry
            .iter()
            .map(|(key, expires_ms)| (key, *expires_ms))
    }
}

/// The standard library's table has a power of two of buckets, of which it fills up to 7/8, with a
/// control byte each and 16 more.
fn table_bytes(capacity: usize, bucket_bytes: usize) -> usize {
    if capacity == 0 {
        return 0;
    }
    (capacity * 8).div_ceil(7).next_power_of_two() * (bucket_bytes + 1) + 16
}

/// The standard library's tree has nodes of 11 places, of which at least 5 are filled: as many
/// leaves at most as that makes, with 12 bytes beside their places, and a fifth of it above them.
fn tree_bytes(len: usize, item_bytes: usize) -> usize {
    len.div_ceil(5) * (11 * item_bytes + 12) * 6 / 5
}

fn is_sparse(len: usize, capacity: usize) -> bool {
    capacity > SHRINK_CAPACITY_MIN && len < capacity / 8
}

/// The shard, of `shards` many, that `key` is in. The mix differs from the hash within a shard:
/// otherwise the keys of a shard would crowd in one part of its table.
pub fn shard_of(key: &Key, shards: usize) -> usize {
    let hash = match key {
        Key::Id(id) => mix(*id),
        Key::Word(word) => word.as_bytes().chunks(8).fold(1, |hash, chunk| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            mix(hash ^ u64::from_le_bytes(word))
        }),
    };
    // The high half of the product: a spread without a division.
    ((u128::from(skew(hash)) * shards as u128) >> 64) as usize
}

/// Maps the hashes onto themselves, in order, so that equal parts of the result come from parts of
/// the hashes that grow from the first to the last, to twice the first.
///
/// With x and y from 0 to 1 it is y = x + c x (1 - x), c = 1/3, whose slope falls from 4/3 to 2/3:
/// close to log2(1 + x), for which the widths would be evenly spread on a logarithmic scale.
fn skew(hash: u64) -> u64 {
    let product = (u128::from(hash) * u128::from(u64::MAX - hash)) >> 64;
    // No overflow: the slope is positive, so the largest value is that of the largest hash.
    hash + (product / 3) as u64
}

/// The finaliser of MurmurHash3: every bit of the input reaches every bit of the output.
pub(crate) fn mix(mut value: u64) -> u64 {
    value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    value = (value ^ (value >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    value = (value ^ (value >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    value ^ (value >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::MemberId;
    use crate::metadata::replica_sets::ReplicaSets;

    /// The most bytes a message while `key` grows a whole index from `from` to twice as many
    /// messages, measured at each step: the worst moment is right after the tables have grown.
    fn worst_bytes_a_message(from: u64, key: impl Fn(u64) -> Key) -> usize {
        const SHARDS: usize = 16;
        let mut sets = ReplicaSets::default();
        let set = ReplicaSet::new(&[MemberId(1), MemberId(2)]).expect("distinct members");
        let set = sets.acquire(&set, 1);
        let mut shards: Vec<Shard> = (0..SHARDS).map(|_| Shard::default()).collect();
        let mut worst = 0;
        for number in 0..from * 2 {
            let key = key(number);
            let revision = Revision::new(1, number);
            let slot = Slot {
                revision,
                set,
                length: 100,
            };
            shards[shard_of(&key, SHARDS)].insert(&key, slot);
            if number >= from && number % 1000 == 0 {
                let memory: usize = shards.iter().map(Shard::memory_bytes).sum();
                worst = worst.max(memory.div_ceil(number as usize + 1));
            }
        }
        worst
    }

    #[test]
    fn a_message_with_an_id_costs_at_most_48_bytes() {
        assert_eq!(size_of::<(u64, Slot)>(), 24);
        let worst = worst_bytes_a_message(60_000, Key::Id);
        assert!((25..=48).contains(&worst), "{worst} bytes");
    }

    #[test]
    fn a_message_with_another_key_costs_at_most_96_bytes_and_its_key() {
        let key = |number| Key::Word(format!("user/{number:09}").into());
        let worst = worst_bytes_a_message(20_000, key);
        assert!((33..=96 + 14).contains(&worst), "{worst} bytes");
    }

    #[test]
    fn a_table_that_deletes_emptied_is_made_smaller() {
        let mut shard = Shard::default();
        let slot = Slot {
            revision: Revision::new(1, 1),
            set: SetId(0),
            length: 0,
        };
        for id in 0..10_000 {
            shard.insert(&Key::Id(id), slot);
            shard.insert(&Key::Word(format!("k{id}").into()), slot);
        }
        let full = shard.memory_bytes();
        for id in 0..9_900 {
            assert_eq!(shard.remove(&Key::Id(id)), Some(slot));
            assert_eq!(
                shard.remove(&Key::Word(format!("k{id}").into())),
                Some(slot)
            );
        }
        assert_eq!(shard.len(), 200);
        assert!(
            shard.memory_bytes() < full / 10,
            "{} of {full}",
            shard.memory_bytes()
        );
        assert!((9_900..10_000).all(|id| shard.contains_id(id)));
    }

    #[test]
    fn keys_spread_over_shards() {
        for shards in [1, 3, 64] {
            let mut counts = vec![0_usize; shards];
            for number in 0..64_000 {
                counts[shard_of(&Key::Id(number), shards)] += 1;
                counts[shard_of(&Key::Word(format!("k{number}").into()), shards)] += 1;
            }
            // From the narrowest, 3/4 of the mean, to the widest, 3/2, in this order.
            let mean = 128_000 / shards;
            let width = |shard: usize| {
                let middle = (shard as f64 + 0.5) / shards as f64;
                1.0 / (16.0 / 9.0 - 4.0 / 3.0 * middle).sqrt()
            };
            for (shard, count) in counts.iter().enumerate() {
                let expected = mean as f64 * width(shard);
                let ratio = *count as f64 / expected;
                assert!(
                    (0.85..1.15).contains(&ratio),
                    "{shard}: {ratio}, {counts:?}"
                );
            }
        }
    }
}
