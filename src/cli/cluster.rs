//! Finds the cluster that a client subcommand is meant for, and asks its leaders in turn.

use std::collections::VecDeque;
use std::io;

use super::args::{ADDRESS_DEFAULT, ClusterArgs};
use super::exit::{Exit, ToolError};
use super::session::Session;
use super::up::manifest::Manifest;

/// The client addresses of the leaders, to be tried in this order; never empty.
pub fn addresses(at: &ClusterArgs) -> Result<Vec<String>, ToolError> {
    if let Some(dir) = &at.data_dir {
        let manifest = Manifest::read(dir)?
            .ok_or_else(|| ToolError::usage(format!("{} holds no cluster.json", dir.display())))?;
        let rows = manifest.processes.into_iter();
        let found: Vec<String> = rows.filter_map(|process| process.hatokuse).collect();
        if found.is_empty() {
            let text = format!("cluster.json in {} names no leader", dir.display());
            return Err(ToolError::failed(text));
        }
        return Ok(found);
    }
    if at.addr.is_empty() {
        return Ok(vec![ADDRESS_DEFAULT.to_owned()]);
    }
    for address in &at.addr {
        if !crate::config::kinds::is_host_port(address) {
            return Err(ToolError::usage(format!(
                "--addr {address}: accepted: host:port"
            )));
        }
    }
    Ok(at.addr.clone())
}

/// Opens a session with the first of `addresses` that answers and gives it to `ask`; one that does
/// not answer, or whose `ask` fails, is followed by the next.
pub fn first<T>(
    addresses: &[String],
    mut ask: impl FnMut(&mut Session) -> io::Result<T>,
) -> Result<T, ToolError> {
    let mut tried = Vec::new();
    for address in addresses {
        match Session::open(address).and_then(|mut session| ask(&mut session)) {
            Ok(answer) => return Ok(answer),
            Err(error) => tried.push(format!("{address}: {error}")),
        }
    }
    Err(ToolError::new(
        Exit::Unreachable,
        format!("not reachable: {}", tried.join("; ")),
    ))
}

/// How many times a hint to another leader is followed. A group has at most five leaders, and a
/// hint that is wrong twice comes from a group that is electing.
pub const HINTS_MAX: usize = 3;

/// The client address of the active leader: one that has just confirmed that it leads.
pub fn active_leader(at: &ClusterArgs) -> Result<String, ToolError> {
    find_active(addresses(at)?)
}

/// The addresses with that of the active leader before them, if there are several and it is found.
pub fn leader_first(mut addresses: Vec<String>) -> Vec<String> {
    if addresses.len() > 1
        && let Ok(active) = find_active(addresses.clone())
    {
        addresses.insert(0, active);
    }
    addresses
}

/// The active leader, asked for at these addresses in turn, and where they say that it is.
pub fn find_active(addresses: Vec<String>) -> Result<String, ToolError> {
    let mut turns = VecDeque::from(addresses);
    let mut hints = 0;
    let mut tried = Vec::new();
    while let Some(address) = turns.pop_front() {
        let count = Session::open(&address).and_then(|mut session| {
            session.send(b"COUNT\r\n")?;
            session.line()
        });
        let line = match &count {
            Ok(line) => String::from_utf8_lossy(line),
            Err(error) => error.to_string().into(),
        };
        if count.is_ok() && line.bytes().all(|byte| byte.is_ascii_digit()) {
            return Ok(address);
        }
        tried.push(format!("{address}: {line}"));
        if let Some(leader) = line.strip_prefix("ERROR: not leader, leader is ")
            && hints < HINTS_MAX
        {
            hints += 1;
            turns.push_front(leader.to_owned());
        }
    }
    Err(ToolError::new(
        Exit::Unreachable,
        format!("not reachable: {}", tried.join("; ")),
    ))
}
