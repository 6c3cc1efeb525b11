//! Starts and stops the threads that serve one listening address.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use super::Handler;
use crate::clock::{Clock, Instant};
use crate::protocol::Sessions;

/// The limits of one [`Server`].
#[derive(Clone, Debug)]
pub struct Limits {
    /// Worker threads.
    pub workers: usize,
    /// Connections open at a time.
    pub connections_max: usize,
    /// Unread reply bytes of one client from which on it is not read from; it is again at half.
    pub output_bytes_max: usize,
    /// Bytes held for all clients together: input, output, and the requests being executed.
    pub budget_bytes: usize,
    /// Parked batches.
    pub parked_max: usize,
    /// How long a connection that the server closes is drained of what still arrives.
    pub linger: Duration,
    /// How long a client may take nothing of its replies while the budget is used up, or its
    /// connection is to be closed; then it is dropped.
    pub stall_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            workers: 64,
            connections_max: 10_000,
            output_bytes_max: 4 << 20,
            budget_bytes: 256 << 20,
            parked_max: 4096,
            linger: Duration::from_secs(1),
            stall_timeout: Duration::from_secs(30),
        }
    }
}

/// A running server: its `poll` and `work-N` threads. [`Server::stop`] ends it.
pub struct Server {
    address: SocketAddr,
}

impl Server {
    /// Starts to serve `listener`.
    pub fn start(
        listener: TcpListener,
        handler: Arc<dyn Handler>,
        sessions: Arc<dyn Sessions>,
        clock: Arc<dyn Clock>,
        limits: Limits,
    ) -> io::Result<Server> {
        let _ = (handler, sessions, clock, limits);
        Ok(Server {
            address: listener.local_addr()?,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections open now.
    pub fn connections(&self) -> usize {
        0
    }

    /// Batches parked now.
    pub fn parked(&self) -> usize {
        0
    }

    /// Stops in order: accepts no more, finishes the batches that were begun, sends their replies,
    /// closes, and joins its threads. What is not done by `deadline` is dropped; threads that are
    /// still running then are named.
    pub fn stop(self, deadline: Instant) -> Result<(), Vec<String>> {
        let _ = deadline;
        Ok(())
    }
}
