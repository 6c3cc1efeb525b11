//! The names of things: a distinct type for each, so that one cannot stand in for another. Pure.
//!
//! All integers print in decimal, except node ids, which are random 64-bit numbers and print as 16
//! hexadecimal digits.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

/// The longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 512;

/// The longest token, in bytes.
pub const TOKEN_BYTES_MAX: usize = 64;

/// The lowest and highest tolerance: how many members hold each message.
pub const TOLERANCE_MIN: u8 = 1;
/// See [`TOLERANCE_MIN`].
pub const TOLERANCE_MAX: u8 = 7;

/// The name of a message: 1..=512 bytes of UTF-8 without white space or control characters.
///
/// A canonical decimal u64 (`0`, `42`, not `042`) is a *message id* and held as an integer; a
/// `Word` never holds one, so that equal names are equal values. The order is by variant and then
/// value, not bytewise.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// A message id.
    Id(u64),
    /// Any other name.
    Word(Box<str>),
}

/// What is wrong with a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("key must be 1 to 512 bytes without spaces")]
pub struct InvalidKey;

impl Key {
    /// Checks the bytes of a key as a client or a peer sent them.
    pub fn parse(bytes: &[u8]) -> Result<Key, InvalidKey> {
        if bytes.is_empty() || bytes.len() > KEY_BYTES_MAX {
            return Err(InvalidKey);
        }
        if let Some(id) = parse_canonical_u64(bytes) {
            return Ok(Key::Id(id));
        }
        Ok(Key::Word(parse_word(bytes).ok_or(InvalidKey)?.into()))
    }

    /// The key's text as bytes, the inverse of [`Key::parse`].
    pub fn to_bytes(&self) -> Bytes {
        match self {
            Key::Id(id) => Bytes::from(id.to_string().into_bytes()),
            Key::Word(word) => Bytes::copy_from_slice(word.as_bytes()),
        }
    }

    /// The length of the key's text, in bytes.
    pub fn text_len(&self) -> usize {
        match self {
            Key::Id(id) => id.checked_ilog10().unwrap_or(0) as usize + 1,
            Key::Word(word) => word.len(),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Id(id) => write!(f, "{id}"),
            Key::Word(word) => f.write_str(word),
        }
    }
}

/// UTF-8 without white space and control characters.
fn parse_word(bytes: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(bytes).ok()?;
    let is_bad = |c: char| c.is_whitespace() || c.is_control();
    (!text.contains(is_bad)).then_some(text)
}

fn parse_canonical_u64(bytes: &[u8]) -> Option<u64> {
    let canonical = match bytes {
        [b'0'] => true,
        [b'1'..=b'9', rest @ ..] => rest.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    if !canonical {
        return None;
    }
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

/// An idempotency token: a client's name for one write, by which a repeat is known. 1..=64 bytes of
/// UTF-8 without white space or control characters; cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(Arc<str>);

/// What is wrong with a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("token must be 1 to 64 bytes without spaces")]
pub struct InvalidToken;

impl Token {
    /// Checks the bytes of a token as a client or a peer sent them.
    pub fn parse(bytes: &[u8]) -> Result<Token, InvalidToken> {
        if bytes.is_empty() || bytes.len() > TOKEN_BYTES_MAX {
            return Err(InvalidToken);
        }
        Ok(Token(parse_word(bytes).ok_or(InvalidToken)?.into()))
    }

    /// The token's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Names one write of a key, and the immutable record that members hold for it: `term << 40 |
/// sequence`, never used twice. Its order decides nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(u64);

/// Bits of a revision that count writes within a term: about a trillion of them.
const SEQUENCE_BITS: u32 = 40;

impl Revision {
    /// The highest sequence number within a term.
    pub const SEQUENCE_MAX: u64 = (1 << SEQUENCE_BITS) - 1;
    /// The highest term a revision can hold.
    pub const TERM_MAX: u64 = (1 << (64 - SEQUENCE_BITS)) - 1;
    /// The most by which a term may be above one that is known. A group that elects all the time,
    /// three times a second, needs four days for as many terms; one that works has some a day.
    /// Sixteen times of it is all that revisions can hold.
    pub const TERM_JUMP_MAX: u64 = 1 << 20;
    /// The most by which the term of a fence that a member has executed may be above the leader's,
    /// for the leader to believe it and go on above it. Half of the other, so that peers and the
    /// other members, which did not see that fence, follow.
    pub const TERM_BELIEVED_MAX: u64 = Revision::TERM_JUMP_MAX / 2;

    /// The revision of the `sequence`-th write of `term`.
    pub fn new(term: u64, sequence: u64) -> Revision {
        assert!(
            term <= Self::TERM_MAX,
            "term {term} does not fit a revision"
        );
        assert!(
            sequence <= Self::SEQUENCE_MAX,
            "sequence {sequence} does not fit a revision"
        );
        Revision(term << SEQUENCE_BITS | sequence)
    }

    /// From its integer form, as it stands on disk and on the wire; every u64 is one.
    pub const fn from_u64(value: u64) -> Revision {
        Revision(value)
    }

    /// The integer form.
    pub fn as_u64(self) -> u64 {
        self.0
    }

    /// The Raft term of the leader that allotted it.
    pub fn term(self) -> u64 {
        self.0 >> SEQUENCE_BITS
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

macro_rules! node_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:016x}", self.0)
            }
        }
    };
}

