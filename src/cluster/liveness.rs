//! What the leader believes about one member's ability to answer, as a function of times. Pure.
//!
//! It orders choices and is shown to people; safety never rests on it (A9). Two views are taken:
//! *placement* asks only for an open data link, and puts those last that were late or out of space;
//! *status* calls a member down as well when its heartbeats have stopped.

use std::time::Duration;

use crate::clock::Instant;
use crate::protocol::reply::MemberState;

/// Without a heartbeat for this long a member is shown as down: three are missing. Half of it would
/// show members as down when one beat is late.
pub const HEARTBEAT_SILENCE_MAX: Duration = Duration::from_secs(3);

/// How long a member that refused a record for lack of space is chosen only when no other is left.
/// Compaction takes some seconds to give space back; much less would waste an attempt in each
/// write.
pub const FULL_PAUSE: Duration = Duration::from_secs(5);

/// A member that reports less free space than this is chosen after those with more: what may be in
/// flight to it (64 MiB) would still fit twice.
pub const FREE_BYTES_LOW: u64 = 128 * 1024 * 1024;

/// A member that reports less free space than this has no room: a message of the largest size that
/// may be set, with its record, would not fit.
pub const FREE_BYTES_MIN: u64 = 32 * 1024 * 1024;

/// How good a choice a member is for a new copy; the lower, the better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fitness {
    /// Nothing speaks against it.
    Good,
    /// Its last heartbeat said that space is short.
    SpaceLow,
    /// It is late with an answer.
    Suspect,
    /// It refused a record for lack of space a short while ago.
    Full,
}

/// The times and facts that beliefs about one member are made of.
#[derive(Clone, Copy, Debug, Default)]
pub struct Liveness {
    /// When our data link to it was opened; `None` without one.
    connected_at: Option<Instant>,
    /// It was late and has not answered since.
    is_late: bool,
    /// When it last answered, at which the opening of the link counts.
    answered_at: Option<Instant>,
    /// When its last heartbeat came.
    heartbeat_at: Option<Instant>,
    /// When it last gave any sign of life: link opened, heartbeat or answer.
    seen_at: Option<Instant>,
    /// Free bytes of its disk by its last heartbeat.
    free: Option<u64>,
    /// Until when it counts as full.
    full_until: Option<Instant>,
}

impl Liveness {
    /// Our data link to it is open; opening it took an answer, so earlier lateness is forgotten.
    pub fn connected(&mut self, now: Instant) {
        self.connected_at = Some(now);
        self.answered(now);
    }

    /// Our data link to it is broken.
    pub fn disconnected(&mut self) {
        self.connected_at = None;
        self.is_late = false;
    }

    /// A heartbeat came. It does not clear lateness: it travels on another link, and a member whose
    /// disk hangs still sends it.
    pub fn heartbeat(&mut self, free: u64, now: Instant) {
        self.heartbeat_at = Some(now);
        self.seen_at = Some(now);
        self.free = Some(free);
    }

    /// It answered on the data link.
    pub fn answered(&mut self, now: Instant) {
        self.is_late = false;
        self.answered_at = Some(now);
        self.seen_at = Some(now);
    }

    /// It has not given the answer that was due then. One that has answered since is not late:
    /// whoever finds that out may do so behind the answer, after a pause of this process, say, and
    /// there may be no later one to clear it.
    pub fn late(&mut self, due: Instant) {
        self.is_late |= self.answered_at.is_none_or(|at| at <= due);
    }

    /// It refused a record for lack of space.
    pub fn refused_full(&mut self, now: Instant) {
        self.full_until = Some(now + FULL_PAUSE);
    }

    /// Whether our data link to it is open.
    pub fn is_connected(&self) -> bool {
        self.connected_at.is_some()
    }

    /// Whether it is late with an answer.
    pub fn is_late(&self) -> bool {
        self.is_late
    }

    /// Free bytes of its disk by its last heartbeat; `None` before the first.
    pub fn free(&self) -> Option<u64> {
        self.free
    }

    /// When it last gave a sign of life; `None` before the first.
    pub fn last_seen(&self) -> Option<Instant> {
        self.seen_at
    }

    /// What people are shown. A member that has just been connected has the usual time to send its
    /// first heartbeat to this leader.
    pub fn state(&self, now: Instant) -> MemberState {
        let Some(connected_at) = self.connected_at else {
            return MemberState::Down;
        };
        let heard_at = self
            .heartbeat_at
            .map_or(connected_at, |at| at.max(connected_at));
        if now.since(heard_at) >= HEARTBEAT_SILENCE_MAX {
            MemberState::Down
        } else if self.is_late {
            MemberState::Suspect
        } else {
            MemberState::Up
        }
    }

    /// Whether it has room for a message, as far as is known: it has refused none for lack of space
    /// a short while ago, and its last heartbeat did not say that there is too little.
    pub fn has_room(&self, now: Instant) -> bool {
        let is_full = self.full_until.is_some_and(|until| now < until);
        !is_full && self.free.is_none_or(|free| free >= FREE_BYTES_MIN)
    }

    /// How good a choice it is for a new copy; `None` without a data link.
    pub fn fitness(&self, now: Instant) -> Option<Fitness> {
        if !self.is_connected() {
            None
        } else if self.full_until.is_some_and(|until| now < until) {
            Some(Fitness::Full)
        } else if self.is_late {
            Some(Fitness::Suspect)
        } else if self.free.is_some_and(|free| free < FREE_BYTES_LOW) {
            Some(Fitness::SpaceLow)
        } else {
            Some(Fitness::Good)
        }
    }
}
