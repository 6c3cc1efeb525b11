//! The links to members, as the requests need them: the pool in a process, a simulated network in
//! tests.

use std::sync::Arc;

use crate::clock::Instant;
use crate::ids::{CallId, MemberId};
use crate::rpc::link::{CallError, Completion, Link};
use crate::rpc::message::Request;
use crate::rpc::pool::Pool;

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
    /// As [`Pool::set`].
    fn set(&self, member: MemberId, address: &str, name: &str);
    /// As [`Pool::remove`].
    fn remove(&self, member: MemberId);
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

impl MemberLinks for Pool<MemberId> {
    fn link(&self, member: MemberId) -> Option<Arc<dyn MemberLink>> {
        Some(Pool::link(self, member)?)
    }

    fn set(&self, member: MemberId, address: &str, name: &str) {
        Pool::set(self, member, address, name);
    }

    fn remove(&self, member: MemberId) {
        Pool::remove(self, member);
    }
}
