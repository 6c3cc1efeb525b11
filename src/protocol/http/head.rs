//! The head of a request: its line and the fields that mean something here. Pure.
//!
//! Heads are parsed by `httparse`; what it lets pass and two servers could read in two ways is
//! refused here, see [`super::parser`].

use super::callers::Authority;
use super::problem::{Kind, Problem};

/// The most fields of a head. Browsers send some twenty.
pub const FIELDS_MAX: usize = 100;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Read.
    Get,
    /// Read, without the body.
    Head,
    /// Store.
    Put,
    /// Execute.
    Post,
    /// Delete.
    Delete,
    /// Known, and allowed for nothing here.
    Other,
}

impl Method {
    /// Its name; that of [`Method::Other`] is empty.
    pub fn name(self) -> &'static str {
        match self {
            Method::Get => "GET",
            Method::Head => "HEAD",
            Method::Put => "PUT",
            Method::Post => "POST",
            Method::Delete => "DELETE",
            Method::Other => "",
        }
    }
}

/// How long the body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is none, and nothing was said of it.
    None,
    /// So many bytes, as was said.
    Length(u64),
    /// In chunks.
    Chunked,
}

/// A head.
#[derive(Debug)]
pub struct Head {
    /// What is asked for.
    pub method: Method,
    /// Of what, as it was sent, without scheme and authority.
    pub target: Box<str>,
    /// Which host is asked: that of the target, else that of the field Host. HTTP/1.0 need not say.
    pub host: Option<Authority>,
    /// Whether the client speaks HTTP/1.0 only.
    pub is_old: bool,
    /// Whether another request may follow.
    pub keeps_alive: bool,
    /// Whether the client waits to be told that its body is wanted.
    pub expects_continue: bool,
    /// How long the body is.
    pub framing: Framing,
    /// The fields that mean something for some request.
    pub fields: Fields,
}

/// Values of fields. Of those that are lists, several lines are one, by `, `; any other may come
/// again only with the same value.
#[derive(Debug, Default)]
#[expect(missing_docs, reason = "each is the field of its name")]
pub struct Fields {
    pub accept: Option<Box<str>>,
    pub content_encoding: Option<Box<str>>,
    pub content_type: Option<Box<str>>,
    pub idempotency_key: Option<Box<str>>,
    pub if_match: Option<Box<str>>,
    pub if_none_match: Option<Box<str>>,
    pub if_range: Option<Box<str>>,
    pub origin: Option<Box<str>>,
    pub range: Option<Box<str>>,
    pub sec_fetch_site: Option<Box<str>>,
}

impl Fields {
    /// Where a field's value is kept, its name for a person, and whether it is a list.
    fn slot(&mut self, name: &str) -> Option<(&'static str, bool, &mut Option<Box<str>>)> {
        let slots = [
            ("Accept", true, &mut self.accept),
            ("Content-Encoding", true, &mut self.content_encoding),
            ("Content-Type", false, &mut self.content_type),
            ("Idempotency-Key", false, &mut self.idempotency_key),
            ("If-Match", true, &mut self.if_match),
            ("If-None-Match", true, &mut self.if_none_match),
            ("If-Range", false, &mut self.if_range),
            ("Origin", false, &mut self.origin),
            ("Range", false, &mut self.range),
            ("Sec-Fetch-Site", false, &mut self.sec_fetch_site),
        ];
        let mut slots = slots.into_iter();
        slots.find(|(known, _, _)| known.eq_ignore_ascii_case(name))
    }
}

/// The fields that say how a message is to be read.
#[derive(Default)]
struct Basics {
    hosts: usize,
    host: Option<Authority>,
    lengths: usize,
    length: u64,
    codings: usize,
    closes: bool,
    keeps: bool,
    expects: bool,
}

