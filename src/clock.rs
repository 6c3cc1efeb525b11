//! Time: the [`Clock`] that shells hold, and the [`Instant`] that pure code is handed.
//!
//! Elapsed time is monotonic and counted in nanoseconds from an arbitrary start. Wall time is for
//! people and, carried in commands by the leader, for expiry. This is the only file that reads the
//! operating system's clock or sleeps.

use std::fmt;
use std::ops::{Add, Sub};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A point of monotonic time: nanoseconds since an arbitrary start, the same for one clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(u64);

impl Instant {
    /// The point `nanos` nanoseconds after the clock's start.
    pub const fn from_nanos(nanos: u64) -> Instant {
        Instant(nanos)
    }

    /// Nanoseconds since the clock's start.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The time from `earlier` to this point; zero if `earlier` is not earlier.
    pub fn since(self, earlier: Instant) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant {
    type Output = Instant;

    /// Saturates at the end of time, 584 years after the start.
    fn add(self, duration: Duration) -> Instant {
        Instant(
            self.0
                .saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)),
        )
    }
}

impl Sub<Duration> for Instant {
    type Output = Instant;

    /// Saturates at the clock's start.
    fn sub(self, duration: Duration) -> Instant {
        Instant(
            self.0
                .saturating_sub(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)),
        )
    }
}

impl fmt::Display for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3}ms", self.0 as f64 / 1e6)
    }
}

/// Where shells get the time from.
pub trait Clock: Send + Sync {
    /// The monotonic time.
    fn now(&self) -> Instant;
    /// Milliseconds since the Unix epoch; may jump.
    fn wall_ms(&self) -> u64;
}

/// The operating system's clocks.
pub struct SystemClock {
    /// What [`Instant`] counts from: when this value was made.
    start: std::time::Instant,
}

impl SystemClock {
    /// A clock that starts now. Instants of two clocks do not compare: a process makes one.
    #[allow(clippy::disallowed_methods)] // The one place that reads the clock.
    pub fn new() -> SystemClock {
        SystemClock {
            start: std::time::Instant::now(),
        }
    }

    /// A shared clock.
    pub fn shared() -> Arc<dyn Clock> {
        Arc::new(SystemClock::new())
    }
}

impl Default for SystemClock {
    fn default() -> SystemClock {
        SystemClock::new()
    }
}

impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods)] // The one place that reads the clock.
    fn now(&self) -> Instant {
        let elapsed = std::time::Instant::now().duration_since(self.start);
        Instant::default() + elapsed
    }

    #[allow(clippy::disallowed_methods)] // The one place that reads the clock.
    fn wall_ms(&self) -> u64 {
        let elapsed = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
    }
}

/// A clock for tests that moves only when told to.
#[derive(Default)]
pub struct ManualClock {
    nanos: AtomicU64,
}

impl ManualClock {
    /// Moves monotonic and wall time forward.
    pub fn advance(&self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.nanos.fetch_add(nanos, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Instant {
        Instant(self.nanos.load(Ordering::SeqCst))
    }

    fn wall_ms(&self) -> u64 {
        self.nanos.load(Ordering::SeqCst) / 1_000_000
    }
}

/// Blocks the calling thread. For tools and back-off where there is nothing to wait for; everything
/// else waits *for something, until a deadline*.
#[allow(clippy::disallowed_methods)] // The one place that sleeps.
pub fn sleep(duration: Duration) {
    std::thread::sleep(duration);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_saturate_and_measure() {
        let start = Instant::from_nanos(5);
        let later = start + Duration::from_nanos(7);
        assert_eq!(later.since(start), Duration::from_nanos(7));
        assert_eq!(start.since(later), Duration::ZERO);
        assert_eq!(start - Duration::from_secs(1), Instant::default());
        assert_eq!((start + Duration::MAX).as_nanos(), u64::MAX);
    }

    #[test]
    fn the_manual_clock_moves_only_when_told() {
        let clock = ManualClock::default();
        assert_eq!(clock.now(), clock.now());
        clock.advance(Duration::from_millis(3));
        assert_eq!((clock.now().as_nanos(), clock.wall_ms()), (3_000_000, 3));
    }
}
