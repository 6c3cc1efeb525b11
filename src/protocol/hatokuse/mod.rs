//! HaToKuSe, the text protocol: one command a line, made for a person at `nc` and for programs.
//! Pure.
//!
//! `proto/hatokuse.md` is a promise byte for byte; `testscripts/` holds transcripts of every row of
//! it.
//!
//! * [`command`]: the commands, and the grammar of a line.
//! * [`parser`]: bytes to commands, incremental and bounded. [`foreign`]: what is HTTP or TLS.
//! * [`session`]: commands to batches; banner, prompt, and what needs no execution.
//! * [`writer`]: replies to bytes.

pub mod command;
pub mod foreign;
pub mod parser;
pub mod session;
#[cfg(test)]
mod tests;
pub mod writer;

use bytes::Bytes;

pub use self::session::HatokuseSession;
use super::admission::Caller;
use super::{Session, Sessions, batch};
use crate::ids::KEY_BYTES_MAX;

/// By how much a line may be longer than the payload limit: the longest key, the command, a token,
/// a bulk count, and blanks between them.
const LINE_ROOM: usize = KEY_BYTES_MAX + 512;

/// The limits of one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The longest payload, in bytes.
    pub payload_bytes_max: usize,
}

impl Limits {
    /// The longest batch, in bytes of JSON.
    pub fn batch_bytes_max(&self) -> usize {
        batch::json_bytes_max(self.payload_bytes_max)
    }

    /// The longest line, in bytes without its line end: a payload with command and key.
    pub fn line_bytes_max(&self) -> usize {
        self.payload_bytes_max.saturating_add(LINE_ROOM)
    }
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            payload_bytes_max: 16 << 20,
        }
    }
}

/// What the banner says of the answering node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The node's name, such as `leader-1`.
    pub node: String,
    /// `leader` or `follower`.
    pub role: String,
}

/// Opens HaToKuSe sessions.
pub struct Hatokuse {
    limits: Limits,
    /// Asked for each new connection, as the role changes.
    identity: Box<dyn Fn() -> Identity + Send + Sync>,
}

impl Hatokuse {
    /// Sessions with these limits, greeted by what `identity` says at that time.
    pub fn new(
        limits: Limits,
        identity: impl Fn() -> Identity + Send + Sync + 'static,
    ) -> Hatokuse {
        Hatokuse {
            limits,
            identity: Box::new(identity),
        }
    }
}

impl Sessions for Hatokuse {
    fn open(&self, _caller: &Caller) -> Box<dyn Session> {
        Box::new(HatokuseSession::new(self.limits, &(self.identity)()))
    }

    fn open_reserved(&self, _caller: &Caller) -> Box<dyn Session> {
        // What may be asked for has no payload.
        let limits = Limits {
            payload_bytes_max: 0,
        };
        Box::new(HatokuseSession::new(limits, &(self.identity)()).reserved())
    }

    fn refusal(&self) -> Bytes {
        Bytes::from_static(writer::TOO_MANY_CONNECTIONS)
    }
}
