//! `tolerex set`, `get` and `del`, and `tolerex kv` with more: one request each, a listing one for
//! each page.
//!
//! They carry any payload. The [client](crate::client) finds the active leader and repeats what is
//! not answered; writes carry a token, so that they take effect once.

use std::ffi::OsStr;
use std::io::{self, IsTerminal, Read};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use rustix::fs::OFlags;
use serde_json::{Value, json};

use super::args::{ClusterArgs, KvAction, KvArgs};
use super::cluster;
use super::exit::{Exit, ToolError, print};
use crate::client::{Client, Condition, ListedKey, Message, Patience, TimeToLive, WriteOptions};
use crate::config::leader::PAYLOAD_BYTES_CEILING;
use crate::config::units;
use crate::ids::{Key, Revision};
use crate::protocol::batch::encode_value;
use crate::protocol::request::PAGE_KEYS_MAX;

/// `tolerex kv …`.
pub fn run(action: &KvAction) -> Result<(), ToolError> {
    match action {
        KvAction::Set {
            key,
            message,
            ttl,
            more,
        } => {
            let (key, payload) = (check_key(key)?, payload(message)?);
            let options = WriteOptions {
                ttl: ttl.as_deref().map(time).transpose()?,
                ..WriteOptions::default()
            };
            let revision = client(more)?.set_with(&key, &payload, options)?;
            tell(
                more,
                "",
                &json!({"key": text(&key), "revision": revision.to_string()}),
            )
        }
        KvAction::Get { key, more } if !more.json => get(&more.at, key),
        KvAction::Get { key, more } => {
            let key = check_key(key)?;
            let message = client(more)?.get(&key)?.ok_or_else(not_found)?;
            tell(more, "", &message_json(&key, &message))
        }
        KvAction::Del {
            key,
            revision,
            more,
        } => {
            let key = check_key(key)?;
            let condition = revision.as_deref().map(condition).transpose()?;
            let options = WriteOptions {
                condition,
                ..WriteOptions::default()
            };
            existed(client(more)?.delete_with(&key, options)?)?;
            tell(more, "", &json!({"key": text(&key)}))
        }
        KvAction::Cas {
            key,
            revision,
            message,
            more,
        } => {
            let (key, condition) = (check_key(key)?, condition(revision)?);
            let revision = client(more)?.set_if(&key, &payload(message)?, condition)?;
            let answer = json!({"key": text(&key), "revision": revision.to_string()});
            tell(more, &format!("{revision}\n"), &answer)
        }
        KvAction::List {
            prefix,
            after,
            limit,
            more,
        } => list(prefix, after.as_deref(), limit.unwrap_or(u64::MAX), more),
        KvAction::Ttl { key, more } => ttl(&check_key(key)?, more),
        KvAction::Expire {
            key,
            time: text_of_time,
            more,
        } => {
            let key = check_key(key)?;
            existed(client(more)?.expire(&key, time(text_of_time)?)?)?;
            tell(more, "", &json!({"key": text(&key)}))
        }
        KvAction::Persist { key, more } => {
            let key = check_key(key)?;
            existed(client(more)?.persist(&key)?)?;
            tell(more, "", &json!({"key": text(&key)}))
        }
    }
}

fn ttl(key: &Key, more: &KvArgs) -> Result<(), ToolError> {
    let (words, seconds) = match client(more)?.ttl(key)? {
        TimeToLive::Missing => return Err(not_found()),
        TimeToLive::Endless => ("none\n".to_owned(), None),
        TimeToLive::Left(time) => (format!("{}\n", time.as_secs()), Some(time.as_secs())),
    };
    tell(more, &words, &json!({"key": text(key), "seconds": seconds}))
}

/// Prints page by page. In JSON: `{"keys":[…],"next":…}`, `next` being what `--after` goes on with.
fn list(prefix: &str, after: Option<&OsStr>, limit: u64, more: &KvArgs) -> Result<(), ToolError> {
    let client = client(more)?;
    let mut after = after.map(check_key).transpose()?;
    let mut left = limit;
    let mut before = r#"{"keys":["#;
    loop {
        let count = u32::try_from(left).unwrap_or(u32::MAX).min(PAGE_KEYS_MAX);
        // 0 is none of ours: the client says what is accepted.
        let page = client.list_page(prefix, after.as_ref(), count)?;
        left = left.saturating_sub(page.keys.len() as u64);
        let mut lines = String::new();
        for ListedKey {
            key,
            revision,
            bytes,
        } in &page.keys
        {
            if more.json {
                let revision = revision.to_string();
                let row = json!({"key": text(key), "revision": revision, "bytes": bytes});
                lines += &format!("{before}{row}");
                before = ",";
            } else {
                lines += &format!("{key} {revision} {bytes}\n");
            }
        }
        after = page.next;
        let is_last = after.is_none() || left == 0;
        if more.json && is_last {
            let next = after.as_ref().map(text);
            let begin = if before == "," { "" } else { before };
            lines += &format!("{begin}],\"next\":{}}}\n", json!(next));
        }
        print(lines.as_bytes())?;
        if is_last {
            return Ok(());
        }
    }
}

