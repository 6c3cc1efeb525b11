//! Bytes to commands: incremental, bounded, never panics. Pure.
//!
//! Grammar, in words: a line ends in LF, a CR directly before it belongs to the line end. Blanks
//! (space, tab) before the command are skipped, one or more separate its words, those at its end are
//! ignored, except behind the key of a SET: there is exactly one, and the message is all that
//! follows. `SETB` is followed by as many raw bytes as it says and one more line end.
//!
//! Memory: the parser holds the unfinished line or payload, at most [`Limits::line_bytes_max`] and
//! what came in one piece behind it. Of a longer line nothing is held: it is skipped, then answered.
//! Each byte is searched for a line end once, however small the pieces are in which it comes.
//!
//! Known limits: a SETB line that is itself longer than a line may be is skipped and answered as any
//! other, and the payload behind it is read as commands.

use bytes::{Buf, Bytes, BytesMut};
use memchr::memchr;

use super::Limits;
use crate::ids::Key;
use crate::protocol::request::{BULK_BYTES_MAX, BULK_COUNT_MAX};

/// From this length on a payload is a slice of the input buffer; shorter ones are copied out of it,
/// so that a small message that is kept somewhere does not keep a whole buffer.
const SHARE_BYTES_MIN: usize = 32 * 1024;

/// One parsed command, or what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// `SET` and `SETB`.
    Set {
        /// The message's name.
        key: Key,
        /// Its bytes.
        payload: Bytes,
    },
    /// `<n> SET`.
    Bulk {
        /// How many messages.
        count: u64,
        /// The bytes of each.
        payload: Bytes,
    },
    /// `DEL`.
    Delete(Key),
    /// `GET`.
    Get(Key),
    /// `GETB`.
    GetFramed(Key),
    /// `WHERE`.
    Where(Key),
    /// `COUNT`.
    Count,
    /// `STATUS`, `STATUS JSON`.
    Status {
        /// Whether as JSON.
        json: bool,
    },
    /// A line of blanks or of nothing.
    Empty,
    /// `HELP`.
    Help,
    /// `PROMPT ON`, `PROMPT OFF`.
    Prompt(bool),
    /// `QUIT`, `EXIT`: what follows is dropped.
    Quit,
    /// Answered with an error.
    Invalid(Problem),
    /// Answered with an error, then closed, since where the next command begins is unknown.
    Fatal(Problem),
}

/// What is wrong with a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// The wrong shape: the command's usage.
    Usage(&'static str),
    /// No such command.
    UnknownCommand,
    /// The key is not valid.
    InvalidKey,
    /// The line or the payload is longer than the limit.
    TooLarge,
    /// It was given up to make room.
    Busy,
    /// No line end behind the payload of a SETB.
    NoLineEnd,
}

const SET_USAGE: &str = "SET <id> <message>";
const BULK_USAGE: &str = "<n> SET <message>, n from 1 to 1000000, at most 1 GiB";
const GET_USAGE: &str = "GET <id>";
const DEL_USAGE: &str = "DEL <id>";
const SETB_USAGE: &str = "SETB <id> <bytes>";
const GETB_USAGE: &str = "GETB <id>";
const WHERE_USAGE: &str = "WHERE <id>";
const COUNT_USAGE: &str = "COUNT";
const STATUS_USAGE: &str = "STATUS or STATUS JSON";
const PROMPT_USAGE: &str = "PROMPT ON or PROMPT OFF";

/// The parser of one connection.
#[derive(Debug)]
pub struct Parser {
    limits: Limits,
    /// What was received and not yet consumed.
    buffer: BytesMut,
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
    SkippedLine(Problem),
    /// A payload of `length` bytes for `key`, and its line end.
    Payload { key: Key, length: usize },
    /// The last `left` bytes of a payload to be skipped, and its line end, then the answer.
    SkippedPayload { left: u64, problem: Problem },
    /// Nothing is parsed any more.
    Closed,
}

/// A line end at a position of the buffer, as far as it is there.
enum LineEnd {
    Length(usize),
    Missing,
    Unknown,
}

/// What a line is, before its payload is cut out of the buffer.
enum Parsed {
    Done(Command),
    /// A SET whose message begins at this offset of the line.
    Set {
        key: Key,
        start: usize,
    },
    /// A bulk write whose message begins at this offset of the line.
    Bulk {
        count: u64,
        start: usize,
    },
    /// A SETB: its payload follows.
    Framed {
        key: Result<Key, Problem>,
        length: u64,
    },
}

