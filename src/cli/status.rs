//! `tolerex status`: what a leader says of itself and its members.

use super::args::ClusterArgs;
use super::cluster;
use super::exit::{ToolError, print};

/// Lines of a status table; a hundred members and the head take about half.
const TABLE_LINES_MAX: usize = 256;

/// Prints the table, or the JSON object on one line.
pub fn run(at: &ClusterArgs, json: bool) -> Result<(), ToolError> {
    let addresses = cluster::addresses(at)?;
    let text = cluster::first(&addresses, |session| {
        if json {
            session.send(b"STATUS JSON\r\n")?;
            return Ok([session.line()?, b"\n".to_vec()].concat());
        }
        session.send(b"STATUS\r\n")?;
        let mut table = Vec::new();
        for _ in 0..TABLE_LINES_MAX {
            let line = session.line()?;
            if line.is_empty() {
                break;
            }
            table.extend_from_slice(&line);
            table.push(b'\n');
        }
        Ok(table)
    })?;
    if text.starts_with(b"ERROR: ") {
        return Err(ToolError::failed(String::from_utf8_lossy(&text).trim_end()));
    }
    print(&text)
}
