//! What peers' messages that wait for the Raft thread may take of memory.
//!
//! A message is a slice of the frame that it came in and keeps all of it, so frames are counted.
//! What finds no room is lost, as on a network; Raft sends it again.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes of peers' messages that wait for the Raft thread, at most; more are lost, as on a network
/// that is too slow. Twice what one leader has on its way to a follower; with half of it, one that
/// catches up would have some of them sent again.
pub(super) const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// Room beyond it for messages that came in few bytes: heartbeats and votes are heard beside a peer
/// that floods.
const RESERVE_BYTES: usize = 4 << 20;

/// Messages that came in at most so many bytes may use the reserve.
pub(super) const SMALL_BYTES: usize = 4 << 10;

/// What messages that came together take; given back when it is dropped, with the last of them.
pub struct Room {
    used: Arc<AtomicUsize>,
    bytes: usize,
}

impl Room {
    /// Room for so many bytes, beside `used`; `None` if there is none.
    pub(super) fn take(used: &Arc<AtomicUsize>, bytes: usize) -> Option<Room> {
        let most = match bytes {
            0..=SMALL_BYTES => MESSAGE_BYTES_MAX + RESERVE_BYTES,
            _ => MESSAGE_BYTES_MAX,
        };
        let taken = used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            used.checked_add(bytes).filter(|sum| *sum <= most)
        });
        let used = Arc::clone(used);
        taken.ok().map(|_| Room { used, bytes })
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
