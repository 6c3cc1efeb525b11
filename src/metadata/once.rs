//! The changes that carry tokens, and their bytes in a command. Pure.
//!
//! The body of the command kind *once* ([`super::command`], where `varint` and *operations*, the
//! body of a write, are described; a *token* is a varint length, 1..=64, and that much UTF-8):
//!
//! | part | size | meaning |
//! |---|---|---|
//! | now | varint | the leader's time in milliseconds since the Unix epoch |
//! | window | varint | for how many milliseconds tokens are remembered, 1..=[`WINDOW_MS_MAX`] |
//! | change | 1 | 1 write, 2 reserve ids, 3 part of a bulk write |
//! | 1: tokens | varint | how many, 1 at least; that many follow |
//! | 1: each | | varint number of operations since the one before, and the token |
//! | 1: operations | | |
//! | 2 | | token, varint count of ids |
//! | 3 | | token, operations |
//!
//! The window travels with the command, so that a leader with another setting decides alike (A3).

use crate::ids::Token;
use crate::metadata::command::{
    DecodeError, Input, OPERATIONS_MAX, Operation, RESERVE_COUNT_MAX, put_operations, put_varint,
};
use crate::metadata::tokens::bytes::put_token;

const CHANGE_WRITE: u8 = 1;
const CHANGE_RESERVE_IDS: u8 = 2;
const CHANGE_WRITE_PART: u8 = 3;

/// The longest window: a day.
pub const WINDOW_MS_MAX: u64 = 24 * 3600 * 1000;

/// A change that takes effect at most once for each of its tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Once {
    /// The leader's time in milliseconds since the Unix epoch; set as the command is proposed.
    pub now_ms: u64,
    /// For how long tokens are remembered, 1..=[`WINDOW_MS_MAX`].
    pub window_ms: u64,
    /// The change.
    pub change: OnceChange,
}

/// See [`Once`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OnceChange {
    /// Writes, some of which have a token.
    Write {
        /// At least one: the position of an operation, and its token; positions ascend.
        tokens: Vec<(u32, Token)>,
        /// As in [`super::command::Change::Write`].
        operations: Vec<Operation>,
    },
    /// Reserve ids for a bulk write.
    ReserveIds {
        /// Of the bulk write.
        token: Token,
        /// As in [`super::command::Change::ReserveIds`].
        count: u64,
    },
    /// Messages of a bulk write.
    WritePart {
        /// Of the bulk write.
        token: Token,
        /// SETs of ids that were reserved for it.
        operations: Vec<Operation>,
    },
}

/// Why a change with a token was not made; nothing happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenRefusal {
    /// As many tokens are remembered as there may be.
    TooMany,
    /// The token is in use by a bulk write that is not complete, and this is another write.
    InUse,
    /// The token of a part is not remembered any more.
    Expired,
    /// The token was used for another kind of request.
    Used,
}

impl Once {
    /// What it may add to the weight of the remembered tokens.
    pub(super) fn room(&self) -> usize {
        match &self.change {
            OnceChange::Write { tokens, .. } => tokens.len(),
            OnceChange::ReserveIds { .. } => 1,
            OnceChange::WritePart { operations, .. } => operations.len(),
        }
    }

    /// The operations, if it has any.
    pub fn operations(&self) -> &[Operation] {
        match &self.change {
            OnceChange::Write { operations, .. } | OnceChange::WritePart { operations, .. } => {
                operations
            }
            OnceChange::ReserveIds { .. } => &[],
        }
    }

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        put_varint(out, self.now_ms);
        assert!((1..=WINDOW_MS_MAX).contains(&self.window_ms));
        put_varint(out, self.window_ms);
        match &self.change {
            OnceChange::Write { tokens, operations } => {
                out.push(CHANGE_WRITE);
                assert!(!tokens.is_empty(), "a write without tokens is a write");
                put_varint(out, tokens.len() as u64);
                let mut next = 0;
                for (position, token) in tokens {
                    put_varint(out, u64::from(position - next));
                    put_token(out, token);
                    next = position + 1;
                }
                assert!(next as usize <= operations.len(), "a token of no operation");
                put_operations(out, operations);
            }
            OnceChange::ReserveIds { token, count } => {
                out.push(CHANGE_RESERVE_IDS);
                put_token(out, token);
                assert!((1..=RESERVE_COUNT_MAX).contains(count));
                put_varint(out, *count);
            }
            OnceChange::WritePart { token, operations } => {
                out.push(CHANGE_WRITE_PART);
                put_token(out, token);
                put_operations(out, operations);
            }
        }
    }

    pub(super) fn decode(input: &mut Input<'_>) -> Result<Once, DecodeError> {
        let now_ms = input.varint()?;
        let window_ms = match input.varint()? {
            window_ms @ 1..=WINDOW_MS_MAX => window_ms,
            _ => return Err(DecodeError::Invalid("window of tokens")),
        };
        let change = match input.byte()? {
            CHANGE_WRITE => {
                let tokens = tokens(input)?;
                let operations = input.operations()?;
                let last = tokens.last().map(|(position, _)| *position as usize);
                if last.is_none_or(|last| last >= operations.len()) {
                    return Err(DecodeError::Invalid("number of tokens"));
                }
                OnceChange::Write { tokens, operations }
            }
            CHANGE_RESERVE_IDS => OnceChange::ReserveIds {
                token: input.token()?,
                count: input.count_of_ids()?,
            },
            CHANGE_WRITE_PART => OnceChange::WritePart {
                token: input.token()?,
                operations: input.operations()?,
            },
            _ => return Err(DecodeError::Invalid("change with a token")),
        };
        Ok(Once {
            now_ms,
            window_ms,
            change,
        })
    }
}

/// Tokens with the positions of their operations, ascending.
fn tokens(input: &mut Input<'_>) -> Result<Vec<(u32, Token)>, DecodeError> {
    let mut tokens = Vec::new();
    let mut next = 0;
    for _ in 0..input.length(OPERATIONS_MAX, "number of tokens")? {
        let position = next + input.length(OPERATIONS_MAX - next, "position of a token")?;
        if position >= OPERATIONS_MAX {
            return Err(DecodeError::Invalid("position of a token"));
        }
        tokens.push((position as u32, input.token()?));
        next = position + 1;
    }
    Ok(tokens)
}
