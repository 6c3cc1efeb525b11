//! Batches of clients that a follower passes on. Pure.
//!
//! What a peer passes on has the limits of what a client may send.

mod replies;

use bytes::Bytes;

pub(super) use self::replies::{from_replies, to_replies};
use super::{Checked, RECORDS_MAX, from_key, invalid, to_key, to_payload, wire};
use crate::ids::{KEY_BYTES_MAX, Key, Revision, Token};
use crate::protocol::request::{
    BATCH_REQUESTS_MAX, BULK_BYTES_MAX, BULK_COUNT_MAX, Batch, Condition, ListRequest,
    PAGE_KEYS_MAX, SetOptions, Step, TTL_MS_MAX, Transaction, Write,
};
use wire::forward_request as request;

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
        Batch::Transaction(transaction) => request::Batch::Transaction(request::Transaction {
            steps: transaction.steps.into_iter().map(from_step).collect(),
            atomic: transaction.is_atomic,
            token: from_token(transaction.token),
        }),
        Batch::Ttl(key) => request::Batch::Ttl(from_key(key)),
        Batch::List(list) => request::Batch::List(request::List {
            prefix: list.prefix.into(),
            after: list.after.map(Into::into),
            limit: list.limit,
        }),
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
        Some(request::Batch::Transaction(transaction)) => {
            check_count(transaction.steps.len(), "forward_request.transaction")?;
            let steps = transaction.steps.into_iter().map(to_step);
            Batch::Transaction(Transaction {
                steps: steps.collect::<Checked<_>>()?,
                is_atomic: transaction.atomic,
                token: to_token(&transaction.token, "forward_request.transaction.token")?,
            })
        }
        Some(request::Batch::Ttl(key)) => Batch::Ttl(to_key(Some(key), "forward_request.ttl")?),
        Some(request::Batch::List(list)) => Batch::List(to_list(list)?),
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
    let (key, payload, token, condition, ttl_ms, expire) = match write {
        Write::Set {
            key,
            payload,
            options,
        } => {
            let SetOptions {
                token,
                condition,
                ttl_ms,
            } = options;
            (key, Some(payload), token, condition, ttl_ms, false)
        }
        Write::Delete {
            key,
            token,
            condition,
        } => (key, None, token, condition, None, false),
        Write::Expire { key, token, ttl_ms } => (key, None, token, None, ttl_ms, true),
    };
    request::Write {
        key: Some(from_key(key)),
        payload,
        token: from_token(token),
        condition: condition.map(from_condition),
        ttl_ms: ttl_ms.unwrap_or(0),
        expire,
    }
}

fn to_write(write: request::Write) -> Checked<Write> {
    let key: Key = to_key(write.key, "forward_request.writes.key")?;
    let token = to_token(&write.token, "forward_request.writes.token")?;
    let condition = write.condition.map(to_condition).transpose()?;
    let ttl_ms = match write.ttl_ms {
        0 => None,
        ttl_ms @ 1..=TTL_MS_MAX => Some(ttl_ms),
        _ => return invalid("forward_request.writes.ttl_ms", "is more than 100 years"),
    };
    Ok(match (write.payload, write.expire) {
        (Some(payload), false) => Write::Set {
            key,
            payload: to_payload(payload, "forward_request.writes.payload")?,
            options: SetOptions {
                token,
                condition,
                ttl_ms,
            },
        },
        (None, false) if ttl_ms.is_none() => Write::Delete {
            key,
            token,
            condition,
        },
        (None, true) if condition.is_none() => Write::Expire { key, token, ttl_ms },
        (Some(_), true) | (None, _) => {
            return invalid(
                "forward_request.writes",
                "has parts that do not go together",
            );
        }
    })
}

fn from_condition(condition: Condition) -> request::Condition {
    use request::condition::Condition as Wire;
    let condition = match condition {
        Condition::Revision(revision) => Wire::Revision(revision.as_u64()),
        Condition::Absent => Wire::Exists(false),
        Condition::Exists => Wire::Exists(true),
    };
    request::Condition {
        condition: Some(condition),
    }
}

fn to_condition(condition: request::Condition) -> Checked<Condition> {
    use request::condition::Condition as Wire;
    Ok(match condition.condition {
        None => return invalid("forward_request.writes.condition", "is unknown"),
        Some(Wire::Revision(revision)) => Condition::Revision(Revision::from_u64(revision)),
        Some(Wire::Exists(true)) => Condition::Exists,
        Some(Wire::Exists(false)) => Condition::Absent,
    })
}

fn from_step(step: Step) -> request::Step {
    use request::step::Step as Wire;
    let step = match step {
        Step::Write(write) => Wire::Write(from_write(write)),
        Step::Get(key) => Wire::Get(from_key(key)),
    };
    request::Step { step: Some(step) }
}

fn to_step(step: request::Step) -> Checked<Step> {
    use request::step::Step as Wire;
    Ok(match step.step {
        None => return invalid("forward_request.transaction.step", "is missing or unknown"),
        Some(Wire::Write(write)) => match to_write(write)? {
            write if write.token().is_none() => Step::Write(write),
            _ => return invalid("forward_request.transaction.step", "has a token"),
        },
        Some(Wire::Get(key)) => Step::Get(to_key(Some(key), "forward_request.transaction.get")?),
    })
}

fn to_list(list: request::List) -> Checked<ListRequest> {
    let texts = [Some(&list.prefix), list.after.as_ref()];
    if texts
        .into_iter()
        .flatten()
        .any(|text| text.len() > KEY_BYTES_MAX)
    {
        return invalid("forward_request.list", "has more than 512 bytes");
    }
    if !(1..=PAGE_KEYS_MAX).contains(&list.limit) {
        return invalid("forward_request.list.limit", "is not 1 to 1,000");
    }
    Ok(ListRequest {
        prefix: list.prefix.into(),
        after: list.after.map(Into::into),
        limit: list.limit,
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

/// Bytes that a batch takes in a frame, about: for limits.
pub fn forwarded_bytes(batch: &Batch) -> usize {
    /// Beside key and payload.
    const REQUEST_BYTES: usize = 32;
    let write = |write: &Write| write.key().text_len() + write.payload_len() + REQUEST_BYTES;
    let step = |step: &Step| match step {
        Step::Write(one) => write(one),
        Step::Get(key) => key.text_len() + REQUEST_BYTES,
    };
    match batch {
        Batch::Writes(writes) => writes.iter().map(write).sum(),
        Batch::Reads(keys) => keys.iter().map(|key| key.text_len() + REQUEST_BYTES).sum(),
        Batch::Bulk { payload, .. } => Bytes::len(payload) + REQUEST_BYTES,
        Batch::Transaction(transaction) => transaction.steps.iter().map(step).sum(),
        Batch::Ttl(_) | Batch::List(_) => REQUEST_BYTES,
        Batch::Where(_) | Batch::Count | Batch::Status | Batch::Group(_) => REQUEST_BYTES,
    }
}
