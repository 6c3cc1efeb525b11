//! The kinds of values a setting can have: how each is read, checked and described. Pure.
//!
//! A value is text until [`Kind::read`] has checked it; afterwards it is a [`Value`] that cannot be
//! wrong. Empty text is the value "not given" of an optional kind, and an error for all others.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::units;
use crate::ids::{ClusterId, LogPosition};

/// The longest node name: a DNS label, since certificates carry it as one.
pub const NAME_BYTES_MAX: usize = 63;

/// The longest name of a host, as DNS has it.
const HOST_BYTES_MAX: usize = 253;

/// What a setting accepts.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// A node's name.
    Name,
    /// Any text without control characters, also none.
    Text,
    /// The same, but some.
    Filled,
    /// A file or directory, relative to `base_dir`; `{name}` stands for the node's name.
    Path,
    /// The directory that relative paths start from; none is the working directory.
    BaseDir,
    /// An IP address and port to listen on.
    Bind,
    /// The same, or none.
    BindOrNone,
    /// A host and port that others use to reach this node; none is the address it listens on.
    Advertise,
    /// One or more `host:port`.
    Addresses,
    /// Any number of host names, without ports.
    Hosts,
    /// `true` or `false`.
    Switch,
    /// A whole number within bounds.
    Count(u64, u64),
    /// A size in bytes within bounds.
    Size(u64, u64),
    /// A time within bounds, in milliseconds.
    Time(u64, u64),
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// 16 hexadecimal digits, or none.
    Cluster,
    /// The term and index of an entry of the leaders' log, or none.
    Entry,
}

/// A checked value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Of `Name`, `Text`, `Filled`, `OneOf`.
    Text(String),
    /// Of `Path`.
    Path(PathBuf),
    /// Of `Bind`, `BindOrNone`.
    Bind(SocketAddr),
    /// Of `Advertise` and `Addresses`: each is `host:port`; of `Hosts`: each is a host.
    Addresses(Vec<String>),
    /// Of `Switch`.
    Switch(bool),
    /// Of `Count` and `Size`.
    Number(u64),
    /// Of `Time`.
    Time(Duration),
    /// Of `Cluster`.
    Cluster(ClusterId),
    /// A log entry's term and index, of the kind `Entry`.
    Entry(LogPosition),
    /// Not given.
    None,
}

impl Kind {
    /// Checks a value; `None` if it is not accepted.
    pub fn read(self, text: &str) -> Option<Value> {
        match self {
            Kind::Name => is_name(text).then(|| Value::Text(text.to_owned())),
            Kind::Path | Kind::Filled if text.is_empty() => None,
            Kind::Text | Kind::Filled => is_plain(text).then(|| Value::Text(text.to_owned())),
            Kind::BaseDir if text.is_empty() => Some(Value::None),
            Kind::Path | Kind::BaseDir => is_plain(text).then(|| Value::Path(text.into())),
            Kind::BindOrNone | Kind::Advertise | Kind::Cluster | Kind::Hosts | Kind::Entry
                if text.is_empty() =>
            {
                Some(Value::None)
            }
            Kind::Bind | Kind::BindOrNone => text.parse().ok().map(Value::Bind),
            Kind::Advertise => is_host_port(text).then(|| Value::Addresses(vec![text.into()])),
            Kind::Addresses => {
                let parts: Vec<String> = text.split(',').map(|p| p.trim().to_owned()).collect();
                parts
                    .iter()
                    .all(|p| is_host_port(p))
                    .then_some(Value::Addresses(parts))
            }
            Kind::Hosts => {
                let parts: Vec<String> = text.split(',').map(|p| p.trim().to_owned()).collect();
                parts
                    .iter()
                    .all(|p| is_host(p))
                    .then_some(Value::Addresses(parts))
            }
            Kind::Switch => text.parse().ok().map(Value::Switch),
            Kind::Count(min, max) => within(text.parse().ok()?, min, max).map(Value::Number),
            Kind::Size(min, max) => within(units::parse_bytes(text)?, min, max).map(Value::Number),
            Kind::Time(min, max) => {
                let time = units::parse_time(text)?;
                let bounds = Duration::from_millis(min)..=Duration::from_millis(max);
                bounds.contains(&time).then_some(Value::Time(time))
            }
            Kind::OneOf(words) => words.contains(&text).then(|| Value::Text(text.to_owned())),
            Kind::Cluster => (text.len() == 16)
                .then(|| u64::from_str_radix(text, 16).ok())
                .flatten()
                .filter(|id| *id != 0)
                .map(|id| Value::Cluster(ClusterId(id))),
            Kind::Entry => {
                let (term, index) = text.split_once('.')?;
                let (term, index) = (term.parse().ok()?, index.parse().ok()?);
                Some(Value::Entry(LogPosition { term, index }))
            }
        }
    }

    /// The unit of a bare number, for the table of settings; empty where there is none.
    pub fn unit(self) -> &'static str {
        match self {
            Kind::Size(..) => "bytes",
            Kind::Time(..) => "time",
            Kind::Count(..) => "count",
            Kind::Name
            | Kind::Text
            | Kind::Filled
            | Kind::Path
            | Kind::BaseDir
            | Kind::Bind
            | Kind::BindOrNone
            | Kind::Advertise
            | Kind::Addresses
            | Kind::Hosts
            | Kind::Switch
            | Kind::OneOf(_)
            | Kind::Cluster
            | Kind::Entry => "",
        }
    }
}

