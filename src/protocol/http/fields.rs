//! Values of fields: entity tags, conditions, ranges, accepted types. Pure.
//!
//! Sources: RFC 9110 sections 8.8.3 (entity tags), 12.5.1 (Accept), 13.1 (conditions), 14 (ranges).

use std::fmt;

use super::head::Fields;
use super::problem::{Kind, Problem};
use crate::ids::Revision;
use crate::protocol::request::Condition;

/// Revisions begin with a term, and terms with 1.
const NO_REVISION: Revision = Revision::from_u64(0);

/// What an entity tag of ours ends in if it is that of a message in JSON.
const JSON_SUFFIX: &str = "-json";

/// An entity tag of ours. The representations of a message have one each, as they differ byte for
/// byte: its bytes `"<revision>"`, and JSON `"<revision>-json"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntityTag {
    /// Of the message.
    pub revision: Revision,
    /// Whether of its JSON.
    pub is_json: bool,
}

impl EntityTag {
    /// That of a message's bytes.
    pub fn of_bytes(revision: Revision) -> EntityTag {
        EntityTag {
            revision,
            is_json: false,
        }
    }

    /// The tag with this text within its quotes, if it can be one of ours.
    fn parse(text: &str) -> Option<EntityTag> {
        let digits = text.strip_suffix(JSON_SUFFIX);
        let (is_json, digits) = (digits.is_some(), digits.unwrap_or(text));
        let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        let number = is_number.then(|| digits.parse().ok()).flatten()?;
        Some(EntityTag {
            revision: Revision::from_u64(number),
            is_json,
        })
    }
}

impl fmt::Display for EntityTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let suffix = if self.is_json { JSON_SUFFIX } else { "" };
        write!(f, "\"{}{suffix}\"", self.revision)
    }
}

/// The entity tags of a condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tags {
    /// `*`: any.
    Any,
    /// These; those that no message of ours can have are left out.
    Of(Vec<EntityTag>),
}

impl Tags {
    /// Whether a representation with this tag is among them.
    pub fn contain(&self, tag: EntityTag) -> bool {
        match self {
            Tags::Any => true,
            Tags::Of(tags) => tags.contains(&tag),
        }
    }
}

/// One entity tag as it came.
struct Tag {
    is_weak: bool,
    /// If it can be one of ours.
    known: Option<EntityTag>,
}

fn invalid(detail: &'static str) -> Problem {
    Problem::with(Kind::InvalidCondition, detail)
}

/// Reads a list of entity tags; `None` for `*`.
fn read_tags(value: &str) -> Result<Option<Vec<Tag>>, Problem> {
    if value == "*" {
        return Ok(None);
    }
    let mut tags = Vec::new();
    let mut rest = value.trim();
    while !rest.is_empty() {
        let is_weak = rest.starts_with("W/");
        rest = rest.strip_prefix("W/").unwrap_or(rest);
        let quoted = rest.strip_prefix('"').and_then(|rest| rest.split_once('"'));
        let Some((text, behind)) = quoted else {
            return Err(invalid("an entity tag is a text in double quotes"));
        };
        let known = EntityTag::parse(text);
        tags.push(Tag { is_weak, known });
        let behind = behind.trim_start();
        rest = match behind.strip_prefix(',') {
            Some(rest) => rest.trim_start(),
            None if behind.is_empty() => behind,
            None => return Err(invalid("entity tags are separated by commas")),
        };
    }
    match tags.is_empty() {
        true => Err(invalid("there is no entity tag")),
        false => Ok(Some(tags)),
    }
}

/// The condition of a write, by If-Match or If-None-Match.
pub fn write_condition(fields: &Fields) -> Result<Option<Condition>, Problem> {
    let (Some(value), None) = (&fields.if_match, &fields.if_none_match) else {
        return match (&fields.if_match, fields.if_none_match.as_deref()) {
            (None, None) => Ok(None),
            (None, Some("*")) => Ok(Some(Condition::Absent)),
            (None, Some(_)) => Err(invalid("If-None-Match of a write is *")),
            (Some(_), _) => Err(invalid("If-Match and If-None-Match exclude each other")),
        };
    };
    let Some(tags) = read_tags(value)? else {
        return Ok(Some(Condition::Exists));
    };
    let tags = tags.into_iter().filter(|tag| !tag.is_weak);
    // A write replaces all representations: any of their tags will do.
    let mut revisions: Vec<Revision> = tags.filter_map(|tag| Some(tag.known?.revision)).collect();
    revisions.sort_unstable();
    revisions.dedup();
    match revisions.as_slice() {
        // Tags of others: no message has one, which apply finds, and says what it has.
        [] => Ok(Some(Condition::Revision(NO_REVISION))),
        [revision] => Ok(Some(Condition::Revision(*revision))),
        _ => Err(invalid("If-Match of a write names one revision, or *")),
    }
}

