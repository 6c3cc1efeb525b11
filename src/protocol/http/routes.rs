//! Which request a head asks for. Pure.
//!
//! [`RESOURCES`] is the table of what there is.
//!
//! A key is all that stands behind `/kv/`, percent-decoded. In a query `+` means itself.

use std::borrow::Cow;

use super::Limits;
use super::fields::{Accept, Range, if_range, read_condition, write_condition};
use super::head::{Framing, Head, Method};
use super::node::{Document, Probe};
use super::problem::{Kind, Problem};
use super::step::{Form, Reading};
use crate::ids::{Key, Token};
use crate::protocol::batch::{self, InvalidBatch};
use crate::protocol::pipeline::Work;
use crate::protocol::request::{Batch, Condition, ListRequest, PAGE_KEYS_MAX, SetOptions, Write};

/// The type of a batch, and of a message in an object.
const JSON: &str = "application/json";

/// What curl says of data unless it is told otherwise.
const FORM: &str = "application/x-www-form-urlencoded";

/// How many keys a page has unless it is said.
const PAGE_KEYS_DEFAULT: u32 = 100;

/// The longest body behind a head that asks for none: it is dropped.
const IGNORED_BODY_BYTES_MAX: usize = 8 * 1024;

/// So much of an unknown parameter's name is told: twice the longest of ours, and more.
const NAME_CHARS_SHOWN: usize = 32;

/// What there is, and by which methods it is asked.
pub const RESOURCES: &[(&str, &str)] = &[
    ("/kv/{key}", "GET, HEAD, PUT, DELETE"),
    ("/kv", "GET, HEAD"),
    ("/batch", "POST"),
    ("/cluster/info", "GET, HEAD"),
    ("/status", "GET, HEAD"),
    ("/stats", "GET, HEAD"),
    ("/health", "GET, HEAD"),
    ("/livez", "GET, HEAD"),
    ("/readyz", "GET, HEAD"),
];

/// A request that waits for its body.
#[derive(Debug)]
pub enum Call {
    /// PUT /kv/{key}
    Put {
        /// Its name.
        key: Key,
        /// Token, condition and time to live.
        options: SetOptions,
        /// Whether the body is an object with the value, not the payload itself.
        is_json: bool,
    },
    /// POST /batch
    Batch(Option<Token>),
    /// What needs no body.
    Ready(Work, Form),
    /// What needs no execution.
    Local(Form),
}

impl Call {
    /// How long its body may be.
    pub fn body_bytes_max(&self, limits: &Limits) -> usize {
        match self {
            Call::Put { is_json: false, .. } => limits.payload_bytes_max,
            Call::Put { is_json: true, .. } => batch::value_bytes_max(limits.payload_bytes_max),
            Call::Batch(_) => batch::json_bytes_max(limits.payload_bytes_max),
            Call::Ready(..) | Call::Local(_) => IGNORED_BODY_BYTES_MAX,
        }
    }

    /// Whether its body is wanted.
    pub fn has_body(&self) -> bool {
        matches!(self, Call::Put { .. } | Call::Batch(_))
    }

    /// The request with its body; without work, it is answered without execution.
    pub fn with_body(
        self,
        body: bytes::Bytes,
        limits: &Limits,
    ) -> Result<(Option<Work>, Form), Problem> {
        match self {
            Call::Put {
                key,
                options,
                is_json,
            } => {
                let payload = match is_json {
                    true => {
                        batch::parse_value(&body, limits.payload_bytes_max).map_err(body_problem)?
                    }
                    false => body,
                };
                let form = Form::Stored(key.clone());
                let write = Write::Set {
                    key,
                    payload,
                    options,
                };
                Ok((Some(Work::Write(write)), form))
            }
            Call::Batch(token) => {
                let transaction = batch::parse(&body, token, limits.payload_bytes_max);
                let transaction = transaction.map_err(body_problem)?;
                let form = Form::Transaction {
                    is_atomic: transaction.is_atomic,
                };
                let batch = Batch::Transaction(transaction);
                Ok((Some(Work::Alone(batch)), form))
            }
            Call::Ready(work, form) => Ok((Some(work), form)),
            Call::Local(form) => Ok((None, form)),
        }
    }
}

fn body_problem(error: InvalidBatch) -> Problem {
    match error {
        InvalidBatch::Malformed(reason) => Problem::with(Kind::InvalidBody, reason),
        InvalidBatch::TooLarge(reason) => Problem::with(Kind::TooLarge, reason),
    }
}

