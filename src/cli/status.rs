//! `tolerex status`: what a leader says of itself and its members, once or again and again.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use super::args::ClusterArgs;
use super::cluster;
use super::exit::{ToolError, print, tell};
use super::visible::shown;
use crate::client::Patience;
use crate::clock;

/// How often `--watch` asks.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// Moves to the top left corner and clears what is below (ECMA-48: CUP, ED).
const CLEAR: &[u8] = b"\x1b[H\x1b[J";

/// Prints the table, or the JSON object on one line; with `watch` each second.
pub fn run(at: &ClusterArgs, json: bool, watch: bool) -> Result<(), ToolError> {
    let client = cluster::client(at, Patience::OneRound)?;
    let command: &[u8] = if json { b"STATUS JSON" } else { b"STATUS" };
    if !watch {
        return print(&cluster::view(&client, command)?);
    }
    let mut out = io::stdout();
    let is_terminal = out.is_terminal();
    loop {
        let mut text = match cluster::view(&client, command) {
            Ok(text) => text,
            // A watch goes on until there is something to see again.
            Err(error) => {
                tell(&format!("error: {error}"));
                Vec::new()
            }
        };
        text = shown(&text, is_terminal).into_owned();
        if is_terminal && !json {
            text.splice(..0, CLEAR.iter().copied());
        } else if !json && !text.is_empty() {
            text.push(b'\n');
        }
        // Whoever has gone away has seen enough.
        if out.write_all(&text).and_then(|()| out.flush()).is_err() {
            return Ok(());
        }
        clock::sleep(WATCH_INTERVAL);
    }
}
