//! The commands, and the grammar of a line. Pure.
//!
//! Grammar, in words: a line ends in LF, a CR directly before it belongs to the line end. Blanks
//! (space, tab) before the command are skipped, one or more separate its words, those at its end
//! are ignored, except behind the key of a SET: there is exactly one, and the message is all that
//! follows. `SETB` and `BATCH` are followed by as many raw bytes as they say and one more line
//! end. `ONCE` with a
//! token and `IF` with a revision, in this order, may stand before a write ([`prefix`]), which
//! follows as it is without them.

pub mod prefix;

use bytes::Bytes;

use self::prefix::{PREFIXES, Prefix};
use crate::ids::{KEY_BYTES_MAX, Key, Token};
use crate::protocol::batch::InvalidBatch;
use crate::protocol::request::{
    BULK_COUNT_MAX, GroupRequest, ListRequest, PAGE_KEYS_MAX, TTL_MS_MAX, Transaction,
};

/// One parsed command, or what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// `SET` and `SETB`.
    Set {
        /// The message's name.
        key: Key,
        /// Its bytes.
        payload: Bytes,
        /// What stands before it.
        prefix: Prefix,
    },
    /// `<n> SET`.
    Bulk {
        /// How many messages.
        count: u64,
        /// The bytes of each.
        payload: Bytes,
        /// Of a `ONCE` before it.
        token: Option<Token>,
    },
    /// `DEL`.
    Delete {
        /// The message's name.
        key: Key,
        /// What stands before it.
        prefix: Prefix,
    },
    /// `EXPIRE`, `PERSIST`.
    Expire {
        /// The message's name.
        key: Key,
        /// In how many milliseconds; `None`: never.
        ttl_ms: Option<u64>,
        /// Of a `ONCE` before it.
        token: Option<Token>,
    },
    /// `BATCH`.
    Batch(Transaction),
    /// `TTL`.
    Ttl(Key),
    /// `LIST`.
    List(ListRequest),
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
    /// `GROUP`, `GROUP JSON`, `GROUP ADD`, `GROUP REMOVE`, `GROUP TRANSFER`.
    Group {
        /// What is asked.
        request: GroupRequest,
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// The wrong shape: the command's usage.
    Usage(&'static str),
    /// No such command.
    UnknownCommand,
    /// The key is not valid.
    InvalidKey,
    /// The token is not valid.
    InvalidToken,
    /// The line or the payload is longer than the limit.
    TooLarge,
    /// It was given up to make room.
    Busy,
    /// No line end behind the payload of a SETB or BATCH.
    NoLineEnd,
    /// The batch is none.
    InvalidBatch(Box<InvalidBatch>),
    /// The line is one of HTTP.
    Http,
    /// The bytes are those of TLS.
    Tls,
}

const SET_USAGE: &str = "SET <id> <message>";
/// The usage of a bulk write, which stands for its limits too.
pub const BULK_USAGE: &str = "<n> SET <message>, n from 1 to 1000000, at most 1 GiB";
const GET_USAGE: &str = "GET <id>";
const DEL_USAGE: &str = "DEL <id>";
const SETB_USAGE: &str = "SETB <id> <bytes>";
const BATCH_USAGE: &str = "BATCH <bytes>";
const GETB_USAGE: &str = "GETB <id>";
const EXPIRE_USAGE: &str = "EXPIRE <id> <seconds>, seconds from 1 to 3153600000";
const PERSIST_USAGE: &str = "PERSIST <id>";
const TTL_USAGE: &str = "TTL <id>";
const LIST_USAGE: &str = "LIST <n> [<prefix>* [<after>]], n from 1 to 1000";
const WHERE_USAGE: &str = "WHERE <id>";
const COUNT_USAGE: &str = "COUNT";
const STATUS_USAGE: &str = "STATUS or STATUS JSON";
const GROUP_USAGE: &str =
    "GROUP, GROUP JSON, GROUP ADD <host:port>, GROUP REMOVE <id> or GROUP TRANSFER <id>";
const PROMPT_USAGE: &str = "PROMPT ON or PROMPT OFF";

/// The longest address, id or name of a leader, in bytes.
const GROUP_ARGUMENT_BYTES_MAX: usize = 255;

/// What a line is, before its payload is cut out of the buffer.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed {
    /// All of a command.
    Done(Command),
    /// A DEL.
    Delete(Key),
    /// An EXPIRE or PERSIST.
    Expire {
        /// The message's name.
        key: Key,
        /// In how many milliseconds; `None`: never.
        ttl_ms: Option<u64>,
    },
    /// A SET.
    Set {
        /// The message's name.
        key: Key,
        /// The offset in the line at which its message begins.
        start: usize,
    },
    /// A bulk write.
    Bulk {
        /// How many messages, 1 to [`BULK_COUNT_MAX`].
        count: u64,
        /// The offset in the line at which their message begins.
        start: usize,
    },
    /// A SETB or BATCH: so many bytes follow.
    Framed {
        /// What they are, or what is wrong with the line.
        what: Result<Framed, Problem>,
        /// The length that is promised.
        length: u64,
    },
}

