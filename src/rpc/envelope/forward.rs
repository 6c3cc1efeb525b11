//! Batches of clients that a follower passes on, and their replies. Pure.
//!
//! What a peer passes on has the limits of what a client may send; a reply is one of those to
//! commands about messages. Text in it is fit to be written to a client: one line, bounded.

use bytes::Bytes;

use super::{
    Checked, NAME_BYTES_MAX, RECORDS_MAX, from_key, invalid, to_key, to_label, to_payload, wire,
};
use crate::error::Failure;
use crate::ids::{Key, Revision, Token};
use crate::protocol::reply::{MemberState, ReplicaStatus, Reply};
use crate::protocol::request::{BATCH_REQUESTS_MAX, BULK_BYTES_MAX, BULK_COUNT_MAX, Batch, Write};
use wire::forward_request as request;
use wire::forward_response as response;

/// The replicas of a message in words: seven of them with their longest names and addresses.
const WORDS_BYTES_MAX: usize = 4096;

/// Copies of a message, at most.
const REPLICAS_MAX: usize = 7;

const _: () = assert!(BATCH_REQUESTS_MAX <= RECORDS_MAX);

pub(super) fn from_batch(batch: Batch) -> wire::ForwardRequest {
    let batch = match batch {
        Batch::Writes(writes) => request::Batch::Writes(request::Writes {
            writes: writes.into_iter().map(from_write).collect(),
        }),
        Batch::Reads(keys) => request::Batch::Reads(request::Keys {
            keys: keys.into_iter().map(from_key).collect(),
        }),
        Batch::Bulk {
            count,
            payload,
            token,
        } => request::Batch::Bulk(request::Bulk {
            count,
            payload,
            token: from_token(token),
        }),
        Batch::Where(key) => request::Batch::Where(from_key(key)),
        Batch::Count => request::Batch::Count(request::Count {}),
        Batch::Status | Batch::Group(_) => panic!("what is about a leader is not passed on"),
    };
    wire::ForwardRequest { batch: Some(batch) }
}

pub(super) fn to_batch(request: wire::ForwardRequest) -> Checked<Batch> {
    Ok(match request.batch {
        None => return invalid("forward_request.batch", "is missing or unknown"),
        Some(request::Batch::Writes(request::Writes { writes })) => {
            check_count(writes.len(), "forward_request.writes")?;
            Batch::Writes(writes.into_iter().map(to_write).collect::<Checked<_>>()?)
        }
        Some(request::Batch::Reads(request::Keys { keys })) => {
            const FIELD: &str = "forward_request.reads";
            check_count(keys.len(), FIELD)?;
            let to_key = |key| to_key(Some(key), FIELD);
            Batch::Reads(keys.into_iter().map(to_key).collect::<Checked<_>>()?)
        }
        Some(request::Batch::Bulk(bulk)) => {
            let bytes = bulk.count.checked_mul(bulk.payload.len() as u64);
            if !(1..=BULK_COUNT_MAX).contains(&bulk.count) {
                return invalid("forward_request.bulk.count", "is not 1 to 1,000,000");
            }
            if bytes.is_none_or(|bytes| bytes > BULK_BYTES_MAX) {
                return invalid("forward_request.bulk", "is more than 1 GiB");
            }
            Batch::Bulk {
                count: bulk.count,
                payload: to_payload(bulk.payload, "forward_request.bulk.payload")?,
                token: to_token(&bulk.token, "forward_request.bulk.token")?,
            }
        }
        Some(request::Batch::Where(key)) => {
            Batch::Where(to_key(Some(key), "forward_request.where")?)
        }
        Some(request::Batch::Count(request::Count {})) => Batch::Count,
    })
}

fn check_count(count: usize, field: &'static str) -> Checked<()> {
    match count {
        0 => invalid(field, "is empty"),
        1..=BATCH_REQUESTS_MAX => Ok(()),
        _ => invalid(field, "has too many entries"),
    }
}

fn from_write(write: Write) -> request::Write {
    let (key, payload, token) = match write {
        Write::Set {
            key,
            payload,
            token,
        } => (key, Some(payload), token),
        Write::Delete { key, token } => (key, None, token),
    };
    request::Write {
        key: Some(from_key(key)),
        payload,
        token: from_token(token),
    }
}

fn to_write(write: request::Write) -> Checked<Write> {
    let key: Key = to_key(write.key, "forward_request.writes.key")?;
    let token = to_token(&write.token, "forward_request.writes.token")?;
    Ok(match write.payload {
        Some(payload) => Write::Set {
            key,
            payload: to_payload(payload, "forward_request.writes.payload")?,
            token,
        },
        None => Write::Delete { key, token },
    })
}

