//! What was done, as values: reads the replies of requests that were. Pure.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::answer;
use super::connection::{self, Reply};
use super::error::ClientError;
use super::request::Form;
use crate::ids::{Key, Revision};
use crate::protocol::reply::ListedKey;

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
    /// The message is stored under this revision.
    Stored(Revision),
    /// The message that was read; `None` if there is none.
    Read(Option<Message>),
    /// Whether there was a message to be deleted.
    Deleted(bool),
}

/// A part of a listing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// In bytewise order of their text.
    pub keys: Vec<ListedKey>,
    /// Where the next page goes on, behind this key; `None`: this is the last.
    pub next: Option<Key>,
}

/// When a message expires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeToLive {
    /// There is no such message.
    Missing,
    /// It does not expire.
    Endless,
    /// In so much time, to the second, rounded up.
    Left(Duration),
}

/// Of a SET.
pub(super) fn stored(reply: Reply) -> Result<Revision, ClientError> {
    let line = reply.done()?.line;
    let revision = match std::str::from_utf8(&line) {
        Ok(text) => text.strip_prefix("OK ").and_then(|text| text.parse().ok()),
        Err(_) => None,
    };
    match revision {
        Some(revision) => Ok(Revision::from_u64(revision)),
        None => Err(unknown(&line)),
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

/// Of a DEL, EXPIRE or PERSIST: whether there was such a message.
pub(super) fn existed(reply: Reply) -> Result<bool, ClientError> {
    match reply.done()?.line.as_slice() {
        b"OK" => Ok(true),
        b"NOT_FOUND" => Ok(false),
        line => Err(unknown(line)),
    }
}

/// Of a TTL.
pub(super) fn ttl(reply: Reply) -> Result<TimeToLive, ClientError> {
    let line = reply.done()?.line;
    match std::str::from_utf8(&line).ok() {
        Some("NOT_FOUND") => Ok(TimeToLive::Missing),
        Some("NONE") => Ok(TimeToLive::Endless),
        text => match text.and_then(|text| text.parse().ok()) {
            Some(seconds) => Ok(TimeToLive::Left(Duration::from_secs(seconds))),
            None => Err(refused(&line)),
        },
    }
}

/// Of a LIST.
pub(super) fn page(reply: Reply) -> Result<Page, ClientError> {
    let reply = reply.done()?;
    let text = reply.text();
    let mut page = Page::default();
    for line in text
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
    {
        if let Some(next) = line.strip_prefix(b"MORE ") {
            page.next = Some(Key::parse(next).map_err(|_| refused(line))?);
        } else {
            page.keys.push(listed(line).ok_or_else(|| refused(line))?);
        }
    }
    Ok(page)
}

fn listed(line: &[u8]) -> Option<ListedKey> {
    let mut words = line.split(|byte| *byte == b' ');
    let key = Key::parse(words.next()?).ok()?;
    let mut number = || std::str::from_utf8(words.next()?).ok()?.parse().ok();
    Some(ListedKey {
        key,
        revision: Revision::from_u64(number()?),
        bytes: number()?,
    })
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
    /// What an `ERROR: …` or a `MISMATCH …` of a leader means.
    pub fn done(self) -> Result<Reply, ClientError> {
        if let Some(revision) = mismatch(&self) {
            return Err(ClientError::Mismatch { revision });
        }
        match answer::error_of(&self.line) {
            Some(error) => Err(error),
            None => Ok(self),
        }
    }
}

/// What there is, in an answer that the condition does not hold.
fn mismatch(reply: &Reply) -> Option<Option<Revision>> {
    let line = match reply.form {
        Form::Line => std::str::from_utf8(&reply.line).ok()?,
        // It may be a key.
        Form::Lines | Form::Value | Form::Batch => return None,
    };
    let revision = line.strip_prefix("MISMATCH ")?.parse().ok()?;
    Some((revision != 0).then(|| Revision::from_u64(revision)))
}

/// A write was answered by what is no answer to it.
pub(super) fn unknown(line: &[u8]) -> ClientError {
    let reason = format!("{}; {}", connection::bad(line), answer::UNKNOWN);
    ClientError::Unknown { reason }
}

/// A read was.
fn refused(line: &[u8]) -> ClientError {
    let reason = connection::bad(line).to_string();
    ClientError::Refused { reason }
}

/// A message cannot live so long.
pub(super) fn no_time_to_live(time: Duration) -> ClientError {
    ClientError::invalid(format!(
        "{time:?} to live: accepted: more than 0, up to 100 years"
    ))
}
