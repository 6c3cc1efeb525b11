//! The time that commands carry.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::clock::Clock;

/// In milliseconds since the Unix epoch: it starts from the wall clock and runs on by the monotonic
/// one, so it neither jumps nor goes back while the process runs. What other leaders had reached it
/// goes on from, if that is ahead, at its own pace: expiry never waits for a wall clock to catch up
/// with one that was wrong once.
pub struct CommandTime {
    /// What the monotonic clock lacks.
    offset_ms: AtomicU64,
}

impl CommandTime {
    /// Starts now.
    pub fn new(clock: &dyn Clock) -> CommandTime {
        let offset_ms = clock.wall_ms().saturating_sub(monotonic_ms(clock));
        CommandTime {
            offset_ms: AtomicU64::new(offset_ms),
        }
    }

    /// The time of a command that is proposed now; `reached_ms` is the highest of those applied.
    pub fn now_ms(&self, clock: &dyn Clock, reached_ms: u64) -> u64 {
        let monotonic_ms = monotonic_ms(clock);
        let ahead = reached_ms.saturating_sub(monotonic_ms);
        let offset_ms = self.offset_ms.fetch_max(ahead, Ordering::Relaxed);
        monotonic_ms.saturating_add(offset_ms.max(ahead))
    }
}

fn monotonic_ms(clock: &dyn Clock) -> u64 {
    clock.now().as_nanos() / 1_000_000
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Instant;

    struct Clocks {
        now: AtomicU64,
        wall: AtomicU64,
    }

    impl Clock for Clocks {
        fn now(&self) -> Instant {
            Instant::from_nanos(self.now.load(Ordering::Relaxed) * 1_000_000)
        }

        fn wall_ms(&self) -> u64 {
            self.wall.load(Ordering::Relaxed)
        }
    }

    #[test]
    fn it_starts_from_the_wall_clock_and_does_not_jump_with_it() {
        let clocks = Clocks {
            now: AtomicU64::new(7),
            wall: AtomicU64::new(5000),
        };
        let time = CommandTime::new(&clocks);
        assert_eq!(time.now_ms(&clocks, 0), 5000);
        clocks.now.store(17, Ordering::Relaxed);
        clocks.wall.store(1, Ordering::Relaxed);
        assert_eq!(time.now_ms(&clocks, 5000), 5010);
    }

    #[test]
    fn it_goes_on_from_what_others_had_reached() {
        let clocks = Clocks {
            now: AtomicU64::new(7),
            wall: AtomicU64::new(5000),
        };
        let time = CommandTime::new(&clocks);
        assert_eq!(time.now_ms(&clocks, 9000), 9000);
        clocks.now.store(10, Ordering::Relaxed);
        assert_eq!(time.now_ms(&clocks, 9000), 9003);
        assert_eq!(time.now_ms(&clocks, 0), 9003);
        assert_eq!(time.now_ms(&clocks, u64::MAX), u64::MAX);
    }
}
