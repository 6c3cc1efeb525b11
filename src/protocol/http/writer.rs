//! Replies to responses. Pure.
//!
//! Every response says its length, or has no body by its status, and carries Date. The last one of
//! a connection says `Connection: close`.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use serde::Serialize;

use super::fields::{EntityTag, Representation, Tags};
use super::node::{Check, Node, Probe};
use super::problem::{Kind, Problem};
use super::step::{End, Form, Reading, Step, Way};
use crate::error::{Failure, Outcome};
use crate::ids::Revision;
use crate::protocol::batch;
use crate::protocol::json::RevisionJson;
use crate::protocol::output::Output;
use crate::protocol::reply::{KeyPage, Reply};

const JSON: &str = "application/json";
const PROBLEM: &str = "application/problem+json";

/// Of every response that another Accept might have changed.
const VARY: &str = "Vary: Accept\r\n";

/// Writes one session's responses.
pub struct Writer {
    node: Arc<dyn Node>,
    output: Output,
    is_closed: bool,
}

#[derive(Serialize)]
struct StoredJson {
    key: String,
    revision: RevisionJson,
}

#[derive(Serialize)]
struct ValueJson<'a> {
    key: String,
    value: std::borrow::Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    encoding: Option<&'static str>,
    revision: RevisionJson,
}

#[derive(Serialize)]
struct KeysJson {
    keys: Vec<KeyJson>,
    next: Option<String>,
}

#[derive(Serialize)]
struct KeyJson {
    key: String,
    revision: RevisionJson,
    bytes: u64,
}

#[derive(Serialize)]
struct ProblemJson<'a> {
    r#type: String,
    title: &'static str,
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    revision: Option<RevisionJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    results: Option<batch::Results<'a>>,
}

#[derive(Serialize)]
struct HealthJson {
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    checks: Option<Vec<Check>>,
}

impl Writer {
    /// A writer on this node.
    pub fn new(node: Arc<dyn Node>) -> Writer {
        Writer {
            node,
            output: Output::default(),
            is_closed: false,
        }
    }

    /// What was written and is to be drained.
    pub fn output(&mut self) -> &mut Output {
        &mut self.output
    }

    /// Bytes to be drained.
    pub fn output_len(&self) -> usize {
        self.output.len()
    }

    /// Whether the last response was written.
    pub fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// Writes a problem that ends the connection.
    pub fn last_problem(&mut self, problem: Problem) {
        self.problem(&problem, None, Way::last(false), "");
    }

    /// Writes a step, with its reply if it was executed.
    pub fn step(&mut self, step: Step, reply: Option<Reply>) {
        let Step { form, way, target } = step;
        match (form, reply) {
            (Form::Problem(problem), _) => self.problem(&problem, None, way, &target),
            (Form::Continue, _) => self.text("HTTP/1.1 100 Continue\r\n\r\n"),
            (Form::Document(which), _) => {
                let document = self.node.document(which);
                self.begin(200);
                self.end(way, JSON, document.into());
            }
            (
                Form::Check {
                    probe,
                    is_verbose,
                    excluded,
                },
                _,
            ) => self.check(probe, is_verbose, &excluded, way),
            (_, Some(Reply::Failed(failure))) => {
                self.problem(&Problem::from(&failure), None, way, &target);
            }
            (_, Some(Reply::Mismatch { revision })) => {
                self.problem(&Problem::mismatch(revision), None, way, &target);
            }
            (Form::Stored(_), Some(Reply::NotFound)) => {
                self.problem(&Kind::TokenUsed.into(), None, way, &target);
            }
            (_, Some(Reply::NotFound)) => {
                self.problem(&Kind::NotFound.into(), None, way, &target);
            }
            (Form::Stored(key), Some(Reply::Stored { revision, created })) => {
                self.begin(if created { 201 } else { 200 });
                self.etag(EntityTag::of_bytes(revision));
                let json = StoredJson {
                    key: key.to_string(),
                    revision: RevisionJson::of(revision),
                };
                self.json(way, &json);
            }
            (Form::Deleted, Some(Reply::Deleted)) => {
                self.begin(204);
                self.end_without_body(way);
            }
            (Form::Value(reading), Some(Reply::Value { revision, payload })) => {
                self.value(&reading, revision, payload, way);
            }
            (Form::Keys, Some(Reply::Keys(page))) => self.keys(page, way),
            (Form::Transaction { is_atomic }, Some(Reply::Transaction(replies))) => {
                self.results(is_atomic, &replies, way, &target);
            }
            // The reply to what the token was used for first.
            (
                Form::Stored(_) | Form::Deleted,
                Some(Reply::Stored { .. } | Reply::Deleted | Reply::ExpirySet),
            ) => self.problem(&Kind::TokenUsed.into(), None, way, &target),
            (
                Form::Stored(_)
                | Form::Deleted
                | Form::Value(_)
                | Form::Keys
                | Form::Transaction { .. },
                _,
            ) => {
                let problem = Problem {
                    outcome: Outcome::Unknown,
                    ..Kind::Internal.into()
                };
                self.problem(&problem, None, way, &target);
            }
        }
    }

