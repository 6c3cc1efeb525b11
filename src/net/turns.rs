//! Counts the turns of the workers by how long they took. A turn is what a worker does between two
//! polls; for so long everything else that the worker owns waits.
//!
//! In tests of this library the processor time of the worker counts instead: the processors are
//! shared with other tests there, which may interrupt any turn.

use std::array;
use std::ops::Sub;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::Instant;

/// When a turn began.
pub struct Beginning(Duration);

impl Beginning {
    /// A turn begins, at `now` by the clock.
    pub fn at(now: Instant) -> Beginning {
        Beginning(time(now))
    }

    /// How long it takes until `now`.
    pub fn until(&self, now: Instant) -> Duration {
        time(now).saturating_sub(self.0)
    }
}

#[cfg(not(test))]
fn time(now: Instant) -> Duration {
    Duration::from_nanos(now.as_nanos())
}

#[cfg(test)]
fn time(_: Instant) -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(time).expect("it is positive")
}

/// The first class is below 1 µs; each one after it reaches twice as far as the one before, and the
/// last one has no end: 16 ms and more.
const CLASSES: usize = 16;

/// The turns of one worker, which alone adds to them.
#[derive(Debug, Default)]
pub struct TurnTimes([AtomicU64; CLASSES]);

impl TurnTimes {
    /// Adds a turn.
    pub fn add(&self, took: Duration) {
        let class = u128::BITS - took.as_micros().leading_zeros();
        let class = (class as usize).min(CLASSES - 1);
        self.0[class].fetch_add(1, Ordering::Relaxed);
    }
}

/// Counts of turns, by class.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Turns([u64; CLASSES]);

impl Turns {
    /// The sum of several workers' turns.
    pub fn of<'a>(workers: impl IntoIterator<Item = &'a TurnTimes>) -> Turns {
        let mut sum = Turns::default();
        for times in workers {
            for (sum, count) in sum.0.iter_mut().zip(&times.0) {
                *sum += count.load(Ordering::Relaxed);
            }
        }
        sum
    }

    /// All of them.
    pub fn count(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Those that took 2^`exponent` µs or longer.
    pub fn of_at_least_us(&self, exponent: usize) -> u64 {
        self.0.iter().skip(exponent + 1).sum()
    }
}

impl Sub for &Turns {
    type Output = Turns;

    fn sub(self, earlier: &Turns) -> Turns {
        Turns(array::from_fn(|class| self.0[class] - earlier.0[class]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_counted_by_powers_of_two() {
        let times = TurnTimes::default();
        for us in [0, 1, 2, 3, 4, 1023, 1024, 1 << 20] {
            times.add(Duration::from_micros(us));
        }
        let turns = Turns::of([&times, &times]);
        assert_eq!(turns.count(), 16);
        let at_least = [0, 1, 2, 9, 10, 14].map(|exponent| turns.of_at_least_us(exponent));
        assert_eq!(at_least, [14, 12, 8, 6, 4, 2]);
        assert_eq!((&turns - &Turns::of([&times])).count(), 8);
    }
}
