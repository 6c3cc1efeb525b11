//! `tolerex status`: what a leader says of itself and its members, once or again and again.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use super::args::ClusterArgs;
use super::cluster;
use super::exit::{ToolError, print};
use super::session::Session;
use crate::clock;

/// Lines of a status table; a hundred members and the head take about half.
const TABLE_LINES_MAX: usize = 256;

/// How often `--watch` asks.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// Moves to the top left corner and clears what is below (ECMA-48: CUP, ED).
const CLEAR: &[u8] = b"\x1b[H\x1b[J";

/// Prints the table, or the JSON object on one line; with `watch` each second.
pub fn run(at: &ClusterArgs, json: bool, watch: bool) -> Result<(), ToolError> {
    let addresses = cluster::addresses(at)?;
    if !watch {
        return print(&ask(&addresses, json)?);
    }
    let mut out = io::stdout();
    let is_terminal = out.is_terminal();
    loop {
        let mut text = match ask(&addresses, json) {
            Ok(text) => text,
            // A watch goes on until there is something to see again.
            Err(error) => {
                _ = writeln!(io::stderr(), "error: {error}");
                Vec::new()
            }
        };
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

fn ask(addresses: &[String], json: bool) -> Result<Vec<u8>, ToolError> {
    let text = cluster::first(&cluster::leader_first(addresses.to_vec()), |session| {
        if json {
            session.send(b"STATUS JSON\r\n")?;
            return Ok([session.line()?, b"\n".to_vec()].concat());
        }
        table(session)
    })?;
    if text.starts_with(b"ERROR: ") {
        return Err(ToolError::failed(String::from_utf8_lossy(&text).trim_end()));
    }
    Ok(text)
}

/// The table of `STATUS`, without the empty line at its end.
pub fn table(session: &mut Session) -> io::Result<Vec<u8>> {
    table_of(session, b"STATUS\r\n")
}

/// The table that answers a command, without the empty line at its end.
pub fn table_of(session: &mut Session, command: &[u8]) -> io::Result<Vec<u8>> {
    session.send(command)?;
    let mut table = Vec::new();
    for _ in 0..TABLE_LINES_MAX {
        let line = session.line()?;
        if line.is_empty() {
            break;
        }
        let is_error = line.starts_with(b"ERROR: ");
        table.extend_from_slice(&line);
        table.push(b'\n');
        // An error is one line, with none behind it.
        if is_error {
            break;
        }
    }
    Ok(table)
}
