//! Bytes to commands: incremental, bounded, never panics. Pure.
//!
//! Memory: the parser holds the unfinished line or payload, at most [`Limits::line_bytes_max`] and
//! what came in one piece behind it. Of a longer line nothing is held: it is skipped, then
//! answered. Each byte is searched for a line end once, however small the pieces are in which it
//! comes. At most [`SKIPPED_BYTES_MAX`] of one line or payload are skipped; what is longer ends the
//! session with its error.
//!
//! A line of another protocol ([`foreign`]) ends the session before anything after it is parsed.
//!
//! Known limits: a SETB line that is itself longer than a line may be is skipped and answered as
//! any other, and the payload behind it is read as commands.

use bytes::{Buf, Bytes, BytesMut};
use memchr::memchr;

use super::Limits;
use super::command::prefix::Prefix;
use super::command::{BULK_USAGE, Command, Framed, Parsed, Problem, parse};
use super::foreign::{self, Sketch};
use crate::protocol::batch;
use crate::protocol::buffers::{self, Payloads};
use crate::protocol::request::BULK_BYTES_MAX;

/// The most bytes of one line or payload that are skipped because they are above the limit: some
/// ten seconds of a fast network. Nobody waits for the answer to more than that.
pub const SKIPPED_BYTES_MAX: u64 = 1 << 30;

/// From this length on a payload is a slice of the input buffer; shorter ones are copied out of it,
/// so that a small message that is kept somewhere does not keep a whole buffer.
const SHARE_BYTES_MIN: usize = 32 * 1024;

/// When so much of a payload has come, all of it is given its place. A client that only announces a
/// payload gets none.
const RESERVE_BYTES_MIN: usize = 64 * 1024;

/// CR and LF.
const LINE_END_BYTES_MAX: usize = 2;

/// The parser of one connection.
#[derive(Debug)]
pub struct Parser {
    limits: Limits,
    /// What was received and not yet consumed.
    buffer: BytesMut,
    /// Whether a payload was split off from `buffer` since that was released.
    is_split: bool,
    /// Where short payloads are copied to.
    payloads: Payloads,
    /// The first bytes of `buffer` in which there is no LF.
    scanned: usize,
    state: State,
    /// No more input will come.
    is_ended: bool,
}

/// What the bytes at the front of the buffer are.
#[derive(Debug)]
enum State {
    /// A command line.
    Line,
    /// The rest of a line to be skipped, then answered.
    SkippedLine(SkippedLine),
    /// `length` bytes, and their line end.
    Payload {
        what: Framed,
        prefix: Prefix,
        length: usize,
    },
    /// The last `left` bytes of a payload to be skipped, and its line end, then the answer.
    SkippedPayload { left: u64, problem: Problem },
    /// Nothing is parsed any more.
    Closed,
}

/// A line of which nothing is held.
#[derive(Clone, Debug)]
struct SkippedLine {
    problem: Problem,
    /// What is known of what it began with and ends with.
    sketch: Sketch,
    /// Its bytes until here.
    skipped: u64,
}

impl SkippedLine {
    fn new(problem: Problem) -> SkippedLine {
        SkippedLine {
            problem,
            sketch: Sketch::default(),
            skipped: 0,
        }
    }

    fn receive(&mut self, bytes: &[u8]) {
        self.sketch.receive(bytes);
        self.skipped = self.skipped.saturating_add(bytes.len() as u64);
    }

    /// The answer, if its end is reached or too far away.
    fn answer(&self, is_whole: bool) -> Option<Command> {
        let is_too_long = self.skipped > SKIPPED_BYTES_MAX;
        match is_whole && self.sketch.is_http() {
            true => Some(Command::Fatal(Problem::Http)),
            false if is_too_long => Some(Command::Fatal(self.problem.clone())),
            false => is_whole.then(|| Command::Invalid(self.problem.clone())),
        }
    }
}

/// A line end at a position of the buffer, as far as it is there.
enum LineEnd {
    Length(usize),
    Missing,
    Unknown,
}

