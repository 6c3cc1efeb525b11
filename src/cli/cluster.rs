//! Finds the cluster that a client subcommand is meant for, and makes the client for it.

use std::time::Duration;

use super::args::ClusterArgs;
use super::exit::ToolError;
use super::up::manifest::{Damaged, Manifest, Role};
use super::up::ports;
use crate::client::{Client, ClientError, ClientOptions, Patience};

/// How long a subcommand looks for a leader, and waits for what it may not repeat: an election
/// takes five seconds at the very most, a change of the group twelve (`leader::group_admin`).
const DEADLINE: Duration = Duration::from_secs(15);

/// The longest `--timeout`, in seconds: half of the `dedup_window` that [`ClientOptions`] counts
/// on.
const TIMEOUT_MAX: f64 = 60.0;

/// As many leaders as a group has at most.
const LEADERS_MAX: u16 = 5;

/// The client addresses of the leaders, to be tried in this order; never empty.
pub fn addresses(at: &ClusterArgs) -> Result<Vec<String>, ToolError> {
    if let Some(dir) = &at.data_dir {
        let read = Manifest::read(dir).map_err(|error| match error.is::<Damaged>() {
            true => ToolError::failed(format!(
                "{error}; `tolerex up --data-dir {}` makes it anew, --addr does without it",
                dir.display()
            )),
            false => error.into(),
        });
        let manifest = read?
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
        return default_addresses();
    }
    Ok(at.addr.clone())
}

/// Where `tolerex up` puts the leaders of a group.
fn default_addresses() -> Result<Vec<String>, ToolError> {
    let mut found = Vec::new();
    for number in 1..=LEADERS_MAX {
        let addresses = ports::addresses(Role::Leader, number, 0)?;
        found.extend(addresses.hatokuse.map(|address| address.to_string()));
    }
    Ok(found)
}

/// A client of the cluster.
pub fn client(at: &ClusterArgs, patience: Patience) -> Result<Client, ToolError> {
    let deadline = match at.timeout {
        None => DEADLINE,
        Some(seconds) if (0.001..=TIMEOUT_MAX).contains(&seconds) => {
            Duration::from_secs_f64(seconds)
        }
        Some(seconds) => {
            let text = format!("--timeout {seconds}: accepted: 0.001 to {TIMEOUT_MAX}");
            return Err(ToolError::usage(text));
        }
    };
    client_with(addresses(at)?, patience, deadline)
}

/// A client of the leaders at these addresses.
pub fn client_of(addresses: Vec<String>, patience: Patience) -> Result<Client, ToolError> {
    client_with(addresses, patience, DEADLINE)
}

fn client_with(
    addresses: Vec<String>,
    patience: Patience,
    deadline: Duration,
) -> Result<Client, ToolError> {
    let options = ClientOptions {
        deadline,
        patience,
        ..ClientOptions::default()
    };
    Client::with_options(addresses, options).map_err(|error| match error {
        ClientError::Invalid { reason } => ToolError::usage(format!("--addr {reason}")),
        other => other.into(),
    })
}

/// What the active leader answers to a command that every leader answers for itself, or any of them
/// while there is none.
pub fn view(client: &Client, command: &[u8]) -> Result<Vec<u8>, ClientError> {
    // From here on the client is with the one that leads. Without one it is with who answers.
    _ = client.leader();
    Ok(client.raw(command, None)?.done()?.text())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_the_group_that_up_starts() {
        let found = addresses(&ClusterArgs::default()).expect("addresses");
        assert_eq!(found.len(), 5);
        assert_eq!(found[..2], ["127.0.0.1:6666", "127.0.0.1:6766"]);
    }
}