    fn value(&mut self, reading: &Reading, revision: Revision, payload: Bytes, way: Way) {
        let Reading { key, accept, .. } = reading;
        let Some(representation) = accept.choose(&payload) else {
            return self.problem(&Kind::NotAcceptable.into(), None, way, "");
        };
        let tag = EntityTag {
            revision,
            is_json: representation == Representation::Json,
        };
        let is_unwanted = |tags: &Tags| !tags.contain(tag);
        if reading.if_match.as_ref().is_some_and(is_unwanted) {
            let problem = Problem::mismatch(Some(revision));
            return self.problem_with(&problem, None, way, "", |writer| writer.text(VARY));
        }
        if let Some(tags) = &reading.if_none_match
            && tags.contain(tag)
        {
            self.begin(304);
            self.etag(tag);
            self.text(VARY);
            return self.end_without_body(way);
        }
        let content_type = match representation {
            Representation::Text => "text/plain; charset=utf-8",
            Representation::Binary => "application/octet-stream",
            Representation::Json => {
                let (value, encoding) = batch::encode_value(&payload);
                let json = ValueJson {
                    key: key.to_string(),
                    value,
                    encoding,
                    revision: RevisionJson::of(revision),
                };
                self.begin(200);
                self.etag(tag);
                self.text(VARY);
                return self.json(way, &json);
            }
        };
        let is_current = reading.if_range.is_none_or(|wanted| wanted == Some(tag));
        let range = reading.range.filter(|_| is_current);
        let length = payload.len();
        let part = match range.map(|range| range.within(length)) {
            None => None,
            Some(Some(part)) => Some(part),
            Some(None) => {
                let detail = format!("the message has {length} bytes");
                let problem = Problem::with(Kind::RangeNotSatisfiable, detail);
                return self.problem_with(&problem, None, way, "", |writer| {
                    writer.text(VARY);
                    writer.format(format_args!("Content-Range: bytes */{length}\r\n"));
                });
            }
        };
        self.begin(if part.is_some() { 206 } else { 200 });
        self.etag(tag);
        self.text(VARY);
        self.text("Accept-Ranges: bytes\r\nX-Content-Type-Options: nosniff\r\n");
        let body = match part {
            None => payload,
            Some(part) => {
                let (first, last) = (part.start, part.end - 1);
                self.format(format_args!(
                    "Content-Range: bytes {first}-{last}/{length}\r\n"
                ));
                payload.slice(part)
            }
        };
        self.end(way, content_type, body);
    }

    fn keys(&mut self, page: KeyPage, way: Way) {
        let last = page.keys.last().filter(|_| page.has_more);
        let next = last.map(|listed| listed.key.to_string());
        let keys = page.keys.into_iter().map(|listed| KeyJson {
            key: listed.key.to_string(),
            revision: RevisionJson::of(listed.revision),
            bytes: listed.bytes,
        });
        let json = KeysJson {
            keys: keys.collect(),
            next,
        };
        self.begin(200);
        self.json(way, &json);
    }

    fn results(&mut self, is_atomic: bool, replies: &[Reply], way: Way, target: &str) {
        let reason = if is_atomic { undone(replies) } else { None };
        match reason {
            None => {
                self.begin(200);
                self.end(way, JSON, batch::write(replies).into());
            }
            Some(problem) => self.problem(&problem, Some(replies), way, target),
        }
    }

    fn check(&mut self, probe: Probe, is_verbose: bool, excluded: &[String], way: Way) {
        let mut checks = self.node.checks();
        if let Some(name) = excluded
            .iter()
            .find(|name| !checks.iter().any(|check| check.name == **name))
        {
            let detail = format!("there is no check {name}");
            let problem = Problem::with(Kind::InvalidQuery, detail);
            return self.problem(&problem, None, way, "");
        }
        checks.retain(|check| {
            let is_meant = match probe {
                Probe::Live => check.is_vital,
                Probe::Health | Probe::Ready => true,
            };
            is_meant && !excluded.iter().any(|name| name == check.name)
        });
        let is_ok = checks.iter().all(|check| check.ok);
        if !is_verbose {
            checks.retain(|check| !check.ok);
        }
        let json = HealthJson {
            status: if is_ok { "ok" } else { "failed" },
            checks: (is_verbose || !is_ok).then_some(checks),
        };
        self.begin(if is_ok { 200 } else { 503 });
        if !is_ok {
            self.text("Retry-After: 1\r\n");
        }
        self.text("Cache-Control: no-store\r\n");
        self.json(way, &json);
    }

