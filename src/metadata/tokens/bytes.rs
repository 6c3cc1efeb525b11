//! The bytes of tokens in commands and snapshots. Pure.
//!
//! As in [`crate::metadata::command`]: little-endian, `varint` is LEB128. A *token* is a varint
//! length, 1..=64, and that much UTF-8. In a snapshot stand, for each one: the token, when it
//! expires (varint, milliseconds since the Unix epoch), and its use:
//!
//! | use | 1 byte | then |
//! |---|---|---|
//! | message stored | 0 | revision 8 |
//! | message deleted | 1 | |
//! | no message to delete | 2 | |
//! | bulk write complete | 3 | first id varint, count varint |
//! | bulk write under way | 4 | first id, count, number of ranges, ranges |
//!
//! A range of stored positions is its distance from the end of the one before, and its length; all
//! these numbers are varints.

use std::sync::Arc;

use super::progress::{Progress, RANGES_MAX};
use super::{Frozen, Outcome, Tokens, Use};
use crate::ids::{Revision, TOKEN_BYTES_MAX, Token};
use crate::metadata::command::{DecodeError, Input, put_varint};

const USE_STORED: u8 = 0;
const USE_DELETED: u8 = 1;
const USE_NOT_FOUND: u8 = 2;
const USE_BULK_DONE: u8 = 3;
const USE_BULK: u8 = 4;

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
        Use::Done(Outcome::Stored(revision)) => {
            out.push(USE_STORED);
            out.extend(revision.as_u64().to_le_bytes());
        }
        Use::Done(Outcome::Deleted) => out.push(USE_DELETED),
        Use::Done(Outcome::NotFound) => out.push(USE_NOT_FOUND),
        Use::Done(Outcome::Bulk { first, last }) => {
            out.push(USE_BULK_DONE);
            put_varint(out, *first);
            put_varint(out, last - first + 1);
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

fn used(input: &mut Input<'_>) -> Result<Use, DecodeError> {
    Ok(match input.byte()? {
        USE_STORED => Use::Done(Outcome::Stored(Revision::from_u64(input.u64()?))),
        USE_DELETED => Use::Done(Outcome::Deleted),
        USE_NOT_FOUND => Use::Done(Outcome::NotFound),
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