/// The tags of a read's If-Match, which compares strongly, or If-None-Match, which does not.
pub fn read_condition(value: Option<&str>, is_strong: bool) -> Result<Option<Tags>, Problem> {
    let Some(value) = value else {
        return Ok(None);
    };
    Ok(Some(match read_tags(value)? {
        None => Tags::Any,
        Some(tags) => {
            let tags = tags.into_iter().filter(|tag| !(is_strong && tag.is_weak));
            Tags::Of(tags.filter_map(|tag| tag.known).collect())
        }
    }))
}

/// What If-Range says: the tag of what the client has a part of; `Some(None)` if that cannot be one
/// of ours.
pub fn if_range(value: Option<&str>) -> Option<Option<EntityTag>> {
    let tags = read_tags(value?).ok().flatten();
    Some(match tags.as_deref() {
        Some([tag]) if !tag.is_weak => tag.known,
        _ => None,
    })
}

/// A range of bytes that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Range {
    /// From a position on, to another, inclusive, or to the end.
    From(u64, Option<u64>),
    /// The last so many.
    Last(u64),
}

impl Range {
    /// The one range of the field. What is malformed, of another unit or several ranges is answered
    /// with the whole, as if it were not there (RFC 9110 section 14.2).
    pub fn read(value: &str) -> Option<Range> {
        let (unit, range) = value.split_once('=')?;
        let (first, last) = range.trim().split_once('-')?;
        if !unit.eq_ignore_ascii_case("bytes") {
            return None;
        }
        match (first.is_empty(), last.is_empty()) {
            (true, true) => None,
            (true, false) => number(last).map(Range::Last),
            (false, true) => Some(Range::From(number(first)?, None)),
            (false, false) => {
                let (first, last) = (number(first)?, number(last)?);
                (first <= last).then_some(Range::From(first, Some(last)))
            }
        }
    }

    /// Which bytes of a message of this length that is; `None` if it has none of them.
    pub fn within(self, length: usize) -> Option<std::ops::Range<usize>> {
        let clamp = |at: u64| usize::try_from(at).map_or(length, |at| at.min(length));
        let range = match self {
            Range::From(first, None) => clamp(first)..length,
            Range::From(first, Some(last)) => clamp(first)..clamp(last.saturating_add(1)),
            Range::Last(count) => length - clamp(count)..length,
        };
        (!range.is_empty()).then_some(range)
    }
}

/// Digits only; what does not fit lies behind every message.
fn number(text: &str) -> Option<u64> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().unwrap_or(u64::MAX))
}

/// How much a type is wanted, in thousandths, and whether by its name.
type Wish = (u16, bool);

/// Which representations of a message a client accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accept {
    json: Wish,
    text: Wish,
    binary: Wish,
}

/// A representation of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Representation {
    /// Its bytes, which are text.
    Text,
    /// Its bytes.
    Binary,
    /// An object with key, value and revision.
    Json,
}

impl Accept {
    /// By the field; without one all are accepted.
    pub fn read(value: Option<&str>) -> Result<Accept, Problem> {
        let Some(value) = value.filter(|value| !value.trim().is_empty()) else {
            let any = (1000, false);
            return Ok(Accept {
                json: any,
                text: any,
                binary: any,
            });
        };
        let accept = Accept {
            json: wish(value, "application", "json"),
            text: wish(value, "text", "plain"),
            binary: wish(value, "application", "octet-stream"),
        };
        match (accept.json.0, accept.text.0, accept.binary.0) {
            (0, 0, 0) => Err(Kind::NotAcceptable.into()),
            _ => Ok(accept),
        }
    }

    /// The best for a message; `None` if none is accepted.
    pub fn choose(&self, payload: &[u8]) -> Option<Representation> {
        let text = match self.text.0 > 0 && std::str::from_utf8(payload).is_ok() {
            true => self.text,
            false => (0, false),
        };
        let (raw, wish) = match text > (0, true) && text >= (self.binary.0, false) {
            true => (Representation::Text, text.max(self.binary)),
            false => (Representation::Binary, self.binary),
        };
        match (self.json > wish, wish.0 > 0) {
            (true, _) => Some(Representation::Json),
            (false, true) => Some(raw),
            (false, false) => None,
        }
    }
}

impl Accept {
    /// Whether some message would be sent as JSON.
    pub fn may_choose_json(&self) -> bool {
        self.json > self.binary
    }
}

