//! Reads and writes that take effect in one entry of the log.
//!
//! They are sent as one JSON text, that of `POST /batch`, under `BATCH` in HaToKuSe. A single SET
//! with a time to live goes this way too.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

use super::connection::Reply;
use super::done::{self, Done, Message};
use super::error::ClientError;
use super::options::WriteOptions;
use super::request::Request;
use super::{Client, Condition, Key, Token, answer};
use crate::ids::Revision;
use crate::protocol::batch::encode_value;
use crate::protocol::json::RevisionJson;
use crate::protocol::request::TTL_MS_MAX;

/// Collects operations, which [`Batch::run`] does. See [`Client::batch`].
#[must_use = "nothing is sent before `run`"]
pub struct Batch<'a> {
    client: &'a Client,
    operations: Vec<Value>,
    kinds: Vec<Kind>,
    is_atomic: bool,
    token: Option<Token>,
    /// Why the first that cannot be sent cannot.
    refused: Option<ClientError>,
}

/// What an operation asks for, by which its result is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Set,
    Get,
    Delete,
}

impl<'a> Batch<'a> {
    pub(super) fn new(client: &'a Client) -> Batch<'a> {
        Batch {
            client,
            operations: Vec::new(),
            kinds: Vec::new(),
            is_atomic: false,
            token: None,
            refused: None,
        }
    }

    /// All operations take effect or none: none if a condition does not hold.
    pub fn atomic(&mut self) -> &mut Self {
        self.is_atomic = true;
        self
    }

    /// A token of the program's own for the whole batch, as [`WriteOptions::token`].
    pub fn once(&mut self, token: Token) -> &mut Self {
        self.token = Some(token);
        self
    }

    /// Stores a message.
    pub fn set(&mut self, key: &Key, payload: &[u8]) -> &mut Self {
        self.set_with(key, payload, &WriteOptions::default())
    }

    /// The same with options: no token, and a condition other than [`Condition::Exists`].
    pub fn set_with(&mut self, key: &Key, payload: &[u8], options: &WriteOptions) -> &mut Self {
        let operation = untokened(options).and_then(|()| set(key, payload, options));
        self.push(operation, Kind::Set)
    }

    /// Reads a message, as the operations before this one leave it.
    pub fn get(&mut self, key: &Key) -> &mut Self {
        let operation = json!({"type": "get", "key": key.to_string()});
        self.push(Ok(operation), Kind::Get)
    }

    /// Deletes a message.
    pub fn delete(&mut self, key: &Key) -> &mut Self {
        self.delete_with(key, &WriteOptions::default())
    }

    /// The same with options, as [`Batch::set_with`], and no time to live.
    pub fn delete_with(&mut self, key: &Key, options: &WriteOptions) -> &mut Self {
        let mut operation = json!({"type": "delete", "key": key.to_string()});
        let made = untokened(options)
            .and_then(|()| options.without_ttl())
            .and_then(|()| demand(options.condition))
            .map(|demand| {
                if let Some(revision) = demand {
                    operation["if_revision"] = revision.into();
                }
                operation
            });
        self.push(made, Kind::Delete)
    }

    /// Does the operations; gives what came of each, in their order. It is empty then and can be
    /// used again.
    ///
    /// # Errors
    /// As [`Client::set_if`]; then it is the outcome of all of them.
    pub fn run(&mut self) -> Result<Vec<Result<Done, ClientError>>, ClientError> {
        let batch = std::mem::replace(self, Batch::new(self.client));
        if let Some(refused) = batch.refused {
            return Err(refused);
        }
        let token = batch.token.or_else(|| batch.client.fresh_token());
        let request = request(&batch.operations, batch.is_atomic, token.as_ref());
        results(batch.client.call(&request)?, &batch.kinds)
    }

    fn push(&mut self, operation: Result<Value, ClientError>, kind: Kind) -> &mut Self {
        match operation {
            Ok(operation) => {
                self.operations.push(operation);
                self.kinds.push(kind);
            }
            Err(error) => _ = self.refused.get_or_insert(error),
        }
        self
    }
}

/// A SET alone, with a time to live.
pub(super) fn single_set(
    key: &Key,
    payload: &[u8],
    options: &WriteOptions,
) -> Result<Request, ClientError> {
    let operation = set(key, payload, options)?;
    Ok(request(&[operation], false, options.token.as_ref()))
}

/// What came of it.
pub(super) fn single_stored(reply: Reply) -> Result<Revision, ClientError> {
    match results(reply, &[Kind::Set])?.pop() {
        Some(Ok(Done::Stored(revision))) => Ok(revision),
        Some(Err(error)) => Err(error),
        Some(Ok(_)) | None => unreachable!("a result of its kind for each operation"),
    }
}

fn request(operations: &[Value], is_atomic: bool, token: Option<&Token>) -> Request {
    let batch = json!({"operations": operations, "atomic": is_atomic});
    Request::batch(batch.to_string().as_bytes(), token)
}

fn set(key: &Key, payload: &[u8], options: &WriteOptions) -> Result<Value, ClientError> {
    let mut operation = json!({"type": "set", "key": key.to_string()});
    let (value, encoding) = encode_value(payload);
    operation["value"] = value.into();
    if let Some(encoding) = encoding {
        operation["encoding"] = encoding.into();
    }
    if let Some(ttl) = options.ttl {
        operation["ttl"] = format!("{}ms", milliseconds(ttl)?).into();
    }
    if let Some(revision) = demand(options.condition)? {
        operation["if_revision"] = revision.into();
    }
    Ok(operation)
}

/// Rounded up.
fn milliseconds(time: Duration) -> Result<u64, ClientError> {
    let whole = u64::try_from(time.as_nanos().div_ceil(1_000_000));
    match whole {
        Ok(whole @ 1..=TTL_MS_MAX) => Ok(whole),
        Ok(_) | Err(_) => Err(done::no_time_to_live(time)),
    }
}

/// A condition as `if_revision`.
fn demand(condition: Option<Condition>) -> Result<Option<String>, ClientError> {
    match condition {
        None => Ok(None),
        Some(Condition::Absent) => Ok(Some("0".to_owned())),
        Some(Condition::Revision(revision)) => Ok(Some(revision.to_string())),
        Some(Condition::Exists) => Err(ClientError::invalid(
            "in a batch, and with a time to live, accepted: a revision, or no such message",
        )),
    }
}

fn untokened(options: &WriteOptions) -> Result<(), ClientError> {
    match options.token {
        None => Ok(()),
        Some(_) => Err(ClientError::invalid("a token belongs to the whole batch")),
    }
}

#[derive(Deserialize)]
struct ResultsJson {
    results: Vec<ResultJson>,
}

#[derive(Deserialize)]
struct ResultJson {
    status: String,
    value: Option<String>,
    encoding: Option<String>,
    revision: Option<RevisionJson>,
    error: Option<String>,
    outcome: Option<String>,
}

/// What came of each operation of these kinds.
pub(super) fn results(
    reply: Reply,
    kinds: &[Kind],
) -> Result<Vec<Result<Done, ClientError>>, ClientError> {
    let reply = reply.done()?;
    let Ok(ResultsJson { results }) = serde_json::from_slice(&reply.rest) else {
        return Err(done::unknown(&reply.line));
    };
    if results.len() != kinds.len() {
        return Err(done::unknown(&reply.line));
    }
    let results = results.into_iter().zip(kinds);
    let read = results.map(|(result, kind)| match result.read(*kind) {
        Some(result) => result,
        None => Err(done::unknown(&reply.rest)),
    });
    Ok(read.collect())
}

impl ResultJson {
    /// `None` if it is none of this kind.
    fn read(self, kind: Kind) -> Option<Result<Done, ClientError>> {
        Some(Ok(match (kind, self.status.as_str()) {
            (_, "failed") => return Some(Err(self.failed())),
            (Kind::Set, "ok") => Done::Stored(self.revision?.revision()?),
            (Kind::Get, "ok") => {
                let (revision, value) = (self.revision?.revision()?, self.value?);
                let payload = match self.encoding.as_deref() {
                    None => value.into_bytes(),
                    Some("base64") => STANDARD.decode(value).ok()?,
                    Some(_) => return None,
                };
                Done::Read(Some(Message { revision, payload }))
            }
            (Kind::Get, "not_found") => Done::Read(None),
            (Kind::Delete, "ok") => Done::Deleted(true),
            (Kind::Delete, "not_found") => Done::Deleted(false),
            _ => return None,
        }))
    }

