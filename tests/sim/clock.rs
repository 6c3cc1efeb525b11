//! The clock of one process: runs a little fast or slow, from the process's start.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use tolerex::clock::{Clock, Instant};

/// Milliseconds from the Unix epoch to the world's beginning.
const BEGINNING_MS: i64 = 1_700_000_000_000;

/// Set by the world before each event of the process.
pub struct NodeClock {
    /// When the process was started, in the world's time.
    start: u64,
    /// By how many millionths it is fast.
    ppm: i64,
    nanos: AtomicU64,
    /// What the wall clock is ahead, in milliseconds.
    jump_ms: AtomicI64,
}

impl NodeClock {
    /// Of a process that starts now.
    pub fn new(start: u64, ppm: i64, jump_ms: i64) -> NodeClock {
        NodeClock {
            start,
            ppm,
            nanos: AtomicU64::new(0),
            jump_ms: AtomicI64::new(jump_ms),
        }
    }

    /// It is `now` in the world.
    pub fn set(&self, now: u64) {
        let elapsed = i128::from(now.saturating_sub(self.start));
        let local = elapsed * i128::from(1_000_000 + self.ppm) / 1_000_000;
        self.nanos.store(local as u64, Ordering::Relaxed);
    }

    /// When it will be `instant` here, in the world's time.
    pub fn world(&self, instant: Instant) -> u64 {
        let local = i128::from(instant.as_nanos());
        let elapsed = local * 1_000_000 / i128::from(1_000_000 + self.ppm) + 1;
        self.start
            .saturating_add(u64::try_from(elapsed).unwrap_or(u64::MAX))
    }

    /// The wall clock is set.
    pub fn jump(&self, ms: i64) {
        self.jump_ms.store(ms, Ordering::Relaxed);
    }
}

impl Clock for NodeClock {
    fn now(&self) -> Instant {
        Instant::from_nanos(self.nanos.load(Ordering::Relaxed))
    }

    fn wall_ms(&self) -> u64 {
        let elapsed = (self.start + self.nanos.load(Ordering::Relaxed)) / 1_000_000;
        let ms = elapsed as i64 + BEGINNING_MS + self.jump_ms.load(Ordering::Relaxed);
        ms.max(0) as u64
    }
}
