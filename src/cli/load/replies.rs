//! The replies on one connection of a load, taken apart as their bytes come. Pure.
//!
//! * HaToKuSe: a reply is a line, or the message's bytes as a line.
//! * HTTP: a head, by `httparse`, and as many bytes behind it as its Content-Length says. What was
//!   done is counted by its status and its body is dropped; of a problem the body is kept, for what
//!   it says.
//!
//! What each reply tells is the same in both: done, not done, not known, or that another leader is
//! to be looked for. Memory: an unfinished line or head, and [`PROBLEM_BYTES_MAX`].
//!
//! Known limits: no chunked bodies and none that end with the connection, which our leaders do not
//! send.

use std::borrow::Cow;

use serde::Deserialize;

use super::workload::FILLING;
use crate::cli::args::Protocol;
use crate::client::Answer;

/// The longest reply line: the largest payload that a leader may be configured for, and more.
const LINE_BYTES_MAX: usize = 40 << 20;

/// The longest head of a response, and the most fields. Leaders send some 300 bytes in 10 of them.
const HEAD_BYTES_MAX: usize = 16 << 10;
const FIELDS_MAX: usize = 64;

/// So much of the body of a problem is kept; leaders send some 200 bytes.
const PROBLEM_BYTES_MAX: usize = 4 << 10;

/// What a reply tells.
#[derive(Debug, PartialEq, Eq)]
pub enum Reply<'a> {
    /// The request was done.
    Done,
    /// It was not, or that is not known; and why, for a person.
    Refused(Refusal, Cow<'a, str>),
}

/// What is known of a request that was not answered as done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It was not done.
    Failed,
    /// If it stores something, it may have been done.
    Unknown,
    /// It was not done, and whoever answered does not lead.
    NotLeader,
}

/// The bytes of one connection. See the [module](self).
pub struct Replies {
    /// A line or head whose end has not come, or what is kept of a body.
    partial: Vec<u8>,
    state: State,
}

/// What the next byte belongs to.
#[derive(Clone, Copy)]
enum State {
    Line,
    Head,
    /// The last `left` bytes of a body, of the response with this status.
    Body {
        status: u16,
        left: u64,
    },
}

impl Replies {
    /// Of a connection on which nothing was answered yet.
    pub fn new(protocol: Protocol) -> Replies {
        Replies {
            partial: Vec::new(),
            state: match protocol {
                Protocol::Hatokuse => State::Line,
                Protocol::Http => State::Head,
            },
        }
    }

    /// Forgets a reply that has not ended: its connection is another one now.
    pub fn forget(&mut self) {
        self.partial.clear();
        if let State::Body { .. } = self.state {
            self.state = State::Head;
        }
    }

    /// Takes the bytes that came next; gives each reply that ends in them to `each`, in order, as
    /// long as that takes them.
    ///
    /// # Errors
    /// Why the connection is of no use any more: what came is no reply, or `each` has refused one.
    pub fn take(
        &mut self,
        mut bytes: &[u8],
        mut each: impl FnMut(Reply<'_>) -> Result<(), &'static str>,
    ) -> Result<(), &'static str> {
        while !bytes.is_empty() {
            bytes = match self.state {
                State::Line => self.line(bytes, &mut each)?,
                State::Head => self.head(bytes)?,
                State::Body { status, left } => self.body(bytes, status, left),
            };
            if let State::Body { status, left: 0 } = self.state {
                self.state = State::Head;
                each(answered(status, &self.partial))?;
                self.partial.clear();
            }
        }
        Ok(())
    }

