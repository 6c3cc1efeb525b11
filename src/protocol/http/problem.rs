//! What can go wrong: one kind for each thing that a client may want to tell apart. Pure.
//!
//! A problem is written as RFC 9457 says. Its `type` is `/problems/` and the kind's name; both, and
//! the status, are promises. `proto/openapi.yaml` lists them all.

use std::borrow::Cow;

use crate::error::{Failure, Outcome};
use crate::ids::Revision;

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident $status:literal $name:literal $title:literal;)*) => {
        /// The kinds of problems.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Kind {
            $($(#[$doc])* $kind,)*
        }

        impl Kind {
            /// All of them, in the order of their statuses.
            pub const ALL: &[Kind] = &[$(Kind::$kind,)*];

            /// The last part of its `type`.
            pub fn name(self) -> &'static str {
                match self { $(Kind::$kind => $name,)* }
            }

            /// The status of the response.
            pub fn status(self) -> u16 {
                match self { $(Kind::$kind => $status,)* }
            }

            /// For a person.
            pub fn title(self) -> &'static str {
                match self { $(Kind::$kind => $title,)* }
            }
        }
    };
}

kinds! {
    /// Another leader serves; `Location` says where.
    NotLeader 307 "not-leader" "another leader serves";
    /// The request is malformed as HTTP.
    BadRequest 400 "bad-request" "the request is malformed";
    /// The key is none.
    InvalidKey 400 "invalid-key" "the key is not valid";
    /// The Idempotency-Key is none.
    InvalidToken 400 "invalid-idempotency-key" "the Idempotency-Key is not valid";
    /// If-Match or If-None-Match cannot be understood.
    InvalidCondition 400 "invalid-condition" "the condition is not valid";
    /// A parameter of the query is unknown or wrong.
    InvalidQuery 400 "invalid-query" "the query is not valid";
    /// The body is not the JSON that was expected.
    InvalidBody 400 "invalid-body" "the body is not valid";
    /// The request comes from a foreign web page.
    ForeignPage 403 "foreign-page" "the request comes from a foreign page";
    /// There is no such message.
    NotFound 404 "not-found" "no such message";
    /// There is nothing under this path.
    NoSuchResource 404 "no-such-resource" "there is nothing under this path";
    /// What is there cannot be asked for by this method.
    MethodNotAllowed 405 "method-not-allowed" "the method is not allowed here";
    /// There is no representation that the client accepts.
    NotAcceptable 406 "not-acceptable" "no representation is accepted";
    /// The request did not come in time.
    RequestTimeout 408 "request-timeout" "the request did not come in time";
    /// The token belongs to a bulk write under way.
    TokenInUse 409 "idempotency-key-in-use" "the Idempotency-Key is in use";
    /// The body's length is not said.
    LengthRequired 411 "length-required" "the length of the body is missing";
    /// The condition of a write does not hold.
    PreconditionFailed 412 "precondition-failed" "the condition does not hold";
    /// The body is longer than allowed.
    TooLarge 413 "too-large" "the body is too large";
    /// The request line is longer than allowed.
    TargetTooLong 414 "target-too-long" "the request line is too long";
    /// The body is of a kind or coding that is not understood.
    UnsupportedMediaType 415 "unsupported-media-type" "the body's type is not supported";
    /// The message does not have the bytes asked for.
    RangeNotSatisfiable 416 "range-not-satisfiable" "the message does not have this range";
    /// Something else than 100-continue is expected.
    ExpectationFailed 417 "expectation-failed" "the expectation is unknown";
    /// The host that is asked for is not served here.
    MisdirectedRequest 421 "misdirected-request" "this host is not served here";
    /// The token was used for another kind of request.
    TokenUsed 422 "idempotency-key-used" "the Idempotency-Key was used for another request";
    /// The head is longer than allowed.
    HeadTooLarge 431 "head-too-large" "the head is too large";
    /// It cannot be told what happened, by a mistake of the server.
    Internal 500 "internal" "the server made a mistake";
    /// The method or transfer coding is unknown.
    NotImplemented 501 "not-implemented" "this is not implemented";
    /// A queue is full.
    Busy 503 "busy" "busy, try again";
    /// No leader is elected.
    NoLeader 503 "no-leader" "no leader is elected";
    /// Too few members took the message.
    NotEnoughMembers 503 "not-enough-members" "not enough alive members";
    /// No replica of the message answered.
    Unavailable 503 "unavailable" "the message is unavailable";
    /// As many tokens are remembered as there may be.
    TooManyTokens 503 "too-many-idempotency-keys" "too many Idempotency-Keys in use";
    /// There is no room for another connection.
    TooManyConnections 503 "too-many-connections" "too many connections";
    /// The time is over. A write may or may not have happened; a read has no effect.
    TimedOut 504 "timed-out" "timed out";
    /// A version of HTTP other than 1.0 and 1.1.
    VersionNotSupported 505 "version-not-supported" "the version of HTTP is not supported";
    /// Members that would have been enough answered, and too few of them had room.
    NoSpace 507 "no-space" "no space on enough members";
}

