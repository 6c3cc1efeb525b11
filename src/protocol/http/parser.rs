//! Bytes to heads and bodies: incremental, bounded, never panics. Pure.
//!
//! A head is given out as soon as it is whole; its reader says what becomes of the body behind it
//! ([`Parser::take_body`], [`Parser::skip_body`]), and then gets it in one piece. Nothing is parsed
//! behind that before.
//!
//! # Refused (request smuggling, RFC 9112 sections 2.2, 5, 6.3 and 11.2)
//!
//! Two servers that disagree on where a request ends can be made to read one's body as another's
//! head. So whatever can be read in two ways is refused and ends the connection: a bare CR or LF in
//! a head or between chunks, folded lines, white space before a colon, both Content-Length and
//! Transfer-Encoding, either of them twice, a length that is not only digits, a chunk size that is
//! not only hexadecimal digits, Transfer-Encoding in HTTP/1.0, no Host or several.
//!
//! Memory: the unfinished head (at most [`HEAD_BYTES_MAX`] and what came in one piece behind it) or
//! body (at most its limit, twice that much in chunks for a moment). Only an unfinished line of a
//! head or between chunks is searched again for its end, however small the pieces.
//!
//! Known limits: chunk extensions and trailers are dropped; `chunked` is the only coding.

use bytes::{Buf, Bytes, BytesMut};
use memchr::memchr;

use super::head::{Framing, Head, read_head};
use super::problem::{Kind, Problem};
use crate::protocol::buffers::{self, Payloads};

/// The longest head, with its empty line. Browsers with many cookies need some 8 KiB.
pub const HEAD_BYTES_MAX: usize = 16 * 1024;

/// The longest request line: keys of 512 bytes, every one percent-encoded, twice in a query.
pub const TARGET_BYTES_MAX: usize = 8 * 1024;

/// The longest line of a chunk's size: 16 digits, the rest an extension that nobody uses.
const CHUNK_LINE_BYTES_MAX: usize = 1024;

/// From this length on a body is a slice of the input buffer; shorter ones are copied out of it,
/// so that a small message that is kept somewhere does not keep a whole buffer.
const SHARE_BYTES_MIN: usize = 32 * 1024;

/// What comes next of the input.
#[derive(Debug)]
pub enum Parsed {
    /// A head; what becomes of its body is to be said before more is parsed.
    Head(Box<Head>),
    /// The body of the last head, empty if there was none or it was skipped.
    Body(Bytes),
    /// What came is no request; nothing more is parsed. Whether it began as a write.
    Invalid(Problem, bool),
}

/// The parser of one connection.
#[derive(Debug, Default)]
pub struct Parser {
    /// What was received and not yet consumed.
    buffer: BytesMut,
    /// The first bytes of `buffer`: whole lines of a head that is not whole.
    scanned: usize,
    state: State,
    /// The chunks of the body until here.
    body: BytesMut,
    /// Whether a body was split off from `buffer` since that was released.
    is_split: bool,
    /// Where short bodies are copied to.
    payloads: Payloads,
    /// Heads and bodies that were whole.
    stage: u64,
    /// Bytes received.
    received: u64,
    /// No more input will come.
    is_ended: bool,
}

/// When so much of a body has come, all of it is given its place. A client that only announces a
/// body gets none.
const RESERVE_BYTES_MIN: usize = 64 * 1024;

/// What the bytes at the front of the buffer are.
#[derive(Clone, Copy, Debug, Default)]
enum State {
    /// A head.
    #[default]
    Head,
    /// A body whose reader has not said what becomes of it.
    Announced(Framing),
    /// The last `left` bytes of a body, of which none is consumed unless it is skipped.
    Body { left: u64, is_skipped: bool },
    /// A part of a body in chunks, which is at most `limit` bytes long.
    Chunks {
        part: Part,
        limit: usize,
        is_skipped: bool,
    },
    /// Nothing is parsed any more.
    Closed,
}

/// A part of a body in chunks.
#[derive(Clone, Copy, Debug)]
enum Part {
    /// The line with a chunk's size.
    Size,
    /// The last bytes of a chunk.
    Data(usize),
    /// The line end behind a chunk.
    End,
    /// Lines behind the last chunk, of so many bytes at most.
    Trailers(usize),
}