/// What the most specific range of the field says of a type (RFC 9110 section 12.5.1).
fn wish(value: &str, kind: &str, subkind: &str) -> Wish {
    let mut best = (0, (0, false));
    for entry in value.split(',') {
        let mut parts = entry.split(';').map(str::trim);
        let Some((first, second)) = parts.next().and_then(|range| range.split_once('/')) else {
            continue;
        };
        let is = |text: &str, name: &str| text.eq_ignore_ascii_case(name);
        let rank = match (is(first, kind), is(second, subkind)) {
            (true, true) => 3,
            (true, false) if second == "*" => 2,
            _ if first == "*" && second == "*" => 1,
            _ => continue,
        };
        let quality = parts.find_map(|part| part.strip_prefix("q=").or(part.strip_prefix("Q=")));
        let thousandths = quality.map_or(1000, |text| {
            let quality = text.parse::<f32>().unwrap_or(0.0).clamp(0.0, 1.0);
            (quality * 1000.0) as u16
        });
        if rank > best.0 {
            best = (rank, (thousandths, rank == 3));
        }
    }
    best.1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn revision(number: u64) -> Revision {
        Revision::from_u64(number)
    }

    #[test]
    fn conditions_of_writes_are_one_revision_or_a_star() {
        let condition = |if_match: Option<&str>, if_none_match: Option<&str>| {
            write_condition(&Fields {
                if_match: if_match.map(Into::into),
                if_none_match: if_none_match.map(Into::into),
                ..Fields::default()
            })
            .map_err(|problem| problem.kind)
        };
        let bad = Err(Kind::InvalidCondition);
        assert_eq!(condition(None, None), Ok(None));
        let expected = Ok(Some(Condition::Revision(revision(7))));
        assert_eq!(condition(Some("\"7\""), None), expected);
        assert_eq!(condition(Some("*"), None), Ok(Some(Condition::Exists)));
        assert_eq!(condition(None, Some("*")), Ok(Some(Condition::Absent)));
        assert_eq!(condition(Some("\"x\", \"7\", W/\"8\""), None), expected);
        assert_eq!(condition(Some("\"7-json\", \"7\""), None), expected);
        for text in [
            "W/\"7\"",
            "\"x\"",
            "\"+7\"",
            "\"0\"",
            "\"-json\"",
            "\"7-text\"",
        ] {
            let nothing = Ok(Some(Condition::Revision(revision(0))));
            assert_eq!(condition(Some(text), None), nothing, "{text}");
        }
        for text in ["7", "\"7\", \"8\"", "", "\"7", "\"7\"x"] {
            assert_eq!(condition(Some(text), None), bad, "{text}");
        }
        assert_eq!(condition(None, Some("\"7\"")), bad);
        assert_eq!(condition(Some("*"), Some("*")), bad);
    }

    #[test]
    fn conditions_of_reads_are_lists() {
        let tags = |text, is_strong| read_condition(Some(text), is_strong).expect("a condition");
        let tag = |number: &u64| EntityTag::of_bytes(revision(*number));
        let of = |numbers: &[u64]| Some(Tags::Of(numbers.iter().map(tag).collect()));
        assert_eq!(
            tags("\"1\", W/\"2\" ,\"x,y\", \"3\"", false),
            of(&[1, 2, 3])
        );
        assert_eq!(tags("\"1\", W/\"2\"", true), of(&[1]));
        assert_eq!(tags("*", true), Some(Tags::Any));
        let json = tags("\"1-json\"", true).expect("a condition");
        assert!(!json.contain(tag(&1)));
        let of_json = EntityTag {
            is_json: true,
            ..tag(&1)
        };
        assert!(json.contain(of_json) && of_json.to_string() == "\"1-json\"");
        assert!(read_condition(Some("1"), false).is_err());
    }

    #[test]
    fn ranges_are_single_and_within_the_message() {
        for (text, length, expected) in [
            ("bytes=0-0", 5, Some(0..1)),
            ("bytes=1-", 5, Some(1..5)),
            ("Bytes= 1-99", 5, Some(1..5)),
            ("bytes=-2", 5, Some(3..5)),
            ("bytes=-9", 5, Some(0..5)),
            ("bytes=4-99999999999999999999", 5, Some(4..5)),
            ("bytes=5-", 5, None),
            ("bytes=-0", 5, None),
            ("bytes=0-", 0, None),
        ] {
            let range = Range::read(text).expect(text);
            assert_eq!(range.within(length), expected, "{text}");
        }
        for text in [
            "bytes=2-1",
            "bytes=0-1,3-4",
            "bytes=-",
            "lines=1-2",
            "bytes 1-2",
            "bytes=a-",
        ] {
            assert_eq!(Range::read(text), None, "{text}");
        }
    }

    #[test]
    fn the_most_wanted_representation_is_chosen() {
        use Representation::{Binary, Json, Text};
        for (accept, of_text, of_binary) in [
            (None, Some(Text), Some(Binary)),
            (Some("*/*"), Some(Text), Some(Binary)),
            (Some("application/json"), Some(Json), Some(Json)),
            (Some("application/json, */*"), Some(Json), Some(Json)),
            (
                Some("application/json, text/plain, */*"),
                Some(Text),
                Some(Json),
            ),
            (Some("text/plain"), Some(Text), None),
            (Some("application/octet-stream"), Some(Binary), Some(Binary)),
            (Some("text/html, */*;q=0.8"), Some(Text), Some(Binary)),
            (
                Some("application/json;q=0.1, */*"),
                Some(Text),
                Some(Binary),
            ),
            (Some("application/*"), Some(Binary), Some(Binary)),
        ] {
            let chosen = Accept::read(accept).expect("a type");
            assert_eq!(chosen.choose(b"text"), of_text, "{accept:?}");
            assert_eq!(chosen.choose(b"\xff"), of_binary, "{accept:?}");
        }
        assert!(Accept::read(Some("image/*, */*;q=0")).is_err());
    }
}
