//! Who waits for which entry of the log, and what became of it. Pure.
//!
//! A proposal that was appended waits here until an entry is applied that decides it: its own, or
//! one that shows that its own never will be (R15). The waiter is opaque: the Raft thread keeps the
//! callbacks here, tests keep numbers.
//!
//! Invariants: waiters are in the order of their indices, and their terms never fall; a waiter
//! leaves once. At most [`WAITING_MAX`] wait (A8).

use std::collections::VecDeque;

/// How many proposals may wait to be applied: as many as batches of clients may be under way; half
/// of it would refuse some of them.
pub const WAITING_MAX: usize = 16_384;

/// Why something was not proposed. Nothing happened and nothing will.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// This process does not lead the proposal's term, or not any more, or not yet (R2, R5).
    #[error("not the leader of that term")]
    NotLeader,
    /// Too much waits already; try again.
    #[error("busy")]
    Busy,
    /// The journal has no space, descriptor or memory; try again when there is some.
    #[error("the journal is full for now")]
    DiskFull,
    /// The group has stopped.
    #[error("stopped")]
    Stopped,
}

/// What became of a proposal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProposalOutcome<O> {
    /// It is durable and applied, with this result.
    Applied(O),
    /// It was never appended to the log: nothing happened.
    NotProposed(Reason),
    /// It was appended, and another leader's entry stands in its place: nothing happened, and
    /// nothing will (R15).
    Lost,
    /// It was appended, and the group stopped before it was decided: it may or may not happen.
    Unknown,
}

/// A waiter that is decided.
#[derive(Debug, PartialEq, Eq)]
pub enum Decided<W> {
    /// Its entry is the one that was applied.
    Applied(W),
    /// Its entry is not in the log and never will be again.
    Lost(W),
}

struct Waiting<W> {
    index: u64,
    term: u64,
    waiter: W,
}

/// The proposals that wait.
pub struct Proposals<W> {
    waiting: VecDeque<Waiting<W>>,
}

impl<W> Default for Proposals<W> {
    fn default() -> Proposals<W> {
        Proposals {
            waiting: VecDeque::new(),
        }
    }
}

impl<W> Proposals<W> {
    /// Whether no more may wait.
    pub fn is_full(&self) -> bool {
        self.waiting.len() >= WAITING_MAX
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Takes in the waiter for the entry that was just appended at `index` in `term`.
    pub fn insert(&mut self, index: u64, term: u64, waiter: W) {
        assert!(!self.is_full(), "more than {WAITING_MAX} proposals wait");
        if let Some(last) = self.waiting.back() {
            // A later leader's term may begin at a lower index; what waits of the older term is
            // then decided by that term's no-op, which is applied before any of its proposals is
            // taken (R5).
            assert!(
                last.index < index && last.term <= term,
                "proposals out of order"
            );
        }
        self.waiting.push_back(Waiting {
            index,
            term,
            waiter,
        });
    }

    /// The entry at `index`, made in `term`, is being applied: returns a waiter that this decides;
    /// to be called until it returns none. At most one of them is `Applied`.
    ///
    /// Terms never fall along the log. So once an entry of a later term is applied, no entry of an
    /// earlier term can follow, and whoever waits for one has lost.
    pub fn decide(&mut self, index: u64, term: u64) -> Option<Decided<W>> {
        let first = self.waiting.front()?;
        if first.index > index && first.term >= term {
            return None;
        }
        let first = self.waiting.pop_front()?;
        if first.index == index && first.term == term {
            return Some(Decided::Applied(first.waiter));
        }
        Some(Decided::Lost(first.waiter))
    }

    /// All that wait, in order, for a group that stops: their outcome is unknown.
    pub fn drain(&mut self) -> impl Iterator<Item = W> + '_ {
        self.waiting.drain(..).map(|waiting| waiting.waiter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_waiter_gets_its_own_entry() {
        let mut proposals = Proposals::default();
        for index in 3..6 {
            proposals.insert(index, 2, index);
        }
        assert_eq!(proposals.decide(2, 2), None);
        for index in 3..6 {
            assert_eq!(proposals.decide(index, 2), Some(Decided::Applied(index)));
            assert_eq!(proposals.decide(index, 2), None);
        }
        assert!(proposals.is_empty());
    }

    #[test]
    fn an_entry_of_a_later_term_decides_what_it_replaced_and_all_behind() {
        let mut proposals = Proposals::default();
        for index in 3..6 {
            proposals.insert(index, 2, index);
        }
        assert_eq!(proposals.decide(3, 2), Some(Decided::Applied(3)));
        for index in 4..6 {
            assert_eq!(proposals.decide(4, 3), Some(Decided::Lost(index)));
        }
        assert_eq!(proposals.decide(4, 3), None);
    }

    #[test]
    fn entries_of_an_earlier_term_decide_nothing() {
        let mut proposals = Proposals::default();
        proposals.insert(9, 5, 'a');
        for index in 2..8 {
            assert_eq!(proposals.decide(index, 4), None);
        }
        assert_eq!(proposals.decide(9, 5), Some(Decided::Applied('a')));
    }

    #[test]
    fn a_group_that_stops_hands_all_waiters_back() {
        let mut proposals = Proposals::default();
        for index in 0..WAITING_MAX as u64 {
            assert!(!proposals.is_full());
            proposals.insert(index, 1, index);
        }
        assert!(proposals.is_full());
        assert_eq!(proposals.drain().count(), WAITING_MAX);
    }
}