impl Parser {
    /// Takes bytes that follow those received before.
    pub fn receive(&mut self, bytes: &[u8]) {
        if !matches!(self.state, State::Closed) {
            self.received += bytes.len() as u64;
            let held = self.buffer.len();
            // At once: what doubling leaves behind stays with the allocator for a while.
            if let State::Body { left, .. } = self.state
                && held >= RESERVE_BYTES_MIN
            {
                let length = usize::try_from(left).expect("within the limit of a body");
                self.buffer.reserve(length.saturating_sub(held));
            }
            buffers::extend(&mut self.buffer, bytes);
        }
    }

    /// No more input will come.
    pub fn end_of_input(&mut self) {
        self.is_ended = true;
    }

    /// Drops what was received and all that will be.
    pub fn close(&mut self) {
        self.state = State::Closed;
        self.buffer = BytesMut::new();
        self.body = BytesMut::new();
        self.scanned = 0;
    }

    /// Whether nothing more will be parsed.
    pub fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    /// Bytes that it holds.
    pub fn bytes_held(&self) -> usize {
        self.buffer.len() + self.body.len()
    }

    /// Bytes that it holds when the unfinished head or body is whole, at most.
    pub fn bytes_expected(&self) -> usize {
        match self.state {
            State::Body {
                left,
                is_skipped: false,
            } => usize::try_from(left).unwrap_or(usize::MAX),
            State::Chunks {
                limit,
                is_skipped: false,
                ..
            } => limit,
            State::Body { .. } | State::Chunks { .. } => self.bytes_held(),
            State::Head | State::Announced(_) | State::Closed => self.bytes_held(),
        }
    }

    /// Whether a request has begun and is not whole.
    pub fn is_amid(&self) -> bool {
        match self.state {
            State::Head => !self.buffer.is_empty(),
            State::Announced(_) | State::Body { .. } | State::Chunks { .. } => true,
            State::Closed => false,
        }
    }

    /// Whether what is not whole is a body.
    pub fn is_in_body(&self) -> bool {
        matches!(self.state, State::Body { .. } | State::Chunks { .. })
    }

    /// Whether what is not whole is a body in chunks.
    pub fn is_in_chunks(&self) -> bool {
        matches!(self.state, State::Chunks { .. })
    }

    /// Heads and bodies that were whole, and bytes received in all.
    pub fn progress(&self) -> (u64, u64) {
        (self.stage, self.received)
    }

    /// Gives the buffers back if they are empty.
    pub fn release_buffers(&mut self) {
        if self.buffer.is_empty() {
            if !std::mem::take(&mut self.is_split) {
                buffers::give_back(&mut self.buffer);
            }
            self.buffer = BytesMut::new();
        }
        self.payloads.release();
        if self.body.is_empty() {
            self.body = BytesMut::new();
        }
    }

    /// The body of the head given out last is wanted, unless it is longer than `limit`.
    pub fn take_body(&mut self, limit: usize) -> Result<(), Problem> {
        self.begin_body(limit, false)
    }

    /// The body of the head given out last is read and dropped, unless it is longer than `limit`.
    pub fn skip_body(&mut self, limit: usize) -> Result<(), Problem> {
        self.begin_body(limit, true)
    }

    fn begin_body(&mut self, limit: usize, is_skipped: bool) -> Result<(), Problem> {
        let State::Announced(framing) = self.state else {
            unreachable!("a body is spoken of behind its head");
        };
        self.state = match framing {
            Framing::Length(left) if left > limit as u64 => return Err(too_large(limit)),
            Framing::Length(left) => State::Body { left, is_skipped },
            Framing::None => State::Body {
                left: 0,
                is_skipped,
            },
            Framing::Chunked => State::Chunks {
                part: Part::Size,
                limit,
                is_skipped,
            },
        };
        Ok(())
    }

