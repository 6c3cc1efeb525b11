//! `tolerex group`: who takes part in the group of leaders, and how that is changed.
//!
//! A change carries no token: one whose connection breaks is not sent again, its outcome is
//! unknown.

use super::args::{ClusterArgs, GroupAction};
use super::cluster;
use super::exit::{ToolError, print};
use crate::client::Patience;
use crate::config::kinds::is_host_port;

/// Shows the group, or changes it.
pub fn run(action: Option<&GroupAction>, json: bool, at: &ClusterArgs) -> Result<(), ToolError> {
    let Some(action) = action else {
        let client = cluster::client(at, Patience::OneRound)?;
        let command: &[u8] = if json { b"GROUP JSON" } else { b"GROUP" };
        return print(&cluster::view(&client, command)?);
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
    let client = cluster::client(at, Patience::WhileElecting)?;
    client
        .raw(format!("GROUP {verb} {word}").as_bytes(), None)?
        .done()?;
    Ok(())
}
