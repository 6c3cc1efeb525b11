//! Who gives up its place when more connections are being greeted than there are places. Pure.
//!
//! A connection is *silent* until its first byte arrives; a node that dials says something at once.
//! It is *proven* once its certificate was checked, and then keeps its place until the greeting's
//! deadline. Any other may have to go for a newcomer, so that nobody can hold all places, not even
//! from the address of a member.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU8, Ordering};

use rustc_hash::FxHashMap;

/// Addresses that are remembered: a cluster has some tens of nodes.
const KNOWN_MAX: usize = 256;

/// How far a connection has come with its greeting; written by its thread.
#[derive(Debug, Default)]
pub(crate) struct Progress(AtomicU8);

const SPOKEN: u8 = 1;
const PROVEN: u8 = 2;

impl Progress {
    /// Bytes of it have arrived.
    pub(crate) fn speaks(&self) {
        self.0.fetch_max(SPOKEN, Ordering::Relaxed);
    }

    /// Its certificate is valid.
    pub(crate) fn is_proved(&self) {
        self.0.fetch_max(PROVEN, Ordering::Relaxed);
    }

    /// Whether nothing of it has arrived yet.
    pub(crate) fn is_silent(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }

    fn is_proven(&self) -> bool {
        self.0.load(Ordering::Relaxed) == PROVEN
    }
}

/// A connection that is being greeted.
pub(crate) struct Greeted<'a> {
    /// Its number: of two the older one has the lower.
    pub(crate) number: u64,
    /// Where it comes from.
    pub(crate) address: IpAddr,
    /// How far it has come.
    pub(crate) progress: &'a Progress,
}

/// Addresses from which a node was welcomed, the latest last.
#[derive(Debug, Default)]
pub(crate) struct Known(VecDeque<IpAddr>);

impl Known {
    /// A node was welcomed from there.
    pub(crate) fn welcome(&mut self, address: IpAddr) {
        self.0.retain(|known| *known != address);
        self.0.push_back(address);
        if self.0.len() > KNOWN_MAX {
            self.0.pop_front();
        }
    }

    /// Which connection gives way to a newcomer, if any may: first those of addresses from which no
    /// node came yet, of these the silent ones, of these one of the address that has most of them,
    /// of these the oldest.
    pub(crate) fn gives_way(&self, greeted: &[Greeted<'_>]) -> Option<u64> {
        let mut count: FxHashMap<IpAddr, usize> = FxHashMap::default();
        for one in greeted {
            *count.entry(one.address).or_default() += 1;
        }
        let rank = |one: &&Greeted<'_>| {
            let of_address = count.get(&one.address).copied().unwrap_or_default();
            let is_known = self.0.contains(&one.address);
            let has_spoken = !one.progress.is_silent();
            (
                is_known,
                has_spoken,
                std::cmp::Reverse(of_address),
                one.number,
            )
        };
        let unproven = greeted.iter().filter(|one| !one.progress.is_proven());
        unproven.min_by_key(rank).map(|one| one.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    /// Number, last part of the address, progress.
    fn gives_way(known: &Known, greeted: &[(u64, u8, u8)]) -> Option<u64> {
        let progress: Vec<Progress> = greeted
            .iter()
            .map(|(_, _, progress)| Progress(AtomicU8::new(*progress)))
            .collect();
        let one = |((number, last, _), progress): (&(u64, u8, u8), _)| Greeted {
            number: *number,
            address: address(*last),
            progress,
        };
        let all: Vec<Greeted<'_>> = greeted.iter().zip(&progress).map(one).collect();
        known.gives_way(&all)
    }

    #[test]
    fn the_oldest_silent_one_of_the_greediest_address_goes_first() {
        let known = Known::default();
        assert_eq!(gives_way(&known, &[]), None);
        assert_eq!(
            gives_way(&known, &[(1, 1, SPOKEN), (2, 1, 0), (3, 1, 0)]),
            Some(2)
        );
        assert_eq!(
            gives_way(&known, &[(1, 1, 0), (2, 2, 0), (3, 2, 0)]),
            Some(2)
        );
        assert_eq!(
            gives_way(&known, &[(1, 1, SPOKEN), (2, 2, SPOKEN)]),
            Some(1)
        );
        assert_eq!(gives_way(&known, &[(1, 1, PROVEN), (2, 2, PROVEN)]), None);
    }

    #[test]
    fn addresses_of_nodes_keep_their_places_longest() {
        let mut known = Known::default();
        known.welcome(address(1));
        let greeted = [(1, 1, 0), (2, 1, 0), (3, 2, SPOKEN)];
        assert_eq!(gives_way(&known, &greeted), Some(3));
        for last in 0..=255 {
            known.welcome(IpAddr::from([10, 0, 1, last]));
        }
        assert_eq!(known.0.len(), KNOWN_MAX);
        assert_eq!(gives_way(&known, &greeted), Some(1));
    }
}