/// Reads a whole head.
pub fn read_head(bytes: &[u8]) -> Result<Head, Problem> {
    let mut slots = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut request = httparse::Request::new(&mut slots);
    match request.parse(bytes) {
        Ok(httparse::Status::Complete(length)) if length == bytes.len() => {}
        Ok(_) => return Err(Problem::bad("the head is malformed")),
        Err(httparse::Error::TooManyHeaders) => return Err(Kind::HeadTooLarge.into()),
        Err(httparse::Error::Version) => return Err(Kind::VersionNotSupported.into()),
        Err(error) => {
            let detail = format!("the head is malformed: {error}").to_lowercase();
            return Err(Problem::with(Kind::BadRequest, detail));
        }
    }
    let is_old = request.version == Some(0);
    let target = request.path.unwrap_or_default();
    let mut basics = Basics::default();
    let mut fields = Fields::default();
    for header in request.headers.iter() {
        read_field(header, is_old, &mut basics, &mut fields)?;
    }
    if basics.hosts > 1 || (basics.hosts == 0 && !is_old) {
        return Err(Problem::bad("there is not exactly one Host"));
    }
    let framing = match (basics.codings, basics.lengths) {
        (0, 0) => Framing::None,
        (0, 1) => Framing::Length(basics.length),
        (1, 0) if !is_old => Framing::Chunked,
        _ => return Err(Problem::bad("the length of the body is not clear")),
    };
    let method = read_method(request.method.unwrap_or_default())?;
    let (authority, target) = split_target(target);
    let host = match authority {
        None => basics.host,
        // Host has no say then, RFC 9112 section 3.2.2.
        Some(text) => Some(Authority::parse(text).ok_or(Problem::bad("the target is malformed"))?),
    };
    Ok(Head {
        method,
        target: target.into(),
        host,
        is_old,
        keeps_alive: !basics.closes && (!is_old || basics.keeps),
        // Without a body nothing is waited for; HTTP/1.0 has no such thing.
        expects_continue: basics.expects && !is_old && framing != Framing::None,
        framing,
        fields,
    })
}

fn read_field(
    header: &httparse::Header<'_>,
    is_old: bool,
    basics: &mut Basics,
    fields: &mut Fields,
) -> Result<(), Problem> {
    let value = header.value.trim_ascii();
    let is = |name: &str| header.name.eq_ignore_ascii_case(name);
    if header.value.contains(&b'\r') {
        return Err(Problem::bad("a field contains a bare CR"));
    }
    if is("host") {
        basics.hosts += 1;
        let text = std::str::from_utf8(value).ok();
        let host = text.and_then(Authority::parse);
        basics.host = Some(host.ok_or(Problem::bad("Host is malformed"))?);
    } else if is("content-length") {
        basics.lengths += 1;
        if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
            return Err(Problem::bad("Content-Length is not a number"));
        }
        // One that does not fit is longer than any limit.
        let text = std::str::from_utf8(value).unwrap_or_default();
        basics.length = text.parse().unwrap_or(u64::MAX);
    } else if is("transfer-encoding") {
        basics.codings += 1;
        if is_old {
            return Err(Problem::bad("HTTP/1.0 has no Transfer-Encoding"));
        }
        if !value.eq_ignore_ascii_case(b"chunked") {
            let detail = "chunked is the only transfer coding";
            return Err(Problem::with(Kind::NotImplemented, detail));
        }
    } else if is("connection") {
        for option in value.split(|byte| *byte == b',') {
            let option = option.trim_ascii();
            basics.closes |= option.eq_ignore_ascii_case(b"close");
            basics.keeps |= option.eq_ignore_ascii_case(b"keep-alive");
        }
    } else if is("expect") {
        if !value.eq_ignore_ascii_case(b"100-continue") {
            return Err(Kind::ExpectationFailed.into());
        }
        basics.expects = true;
    } else if is("content-range") {
        // What would be stored as the whole message is meant as a part of it.
        return Err(Problem::bad(
            "Content-Range: a part of a message cannot be stored",
        ));
    } else if let Some((name, is_list, slot)) = fields.slot(header.name) {
        let Ok(value) = std::str::from_utf8(value) else {
            return Err(Problem::bad("a field is not UTF-8"));
        };
        *slot = Some(match slot.take() {
            None => value.into(),
            Some(before) if is_list => format!("{before}, {value}").into(),
            Some(before) if *before == *value => before,
            Some(_) => {
                let detail = format!("{name} came twice, with different values");
                return Err(Problem::with(Kind::BadRequest, detail));
            }
        });
    }
    Ok(())
}

fn read_method(name: &str) -> Result<Method, Problem> {
    Ok(match name {
        "GET" => Method::Get,
        "HEAD" => Method::Head,
        "PUT" => Method::Put,
        "POST" => Method::Post,
        "DELETE" => Method::Delete,
        "OPTIONS" | "PATCH" | "TRACE" | "CONNECT" | "QUERY" => Method::Other,
        _ => return Err(Problem::with(Kind::NotImplemented, "the method is unknown")),
    })
}

/// The authority of `http://host/path`, which proxies may leave there (RFC 9112 section 3.2.2), and
/// the target without it.
fn split_target(target: &str) -> (Option<&str>, &str) {
    let is_absolute = |scheme: &str| {
        let start = target.get(..scheme.len());
        start.is_some_and(|start| start.eq_ignore_ascii_case(scheme))
    };
    let Some(scheme) = ["http://", "https://"].into_iter().find(|s| is_absolute(s)) else {
        return (None, target);
    };
    let rest = target.get(scheme.len()..).unwrap_or_default();
    match rest.find(['/', '?']) {
        Some(at) => (rest.get(..at), rest.get(at..).unwrap_or_default()),
        None => (Some(rest), "/"),
    }
}
