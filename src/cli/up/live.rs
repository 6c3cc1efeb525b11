//! The live table of `tolerex up` on a terminal: what the leader says of the cluster, each second.
//!
//! Lines that stay, such as the report of a death, go above it: the table is removed, the line
//! written, and the table drawn again at its next update.

use std::io::{self, Write};
use std::time::Duration;

use anyhow::Result;

use super::super::cluster;
use super::super::visible::visible;
use crate::client::Patience;
use crate::threads::{self, StopSignal, Thread};

/// How often the leader is asked.
const ASK_INTERVAL: Duration = Duration::from_secs(1);

/// Starts the thread `table`, which gives the table, or why there is none, again and again.
pub fn watch(
    addresses: Vec<String>,
    stop: StopSignal,
    on_table: impl Fn(String) + Send + 'static,
) -> Result<Thread> {
    let client = cluster::client_of(addresses, Patience::OneRound);
    let client = client.map_err(|error| anyhow::anyhow!(error.text))?;
    let body = move || {
        while !stop.is_stopped() {
            on_table(match cluster::view(&client, b"STATUS") {
                Ok(table) => String::from_utf8_lossy(&table).into_owned(),
                Err(error) => format!("the leader does not answer: {error}\n"),
            });
            stop.wait_timeout(ASK_INTERVAL);
        }
    };
    Ok(threads::spawn("table", body)?)
}

/// The end of a terminal, where the table stands.
#[derive(Default)]
pub struct Table {
    /// Lines of it that are shown now.
    shown: usize,
}

impl Table {
    /// The bytes that replace what is shown by `text`, cut to `columns` and `rows`.
    fn frame(&mut self, text: &str, columns: usize, rows: usize) -> String {
        let mut frame = self.removal();
        // A line that wraps would be two to remove; the cursor's own line stays free.
        for line in text.lines().take(rows.saturating_sub(1)) {
            frame.extend(visible(line.as_bytes()).chars().take(columns));
            frame.push('\n');
            self.shown += 1;
        }
        frame
    }

    /// The bytes that remove it (ECMA-48: CPL, ED).
    fn removal(&mut self) -> String {
        match std::mem::take(&mut self.shown) {
            0 => String::new(),
            lines => format!("\x1b[{lines}F\x1b[J"),
        }
    }

    /// Shows the newest table.
    pub fn show(&mut self, text: &str) {
        let size = rustix::termios::tcgetwinsize(io::stdout());
        let (columns, rows) = size.map_or((80, 24), |size| (size.ws_col, size.ws_row));
        let frame = self.frame(text, columns.into(), rows.into());
        write(&frame);
    }

    /// Removes it, before a line that stays.
    pub fn hide(&mut self) {
        let removal = self.removal();
        write(&removal);
    }
}

/// That nobody reads it must not end the cluster.
fn write(bytes: &str) {
    let mut out = io::stdout().lock();
    _ = out.write_all(bytes.as_bytes()).and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_replaces_the_one_before_and_fits_the_terminal() {
        let mut table = Table::default();
        assert_eq!(table.frame("a\nlong line\nc\n", 4, 3), "a\nlong\n");
        assert_eq!(
            table.frame("\x1b[1mb\n", 80, 24),
            "\x1b[2F\x1b[J\\x1b[1mb\n"
        );
        assert_eq!(table.removal(), "\x1b[1F\x1b[J");
        assert_eq!(table.removal(), "");
    }
}
