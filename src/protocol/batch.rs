//! Batches as JSON, the same for all client protocols: bytes to a [`Transaction`], and its replies
//! to bytes. Pure.
//!
//! ```json
//! {"atomic": true, "operations": [
//!   {"type": "set", "key": "k", "value": "v", "ttl": "30s", "if_revision": "0"},
//!   {"type": "set", "key": "b", "value": "/w==", "encoding": "base64"},
//!   {"type": "get", "key": "k"},
//!   {"type": "delete", "key": "k", "if_revision": "1099511627777"}]}
//! ```
//!
//! `if_revision` 0 demands that there is no such message. Revisions are strings, see
//! [`super::json`]. The results stand in the order of their operations:
//!
//! ```json
//! {"results": [
//!   {"status": "ok", "revision": "1099511627778"},
//!   {"status": "failed", "error": "the condition does not hold", "revision": "1099511627777"},
//!   {"status": "ok", "value": "v", "revision": "1099511627778"},
//!   {"status": "not_found"}]}
//! ```
//!
//! Unknown and repeated names are refused: a misspelt `if_revision` would be a write without it.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::json::RevisionJson;
use super::reply::Reply;
use super::request::{
    BATCH_BYTES_MAX, BATCH_REQUESTS_MAX, Condition, SetOptions, Step, TTL_MS_MAX, Transaction,
    Write,
};
use crate::config::units;
use crate::error::Outcome;
use crate::ids::{Key, Token};

/// What a failed condition is called in a result.
const MISMATCH: &str = "the condition does not hold";

/// What JSON adds to a message beside its bytes: key, names, quotes.
const OPERATION_BYTES: usize = 1024;

/// The longest JSON with one payload, in bytes: base64 makes of it 4 bytes for 3, and most text
/// needs few escapes. What needs more than twice its length is stored as plain bytes.
pub fn value_bytes_max(payload_bytes_max: usize) -> usize {
    payload_bytes_max
        .saturating_mul(2)
        .saturating_add(OPERATION_BYTES)
}

/// The longest batch, in bytes of JSON.
pub fn json_bytes_max(payload_bytes_max: usize) -> usize {
    let payloads = payload_bytes_max.max(BATCH_BYTES_MAX);
    payloads
        .saturating_mul(2)
        .saturating_add(BATCH_REQUESTS_MAX * OPERATION_BYTES)
}

/// Why something is no batch, or no time to live, or no encoded value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidBatch {
    /// It is not as above; what is wrong.
    #[error("{0}")]
    Malformed(String),
    /// It, or a message in it, is larger than may be; which limit that is.
    #[error("{0}")]
    TooLarge(String),
}

/// An object, and not an array of its values, which serde reads too.
struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Object<T>, D::Error> {
        struct Map<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Map<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }
        deserializer.deserialize_map(Map(PhantomData))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BatchJson<'a> {
    #[serde(borrow)]
    operations: Vec<Object<OperationJson<'a>>>,
    #[serde(default)]
    atomic: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OperationJson<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    key: Cow<'a, str>,
    #[serde(borrow, default, deserialize_with = "given")]
    value: Option<Cow<'a, str>>,
    #[serde(borrow, default, deserialize_with = "given")]
    encoding: Option<Cow<'a, str>>,
    #[serde(borrow, default, deserialize_with = "given")]
    ttl: Option<Cow<'a, str>>,
    #[serde(default, deserialize_with = "given")]
    if_revision: Option<RevisionJson>,
}

/// What may be left out, and is not `null`: that would be a condition, and none.
fn given<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    T::deserialize(deserializer).map(Some)
}

/// JSON that is longer than `limit`.
pub fn too_long(limit: usize) -> InvalidBatch {
    InvalidBatch::TooLarge(format!("batch too large (limit {limit} bytes)"))
}

