//! The location index of a member: revision -> where its record lies and how long its payload is.
//! Pure; the engine puts it behind its lock.
//!
//! Revisions are allotted in order, so a member's revisions come in long, nearly sorted runs. They
//! are kept in chunks of 2^10 consecutive revisions, each a sorted vector: appending is the common
//! case, an entry costs 20 bytes (27 on average with the vectors' spare room) where a hash map
//! would take about 50, and a range of revisions can be walked in order, as an audit does.
//!
//! For compaction it counts, for each segment, the bytes of its live records, and for each revision
//! the *dead copies*: records of it that are in the log and are not its live one, because it was
//! released, stored anew or moved. As long as there is one, the record of the release must stay.
//! They are in chunks too, 8 bytes for each such revision, and twice that with spare room;
//! compaction keeps them fewer than half of all records. One hash map would be moved as a whole
//! when it grows, while the index is locked: 90 ms and more with millions of them.
//!
//! Invariant: no chunk is empty, each is strictly sorted, and the counters equal the sums over all.

use std::collections::BTreeMap;

use crate::disk::record::Location;
use crate::ids::Revision;
use crate::storage::Counters;

/// Bits of a revision that select within a chunk. At more, an insertion in the middle moves more
/// memory (20 KiB at worst now); at fewer, the chunks themselves cost more than their entries.
const CHUNK_BITS: u32 = 10;

/// How many slots before and behind the expected one are looked at first.
const NEAR: usize = 16;

/// Where a record lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The record in the log.
    pub location: Location,
    /// Length of its payload, in bytes.
    pub payload_bytes: u32,
}

/// Revision -> [`Place`] of every live record.
#[derive(Default, PartialEq, Eq)]
pub struct LocationIndex {
    /// The upper bits of a revision -> its chunk.
    chunks: BTreeMap<u64, Vec<Slot>>,
    /// Sums over all entries.
    counters: Counters,
    /// Segment -> bytes of its live records; none without any.
    live_bytes: BTreeMap<u32, u64>,
    /// The upper bits of a revision -> the dead copies of its chunk's revisions.
    dead: BTreeMap<u64, Vec<Dead>>,
}

/// One entry of a chunk.
#[derive(PartialEq, Eq)]
struct Slot {
    /// The lower bits of the revision.
    low: u16,
    place: Place,
}

/// The dead copies of a revision, at least one.
#[derive(PartialEq, Eq)]
struct Dead {
    /// The lower bits of the revision.
    low: u16,
    copies: u32,
}

impl LocationIndex {
    /// The place of a revision's record.
    pub fn find(&self, revision: Revision) -> Option<Place> {
        let (high, low) = split(revision);
        let chunk = self.chunks.get(&high)?;
        let at = position(chunk, low).ok()?;
        chunk.get(at).map(|slot| slot.place)
    }

    /// Adds a record or moves it to another place; the place it had, if any.
    pub fn insert(&mut self, revision: Revision, place: Place) -> Option<Place> {
        let (high, low) = split(revision);
        let chunk = self.chunks.entry(high).or_default();
        self.counters.bytes += u64::from(place.payload_bytes);
        let Location {
            segment, length, ..
        } = place.location;
        *self.live_bytes.entry(segment).or_default() += u64::from(length);
        match position(chunk, low) {
            Ok(at) => {
                let old = std::mem::replace(&mut chunk[at].place, place);
                self.bury(revision, old);
                Some(old)
            }
            Err(at) => {
                chunk.insert(at, Slot { low, place });
                self.counters.records += 1;
                None
            }
        }
    }

    /// Removes a record; the place it had, if any.
    pub fn remove(&mut self, revision: Revision) -> Option<Place> {
        let (high, low) = split(revision);
        let chunk = self.chunks.get_mut(&high)?;
        let at = position(chunk, low).ok()?;
        let old = chunk.remove(at).place;
        if chunk.is_empty() {
            self.chunks.remove(&high);
        } else {
            shrink(chunk);
        }
        self.counters.records -= 1;
        self.bury(revision, old);
        Some(old)
    }

    /// Counts a record that was live as a dead copy.
    fn bury(&mut self, revision: Revision, old: Place) {
        self.counters.bytes -= u64::from(old.payload_bytes);
        let (high, low) = split(revision);
        let chunk = self.dead.entry(high).or_default();
        match chunk.binary_search_by_key(&low, |dead| dead.low) {
            Ok(at) => chunk[at].copies += 1,
            Err(at) => chunk.insert(at, Dead { low, copies: 1 }),
        }
        let segment = old.location.segment;
        if let Some(bytes) = self.live_bytes.get_mut(&segment) {
            *bytes -= u64::from(old.location.length);
            if *bytes == 0 {
                self.live_bytes.remove(&segment);
            }
        }
    }

    /// Bytes of the live records of a segment.
    pub fn live_bytes(&self, segment: u32) -> u64 {
        self.live_bytes.get(&segment).copied().unwrap_or(0)
    }

    /// How many records of a revision are in the log beside its live one, if it has that.
    pub fn dead_copies(&self, revision: Revision) -> u32 {
        let (high, low) = split(revision);
        let dead = self.dead.get(&high).and_then(|chunk| {
            let at = chunk.binary_search_by_key(&low, |dead| dead.low).ok()?;
            chunk.get(at)
        });
        dead.map_or(0, |dead| dead.copies)
    }

