//! Replica sets. Pure.

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
