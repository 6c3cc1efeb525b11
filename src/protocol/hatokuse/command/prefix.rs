//! What may stand before a write: `ONCE <token>`, then `IF <revision>`. Pure.
//!
//! `IF` demands, for the write to take effect, that its message was written by this revision: `0`
//! that there is none, `*` that there is one. A SET under it is answered by `OK <revision>`, and
//! one of any kind whose demand does not hold by `MISMATCH <revision>`, 0 where there is none.
//! `-` demands nothing: whoever sends it wants to be told the revision.

use super::{Command, Parsed, Problem, is_word, next_word, parse_command, parse_number};
use crate::ids::{Revision, Token};
use crate::protocol::request::Condition;

/// The words with which a prefix begins.
pub const PREFIXES: [&str; 2] = ["ONCE", "IF"];

const ONCE_USAGE: &str = "ONCE <token> and a SET, SETB, DEL, EXPIRE, PERSIST, BATCH or <n> SET";
const IF_USAGE: &str = "IF <revision> and a SET, SETB or DEL; 0: no such message, *: any";

/// What stands before a write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prefix {
    /// By which a repeat is known.
    pub token: Option<Token>,
    /// What it demands.
    pub condition: Option<Condition>,
    /// Whether a SET is answered with its revision.
    pub tells_revision: bool,
}

/// Parses a line that begins with a prefix.
///
/// What is wrong with a token or a revision is said of a write that has a shape, and then with its
/// payload skipped, if one follows. A payload may follow any other line that speaks of SETB or
/// BATCH: fatal.
pub fn parse(line: &[u8]) -> (Parsed, Prefix) {
    let (mut word, mut at) = next_word(line, 0);
    let mut prefix = Prefix::default();
    let mut problem = None;
    let mut usage = ONCE_USAGE;
    let mut writes = &["SET", "SETB", "DEL", "EXPIRE", "PERSIST", "BATCH"][..];
    if is_word(word, "ONCE") {
        let (text, behind) = next_word(line, at);
        match Token::parse(text) {
            Ok(token) => prefix.token = Some(token),
            Err(_) => problem = Some(Problem::InvalidToken),
        }
        (word, at) = next_word(line, behind);
    }
    let has_condition = is_word(word, "IF");
    if has_condition {
        (usage, writes) = (IF_USAGE, &["SET", "SETB", "DEL"]);
        let (text, behind) = next_word(line, at);
        prefix.tells_revision = true;
        match parse_condition(text) {
            Some(condition) => prefix.condition = condition,
            None => problem = problem.or(Some(Problem::Usage(IF_USAGE))),
        }
        (word, at) = next_word(line, behind);
    }
    let is_bulk = !has_condition && parse_number(word).is_some();
    let parsed = match is_bulk || writes.iter().any(|name| is_word(word, name)) {
        true => parse_command(line, word, at),
        false => Parsed::Done(Command::Invalid(Problem::UnknownCommand)),
    };
    if parsed == Parsed::Done(Command::Invalid(Problem::UnknownCommand)) {
        return (
            without_shape(line, Problem::Usage(usage)),
            Prefix::default(),
        );
    }
    match problem {
        None => (parsed, prefix),
        Some(problem) => (refused(parsed, problem), Prefix::default()),
    }
}

/// `None` if it is none.
fn parse_condition(text: &[u8]) -> Option<Option<Condition>> {
    Some(match text {
        b"-" => None,
        b"*" => Some(Condition::Exists),
        digits => Some(match parse_number(digits)? {
            0 => Condition::Absent,
            revision => Condition::Revision(Revision::from_u64(revision)),
        }),
    })
}

fn without_shape(line: &[u8], usage: Problem) -> Parsed {
    let mut words = line.split(|&byte| super::is_blank(byte));
    let has_payload = |word| is_word(word, "SETB") || is_word(word, "BATCH");
    Parsed::Done(match words.any(has_payload) {
        true => Command::Fatal(usage),
        false => Command::Invalid(usage),
    })
}

fn refused(parsed: Parsed, problem: Problem) -> Parsed {
    match parsed {
        Parsed::Framed { length, .. } => Parsed::Framed {
            what: Err(problem),
            length,
        },
        Parsed::Done(command) => Parsed::Done(command),
        Parsed::Delete(_) | Parsed::Expire { .. } | Parsed::Set { .. } | Parsed::Bulk { .. } => {
            Parsed::Done(Command::Invalid(problem))
        }
    }
}