    /// A dead copy of each of these revisions went with its segment. Those of one chunk are best
    /// given one after the other.
    pub fn forget_copies(&mut self, revisions: &[Revision]) {
        for run in revisions.chunk_by(|one, next| split(*one).0 == split(*next).0) {
            let (high, _) = split(run[0]);
            let Some(chunk) = self.dead.get_mut(&high) else {
                continue;
            };
            for revision in run {
                let (_, low) = split(*revision);
                if let Ok(at) = chunk.binary_search_by_key(&low, |dead| dead.low) {
                    chunk[at].copies = chunk[at].copies.saturating_sub(1);
                }
            }
            chunk.retain(|dead| dead.copies > 0);
            shrink(chunk);
            if chunk.is_empty() {
                self.dead.remove(&high);
            }
        }
    }

    /// How many records there are, and the bytes of their payloads.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The highest revision.
    pub fn highest(&self) -> Option<Revision> {
        let (high, chunk) = self.chunks.last_key_value()?;
        let slot = chunk.last()?;
        Some(revision_of(*high, slot.low))
    }

    /// All entries in the order of their revisions.
    pub fn iter(&self) -> impl Iterator<Item = (Revision, Place)> + '_ {
        self.chunks.iter().flat_map(|(high, chunk)| {
            let entry = |slot: &Slot| (revision_of(*high, slot.low), slot.place);
            chunk.iter().map(entry)
        })
    }

    /// Memory taken by the entries and their spare room, in bytes.
    pub fn memory_bytes(&self) -> usize {
        let slots: usize = self.chunks.values().map(Vec::capacity).sum();
        slots * size_of::<Slot>() + self.chunks.len() * size_of::<(u64, Vec<Slot>)>()
    }
}

fn revision_of(high: u64, low: u16) -> Revision {
    Revision::from_u64(high << CHUNK_BITS | u64::from(low))
}

fn split(revision: Revision) -> (u64, u16) {
    let value = revision.as_u64();
    let low = value & ((1 << CHUNK_BITS) - 1);
    (value >> CHUNK_BITS, low as u16)
}

/// Gives back what is left of a chunk after most of it was removed.
fn shrink<T>(chunk: &mut Vec<T>) {
    if chunk.len() < chunk.capacity() / 4 {
        chunk.shrink_to(chunk.len() * 2);
    }
}

/// Where the slot of `low` is, or where to insert it. Looks first at the end, where most are
/// inserted, then around where it would be if the chunk's revisions were evenly spread, as they
/// mostly are: that touches two or three lines of the processor's cache. A search of the whole
/// chunk waits for memory at about half of its ten steps.
fn position(chunk: &[Slot], low: u16) -> Result<usize, usize> {
    if chunk.last().is_none_or(|last| last.low < low) {
        return Err(chunk.len());
    }
    let expected = (usize::from(low) * chunk.len()) >> CHUNK_BITS;
    let start = expected.saturating_sub(NEAR);
    let near = &chunk[start..(expected + NEAR).min(chunk.len())];
    let is_near = near.first().is_some_and(|slot| slot.low <= low)
        && near.last().is_some_and(|slot| slot.low >= low);
    let (slots, offset) = if is_near { (near, start) } else { (chunk, 0) };
    let found = slots.binary_search_by_key(&low, |slot| slot.low);
    found.map(|at| at + offset).map_err(|at| at + offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(number: u32) -> Place {
        let location = Location {
            segment: number,
            offset: number,
            length: number,
        };
        Place {
            location,
            payload_bytes: number,
        }
    }

    #[test]
    fn an_entry_in_sequence_costs_less_than_32_bytes() {
        let mut index = LocationIndex::default();
        for sequence in 0..100_000 {
            index.insert(Revision::new(1, sequence * 3 / 2), place(1));
        }
        assert!(
            index.memory_bytes() < 32 * 100_000,
            "{}",
            index.memory_bytes()
        );
    }

    mod properties {
        use std::collections::BTreeMap;

        use proptest::prelude::*;

        use super::*;

        proptest! {
            #[test]
            fn it_behaves_as_a_map(
                operations in prop::collection::vec(any::<(bool, u16, u16)>(), 0..400)
            ) {
                let (mut index, mut map) = (LocationIndex::default(), BTreeMap::new());
                let mut dead = BTreeMap::<_, u32>::new();
                for (insert, number, value) in operations {
                    let revision = Revision::from_u64(u64::from(number % 3000));
                    let old = if insert {
                        let place = place(u32::from(value));
                        let old = index.insert(revision, place);
                        prop_assert_eq!(old, map.insert(revision, place));
                        old
                    } else {
                        let old = index.remove(revision);
                        prop_assert_eq!(old, map.remove(&revision));
                        old
                    };
                    let copies = dead.entry(revision).or_default();
                    *copies += u32::from(old.is_some());
                    prop_assert_eq!(index.dead_copies(revision), *copies);
                    if value % 4 == 0 {
                        index.forget_copies(&[revision]);
                        *copies = copies.saturating_sub(1);
                    }
                    prop_assert_eq!(index.dead_copies(revision), *copies);
                    prop_assert_eq!(index.find(revision), map.get(&revision).copied());
                }
                let bytes = map.values().map(|place| u64::from(place.payload_bytes)).sum();
                let records = map.len() as u64;
                prop_assert_eq!(index.counters(), Counters { records, bytes });
                prop_assert_eq!(index.highest(), index.iter().map(|(revision, _)| revision).max());
                prop_assert!(index.iter().eq(map));
                let each = dead.into_iter();
                let each = each.flat_map(|(revision, copies)| vec![revision; copies as usize]);
                index.forget_copies(&each.collect::<Vec<_>>());
                prop_assert!(index.dead.is_empty());
            }
        }
    }
}
