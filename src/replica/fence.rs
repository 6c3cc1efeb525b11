//! The highest fence that a member has executed: compared in the order of the effects, raised,
//! never lowered. Pure; the shell writes [`encode`]d bytes to the fence file when told to.
//!
//! Invariants (A4, R10): `durable <= executed`; nothing has an effect while they differ; both only
//! grow, except that `executed` falls back to `durable` when the requests that raised it are
//! refused.
//!
//! A term has one leader, so its requests come from one: the name in the certificate of whoever
//! raised the fence to the term. Another leader's requests of that term are refused, whatever their
//! link number; one that is broken or hostile cannot shut the real one out by a link number that
//! nobody reaches. Who it was is forgotten with a start of the member. Then, and with a higher
//! term, the real one goes on in a later term (`leader::gate`).
//!
//! The fence file, integers little endian, wrapped and checksummed by `disk::atomic_file`:
//!
//! | offset | size | type | meaning |
//! |---|---|---|---|
//! | 0 | 1 | u8 | version, 1 |
//! | 1 | 8 | u64 | term |
//! | 9 | 8 | u64 | link |

use std::sync::Arc;

use crate::faults::{self, Fault};
use crate::ids::{Fence, Revision};
use crate::logging;
use crate::rpc::message::Refusal;

/// The version of the fence file.
const VERSION: u8 = 1;

/// Length of the fence file, in bytes.
const FILE_BYTES: usize = 17;

/// The highest fence executed, and how much of it is on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FenceState {
    /// The highest fence of any request admitted so far.
    executed: Fence,
    /// What the fence file says; a restart begins with it.
    durable: Fence,
    /// The leader whose requests raised the fence to a term, and that term.
    leader: Option<(Arc<str>, u64)>,
}

impl FenceState {
    /// Continues with the fence that the file holds.
    pub fn new(durable: Fence) -> FenceState {
        FenceState {
            executed: durable,
            durable,
            leader: None,
        }
    }

    /// Admits a request of the leader `from` or refuses it as stale; a higher fence than any before
    /// is raised to. One that is absurdly high is refused, because it would lock out every other
    /// leader for good. A member that has executed nothing has no term to compare with, and takes
    /// any that revisions can hold.
    pub fn admit(&mut self, fence: Fence, from: &Arc<str>) -> Result<(), Refusal> {
        check(self.executed, fence)?;
        let of_term = self.leader.as_ref().filter(|(_, term)| *term == fence.term);
        if let Some((leader, term)) = of_term.filter(|(leader, _)| leader != from) {
            let reason = format!("fence {fence} is of {from}, and term {term} is that of {leader}");
            return Err(absurd(reason));
        }
        let known = match self.executed.term {
            0 => Revision::TERM_MAX,
            term => term,
        };
        let most = known.saturating_add(Revision::TERM_JUMP_MAX);
        if fence.term > most.min(Revision::TERM_MAX) {
            let highest = self.executed;
            let reason = format!("fence {fence} is absurdly high, the highest here is {highest}");
            return Err(absurd(reason));
        }
        if of_term.is_none() {
            self.leader = Some((Arc::clone(from), fence.term));
        }
        self.executed = self.executed.max(fence);
        Ok(())
    }

    /// The fence to make durable before anything admitted has its effect; none if it is already.
    pub fn unsaved(&self) -> Option<Fence> {
        (self.executed > self.durable).then_some(self.executed)
    }

    /// The fence file now holds `fence`.
    pub fn persisted(&mut self, fence: Fence) {
        assert!(
            self.durable <= fence && fence <= self.executed,
            "fence {fence} saved between {} and {}",
            self.durable,
            self.executed
        );
        self.durable = fence;
    }

    /// What was admitted since the fence was saved last was refused after all.
    pub fn forget_unsaved(&mut self) {
        if self.executed.term > self.durable.term {
            self.leader = None;
        }
        self.executed = self.durable;
    }

    /// The highest fence of any request admitted so far.
    pub fn executed(&self) -> Fence {
        self.executed
    }
}

/// Refuses what no sound leader sends.
fn absurd(reason: String) -> Refusal {
    if let Some(more) = logging::seldom("absurd fence") {
        log::error!("{reason}: it is refused{more}");
    }
    Refusal::Other(reason)
}