fn from_token(token: Option<Token>) -> String {
    token.map(|token| token.to_string()).unwrap_or_default()
}

fn to_token(token: &str, field: &'static str) -> Checked<Option<Token>> {
    if token.is_empty() {
        return Ok(None);
    }
    match Token::parse(token.as_bytes()) {
        Ok(token) => Ok(Some(token)),
        Err(_) => invalid(field, "is not 1 to 64 bytes without white space"),
    }
}

pub(super) fn from_replies(replies: Vec<Reply>) -> wire::ForwardResponse {
    wire::ForwardResponse {
        replies: replies.into_iter().map(from_reply).collect(),
    }
}

pub(super) fn to_replies(answer: wire::ForwardResponse) -> Checked<Vec<Reply>> {
    check_count(answer.replies.len(), "forward_response.replies")?;
    answer.replies.into_iter().map(to_reply).collect()
}

fn from_reply(reply: Reply) -> response::Reply {
    use response::reply::Reply as Wire;
    let reply = match reply {
        Reply::Stored { revision } => Wire::Stored(revision.as_u64()),
        Reply::Deleted => Wire::Plain(response::Plain::Deleted as i32),
        Reply::NotFound => Wire::Plain(response::Plain::NotFound as i32),
        Reply::Value { revision, payload } => Wire::Value(response::Value {
            revision: revision.as_u64(),
            payload,
        }),
        Reply::BulkStored { first, last } => Wire::Bulk(response::Range { first, last }),
        Reply::Location {
            revision,
            bytes,
            replicas,
        } => Wire::Location(response::Location {
            revision: revision.as_u64(),
            bytes,
            replicas: replicas.into_iter().map(from_replica).collect(),
        }),
        Reply::Count(count) => Wire::Count(count),
        Reply::Failed(failure) => Wire::Failed(from_failure(failure)),
        Reply::Status(_) | Reply::Group(_) | Reply::GroupChanged => {
            panic!("no reply to what is passed on")
        }
    };
    response::Reply { reply: Some(reply) }
}

fn to_reply(reply: response::Reply) -> Checked<Reply> {
    use response::reply::Reply as Wire;
    Ok(match reply.reply {
        None => return invalid("forward_response.reply", "is missing or unknown"),
        Some(Wire::Stored(revision)) => Reply::Stored {
            revision: Revision::from_u64(revision),
        },
        Some(Wire::Plain(plain)) => match response::Plain::try_from(plain) {
            Ok(response::Plain::Deleted) => Reply::Deleted,
            Ok(response::Plain::NotFound) => Reply::NotFound,
            Ok(response::Plain::Unspecified) | Err(_) => {
                return invalid("forward_response.plain", "is unknown");
            }
        },
        Some(Wire::Value(value)) => Reply::Value {
            revision: Revision::from_u64(value.revision),
            payload: to_payload(value.payload, "forward_response.value.payload")?,
        },
        Some(Wire::Bulk(range)) => {
            let (first, last) = to_range(&range)?;
            Reply::BulkStored { first, last }
        }
        Some(Wire::Location(location)) => to_location(location)?,
        Some(Wire::Count(count)) => Reply::Count(count),
        Some(Wire::Failed(failure)) => Reply::Failed(to_failure(failure)?),
    })
}

fn to_range(range: &response::Range) -> Checked<(u64, u64)> {
    if range.first > range.last {
        return invalid("forward_response.range", "ends before it begins");
    }
    Ok((range.first, range.last))
}

fn from_replica(replica: ReplicaStatus) -> response::Replica {
    let state = match replica.state {
        MemberState::Up => response::State::Up,
        MemberState::Suspect => response::State::Suspect,
        MemberState::Down => response::State::Down,
    };
    response::Replica {
        name: replica.name,
        address: replica.address,
        state: state as i32,
    }
}

fn to_location(location: response::Location) -> Checked<Reply> {
    if location.replicas.len() > REPLICAS_MAX {
        return invalid("forward_response.replicas", "has too many entries");
    }
    let to_replica = |replica: response::Replica| {
        let state = match response::State::try_from(replica.state) {
            Ok(response::State::Up) => MemberState::Up,
            Ok(response::State::Suspect) => MemberState::Suspect,
            Ok(response::State::Down) => MemberState::Down,
            Ok(response::State::Unspecified) | Err(_) => {
                return invalid("forward_response.replicas.state", "is unknown");
            }
        };
        let label = |text, field| to_label(text, 1, NAME_BYTES_MAX, field);
        Ok(ReplicaStatus {
            name: label(replica.name, "forward_response.replicas.name")?,
            address: label(replica.address, "forward_response.replicas.address")?,
            state,
        })
    };
    let replicas = location.replicas.into_iter().map(to_replica);
    Ok(Reply::Location {
        revision: Revision::from_u64(location.revision),
        bytes: location.bytes,
        replicas: replicas.collect::<Checked<_>>()?,
    })
}

