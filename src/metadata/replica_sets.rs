//! Replica sets, and the table that interns them: set <-> small number, counted. Pure.
//!
//! A message stores a 4-byte [`SetId`] instead of a 64-byte set. The table counts how many messages
//! name each set; at zero the number is free, and the lowest free number is given out first, so
//! that the table stays as small as it was at most. A number read from the message index is
//! valid only until its message changes: resolve it before the shard is let go.
//!
//! A snapshot *pins* the table: until it is unpinned no number is given out again, so that numbers
//! in copies of shards still name the sets they named when it was pinned. Which number a set has
//! then follows from the time of snapshots too; nothing replicated depends on it.
//!
//! Memory: some 250 bytes for each set in use. Messages of one run share a set, so sets in use are
//! at most one for each run, and with few members far fewer.

use std::collections::{BTreeSet, HashMap};

use rustc_hash::FxBuildHasher;

use crate::ids::{MemberId, TOLERANCE_MAX};

/// The members that hold a message: 1..=7 distinct ids in ascending order (A2).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ReplicaSet {
    /// The first `len` are members, the others are 0.
    members: [MemberId; TOLERANCE_MAX as usize],
    len: u8,
}

impl ReplicaSet {
    /// `None` unless there are 1..=7 distinct members.
    pub fn new(members: &[MemberId]) -> Option<ReplicaSet> {
        if members.is_empty() || members.len() > usize::from(TOLERANCE_MAX) {
            return None;
        }
        let mut set = ReplicaSet {
            members: [MemberId(0); 7],
            len: members.len() as u8,
        };
        set.members[..members.len()].copy_from_slice(members);
        set.members[..members.len()].sort_unstable();
        let distinct = set.as_slice().windows(2).all(|pair| pair[0] < pair[1]);
        distinct.then_some(set)
    }

    /// The members in ascending order.
    pub fn as_slice(&self) -> &[MemberId] {
        &self.members[..usize::from(self.len)]
    }

    /// Whether `member` is one of them.
    pub fn contains(&self, member: MemberId) -> bool {
        self.as_slice().contains(&member)
    }
}

impl std::fmt::Debug for ReplicaSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(self.as_slice().iter().map(|id| id.to_string()))
            .finish()
    }
}

/// The number of an interned set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SetId(pub u32);

/// The sets in use and their numbers.
#[derive(Debug, Default)]
pub struct ReplicaSets {
    /// By number: the set and how many messages name it; a count of 0 marks a free number.
    sets: Vec<(ReplicaSet, u64)>,
    /// The numbers of the sets in use.
    numbers: HashMap<ReplicaSet, SetId, FxBuildHasher>,
    /// Free numbers below `sets.len()`.
    free: BTreeSet<u32>,
    /// Free numbers are kept as they are.
    is_pinned: bool,
}

impl ReplicaSets {
    /// The number of `set`, from now on named by `count` messages more (at least one).
    pub fn acquire(&mut self, set: &ReplicaSet, count: u64) -> SetId {
        assert!(count > 0, "a set is acquired for at least one message");
        if let Some(id) = self.numbers.get(set) {
            self.sets[id.0 as usize].1 += count;
            return *id;
        }
        let reused = match self.is_pinned {
            true => None,
            false => self.free.pop_first(),
        };
        let number = reused.unwrap_or_else(|| {
            self.sets.push((*set, 0));
            u32::try_from(self.sets.len() - 1).expect("there are fewer than 2^32 replica sets")
        });
        self.sets[number as usize] = (*set, count);
        self.numbers.insert(*set, SetId(number));
        SetId(number)
    }

    /// `count` messages less name the set; at zero its number is free.
    pub fn release(&mut self, id: SetId, count: u64) {
        let (set, named) = &mut self.sets[id.0 as usize];
        assert!(*named >= count, "set {id:?} is released more than acquired");
        *named -= count;
        if *named == 0 && count > 0 {
            self.numbers.remove(set);
            self.free.insert(id.0);
        }
    }