    fn failed(self) -> ClientError {
        if let Some(revision) = self.revision {
            let revision = revision.revision();
            return ClientError::Mismatch { revision };
        }
        let reason = self.error.unwrap_or_default();
        if self.outcome.as_deref() == Some("unknown") {
            return ClientError::Unknown { reason };
        }
        let line = format!("ERROR: {reason}");
        answer::error_of(line.as_bytes()).expect("it begins with ERROR")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Form;

    fn reply(json: &str) -> Reply {
        Reply {
            line: format!("BATCH {}", json.len()).into_bytes(),
            rest: json.as_bytes().to_vec(),
            form: Form::Batch,
        }
    }

    #[test]
    fn each_result_is_read_as_its_operation_asked_for_it() {
        let json = r#"{"results":[
            {"status":"ok","revision":"7"},
            {"status":"ok","value":"v","revision":7},
            {"status":"ok","value":"/w==","encoding":"base64","revision":7},
            {"status":"not_found"},
            {"status":"ok"},
            {"status":"not_found"},
            {"status":"failed","error":"the condition does not hold","revision":"7"},
            {"status":"failed","error":"the condition does not hold","revision":0},
            {"status":"failed","error":"busy, try again"},
            {"status":"failed","error":"timed out","outcome":"unknown"},
            {"status":"ok"}]}"#;
        let (set, get, delete) = (Kind::Set, Kind::Get, Kind::Delete);
        let kinds = [set, get, get, get, delete, delete, set, set, set, set, set];
        let revision = Revision::from_u64(7);
        let message = |payload: &[u8]| Message {
            revision,
            payload: payload.to_vec(),
        };
        let reason = |reason: &str| reason.to_owned();
        let mut found = results(reply(json), &kinds).expect("results");
        // What is no result of its kind: it may have been done.
        let last = found.pop().expect("eleven").expect_err("no revision");
        assert!(matches!(last, ClientError::Unknown { .. }), "{last}");
        let expected = [
            Ok(Done::Stored(revision)),
            Ok(Done::Read(Some(message(b"v")))),
            Ok(Done::Read(Some(message(b"\xff")))),
            Ok(Done::Read(None)),
            Ok(Done::Deleted(true)),
            Ok(Done::Deleted(false)),
            Err(ClientError::Mismatch {
                revision: Some(revision),
            }),
            Err(ClientError::Mismatch { revision: None }),
            Err(ClientError::Unavailable {
                reason: reason("busy, try again"),
            }),
            Err(ClientError::Unknown {
                reason: reason("timed out"),
            }),
        ];
        assert_eq!(found, expected);
        for json in ["", "{}", r#"{"results":[]}"#] {
            let error = results(reply(json), &kinds).expect_err("no results");
            assert!(
                matches!(error, ClientError::Unknown { .. }),
                "{json}: {error}"
            );
        }
        let error = Reply {
            line: b"ERROR: busy, try again".to_vec(),
            ..Reply::default()
        };
        let error = results(error, &kinds).expect_err("refused");
        assert!(matches!(error, ClientError::Unavailable { .. }), "{error}");
    }

