//! `tolerex group`: who takes part in the group of leaders, and how that is changed.
//!
//! Leaders are asked as for any request: in the order given, and one that names the active leader
//! is believed. A change whose connection breaks is not sent again: its outcome is unknown.

use super::args::{ClusterArgs, GroupAction};
use super::cluster;
use super::exit::{Exit, ToolError, print};
use super::kv;
use super::status;
use crate::config::kinds::is_host_port;

/// Shows the group, or changes it.
pub fn run(action: Option<&GroupAction>, json: bool, at: &ClusterArgs) -> Result<(), ToolError> {
    let Some(action) = action else {
        return show(at, json);
    };
    let (verb, word, at) = match action {
        GroupAction::Add { address, at } => ("ADD", address, at),
        GroupAction::Remove { id, at } => ("REMOVE", id, at),
        GroupAction::Transfer { id, at } => ("TRANSFER", id, at),
    };
    let is_address = matches!(action, GroupAction::Add { .. });
    if is_address && !is_host_port(word) {
        return Err(ToolError::usage(format!("{word}: accepted: host:port")));
    }
    if word.is_empty() || word.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(ToolError::usage(format!("{word:?} is no id or name")));
    }
    kv::ask(at, format!("GROUP {verb} {word}\r\n").as_bytes(), true).map(|_| ())
}

/// What the active leader says, or any, while there is none.
fn show(at: &ClusterArgs, json: bool) -> Result<(), ToolError> {
    let addresses = cluster::leader_first(cluster::addresses(at)?);
    let text = cluster::first(&addresses, |session| {
        if json {
            session.send(b"GROUP JSON\r\n")?;
            return Ok([session.line()?, b"\n".to_vec()].concat());
        }
        status::table_of(session, b"GROUP\r\n")
    })?;
    if text.starts_with(b"ERROR: ") {
        let text = String::from_utf8_lossy(&text);
        return Err(ToolError::new(Exit::Failed, text.trim_end()));
    }
    print(&text)
}
