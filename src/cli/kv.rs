//! `tolerex set`, `get` and `del`: one request over HaToKuSe.
//!
//! The forms with a byte count (`SETB`, `GETB`) carry any payload. Leaders are asked in the order
//! given, and one that names the active leader is believed. A write whose connection breaks after
//! it was sent is not sent again: its outcome is unknown.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io::{self, IsTerminal, Read};
use std::os::unix::ffi::OsStrExt;

use super::args::ClusterArgs;
use super::cluster;
use super::exit::{Exit, ToolError, print};
use super::session::Session;
use crate::config::leader::PAYLOAD_BYTES_CEILING;
use crate::ids::Key;

/// `tolerex set KEY MESSAGE`.
pub fn set(at: &ClusterArgs, key: &OsStr, message: &OsStr) -> Result<(), ToolError> {
    let key = check_key(key)?;
    let payload = if message == "-" {
        read_stdin()?
    } else {
        message.as_bytes().to_vec()
    };
    let mut request = format!("SETB {key} {}\r\n", payload.len()).into_bytes();
    request.extend_from_slice(&payload);
    request.extend_from_slice(b"\r\n");
    ask(at, &request, true).map(|_| ())
}

/// `tolerex get KEY`.
pub fn get(at: &ClusterArgs, key: &OsStr) -> Result<(), ToolError> {
    let key = check_key(key)?;
    let mut payload = ask(at, format!("GETB {key}\r\n").as_bytes(), false)?;
    if io::stdout().is_terminal() {
        payload.push(b'\n');
    }
    print(&payload)
}

/// `tolerex del KEY`.
pub fn del(at: &ClusterArgs, key: &OsStr) -> Result<(), ToolError> {
    let key = check_key(key)?;
    ask(at, format!("DEL {key}\r\n").as_bytes(), true).map(|_| ())
}

fn check_key(key: &OsStr) -> Result<Key, ToolError> {
    Key::parse(key.as_bytes()).map_err(|error| ToolError::usage(error.to_string()))
}

fn read_stdin() -> Result<Vec<u8>, ToolError> {
    let mut payload = Vec::new();
    let read = io::stdin()
        .lock()
        .take(PAYLOAD_BYTES_CEILING + 1)
        .read_to_end(&mut payload);
    read.map_err(|error| ToolError::failed(format!("cannot read standard input: {error}")))?;
    if payload.len() as u64 > PAYLOAD_BYTES_CEILING {
        let text = format!("message too large (limit {PAYLOAD_BYTES_CEILING} bytes)");
        return Err(ToolError::failed(text));
    }
    Ok(payload)
}

/// What a reply line means.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Done,
    /// A payload of so many bytes follows.
    Value(usize),
    /// The active leader is there.
    Elsewhere(String),
    /// The next leader may know more.
    NoLeader,
    Error(Exit, String),
}

fn classify(line: &[u8]) -> Answer {
    let text = String::from_utf8_lossy(line);
    if text == "OK" {
        return Answer::Done;
    }
    if text == "NOT_FOUND" {
        return Answer::Error(Exit::NotFound, "not found".to_owned());
    }
    if let Some(bytes) = text
        .strip_prefix("VALUE ")
        .and_then(|rest| rest.split(' ').nth(1))
    {
        return match bytes.parse() {
            Ok(bytes) if bytes as u64 <= PAYLOAD_BYTES_CEILING => Answer::Value(bytes),
            _ => Answer::Error(Exit::Failed, format!("bad reply {text:?}")),
        };
    }
    let Some(error) = text.strip_prefix("ERROR: ") else {
        return Answer::Error(Exit::Failed, format!("bad reply {text:?}"));
    };
    if let Some(leader) = error.strip_prefix("not leader, leader is ") {
        return Answer::Elsewhere(leader.to_owned());
    }
    if error == "no leader elected" {
        return Answer::NoLeader;
    }
    let exit = if error.starts_with("not enough alive members") {
        Exit::Unreachable
    } else if error.contains("may or may not have happened") {
        Exit::Unknown
    } else {
        Exit::Failed
    };
    Answer::Error(exit, error.to_owned())
}

/// Sends a request to the active leader; gives the payload of a value, nothing for a write.
pub fn ask(at: &ClusterArgs, request: &[u8], is_write: bool) -> Result<Vec<u8>, ToolError> {
    let mut turns = VecDeque::from(cluster::addresses(at)?);
    let mut hints = 0;
    let mut tried = Vec::new();
    while let Some(address) = turns.pop_front() {
        let mut session = match Session::open(&address) {
            Ok(session) => session,
            Err(error) => {
                tried.push(format!("{address}: {error}"));
                continue;
            }
        };
        let reply = session.send(request).and_then(|()| session.line());
        let broken = |error: io::Error| {
            let text = format!("{address}: {error}, the write may or may not have happened");
            ToolError::new(Exit::Unknown, text)
        };
        match reply.map(|line| classify(&line)) {
            Ok(Answer::Done) => return Ok(Vec::new()),
            Ok(Answer::Value(bytes)) => match session.payload(bytes) {
                Ok(payload) => return Ok(payload),
                Err(error) => tried.push(format!("{address}: {error}")),
            },
            Ok(Answer::Error(exit, text)) => return Err(ToolError::new(exit, text)),
            Ok(Answer::NoLeader) => tried.push(format!("{address}: no leader elected")),
            Ok(Answer::Elsewhere(leader)) => {
                tried.push(format!("{address}: not leader, leader is {leader}"));
                if hints < cluster::HINTS_MAX {
                    hints += 1;
                    turns.push_front(leader);
                }
            }
            Err(error) if is_write => return Err(broken(error)),
            Err(error) => tried.push(format!("{address}: {error}")),
        }
    }
    Err(ToolError::new(
        Exit::Unreachable,
        format!("not reachable: {}", tried.join("; ")),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_become_exit_codes() {
        for (line, exit) in [
            ("NOT_FOUND", Exit::NotFound),
            (
                "ERROR: not enough alive members (have 1, need 2)",
                Exit::Unreachable,
            ),
            (
                "ERROR: timed out, the write may or may not have happened",
                Exit::Unknown,
            ),
            ("ERROR: timed out", Exit::Failed),
            ("ERROR: busy, try again", Exit::Failed),
            ("ERROR: message unavailable (replicas: )", Exit::Failed),
            ("hello", Exit::Failed),
            ("VALUE 1 99999999999", Exit::Failed),
        ] {
            match classify(line.as_bytes()) {
                Answer::Error(code, _) => assert_eq!(code, exit, "{line}"),
                other => panic!("{line}: {other:?}"),
            }
        }
        assert_eq!(classify(b"OK"), Answer::Done);
        assert_eq!(classify(b"VALUE 7 3"), Answer::Value(3));
        assert_eq!(classify(b"ERROR: no leader elected"), Answer::NoLeader);
        let elsewhere = classify(b"ERROR: not leader, leader is h:1");
        assert_eq!(elsewhere, Answer::Elsewhere("h:1".to_owned()));
    }
}