/// A problem with what is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Its kind.
    pub kind: Kind,
    /// What is wrong here, for a person.
    pub detail: Option<Cow<'static, str>>,
    /// What a write may have done.
    pub outcome: Outcome,
    /// Of a failed condition: the message's revision, 0 if there is none.
    pub revision: Option<u64>,
    /// Methods that are allowed.
    pub allow: Option<&'static str>,
}

impl From<Kind> for Problem {
    fn from(kind: Kind) -> Problem {
        Problem {
            kind,
            detail: None,
            outcome: Outcome::Failed,
            revision: None,
            allow: None,
        }
    }
}

impl Problem {
    /// A malformed request.
    pub fn bad(detail: &'static str) -> Problem {
        Problem::with(Kind::BadRequest, detail)
    }

    /// With words of its own.
    pub fn with(kind: Kind, detail: impl Into<Cow<'static, str>>) -> Problem {
        Problem {
            detail: Some(detail.into()),
            ..Problem::from(kind)
        }
    }

    /// A condition that failed, with the message's revision.
    pub fn mismatch(revision: Option<Revision>) -> Problem {
        Problem {
            revision: Some(revision.map_or(0, Revision::as_u64)),
            ..Problem::from(Kind::PreconditionFailed)
        }
    }

    /// Seconds after which the client may try again, where that may help.
    pub fn retry_after(&self) -> Option<u32> {
        matches!(self.kind.status(), 503 | 507).then_some(1)
    }
}

impl From<&Failure> for Problem {
    fn from(failure: &Failure) -> Problem {
        let kind = match failure {
            Failure::NotEnoughMembers { .. } => Kind::NotEnoughMembers,
            Failure::NoSpace { .. } => Kind::NoSpace,
            Failure::Unavailable { .. } => Kind::Unavailable,
            Failure::WriteTimedOut | Failure::ReadTimedOut => Kind::TimedOut,
            Failure::NotLeader { leader: None }
            | Failure::LeaderWaits { .. }
            | Failure::TermOver { .. }
            | Failure::LeaderIncomplete => Kind::NoLeader,
            Failure::NotLeader { leader: Some(_) } => Kind::NotLeader,
            Failure::Busy => Kind::Busy,
            Failure::TooManyTokens => Kind::TooManyTokens,
            Failure::TokenInUse | Failure::TokenExpired => Kind::TokenInUse,
            Failure::TokenUsed => Kind::TokenUsed,
            // These two stand among the results of a batch, not alone.
            Failure::NotApplied { .. } => Kind::PreconditionFailed,
            Failure::ValuesTooLarge => Kind::TooLarge,
            Failure::BulkPartial { reason, .. } => return Problem::from(&**reason),
            // No request of this protocol changes the group.
            Failure::NotChanged { .. } => Kind::Internal,
        };
        let detail = match kind {
            // It names the leader's address of another protocol.
            Kind::NotLeader => None,
            _ => Some(failure.to_string().into()),
        };
        Problem {
            outcome: failure.outcome(),
            detail,
            ..Problem::from(kind)
        }
    }
}