/// Says what is accepted, for errors and documentation.
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Kind::Name => write!(
                f,
                "1 to {NAME_BYTES_MAX} letters, digits and '-', not '-' at an end, not localhost"
            ),
            Kind::Text => f.write_str("text or \"\""),
            Kind::Filled => f.write_str("text"),
            Kind::Path => f.write_str("a path"),
            Kind::BaseDir => f.write_str("a path or \"\""),
            Kind::Bind => f.write_str("an IP address and port such as 127.0.0.1:5555"),
            Kind::BindOrNone => f.write_str("an IP address and port, or \"\""),
            Kind::Advertise => f.write_str("host:port or \"\""),
            Kind::Addresses => f.write_str("one or more host:port"),
            Kind::Hosts => f.write_str("host names without ports, or none"),
            Kind::Switch => f.write_str("true or false"),
            Kind::Count(min, max) => write!(f, "a number from {min} to {max}"),
            Kind::Size(min, max) => {
                let (min, max) = (units::show_bytes(min), units::show_bytes(max));
                write!(f, "a size such as 64MiB, from {min} to {max}")
            }
            Kind::Time(min, max) => {
                let show = |millis| units::show_time(Duration::from_millis(millis));
                write!(
                    f,
                    "a time such as 250ms, from {} to {}",
                    show(min),
                    show(max)
                )
            }
            Kind::OneOf(words) => f.write_str(&words.join(", ")),
            Kind::Cluster => f.write_str("16 hexadecimal digits or \"\""),
            Kind::Entry => f.write_str("TERM.INDEX or \"\""),
        }
    }
}

fn within(number: u64, min: u64, max: u64) -> Option<u64> {
    (min..=max).contains(&number).then_some(number)
}

/// Whether `text` may name a node: it stands in certificates, addresses and file names. `localhost`
/// stands in every certificate and is nobody's name.
pub fn is_name(text: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
        && text != "localhost"
}

fn is_plain(text: &str) -> bool {
    !text.chars().any(char::is_control)
}

/// Whether `text` is the name of a host, as it stands in a URL.
fn is_host(text: &str) -> bool {
    let is_label = |label: &str| {
        let is_good = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        !label.is_empty() && label.bytes().all(is_good)
    };
    text.len() <= HOST_BYTES_MAX && text.split('.').all(is_label)
}

/// Whether `text` has the form `host:port`; the host is resolved when it is used. An IPv6 address
/// stands in brackets. What other places split at (`,`, `@`) and blanks are refused.
pub fn is_host_port(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else {
        return false;
    };
    let bracketed = host.starts_with('[') && host.ends_with(']');
    let host_is_good = !host.is_empty()
        && (bracketed || !host.contains(':'))
        && !host
            .chars()
            .any(|c| c.is_whitespace() || c.is_control() || c == ',' || c == '@');
    host_is_good && port.parse::<u16>().is_ok_and(|port| port != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_takes_its_own_and_nothing_else() {
        let table: [(Kind, &[&str], &[&str]); 16] = [
            (Kind::Text, &["", "a b"], &["a\tb"]),
            (Kind::Filled, &["a b"], &["", "a\0"]),
            (
                Kind::Name,
                &["member-1", "A"],
                &["", "localhost", "-a", "a-", "a_b", "a b", "a:b", "é"],
            ),
            (Kind::Path, &["a/b c", "/"], &["", "a\nb"]),
            (Kind::BaseDir, &["", "/x"], &["\0"]),
            (
                Kind::Bind,
                &["127.0.0.1:0", "[::1]:5"],
                &["", "localhost:1", "1.2.3.4", ":1"],
            ),
            (
                Kind::Advertise,
                &["", "h:1", "[::1]:9"],
                &["h", "h:0", "h:65536", "a b:1", "::1:1"],
            ),
            (Kind::Addresses, &["h:1", "h:1, i:2"], &["", "h:1,", "h"]),
            (
                Kind::Hosts,
                &["", "h", "a.example, b_1.example"],
                &["h:1", "*.example", "a.", "a,", "h/x"],
            ),
            (Kind::Switch, &["true", "false"], &["", "1", "yes"]),
            (Kind::Count(1, 9), &["1", "9"], &["0", "10", "x", "1.0", ""]),
            (Kind::Size(1, 1024), &["1KiB", "7"], &["2KiB", "0", ""]),
            (Kind::Time(1, 1000), &["1ms", "1s"], &["2s", "1", "0ms"]),
            (Kind::OneOf(&["a", "b"]), &["a", "b"], &["", "c", "A"]),
            (
                Kind::Cluster,
                &["", "00000000000000ff"],
                &["ff", "0000000000000000"],
            ),
            (
                Kind::Entry,
                &["", "4.41"],
                &["4", "4.", ".41", "4.41.1", "-1.2"],
            ),
        ];
        for (kind, good, bad) in table {
            for text in good {
                assert!(kind.read(text).is_some(), "{kind:?} {text:?}");
            }
            for text in bad {
                assert_eq!(kind.read(text), None, "{kind:?} {text:?}");
            }
        }
    }
}