    /// Gives the line that ends in `bytes` to `each`; what is behind it.
    fn line<'a>(
        &mut self,
        bytes: &'a [u8],
        mut each: impl FnMut(Reply<'_>) -> Result<(), &'static str>,
    ) -> Result<&'a [u8], &'static str> {
        let Some(end) = memchr::memchr(b'\n', bytes) else {
            if self.partial.len() + bytes.len() > LINE_BYTES_MAX {
                return Err("a reply without end");
            }
            self.partial.extend_from_slice(bytes);
            return Ok(&[]);
        };
        let (line, rest) = (&bytes[..end], &bytes[end + 1..]);
        if self.partial.is_empty() {
            each(said(line))?;
        } else {
            self.partial.extend_from_slice(line);
            each(said(&self.partial))?;
            self.partial.clear();
        }
        Ok(rest)
    }

    /// Takes the head that ends in `bytes`; what is behind it.
    fn head<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], &'static str> {
        let before = self.partial.len();
        let head = if before == 0 {
            read_head(bytes)?
        } else {
            // Again from its beginning: a head that comes in pieces is rare, and short.
            self.partial.extend_from_slice(bytes);
            read_head(&self.partial)?
        };
        let Some(Head {
            status,
            left,
            length,
        }) = head
        else {
            if before == 0 {
                self.partial.extend_from_slice(bytes);
            }
            return match self.partial.len() {
                0..=HEAD_BYTES_MAX => Ok(&[]),
                _ => Err("a response whose head does not end"),
            };
        };
        self.partial.clear();
        // Another one follows that answers the request.
        if !matches!(status, 100..=199) {
            self.state = State::Body { status, left };
        }
        Ok(&bytes[length - before..])
    }

    /// Takes what `bytes` have of a body; what is behind it.
    fn body<'a>(&mut self, bytes: &'a [u8], status: u16, left: u64) -> &'a [u8] {
        let count = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
        let (body, rest) = bytes.split_at(count);
        if !is_success(status) {
            let room = PROBLEM_BYTES_MAX - self.partial.len();
            self.partial.extend_from_slice(&body[..count.min(room)]);
        }
        let left = left - count as u64;
        self.state = State::Body { status, left };
        rest
    }
}

/// What a reply line says.
fn said(line: &[u8]) -> Reply<'_> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if matches!(line.first(), None | Some(&FILLING)) || line == b"OK" {
        return Reply::Done;
    }
    let refusal = match Answer::of(line) {
        Answer::Unknown => Refusal::Unknown,
        Answer::NotLeader(_) => Refusal::NotLeader,
        Answer::Done | Answer::Later | Answer::Partial | Answer::Refused => Refusal::Failed,
    };
    Reply::Refused(refusal, String::from_utf8_lossy(line))
}

/// What is needed of a response's head.
struct Head {
    status: u16,
    /// Bytes of the body.
    left: u64,
    /// Bytes of the head.
    length: usize,
}

/// The head at the front, if it is all there.
fn read_head(bytes: &[u8]) -> Result<Option<Head>, &'static str> {
    let mut slots = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut response = httparse::Response::new(&mut slots);
    let length = match response.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err("what came is no response of HTTP"),
    };
    let status = response.code.unwrap_or_default();
    let mut fields = response.headers.iter();
    let said = fields.find(|field| field.name.eq_ignore_ascii_case("content-length"));
    let said = said.map(|field| std::str::from_utf8(field.value).unwrap_or_default());
    let left = match (said.map(str::parse), status) {
        (_, 100..=199 | 204 | 304) => 0,
        (Some(Ok(left)), _) => left,
        _ => return Err("a response that does not say its length"),
    };
    Ok(Some(Head {
        status,
        left,
        length,
    }))
}

fn is_success(status: u16) -> bool {
    matches!(status, 200..=299)
}

/// What is read of a problem (RFC 9457).
#[derive(Default, Deserialize)]
#[serde(default)]
struct Problem {
    r#type: String,
    title: String,
    detail: Option<String>,
}