    /// What comes next, or `None` if it is not all there.
    pub fn next_part(&mut self) -> Option<Parsed> {
        let found = match self.state {
            State::Closed => return None,
            State::Announced(_) => unreachable!("the body was not spoken of"),
            State::Head => self.next_head(),
            State::Body { left, is_skipped } => Ok(self.next_body(left, is_skipped)),
            State::Chunks {
                part,
                limit,
                is_skipped,
            } => self.next_chunks(part, limit, is_skipped),
        };
        match found {
            Ok(Some(parsed)) => {
                self.stage += 1;
                Some(parsed)
            }
            Ok(None) if !self.is_ended => None,
            Ok(None) => {
                let is_clean = !self.is_amid();
                let invalid = self.invalid(Problem::bad("the request ends too early"));
                (!is_clean).then_some(invalid)
            }
            Err(problem) => Some(self.invalid(problem)),
        }
    }

    fn invalid(&mut self, problem: Problem) -> Parsed {
        let is_write = self.begins_write();
        self.close();
        Parsed::Invalid(problem, is_write)
    }

    /// Whether what is at the front is the head of a write.
    pub fn begins_write(&self) -> bool {
        let methods: [&[u8]; 3] = [b"PUT ", b"POST ", b"DELETE "];
        let is_head = matches!(self.state, State::Head);
        is_head && methods.iter().any(|name| self.buffer.starts_with(name))
    }

    fn next_head(&mut self) -> Result<Option<Parsed>, Problem> {
        // A line end too many behind a body, RFC 9112 section 2.2.
        while self.buffer.starts_with(b"\r\n") {
            self.consume(2);
        }
        let Some(end) = self.find_head()? else {
            return Ok(None);
        };
        let head = read_head(&self.buffer[..end])?;
        self.consume(end);
        self.state = State::Announced(head.framing);
        Ok(Some(Parsed::Head(Box::new(head))))
    }

    /// Where the head at the front ends, if it is all there.
    fn find_head(&mut self) -> Result<Option<usize>, Problem> {
        match self.buffer.first() {
            None => return Ok(None),
            Some(b'\r') if self.buffer.len() == 1 => return Ok(None),
            // Not a method: another protocol, which may wait for an answer to these few bytes.
            Some(first) if !first.is_ascii_alphabetic() => {
                return Err(Problem::bad("this is no HTTP request"));
            }
            Some(_) => {}
        }
        while let Some(at) = memchr(b'\n', self.unscanned()) {
            let line_end = self.scanned + at + 1;
            let until_here = &self.buffer[..line_end];
            if !until_here.ends_with(b"\r\n") {
                return Err(Problem::bad("a line ends with LF alone"));
            }
            self.scanned = line_end;
            if until_here.ends_with(b"\r\n\r\n") {
                return match line_end {
                    ..=HEAD_BYTES_MAX => Ok(Some(line_end)),
                    _ => Err(Kind::HeadTooLarge.into()),
                };
            }
        }
        if self.scanned == 0 && self.buffer.len() > TARGET_BYTES_MAX {
            return Err(Kind::TargetTooLong.into());
        }
        if self.buffer.len() > HEAD_BYTES_MAX {
            return Err(Kind::HeadTooLarge.into());
        }
        Ok(None)
    }

    /// The bytes behind the whole lines of a head, as far as the limits go: what stands behind them
    /// has no say, whether it has come already or not.
    fn unscanned(&self) -> &[u8] {
        let limit = match self.scanned {
            0 => TARGET_BYTES_MAX,
            _ => HEAD_BYTES_MAX,
        };
        let end = self.buffer.len().min(limit + 1);
        self.buffer.get(self.scanned..end).unwrap_or_default()
    }

    fn consume(&mut self, count: usize) {
        self.buffer.advance(count);
        self.scanned = 0;
    }

    fn next_body(&mut self, left: u64, is_skipped: bool) -> Option<Parsed> {
        if is_skipped {
            let count =
                usize::try_from(left).map_or(self.buffer.len(), |left| left.min(self.buffer.len()));
            self.consume(count);
            let left = left - count as u64;
            self.state = State::Body { left, is_skipped };
            return (left == 0).then(|| self.end_body(Bytes::new()));
        }
        let length = usize::try_from(left).expect("within the limit of a body");
        if self.buffer.len() < length {
            return None;
        }
        let body = if length < SHARE_BYTES_MIN {
            let body = self.payloads.copy(&self.buffer[..length]);
            self.buffer.advance(length);
            body
        } else {
            self.is_split = true;
            self.buffer.split_to(length).freeze()
        };
        Some(self.end_body(body))
    }

