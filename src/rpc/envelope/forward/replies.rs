//! Replies to batches that a follower passed on. Pure.
//!
//! A reply is one of those to commands about messages. Text in it is fit to be written to a client:
//! one line, bounded.

use super::super::{
    Checked, NAME_BYTES_MAX, from_key, invalid, to_key, to_label, to_payload, wire,
};
use super::check_count;
use crate::error::Failure;
use crate::ids::Revision;
use crate::protocol::reply::{KeyPage, ListedKey, MemberState, ReplicaStatus, Reply};
use crate::protocol::request::PAGE_KEYS_MAX;
use wire::forward_response as response;

/// The replicas of a message in words: seven of them with their longest names and addresses.
const WORDS_BYTES_MAX: usize = 4096;

/// Copies of a message, at most.
const REPLICAS_MAX: usize = 7;

pub(in super::super) fn from_replies(replies: Vec<Reply>) -> wire::ForwardResponse {
    wire::ForwardResponse {
        replies: replies.into_iter().map(from_reply).collect(),
    }
}

pub(in super::super) fn to_replies(answer: wire::ForwardResponse) -> Checked<Vec<Reply>> {
    check_count(answer.replies.len(), "forward_response.replies")?;
    answer.replies.into_iter().map(to_reply).collect()
}

fn from_reply(reply: Reply) -> response::Reply {
    use response::reply::Reply as Wire;
    let reply = match reply {
        Reply::Stored {
            revision,
            created: false,
        } => Wire::Stored(revision.as_u64()),
        Reply::Stored { revision, .. } => Wire::Created(revision.as_u64()),
        Reply::Mismatch { revision } => {
            Wire::Mismatch(revision.map_or(0, |revision| revision.as_u64()))
        }
        Reply::ExpirySet => Wire::Plain(response::Plain::ExpirySet as i32),
        Reply::Transaction(replies) => Wire::Transaction(response::Transaction {
            replies: replies.into_iter().map(from_reply).collect(),
        }),
        Reply::TimeToLive { ms } => Wire::TimeToLive(response::TimeToLive { ms }),
        Reply::Keys(page) => Wire::Keys(from_page(page)),
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
            created: false,
        },
        Some(Wire::Created(revision)) => Reply::Stored {
            revision: Revision::from_u64(revision),
            created: true,
        },
        Some(Wire::Mismatch(revision)) => Reply::Mismatch {
            revision: (revision > 0).then(|| Revision::from_u64(revision)),
        },
        Some(Wire::Transaction(transaction)) => to_transaction(transaction)?,
        Some(Wire::TimeToLive(response::TimeToLive { ms })) => Reply::TimeToLive { ms },
        Some(Wire::Keys(page)) => Reply::Keys(to_page(page)?),
        Some(Wire::Plain(plain)) => match response::Plain::try_from(plain) {
            Ok(response::Plain::Deleted) => Reply::Deleted,
            Ok(response::Plain::NotFound) => Reply::NotFound,
            Ok(response::Plain::ExpirySet) => Reply::ExpirySet,
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

fn to_transaction(transaction: response::Transaction) -> Checked<Reply> {
    const FIELD: &str = "forward_response.transaction";
    check_count(transaction.replies.len(), FIELD)?;
    // Looked at before it is gone into: nothing nests.
    let is_nested = |reply: &response::Reply| {
        matches!(reply.reply, Some(response::reply::Reply::Transaction(_)))
    };
    if transaction.replies.iter().any(is_nested) {
        return invalid(FIELD, "is in another one");
    }
    let replies = transaction.replies.into_iter().map(to_reply);
    Ok(Reply::Transaction(replies.collect::<Checked<_>>()?))
}

fn from_page(page: KeyPage) -> response::Page {
    let listed = |listed: ListedKey| response::Listed {
        key: Some(from_key(listed.key)),
        revision: listed.revision.as_u64(),
        bytes: listed.bytes,
    };
    response::Page {
        keys: page.keys.into_iter().map(listed).collect(),
        has_more: page.has_more,
    }
}

fn to_page(page: response::Page) -> Checked<KeyPage> {
    if page.keys.len() > PAGE_KEYS_MAX as usize {
        return invalid("forward_response.keys", "has too many entries");
    }
    let listed = |listed: response::Listed| {
        Ok(ListedKey {
            key: to_key(listed.key, "forward_response.keys.key")?,
            revision: Revision::from_u64(listed.revision),
            bytes: listed.bytes,
        })
    };
    Ok(KeyPage {
        keys: page.keys.into_iter().map(listed).collect::<Checked<_>>()?,
        has_more: page.has_more,
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
        MemberState::Retired => response::State::Retired,
        MemberState::Missing => response::State::Missing,
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
            Ok(response::State::Retired) => MemberState::Retired,
            Ok(response::State::Missing) => MemberState::Missing,
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
        Failure::TokenUsed => code(Code::TokenUsed),
        Failure::ValuesTooLarge => code(Code::ValuesTooLarge),
        Failure::NotApplied { position } => {
            Wire::NotApplied(u32::try_from(position).unwrap_or(u32::MAX))
        }
        Failure::LeaderIncomplete => code(Code::LeaderIncomplete),
        Failure::NotEnoughMembers { have, need } => Wire::NotEnoughMembers(from_counts(have, need)),
        Failure::LeaderWaits { have, need } => Wire::LeaderWaits(from_counts(have, need)),
        Failure::TermOver { above } => Wire::TermOver(above),
        Failure::NoSpace { have, need } => Wire::NoSpace(from_counts(have, need)),
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

fn from_counts(have: usize, need: usize) -> response::NotEnoughMembers {
    let count = |count| u32::try_from(count).unwrap_or(u32::MAX);
    response::NotEnoughMembers {
        have: count(have),
        need: count(need),
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
            Ok(Code::TokenUsed) => Failure::TokenUsed,
            Ok(Code::ValuesTooLarge) => Failure::ValuesTooLarge,
            Ok(Code::LeaderIncomplete) => Failure::LeaderIncomplete,
            Ok(Code::Unspecified) | Err(_) => {
                return invalid("forward_response.code", "is unknown");
            }
        },
        Some(Wire::NotApplied(position)) => Failure::NotApplied {
            position: position as usize,
        },
        Some(Wire::NotEnoughMembers(counts)) => Failure::NotEnoughMembers {
            have: counts.have as usize,
            need: counts.need as usize,
        },
        Some(Wire::LeaderWaits(counts)) => Failure::LeaderWaits {
            have: counts.have as usize,
            need: counts.need as usize,
        },
        Some(Wire::TermOver(above)) => Failure::TermOver { above },
        Some(Wire::NoSpace(counts)) => Failure::NoSpace {
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