impl Parser {
    /// A parser at the beginning of a line.
    pub fn new(limits: Limits) -> Parser {
        Parser {
            limits,
            buffer: BytesMut::new(),
            is_split: false,
            payloads: Payloads::default(),
            scanned: 0,
            state: State::Line,
            is_ended: false,
        }
    }

    /// Takes bytes that follow those received before.
    pub fn receive(&mut self, mut bytes: &[u8]) {
        match &mut self.state {
            State::Closed => return,
            // What is skipped does not pass through the buffer.
            State::SkippedLine(line) if self.buffer.is_empty() => {
                let (skipped, rest) = bytes.split_at(memchr(b'\n', bytes).unwrap_or(bytes.len()));
                line.receive(skipped);
                bytes = rest;
            }
            State::SkippedPayload { left, .. } if self.buffer.is_empty() => {
                let count = min_len(*left, bytes.len());
                *left -= count as u64;
                bytes = bytes.split_at(count).1;
            }
            State::SkippedLine(_) | State::SkippedPayload { .. } | State::Line => {}
            // At once: what doubling leaves behind stays with the allocator for a while.
            State::Payload { length, .. } if self.buffer.len() >= RESERVE_BYTES_MIN => {
                let missing = length.saturating_sub(self.buffer.len());
                self.buffer.reserve(missing + LINE_END_BYTES_MAX);
            }
            State::Payload { .. } => {}
        }
        buffers::extend(&mut self.buffer, bytes);
    }

    /// No more input will come.
    pub fn end_of_input(&mut self) {
        self.is_ended = true;
    }

    /// Drops what was received and all that will be.
    pub fn close(&mut self) {
        self.state = State::Closed;
        self.buffer = BytesMut::new();
        self.scanned = 0;
    }

    /// Whether all input has come and been parsed.
    pub fn is_finished(&self) -> bool {
        self.is_ended && matches!(self.state, State::Closed)
    }

    /// Whether nothing of a command has come that was not given out.
    pub fn is_between_commands(&self) -> bool {
        matches!(self.state, State::Line) && self.buffer.is_empty()
    }

    /// Bytes in the buffer.
    pub fn bytes_held(&self) -> usize {
        self.buffer.len()
    }

    /// Bytes in the buffer when the unfinished command is whole, at most.
    pub fn bytes_expected(&self) -> usize {
        match &self.state {
            State::Line => self.limits.line_bytes_max(),
            State::Payload { length, .. } => *length,
            State::SkippedLine(_) | State::SkippedPayload { .. } | State::Closed => {
                self.bytes_held()
            }
        }
    }

    /// Gives up the unfinished command: the rest of it is skipped, then answered `busy`. To be
    /// called when [`Parser::next_command`] has nothing; without effect if hardly anything is held.
    pub fn shed(&mut self) {
        let held = self.buffer.len();
        match &self.state {
            State::Line if held > 0 => return self.skip_line(Problem::Busy),
            State::Payload { length, .. } if held < *length => {
                let left = (*length - held) as u64;
                let problem = Problem::Busy;
                self.state = State::SkippedPayload { left, problem };
            }
            State::Line
            | State::Payload { .. }
            | State::SkippedLine(_)
            | State::SkippedPayload { .. }
            | State::Closed => return,
        }
        self.buffer = BytesMut::new();
        self.scanned = 0;
    }

    /// Gives the buffers back, the one for input if it is empty.
    pub fn release_buffers(&mut self) {
        if self.buffer.is_empty() {
            if !std::mem::take(&mut self.is_split) {
                buffers::give_back(&mut self.buffer);
            }
            self.buffer = BytesMut::new();
        }
        self.payloads.release();
    }