/// What bytes behind a line are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Framed {
    /// The message of this name.
    Message(Key),
    /// A batch as JSON.
    Batch,
}

/// Parses a line without its end.
pub fn parse(line: &[u8]) -> (Parsed, Prefix) {
    let (word, at) = next_word(line, 0);
    match PREFIXES.iter().any(|name| is_word(word, name)) {
        true => prefix::parse(line),
        false => (parse_command(line, word, at), Prefix::default()),
    }
}

/// The command `word`, whose arguments begin at `at`.
fn parse_command(line: &[u8], word: &[u8], at: usize) -> Parsed {
    let is = |name: &str| is_word(word, name);
    if is("SET") {
        return parse_set(line, at);
    }
    if is("SETB") {
        return parse_framed(line, at);
    }
    if is("BATCH") {
        return parse_batch(line, at);
    }
    if is("DEL") {
        return match with_key(line, at, DEL_USAGE) {
            Ok(key) => Parsed::Delete(key),
            Err(problem) => Parsed::Done(Command::Invalid(problem)),
        };
    }
    if is("EXPIRE") {
        return parse_expire(line, at);
    }
    if is("PERSIST") {
        let ttl_ms = None;
        return match with_key(line, at, PERSIST_USAGE) {
            Ok(key) => Parsed::Expire { key, ttl_ms },
            Err(problem) => Parsed::Done(Command::Invalid(problem)),
        };
    }
    let with_key = |usage, command: fn(Key) -> Command| match with_key(line, at, usage) {
        Ok(key) => command(key),
        Err(problem) => Command::Invalid(problem),
    };
    Parsed::Done(if is("GET") {
        with_key(GET_USAGE, Command::Get)
    } else if is("GETB") {
        with_key(GETB_USAGE, Command::GetFramed)
    } else if is("TTL") {
        with_key(TTL_USAGE, Command::Ttl)
    } else if is("LIST") {
        parse_list(line, at)
    } else if is("WHERE") {
        with_key(WHERE_USAGE, Command::Where)
    } else if is("COUNT") {
        if is_over(line, at) {
            Command::Count
        } else {
            Command::Invalid(Problem::Usage(COUNT_USAGE))
        }
    } else if is("STATUS") {
        parse_status(line, at)
    } else if is("GROUP") {
        parse_group(line, at)
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
            let what = key.map(Framed::Message);
            Parsed::Framed { what, length }
        }
        Some(_) | None => Parsed::Done(Command::Fatal(Problem::Usage(SETB_USAGE))),
    }
}

