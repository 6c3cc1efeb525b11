//! What a load measures: a histogram of latencies, and the errors with the first of them.
//!
//! A request is recorded when its reply has come. Its latency counts from when it was meant to be
//! sent: with a rate that is its place in the schedule, however late it really left, so that a
//! server that stands still for a second is charged for all the requests of that second
//! (Gil Tene, "How NOT to Measure Latency", coordinated omission).

use std::time::Duration;

use hdrhistogram::Histogram;

/// Latencies are kept with this many significant decimal digits: off by at most 0.1 %.
const DIGITS: u8 = 3;

/// The shortest latency that is told apart, in nanoseconds.
const LATENCY_MIN: u64 = 1_000;

/// The longest latency that is told apart, in nanoseconds; longer ones count as this: 10 minutes.
const LATENCY_MAX: u64 = 600_000_000_000;

/// The longest text kept of the first error; a line of a terminal or two.
const ERROR_CHARS_MAX: usize = 200;

/// What one thread saw, or all of them.
pub struct Recorder {
    /// Nanoseconds.
    latencies: Histogram<u64>,
    /// How many of them are of requests that were due and never sent.
    unsent: u64,
    /// Requests that were not done, or of which that is unknown.
    errors: u64,
    /// How many of them are writes that may have happened.
    unknown: u64,
    /// Connections that were opened again.
    reopened: u64,
    first_error: Option<String>,
}

impl Default for Recorder {
    /// A recorder without any latency. Its histogram grows with the longest latency, since a load
    /// may have a recorder for each connection: 16 KiB up to 1 ms, 8 KiB more for each doubling.
    fn default() -> Recorder {
        let latencies = Histogram::new_with_bounds(LATENCY_MIN, 2 * LATENCY_MIN, DIGITS);
        let mut latencies = latencies.expect("the bounds are in order");
        latencies.auto(true);
        Recorder {
            latencies,
            unsent: 0,
            errors: 0,
            unknown: 0,
            reopened: 0,
            first_error: None,
        }
    }
}

impl Recorder {
    /// A request was done.
    pub fn done(&mut self, latency: Duration) {
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        let recorded = self.latencies.record(nanos.min(LATENCY_MAX));
        recorded.expect("the histogram grows up to the longest latency");
    }

    /// The load has ended with a request due and not sent: it would have taken longer than that.
    pub fn never_sent(&mut self, waited: Duration) {
        self.done(waited);
        self.unsent += 1;
    }

    /// Requests were not done, all for the same reason.
    pub fn failed(&mut self, count: u64, reason: impl FnOnce() -> String) {
        if count > 0 && self.first_error.is_none() {
            self.first_error = Some(reason().chars().take(ERROR_CHARS_MAX).collect());
        }
        self.errors += count;
    }

    /// Writes may or may not have happened, all for the same reason.
    pub fn unknown(&mut self, count: u64, reason: impl FnOnce() -> String) {
        self.failed(count, reason);
        self.unknown += count;
    }

    /// A connection was opened again.
    pub fn reopened(&mut self) {
        self.reopened += 1;
    }

    /// Adds what another one saw.
    pub fn merge(&mut self, other: Recorder) {
        let added = self.latencies.add(other.latencies);
        added.expect("the histogram grows up to the longest latency");
        self.unsent += other.unsent;
        self.errors += other.errors;
        self.unknown += other.unknown;
        self.reopened += other.reopened;
        self.first_error = self.first_error.take().or(other.first_error);
    }

    /// How many requests were done.
    pub fn ops(&self) -> u64 {
        self.latencies.len() - self.unsent
    }

    /// How many were due and not sent when the load ended.
    pub fn unsent(&self) -> u64 {
        self.unsent
    }

    /// How many were not, or are not known to be.
    pub fn errors(&self) -> u64 {
        self.errors
    }

    /// How many of those are writes that may have happened.
    pub fn unknowns(&self) -> u64 {
        self.unknown
    }

    /// How many connections were opened again.
    pub fn reopenings(&self) -> u64 {
        self.reopened
    }

    /// Why the first one was not.
    pub fn first_error(&self) -> Option<&str> {
        self.first_error.as_deref()
    }

    /// The latency, in microseconds, that `share` of the requests (0 to 1) did not exceed.
    pub fn quantile_us(&self, share: f64) -> u64 {
        self.latencies.value_at_quantile(share).div_ceil(1_000)
    }

    /// The longest latency, in microseconds.
    pub fn max_us(&self) -> u64 {
        self.latencies.max().div_ceil(1_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_all_threads_together() {
        let (mut all, mut other) = (Recorder::default(), Recorder::default());
        for micros in 1..=500 {
            all.done(Duration::from_micros(micros));
            other.done(Duration::from_micros(500 + micros));
        }
        other.failed(2, || "first".to_owned());
        other.failed(1, || "second".to_owned());
        all.merge(other);
        assert_eq!((all.ops(), all.errors()), (1000, 3));
        assert_eq!(all.first_error(), Some("first"));
        for (share, expected) in [(0.5, 500), (0.9, 900), (0.99, 990)] {
            let found = all.quantile_us(share);
            assert!(found.abs_diff(expected) <= 1, "{share}: {found}");
        }
        assert!(all.max_us().abs_diff(1000) <= 1, "{}", all.max_us());
    }

    #[test]
    fn what_lasts_too_long_or_nothing_at_all_is_no_panic() {
        let mut recorder = Recorder::default();
        assert_eq!((recorder.quantile_us(0.5), recorder.max_us()), (0, 0));
        recorder.done(Duration::ZERO);
        recorder.done(Duration::MAX);
        recorder.failed(0, || unreachable!("nothing failed"));
        assert!(recorder.max_us() >= 600_000_000);
    }
}