/// Refuses a fence that is lower than the highest executed.
pub fn check(highest: Fence, fence: Fence) -> Result<(), Refusal> {
    if fence < highest && !faults::has(Fault::IgnoreFence) {
        return Err(Refusal::StaleFence { highest });
    }
    Ok(())
}

/// The content of the fence file.
pub fn encode(fence: Fence) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(FILE_BYTES);
    bytes.push(VERSION);
    bytes.extend_from_slice(&fence.term.to_le_bytes());
    bytes.extend_from_slice(&fence.link.to_le_bytes());
    bytes
}

/// The fence of a fence file; `None` if it is none of this version.
pub fn decode(bytes: &[u8]) -> Option<Fence> {
    let (&version, rest) = bytes.split_first()?;
    let (term, link) = rest.split_at_checked(8)?;
    let link = <[u8; 8]>::try_from(link).ok()?;
    let term = <[u8; 8]>::try_from(term).ok()?;
    (version == VERSION).then_some(Fence {
        term: u64::from_le_bytes(term),
        link: u64::from_le_bytes(link),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fence(term: u64, link: u64) -> Fence {
        Fence { term, link }
    }

    fn a() -> Arc<str> {
        "leader-a".into()
    }

    #[test]
    fn a_term_is_that_of_one_leader_whatever_the_link_number() {
        let b: Arc<str> = "leader-b".into();
        let mut state = FenceState::new(fence(2, 5));
        assert_eq!(state.admit(fence(2, 6), &a()), Ok(()));
        let foreign = state.admit(fence(2, u64::MAX), &b);
        let reason = "fence 2.18446744073709551615 is of leader-b, and term 2 is that of leader-a";
        assert_eq!(foreign, Err(Refusal::Other(reason.to_owned())));
        assert_eq!(state.admit(fence(2, 7), &a()), Ok(()));
        // The next term is open again.
        assert_eq!(state.admit(fence(3, 1), &b), Ok(()));
        assert!(state.admit(fence(3, 2), &a()).is_err());
        // Nothing of it took effect.
        state.persisted(fence(2, 7));
        state.forget_unsaved();
        assert_eq!(state.admit(fence(3, 2), &a()), Ok(()));
        assert!(state.admit(fence(3, 3), &b).is_err());
    }

    #[test]
    fn the_fence_file_comes_back_and_others_are_refused() {
        let bytes = encode(fence(3, 9));
        assert_eq!(bytes.len(), FILE_BYTES);
        assert_eq!(decode(&bytes), Some(fence(3, 9)));
        for cut in 0..bytes.len() {
            assert_eq!(decode(&bytes[..cut]), None);
        }
        assert_eq!(decode(&[bytes.as_slice(), b"x"].concat()), None);
        assert_eq!(decode(&[&[2], &bytes[1..]].concat()), None);
    }

    #[test]
    fn an_absurdly_high_fence_is_refused_and_raises_nothing() {
        let mut state = FenceState::new(fence(2, 5));
        for term in [3 + Revision::TERM_JUMP_MAX, 1 << 63, u64::MAX] {
            let refused = state.admit(fence(term, 1), &a());
            assert!(matches!(refused, Err(Refusal::Other(_))), "{term}");
        }
        assert_eq!(state.executed(), fence(2, 5));
        assert_eq!(
            state.admit(fence(2 + Revision::TERM_JUMP_MAX, 1), &a()),
            Ok(())
        );
        let mut fresh = FenceState::new(Fence::default());
        assert!(fresh.admit(fence(Revision::TERM_MAX + 1, 1), &a()).is_err());
        assert_eq!(fresh.admit(fence(Revision::TERM_MAX, 1), &a()), Ok(()));
    }

    #[test]
    fn a_lower_fence_is_refused_and_an_equal_one_is_not() {
        let mut state = FenceState::new(fence(2, 5));
        let stale = Err(Refusal::StaleFence {
            highest: fence(2, 5),
        });
        assert_eq!(state.admit(fence(2, 4), &a()), stale);
        assert_eq!(state.admit(fence(1, 9), &a()), stale);
        assert_eq!(state.admit(fence(2, 5), &a()), Ok(()));
        assert_eq!(state.unsaved(), None);
        assert_eq!(state.admit(fence(3, 1), &a()), Ok(()));
        assert_eq!(state.unsaved(), Some(fence(3, 1)));
        state.persisted(fence(3, 1));
        assert_eq!((state.unsaved(), state.executed()), (None, fence(3, 1)));
    }
}
