//! How a node that is told to stop comes to its end.

use std::time::Duration;

use super::Node;
use crate::clock::Instant;
use crate::group::{Role, StateMachine};

/// How long a participant that stops tries to hand leadership over.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(1);

/// A stop under way.
#[derive(Clone, Copy)]
pub struct Stop {
    /// Until then leadership may be handed over.
    hand_over_until: Instant,
    /// When to end even though something is not decided.
    at: Instant,
}

impl<S: StateMachine> Node<S> {
    pub(super) fn begin_stop(&mut self, timeout: Duration, now: Instant) {
        if self.stop.is_none() {
            self.stop = Some(Stop {
                hand_over_until: now + HAND_OVER_TIMEOUT,
                at: now + timeout,
            });
            self.core.transfer(None);
        }
    }

    /// Whether a stop that was begun is over.
    pub fn is_finished(&self, now: Instant) -> bool {
        let Some(stop) = self.stop else {
            return false;
        };
        let leads = self.core.status().role == Role::Leader;
        let has_time = now < stop.hand_over_until;
        let is_handing_over = leads && !self.core.configuration().is_alone(self.peer) && has_time;
        // What one that does not lead any more has proposed is decided by the next leader, if there
        // is one. Where all stop together there is none.
        let is_decided = self.proposals.is_empty() || !(leads || has_time);
        let is_done = is_decided && self.core.writes_in_flight() == 0;
        now >= stop.at || (is_done && !is_handing_over)
    }

    /// When a stop that was begun is to be looked at again.
    pub fn stop_at(&self, now: Instant) -> Option<Instant> {
        let times = |stop: Stop| [stop.hand_over_until, stop.at].into_iter();
        let later = times(self.stop?).filter(|time| *time > now).min();
        Some(later.unwrap_or(now))
    }
}