/// What a response says by its status, and, if it is none of success, by its body.
fn answered(status: u16, body: &[u8]) -> Reply<'static> {
    if is_success(status) {
        return Reply::Done;
    }
    let problem: Problem = serde_json::from_slice(body).unwrap_or_default();
    let refusal = match status {
        307 => Refusal::NotLeader,
        503 if problem.r#type == "/problems/no-leader" => Refusal::NotLeader,
        504 => Refusal::Unknown,
        _ => Refusal::Failed,
    };
    let why = problem.detail.unwrap_or(problem.title);
    Reply::Refused(
        refusal,
        format!("{status} {why}").trim_end().to_owned().into(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Failure;
    use proptest::prelude::*;

    /// The replies in pieces of a stream, and why it ended early.
    fn taken<'a>(
        protocol: Protocol,
        pieces: impl IntoIterator<Item = &'a [u8]>,
    ) -> (Vec<String>, Option<&'static str>) {
        let mut replies = Replies::new(protocol);
        let mut found = Vec::new();
        for piece in pieces {
            let taken = replies.take(piece, |reply| {
                found.push(match reply {
                    Reply::Done => "done".to_owned(),
                    Reply::Refused(refusal, why) => format!("{refusal:?}: {why}"),
                });
                Ok(())
            });
            if let Err(why) = taken {
                return (found, Some(why));
            }
        }
        (found, None)
    }

    fn problem(status: u16, json: &str) -> String {
        let length = json.len();
        format!("HTTP/1.1 {status} Why\r\nDate: now\r\ncontent-length: {length}\r\n\r\n{json}")
    }

    const STORED: &str = "HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\n{}";

    #[test]
    fn lines_tell_what_became_of_their_requests() {
        for line in ["OK", "xxx", ""] {
            assert_eq!(said(line.as_bytes()), Reply::Done, "{line}");
        }
        let leader = Some("h:1".to_owned());
        for (line, expected) in [
            ("NOT_FOUND".to_owned(), Refusal::Failed),
            ("OKAY".to_owned(), Refusal::Failed),
            (format!("ERROR: {}", Failure::Busy), Refusal::Failed),
            (
                format!("ERROR: {}", Failure::WriteTimedOut),
                Refusal::Unknown,
            ),
            (
                format!("ERROR: {}", Failure::NotLeader { leader }),
                Refusal::NotLeader,
            ),
        ] {
            let found = said(line.as_bytes());
            assert_eq!(found, Reply::Refused(expected, line.as_str().into()));
        }
    }

    #[test]
    fn responses_tell_what_became_of_their_requests() {
        let stream = [
            STORED.to_owned(),
            problem(307, ""),
            problem(
                404,
                r#"{"type":"/problems/not-found","title":"no such message"}"#,
            ),
            problem(
                503,
                r#"{"type":"/problems/busy","title":"busy","detail":"busy, try again"}"#,
            ),
            problem(
                503,
                r#"{"type":"/problems/no-leader","title":"no leader is elected"}"#,
            ),
            problem(504, r#"{"title":"timed out","outcome":"unknown"}"#),
            problem(500, "oh"),
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n".to_owned(),
            STORED.to_owned(),
        ];
        let expected = [
            "done",
            "NotLeader: 307",
            "Failed: 404 no such message",
            "Failed: 503 busy, try again",
            "NotLeader: 503 no leader is elected",
            "Unknown: 504 timed out",
            "Failed: 500",
            "done",
            "done",
        ];
        let (found, end) = taken(Protocol::Http, [stream.concat().as_bytes()]);
        assert_eq!((found, end), (expected.map(str::to_owned).to_vec(), None));
    }

    #[test]
    fn what_is_no_reply_ends_the_connection() {
        let endless = format!("HTTP/1.1 200 OK\r\nA: {}", "a".repeat(HEAD_BYTES_MAX));
        for (stream, expected) in [
            (
                "ERROR: too many connections\r\n",
                "what came is no response of HTTP",
            ),
            (
                "HTTP/1.1 200 OK\r\n\r\n",
                "a response that does not say its length",
            ),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
                "a response that does not say its length",
            ),
            (&endless, "a response whose head does not end"),
        ] {
            let stream = [STORED, stream].concat();
            let pieces = stream.as_bytes().chunks(1000);
            let expected = (vec!["done".to_owned()], Some(expected));
            assert_eq!(taken(Protocol::Http, pieces), expected, "{stream}");
        }
        let mut replies = Replies::new(Protocol::Hatokuse);
        let mut ended = Ok(());
        for _ in 0..=LINE_BYTES_MAX >> 20 {
            ended = replies.take(&vec![FILLING; 1 << 20], |_| Ok(()));
        }
        assert_eq!(ended, Err("a reply without end"));
    }

    #[test]
    fn a_large_body_is_not_kept() {
        for status in [200, 500] {
            let mut replies = Replies::new(Protocol::Http);
            let text = problem(status, &"x".repeat(1 << 20));
            replies
                .take(&text.as_bytes()[..1 << 19], |_| Ok(()))
                .expect("a response");
            assert!(replies.partial.len() <= PROBLEM_BYTES_MAX, "{status}");
        }
    }

    #[test]
    fn another_connection_begins_with_a_whole_reply() {
        for (protocol, begun, whole) in [
            (Protocol::Hatokuse, "ERROR: n", "OK\r\n"),
            (Protocol::Http, "HTTP/1.1 200 OK\r\nA", STORED),
            (
                Protocol::Http,
                "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx",
                STORED,
            ),
        ] {
            let mut replies = Replies::new(protocol);
            replies
                .take(begun.as_bytes(), |_| Err("it has not ended"))
                .expect("no end");
            replies.forget();
            let mut found = 0;
            let count = |reply: Reply<'_>| {
                assert_eq!(reply, Reply::Done);
                found += 1;
                Ok(())
            };
            replies.take(whole.as_bytes(), count).expect("a reply");
            assert_eq!(found, 1, "{begun}");
        }
    }

    fn reply(protocol: Protocol) -> BoxedStrategy<String> {
        match protocol {
            Protocol::Hatokuse => prop_oneof![
                Just("OK\r\n".to_owned()),
                "x{0,50}\r\n",
                Just("NOT_FOUND\n".to_owned()),
                "ERROR: [a-z ]{0,40}\r\n",
            ]
            .boxed(),
            Protocol::Http => prop_oneof![
                Just(STORED.to_owned()),
                Just("HTTP/1.1 204 No Content\r\n\r\n".to_owned()),
                (400..600_u16, "[ -~\r\n]{0,60}").prop_map(|(status, text)| problem(status, &text)),
                "[a-z ]{0,40}".prop_map(|why| problem(503, &format!(r#"{{"detail":"{why}"}}"#))),
            ]
            .boxed(),
        }
    }

    proptest! {
        #[test]
        fn any_split_of_the_same_bytes_gives_the_same_replies(
            (protocol, stream) in prop_oneof![Just(Protocol::Hatokuse), Just(Protocol::Http)]
                .prop_flat_map(|protocol| {
                    let stream = proptest::collection::vec(reply(protocol), 0..12);
                    (Just(protocol), stream)
                }),
            sizes in proptest::collection::vec(1..40_usize, 1..20),
        ) {
            let bytes = stream.concat().into_bytes();
            let whole = taken(protocol, [&bytes[..]]);
            let mut pieces = Vec::new();
            let mut rest = &bytes[..];
            for size in sizes.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (piece, behind) = rest.split_at((*size).min(rest.len()));
                pieces.push(piece);
                rest = behind;
            }
            prop_assert_eq!(whole.1, None);
            prop_assert_eq!(whole.0.len(), stream.len());
            prop_assert_eq!(taken(protocol, pieces), whole);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            for protocol in [Protocol::Hatokuse, Protocol::Http] {
                _ = taken(protocol, bytes.chunks(7));
            }
        }
    }
}
