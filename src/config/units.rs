//! Sizes and times as people write them: `64MiB`, `250ms`. Pure.
//!
//! A size is a whole number and one of `B`, `KiB`, `MiB`, `GiB`; a bare number counts bytes. A time
//! is a whole number and one of `us`, `ms`, `s`, `min`, `h`; a bare number is refused, because a
//! reader cannot see its unit. A blank may stand before the unit. Fractions are refused: every
//! value has one spelling in the smaller unit.

use std::time::Duration;

/// Units of size and their factors, the largest first, so that [`show_bytes`] finds the best.
const SIZES: [(&str, u64); 4] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

/// Units of time and their length in microseconds, the largest first.
const TIMES: [(&str, u64); 5] = [
    ("h", 3_600_000_000),
    ("min", 60_000_000),
    ("s", 1_000_000),
    ("ms", 1_000),
    ("us", 1),
];

/// Parses a size in bytes; `None` if it is none, or does not fit.
pub fn parse_bytes(text: &str) -> Option<u64> {
    let (number, unit) = split(text)?;
    let factor = if unit.is_empty() {
        1
    } else {
        factor(&SIZES, unit)?
    };
    number.checked_mul(factor)
}

/// The size that a flag gives, above 0, or what is accepted.
pub fn flag_bytes(text: &str) -> Result<u64, String> {
    let bytes = parse_bytes(text).filter(|bytes| *bytes > 0);
    bytes.ok_or_else(|| "accepted: a size above 0 such as 2GiB".to_owned())
}

/// Parses a time; `None` if it is none, or does not fit.
pub fn parse_time(text: &str) -> Option<Duration> {
    let (number, unit) = split(text)?;
    Some(Duration::from_micros(
        number.checked_mul(factor(&TIMES, unit)?)?,
    ))
}

/// The shortest exact spelling of a size.
pub fn show_bytes(bytes: u64) -> String {
    show(&SIZES, bytes)
}

/// The shortest exact spelling of a time; what is less than a microsecond is left out.
pub fn show_time(time: Duration) -> String {
    show(&TIMES, u64::try_from(time.as_micros()).unwrap_or(u64::MAX))
}

fn show(units: &[(&str, u64)], value: u64) -> String {
    let exact = units
        .iter()
        .find(|(_, factor)| value != 0 && value.is_multiple_of(*factor));
    let (unit, factor) = exact.or(units.last()).expect("both tables have rows");
    format!("{}{unit}", value / factor)
}

fn split(text: &str) -> Option<(u64, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    Some((number.parse().ok()?, unit.strip_prefix(' ').unwrap_or(unit)))
}

fn factor(units: &[(&str, u64)], unit: &str) -> Option<u64> {
    units
        .iter()
        .find(|(name, _)| *name == unit)
        .map(|(_, factor)| *factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_read_as_written() {
        for (text, bytes) in [("64MiB", 64 << 20), ("1 KiB", 1024), ("7B", 7), ("0", 0)] {
            assert_eq!(parse_bytes(text), Some(bytes), "{text}");
        }
        for (text, micros) in [("250ms", 250_000), ("2s", 2_000_000), ("1 min", 60_000_000)] {
            assert_eq!(
                parse_time(text),
                Some(Duration::from_micros(micros)),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_no_size_or_time_is_refused() {
        for text in [
            "",
            "MiB",
            "-1",
            "1.5MiB",
            "1MB",
            "1mib",
            "18446744073709551615KiB",
            "1  KiB",
        ] {
            assert_eq!(parse_bytes(text), None, "{text}");
        }
        for text in ["", "250", "ms", "1d", "18446744073709551615h"] {
            assert_eq!(parse_time(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_shown_is_read_back() {
        for bytes in [0, 1, 1000, 1024, 64 << 20, u64::MAX] {
            assert_eq!(parse_bytes(&show_bytes(bytes)), Some(bytes));
        }
        for millis in [0, 1, 250, 2000, 3_600_000] {
            let time = Duration::from_millis(millis);
            assert_eq!(parse_time(&show_time(time)), Some(time));
        }
        assert_eq!(
            (show_bytes(64 << 20), show_time(Duration::from_secs(2))),
            ("64MiB".into(), "2s".into())
        );
    }
}