impl Parser {
    /// A parser at the beginning of a line.
    pub fn new(limits: Limits) -> Parser {
        Parser {
            limits,
            buffer: BytesMut::new(),
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
            State::SkippedLine(_) if self.buffer.is_empty() => {
                bytes = match memchr(b'\n', bytes) {
                    Some(end) => bytes.split_at(end).1,
                    None => return,
                };
            }
            State::SkippedPayload { left, .. } if self.buffer.is_empty() => {
                let count = min_len(*left, bytes.len());
                *left -= count as u64;
                bytes = bytes.split_at(count).1;
            }
            State::SkippedLine(_)
            | State::SkippedPayload { .. }
            | State::Line
            | State::Payload { .. } => {}
        }
        self.buffer.extend_from_slice(bytes);
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

    /// Bytes in the buffer.
    pub fn bytes_held(&self) -> usize {
        self.buffer.len()
    }

    /// Gives up the unfinished command: the rest of it is skipped, then answered `busy`. To be called
    /// when [`Parser::next_command`] has nothing; without effect if hardly anything is held.
    pub fn shed(&mut self) {
        let held = self.buffer.len();
        match &self.state {
            State::Line if held > 0 => self.state = State::SkippedLine(Problem::Busy),
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

    /// Gives the buffer back if it is empty.
    pub fn release_buffers(&mut self) {
        if self.buffer.is_empty() {
            self.buffer = BytesMut::new();
        }
    }

    /// The next command, or `None` if it is not all there.
    pub fn next_command(&mut self) -> Option<Command> {
        loop {
            match &mut self.state {
                State::Closed => return None,
                State::Line => {
                    let (line, whole) = self.find_line()?;
                    if line > self.limits.line_bytes_max() {
                        self.consume(whole);
                        return Some(Command::Invalid(Problem::TooLarge));
                    }
                    if let Some(command) = self.parse_line(line, whole) {
                        return Some(command);
                    }
                }
                State::SkippedLine(problem) => {
                    let problem = *problem;
                    let Some(end) = memchr(b'\n', &self.buffer) else {
                        self.buffer.clear();
                        if !self.is_ended {
                            return None;
                        }
                        self.close();
                        return Some(Command::Invalid(problem));
                    };
                    self.consume(end + 1);
                    self.state = State::Line;
                    return Some(Command::Invalid(problem));
                }
                State::Payload { length, .. } => {
                    let length = *length;
                    return self.finish_payload(length);
                }
                State::SkippedPayload { left, problem } => {
                    let problem = *problem;
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
            self.buffer = BytesMut::new();
            self.scanned = 0;
            self.state = State::SkippedLine(Problem::TooLarge);
        }
        None
    }

    fn consume(&mut self, count: usize) {
        self.buffer.advance(count);
        self.scanned = 0;
    }

    /// Parses the first `line` bytes and consumes the first `whole`. `None` if a payload follows.
    fn parse_line(&mut self, line: usize, whole: usize) -> Option<Command> {
        let parsed = parse(&self.buffer[..line]);
        let command = match parsed {
            Parsed::Done(command) => command,
            Parsed::Set { key, start } => {
                if line - start > self.limits.payload_bytes_max {
                    Command::Invalid(Problem::TooLarge)
                } else {
                    let payload = self.cut(start, line, whole);
                    return Some(Command::Set { key, payload });
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
                    return Some(Command::Bulk { count, payload });
                }
            }
            Parsed::Framed { key, length } => {
                self.consume(whole);
                let limit = self.limits.payload_bytes_max;
                let fitting = usize::try_from(length).ok().filter(|&bytes| bytes <= limit);
                self.state = match (key, fitting) {
                    (Ok(key), Some(length)) => State::Payload { key, length },
                    (Ok(_), None) => {
                        let problem = Problem::TooLarge;
                        State::SkippedPayload {
                            left: length,
                            problem,
                        }
                    }
                    (Err(problem), _) => State::SkippedPayload {
                        left: length,
                        problem,
                    },
                };
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
            let payload = Bytes::copy_from_slice(&self.buffer[start..end]);
            self.buffer.advance(whole);
            return payload;
        }
        self.buffer.split_to(whole).freeze().slice(start..end)
    }

    fn finish_payload(&mut self, length: usize) -> Option<Command> {
        let end = self.payload_end(length)?;
        let payload = self.cut(0, length, length);
        let State::Payload { key, .. } = std::mem::replace(&mut self.state, State::Line) else {
            unreachable!("a payload is finished in its state only");
        };
        Some(self.after_payload(end, Command::Set { key, payload }))
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

fn is_blank(byte: u8) -> bool {
    byte == b' ' || byte == b'\t'
}

/// The next word of a line, and the offset behind it; an empty word at the line's end.
fn next_word(line: &[u8], from: usize) -> (&[u8], usize) {
    let rest = line.get(from..).unwrap_or_default();
    let blanks = rest.iter().take_while(|&&byte| is_blank(byte)).count();
    let rest = rest.split_at(blanks).1;
    let length = rest
        .iter()
        .position(|&byte| is_blank(byte))
        .unwrap_or(rest.len());
    (rest.split_at(length).0, from + blanks + length)
}

/// Whether nothing but blanks is left.
fn is_over(line: &[u8], from: usize) -> bool {
    next_word(line, from).0.is_empty()
}

fn parse(line: &[u8]) -> Parsed {
    let (word, at) = next_word(line, 0);
    let is = |name: &str| word.eq_ignore_ascii_case(name.as_bytes());
    if is("SET") {
        return parse_set(line, at);
    }
    if is("SETB") {
        return parse_framed(line, at);
    }
    Parsed::Done(if is("GET") {
        with_key(line, at, GET_USAGE, Command::Get)
    } else if is("DEL") {
        with_key(line, at, DEL_USAGE, Command::Delete)
    } else if is("GETB") {
        with_key(line, at, GETB_USAGE, Command::GetFramed)
    } else if is("WHERE") {
        with_key(line, at, WHERE_USAGE, Command::Where)
    } else if is("COUNT") {
        if is_over(line, at) {
            Command::Count
        } else {
            Command::Invalid(Problem::Usage(COUNT_USAGE))
        }
    } else if is("STATUS") {
        parse_status(line, at)
    } else if is("PROMPT") {
        parse_prompt(line, at)
    } else if is("HELP") {
        Command::Help
    } else if is("QUIT") || is("EXIT") {
        Command::Quit
    } else if word.is_empty() {
        Command::Empty
    } else {
        return parse_bulk(line, word, at);
    })
}

/// The message begins behind exactly one blank at `at`.
fn parse_set(line: &[u8], at: usize) -> Parsed {
    let (key, at) = next_word(line, at);
    if key.is_empty() || at >= line.len() {
        return Parsed::Done(Command::Invalid(Problem::Usage(SET_USAGE)));
    }
    match Key::parse(key) {
        Ok(key) => Parsed::Set { key, start: at + 1 },
        Err(_) => Parsed::Done(Command::Invalid(Problem::InvalidKey)),
    }
}

/// Anything but a number of bytes leaves unknown where the next command begins: fatal.
fn parse_framed(line: &[u8], at: usize) -> Parsed {
    let (key, at) = next_word(line, at);
    let (length, at) = next_word(line, at);
    match parse_number(length) {
        Some(length) if is_over(line, at) => {
            let key = Key::parse(key).map_err(|_| Problem::InvalidKey);
            Parsed::Framed { key, length }
        }
        Some(_) | None => Parsed::Done(Command::Fatal(Problem::Usage(SETB_USAGE))),
    }
}

fn parse_bulk(line: &[u8], count: &[u8], at: usize) -> Parsed {
    let (word, at) = next_word(line, at);
    let Some(count) = parse_number(count).filter(|_| word.eq_ignore_ascii_case(b"SET")) else {
        return Parsed::Done(Command::Invalid(Problem::UnknownCommand));
    };
    if at >= line.len() || !(1..=BULK_COUNT_MAX).contains(&count) {
        return Parsed::Done(Command::Invalid(Problem::Usage(BULK_USAGE)));
    }
    let start = at + 1;
    Parsed::Bulk { count, start }
}

fn with_key(
    line: &[u8],
    at: usize,
    usage: &'static str,
    command: impl FnOnce(Key) -> Command,
) -> Command {
    let (key, at) = next_word(line, at);
    if key.is_empty() || !is_over(line, at) {
        return Command::Invalid(Problem::Usage(usage));
    }
    match Key::parse(key) {
        Ok(key) => command(key),
        Err(_) => Command::Invalid(Problem::InvalidKey),
    }
}

fn parse_status(line: &[u8], at: usize) -> Command {
    let (word, at) = next_word(line, at);
    let json = word.eq_ignore_ascii_case(b"JSON");
    if (word.is_empty() || json) && is_over(line, at) {
        Command::Status { json }
    } else {
        Command::Invalid(Problem::Usage(STATUS_USAGE))
    }
}

fn parse_prompt(line: &[u8], at: usize) -> Command {
    let (word, at) = next_word(line, at);
    match word.to_ascii_uppercase().as_slice() {
        b"ON" if is_over(line, at) => Command::Prompt(true),
        b"OFF" if is_over(line, at) => Command::Prompt(false),
        _ => Command::Invalid(Problem::Usage(PROMPT_USAGE)),
    }
}

/// A decimal number; one that is too large for its type is as good as the largest, since it is
/// beyond every limit.
fn parse_number(word: &[u8]) -> Option<u64> {
    if word.is_empty() || !word.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = std::str::from_utf8(word).ok()?;
    Some(digits.parse().unwrap_or(u64::MAX))
}