/// Reads a batch; no message in it may be longer than `payload_bytes_max`.
pub fn parse(
    bytes: &[u8],
    token: Option<Token>,
    payload_bytes_max: usize,
) -> Result<Transaction, InvalidBatch> {
    let Object(batch): Object<BatchJson<'_>> = serde_json::from_slice(bytes).map_err(not_json)?;
    let count = batch.operations.len();
    if count == 0 || count > BATCH_REQUESTS_MAX {
        let reason = format!("a batch has 1 to {BATCH_REQUESTS_MAX} operations");
        return Err(InvalidBatch::Malformed(reason));
    }
    let mut steps = Vec::with_capacity(count);
    let mut bytes = 0;
    for (position, Object(operation)) in batch.operations.into_iter().enumerate() {
        let step = operation.step(payload_bytes_max).map_err(|error| {
            let at = |reason| format!("operation {position}: {reason}");
            match error {
                InvalidBatch::Malformed(reason) => InvalidBatch::Malformed(at(reason)),
                InvalidBatch::TooLarge(reason) => InvalidBatch::TooLarge(at(reason)),
            }
        })?;
        bytes += step.payload_len();
        steps.push(step);
    }
    if bytes > BATCH_BYTES_MAX && count > 1 {
        let reason = format!("a batch holds at most {BATCH_BYTES_MAX} bytes, or one message");
        return Err(InvalidBatch::TooLarge(reason));
    }
    Ok(Transaction {
        steps,
        is_atomic: batch.atomic,
        token,
    })
}

/// What serde says of JSON that is not as it should be.
fn not_json(error: serde_json::Error) -> InvalidBatch {
    InvalidBatch::Malformed(error.to_string())
}

fn malformed<T>(reason: &str) -> Result<T, InvalidBatch> {
    Err(InvalidBatch::Malformed(reason.to_owned()))
}

impl OperationJson<'_> {
    fn step(self, payload_bytes_max: usize) -> Result<Step, InvalidBatch> {
        let key = match Key::parse(self.key.as_bytes()) {
            Ok(key) => key,
            Err(error) => return malformed(&error.to_string()),
        };
        let condition = self.if_revision.map(|json| match json.revision() {
            None => Condition::Absent,
            Some(revision) => Condition::Revision(revision),
        });
        let is_set = self.kind == "set";
        if !is_set && (self.value.is_some() || self.encoding.is_some() || self.ttl.is_some()) {
            return malformed("value, encoding and ttl belong to set");
        }
        Ok(match &*self.kind {
            "set" => {
                let Some(value) = self.value else {
                    return malformed("a set has a value");
                };
                let payload = decode_value(value, self.encoding.as_deref(), payload_bytes_max)?;
                let ttl_ms = self.ttl.as_deref().map(parse_ttl).transpose()?;
                Step::Write(Write::Set {
                    key,
                    payload,
                    options: SetOptions {
                        token: None,
                        condition,
                        ttl_ms,
                    },
                })
            }
            "delete" => Step::Write(Write::Delete {
                key,
                token: None,
                condition,
            }),
            "get" if condition.is_some() => return malformed("a get has no if_revision"),
            "get" => Step::Get(key),
            _ => return malformed("type is set, get or delete"),
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ValueJson<'a> {
    #[serde(borrow)]
    value: Cow<'a, str>,
    #[serde(borrow, default, deserialize_with = "given")]
    encoding: Option<Cow<'a, str>>,
}

/// Reads `{"value":"…"}`, with `"encoding":"base64"` where it is not text.
pub fn parse_value(bytes: &[u8], payload_bytes_max: usize) -> Result<Bytes, InvalidBatch> {
    let Object(json): Object<ValueJson<'_>> = serde_json::from_slice(bytes).map_err(not_json)?;
    decode_value(json.value, json.encoding.as_deref(), payload_bytes_max)
}

fn decode_value(
    value: Cow<'_, str>,
    encoding: Option<&str>,
    payload_bytes_max: usize,
) -> Result<Bytes, InvalidBatch> {
    let payload = match encoding {
        None => value.into_owned().into_bytes(),
        Some("base64") => match STANDARD.decode(value.as_bytes()) {
            Ok(payload) => payload,
            Err(error) => return malformed(&format!("the value is not base64: {error}")),
        },
        Some(_) => return malformed("encoding is base64, or not there"),
    };
    if payload.len() > payload_bytes_max {
        let reason = format!("a message has at most {payload_bytes_max} bytes");
        return Err(InvalidBatch::TooLarge(reason));
    }
    Ok(payload.into())
}

/// Reads a time to live such as `30s`, in milliseconds.
pub fn parse_ttl(text: &str) -> Result<u64, InvalidBatch> {
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    match units::parse_time(text).map(ms) {
        Some(ms @ 1..=TTL_MS_MAX) => Ok(ms),
        _ => malformed("ttl is a time such as 30s, 5min or 24h, from 1ms to 100 years"),
    }
}

/// A payload as text of JSON, and its encoding if it is not text itself.
pub fn encode_value(payload: &[u8]) -> (Cow<'_, str>, Option<&'static str>) {
    match std::str::from_utf8(payload) {
        Ok(text) => (text.into(), None),
        Err(_) => (STANDARD.encode(payload).into(), Some("base64")),
    }
}

/// What a payload takes while it is written as JSON: itself, and six bytes (`\u0001`) for each of
/// its bytes at most. Base64 takes less: its text and that text again.
pub const JSON_GROWTH: usize = 7;

#[derive(Default, Serialize)]
struct ResultJson<'a> {
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    encoding: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    revision: Option<RevisionJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<&'static str>,
}

impl<'a> ResultJson<'a> {
    fn of(reply: &'a Reply) -> ResultJson<'a> {
        let ok = ResultJson {
            status: "ok",
            ..ResultJson::default()
        };
        let failed = |error: String| ResultJson {
            status: "failed",
            error: Some(error),
            ..ResultJson::default()
        };
        match reply {
            Reply::Stored { revision, .. } => ResultJson {
                revision: Some(RevisionJson::of(*revision)),
                ..ok
            },
            Reply::Value { revision, payload } => {
                let (value, encoding) = encode_value(payload);
                ResultJson {
                    value: Some(value),
                    encoding,
                    revision: Some(RevisionJson::of(*revision)),
                    ..ok
                }
            }
            Reply::NotFound => ResultJson {
                status: "not_found",
                ..ResultJson::default()
            },
            Reply::Mismatch { revision } => ResultJson {
                revision: Some(RevisionJson::of_any(*revision)),
                ..failed(MISMATCH.to_owned())
            },
            Reply::Failed(failure) => ResultJson {
                outcome: (failure.outcome() == Outcome::Unknown).then_some("unknown"),
                ..failed(failure.to_string())
            },
            Reply::Deleted
            | Reply::ExpirySet
            | Reply::TimeToLive { .. }
            | Reply::Transaction(_)
            | Reply::Keys(_)
            | Reply::BulkStored { .. }
            | Reply::Location { .. }
            | Reply::Count(_)
            | Reply::Status(_)
            | Reply::Group(_)
            | Reply::GroupChanged => ok,
        }
    }
}

/// The array of results.
pub struct Results<'a>(pub &'a [Reply]);

impl Serialize for Results<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(ResultJson::of))
    }
}