    fn end_body(&mut self, body: Bytes) -> Parsed {
        self.state = State::Head;
        self.scanned = 0;
        Parsed::Body(body)
    }

    fn next_chunks(
        &mut self,
        mut part: Part,
        limit: usize,
        is_skipped: bool,
    ) -> Result<Option<Parsed>, Problem> {
        // Of what is skipped nothing is kept, and `limit` is what is left of the limit.
        let mut limit_left = limit - self.body.len();
        loop {
            let next = match part {
                Part::Size => match self.take_line(CHUNK_LINE_BYTES_MAX)? {
                    None => None,
                    Some(line) => match chunk_size(&line)? {
                        0 => Some(Part::Trailers(HEAD_BYTES_MAX)),
                        size if size > limit_left as u64 => return Err(too_large(limit)),
                        size => Some(Part::Data(usize::try_from(size).unwrap_or(limit_left))),
                    },
                },
                Part::Data(left) => {
                    let count = left.min(self.buffer.len());
                    if !is_skipped {
                        self.body.extend_from_slice(&self.buffer[..count]);
                    }
                    self.consume(count);
                    limit_left -= count;
                    match left - count {
                        0 => Some(Part::End),
                        left => {
                            part = Part::Data(left);
                            None
                        }
                    }
                }
                Part::End => match self.buffer.get(..2) {
                    None if b"\r\n".starts_with(&self.buffer) => None,
                    Some(b"\r\n") => {
                        self.consume(2);
                        Some(Part::Size)
                    }
                    _ => return Err(Problem::bad("a chunk is longer than its size")),
                },
                Part::Trailers(left) => match self.take_line(left)? {
                    None => None,
                    Some(line) if line.is_empty() => {
                        let body = std::mem::take(&mut self.body).freeze();
                        return Ok(Some(self.end_body(body)));
                    }
                    Some(line) => Some(Part::Trailers(left.saturating_sub(line.len() + 2))),
                },
            };
            let Some(next) = next else {
                let limit = if is_skipped { limit_left } else { limit };
                self.state = State::Chunks {
                    part,
                    limit,
                    is_skipped,
                };
                return Ok(None);
            };
            part = next;
        }
    }

    /// Takes a line of at most `limit` bytes, without its end.
    fn take_line(&mut self, limit: usize) -> Result<Option<Bytes>, Problem> {
        let within = limit.saturating_add(2).min(self.buffer.len());
        let Some(end) = memchr(b'\n', &self.buffer[..within]) else {
            return match self.buffer.len() > limit {
                true => Err(Problem::bad("a line between chunks is too long")),
                false => Ok(None),
            };
        };
        let line = self.buffer.split_to(end + 1).freeze();
        match line.strip_suffix(b"\r\n") {
            Some(text) if !text.contains(&b'\r') => Ok(Some(line.slice(..end - 1))),
            _ => Err(Problem::bad(
                "a line between chunks does not end with CR LF",
            )),
        }
    }
}

fn too_large(limit: usize) -> Problem {
    Problem::with(
        Kind::TooLarge,
        format!("the body is longer than {limit} bytes"),
    )
}

/// The size on a chunk's line.
fn chunk_size(line: &[u8]) -> Result<u64, Problem> {
    let digits = memchr(b';', line).unwrap_or(line.len());
    let (digits, extension) = line.split_at(digits);
    let is_size = (1..=16).contains(&digits.len()) && digits.iter().all(u8::is_ascii_hexdigit);
    let is_text = |byte: &u8| *byte == b'\t' || !byte.is_ascii_control();
    if !is_size || !extension.iter().all(is_text) {
        return Err(Problem::bad("a chunk's size is not a hexadecimal number"));
    }
    let text = std::str::from_utf8(digits).unwrap_or_default();
    u64::from_str_radix(text, 16).map_err(|_| Problem::bad("a chunk's size is too large"))
}
