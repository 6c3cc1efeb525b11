//! Accepts connections on the poller's thread, up to the limit.
//!
//! Beyond the limit a client is told so, and closed as any connection that the server ends. When
//! the process or the system is out of descriptors or memory, accepting pauses: the error would
//! come again at once, and the clients wait in the kernel's queue meanwhile.

use std::io::{self, ErrorKind, Write};
use std::sync::Arc;
use std::time::Duration;

use mio::net::{TcpListener, TcpStream};

use super::connection::{Connection, Farewell};
use super::jobs::Seat;
use super::slots::Shared;
use crate::clock::Instant;
use crate::logging;
use crate::protocol::Sessions;

/// How long accepting pauses after an error. Long enough not to spin, short enough not to be
/// noticed once a descriptor is free.
const PAUSE: Duration = Duration::from_millis(100);

/// The most connections accepted between two looks at other events.
const ACCEPTS_MAX: usize = 64;

/// A listening socket.
pub struct Listener {
    socket: TcpListener,
    /// What its clients speak.
    sessions: Arc<dyn Sessions>,
    /// Not before this; the default is at once.
    not_before: Instant,
    /// Whether there may be connections to accept.
    is_ready: bool,
    /// Accepting fails, which was said.
    is_failing: bool,
}

impl Listener {
    /// Accepts from `socket`, which is non-blocking and registered.
    pub fn new(socket: TcpListener, sessions: Arc<dyn Sessions>) -> Listener {
        Listener {
            socket,
            sessions,
            not_before: Instant::default(),
            is_ready: true,
            is_failing: false,
        }
    }

    /// There may be connections to accept.
    pub fn ready(&mut self) {
        self.is_ready = true;
    }

    /// When to accept next, if there may be connections to accept.
    pub fn next(&self) -> Option<Instant> {
        self.is_ready.then_some(self.not_before)
    }

    /// Accepts what waits, within bounds.
    pub fn accept(&mut self, shared: &Shared, now: Instant) {
        if !self.is_ready || now < self.not_before {
            return;
        }
        for _ in 0..ACCEPTS_MAX {
            match self.socket.accept() {
                Ok((stream, _)) => {
                    self.is_failing = false;
                    admit(stream, &*self.sessions, shared);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.is_ready = false;
                    return;
                }
                Err(error) if is_of_the_connection(&error) => {}
                Err(error) => {
                    if !std::mem::replace(&mut self.is_failing, true)
                        && let Some(more) = logging::seldom("client accept")
                    {
                        log::warn!("clients wait to be accepted: {error}{more}");
                    }
                    self.not_before = now + PAUSE;
                    return;
                }
            }
        }
    }
}

/// The error ends one connection that had not been accepted yet; others can be.
fn is_of_the_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Interrupted | ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset
    )
}

fn admit(mut stream: TcpStream, sessions: &dyn Sessions, shared: &Shared) {
    if let Err(error) = stream.set_nodelay(true) {
        log::debug!("a connection was gone before it was served: {error}");
        return;
    }
    // So that a client whose machine vanished does not hold its place for ever.
    let _ = socket2::SockRef::from(&stream).set_keepalive(true);
    let charge = shared.budget.charge();
    if let Some(slot) = shared.reserve(false) {
        let connection = Box::new(Connection::new(stream, sessions.open(), charge));
        shared.enqueue(Seat { slot, connection });
        return;
    }
    let refusal = sessions.refusal();
    log::debug!("connection refused, {} are open", shared.open());
    if let Some(slot) = shared.reserve(true) {
        let session = Box::new(Farewell::new(&refusal));
        let connection = Box::new(Connection::new(stream, session, charge));
        shared.enqueue(Seat { slot, connection });
        return;
    }
    // A courtesy that needs no place: a fresh socket takes one line.
    let _ = stream.write(&refusal);
}
