//! The bytes of tokens in commands and snapshots. Pure.
//!
//! As in [`crate::metadata::command`]: little-endian, `varint` is LEB128. A *token* is a varint
//! length, 1..=64, and that much UTF-8. In a snapshot stand, for each one: the token, when it
//! expires (varint, milliseconds since the Unix epoch), and its use:
//!
//! | use | 1 byte | then |
//! |---|---|---|
//! | message replaced | 0 | revision 8 |
//! | message deleted | 1 | |
//! | no message to delete | 2 | |
//! | bulk write complete | 3 | first id varint, count varint |
//! | bulk write under way | 4 | first id, count, number of ranges, ranges |
//! | message created | 5 | revision 8 |
//! | expiry changed | 6 | |
//! | condition did not hold | 7 | revision 8, 0: there was no message |
//! | not done because of another step | 8 | its position varint |
//! | read | 9 | |
//! | transaction | 10 | number of steps varint, the use of each: none of 3, 4 and 10 |
//!
//! A range of stored positions is its distance from the end of the one before, and its length; all
//! these numbers are varints.

use std::sync::Arc;

use super::progress::{Progress, RANGES_MAX};
use super::{Frozen, Outcome, Tokens, Use};
use crate::ids::{Revision, TOKEN_BYTES_MAX, Token};
use crate::metadata::command::{DecodeError, Input, OPERATIONS_MAX, put_varint};

const USE_STORED: u8 = 0;
const USE_DELETED: u8 = 1;
const USE_NOT_FOUND: u8 = 2;
const USE_BULK_DONE: u8 = 3;
const USE_BULK: u8 = 4;
const USE_CREATED: u8 = 5;
const USE_EXPIRY_SET: u8 = 6;
const USE_MISMATCH: u8 = 7;
const USE_NOT_APPLIED: u8 = 8;
const USE_READ: u8 = 9;
const USE_TRANSACTION: u8 = 10;

pub(in crate::metadata) fn put_token(out: &mut Vec<u8>, token: &Token) {
    put_varint(out, token.as_str().len() as u64);
    out.extend(token.as_str().as_bytes());
}

impl Input<'_> {
    pub(in crate::metadata) fn token(&mut self) -> Result<Token, DecodeError> {
        let length = self.length(TOKEN_BYTES_MAX, "length of a token")?;
        Token::parse(self.take(length)?).map_err(|_| DecodeError::Invalid("token"))
    }
}

impl Frozen {
    /// Encodes tokens until there are `bytes` of them; how many that were, 0 at the end.
    pub(in crate::metadata) fn encode(&mut self, bytes: usize, out: &mut Vec<u8>) -> u64 {
        let mut count = 0;
        while out.len() < bytes {
            let Some((token, remembered)) = self.shard.next() else {
                let Some(shard) = self.shards.next() else {
                    break;
                };
                // Copied only if the table shares it still.
                self.shard = Arc::unwrap_or_clone(shard).into_iter();
                continue;
            };
            put_token(out, &token);
            put_varint(out, remembered.expires_ms);
            put_use(out, &remembered.used);
            count += 1;
        }
        count
    }
}

impl Tokens {
    /// Takes the next token of a snapshot.
    pub(in crate::metadata) fn decode(&mut self, input: &mut Input<'_>) -> Result<(), DecodeError> {
        let token = input.token()?;
        let expires_ms = input.varint()?;
        let used = used(input)?;
        match self.restore(&token, used, expires_ms) {
            true => Ok(()),
            false => Err(DecodeError::Invalid("token, which is there twice")),
        }
    }
}

pub(super) fn put_use(out: &mut Vec<u8>, used: &Use) {
    match used {
        Use::Done(outcome) => put_outcome(out, outcome),
        Use::Transaction(outcomes) => {
            out.push(USE_TRANSACTION);
            put_varint(out, outcomes.len() as u64);
            outcomes
                .iter()
                .for_each(|outcome| put_outcome(out, outcome));
        }
        Use::Bulk(progress) => {
            out.push(USE_BULK);
            put_varint(out, progress.first());
            put_varint(out, progress.count());
            put_varint(out, progress.stored().len() as u64);
            let mut before = 0;
            for (begin, end) in progress.stored() {
                put_varint(out, u64::from(begin - before));
                put_varint(out, u64::from(end - begin));
                before = *end;
            }
        }
    }
}

