//! What was done, as values: reads the replies of requests that were. Pure.

use std::ops::RangeInclusive;

use super::answer;
use super::connection::{self, Reply};
use super::error::ClientError;
use crate::ids::Revision;

/// A message that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Names the write that stored it; another one after each write of the key.
    pub revision: Revision,
    /// Its bytes.
    pub payload: Vec<u8>,
}

/// What a request of a [`Pipeline`](super::Pipeline) has done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    /// The message is stored.
    Stored,
    /// The message that was read; `None` if there is none.
    Read(Option<Message>),
    /// Whether there was a message to be deleted.
    Deleted(bool),
}

/// Of a SET.
pub(super) fn stored(reply: Reply) -> Result<(), ClientError> {
    match reply.done()?.line.as_slice() {
        b"OK" => Ok(()),
        line => Err(unknown(line)),
    }
}

/// Of a GET.
pub(super) fn read(reply: Reply) -> Result<Option<Message>, ClientError> {
    let Reply { line, rest, .. } = reply.done()?;
    if line == b"NOT_FOUND" {
        return Ok(None);
    }
    let (revision, _) = connection::value_of(&line).ok_or_else(|| refused(&line))?;
    Ok(Some(Message {
        revision: Revision::from_u64(revision),
        payload: rest,
    }))
}

/// Of a DEL.
pub(super) fn deleted(reply: Reply) -> Result<bool, ClientError> {
    match reply.done()?.line.as_slice() {
        b"OK" => Ok(true),
        b"NOT_FOUND" => Ok(false),
        line => Err(unknown(line)),
    }
}

/// Of a bulk SET.
pub(super) fn ids(reply: Reply) -> Result<RangeInclusive<u64>, ClientError> {
    let line = reply.done()?.line;
    let ids = std::str::from_utf8(&line).ok().and_then(|text| {
        let (first, last) = text.strip_prefix("OK ")?.split_once('-')?;
        Some(first.parse().ok()?..=last.parse().ok()?)
    });
    ids.ok_or_else(|| unknown(&line))
}

impl Reply {
    /// The reply, unless it is an error.
    ///
    /// # Errors
    /// What an `ERROR: …` of a leader means.
    pub fn done(self) -> Result<Reply, ClientError> {
        match answer::error_of(&self.line) {
            Some(error) => Err(error),
            None => Ok(self),
        }
    }
}

/// A write was answered by what is no answer to it.
fn unknown(line: &[u8]) -> ClientError {
    let reason = format!("{}; {}", connection::bad(line), answer::UNKNOWN);
    ClientError::Unknown { reason }
}

/// A read was.
fn refused(line: &[u8]) -> ClientError {
    let reason = connection::bad(line).to_string();
    ClientError::Refused { reason }
}