    /// The next command, or `None` if it is not all there.
    pub fn next_command(&mut self) -> Option<Command> {
        loop {
            match &mut self.state {
                State::Closed => return None,
                State::Line => {
                    if foreign::is_tls(&self.buffer) {
                        return Some(Command::Fatal(Problem::Tls));
                    }
                    let Some((line, whole)) = self.find_line() else {
                        match self.state {
                            State::SkippedLine(_) => continue,
                            _ => return None,
                        }
                    };
                    if line > self.limits.line_bytes_max() {
                        self.state = State::SkippedLine(SkippedLine::new(Problem::TooLarge));
                        continue;
                    }
                    if let Some(command) = self.parse_line(line, whole) {
                        return Some(command);
                    }
                }
                State::SkippedLine(line) => {
                    let end = memchr(b'\n', &self.buffer);
                    line.receive(&self.buffer[..end.unwrap_or(self.buffer.len())]);
                    let answer = line.answer(end.is_some() || self.is_ended);
                    match end {
                        Some(end) => {
                            self.consume(end + 1);
                            self.state = State::Line;
                        }
                        None if self.is_ended => self.close(),
                        None => self.buffer.clear(),
                    }
                    return answer;
                }
                State::Payload { length, .. } => {
                    let length = *length;
                    return self.finish_payload(length);
                }
                State::SkippedPayload { left, problem } => {
                    let problem = problem.clone();
                    let count = min_len(*left, self.buffer.len());
                    *left -= count as u64;
                    let is_whole = *left == 0;
                    self.consume(count);
                    if !is_whole {
                        self.close_if_ended();
                        return None;
                    }
                    let end = self.payload_end(0)?;
                    return Some(self.after_payload(end, Command::Invalid(problem)));
                }
            }
        }
    }

    /// The length of the line at the front, without and with its end, if it is all there. A line
    /// that is too long already is begun to be skipped.
    fn find_line(&mut self) -> Option<(usize, usize)> {
        let unseen = self.buffer.get(self.scanned..).unwrap_or_default();
        if let Some(end) = memchr(b'\n', unseen) {
            let end = self.scanned + end;
            let has_cr = end > 0 && self.buffer.get(end - 1) == Some(&b'\r');
            return Some((end - usize::from(has_cr), end + 1));
        }
        self.scanned = self.buffer.len();
        if self.is_ended {
            let rest = self.buffer.len();
            if rest == 0 {
                self.close();
                return None;
            }
            return Some((rest, rest));
        }
        // One byte more, as the last one may be the CR of the line end.
        if self.buffer.len() > self.limits.line_bytes_max() + 1 {
            self.skip_line(Problem::TooLarge);
        }
        None
    }

    /// Drops what was received of a line, and will drop the rest of it.
    fn skip_line(&mut self, problem: Problem) {
        let mut line = SkippedLine::new(problem);
        line.receive(&self.buffer);
        self.buffer = BytesMut::new();
        self.scanned = 0;
        self.state = State::SkippedLine(line);
    }

    fn consume(&mut self, count: usize) {
        self.buffer.advance(count);
        self.scanned = 0;
    }

