//! A listening socket, from which connections are accepted.
//!
//! When the process or the system is out of descriptors or memory, accepting pauses: the error
//! would come again at once, and the clients wait in the kernel's queue meanwhile.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::Duration;

use mio::net::{TcpListener, TcpStream};

use super::stream::Stream;
use crate::clock::Instant;
use crate::logging;
use crate::protocol::Sessions;
use crate::protocol::admission::Caller;

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

    /// What its clients speak.
    pub fn sessions(&self) -> &Arc<dyn Sessions> {
        &self.sessions
    }

    /// Accepts what waits, within bounds.
    pub fn accept(&mut self, now: Instant) -> Vec<(Box<dyn Stream>, Caller)> {
        let mut accepted = Vec::new();
        while self.is_ready && now >= self.not_before && accepted.len() < ACCEPTS_MAX {
            match self.socket.accept() {
                Ok((stream, address)) => {
                    self.is_failing = false;
                    let caller = Caller { address };
                    accepted.extend(prepare(stream).map(|stream| (stream, caller)));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.is_ready = false,
                Err(error) if is_of_the_connection(&error) => {}
                Err(error) => {
                    if !std::mem::replace(&mut self.is_failing, true)
                        && let Some(more) = logging::seldom("client accept")
                    {
                        log::warn!("clients wait to be accepted: {error}{more}");
                    }
                    self.not_before = now + PAUSE;
                }
            }
        }
        accepted
    }
}

/// Sets what every client's socket has; none if the client is gone already.
fn prepare(stream: TcpStream) -> Option<Box<dyn Stream>> {
    if let Err(error) = stream.set_nodelay(true) {
        log::debug!("a connection was gone before it was served: {error}");
        return None;
    }
    // So that a client whose machine vanished does not hold its place for ever.
    let _ = socket2::SockRef::from(&stream).set_keepalive(true);
    Some(Box::new(stream))
}

/// The error ends one connection that had not been accepted yet; others can be.
fn is_of_the_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Interrupted | ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset
    )
}