fn from_failure(failure: Failure) -> response::Failure {
    use response::Code;
    use response::failure::Failure as Wire;
    let code = |code: Code| Wire::Code(code as i32);
    let failure = match failure {
        Failure::WriteTimedOut => code(Code::WriteTimedOut),
        Failure::ReadTimedOut => code(Code::ReadTimedOut),
        Failure::Busy => code(Code::Busy),
        Failure::TooManyTokens => code(Code::TooManyTokens),
        Failure::TokenInUse => code(Code::TokenInUse),
        Failure::TokenExpired => code(Code::TokenExpired),
        Failure::NotEnoughMembers { have, need } => {
            let count = |count| u32::try_from(count).unwrap_or(u32::MAX);
            Wire::NotEnoughMembers(response::NotEnoughMembers {
                have: count(have),
                need: count(need),
            })
        }
        Failure::Unavailable { replicas } => Wire::Unavailable(replicas),
        Failure::NotLeader { leader } => Wire::NotLeader(leader.unwrap_or_default()),
        Failure::BulkPartial { reason, stored } => {
            let range = |(first, last)| response::Range { first, last };
            Wire::BulkPartial(Box::new(response::BulkPartial {
                reason: Some(Box::new(from_failure(*reason))),
                stored: stored.map(range),
            }))
        }
        Failure::NotChanged { .. } => panic!("no change of the group is passed on"),
    };
    response::Failure {
        failure: Some(failure),
    }
}

fn to_failure(failure: response::Failure) -> Checked<Failure> {
    use response::Code;
    use response::failure::Failure as Wire;
    Ok(match failure.failure {
        None => return invalid("forward_response.failed", "is missing or unknown"),
        Some(Wire::Code(code)) => match Code::try_from(code) {
            Ok(Code::WriteTimedOut) => Failure::WriteTimedOut,
            Ok(Code::ReadTimedOut) => Failure::ReadTimedOut,
            Ok(Code::Busy) => Failure::Busy,
            Ok(Code::TooManyTokens) => Failure::TooManyTokens,
            Ok(Code::TokenInUse) => Failure::TokenInUse,
            Ok(Code::TokenExpired) => Failure::TokenExpired,
            Ok(Code::Unspecified) | Err(_) => {
                return invalid("forward_response.code", "is unknown");
            }
        },
        Some(Wire::NotEnoughMembers(counts)) => Failure::NotEnoughMembers {
            have: counts.have as usize,
            need: counts.need as usize,
        },
        Some(Wire::Unavailable(words)) if words.len() > WORDS_BYTES_MAX => {
            return invalid("forward_response.unavailable", "is too long");
        }
        Some(Wire::Unavailable(words)) => Failure::Unavailable {
            replicas: words.replace(char::is_control, " "),
        },
        Some(Wire::NotLeader(leader)) => {
            let leader = to_label(leader, 0, NAME_BYTES_MAX, "forward_response.not_leader")?;
            let leader = Some(leader).filter(|leader| !leader.is_empty());
            Failure::NotLeader { leader }
        }
        Some(Wire::BulkPartial(partial)) => {
            let reason = match partial.reason.map(|reason| to_failure(*reason)) {
                None => return invalid("forward_response.reason", "is missing"),
                Some(Ok(Failure::BulkPartial { .. })) => {
                    return invalid("forward_response.reason", "is another bulk write's");
                }
                Some(reason) => Box::new(reason?),
            };
            let stored = partial.stored.as_ref().map(to_range).transpose()?;
            Failure::BulkPartial { reason, stored }
        }
    })
}

/// Bytes that a batch takes in a frame, about: for limits.
pub fn forwarded_bytes(batch: &Batch) -> usize {
    /// Beside key and payload.
    const REQUEST_BYTES: usize = 32;
    let write = |write: &Write| {
        let key = match write {
            Write::Set { key, .. } | Write::Delete { key, .. } => key,
        };
        key.text_len() + write.payload_len() + REQUEST_BYTES
    };
    match batch {
        Batch::Writes(writes) => writes.iter().map(write).sum(),
        Batch::Reads(keys) => keys.iter().map(|key| key.text_len() + REQUEST_BYTES).sum(),
        Batch::Bulk { payload, .. } => Bytes::len(payload) + REQUEST_BYTES,
        Batch::Where(_) | Batch::Count | Batch::Status | Batch::Group(_) => REQUEST_BYTES,
    }
}
