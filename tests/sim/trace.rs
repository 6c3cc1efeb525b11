//! What happened, a line an event, and the hash by which two runs of a seed are compared.
//!
//! The columns are explained in `tests/README.md`.

use std::fmt::{Arguments, Write};

/// Lines kept for a failure.
const TAIL_LINES: usize = 40;

/// The lines of one run.
pub struct Trace {
    /// Of all lines so far.
    pub hash: u64,
    /// How many there were.
    pub events: u64,
    /// Whether they are printed.
    prints: bool,
    line: String,
    /// The last ones.
    tail: std::collections::VecDeque<String>,
}

impl Trace {
    /// Of a run that begins.
    pub fn new(prints: bool) -> Trace {
        Trace {
            hash: 0xcbf2_9ce4_8422_2325,
            events: 0,
            prints,
            line: String::new(),
            tail: std::collections::VecDeque::new(),
        }
    }

    /// Something happened at `now`, in nanoseconds.
    pub fn note(&mut self, now: u64, what: Arguments<'_>) {
        self.events += 1;
        let mut line = std::mem::take(&mut self.line);
        line.clear();
        // Writing to a string does not fail.
        _ = write!(line, "{:>11} ", now / 1_000);
        _ = line.write_fmt(what);
        for byte in line.bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        if self.prints {
            let mut out = std::io::stdout();
            _ = std::io::Write::write_fmt(&mut out, format_args!("{line}\n"));
        }
        // The oldest line's memory is used for the next one.
        self.tail.push_back(line);
        if self.tail.len() > TAIL_LINES {
            self.line = self.tail.pop_front().unwrap_or_default();
        }
    }

    /// The last lines.
    pub fn tail(&self) -> String {
        let lines: Vec<&str> = self.tail.iter().map(String::as_str).collect();
        lines.join("\n")
    }
}
