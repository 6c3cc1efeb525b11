//! What a reply line means to a client. Pure.
//!
//! Errors are known by their words (HaToKuSe has no codes), which are those of
//! [`Failure`](crate::error::Failure). A message that was asked for by `GET` and reads like an
//! error is taken for one; `GETB` is free of that.

use super::error::ClientError;
use crate::config::kinds::is_host_port;
use crate::error::Outcome;

/// What every reply of an unknown outcome contains.
pub(super) const UNKNOWN: &str = "the write may or may not have happened";

/// What whoever asked can do about a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The request was done. That there is no such message is such an answer too.
    Done,
    /// This leader is not the active one, which may be there; nothing happened.
    NotLeader(Option<String>),
    /// Nothing happened, and the same may be done a little later.
    Later,
    /// Some of a bulk write was done; a repeat under its token does the rest.
    Partial,
    /// It may or may not have happened.
    Unknown,
    /// Nothing happened, and a repeat would end alike.
    Refused,
}

impl Answer {
    /// Of a reply's first line.
    pub fn of(line: &[u8]) -> Answer {
        let Some(error) = error_text(line) else {
            return Answer::Done;
        };
        if let Some((reason, _)) = partial(&error) {
            return match of_error(reason) {
                Answer::Unknown => Answer::Unknown,
                // A token that has expired does not come back.
                Answer::Refused => Answer::Refused,
                Answer::Done | Answer::NotLeader(_) | Answer::Later | Answer::Partial => {
                    Answer::Partial
                }
            };
        }
        of_error(&error)
    }
}

/// The error that a reply's first line is; `None` if it is none.
pub fn error_of(line: &[u8]) -> Option<ClientError> {
    let error = error_text(line)?;
    if let Some((reason, stored)) = partial(&error) {
        let outcome = match of_error(reason) {
            Answer::Unknown => Outcome::Unknown,
            _ => Outcome::Failed,
        };
        let reason = reason.to_owned();
        return Some(ClientError::Partial {
            reason,
            stored,
            outcome,
        });
    }
    let answer = of_error(&error);
    let reason = error;
    Some(match answer {
        Answer::NotLeader(_) => ClientError::NoLeader { tried: reason },
        Answer::Later => ClientError::Unavailable { reason },
        Answer::Unknown => ClientError::Unknown { reason },
        Answer::Done | Answer::Partial | Answer::Refused => ClientError::Refused { reason },
    })
}

/// The text behind `ERROR: `.
fn error_text(line: &[u8]) -> Option<String> {
    let text = line.strip_prefix(b"ERROR: ")?;
    Some(String::from_utf8_lossy(text).into_owned())
}

fn of_error(error: &str) -> Answer {
    if error.contains(UNKNOWN) {
        return Answer::Unknown;
    }
    if error == "no leader elected" || error.starts_with("no leader serves") {
        return Answer::NotLeader(None);
    }
    if let Some(leader) = error.strip_prefix("not leader, leader is ") {
        return Answer::NotLeader(is_host_port(leader).then(|| leader.to_owned()));
    }
    let passing = [
        "busy, try again",
        "not enough alive members",
        "no space on enough members",
        "message unavailable",
        "too many tokens in use",
        "too many connections",
        "timed out",
    ];
    if passing.iter().any(|begin| error.starts_with(begin)) {
        return Answer::Later;
    }
    Answer::Refused
}

/// First and last id.
type Ids = (u64, u64);

/// Takes a bulk write's failure apart: `REASON (stored A-B)`, or `(stored none)`.
fn partial(error: &str) -> Option<(&str, Option<Ids>)> {
    let (reason, stored) = error.strip_suffix(')')?.rsplit_once(" (stored ")?;
    if stored == "none" {
        return Some((reason, None));
    }
    let (first, last) = stored.split_once('-')?;
    Some((reason, Some((first.parse().ok()?, last.parse().ok()?))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Failure;

    fn line(failure: &Failure) -> Vec<u8> {
        format!("ERROR: {failure}").into_bytes()
    }

    /// Every failure that a leader can name, by what a client can do about it.
    #[test]
    fn every_failure_of_a_leader_is_understood() {
        let leader = |leader: Option<&str>| Failure::NotLeader {
            leader: leader.map(str::to_owned),
        };
        let members = Failure::NotEnoughMembers { have: 1, need: 2 };
        let replicas = "member-1@127.0.0.1:5556:down".to_owned();
        let cases = [
            (members, Answer::Later),
            (Failure::NoSpace { have: 0, need: 2 }, Answer::Later),
            (Failure::Unavailable { replicas }, Answer::Later),
            (Failure::WriteTimedOut, Answer::Unknown),
            (Failure::ReadTimedOut, Answer::Later),
            (leader(None), Answer::NotLeader(None)),
            (
                leader(Some("h:1")),
                Answer::NotLeader(Some("h:1".to_owned())),
            ),
            (leader(Some("h 1")), Answer::NotLeader(None)),
            (Failure::Busy, Answer::Later),
            (Failure::TooManyTokens, Answer::Later),
            (Failure::TokenInUse, Answer::Refused),
            (Failure::TokenExpired, Answer::Refused),
            (
                Failure::NotChanged {
                    reason: "no such leader".to_owned(),
                },
                Answer::Refused,
            ),
        ];
        for (failure, expected) in cases {
            let line = line(&failure);
            assert_eq!(Answer::of(&line), expected, "{failure}");
            let error = error_of(&line).expect("an error");
            assert_eq!(error.outcome(), failure.outcome(), "{failure}");
        }
        for done in ["OK", "OK 1-3", "NOT_FOUND", "VALUE 1 2", "", "{}"] {
            assert_eq!(Answer::of(done.as_bytes()), Answer::Done, "{done}");
            assert_eq!(error_of(done.as_bytes()), None, "{done}");
        }
    }

    #[test]
    fn a_bulk_write_that_ended_on_the_way_tells_what_is_stored() {
        let leader = Some("h:1".to_owned());
        for (reason, stored, expected, outcome) in [
            (Failure::Busy, None, Answer::Partial, Outcome::Failed),
            (
                Failure::NotLeader { leader },
                Some((1, 9)),
                Answer::Partial,
                Outcome::Failed,
            ),
            (
                Failure::WriteTimedOut,
                Some((7, 7)),
                Answer::Unknown,
                Outcome::Unknown,
            ),
            (
                Failure::TokenExpired,
                Some((7, 8)),
                Answer::Refused,
                Outcome::Failed,
            ),
        ] {
            let text = reason.to_string();
            let reason = Box::new(reason);
            let line = line(&Failure::BulkPartial { reason, stored });
            assert_eq!(Answer::of(&line), expected, "{text}");
            let error = error_of(&line).expect("an error");
            assert_eq!(format!("ERROR: {error}").into_bytes(), line);
            let reason = text;
            let expected = ClientError::Partial {
                reason,
                stored,
                outcome,
            };
            assert_eq!(error, expected);
        }
    }
}
