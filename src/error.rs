//! Error classes by what the caller can do: the three outcomes of a request and their reasons, and
//! which errors of the operating system may be tried again. Pure.
//!
//! A layer with more to say has its own enum and keeps its `source`; what reaches a client is a
//! [`Failure`], which all client protocols share.

use std::fmt;
use std::io;

/// Why the operating system refused a call that may succeed later. The work that needed the call is
/// refused or waits, and no process ends because of it.
///
/// Every other error is final for the file or socket that it concerns (EIO above all). So is every
/// failed sync, whatever its number: `disk::fs` hands those out as errors without one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shortage {
    /// ENOSPC, EDQUOT: the disk, or this user's share of it, is full.
    Space,
    /// EMFILE, ENFILE: the process, or the system, has no file descriptor left.
    Descriptors,
    /// ENOMEM, ENOBUFS: the kernel has no memory for it.
    Memory,
    /// EAGAIN, EINTR: not now (EAGAIN: too many threads or processes, where one is started).
    Moment,
}

impl Shortage {
    /// What `error` says is short; `None` if it is final.
    pub fn of(error: &io::Error) -> Option<Shortage> {
        use rustix::io::Errno;
        let number = error.raw_os_error().map(Errno::from_raw_os_error);
        match (number, error.kind()) {
            (Some(Errno::MFILE | Errno::NFILE), _) => Some(Shortage::Descriptors),
            (Some(Errno::NOBUFS), _) | (_, io::ErrorKind::OutOfMemory) => Some(Shortage::Memory),
            (_, io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => Some(Shortage::Space),
            (_, io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Some(Shortage::Moment),
            (_, _) => None,
        }
    }
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Shortage::Space => "no space left on the disk",
            Shortage::Descriptors => "no file descriptor is free",
            Shortage::Memory => "the system has no memory left",
            Shortage::Moment => "the system cannot do it now",
        })
    }
}

/// Why a request was not done. [`Failure::outcome`] says what may have happened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// Fewer members than the tolerance took the message in time; nothing happened.
    #[error("not enough alive members (have {have}, need {need})")]
    NotEnoughMembers {
        /// Connected members that answered within the deadline.
        have: usize,
        /// The tolerance.
        need: usize,
    },
    /// Members that would have been enough answered, and too few of them had room on their disks;
    /// nothing happened.
    #[error("no space on enough members (have {have}, need {need})")]
    NoSpace {
        /// Members that stored it.
        have: usize,
        /// The tolerance.
        need: usize,
    },
    /// The message exists, and none of its replicas answered with it.
    #[error("message unavailable (replicas: {replicas})")]
    Unavailable {
        /// `name@address:state` of each replica, joined by commas.
        replicas: String,
    },
    /// The deadline passed after the write was proposed.
    #[error("timed out, the write may or may not have happened")]
    WriteTimedOut,
    /// The deadline of a read passed.
    #[error("timed out")]
    ReadTimedOut,
    /// This leader is not the active one; nothing happened.
    #[error("{}", NotLeader(leader.as_deref()))]
    NotLeader {
        /// Client address `host:port` of the active leader, when it is known.
        leader: Option<String>,
    },
    /// This leader is elected, and waits for members to tell what they have seen; nothing happened.
    #[error("no leader serves yet: {have} of {need} members have reported to the elected one")]
    LeaderWaits {
        /// Members that have told.
        have: usize,
        /// As many as must.
        need: usize,
    },
    /// The leader that is elected, or those that could be, lack committed entries; nothing
    /// happened.
    #[error("no leader serves: those that are up lack committed entries, STATUS says more")]
    LeaderIncomplete,
    /// Members obey a later term than the one that this leader led; nothing happened.
    #[error(
        "no leader serves yet: members have obeyed term {above}, the next leader leads a later one"
    )]
    TermOver {
        /// The later term.
        above: u64,
    },
    /// A queue is full; nothing happened.
    #[error("busy, try again")]
    Busy,
    /// As many tokens are remembered as there may be; nothing happened.
    #[error("too many tokens in use, try again later")]
    TooManyTokens,
    /// The token was used for a bulk write that is not complete, and this is another write; nothing
    /// happened.
    #[error("token is in use by a bulk write that is not complete")]
    TokenInUse,
    /// The token of a bulk write was forgotten before all of it was stored; the rest was not.
    #[error("token expired before the bulk write was complete")]
    TokenExpired,
    /// The token was used for another kind of request; nothing happened.
    #[error("token was used for another request")]
    TokenUsed,
    /// All or nothing was asked for, and another operation could not be done; nothing happened.
    #[error("nothing of the batch was done, because of operation {position}")]
    NotApplied {
        /// Its place in the batch, from 0 on.
        position: usize,
    },
    /// What a transaction reads is too large in all; this read was not done.
    #[error("the values of the batch are too large together, read this one alone")]
    ValuesTooLarge,
    /// The group of leaders was not changed: what is wrong, and what is accepted.
    #[error("{reason}")]
    NotChanged {
        /// For a person.
        reason: String,
    },
    /// A bulk write failed on the way.
    #[error("{reason} (stored {})", Stored(*stored))]
    BulkPartial {
        /// Why its first failed message failed.
        reason: Box<Failure>,
        /// First and last id of the messages stored before it.
        stored: Option<(u64, u64)>,
    },
}

