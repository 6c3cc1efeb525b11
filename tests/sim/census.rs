//! How often each kind of fault and each rare event has happened: what never does is not tested.

use std::collections::BTreeMap;

/// What has to happen in the usual seeds, each at least once.
pub const EXPECTED: &[&str] = &[
    "bulk goes on by its token",
    "clock drift",
    "clock jump",
    "condition refused",
    "crash of all",
    "crash of power",
    "crash of process",
    "crash of voter",
    "crash within a write",
    "disk fails",
    "disk full",
    "disk not mounted",
    "disk out of descriptors",
    "disk rot",
    "disk short write",
    "disk slow",
    "disk without a segment",
    "disk without capacity",
    "election",
    "fence refused",
    "group add",
    "group configuration joint",
    "group remove",
    "group stop",
    "group transfer",
    "history bulk",
    "history unknown",
    "hostile message",
    "journal full",
    "leader failed",
    "member failed",
    "message expires",
    "message lost",
    "message overtaken",
    "message twice",
    "name held",
    "net bridge",
    "net cut of all",
    "net cut of servers",
    "net cut of the leader from its peers",
    "net flaps",
    "net halves",
    "net link breaks",
    "net one way",
    "net slow",
    "older copy kept out",
    "older copy lacks entries",
    "older copy loses writes",
    "pause",
    "release",
    "removed leader comes back",
    "second process",
    "snapshot installed",
    "snapshot taken",
    "token repeated",
    "transaction refused",
    "transaction repeated",
];

/// Counts by name.
#[derive(Clone, Debug, Default)]
pub struct Census {
    counts: BTreeMap<&'static str, u64>,
}

impl Census {
    /// It happened.
    pub fn saw(&mut self, what: &'static str) {
        debug_assert!(
            EXPECTED.binary_search(&what).is_ok(),
            "{what} is not listed"
        );
        *self.counts.entry(what).or_default() += 1;
    }

    /// Adds what another run saw.
    pub fn add(&mut self, other: &Census) {
        for (what, count) in &other.counts {
            *self.counts.entry(what).or_default() += count;
        }
    }

    /// What never happened.
    pub fn missing(&self) -> Vec<&'static str> {
        let names = EXPECTED.iter().copied();
        names
            .filter(|what| !self.counts.contains_key(what))
            .collect()
    }

    /// A line of each, with its count.
    pub fn lines(&self) -> String {
        let line = |what: &&str| {
            let count = self.counts.get(*what).copied().unwrap_or_default();
            format!("{count:>9}  {what}\n")
        };
        EXPECTED.iter().map(line).collect()
    }
}