fn parse_batch(line: &[u8], at: usize) -> Parsed {
    let (length, at) = next_word(line, at);
    match parse_number(length).filter(|_| is_over(line, at)) {
        Some(length) => Parsed::Framed {
            what: Ok(Framed::Batch),
            length,
        },
        None => Parsed::Done(Command::Fatal(Problem::Usage(BATCH_USAGE))),
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

fn parse_expire(line: &[u8], at: usize) -> Parsed {
    let (key, at) = next_word(line, at);
    let (seconds, at) = next_word(line, at);
    let seconds = parse_number(seconds).filter(|_| is_over(line, at));
    let ttl_ms = seconds.map(|seconds| seconds.saturating_mul(1000));
    let ttl_ms = ttl_ms.filter(|ttl_ms| (1..=TTL_MS_MAX).contains(ttl_ms));
    Parsed::Done(Command::Invalid(match (Key::parse(key), ttl_ms) {
        (Ok(key), Some(_)) => return Parsed::Expire { key, ttl_ms },
        (Err(_), Some(_)) => Problem::InvalidKey,
        (_, None) => Problem::Usage(EXPIRE_USAGE),
    }))
}

/// The star says that what stands before it is a beginning.
fn parse_list(line: &[u8], at: usize) -> Command {
    let (limit, at) = next_word(line, at);
    let (pattern, at) = next_word(line, at);
    let (after, at) = next_word(line, at);
    let limit = parse_number(limit).and_then(|limit| u32::try_from(limit).ok());
    let limit = limit.filter(|limit| (1..=PAGE_KEYS_MAX).contains(limit));
    let prefix = match pattern {
        [] => Some(&b""[..]),
        pattern => pattern.strip_suffix(b"*"),
    };
    let text = |word| {
        std::str::from_utf8(word)
            .ok()
            .filter(|text| text.len() <= KEY_BYTES_MAX)
    };
    match (limit, prefix.and_then(text), text(after), is_over(line, at)) {
        (Some(limit), Some(prefix), Some(after), true) => Command::List(ListRequest {
            prefix: prefix.into(),
            after: (!after.is_empty()).then(|| after.into()),
            limit,
        }),
        _ => Command::Invalid(Problem::Usage(LIST_USAGE)),
    }
}

/// The only argument.
fn with_key(line: &[u8], at: usize, usage: &'static str) -> Result<Key, Problem> {
    let (key, at) = next_word(line, at);
    if key.is_empty() || !is_over(line, at) {
        return Err(Problem::Usage(usage));
    }
    Key::parse(key).map_err(|_| Problem::InvalidKey)
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

fn parse_group(line: &[u8], at: usize) -> Command {
    let (verb, at) = next_word(line, at);
    let (argument, at) = next_word(line, at);
    let invalid = Command::Invalid(Problem::Usage(GROUP_USAGE));
    let (Ok(argument), true) = (std::str::from_utf8(argument), is_over(line, at)) else {
        return invalid;
    };
    if argument.len() > GROUP_ARGUMENT_BYTES_MAX {
        return invalid;
    }
    let text = argument.to_owned();
    let (request, json) = match (verb.to_ascii_uppercase().as_slice(), !argument.is_empty()) {
        (b"", false) => (GroupRequest::View, false),
        (b"JSON", false) => (GroupRequest::View, true),
        (b"ADD", true) => (GroupRequest::Add(text), false),
        (b"REMOVE", true) => (GroupRequest::Remove(text), false),
        (b"TRANSFER", true) => (GroupRequest::Transfer(text), false),
        _ => return invalid,
    };
    Command::Group { request, json }
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

fn is_word(word: &[u8], name: &str) -> bool {
    word.eq_ignore_ascii_case(name.as_bytes())
}

/// A space or a tab.
pub fn is_blank(byte: u8) -> bool {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_begins_behind_exactly_one_blank() {
        for (line, start) in [
            ("SET k m", 6),
            ("SET  k  m", 7),
            (" set\tk\tm", 7),
            ("SET k ", 6),
        ] {
            let key = Key::Word("k".into());
            assert_eq!(
                parse(line.as_bytes()),
                (Parsed::Set { key, start }, Prefix::default()),
                "{line:?}"
            );
        }
        for (line, count, start) in [("3 SET m", 3, 6), ("03  set  m", 3, 8), ("1 SET ", 1, 6)] {
            assert_eq!(
                parse(line.as_bytes()),
                (Parsed::Bulk { count, start }, Prefix::default()),
                "{line:?}"
            );
        }
    }

    #[test]
    fn a_length_beyond_all_limits_is_still_a_length() {
        for (text, length) in [("0", 0), ("007", 7), ("99999999999999999999", u64::MAX)] {
            let line = format!("SETB k {text} ");
            let what = Ok(Framed::Message(Key::Word("k".into())));
            let framed = Parsed::Framed { what, length };
            assert_eq!(parse(line.as_bytes()), (framed, Prefix::default()));
        }
        for line in ["SETB", "SETB k", "SETB k +1", "SETB k 1 2", "SETB k 1x"] {
            let problem = Problem::Usage(SETB_USAGE);
            assert_eq!(
                parse(line.as_bytes()),
                (Parsed::Done(Command::Fatal(problem)), Prefix::default()),
                "{line}"
            );
        }
    }
}
