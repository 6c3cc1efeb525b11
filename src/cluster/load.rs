//! How much one member holds and is being sent. Pure.
//!
//! Load, as placement compares it, is the copies it holds by applied metadata plus the records in
//! flight to it. A charge is taken when a member is chosen and ended by `settle`. Settling after the
//! batch was applied counts a record twice for a moment, settling before it leaves the record out
//! for a moment; both pass, and only the order of choices depends on them (A9).

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
}

impl Load {
    /// What applied metadata says it holds.
    pub fn set(&mut self, records: u64, bytes: u64) {
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

    /// What placement compares: records held and in flight.
    pub fn total(&self) -> u64 {
        self.records.saturating_add(self.records_in_flight)
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
}