    #[test]
    fn a_batch_is_written_as_documented() {
        let client = Client::new(["h:1"]).expect("a client");
        let key = Key::parse(b"k").expect("a key");
        let mut options = WriteOptions::on(Condition::Absent);
        options.ttl = Some(Duration::from_micros(1_500_001));
        let mut batch = client.batch();
        batch.atomic().set_with(&key, b"v\n", &options).get(&key);
        batch.set(&Key::Id(7), b"\xff").delete_with(
            &key,
            &WriteOptions::on(Condition::Revision(Revision::from_u64(9))),
        );
        let request = request(&batch.operations, batch.is_atomic, None);
        let json = r#"{"atomic":true,"operations":["#.to_owned()
            + r#"{"if_revision":"0","key":"k","ttl":"1501ms","type":"set","value":"v\n"},"#
            + r#"{"key":"k","type":"get"},"#
            + r#"{"encoding":"base64","key":"7","type":"set","value":"/w=="},"#
            + r#"{"if_revision":"9","key":"k","type":"delete"}]}"#;
        let expected = format!("BATCH {}\r\n{json}\r\n", json.len());
        assert_eq!(String::from_utf8_lossy(&request.bytes), expected);
        assert_eq!((request.is_write, request.is_repeatable), (true, false));
    }

    #[test]
    fn what_a_batch_cannot_do_is_refused_before_anything_is_sent() {
        let client = Client::new(["h:1"]).expect("a client");
        let key = Key::Id(7);
        let token = Token::parse(b"t").expect("a token");
        let lasting = |ttl| WriteOptions {
            ttl: Some(ttl),
            ..WriteOptions::default()
        };
        for options in [
            WriteOptions::on(Condition::Exists),
            WriteOptions::once(token),
            lasting(Duration::ZERO),
            lasting(Duration::MAX),
        ] {
            let mut batch = client.batch();
            let refused = batch.get(&key).set_with(&key, b"", &options).run();
            assert!(
                matches!(refused, Err(ClientError::Invalid { .. })),
                "{options:?}"
            );
        }
        let options = lasting(Duration::from_secs(1));
        let refused = client.batch().delete_with(&key, &options).run();
        assert!(matches!(refused, Err(ClientError::Invalid { .. })));
        let refused = client.delete_with(&key, options);
        assert!(matches!(refused, Err(ClientError::Invalid { .. })));
    }
}