node_id! {
    /// A member: random, made once for a data directory, never 0.
    MemberId
}
node_id! {
    /// A leader process as a participant in Raft: random, made once by bootstrap, never 0.
    PeerId
}
node_id! {
    /// A cluster: random, made once by bootstrap. Nodes of different clusters refuse each other.
    ClusterId
}

/// Pairs an answer with its call on one link; unique on that link while it is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId(pub u64);

impl fmt::Display for CallId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Carried by each request of a leader to a member, which refuses one lower than it has executed
/// (DESIGN.md §5, R8 and R10). Compared lexicographically.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fence {
    /// The Raft term of the leader that sends.
    pub term: u64,
    /// The leader's own counter of links to this member.
    pub link: u64,
}

impl Fence {
    /// Whether the leader of `term` believes no member that it has executed this fence.
    pub fn is_absurd_above(self, term: u64) -> bool {
        self.term > Revision::TERM_MAX.min(term.saturating_add(Revision::TERM_BELIEVED_MAX))
    }
}

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.term, self.link)
    }
}

/// An entry of the leaders' log, by the term of the leader that made it and its index. Ordered as
/// Raft compares logs: of two logs the one whose last entry is higher is more up to date. Zeros are
/// no entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogPosition {
    /// The Raft term of the entry.
    pub term: u64,
    /// Its index.
    pub index: u64,
}

impl fmt::Display for LogPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of term {}", self.index, self.term)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_decimals_are_message_ids_and_all_else_is_a_word() {
        for (text, id) in [("0", 0), ("42", 42), ("18446744073709551615", u64::MAX)] {
            assert_eq!(Key::parse(text.as_bytes()), Ok(Key::Id(id)));
        }
        for text in [
            "042",
            "-5",
            "+1",
            "00",
            "18446744073709551616",
            "1a",
            "é",
            "a/b",
        ] {
            assert_eq!(
                Key::parse(text.as_bytes()),
                Ok(Key::Word(text.into())),
                "{text}"
            );
        }
    }

    #[test]
    fn bad_keys_are_refused() {
        let long = "k".repeat(KEY_BYTES_MAX + 1);
        for text in [
            "",
            " ",
            "a b",
            "a\tb",
            "a\u{a0}b",
            "a\u{2003}",
            "a\u{7f}",
            "\0",
            &long,
        ] {
            assert_eq!(Key::parse(text.as_bytes()), Err(InvalidKey), "{text:?}");
        }
        assert_eq!(Key::parse(&[0xff, b'a']), Err(InvalidKey));
        assert!(Key::parse("k".repeat(KEY_BYTES_MAX).as_bytes()).is_ok());
    }

    #[test]
    fn bad_tokens_are_refused() {
        let long = "t".repeat(TOKEN_BYTES_MAX + 1);
        for text in ["", "a b", "a\u{a0}b", "\u{7f}", "a\0", &long] {
            assert_eq!(Token::parse(text.as_bytes()), Err(InvalidToken), "{text:?}");
        }
        assert_eq!(Token::parse(&[0xff]), Err(InvalidToken));
        for text in ["0", "é-7", &long[1..]] {
            let token = Token::parse(text.as_bytes()).expect("a valid token");
            assert_eq!((token.as_str(), token.to_string().as_str()), (text, text));
        }
    }

    #[test]
    fn the_text_of_a_key_comes_back() {
        for text in [
            "0",
            "7",
            "10",
            "999",
            "1000",
            "18446744073709551615",
            "word",
            "007",
        ] {
            let key = Key::parse(text.as_bytes()).expect("a valid key");
            assert_eq!(key.to_bytes(), text.as_bytes());
            assert_eq!(key.text_len(), text.len());
            assert_eq!(key.to_string(), text);
        }
    }

    #[test]
    fn a_revision_keeps_its_term() {
        let revision = Revision::new(3, 7);
        assert_eq!((revision.term(), revision.as_u64()), (3, (3 << 40) + 7));
        assert!(Revision::new(4, 0) > Revision::new(3, Revision::SEQUENCE_MAX));
    }

    #[test]
    fn fences_compare_by_term_then_link() {
        let fence = |term, link| Fence { term, link };
        assert!(fence(2, 1) > fence(1, 9) && fence(2, 2) > fence(2, 1));
    }
}
