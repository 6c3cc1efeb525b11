//! The name of a file of the `files` engine, and what it says of the message in it. Pure.
//!
//! ```text
//! hello.1099511627777.11.1a2b3c4d
//! key   revision      |  CRC-32C of revision (little-endian), key and payload; 8 hex digits
//!                     length of the payload, in bytes
//! ```
//!
//! The key's bytes stand as they are if they are ASCII letters, digits, `-`, `_` or a `.` that is
//! not the first, else as `%` and two hex digits. A key that is longer than [`KEY_TEXT_MAX`] in
//! this form is cut there, a lone `%` marks the cut, and the whole key is in the *side file*
//! `REVISION.key` (see `disk::atomic_file`). What ends in `.tmp` is unfinished.

use std::fmt::Write;

use crate::ids::{Key, Revision};

/// The most of a key that stands in a name. With the other parts (41 bytes at most), the cut and
/// `.tmp` it stays below the 255 bytes that file systems allow.
pub const KEY_TEXT_MAX: usize = 200;

/// The end of the names of unfinished files.
pub const UNFINISHED: &str = ".tmp";

/// The end of the names of side files.
const SIDE: &str = ".key";

/// What a name says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileName {
    /// The record.
    pub revision: Revision,
    /// Its key; `None` if it is in the side file.
    pub key: Option<Key>,
    /// Length of the payload, in bytes.
    pub length: u32,
    /// Of revision, key and payload.
    pub checksum: u32,
}

/// The checksum in the name of a record's file.
pub fn checksum(revision: Revision, key: &Key, payload: &[u8]) -> u32 {
    let sum = crc32c::crc32c(&revision.as_u64().to_le_bytes());
    let sum = crc32c::crc32c_append(sum, &key.to_bytes());
    crc32c::crc32c_append(sum, payload)
}

/// The name of a record's file.
pub fn render(revision: Revision, key: &Key, length: u32, checksum: u32) -> String {
    let mut name = key_text(key);
    if name.len() > KEY_TEXT_MAX {
        let whole = name.get(..KEY_TEXT_MAX).unwrap_or(&name);
        // Not within an escape.
        let at = whole.rfind('%').filter(|at| at + 3 > KEY_TEXT_MAX);
        name.truncate(at.unwrap_or(KEY_TEXT_MAX));
        name.push('%');
    }
    write!(name, ".{revision}.{length}.{checksum:08x}").expect("a string takes all");
    name
}

/// Whether a key has a side file.
pub fn is_cut(key: &Key) -> bool {
    key.text_len() > KEY_TEXT_MAX / 3 && key_text(key).len() > KEY_TEXT_MAX
}

/// The name of a record's side file.
pub fn side_name(revision: Revision) -> String {
    format!("{revision}{SIDE}")
}

/// The revision whose side file has this name.
pub fn parse_side(name: &str) -> Option<Revision> {
    let number = name.strip_suffix(SIDE)?.parse().ok()?;
    let revision = Revision::from_u64(number);
    (side_name(revision) == name).then_some(revision)
}

/// What a name says; `None` if it is not one of ours.
pub fn parse(name: &str) -> Option<FileName> {
    let mut parts = name.rsplitn(4, '.');
    let checksum = u32::from_str_radix(parts.next()?, 16).ok()?;
    let length = parts.next()?.parse().ok()?;
    let revision = Revision::from_u64(parts.next()?.parse().ok()?);
    let text = parts.next()?;
    if text.ends_with('%') {
        let file = FileName {
            revision,
            key: None,
            length,
            checksum,
        };
        let ending = format!("%.{revision}.{length}.{checksum:08x}");
        return name.ends_with(&ending).then_some(file);
    }
    let key = parse_key(text)?;
    // One name for each record, or it could not be found again.
    if render(revision, &key, length, checksum) != name {
        return None;
    }
    Some(FileName {
        revision,
        key: Some(key),
        length,
        checksum,
    })
}

fn key_text(key: &Key) -> String {
    let bytes = key.to_bytes();
    let mut text = String::with_capacity(bytes.len() + 40);
    for (at, &byte) in bytes.iter().enumerate() {
        let is_plain =
            byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_') || (byte == b'.' && at > 0);
        if is_plain {
            text.push(char::from(byte));
        } else {
            write!(text, "%{byte:02X}").expect("a string takes all");
        }
    }
    text
}

fn parse_key(text: &str) -> Option<Key> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        if byte != b'%' {
            bytes.push(byte);
            rest = tail;
            continue;
        }
        let (digits, tail) = tail.split_at_checked(2)?;
        let digits = std::str::from_utf8(digits).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = tail;
    }
    Key::parse(&bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn revision() -> Revision {
        Revision::new(1, 1)
    }

    #[test]
    fn a_name_shows_its_key_and_is_never_special() {
        for (key, text) in [
            ("10", "10"),
            ("user.name-1_x", "user.name-1_x"),
            (".hidden", "%2Ehidden"),
            ("a/b", "a%2Fb"),
            ("50%", "50%25"),
            ("..", "%2E."),
            ("é", "%C3%A9"),
        ] {
            let key = Key::parse(key.as_bytes()).unwrap();
            let name = render(revision(), &key, 11, 0x1a);
            assert_eq!(name, format!("{text}.1099511627777.11.0000001a"));
            assert_eq!(parse(&name).unwrap().key, Some(key));
        }
    }

    #[test]
    fn what_is_not_a_name_is_none() {
        for name in [
            "",
            "x",
            "1.2.3",
            "a.1.1.0000001A",
            "a.01.1.0000001a",
            "a.1.1.1a",
            "%zz.1.1.0000001a",
            "a%41.1.1.0000001a",
            "%41.1.1.0000001a",
            ".1.1.0000001a",
            "a.1.+1.0000001a",
            "5.key",
        ] {
            assert_eq!(parse(name), None, "{name}");
        }
        assert_eq!(parse_side("5.key"), Some(Revision::from_u64(5)));
        for name in ["05.key", "x.key", "5.key.tmp", "key"] {
            assert_eq!(parse_side(name), None, "{name}");
        }
    }

    mod properties {
        use proptest::prelude::*;

        use super::*;

        proptest! {
            #[test]
            fn every_key_has_a_name_that_parses_back(
                text in "[^\\s\\p{C}]{1,128}",
                number in any::<u64>(),
                length in any::<u32>(),
                sum in any::<u32>(),
            ) {
                let Ok(key) = Key::parse(text.as_bytes()) else { return Ok(()) };
                let revision = Revision::from_u64(number);
                let name = render(revision, &key, length, sum);
                prop_assert!(name.len() + UNFINISHED.len() <= 255 && !name.contains('/'));
                let parsed = parse(&name).unwrap();
                prop_assert_eq!(parsed.key.is_none(), is_cut(&key));
                prop_assert!(parsed.key.is_none_or(|parsed| parsed == key));
                let others = (parsed.revision, parsed.length, parsed.checksum);
                prop_assert_eq!(others, (revision, length, sum));
            }
        }
    }
}