fn client(more: &KvArgs) -> Result<Client, ToolError> {
    cluster::client(&more.at, Patience::WhileElecting)
}

/// Prints what was done, in words or as JSON.
fn tell(more: &KvArgs, words: &str, json: &Value) -> Result<(), ToolError> {
    match more.json {
        true => print(format!("{json}\n").as_bytes()),
        false => print(words.as_bytes()),
    }
}

fn text(key: &Key) -> String {
    key.to_string()
}

fn message_json(key: &Key, message: &Message) -> Value {
    let (value, encoding) = encode_value(&message.payload);
    let revision = message.revision.to_string();
    let mut json = json!({"key": text(key), "revision": revision, "value": value});
    if let Some(encoding) = encoding {
        json["encoding"] = encoding.into();
    }
    json
}

fn condition(revision: &str) -> Result<Condition, ToolError> {
    match (revision, revision.parse()) {
        ("*", _) => Ok(Condition::Exists),
        (_, Ok(0)) => Ok(Condition::Absent),
        (_, Ok(revision)) => Ok(Condition::Revision(Revision::from_u64(revision))),
        (_, Err(_)) => Err(ToolError::usage(format!(
            "{revision}: accepted: a revision, 0 for no such message, * for any"
        ))),
    }
}

fn time(text: &str) -> Result<Duration, ToolError> {
    let accepted = || ToolError::usage(format!("{text}: accepted: a time such as 30s, 5min, 24h"));
    units::parse_time(text).ok_or_else(accepted)
}

fn existed(existed: bool) -> Result<(), ToolError> {
    match existed {
        true => Ok(()),
        false => Err(not_found()),
    }
}

/// `tolerex set KEY MESSAGE`.
pub fn set(at: &ClusterArgs, key: &OsStr, message: &OsStr) -> Result<(), ToolError> {
    let key = check_key(key)?;
    let payload = payload(message)?;
    let client = cluster::client(at, Patience::WhileElecting)?;
    client.set(&key, &payload)?;
    Ok(())
}

/// `tolerex get KEY`.
pub fn get(at: &ClusterArgs, key: &OsStr) -> Result<(), ToolError> {
    let key = check_key(key)?;
    let found = cluster::client(at, Patience::WhileElecting)?.get(&key)?;
    let mut payload = found.ok_or_else(not_found)?.payload;
    if io::stdout().is_terminal() {
        payload.push(b'\n');
    }
    print(&payload)
}

/// `tolerex del KEY`.
pub fn del(at: &ClusterArgs, key: &OsStr) -> Result<(), ToolError> {
    let key = check_key(key)?;
    let client = cluster::client(at, Patience::WhileElecting)?;
    existed(client.delete(&key)?)
}

fn not_found() -> ToolError {
    ToolError::new(Exit::NotFound, "not found")
}

fn check_key(key: &OsStr) -> Result<Key, ToolError> {
    Key::parse(key.as_bytes()).map_err(|error| ToolError::usage(error.to_string()))
}

/// The message itself, or what `-` stands for.
fn payload(message: &OsStr) -> Result<Vec<u8>, ToolError> {
    match message == "-" {
        true => read_stdin(),
        false => Ok(message.as_bytes().to_vec()),
    }
}

fn read_stdin() -> Result<Vec<u8>, ToolError> {
    let mut payload = Vec::new();
    let read = io::stdin()
        .lock()
        .take(PAYLOAD_BYTES_CEILING + 1)
        .read_to_end(&mut payload);
    read.map_err(|error| ToolError::failed(format!("cannot read standard input: {error}")))?;
    if payload.is_empty() && is_stdin_closed() {
        let text = "standard input is closed (or is /dev/null, opened for reading and writing): \
                    nothing is stored; for an empty message give '' in place of -, or </dev/null";
        return Err(ToolError::failed(text));
    }
    if payload.len() as u64 > PAYLOAD_BYTES_CEILING {
        let text = format!("message too large (limit {PAYLOAD_BYTES_CEILING} bytes)");
        return Err(ToolError::failed(text));
    }
    Ok(payload)
}

/// Whether the process was started without a standard input (`<&-`).
///
/// Rust's runtime opens /dev/null in its place before `main`, so that no file gets that number. It
/// opens it for reading and writing, which tells it from a user's own `</dev/null`: that is open
/// for reading, and an empty message. A program that hands over /dev/null open for both, as
/// containers do without `-i`, is taken for one that forgot the input: an error is the safe side.
fn is_stdin_closed() -> bool {
    let stdin = io::stdin();
    let access = rustix::fs::fcntl_getfl(&stdin).map(|flags| flags & OFlags::RWMODE);
    let null = rustix::fs::stat("/dev/null").map(|null| null.st_rdev);
    let found = rustix::fs::fstat(&stdin).map(|found| found.st_rdev);
    access == Ok(OFlags::RDWR) && null.is_ok() && null == found
}
