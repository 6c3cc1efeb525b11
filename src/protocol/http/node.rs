//! What a session asks of the node that it is on, beside the batches. Pure.

use serde::Serialize;

/// The answering node. Asked while a response is written: it answers at once, from memory.
pub trait Node: Send + Sync {
    /// Milliseconds since the Unix epoch, for the field Date.
    fn wall_ms(&self) -> u64;

    /// Where the active leader serves HTTP, `host:port`, if that is another node and is known.
    fn leader(&self) -> Option<String>;

    /// Where the leaders of this group serve HTTP, `host:port` each, this one among them.
    fn group_http(&self) -> Vec<String>;

    /// The host names under which this node is served beside IP addresses and `localhost`: those
    /// in the advertised addresses of this group's leaders, with or without a port, and those of
    /// the setting `http_hosts`.
    fn hosts(&self) -> Vec<String>;

    /// Whether a write is answered with where that leader is, now. Such a write need not be sent.
    fn redirects(&self) -> bool;

    /// A document about the node or its cluster, as JSON.
    fn document(&self, which: Document) -> String;

    /// Every check of the node's health, in a fixed order.
    fn checks(&self) -> Vec<Check>;
}

/// A document about the node or its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Document {
    /// Leader, term, group, members and their states.
    ClusterInfo,
    /// This node.
    Status,
    /// Counters and latencies of this node.
    Stats,
}

/// A question about the node's health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// Whether all is well: every check.
    Health,
    /// Whether the process is to be left alone: those that only a restart mends.
    Live,
    /// Whether it can take requests: every check.
    Ready,
}

/// The outcome of a check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Its name, by which it may be excluded.
    pub name: &'static str,
    /// Whether it is passed.
    pub ok: bool,
    /// What was found, for a person.
    pub detail: String,
    /// Whether a process that fails it had better be restarted.
    #[serde(skip)]
    pub is_vital: bool,
}
