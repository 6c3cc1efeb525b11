//! Room in the budget for one large request: asked for, waited for, and kept until the request is
//! answered or given up.

use std::time::Duration;

use super::PROGRESS_BYTES;
use crate::clock::Instant;
use crate::net::budget::{Charge, Request, Reservation};

/// How far the room for a request is.
pub(super) enum InputRoom {
    /// None was asked for: the request is small, as far as it has come.
    None,
    /// It was asked for. The request is not read further, until `until` at most.
    Waits {
        /// What was asked for.
        request: Request,
        /// When the request is given up.
        until: Instant,
    },
    /// The request has its room.
    Reserved {
        /// The room.
        room: Reservation,
        /// Since when the client has sent less than [`PROGRESS_BYTES`] of the request.
        stalled_since: Instant,
        /// Bytes of the request that had come by then.
        received: usize,
    },
}

/// What to do with a large request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// Read more of it.
    Read,
    /// Read nothing of it yet.
    Wait,
    /// Give it up.
    GiveUp,
}

impl InputRoom {
    /// Bytes reserved.
    pub(super) fn bytes(&self) -> usize {
        match self {
            InputRoom::Reserved { room, .. } => room.bytes(),
            InputRoom::None | InputRoom::Waits { .. } => 0,
        }
    }

    /// When the request is given up, if it waits for its room.
    pub(super) fn waits_until(&self) -> Option<Instant> {
        match self {
            InputRoom::Waits { until, .. } => Some(*until),
            InputRoom::None | InputRoom::Reserved { .. } => None,
        }
    }

    /// Since when the client has sent next to nothing of a request that has its room.
    pub(super) fn stalled_since(&self) -> Option<Instant> {
        match self {
            InputRoom::Reserved { stalled_since, .. } => Some(*stalled_since),
            InputRoom::None | InputRoom::Waits { .. } => None,
        }
    }

    /// The request is not read at `now`, for a reason that is not its client's: the client's time
    /// to send more of it begins again.
    pub(super) fn pause(&mut self, now: Instant) {
        if let InputRoom::Reserved { stalled_since, .. } = self {
            *stalled_since = now;
        }
    }

    /// Asks for `expected` bytes if that was not done, and says what to do with a request of which
    /// `held` bytes have come. `wake` is called when the room is there. The request waits for its
    /// room, or for its client while others want the room, for `timeout` at most.
    pub(super) fn admit(
        &mut self,
        (held, expected): (usize, usize),
        charge: &Charge,
        (now, timeout): (Instant, Duration),
        wake: impl FnOnce() + Send + 'static,
    ) -> Admission {
        if let InputRoom::None = self {
            let Some(request) = charge.request_for_input(expected.max(held), now, wake) else {
                return Admission::GiveUp;
            };
            let until = now + timeout;
            *self = InputRoom::Waits { request, until };
        }
        match self {
            InputRoom::None => unreachable!("it was asked for"),
            InputRoom::Waits { request, until } => match request.take() {
                Some(room) => {
                    *self = InputRoom::Reserved {
                        room,
                        stalled_since: now,
                        received: held,
                    };
                    Admission::Read
                }
                None if now < *until => Admission::Wait,
                None => Admission::GiveUp,
            },
            InputRoom::Reserved {
                stalled_since,
                received,
                ..
            } => {
                if held >= *received + PROGRESS_BYTES {
                    (*stalled_since, *received) = (now, held);
                }
                match charge.is_short(now) && now.since(*stalled_since) >= timeout {
                    true => Admission::GiveUp,
                    false => Admission::Read,
                }
            }
        }
    }
}