    /// The set with this number, which must be in use.
    pub fn set(&self, id: SetId) -> ReplicaSet {
        let (set, named) = self.sets[id.0 as usize];
        assert!(named > 0, "set {id:?} is not in use");
        set
    }

    /// From now on every number names what it names now, in use or not, until `unpin`.
    pub fn pin(&mut self) {
        self.is_pinned = true;
    }

    /// Free numbers may be given out again.
    pub fn unpin(&mut self) {
        self.is_pinned = false;
    }

    /// The set that had this number when the table was pinned, and was in use then.
    pub fn pinned(&self, id: SetId) -> ReplicaSet {
        assert!(self.is_pinned, "the table is pinned while copies are read");
        self.sets[id.0 as usize].0
    }

    /// How many sets are in use.
    pub fn len(&self) -> usize {
        self.numbers.len()
    }

    /// Whether none is in use.
    pub fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }

    /// The sets in use by ascending number, with how many messages name each. Together with the
    /// free numbers that follow from it, this is the whole table.
    pub fn iter(&self) -> impl Iterator<Item = (SetId, ReplicaSet, u64)> {
        let used = |(number, (set, named)): (usize, &(ReplicaSet, u64))| {
            (*named > 0).then_some((SetId(number as u32), *set, *named))
        };
        self.sets.iter().enumerate().filter_map(used)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(members: &[u64]) -> ReplicaSet {
        let members: Vec<MemberId> = members.iter().map(|id| MemberId(*id)).collect();
        ReplicaSet::new(&members).expect("1 to 7 distinct members")
    }

    #[test]
    fn a_replica_set_has_no_member_twice() {
        let ids = |members: &[u64]| members.iter().map(|id| MemberId(*id)).collect::<Vec<_>>();
        assert_eq!(ReplicaSet::new(&ids(&[3, 1, 3])), None);
        assert_eq!(ReplicaSet::new(&[]), None);
        assert_eq!(ReplicaSet::new(&ids(&[1, 2, 3, 4, 5, 6, 7, 8])), None);
        assert_eq!(set(&[3, 1, 2]).as_slice(), ids(&[1, 2, 3]));
        assert_eq!(set(&[2, 1]), set(&[1, 2]));
    }

    #[test]
    fn equal_sets_share_a_number_until_the_last_is_released() {
        let mut sets = ReplicaSets::default();
        let pair = sets.acquire(&set(&[1, 2]), 3);
        assert_eq!(sets.acquire(&set(&[2, 1]), 1), pair);
        sets.release(pair, 3);
        assert_eq!(sets.set(pair), set(&[1, 2]));
        sets.release(pair, 1);
        assert!(sets.is_empty());
    }

    #[test]
    fn the_lowest_free_number_is_given_out_first() {
        let mut sets = ReplicaSets::default();
        let ids: Vec<SetId> = (1..6).map(|id| sets.acquire(&set(&[id]), 1)).collect();
        for id in [ids[3], ids[0], ids[2]] {
            sets.release(id, 1);
        }
        assert_eq!(sets.acquire(&set(&[7]), 1), ids[0]);
        assert_eq!(sets.acquire(&set(&[8]), 1), ids[2]);
        let used: Vec<u32> = sets.iter().map(|(id, ..)| id.0).collect();
        assert_eq!(used, [0, 1, 2, 4]);
    }

    #[test]
    fn a_pinned_table_gives_no_number_out_again() {
        let mut sets = ReplicaSets::default();
        let first = sets.acquire(&set(&[1]), 1);
        sets.pin();
        sets.release(first, 1);
        let second = sets.acquire(&set(&[2]), 1);
        assert_ne!(first, second);
        assert_eq!(sets.pinned(first), set(&[1]));
        sets.unpin();
        assert_eq!(sets.acquire(&set(&[3]), 1), first);
    }

    #[test]
    #[should_panic(expected = "released more than acquired")]
    fn a_set_is_not_released_more_than_acquired() {
        let mut sets = ReplicaSets::default();
        let id = sets.acquire(&set(&[1]), 1);
        sets.release(id, 2);
    }
}
