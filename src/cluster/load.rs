//! How much one member holds and is being sent. Pure.
//!
//! Load, as placement compares it, is the copies it holds by applied metadata plus the records on
//! the way into it: in flight, and answered for but not applied yet. A charge is taken when a
//! member is chosen and ended by `settle` when its answer has come. If what is settled did not
//! count until it was applied, the member that answers first would look emptier than the others by
//! a whole batch, and get the next one too. So it counts until the metadata's counters grow by as
//! much, or, as it may have failed, for `SETTLED_WINDOW` to twice that. Only the order of choices
//! depends on it (A9).

use std::time::Duration;

use crate::clock::Instant;

/// How long records count that were settled and do not show in the metadata: some ten times what
/// applying them takes. A second of failed writes too many hardly moves a choice.
const SETTLED_WINDOW: Duration = Duration::from_secs(1);

/// The most bytes in flight to one member (DESIGN.md §3). At 10 MB/s, the slowest member that
/// deadlines allow for, it has them taken in after 6.7 s.
pub const BYTES_IN_FLIGHT_MAX: u64 = 64 * 1024 * 1024;
/// The most records in flight to one member (DESIGN.md §3): 16 batches of 4,096.
pub const RECORDS_IN_FLIGHT_MAX: u64 = 65_536;

/// The load of one member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Copies it holds by applied metadata.
    records: u64,
    /// Payload bytes of these copies.
    bytes: u64,
    /// Records charged and not settled.
    records_in_flight: u64,
    /// Bytes charged and not settled.
    bytes_in_flight: u64,
    /// Records settled and not seen in the metadata yet: in this window, and in the one before.
    settled: [u64; 2],
    /// When this window began.
    window_at: Instant,
}

impl Load {
    /// What applied metadata says it holds. An increase accounts for settled records, oldest first.
    pub fn set(&mut self, records: u64, bytes: u64) {
        let mut increase = records.saturating_sub(self.records);
        for settled in self.settled.iter_mut().rev() {
            let seen = increase.min(*settled);
            *settled -= seen;
            increase -= seen;
        }
        self.records = records;
        self.bytes = bytes;
    }

    /// Whether that much more may be in flight. An idle member takes any single run, however large.
    pub fn has_room(&self, records: u64, bytes: u64) -> bool {
        let is_idle = self.records_in_flight == 0 && self.bytes_in_flight == 0;
        is_idle
            || (self.records_in_flight.saturating_add(records) <= RECORDS_IN_FLIGHT_MAX
                && self.bytes_in_flight.saturating_add(bytes) <= BYTES_IN_FLIGHT_MAX)
    }

    /// That much more is in flight.
    pub fn charge(&mut self, records: u64, bytes: u64) {
        self.records_in_flight = self.records_in_flight.saturating_add(records);
        self.bytes_in_flight = self.bytes_in_flight.saturating_add(bytes);
    }

    /// Ends a charge. One that was never taken is our mistake; a release build goes on from zero,
    /// because nothing but the order of choices depends on it.
    pub fn settle(&mut self, records: u64, bytes: u64) {
        debug_assert!(records <= self.records_in_flight && bytes <= self.bytes_in_flight);
        self.records_in_flight = self.records_in_flight.saturating_sub(records);
        self.bytes_in_flight = self.bytes_in_flight.saturating_sub(bytes);
        self.settled[0] = self.settled[0].saturating_add(records);
    }

    /// Forgets what was settled long ago.
    pub fn pass_time(&mut self, now: Instant) {
        let passed = now.since(self.window_at);
        if passed >= SETTLED_WINDOW {
            let is_recent = passed < SETTLED_WINDOW * 2;
            self.settled = [0, if is_recent { self.settled[0] } else { 0 }];
            self.window_at = now;
        }
    }

    /// Copies it holds by applied metadata.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// Payload bytes of these copies.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Records charged and not settled.
    pub fn records_in_flight(&self) -> u64 {
        self.records_in_flight
    }

    /// Bytes charged and not settled.
    pub fn bytes_in_flight(&self) -> u64 {
        self.bytes_in_flight
    }

    /// What placement compares: records held and on the way.
    pub fn total(&self) -> u64 {
        [self.records_in_flight, self.settled[0], self.settled[1]]
            .into_iter()
            .fold(self.records, u64::saturating_add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_ends_at_the_limits_except_for_a_first_run() {
        let mut load = Load::default();
        assert!(load.has_room(1, BYTES_IN_FLIGHT_MAX + 1), "idle takes all");
        load.charge(1, BYTES_IN_FLIGHT_MAX - 10);
        assert!(load.has_room(1, 10) && !load.has_room(1, 11));
        load.settle(1, BYTES_IN_FLIGHT_MAX - 10);
        load.charge(RECORDS_IN_FLIGHT_MAX, 0);
        assert!(!load.has_room(1, 0));
    }

    #[test]
    fn settled_records_count_until_they_are_applied_or_some_time_has_passed() {
        let mut load = Load::default();
        load.charge(10, 0);
        load.settle(10, 0);
        assert_eq!((load.total(), load.records_in_flight()), (10, 0));
        load.set(4, 0);
        assert_eq!(load.total(), 10);
        let at = |window: u32| Instant::default() + SETTLED_WINDOW * window;
        load.pass_time(at(1));
        assert_eq!(load.total(), 10);
        load.pass_time(at(2));
        assert_eq!(load.total(), 4, "six of them failed");
    }
}