    /// Parses the first `line` bytes and consumes the first `whole`. `None` if a payload follows.
    fn parse_line(&mut self, line: usize, whole: usize) -> Option<Command> {
        let (parsed, prefix) = parse(&self.buffer[..line]);
        let command = match parsed {
            // A command in order is none of another protocol; HELP takes any words.
            Parsed::Done(Command::Invalid(_) | Command::Fatal(_) | Command::Help)
                if foreign::is_http(&self.buffer[..line]) =>
            {
                Command::Fatal(Problem::Http)
            }
            Parsed::Done(command) => command,
            Parsed::Delete(key) => Command::Delete { key, prefix },
            Parsed::Expire { key, ttl_ms } => {
                let token = prefix.token;
                Command::Expire { key, ttl_ms, token }
            }
            Parsed::Set { key, start } => {
                if line - start > self.limits.payload_bytes_max {
                    Command::Invalid(Problem::TooLarge)
                } else {
                    let payload = self.cut(start, line, whole);
                    return Some(Command::Set {
                        key,
                        payload,
                        prefix,
                    });
                }
            }
            Parsed::Bulk { count, start } => {
                let length = line - start;
                if length > self.limits.payload_bytes_max {
                    Command::Invalid(Problem::TooLarge)
                } else if (length as u64).saturating_mul(count) > BULK_BYTES_MAX {
                    Command::Invalid(Problem::Usage(BULK_USAGE))
                } else {
                    let payload = self.cut(start, line, whole);
                    return Some(Command::Bulk {
                        count,
                        payload,
                        token: prefix.token,
                    });
                }
            }
            Parsed::Framed { what, length } => {
                self.consume(whole);
                let limit = match &what {
                    Ok(Framed::Batch) => self.limits.batch_bytes_max(),
                    Ok(Framed::Message(_)) | Err(_) => self.limits.payload_bytes_max,
                };
                let fitting = usize::try_from(length).ok().filter(|&bytes| bytes <= limit);
                let problem = match (what, fitting) {
                    (Ok(what), Some(length)) => {
                        self.state = State::Payload {
                            what,
                            prefix,
                            length,
                        };
                        return None;
                    }
                    (Ok(Framed::Message(_)), None) => Problem::TooLarge,
                    (Ok(Framed::Batch), None) => {
                        Problem::InvalidBatch(Box::new(batch::too_long(limit)))
                    }
                    (Err(problem), _) => problem,
                };
                if length > SKIPPED_BYTES_MAX {
                    return Some(Command::Fatal(problem));
                }
                let left = length;
                self.state = State::SkippedPayload { left, problem };
                return None;
            }
        };
        self.consume(whole);
        Some(command)
    }

    /// Takes `start..end` out of the buffer, and consumes its first `whole` bytes.
    fn cut(&mut self, start: usize, end: usize, whole: usize) -> Bytes {
        self.scanned = 0;
        if end - start < SHARE_BYTES_MIN {
            let payload = self.payloads.copy(&self.buffer[start..end]);
            self.buffer.advance(whole);
            return payload;
        }
        self.is_split = true;
        self.buffer.split_to(whole).freeze().slice(start..end)
    }

    fn finish_payload(&mut self, length: usize) -> Option<Command> {
        let end = self.payload_end(length)?;
        let payload = self.cut(0, length, length);
        let state = std::mem::replace(&mut self.state, State::Line);
        let State::Payload { what, prefix, .. } = state else {
            unreachable!("a payload is finished in its state only");
        };
        let command = match what {
            Framed::Message(key) => Command::Set {
                key,
                payload,
                prefix,
            },
            Framed::Batch => {
                let limit = self.limits.payload_bytes_max;
                match batch::parse(&payload, prefix.token, limit) {
                    Ok(transaction) => Command::Batch(transaction),
                    Err(error) => Command::Invalid(Problem::InvalidBatch(Box::new(error))),
                }
            }
        };
        Some(self.after_payload(end, command))
    }

    /// What stands at `position`, behind a payload; `None` if it has not come yet.
    fn payload_end(&mut self, position: usize) -> Option<LineEnd> {
        let end = match (self.buffer.get(position), self.buffer.get(position + 1)) {
            (Some(b'\n'), _) => LineEnd::Length(1),
            (Some(b'\r'), Some(b'\n')) => LineEnd::Length(2),
            (None, _) | (Some(b'\r'), None) => LineEnd::Unknown,
            (Some(_), _) => LineEnd::Missing,
        };
        if let LineEnd::Unknown = end {
            self.close_if_ended();
            return None;
        }
        Some(end)
    }

    fn after_payload(&mut self, end: LineEnd, command: Command) -> Command {
        match end {
            LineEnd::Length(length) => {
                self.consume(length);
                self.state = State::Line;
                command
            }
            LineEnd::Missing | LineEnd::Unknown => Command::Fatal(Problem::NoLineEnd),
        }
    }

    /// The end of input inside a payload: the command is not executed.
    fn close_if_ended(&mut self) {
        if self.is_ended {
            self.close();
        }
    }
}

fn min_len(left: u64, available: usize) -> usize {
    usize::try_from(left).map_or(available, |left| left.min(available))
}
