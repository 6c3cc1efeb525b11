//! `tolerex set`, `get` and `del`: one request each.
//!
//! They carry any payload. The [client](crate::client) finds the active leader and repeats what is
//! not answered; writes carry a token, so that they take effect once.

use std::ffi::OsStr;
use std::io::{self, IsTerminal, Read};
use std::os::unix::ffi::OsStrExt;

use super::args::ClusterArgs;
use super::cluster;
use super::exit::{Exit, ToolError, print};
use crate::client::Patience;
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
    let client = cluster::client(at, Patience::WhileElecting)?;
    Ok(client.set(&key, &payload)?)
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
    if client.delete(&key)? {
        Ok(())
    } else {
        Err(not_found())
    }
}

fn not_found() -> ToolError {
    ToolError::new(Exit::NotFound, "not found")
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
