//! Revisions in JSON. Pure.
//!
//! They are strings of digits: a revision is `term << 40 | sequence`, and from term 8,192 on it is
//! above 2^53, where JavaScript and others that keep numbers as 64-bit floats would round it and
//! fail with every condition. What a client sends may be a number below 2^53, which nobody rounds;
//! one from there on may have been rounded already, and is refused.
//!
//! All other numbers in JSON stay below: terms, indices of the log, counts, bytes and times. Ids of
//! messages, which may be any u64, are keys, and keys are strings.

use std::fmt;

use serde::de::{Error, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::ids::Revision;

/// The first whole number that a 64-bit float may stand for although another one was meant.
const NUMBER_END: u64 = 1 << 53;

/// A revision, or 0 for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RevisionJson(pub u64);

impl RevisionJson {
    /// This one.
    pub fn of(revision: Revision) -> RevisionJson {
        RevisionJson(revision.as_u64())
    }

    /// This one, or 0 for none.
    pub fn of_any(revision: Option<Revision>) -> RevisionJson {
        RevisionJson(revision.map_or(0, Revision::as_u64))
    }

    /// `None` for 0.
    pub fn revision(self) -> Option<Revision> {
        (self.0 != 0).then(|| Revision::from_u64(self.0))
    }
}

impl Serialize for RevisionJson {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for RevisionJson {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<RevisionJson, D::Error> {
        struct Text;

        impl Visitor<'_> for Text {
            type Value = RevisionJson;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a revision as a string of digits, or as a number below 2^53")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<RevisionJson, E> {
                let is_digits = text.bytes().all(|byte| byte.is_ascii_digit());
                match text.parse() {
                    Ok(number) if is_digits => Ok(RevisionJson(number)),
                    Ok(_) | Err(_) => Err(E::invalid_value(Unexpected::Str(text), &self)),
                }
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<RevisionJson, E> {
                match number {
                    ..NUMBER_END => Ok(RevisionJson(number)),
                    _ => Err(E::invalid_value(Unexpected::Unsigned(number), &self)),
                }
            }
        }
        deserializer.deserialize_any(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<u64, String> {
        let read: Result<RevisionJson, _> = serde_json::from_str(text);
        read.map(|read| read.0).map_err(|error| error.to_string())
    }

    #[test]
    fn revisions_are_strings_and_small_numbers_are_read() {
        for (text, number) in [
            (r#""0""#, 0),
            ("0", 0),
            ("9007199254740991", (1 << 53) - 1),
            (r#""9007199254740993""#, (1 << 53) + 1),
            (r#""18446744073709551615""#, u64::MAX),
        ] {
            assert_eq!(read(text), Ok(number), "{text}");
            let written = serde_json::to_string(&RevisionJson(number)).expect("text");
            assert_eq!(written, format!("\"{number}\""));
        }
        for text in [
            "9007199254740992",
            "18446744073709551615",
            "18446744073709551616",
            "1.5",
            "1e3",
            "-1",
            "null",
            r#""""#,
            r#""+1""#,
            r#""-1""#,
            r#""1 ""#,
            r#""18446744073709551616""#,
        ] {
            let error = read(text).expect_err(text);
            assert!(error.contains("a string of digits"), "{text}: {error}");
        }
    }
}