/// What a failed request may have done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing happened (or, for a bulk write, what the reply says).
    Failed,
    /// It may or may not have happened, now or a little later.
    Unknown,
}

impl Failure {
    /// Whether the request may have taken effect all the same.
    pub fn outcome(&self) -> Outcome {
        match self {
            Failure::WriteTimedOut => Outcome::Unknown,
            Failure::BulkPartial { reason, .. } => reason.outcome(),
            Failure::NotEnoughMembers { .. }
            | Failure::NoSpace { .. }
            | Failure::Unavailable { .. }
            | Failure::ReadTimedOut
            | Failure::NotLeader { .. }
            | Failure::LeaderWaits { .. }
            | Failure::LeaderIncomplete
            | Failure::TermOver { .. }
            | Failure::Busy
            | Failure::TooManyTokens
            | Failure::TokenInUse
            | Failure::TokenUsed
            | Failure::NotApplied { .. }
            | Failure::ValuesTooLarge
            | Failure::NotChanged { .. }
            | Failure::TokenExpired => Outcome::Failed,
        }
    }
}

struct NotLeader<'a>(Option<&'a str>);

impl fmt::Display for NotLeader<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(leader) => write!(f, "not leader, leader is {leader}"),
            None => f.write_str("no leader elected"),
        }
    }
}

struct Stored(Option<(u64, u64)>);

impl fmt::Display for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some((first, last)) => write!(f, "{first}-{last}"),
            None => f.write_str("none"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_shortages_may_be_tried_again() {
        use Shortage::{Descriptors, Memory, Moment, Space};
        use rustix::io::Errno;
        for (errno, expected) in [
            (Errno::NOSPC, Some(Space)),
            (Errno::DQUOT, Some(Space)),
            (Errno::MFILE, Some(Descriptors)),
            (Errno::NFILE, Some(Descriptors)),
            (Errno::NOMEM, Some(Memory)),
            (Errno::NOBUFS, Some(Memory)),
            (Errno::AGAIN, Some(Moment)),
            (Errno::INTR, Some(Moment)),
            (Errno::IO, None),
            (Errno::ROFS, None),
            (Errno::ACCESS, None),
            (Errno::NOENT, None),
            (Errno::BADF, None),
        ] {
            assert_eq!(Shortage::of(&errno.into()), expected, "{errno:?}");
        }
        let wrapped = io::Error::other(io::Error::from(Errno::NOSPC));
        assert_eq!(Shortage::of(&wrapped), None, "as a failed sync is told");
    }

    #[test]
    fn failures_read_as_the_text_protocol_promises() {
        let members = Failure::NotEnoughMembers { have: 1, need: 2 };
        assert_eq!(
            members.to_string(),
            "not enough alive members (have 1, need 2)"
        );
        let space = Failure::NoSpace { have: 0, need: 2 };
        assert_eq!(
            space.to_string(),
            "no space on enough members (have 0, need 2)"
        );
        let leader = Some("h:1".to_owned());
        assert_eq!(
            Failure::NotLeader { leader }.to_string(),
            "not leader, leader is h:1"
        );
        assert_eq!(
            Failure::NotLeader { leader: None }.to_string(),
            "no leader elected"
        );
        let reason = Box::new(Failure::WriteTimedOut);
        let bulk = Failure::BulkPartial {
            reason,
            stored: Some((1, 9)),
        };
        assert!(
            bulk.to_string().ends_with("have happened (stored 1-9)"),
            "{bulk}"
        );
        assert_eq!(bulk.outcome(), Outcome::Unknown);
    }
}
