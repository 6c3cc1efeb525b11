//! The links to members, as the requests need them: two pools in a process, a simulated network in
//! tests.

use std::sync::Arc;

use crate::clock::{Clock, Instant};
use crate::ids::{CallId, MemberId};
use crate::rpc::LocalIdentity;
use crate::rpc::link::{CallError, Completion, Link};
use crate::rpc::message::{Purpose, Request};
use crate::rpc::pool::{Pool, PoolEvents};
use crate::rpc::tls::TlsContext;

/// An open link to a member.
pub trait MemberLink: Send + Sync {
    /// Its number, for fences (R8).
    fn number(&self) -> u64;
    /// The member's name.
    fn name(&self) -> &str;
    /// As [`Link::call`].
    fn call(
        &self,
        term: u64,
        request: Request,
        deadline: Instant,
        completion: Completion,
    ) -> Result<CallId, CallError>;
    /// As [`Link::close`].
    fn close(&self);
}

/// A link to each registered member.
pub trait MemberLinks: Send + Sync {
    /// The open link to `member`.
    fn link(&self, member: MemberId) -> Option<Arc<dyn MemberLink>>;
    /// The open link for large fetches from `member`: neither stores nor small fetches wait behind
    /// what travels there.
    fn large_link(&self, member: MemberId) -> Option<Arc<dyn MemberLink>> {
        self.link(member)
    }
    /// As [`Pool::set`].
    fn set(&self, member: MemberId, address: &str, name: &str);
    /// As [`Pool::remove`].
    fn remove(&self, member: MemberId);
    /// Whether a link of this start has, or had, that number.
    fn has_numbered(&self, number: u64) -> bool;
}

impl MemberLink for Link {
    fn number(&self) -> u64 {
        Link::number(self)
    }

    fn name(&self) -> &str {
        &self.peer().name
    }

    fn call(
        &self,
        term: u64,
        request: Request,
        deadline: Instant,
        completion: Completion,
    ) -> Result<CallId, CallError> {
        Link::call(self, term, request, deadline, completion)
    }

    fn close(&self) {
        Link::close(self);
    }
}

/// The links of a process: a pool for each purpose. A link for large fetches is open while the
/// other one to its member is, if the member takes it.
pub struct MemberPools {
    all: Pool<MemberId>,
    fetches: Arc<Pool<MemberId>>,
}

impl MemberPools {
    /// Empty pools, with who is told of the links that carry everything.
    pub fn new(
        identity: LocalIdentity,
        tls: Arc<TlsContext>,
        clock: Arc<dyn Clock>,
        events: Arc<dyn PoolEvents<MemberId>>,
    ) -> MemberPools {
        let fetches = Arc::new(Pool::of_purpose(
            Purpose::Fetches,
            identity.clone(),
            Arc::clone(&tls),
            Arc::clone(&clock),
            Arc::new(Unheard),
        ));
        let follow = Arc::new(Follow {
            events,
            fetches: Arc::clone(&fetches),
        });
        MemberPools {
            all: Pool::new(identity, tls, clock, follow),
            fetches,
        }
    }

    /// As [`Pool::stop`].
    pub fn stop(&self, deadline: Instant) -> Result<(), Vec<String>> {
        let mut late = self.all.stop(deadline).err().unwrap_or_default();
        late.extend(self.fetches.stop(deadline).err().unwrap_or_default());
        if late.is_empty() { Ok(()) } else { Err(late) }
    }
}

/// Has the links for fetches follow the others.
struct Follow {
    events: Arc<dyn PoolEvents<MemberId>>,
    fetches: Arc<Pool<MemberId>>,
}

impl PoolEvents<MemberId> for Follow {
    fn up(&self, member: MemberId, link: &Arc<Link>) {
        let peer = link.peer();
        if peer.separates_fetches {
            self.fetches
                .set(member, &peer.address.to_string(), &peer.name);
        }
        self.events.up(member, link);
    }

    fn down(&self, member: MemberId) {
        self.fetches.remove(member);
        self.events.down(member);
    }
}

/// A link for fetches says nothing of its member: that is up while the other link is.
struct Unheard;

impl PoolEvents<MemberId> for Unheard {
    fn up(&self, _member: MemberId, _link: &Arc<Link>) {}

    fn down(&self, _member: MemberId) {}
}

impl MemberLinks for MemberPools {
    fn link(&self, member: MemberId) -> Option<Arc<dyn MemberLink>> {
        Some(self.all.link(member)?)
    }

    fn large_link(&self, member: MemberId) -> Option<Arc<dyn MemberLink>> {
        // Just after the first, the second link is still being made.
        let link = self.fetches.link(member).or_else(|| self.all.link(member));
        Some(link?)
    }

    fn set(&self, member: MemberId, address: &str, name: &str) {
        self.all.set(member, address, name);
    }

    fn remove(&self, member: MemberId) {
        self.all.remove(member);
    }

    fn has_numbered(&self, number: u64) -> bool {
        self.all.has_numbered(number)
    }
}