/// The request that a head asks for.
pub fn route(head: &Head) -> Result<Call, Problem> {
    let (path, query) = match head.target.split_once('?') {
        Some((path, query)) => (path, query),
        None => (&*head.target, ""),
    };
    let key = path.strip_prefix("/kv/");
    let name = if key.is_some() { "/kv/{key}" } else { path };
    let mut resources = RESOURCES.iter();
    let Some((name, methods)) = resources.find(|(known, _)| *known == name) else {
        return Err(Kind::NoSuchResource.into());
    };
    if !methods
        .split(", ")
        .any(|method| method == head.method.name())
    {
        return Err(Problem {
            allow: Some(methods),
            ..Problem::from(Kind::MethodNotAllowed)
        });
    }
    let query = Query::read(query)?;
    match *name {
        "/kv" => list(query),
        "/batch" => post_batch(head, query),
        "/cluster/info" => document(Document::ClusterInfo, query),
        "/status" => document(Document::Status, query),
        "/stats" => document(Document::Stats, query),
        "/health" => check(Probe::Health, query),
        "/livez" => check(Probe::Live, query),
        "/readyz" => check(Probe::Ready, query),
        _ => about_key(head, key.unwrap_or_default(), query),
    }
}

fn about_key(head: &Head, key: &str, mut query: Query<'_>) -> Result<Call, Problem> {
    let key = Key::parse(&decode(key)?)
        .map_err(|error| Problem::with(Kind::InvalidKey, error.to_string()))?;
    let fields = &head.fields;
    match head.method {
        Method::Get | Method::Head => {
            query.end("none")?;
            let reading = Reading {
                key: key.clone(),
                accept: Accept::read(fields.accept.as_deref())?,
                if_match: read_condition(fields.if_match.as_deref(), true)?,
                if_none_match: read_condition(fields.if_none_match.as_deref(), false)?,
                range: range(head),
                if_range: if_range(fields.if_range.as_deref()),
            };
            Ok(Call::Ready(Work::Read(key), Form::Value(Box::new(reading))))
        }
        Method::Put => {
            let ttl = query.take("ttl")?;
            query.end("ttl")?;
            let ttl_ms = ttl.as_deref().map(batch::parse_ttl).transpose();
            let ttl_ms = ttl_ms.map_err(|error| query_problem(error.to_string()))?;
            let (token, condition) = write_options(head)?;
            let is_json = match media_type(head)? {
                Some(JSON) => true,
                Some(_) | None => false,
            };
            length_is_said(head)?;
            Ok(Call::Put {
                key,
                options: SetOptions {
                    token,
                    condition,
                    ttl_ms,
                },
                is_json,
            })
        }
        Method::Delete => {
            query.end("none")?;
            let (token, condition) = write_options(head)?;
            let write = Write::Delete {
                key,
                token,
                condition,
            };
            Ok(Call::Ready(Work::Write(write), Form::Deleted))
        }
        Method::Post | Method::Other => unreachable!("these are not among its methods"),
    }
}

/// A range is for GET alone (RFC 9110 section 14.2).
fn range(head: &Head) -> Option<Range> {
    match head.method {
        Method::Get => Range::read(head.fields.range.as_deref()?),
        _ => None,
    }
}

fn write_options(head: &Head) -> Result<(Option<Token>, Option<Condition>), Problem> {
    Ok((token(head)?, write_condition(&head.fields)?))
}

fn token(head: &Head) -> Result<Option<Token>, Problem> {
    let Some(text) = &head.fields.idempotency_key else {
        return Ok(None);
    };
    match Token::parse(text.as_bytes()) {
        Ok(token) => Ok(Some(token)),
        Err(error) => Err(Problem::with(Kind::InvalidToken, error.to_string())),
    }
}

/// The type of the body, without parameters and in lower case if it is one that means something.
fn media_type(head: &Head) -> Result<Option<&str>, Problem> {
    let coding = head.fields.content_encoding.as_deref();
    if coding.is_some_and(|coding| !coding.eq_ignore_ascii_case("identity")) {
        let detail = "a body is stored as it is, without Content-Encoding";
        return Err(Problem::with(Kind::UnsupportedMediaType, detail));
    }
    let Some(value) = head.fields.content_type.as_deref() else {
        return Ok(None);
    };
    let (name, _) = value.split_once(';').unwrap_or((value, ""));
    let name = name.trim();
    // Two types in one field: whoever reads the last one would read another message.
    if name.contains(',') {
        return Err(Problem::bad("Content-Type is not one type"));
    }
    let mut known = [JSON, FORM].into_iter();
    Ok(Some(
        known
            .find(|known| name.eq_ignore_ascii_case(known))
            .unwrap_or(name),
    ))
}

fn length_is_said(head: &Head) -> Result<(), Problem> {
    match head.framing {
        Framing::None => {
            let detail = "Content-Length or chunked is needed, for an empty body too";
            Err(Problem::with(Kind::LengthRequired, detail))
        }
        Framing::Length(_) | Framing::Chunked => Ok(()),
    }
}

