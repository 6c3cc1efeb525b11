//! The writes that the journal has not made durable, and whether its disk is too slow for a leader.
//! Pure.
//!
//! A Raft leader's heartbeats do not wait for its disk, so nobody else would take over from one
//! whose disk is slow: it hands over. Only to one that has stored what this disk has not, and not
//! again at once: where all disks are slow now and then, the one that was quicker last time is not
//! much better, and each change costs some writes of its own.

use std::collections::VecDeque;
use std::time::Duration;

use crate::clock::Instant;
use crate::group::core::Persist;

/// A disk that takes longer than this for a write is slow: as long as others wait for a leader that
/// is silent before they elect another.
const SLOW_WRITE: Duration = Duration::from_millis(600);

/// How long a Raft leader does not hand over because of its disk: many times what it costs.
const REST: Duration = Duration::from_secs(5);

/// The writes that are not durable.
#[derive(Default)]
pub struct Writes {
    waiting: VecDeque<Write>,
    /// Since when this participant is Raft leader.
    leads_since: Option<Instant>,
}

struct Write {
    number: u64,
    /// The last entry in it, 0 if there is none.
    index: u64,
    /// When it was handed out, or what was before it became durable.
    since: Instant,
}

impl Writes {
    /// A write is handed out.
    pub fn begin(&mut self, write: &Persist, now: Instant) {
        self.waiting.push_back(Write {
            number: write.number,
            index: write.entries.last().map_or(0, |entry| entry.index),
            since: now,
        });
    }

    /// The writes up to `number` are durable.
    pub fn end(&mut self, number: u64, now: Instant) {
        self.waiting.retain(|write| write.number > number);
        self.waiting.iter_mut().for_each(|write| write.since = now);
    }

    /// A tick of time. If leadership should go to one that has stored an entry: which entry.
    pub fn tick(&mut self, leads: bool, now: Instant) -> Option<u64> {
        if !leads {
            self.leads_since = None;
            return None;
        }
        let leads_since = *self.leads_since.get_or_insert(now);
        let oldest = self.waiting.front()?;
        let is_slow = now.since(oldest.since) > SLOW_WRITE && now.since(leads_since) > REST;
        is_slow.then_some(oldest.index)
    }
}
