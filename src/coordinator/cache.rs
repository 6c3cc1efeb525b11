//! A bounded cache of payloads by revision. Pure: a value that its owner shards and locks.
//!
//! A revision names immutable bytes, so an entry is never stale and nothing needs to be
//! invalidated: what is overwritten or deleted is not asked for any more and falls out.
//!
//! Invariant: `bytes <= bytes_max`, the fixed cost of each entry included (A8).
//!
//! The policy is CLOCK with a second chance: a hand goes round the entries, passes over those that
//! were read since it last came by, and evicts the first that was not. A new entry has not been
//! read, so a scan pushes out other scans before hot messages. Source: Corbató, "A paging
//! experiment with the Multics system", 1968.

use bytes::Bytes;
use rustc_hash::FxHashMap;

use crate::ids::Revision;

/// Bytes that an entry costs besides its payload: slot, map entry and allocation, rounded up.
pub const ENTRY_OVERHEAD: usize = 128;

/// A payload that is larger than this part of the cache is not kept: it would push out too much.
const PAYLOAD_SHARE: usize = 8;

/// Payloads by revision.
#[derive(Debug)]
pub struct PayloadCache {
    /// The most bytes, overhead included.
    bytes_max: usize,
    /// Bytes held, overhead included.
    bytes: usize,
    /// Where in `slots` each revision is.
    positions: FxHashMap<Revision, usize>,
    /// What the hand goes round; dense.
    slots: Vec<Slot>,
    /// Where the hand is; at most `slots.len()`.
    hand: usize,
}

#[derive(Debug)]
struct Slot {
    revision: Revision,
    payload: Bytes,
    /// Read since the hand last came by.
    was_read: bool,
}

impl PayloadCache {
    /// An empty cache; with `bytes_max` 0 it never holds anything.
    pub fn new(bytes_max: usize) -> PayloadCache {
        PayloadCache {
            bytes_max,
            bytes: 0,
            positions: FxHashMap::default(),
            slots: Vec::new(),
            hand: 0,
        }
    }

    /// The payload of a revision.
    pub fn get(&mut self, revision: Revision) -> Option<Bytes> {
        let slot = &mut self.slots[*self.positions.get(&revision)?];
        // Written only when it changes: several processors read the entry.
        if !slot.was_read {
            slot.was_read = true;
        }
        Some(slot.payload.clone())
    }

    /// Keeps a payload if it is not too large, evicting others. The bytes are copied: a slice would
    /// hold on to the whole buffer that they arrived in, and the bound would not be true.
    pub fn insert(&mut self, revision: Revision, payload: &Bytes) {
        let cost = payload.len() + ENTRY_OVERHEAD;
        if cost > self.bytes_max / PAYLOAD_SHARE || self.positions.contains_key(&revision) {
            return;
        }
        while self.bytes + cost > self.bytes_max {
            self.evict();
        }
        self.bytes += cost;
        self.positions.insert(revision, self.slots.len());
        self.slots.push(Slot {
            revision,
            payload: Bytes::copy_from_slice(payload),
            was_read: false,
        });
        assert!(self.bytes <= self.bytes_max, "the cache is bounded");
    }

    /// Bytes held, overhead included.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Entries held.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Turns the hand until it has evicted one entry; there is one.
    fn evict(&mut self) {
        loop {
            if self.hand >= self.slots.len() {
                self.hand = 0;
            }
            let slot = &mut self.slots[self.hand];
            if !slot.was_read {
                break;
            }
            slot.was_read = false;
            self.hand += 1;
        }
        let evicted = self.slots.swap_remove(self.hand);
        self.bytes -= evicted.payload.len() + ENTRY_OVERHEAD;
        self.positions.remove(&evicted.revision);
        if let Some(moved) = self.slots.get(self.hand) {
            self.positions.insert(moved.revision, self.hand);
            // It came from behind the hand and waits for a whole turn, as a new entry does.
            self.hand += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn revision(n: u64) -> Revision {
        Revision::from_u64(n)
    }

    fn payload(len: usize) -> Bytes {
        Bytes::from(vec![7; len])
    }

    /// Room for `entries` entries of 72 bytes.
    fn cache(entries: usize) -> PayloadCache {
        PayloadCache::new(entries * 200)
    }

    #[test]
    fn what_was_inserted_is_found_until_evicted() {
        let mut cache = cache(10);
        assert_eq!(cache.get(revision(1)), None);
        for n in 0..10 {
            cache.insert(revision(n), &payload(72));
        }
        assert_eq!((cache.len(), cache.bytes()), (10, 2000));
        cache.insert(revision(10), &payload(72));
        assert_eq!((cache.len(), cache.bytes()), (10, 2000));
        assert_eq!(cache.get(revision(0)), None);
        assert_eq!(cache.get(revision(10)), Some(payload(72)));
    }

    #[test]
    fn messages_that_are_read_survive_a_scan() {
        let mut cache = cache(20);
        for n in 0..5 {
            cache.insert(revision(n), &payload(72));
        }
        for n in 100..1000 {
            for hot in 0..5 {
                assert!(cache.get(revision(hot)).is_some(), "{hot} at {n}");
            }
            cache.insert(revision(n), &payload(72));
        }
    }

    #[test]
    fn a_large_payload_pushes_nothing_out() {
        let mut cache = cache(10);
        cache.insert(revision(1), &payload(72));
        cache.insert(revision(2), &payload(300));
        assert_eq!(cache.len(), 1);
        let mut none = PayloadCache::new(0);
        none.insert(revision(1), &payload(0));
        assert!(none.is_empty());
    }

    mod properties {
        use super::*;
        use proptest::prelude::*;

        proptest! {
            #[test]
            fn the_bound_holds_and_only_the_right_bytes_come_back(
                operations in proptest::collection::vec((0..60u64, any::<bool>()), 1..400)
            ) {
                let mut cache = PayloadCache::new(4000);
                for (n, insert) in operations {
                    let expected = payload(n as usize * 7);
                    if insert {
                        cache.insert(revision(n), &expected);
                    } else if let Some(found) = cache.get(revision(n)) {
                        prop_assert_eq!(found, expected);
                    }
                    prop_assert!(cache.bytes() <= 4000);
                    prop_assert_eq!(cache.len(), cache.positions.len());
                    for (at, slot) in cache.slots.iter().enumerate() {
                        prop_assert_eq!(cache.positions.get(&slot.revision), Some(&at));
                    }
                }
            }
        }
    }
}
