//! stub
use std::sync::Arc;
use crate::clock::{Clock, Instant};
use crate::ids::CallId;
use crate::rpc::greeting::DialError;
use crate::rpc::message::{Request, Response, Role};
use crate::rpc::tls::TlsContext;
use crate::rpc::{LocalIdentity, PeerInfo};

/// Who must answer at an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Its role.
    pub role: Role,
    /// Its name, when it is known.
    pub name: Option<String>,
    /// Its node id, when it is known.
    pub node_id: Option<u64>,
}

/// Why a call has no answer. Except after `Busy` and `TooLarge`, it may have been executed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The link is closed, or was before the answer came.
    #[error("link lost: {0}")]
    LinkLost(Arc<str>),
    /// The deadline passed.
    #[error("timed out")]
    TimedOut,
    /// The out queue of the link is full; nothing was sent.
    #[error("link busy")]
    Busy,
    /// The request does not fit a frame; nothing was sent.
    #[error("request of {bytes} bytes is larger than {max}")]
    TooLarge {
        /// Its encoded size.
        bytes: usize,
        /// The limit of a frame.
        max: usize,
    },
}

/// Called exactly once with the outcome, outside all locks, on the link's reader thread (answer,
/// loss) or writer thread (expiry). It must be quick and must not block: the link stands still.
pub type Completion = Box<dyn FnOnce(Result<Response, CallError>) + Send>;

/// The calling side of a connection. Dropping it closes it and joins its threads.
pub struct Link {}

impl Link {
    /// Dials, greets, and starts the threads. Blocks for 1 s (connect) and 3 s (greeting) at most.
    pub fn dial(
        _address: &str,
        _expected: &Expected,
        _tls: &TlsContext,
        _identity: &LocalIdentity,
        _link: u64,
        _clock: Arc<dyn Clock>,
    ) -> Result<Arc<Link>, DialError> { unimplemented!() }
    /// The other end.
    pub fn peer(&self) -> &PeerInfo { unimplemented!() }
    /// Its link number, as in our Hello: the `link` of fences sent over it.
    pub fn number(&self) -> u64 { unimplemented!() }
    /// Sends a request; never blocks. `completion` is called exactly once if this returns `Ok`, and never if it returns `Err`.
    pub fn call(&self, _term: u64, _request: Request, _deadline: Instant, _completion: Completion) -> Result<CallId, CallError> { unimplemented!() }
    /// Sends a request and waits for its outcome.
    pub fn call_wait(&self, _term: u64, _request: Request, _deadline: Instant) -> Result<Response, CallError> { unimplemented!() }
    /// Closes the connection now; every call still open completes with `LinkLost`. Does not block.
    pub fn close(&self) { unimplemented!() }
    /// Whether calls are taken.
    pub fn is_open(&self) -> bool { unimplemented!() }
    /// Bytes that wait to be written.
    pub fn bytes_queued(&self) -> usize { unimplemented!() }
    /// Waits until the link is closed, `timeout` at most; true when it is. For who dials by itself.
    pub fn wait_closed(&self, _timeout: std::time::Duration) -> bool { unimplemented!() }
}