    fn problem(&mut self, problem: &Problem, results: Option<&[Reply]>, way: Way, target: &str) {
        self.problem_with(problem, results, way, target, |_| {});
    }

    /// A problem with more fields.
    fn problem_with(
        &mut self,
        problem: &Problem,
        results: Option<&[Reply]>,
        way: Way,
        target: &str,
        more: impl FnOnce(&mut Writer),
    ) {
        let leader = match problem.kind {
            Kind::NotLeader => self.node.leader(),
            _ => None,
        };
        if problem.kind == Kind::NotLeader && leader.is_none() {
            let detail = "another node serves, and where is not known yet";
            let problem = Problem::with(Kind::NoLeader, detail);
            return self.problem_with(&problem, results, way, target, more);
        }
        let kind = problem.kind;
        self.begin(kind.status());
        if let Some(leader) = leader {
            self.format(format_args!("Location: http://{leader}{target}\r\n"));
        }
        if let Some(allow) = problem.allow {
            self.format(format_args!("Allow: {allow}\r\n"));
        }
        if let Some(seconds) = problem.retry_after() {
            self.format(format_args!("Retry-After: {seconds}\r\n"));
        }
        if let Some(revision @ 1..) = problem.revision {
            self.etag(EntityTag::of_bytes(Revision::from_u64(revision)));
        }
        if kind == Kind::NotAcceptable {
            self.text(VARY);
        }
        more(self);
        let outcome = match problem.outcome {
            Outcome::Failed => "failed",
            Outcome::Unknown => "unknown",
        };
        let json = ProblemJson {
            r#type: format!("/problems/{}", kind.name()),
            title: kind.title(),
            status: kind.status(),
            detail: problem.detail.as_deref(),
            outcome: way.is_write.then_some(outcome),
            revision: problem.revision.map(RevisionJson),
            results: results.map(batch::Results),
        };
        let body = serde_json::to_vec(&json).expect("text is written to memory");
        self.end(way, PROBLEM, body.into());
    }

    fn begin(&mut self, status: u16) {
        let reason = reason(status);
        let date = UNIX_EPOCH + Duration::from_millis(self.node.wall_ms());
        let date = httpdate::HttpDate::from(date);
        self.format(format_args!(
            "HTTP/1.1 {status} {reason}\r\nDate: {date}\r\n"
        ));
    }

    fn etag(&mut self, tag: EntityTag) {
        self.format(format_args!("ETag: {tag}\r\n"));
    }

    fn json(&mut self, way: Way, value: &impl Serialize) {
        let body = serde_json::to_vec(value).expect("text is written to memory");
        self.end(way, JSON, body.into());
    }

    fn end(&mut self, way: Way, content_type: &str, body: Bytes) {
        let length = body.len();
        self.format(format_args!(
            "Content-Type: {content_type}\r\nContent-Length: {length}\r\n"
        ));
        self.end_without_body(way);
        if !way.is_head {
            self.output.push(body);
        }
    }

    fn end_without_body(&mut self, way: Way) {
        self.text(match way.end {
            End::Keep => "\r\n",
            End::KeepOld => "Connection: keep-alive\r\n\r\n",
            End::Close => "Connection: close\r\n\r\n",
        });
        self.is_closed |= way.end == End::Close;
    }

    fn text(&mut self, text: &str) {
        self.output.extend(text.as_bytes());
    }

    fn format(&mut self, text: std::fmt::Arguments<'_>) {
        self.output
            .write_fmt(text)
            .expect("writing to memory does not fail");
    }
}

/// Why nothing of an atomic batch was done, if that is so.
fn undone(replies: &[Reply]) -> Option<Problem> {
    let mut reason = None;
    for reply in replies {
        match reply {
            Reply::Mismatch { revision } => return Some(Problem::mismatch(*revision)),
            Reply::Failed(Failure::NotApplied { position }) => reason = Some(*position),
            _ => {}
        }
    }
    match replies.get(reason?) {
        Some(Reply::Failed(failure)) => Some(Problem::from(failure)),
        _ => Some(Kind::PreconditionFailed.into()),
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        204 => "No Content",
        206 => "Partial Content",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        408 => "Request Timeout",
        409 => "Conflict",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        416 => "Range Not Satisfiable",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        422 => "Unprocessable Content",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        507 => "Insufficient Storage",
        _ => unreachable!("a status without a reason"),
    }
}
