//! What a call of the client ends with when it is not done. Pure.

use crate::error::Outcome;
use crate::ids::Revision;

/// Why a call was not done. What may have happened all the same says [`ClientError::outcome`]:
/// together with `Ok` these are the three outcomes done, failed and unknown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// The request, or an option, cannot be: nothing was sent. Another one has to be made.
    #[error("{reason}")]
    Invalid {
        /// What is wrong, and what is accepted.
        reason: String,
    },
    /// No active leader was found at the addresses, or where those pointed to; nothing happened. It
    /// may be worth another try later, or other addresses.
    #[error("no leader: {tried}")]
    NoLeader {
        /// What each of them said or why it could not be asked, in the last round.
        tried: String,
    },
    /// The active leader could not do it just now: busy, too few members, no replica within reach,
    /// out of time. Nothing happened, and the same may be done later.
    #[error("{reason}")]
    Unavailable {
        /// In the leader's words.
        reason: String,
    },
    /// The active leader does not do this: the key, the size or the command is wrong. Nothing
    /// happened, and a repeat would end alike.
    #[error("{reason}")]
    Refused {
        /// In the leader's words.
        reason: String,
    },
    /// The write's [condition](super::Condition) does not hold; nothing happened.
    #[error("the condition does not hold: {}", there_is(*.revision))]
    Mismatch {
        /// Names the write that stored the message that is there; `None`: there is none.
        revision: Option<Revision>,
    },
    /// A bulk write ended on the way.
    #[error("{reason} (stored {})", stored.map_or("none".to_owned(), |(a, b)| format!("{a}-{b}")))]
    Partial {
        /// Why the first message that is not stored was not, in the leader's words.
        reason: String,
        /// First and last id of the messages stored before that one. Later ones may be stored too.
        stored: Option<(u64, u64)>,
        /// Whether that first one may be stored all the same.
        outcome: Outcome,
    },
    /// A write was sent and may or may not have happened, or may happen a little later. Only a read
    /// tells, or a repeat under the same token within the cluster's `dedup_window`.
    #[error("{reason}")]
    Unknown {
        /// What came in between; ends with *the write may or may not have happened*.
        reason: String,
    },
}

impl ClientError {
    /// Whether the request may have taken effect all the same.
    pub fn outcome(&self) -> Outcome {
        match self {
            ClientError::Invalid { .. }
            | ClientError::NoLeader { .. }
            | ClientError::Unavailable { .. }
            | ClientError::Refused { .. }
            | ClientError::Mismatch { .. } => Outcome::Failed,
            ClientError::Partial { outcome, .. } => *outcome,
            ClientError::Unknown { .. } => Outcome::Unknown,
        }
    }

    pub(super) fn invalid(reason: impl Into<String>) -> ClientError {
        let reason = reason.into();
        ClientError::Invalid { reason }
    }
}

fn there_is(revision: Option<Revision>) -> String {
    match revision {
        Some(revision) => format!("its revision is {revision}"),
        None => "there is no such message".to_owned(),
    }
}