fn put_outcome(out: &mut Vec<u8>, outcome: &Outcome) {
    match outcome {
        Outcome::Stored { revision, created } => {
            out.push(if *created { USE_CREATED } else { USE_STORED });
            out.extend(revision.as_u64().to_le_bytes());
        }
        Outcome::Deleted => out.push(USE_DELETED),
        Outcome::NotFound => out.push(USE_NOT_FOUND),
        Outcome::Bulk { first, last } => {
            out.push(USE_BULK_DONE);
            put_varint(out, *first);
            put_varint(out, last - first + 1);
        }
        Outcome::ExpirySet => out.push(USE_EXPIRY_SET),
        Outcome::Mismatch(revision) => {
            out.push(USE_MISMATCH);
            out.extend(revision.map_or(0, Revision::as_u64).to_le_bytes());
        }
        Outcome::NotApplied { position } => {
            out.push(USE_NOT_APPLIED);
            put_varint(out, u64::from(*position));
        }
        Outcome::Read => out.push(USE_READ),
    }
}

/// The outcome of this kind, which is none of a bulk write; `None`: there is no such kind.
fn outcome(kind: u8, input: &mut Input<'_>) -> Result<Option<Outcome>, DecodeError> {
    Ok(Some(match kind {
        USE_STORED | USE_CREATED => Outcome::Stored {
            revision: Revision::from_u64(input.u64()?),
            created: kind == USE_CREATED,
        },
        USE_DELETED => Outcome::Deleted,
        USE_NOT_FOUND => Outcome::NotFound,
        USE_EXPIRY_SET => Outcome::ExpirySet,
        USE_MISMATCH => {
            let revision = input.u64()?;
            Outcome::Mismatch((revision > 0).then(|| Revision::from_u64(revision)))
        }
        USE_NOT_APPLIED => Outcome::NotApplied {
            position: input.length(OPERATIONS_MAX, "position of a step")? as u32,
        },
        USE_READ => Outcome::Read,
        _ => return Ok(None),
    }))
}

fn used(input: &mut Input<'_>) -> Result<Use, DecodeError> {
    let kind = input.byte()?;
    if let Some(outcome) = outcome(kind, input)? {
        return Ok(Use::Done(outcome));
    }
    Ok(match kind {
        USE_TRANSACTION => {
            let mut outcomes = Vec::new();
            for _ in 0..input.length(OPERATIONS_MAX, "number of steps")? {
                let kind = input.byte()?;
                let outcome = outcome(kind, input)?;
                outcomes.push(outcome.ok_or(DecodeError::Invalid("use of a token"))?);
            }
            if outcomes.is_empty() {
                return Err(DecodeError::Invalid("number of steps"));
            }
            Use::Transaction(outcomes.into())
        }
        USE_BULK_DONE => {
            let progress = progress(input)?;
            Use::Done(progress.outcome())
        }
        USE_BULK => {
            let mut progress = progress(input)?;
            let mut before = 0;
            for at in 0..input.length(RANGES_MAX, "number of ranges")? {
                let limit = progress.count() as usize;
                let begin = before + input.length(limit, "range")?;
                let end = begin + input.length(limit, "range")?;
                if begin == end || end > limit || (at > 0 && begin == before) {
                    return Err(DecodeError::Invalid("range"));
                }
                progress.store(begin as u32, end as u32);
                before = end;
            }
            match progress.is_complete() {
                true => return Err(DecodeError::Invalid("bulk write, which is complete")),
                false => Use::Bulk(progress),
            }
        }
        _ => return Err(DecodeError::Invalid("use of a token")),
    })
}

fn progress(input: &mut Input<'_>) -> Result<Progress, DecodeError> {
    let (first, count) = (input.varint()?, input.varint()?);
    Progress::new(first, count).ok_or(DecodeError::Invalid("range of ids"))
}
