//! File descriptors: the limit is raised at the start, and client connections leave a share of it
//! to files and links.
//!
//! A process whose descriptors are used up goes on: what needs one is refused and tried again
//! ([`crate::error::Shortage`]). The reserve keeps clients from bringing that about.

use rustix::process::{Resource, getrlimit, setrlimit};

/// Descriptors that clients leave to the rest of the process, or half of all, if that is less.
/// A leader has some 30 at rest, three for each link, and one for each segment of its journal:
/// 128 are for segments, snapshots and certificates, 384 for links to and from 128 nodes.
pub const RESERVE: u64 = 512;

/// How many descriptors this process may have open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptors {
    /// The limit now; `u64::MAX` if there is none.
    pub limit: u64,
}

impl Descriptors {
    /// Raises the soft limit to the hard one. Children inherit both.
    pub fn raise() -> Descriptors {
        let before = getrlimit(Resource::Nofile);
        let mut raised = before;
        raised.current = before.maximum;
        let limit = match setrlimit(Resource::Nofile, raised) {
            Ok(()) => raised.current,
            Err(error) => {
                log::warn!("the limit of open files stays as it is: {error}");
                before.current
            }
        };
        let limit = limit.unwrap_or(u64::MAX);
        log::debug!(
            "limit of open files: {:?}, raised to {limit}",
            before.current
        );
        Descriptors { limit }
    }

    /// How many of `wanted` client connections fit beside the reserve; at least one.
    pub fn fit(self, wanted: usize) -> usize {
        let left = self.limit - RESERVE.min(self.limit / 2);
        wanted
            .min(usize::try_from(left).unwrap_or(usize::MAX))
            .max(1)
    }

    /// The limit with which all of `wanted` client connections fit.
    pub fn needed(wanted: usize) -> u64 {
        (wanted as u64).saturating_add(RESERVE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_leave_a_share_to_files_and_links() {
        for (limit, wanted, expected) in [
            (1024, 16_384, 512),
            (4096, 16_384, 3584),
            (16_896, 16_384, 16_384),
            (16_895, 16_384, 16_383),
            (u64::MAX, 16_384, 16_384),
            (64, 16_384, 32),
            (64, 8, 8),
            (1, 10, 1),
            (0, 10, 1),
        ] {
            let fit = Descriptors { limit }.fit(wanted);
            assert_eq!(fit, expected, "{wanted} of {limit}");
        }
        let needed = Descriptors::needed(16_384);
        assert_eq!(Descriptors { limit: needed }.fit(16_384), 16_384);
    }

    #[test]
    fn the_soft_limit_is_raised_to_the_hard_one() {
        let raised = Descriptors::raise();
        let now = getrlimit(Resource::Nofile);
        assert_eq!(now.current, now.maximum);
        assert_eq!(raised.limit, now.current.unwrap_or(u64::MAX));
    }
}
