//! stub
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use crate::clock::{Clock, Instant};
use crate::ids::CallId;
use crate::rpc::{LocalIdentity, PeerInfo};
use crate::rpc::message::{Refusal, Request, Response};
use crate::rpc::tls::TlsContext;

/// What is known of a call beside its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallInfo {
    /// Its id on the connection.
    pub id: CallId,
    /// The caller's Raft term, 0 when it has none.
    pub term: u64,
    /// The size of its frame's body.
    pub bytes: usize,
}

/// What a process does with calls.
pub trait Service: Send + Sync {
    /// A peer's Hello was checked; an error refuses it. On a short-lived thread; may block shortly.
    fn connected(&self, peer: &PeerInfo) -> Result<(), Refusal>;
    /// A call, its role checked, in the order of arrival, on the connection's reader thread: it must not block for long.
    fn handle(&self, peer: &PeerInfo, call: CallInfo, request: Request, responder: Responder);
    /// The connection has ended; once for each `connected` that returned `Ok`, after its last `handle`.
    fn disconnected(&self, peer: &PeerInfo);
}

/// Answers one call, from any thread. Dropped without an answer, it refuses.
pub struct Responder {}
impl Responder {
    /// Queues the answer; never blocks. If the connection is gone, the answer is too.
    pub fn send(self, _response: Response) { unimplemented!() }
}

/// Limits of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections, those being greeted included; more are closed at once.
    pub connections: usize,
}
impl Default for Limits {
    fn default() -> Limits { Limits { connections: 256 } }
}

/// The answering side.
pub struct Server {}
impl Server {
    /// Starts accepting.
    pub fn start(
        _listener: TcpListener, _tls: Arc<TlsContext>, _identity: LocalIdentity,
        _service: Arc<dyn Service>, _clock: Arc<dyn Clock>, _limits: Limits,
    ) -> io::Result<Server> { unimplemented!() }
    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr { unimplemented!() }
    /// Stops accepting, lets queued answers leave, closes all connections, joins all threads until `deadline`; names those that are late.
    pub fn stop(&self, _deadline: Instant) -> Result<(), Vec<String>> { unimplemented!() }
}
