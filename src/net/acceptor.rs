//! The `accept` thread: takes new connections and deals them out to the workers.
//!
//! A new connection goes to the worker with the fewest. When places run short another one may have
//! to give way first ([`places`](super::places)); that is decided by the worker that owns it, who
//! gets the newcomer in the same letter and sends it back if the connection is busy by then.

use std::io::{self, ErrorKind, IoSlice};
use std::sync::Arc;
use std::time::Duration;

use mio::{Events, Interest, Poll, Token};

use super::listener::Listener;
use super::mailbox::WAKER;
use super::newcomer::Newcomer;
use super::places::{Idlest, Place};
use super::server::Door;
use super::shared::Shared;
use super::stream::Stream;
use crate::clock::Instant;
use crate::logging;
use crate::protocol::Sessions;
use crate::protocol::admission::Caller;

/// Events taken from one poll: more than there are doors.
const EVENTS_MAX: usize = 16;

/// The thread's state.
pub struct Acceptor {
    poll: Poll,
    /// None once the server is stopping.
    listeners: Vec<Listener>,
    /// Idle connections to be closed when ordinary places run short.
    idlest: Idlest,
    /// When the last connection was accepted; each is a little later than the one before.
    last: Instant,
}

impl Acceptor {
    /// Accepts at the doors.
    pub fn new(poll: Poll, doors: Vec<Door>, idle_min: Duration) -> io::Result<Acceptor> {
        let mut listeners = Vec::new();
        for (number, door) in doors.into_iter().enumerate() {
            door.listener.set_nonblocking(true)?;
            let mut socket = mio::net::TcpListener::from_std(door.listener);
            poll.registry()
                .register(&mut socket, Token(number), Interest::READABLE)?;
            listeners.push(Listener::new(socket, door.sessions));
        }
        Ok(Acceptor {
            poll,
            listeners,
            idlest: Idlest::new(idle_min),
            last: Instant::default(),
        })
    }

    /// Accepts until the server stops.
    pub fn run(mut self, shared: &Shared) {
        let mut events = Events::with_capacity(EVENTS_MAX);
        while !shared.is_stopping() {
            let now = shared.clock.now();
            for newcomer in shared.returned() {
                let Newcomer {
                    stream,
                    caller,
                    sessions,
                    accepted_at,
                    ..
                } = newcomer;
                self.admit(shared, (stream, caller), &sessions, accepted_at);
            }
            let mut listeners = std::mem::take(&mut self.listeners);
            for listener in &mut listeners {
                for accepted in listener.accept(now) {
                    self.last = now.max(self.last + Duration::from_nanos(1));
                    self.admit(shared, accepted, listener.sessions(), self.last);
                }
            }
            let next = listeners.iter().filter_map(Listener::next).min();
            self.listeners = listeners;
            let timeout = next.map(|at| at.since(now));
            match self.poll.poll(&mut events, timeout) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => panic!("polling cannot go on: {error}"),
            }
            for event in events.iter().filter(|event| event.token() != WAKER) {
                let Token(number) = event.token();
                self.listeners[number].ready();
            }
        }
        shared.accepting_ended();
    }

    /// Gives a new connection a place and a worker, or refuses it.
    fn admit(
        &mut self,
        shared: &Shared,
        (mut stream, caller): (Box<dyn Stream>, Caller),
        sessions: &Arc<dyn Sessions>,
        accepted_at: Instant,
    ) {
        let worker = shared.least_loaded();
        for kind in [Place::Ordinary, Place::Reserved, Place::Refusal] {
            let free = shared.take_free(kind, worker).map(|place| (place, None));
            let claim = || self.claim(shared, kind, &mut *stream, accepted_at);
            let Some((place, instead_of)) = free.or_else(claim) else {
                continue;
            };
            if kind != Place::Ordinary
                && let Some(more) = logging::seldom("client beyond the limit")
            {
                log::warn!(
                    "connections_max ({}) is reached, and no client has been idle for {:?}: new \
                     clients may ask for health and status only{more}",
                    shared.limits.connections_max,
                    shared.limits.idle_min
                );
            }
            if kind == Place::Reserved && instead_of.is_none() {
                // Before its worker knows of it: many come together, and the next one may need it.
                shared.begins_to_wait(place, accepted_at);
            }
            return shared.hand_on(Newcomer {
                stream,
                caller,
                sessions: Arc::clone(sessions),
                accepted_at,
                place,
                instead_of,
            });
        }
        // A courtesy that needs no place: a fresh socket takes one line.
        let _ = stream.write(&[IoSlice::new(&sessions.refusal())]);
    }

    /// Claims the place of a connection that waits, for a newcomer: the number of the place, and
    /// since when that connection waits.
    ///
    /// In a reserved place the connection that was accepted first gives way. That is the newcomer
    /// itself if it was given back and all others have come since; it is refused then, unless its
    /// client has sent something and so may be asking for a check.
    fn claim(
        &mut self,
        shared: &Shared,
        kind: Place,
        stream: &mut dyn Stream,
        accepted_at: Instant,
    ) -> Option<(usize, Option<Instant>)> {
        loop {
            let (since, place) = match kind {
                Place::Ordinary => self.idlest.next(accepted_at, || shared.waiting(kind))?,
                Place::Reserved => shared.waiting(kind).into_iter().min()?,
                Place::Refusal => return None,
            };
            let is_younger = kind == Place::Reserved && since > accepted_at;
            if is_younger && !stream.has_input() {
                return None;
            }
            if shared.claim(place, since, accepted_at) {
                return Some((place, Some(since)));
            }
        }
    }
}
