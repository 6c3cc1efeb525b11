//! HTTP/1.1: the same messages for curl, browsers and programs. Pure.
//!
//! `proto/openapi.yaml` is the promise; `testscripts/` holds transcripts of it.
//!
//! * [`parser`]: bytes to heads and bodies, incremental and bounded; what could be read in two ways
//!   is refused. [`head`]: one head, by `httparse`.
//! * [`routes`]: heads and bodies to requests. [`fields`]: conditions, ranges, accepted types.
//! * [`callers`]: under which names it is served, and which web pages are foreign.
//! * [`session`]: requests to batches; keep-alive, pipelining, time-outs.
//! * [`writer`]: replies to responses, by the [`step`] of each. [`problem`]: what can go wrong,
//!   each with a stable `type`.
//! * [`node`]: what is asked of the node itself: documents, health, where the leader is.
//!
//! Sources: RFC 9110 (semantics), RFC 9112 (HTTP/1.1), RFC 9457 (problems).

pub mod callers;
pub mod fields;
pub mod head;
pub mod node;
pub mod parser;
pub mod problem;
pub mod routes;
pub mod session;
pub mod step;
#[cfg(test)]
mod tests;
pub mod writer;

use std::sync::Arc;

use bytes::{Buf, Bytes};

use self::node::Node;
use self::problem::Kind;
use self::session::HttpSession;
use self::writer::Writer;
use super::admission::Caller;
use super::{Session, Sessions};

/// The limits of one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The longest payload, in bytes.
    pub payload_bytes_max: usize,
}

/// Opens HTTP sessions.
pub struct Http {
    limits: Limits,
    node: Arc<dyn Node>,
}

impl Http {
    /// Sessions with these limits on this node.
    pub fn new(limits: Limits, node: Arc<dyn Node>) -> Http {
        Http { limits, node }
    }
}

impl Sessions for Http {
    fn open(&self, _caller: &Caller) -> Box<dyn Session> {
        Box::new(HttpSession::new(self.limits, Arc::clone(&self.node)))
    }

    fn open_reserved(&self, _caller: &Caller) -> Box<dyn Session> {
        Box::new(HttpSession::new(self.limits, Arc::clone(&self.node)).reserved())
    }

    fn refusal(&self) -> Bytes {
        let mut writer = Writer::new(Arc::clone(&self.node));
        writer.last_problem(Kind::TooManyConnections.into());
        let output = writer.output();
        output.copy_to_bytes(output.remaining())
    }
}
