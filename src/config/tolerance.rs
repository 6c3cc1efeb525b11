//! The file `tolerance.conf`: one line `TOLERANCE=n`, as the original has it.
//!
//! Empty lines and lines that begin with `#` are skipped. Read by a new group and on SIGHUP; the
//! replicated setting rules (DESIGN.md §1).

use std::path::Path;

use crate::ids::{TOLERANCE_MAX, TOLERANCE_MIN};

/// The tolerance of a cluster that was not told another.
pub const TOLERANCE_DEFAULT: u8 = 2;

/// Reads the tolerance; the error names the file and what it accepts.
pub fn read(path: &Path) -> Result<u8, String> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| format!("{}: cannot be read: {error}", path.display()))?;
    parse(&text).map_err(|what| {
        format!(
            "{}: {what}; accepted: TOLERANCE=n, n from {TOLERANCE_MIN} to {TOLERANCE_MAX}",
            path.display()
        )
    })
}

/// The text of such a file.
pub fn render(tolerance: u8) -> String {
    format!(
        "# How many members hold each message; losing one less than this is survived.\n\
         # Read when a cluster is new. To change it later, change it here and send SIGHUP to the\n\
         # active leader.\n\
         TOLERANCE={tolerance}\n"
    )
}

fn parse(text: &str) -> Result<u8, String> {
    let mut found = None;
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let value = line
            .split_once('=')
            .filter(|(key, _)| key.trim() == "TOLERANCE");
        let Some((_, value)) = value else {
            return Err(format!("unknown line {line:?}"));
        };
        let number = value.trim().parse().ok();
        let in_range = number.filter(|n| (TOLERANCE_MIN..=TOLERANCE_MAX).contains(n));
        let Some(number) = in_range else {
            return Err(format!("TOLERANCE is {:?}", value.trim()));
        };
        if found.replace(number).is_some() {
            return Err("TOLERANCE stands there twice".to_owned());
        }
    }
    found.ok_or_else(|| "no TOLERANCE".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tolerance_is_read_as_it_was_written() {
        for tolerance in TOLERANCE_MIN..=TOLERANCE_MAX {
            assert_eq!(parse(&render(tolerance)), Ok(tolerance));
        }
        assert_eq!(parse("\n# x\r\n TOLERANCE = 3 \r\n"), Ok(3));
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "TOLERANCE=0",
            "TOLERANCE=8",
            "TOLERANCE=",
            "tolerance=2",
            "x",
            "2",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(parse("TOLERANCE=2\nTOLERANCE=2").is_err());
    }
}