/// Writes `{"results":[…]}`.
pub fn write(replies: &[Reply]) -> Vec<u8> {
    #[derive(Serialize)]
    struct Answer<'a> {
        results: Results<'a>,
    }
    let results = Results(replies);
    serde_json::to_vec(&Answer { results }).expect("text is written to memory")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Failure;
    use crate::ids::Revision;

    fn read(text: &str) -> Result<Transaction, InvalidBatch> {
        parse(text.as_bytes(), None, 100)
    }

    fn word(text: &str) -> Key {
        Key::parse(text.as_bytes()).expect("a key")
    }

    #[test]
    fn a_batch_is_read_as_documented() {
        let text = r#"{"atomic": true, "operations": [
            {"type": "set", "key": "k", "value": "v\n", "ttl": "30s", "if_revision": 0},
            {"type": "set", "key": "10", "value": "/w==", "encoding": "base64"},
            {"type": "get", "key": "k"},
            {"type": "delete", "key": "k", "if_revision": "7"}]}"#;
        let set = |key, payload: &'static [u8], condition, ttl_ms| {
            Step::Write(Write::Set {
                key,
                payload: Bytes::from_static(payload),
                options: SetOptions {
                    token: None,
                    condition,
                    ttl_ms,
                },
            })
        };
        let seven = Condition::Revision(Revision::from_u64(7));
        let expected = Transaction {
            steps: vec![
                set(word("k"), b"v\n", Some(Condition::Absent), Some(30_000)),
                set(Key::Id(10), b"\xff", None, None),
                Step::Get(word("k")),
                Step::Write(Write::Delete {
                    key: word("k"),
                    token: None,
                    condition: Some(seven),
                }),
            ],
            is_atomic: true,
            token: None,
        };
        assert_eq!(read(text), Ok(expected));
    }

    #[test]
    fn what_is_no_batch_is_refused_with_its_place() {
        let operation =
            |text: &str| format!(r#"{{"operations":[{{"type":"get","key":"k"}},{text}]}}"#);
        for (text, reason) in [
            (String::new(), "EOF"),
            ("[]".into(), "expected an object"),
            (
                r#"[[{"type":"get","key":"k"}]]"#.into(),
                "expected an object",
            ),
            (operation(r#"["get","k"]"#), "expected an object"),
            (r#"{"operations":[]}"#.into(), "1 to 4096"),
            (r#"{"operations":[],"atomc":true}"#.into(), "unknown field"),
            (
                operation(r#"{"type":"put","key":"k"}"#),
                "operation 1: type is",
            ),
            (
                operation(r#"{"type":"get","key":"a b"}"#),
                "operation 1: key must",
            ),
            (
                operation(r#"{"type":"get","key":"k","if_revision":1}"#),
                "no if_revision",
            ),
            (
                operation(r#"{"type":"get","key":"k","value":""}"#),
                "belong to set",
            ),
            (
                operation(r#"{"type":"set","key":"k"}"#),
                "a set has a value",
            ),
            (
                operation(r#"{"type":"set","key":"k","value":"","ttl":"0s"}"#),
                "ttl is",
            ),
            (
                operation(r#"{"type":"set","key":"k","value":"!","encoding":"base64"}"#),
                "base64",
            ),
            (
                operation(r#"{"type":"set","key":"k","value":"","encoding":"x"}"#),
                "encoding is",
            ),
            (
                operation(r#"{"type":"set","key":"k","key":"l","value":""}"#),
                "duplicate field",
            ),
            (
                operation(r#"{"type":"delete","key":"k","if_revision":null}"#),
                "invalid type: null",
            ),
            (
                operation(r#"{"type":"set","key":"k","value":"","if_revison":1}"#),
                "unknown field",
            ),
            (
                operation(r#"{"type":"delete","key":"k","if_revision":9007199254740992}"#),
                "a string of digits",
            ),
            (
                operation(r#"{"type":"set","key":"k","value":"","if_revision":-1}"#),
                "below 2^53",
            ),
        ] {
            let Err(InvalidBatch::Malformed(error)) = read(&text) else {
                panic!("{text} was read");
            };
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn the_limits_of_a_batch_are_kept() {
        let set = |length: usize| {
            let value = "x".repeat(length);
            format!(r#"{{"type":"set","key":"k","value":"{value}"}}"#)
        };
        let parse = |operations: Vec<String>, max| {
            let text = format!(r#"{{"operations":[{}]}}"#, operations.join(","));
            super::parse(text.as_bytes(), None, max)
        };
        assert!(parse(vec![set(100)], 100).is_ok());
        let too_large = |result| matches!(result, Err(InvalidBatch::TooLarge(_)));
        assert!(too_large(parse(vec![set(101)], 100)));
        let half = BATCH_BYTES_MAX / 2;
        assert!(parse(vec![set(half), set(half)], BATCH_BYTES_MAX * 2).is_ok());
        assert!(too_large(parse(
            vec![set(half), set(half + 1)],
            BATCH_BYTES_MAX * 2
        )));
        assert!(parse(vec![set(2 * half + 1)], BATCH_BYTES_MAX * 2).is_ok());
        assert!(parse(vec![set(0); BATCH_REQUESTS_MAX], 100).is_ok());
        assert!(parse(vec![set(0); BATCH_REQUESTS_MAX + 1], 100).is_err());
    }

    #[test]
    fn results_are_written_as_documented() {
        let revision = Revision::from_u64(7);
        let replies = [
            Reply::Stored {
                revision,
                created: true,
            },
            Reply::Value {
                revision,
                payload: Bytes::from_static(b"\"\n"),
            },
            Reply::Value {
                revision,
                payload: Bytes::from_static(b"\xff"),
            },
            Reply::Deleted,
            Reply::NotFound,
            Reply::Mismatch { revision: None },
            Reply::Failed(Failure::WriteTimedOut),
        ];
        let text = String::from_utf8(write(&replies)).expect("text");
        assert_eq!(
            text,
            concat!(
                r#"{"results":[{"status":"ok","revision":"7"},"#,
                r#"{"status":"ok","value":"\"\n","revision":"7"},"#,
                r#"{"status":"ok","value":"/w==","encoding":"base64","revision":"7"},"#,
                r#"{"status":"ok"},{"status":"not_found"},"#,
                r#"{"status":"failed","revision":"0","error":"the condition does not hold"},"#,
                r#"{"status":"failed","error":"timed out, the write may or may not "#,
                r#"have happened","outcome":"unknown"}]}"#,
            )
        );
    }

    #[test]
    fn times_to_live_have_units_and_limits() {
        for (text, ms) in [("30s", 30_000), ("1ms", 1), ("876000h", TTL_MS_MAX)] {
            assert_eq!(parse_ttl(text), Ok(ms), "{text}");
        }
        for text in [
            "",
            "30",
            "0s",
            "999us",
            "876001h",
            "-1s",
            "99999999999999999h",
        ] {
            assert!(parse_ttl(text).is_err(), "{text}");
        }
    }
}
