//! Copies that the metadata lists for a member and that the member does not have. Pure.
//!
//! The active leader learns of them from a member that lost records (see `leader::comparison`) and
//! from reads that found a copy missing or damaged. They count as missing from then on: people see
//! them as such, and reads ask for them last. A copy stops being missing when its revision is
//! released; repair, once it exists, finds here what to make again.
//!
//! It is volatile and of one term. A member that noted losses says so at each registration, so each
//! active leader finds the same copies again. Once all its copies were compared and those that were
//! missing are listed no more, a heartbeat's answer tells the member, which removes its note.
//!
//! Memory: some 40 bytes a copy, for [`MISSING_MAX`] copies of a member at most. Beyond that all
//! copies of the member count as missing, which is the safe side: they are asked for last, and
//! those that are there still answer.

use rustc_hash::FxHashMap;

use crate::ids::Revision;

/// The most missing copies that are kept for a member, 40 MB. A member that lost more has lost a
/// disk; at a tenth of it, a single lost segment of small messages would be beyond it.
pub const MISSING_MAX: usize = 1 << 20;

/// The missing copies of one member.
#[derive(Clone, Debug, Default)]
pub struct MissingCopies {
    /// Payload lengths by revision.
    lengths: FxHashMap<Revision, u32>,
    /// The sum of the lengths.
    bytes: u64,
    /// There are more than are kept: all copies count as missing.
    is_everything: bool,
}

impl MissingCopies {
    /// This copy is missing.
    pub fn add(&mut self, revision: Revision, length: u32) {
        if self.is_everything || self.lengths.contains_key(&revision) {
            return;
        }
        if self.lengths.len() >= MISSING_MAX {
            *self = MissingCopies {
                is_everything: true,
                ..MissingCopies::default()
            };
            return;
        }
        self.lengths.insert(revision, length);
        self.bytes += u64::from(length);
    }

    /// The metadata does not list this copy any more.
    pub fn remove(&mut self, revision: Revision) {
        if let Some(length) = self.lengths.remove(&revision) {
            self.bytes -= u64::from(length);
        }
    }

    /// Whether the copy counts as missing.
    pub fn contains(&self, revision: Revision) -> bool {
        self.is_everything || self.lengths.contains_key(&revision)
    }

    /// Whether no copy is missing.
    pub fn is_empty(&self) -> bool {
        !self.is_everything && self.lengths.is_empty()
    }

    /// What is left of so many listed copies, and of their payload bytes.
    pub fn present(&self, records: u64, bytes: u64) -> (u64, u64) {
        if self.is_everything {
            return (0, 0);
        }
        // The counters and the released copies are told one after the other.
        let missing = self.lengths.len() as u64;
        (
            records.saturating_sub(missing),
            bytes.saturating_sub(self.bytes),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_not_counted_until_it_is_released() {
        let mut missing = MissingCopies::default();
        let revision = |sequence| Revision::new(3, sequence);
        assert!(missing.is_empty() && !missing.contains(revision(1)));
        missing.add(revision(1), 10);
        missing.add(revision(1), 10);
        missing.add(revision(2), 5);
        assert!(missing.contains(revision(1)) && !missing.contains(revision(3)));
        assert_eq!(missing.present(10, 100), (8, 85));
        missing.remove(revision(1));
        missing.remove(revision(9));
        assert_eq!(missing.present(9, 90), (8, 85));
    }

    #[test]
    fn beyond_the_limit_everything_is_missing() {
        let mut missing = MissingCopies::default();
        for sequence in 0..=MISSING_MAX as u64 {
            missing.add(Revision::new(1, sequence), 1);
        }
        assert!(missing.contains(Revision::new(9, 9)) && !missing.is_empty());
        assert_eq!(missing.present(5_000_000, 5_000_000), (0, 0));
    }
}
