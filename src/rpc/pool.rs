//! stub
use std::sync::Arc;
use crate::clock::{Clock, Instant};
use crate::ids::MemberId;
use crate::rpc::LocalIdentity;
use crate::rpc::link::Link;
use crate::rpc::tls::TlsContext;

/// What a pool's owner is told, on the target's own `dial-` thread. For one member the two alternate, beginning with `up`;
/// after the pool is stopped or the member removed the last one is `down`. They should be quick.
pub trait PoolEvents: Send + Sync {
    /// The link to `member` is open; `Pool::link` returns it.
    fn up(&self, member: MemberId, link: &Arc<Link>);
    /// The link of the last `up` is closed.
    fn down(&self, member: MemberId);
}

/// Links to members, kept open.
pub struct Pool {}
impl Pool {
    /// An empty pool.
    pub fn new(_identity: LocalIdentity, _tls: Arc<TlsContext>, _clock: Arc<dyn Clock>, _events: Arc<dyn PoolEvents>) -> Pool { unimplemented!() }
    /// Keeps a link to `member` at `address` (`host:port`), whose Hello must carry `name` and the id.
    pub fn set(&self, _member: MemberId, _address: &str, _name: &str) { unimplemented!() }
    /// Closes the link and forgets the target. Does not block.
    pub fn remove(&self, _member: MemberId) { unimplemented!() }
    /// The open link to `member`.
    pub fn link(&self, _member: MemberId) -> Option<Arc<Link>> { unimplemented!() }
    /// Closes all links and joins all threads until `deadline`; names those that are late.
    pub fn stop(&self, _deadline: Instant) -> Result<(), Vec<String>> { unimplemented!() }
}
