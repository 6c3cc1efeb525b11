//! When connections and batches that wait are looked at in any case. Pure.
//!
//! A client that takes nothing of its replies is closed when its time is over, but only while
//! others want what it holds. So such a timer that has passed is kept, and is due as soon as the
//! budget is short: at the next look, [`SHORTAGE_POLL`] later at most, and not after another
//! time-out.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::clock::Instant;

/// How often it is looked whether the budget is short, while clients have stalled for too long: so
/// late are they closed at most. Each look costs a few instructions.
pub const SHORTAGE_POLL: Duration = Duration::from_secs(1);

/// Who waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Of {
    /// The connection in this place.
    Connection(usize),
    /// The batch that was parked under this ticket.
    Batch(u64),
}

/// A deadline: ordered by time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timer {
    /// When it is due.
    pub at: Instant,
    /// Who waits for it.
    pub of: Of,
    /// Of a client that takes nothing: it matters only while the budget is short.
    pub is_of_stall: bool,
}

/// All deadlines.
#[derive(Default)]
pub struct Timers {
    /// Not due yet, as far as was looked.
    waiting: BTreeSet<Timer>,
    /// Those of stalled clients that have passed while the budget was not short.
    overdue: BTreeSet<Timer>,
}

impl Timers {
    /// Adds a timer.
    pub fn insert(&mut self, timer: Timer) {
        self.waiting.insert(timer);
    }

    /// Forgets a timer, if it is still there.
    pub fn remove(&mut self, timer: &Timer) {
        if !self.waiting.remove(timer) {
            self.overdue.remove(timer);
        }
    }

    /// Takes the next that is due at `now`.
    pub fn pop_due(&mut self, now: Instant, is_short: bool) -> Option<Timer> {
        if is_short && let Some(timer) = self.overdue.pop_first() {
            return Some(timer);
        }
        while let Some(first) = self.waiting.first().copied() {
            if first.at > now {
                break;
            }
            self.waiting.remove(&first);
            if is_short || !first.is_of_stall {
                return Some(first);
            }
            self.overdue.insert(first);
        }
        None
    }

    /// When to look for due ones again, none being due at `now`.
    pub fn next_at(&self, now: Instant) -> Option<Instant> {
        let look_at = (!self.overdue.is_empty()).then(|| now + SHORTAGE_POLL);
        let next = self.waiting.first().map(|timer| timer.at);
        next.into_iter().chain(look_at).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(timers: &mut Timers, now: Instant, is_short: bool) -> Result<Timer, Option<Instant>> {
        let due = timers.pop_due(now, is_short);
        due.ok_or_else(|| timers.next_at(now))
    }

    #[test]
    fn timers_of_stalled_clients_wait_until_the_budget_is_short() {
        let second = |n| Instant::default() + Duration::from_secs(n);
        let timer = |at, is_of_stall| Timer {
            at,
            of: Of::Connection(1),
            is_of_stall,
        };
        let (stall, other) = (timer(second(2), true), timer(second(3), false));
        let mut timers = Timers::default();
        timers.insert(stall);
        timers.insert(other);
        assert_eq!(next(&mut timers, second(1), true), Err(Some(second(2))));
        // It has passed, and nobody wants what its client holds: it is looked at now and then.
        assert_eq!(next(&mut timers, second(2), false), Err(Some(second(3))));
        assert_eq!(next(&mut timers, second(3), false), Ok(other));
        assert_eq!(next(&mut timers, second(9), false), Err(Some(second(10))));
        assert_eq!(next(&mut timers, second(10), true), Ok(stall));
        assert_eq!(next(&mut timers, second(10), true), Err(None));
        timers.insert(stall);
        assert_eq!(next(&mut timers, second(9), false), Err(Some(second(10))));
        timers.remove(&stall);
        assert_eq!(next(&mut timers, second(10), true), Err(None));
    }
}
