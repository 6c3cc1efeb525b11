//! A connection on its way from the thread that accepts to the worker that will own it.

use std::sync::Arc;

use super::farewell::Farewell;
use super::places::Place;
use super::stream::Stream;
use crate::clock::Instant;
use crate::protocol::admission::Caller;
use crate::protocol::{Session, Sessions};

/// A connection that was accepted and has a place.
pub struct Newcomer {
    /// Its bytes, which no poll knows yet.
    pub stream: Box<dyn Stream>,
    /// Who its client is.
    pub caller: Caller,
    /// What its client speaks.
    pub sessions: Arc<dyn Sessions>,
    /// When it was accepted.
    pub accepted_at: Instant,
    /// The number of its place.
    pub place: usize,
    /// If the place is not free: the connection there gives way if it has waited since this time or
    /// longer. For a reserved place that is the time at which a connection was accepted.
    pub instead_of: Option<Instant>,
}

impl Newcomer {
    /// Its session, which a place of this kind allows.
    pub fn session(&self, place: Place) -> Box<dyn Session> {
        match place {
            Place::Ordinary => self.sessions.open(&self.caller),
            Place::Reserved => self.sessions.open_reserved(&self.caller),
            Place::Refusal => Box::new(Farewell::new(&self.sessions.refusal())),
        }
    }
}