fn post_batch(head: &Head, query: Query<'_>) -> Result<Call, Problem> {
    query.end("none")?;
    // The second is what curl says of any data. Pages may say it too, but foreign ones got no way
    // here.
    if !matches!(media_type(head)?, Some(JSON | FORM)) {
        let detail = format!("a batch is {JSON}, also under {FORM}");
        return Err(Problem::with(Kind::UnsupportedMediaType, detail));
    }
    length_is_said(head)?;
    Ok(Call::Batch(token(head)?))
}

fn list(mut query: Query<'_>) -> Result<Call, Problem> {
    let prefix = query.take("prefix")?.unwrap_or_default();
    let after = query.take("after")?;
    let limit = query.take("limit")?;
    query.end("prefix, after, limit")?;
    let limit = limit.map_or(Some(PAGE_KEYS_DEFAULT), |text| text.parse().ok());
    let Some(limit @ 1..=PAGE_KEYS_MAX) = limit else {
        return Err(query_problem(format!("limit is 1 to {PAGE_KEYS_MAX}")));
    };
    let is_long = |text: &str| text.len() > crate::ids::KEY_BYTES_MAX;
    if is_long(&prefix) || after.as_deref().is_some_and(is_long) {
        return Err(query_problem(
            "prefix and after are at most as long as a key",
        ));
    }
    let request = ListRequest {
        prefix: prefix.into(),
        after: after.map(Into::into),
        limit,
    };
    Ok(Call::Ready(Work::Alone(Batch::List(request)), Form::Keys))
}

fn document(which: Document, query: Query<'_>) -> Result<Call, Problem> {
    query.end("none")?;
    Ok(Call::Local(Form::Document(which)))
}

fn check(probe: Probe, mut query: Query<'_>) -> Result<Call, Problem> {
    let verbose = query.take("verbose")?;
    let mut excluded = Vec::new();
    while let Some(names) = query.take_one("exclude") {
        excluded.extend(names.split(',').map(str::to_owned));
    }
    query.end("verbose, exclude")?;
    let is_verbose = match verbose.as_deref() {
        None | Some("false") => false,
        Some("" | "true") => true,
        Some(_) => return Err(query_problem("verbose is true or false")),
    };
    Ok(Call::Local(Form::Check {
        probe,
        is_verbose,
        excluded,
    }))
}

fn query_problem(detail: impl Into<Cow<'static, str>>) -> Problem {
    Problem::with(Kind::InvalidQuery, detail)
}

/// The parameters of a query; those that were taken are gone.
#[derive(Default)]
struct Query<'a> {
    parameters: Vec<(Cow<'a, str>, String)>,
}

impl<'a> Query<'a> {
    fn read(text: &'a str) -> Result<Query<'a>, Problem> {
        let mut parameters = Vec::new();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let text = |part| {
                String::from_utf8(decode(part)?.into_owned())
                    .map_err(|_| query_problem("the query is not UTF-8"))
            };
            parameters.push((text(name)?.into(), text(value)?));
        }
        Ok(Query { parameters })
    }

    /// The next value of a name.
    fn take_one(&mut self, name: &str) -> Option<String> {
        let position = self
            .parameters
            .iter()
            .position(|(known, _)| known == name)?;
        Some(self.parameters.remove(position).1)
    }

    /// The only value of a name.
    fn take(&mut self, name: &'static str) -> Result<Option<String>, Problem> {
        let value = self.take_one(name);
        match self.take_one(name) {
            Some(_) => Err(query_problem(format!("{name} is given twice"))),
            None => Ok(value),
        }
    }

    /// Refuses what was not taken: a misspelt name would else be no parameter at all.
    fn end(&self, accepted: &str) -> Result<(), Problem> {
        match self.parameters.first() {
            None => Ok(()),
            Some((name, _)) => {
                let name: String = name.chars().take(NAME_CHARS_SHOWN).collect();
                let detail = format!("unknown parameter {name}, accepted: {accepted}");
                Err(query_problem(detail))
            }
        }
    }
}

/// Undoes percent-encoding.
fn decode(text: &str) -> Result<Cow<'_, [u8]>, Problem> {
    let mut rest = text.as_bytes();
    if !rest.contains(&b'%') {
        return Ok(rest.into());
    }
    let mut bytes = Vec::with_capacity(rest.len());
    while let Some((first, behind)) = rest.split_first() {
        if *first != b'%' {
            bytes.push(*first);
            rest = behind;
            continue;
        }
        let digit = |byte: Option<&u8>| char::from(*byte?).to_digit(16);
        let (Some(high), Some(low)) = (digit(behind.first()), digit(behind.get(1))) else {
            return Err(Problem::bad("percent-encoding is malformed"));
        };
        bytes.push(u8::try_from(high * 16 + low).unwrap_or_default());
        rest = behind.get(2..).unwrap_or_default();
    }
    Ok(bytes.into())
}
