//! How many connections a server takes, and what they may hold.

use std::time::Duration;

use crate::rpc::frame::FRAME_BYTES_MAX;
use crate::rpc::unfinished::FRAME_TIMEOUT;

/// Limits of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections of nodes that were welcomed.
    pub connections: usize,
    /// Of these, connections of one certificate's name. A node has one or two; a leader that visits
    /// others has one more at times.
    pub connections_per_name: usize,
    /// Connections being greeted, each a thread for 5 s at most.
    pub greetings: usize,
    /// How long a frame may take once its first byte has arrived, beside 1 s for each MiB.
    pub frame_timeout: Duration,
    /// Bytes that unfinished frames above 64 KiB may hold together.
    pub unfinished_bytes: usize,
}

impl Default for Limits {
    /// A cluster has some tens of nodes, two or three connections each at most. Eight of the
    /// largest frames may arrive at once; more wait for them.
    fn default() -> Limits {
        Limits {
            connections: 256,
            connections_per_name: 16,
            greetings: 64,
            frame_timeout: FRAME_TIMEOUT,
            unfinished_bytes: 8 * FRAME_BYTES_MAX,
        }
    }
}
