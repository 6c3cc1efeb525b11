//! What a peer may hold with frames that it has begun and does not finish: time and memory.
//!
//! A frame must be complete [`InputLimits::frame_timeout`] after its first byte, plus its size at
//! [`BYTES_PER_SECOND`]. All unfinished frames of a server larger than [`SMALL_BYTES`] share a
//! [`Budget`]; one that finds no room in it is not read for [`ROOM_TIMEOUT`], in which the peer's
//! kernel holds it, and then ends its connection. Smaller ones are bounded by the number of
//! connections.

use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::clock::{Clock, Instant};

/// The slowest that a frame may arrive, beside the time-out: a poor connection over a wide area.
const BYTES_PER_SECOND: u64 = 1 << 20;

/// Frames up to this size need no room in the budget: with 256 connections 16 MiB at most.
pub(crate) const SMALL_BYTES: usize = 64 << 10;

/// How long a frame waits for room. Shorter than what the peer's kernel takes a connection for dead
/// after that takes no bytes (6 s).
const ROOM_TIMEOUT: Duration = Duration::from_secs(3);

/// How often a reader that waits for the rest of a frame looks at the clock.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// How long a frame may take by default, beside what its size grants. Half of it fails on a machine
/// that stands still for some seconds, twice of it holds memory for longer.
pub(crate) const FRAME_TIMEOUT: Duration = Duration::from_secs(10);

/// Limits of what one connection receives.
#[derive(Clone)]
pub(crate) struct InputLimits {
    /// How long a frame may take, beside what its size grants.
    pub(crate) frame_timeout: Duration,
    /// Shared by the connections that were accepted; those that were dialled receive what they
    /// asked for.
    pub(crate) budget: Option<Arc<Budget>>,
}

impl Default for InputLimits {
    fn default() -> InputLimits {
        InputLimits {
            frame_timeout: FRAME_TIMEOUT,
            budget: None,
        }
    }
}

/// Bytes that unfinished frames may hold together.
pub(crate) struct Budget {
    bytes_max: usize,
    /// Bytes in use. Guards nothing else; held for an addition.
    used: Mutex<usize>,
    freed: Condvar,
}

impl Budget {
    pub(crate) fn new(bytes_max: usize) -> Budget {
        Budget {
            bytes_max,
            used: Mutex::new(0),
            freed: Condvar::new(),
        }
    }

    /// Takes `bytes`, when there is room for them within `wait`.
    fn take(&self, bytes: usize, wait: Duration) -> bool {
        let mut used = self.used.lock();
        let is_full = |used: &mut usize| *used > self.bytes_max.saturating_sub(bytes);
        if self
            .freed
            .wait_while_for(&mut used, is_full, wait)
            .timed_out()
            && is_full(&mut used)
        {
            return false;
        }
        *used += bytes;
        true
    }

    fn give_back(&self, bytes: usize) {
        *self.used.lock() -= bytes;
        self.freed.notify_all();
    }
}

/// The frame that a connection's reader has a part of, if any.
pub(crate) struct Unfinished<'a> {
    socket: &'a TcpStream,
    clock: &'a dyn Clock,
    limits: InputLimits,
    /// When its first byte was seen.
    begun: Option<Instant>,
    /// Bytes that it holds of the budget.
    taken: usize,
    /// Reading ends after [`LOOK_INTERVAL`].
    is_timed: bool,
}

impl<'a> Unfinished<'a> {
    pub(crate) fn new(
        socket: &'a TcpStream,
        clock: &'a dyn Clock,
        limits: InputLimits,
    ) -> Unfinished<'a> {
        Unfinished {
            socket,
            clock,
            limits,
            begun: None,
            taken: 0,
            is_timed: false,
        }
    }

    /// A frame is complete; another one may have begun.
    pub(crate) fn end(&mut self) {
        self.begun = None;
        let taken = std::mem::take(&mut self.taken);
        if let Some(budget) = self.limits.budget.as_ref().filter(|_| taken > 0) {
            budget.give_back(taken);
        }
    }

    /// Before each read: a frame of `bytes` is unfinished, or none is. An error ends the
    /// connection.
    pub(crate) fn look(&mut self, bytes: Option<usize>) -> Result<(), String> {
        let Some(bytes) = bytes else {
            self.end();
            return self.set_timed(false);
        };
        let now = self.clock.now();
        let begun = *self.begun.get_or_insert(now);
        let granted = Duration::from_millis(bytes as u64 * 1000 / BYTES_PER_SECOND);
        let allowed = self.limits.frame_timeout + granted;
        if now.since(begun) >= allowed {
            return Err(format!(
                "a frame of {bytes} bytes is not complete in {allowed:.1?}"
            ));
        }
        if let Some(budget) = self.limits.budget.as_ref()
            && bytes > SMALL_BYTES
            && self.taken == 0
        {
            if !budget.take(bytes, ROOM_TIMEOUT.min(self.limits.frame_timeout)) {
                return Err(format!("there is no room for a frame of {bytes} bytes"));
            }
            self.taken = bytes;
        }
        self.set_timed(true)
    }

    fn set_timed(&mut self, is_timed: bool) -> Result<(), String> {
        if self.is_timed != is_timed {
            let timeout = is_timed.then_some(LOOK_INTERVAL);
            let set = self.socket.set_read_timeout(timeout);
            set.map_err(|error| format!("reading: {error}"))?;
            self.is_timed = is_timed;
        }
        Ok(())
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::clock::ManualClock;

    fn socket() -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        TcpStream::connect(listener.local_addr().expect("bound")).expect("a connection")
    }

    #[test]
    fn a_frame_has_a_deadline_by_its_size() {
        let (socket, clock) = (socket(), ManualClock::default());
        let mut unfinished = Unfinished::new(&socket, &clock, InputLimits::default());
        let large = 30 << 20;
        assert_eq!(unfinished.look(Some(4)), Ok(()));
        clock.advance(FRAME_TIMEOUT);
        // Its size is known now.
        assert_eq!(unfinished.look(Some(large)), Ok(()));
        clock.advance(Duration::from_secs(31));
        let late = unfinished.look(Some(large));
        assert_eq!(
            late,
            Err("a frame of 31457280 bytes is not complete in 40.0s".to_owned())
        );
        unfinished.end();
        assert_eq!(unfinished.look(Some(large)), Ok(()));
        assert_eq!(unfinished.look(None), Ok(()));
    }

    #[test]
    fn unfinished_frames_share_a_budget() {
        let (socket, clock) = (socket(), ManualClock::default());
        let budget = Arc::new(Budget::new(3 * SMALL_BYTES));
        let limits = InputLimits {
            frame_timeout: Duration::from_millis(20),
            budget: Some(budget.clone()),
        };
        let new = || Unfinished::new(&socket, &clock, limits.clone());
        let (mut first, mut second, mut third) = (new(), new(), new());
        assert_eq!(first.look(Some(2 * SMALL_BYTES)), Ok(()));
        assert_eq!(first.look(Some(2 * SMALL_BYTES)), Ok(()));
        assert!(second.look(Some(2 * SMALL_BYTES)).is_err());
        assert_eq!(third.look(Some(SMALL_BYTES)), Ok(()));
        first.end();
        assert_eq!(second.look(Some(2 * SMALL_BYTES)), Ok(()));
        drop(second);
        assert_eq!(*budget.used.lock(), 0);
    }
}
