//! What a load consists of: which requests, how many, when, and their bytes. Pure.
//!
//! Keys are the message ids [`KEY_FIRST`]`..KEY_FIRST + keys`. Each connection sets all of them in
//! order, beginning at a place of its own, so that `--count K --keys K` stores every one about once
//! and no two connections write the same key at a time; it gets them by chance.

use std::time::Duration;

use crate::cli::args::Protocol;

/// The lowest id of a load: far above the ids that bulk writes hand out and people type, so that a
/// load overwrites nobody's messages, and exact in every reader of JSON.
pub const KEY_FIRST: u64 = 9_000_000_000_000_000;

/// The byte of which payloads consist. A reply to GET cannot be mistaken for an error.
pub const FILLING: u8 = b'x';

/// Every leader is served under this name: that of a request stays when the leader changes.
const HOST: &str = "localhost";

/// When a load ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum End {
    /// After so long; what is in flight then is waited for.
    After(Duration),
    /// After so many requests.
    Count(u64),
}

/// A load, as the user asks for it.
#[derive(Clone, Debug, PartialEq)]
pub struct Load {
    /// What its requests are spoken in.
    pub protocol: Protocol,
    /// Connections.
    pub connections: usize,
    /// Requests in flight on each connection.
    pub pipeline: usize,
    /// Payload bytes of a message.
    pub size: usize,
    /// Requests a second of all connections together; `None` sends as fast as replies come.
    pub rate: Option<f64>,
    /// When it ends.
    pub end: End,
    /// Share of GETs among the requests, 0 to 1.
    pub get_ratio: f64,
    /// How many different keys are used.
    pub keys: u64,
}

/// The requests of one connection.
pub struct Requests {
    random: fastrand::Rng,
    get_ratio: f64,
    keys: u64,
    /// The next key to set, from 0 on.
    next: u64,
    /// Requests that are still to be made.
    left: u64,
    set: Around,
    get: Around,
}

/// The bytes of a request before its key and behind it.
struct Around {
    before: &'static [u8],
    behind: Vec<u8>,
}

impl Load {
    /// What connection `index` of them sends.
    pub fn requests(&self, index: usize, seed: u64) -> Requests {
        let (index, connections) = (index as u64, self.connections as u64);
        let left = match self.end {
            End::After(_) => u64::MAX,
            End::Count(count) => count / connections + u64::from(index < count % connections),
        };
        Requests {
            random: fastrand::Rng::with_seed(seed ^ index.wrapping_mul(0x9E37_79B9_7F4A_7C15)),
            get_ratio: self.get_ratio,
            keys: self.keys,
            next: index * (self.keys / connections) + index.min(self.keys % connections),
            left,
            set: self.set(),
            get: self.get(),
        }
    }

    fn set(&self) -> Around {
        let payload = vec![FILLING; self.size];
        let (before, behind): (&[u8], _) = match self.protocol {
            Protocol::Hatokuse => (b"SET ", [b" ", &payload[..], b"\r\n"].concat()),
            Protocol::Http => {
                let length = format!("Content-Length: {}\r\n", self.size);
                let head = format!(" HTTP/1.1\r\nHost: {HOST}\r\n{length}\r\n");
                (b"PUT /kv/", [head.as_bytes(), &payload].concat())
            }
        };
        Around { before, behind }
    }

    fn get(&self) -> Around {
        let (before, behind): (&[u8], _) = match self.protocol {
            Protocol::Hatokuse => (b"GET ", b"\r\n".to_vec()),
            Protocol::Http => {
                let head = format!(" HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
                (b"GET /kv/", head.into_bytes())
            }
        };
        Around { before, behind }
    }
}

impl Requests {
    /// How many requests are still to be made.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// Writes the next request, which must be [`left`](Requests::left), to the end of `out`; says
    /// whether it stores something.
    pub fn write(&mut self, out: &mut Vec<u8>) -> bool {
        assert!(self.left > 0, "a request is left");
        self.left -= 1;
        let is_get = self.get_ratio > 0.0 && self.random.f64() < self.get_ratio;
        let key = if is_get {
            self.random.u64(..self.keys)
        } else {
            let key = self.next % self.keys;
            self.next = key + 1;
            key
        };
        let around = if is_get { &self.get } else { &self.set };
        out.extend_from_slice(around.before);
        push_decimal(out, KEY_FIRST + key);
        out.extend_from_slice(&around.behind);
        !is_get
    }
}

/// Formatting by `write!` would be a tenth of what a small request costs the generator.
fn push_decimal(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn load(connections: usize, keys: u64, end: End, get_ratio: f64) -> Load {
        Load {
            protocol: Protocol::Hatokuse,
            connections,
            pipeline: 1,
            size: 3,
            rate: None,
            end,
            get_ratio,
            keys,
        }
    }

    fn all(load: &Load) -> Vec<String> {
        let mut lines = Vec::new();
        for index in 0..load.connections {
            let mut requests = load.requests(index, 7);
            while requests.left() > 0 {
                let mut out = Vec::new();
                requests.write(&mut out);
                lines.push(String::from_utf8(out).expect("UTF-8"));
            }
        }
        lines
    }

    #[test]
    fn a_count_of_all_keys_sets_each_once() {
        for (connections, keys) in [(1, 1), (3, 10), (8, 64), (7, 3)] {
            let lines = all(&load(connections, keys, End::Count(keys), 0.0));
            let mut seen: HashMap<String, u32> = HashMap::new();
            lines
                .into_iter()
                .for_each(|line| *seen.entry(line).or_default() += 1);
            let expected = |n: u64| format!("SET {} xxx\r\n", KEY_FIRST + n);
            assert!(
                (0..keys).all(|n| seen.get(&expected(n)) == Some(&1)),
                "{seen:?}"
            );
        }
    }

    #[test]
    fn the_share_of_gets_is_the_one_asked_for() {
        let lines = all(&load(4, 100, End::Count(10_000), 0.3));
        let gets = lines
            .iter()
            .filter(|line| line.starts_with("GET 9"))
            .count();
        assert!((2_800..3_200).contains(&gets), "{gets}");
        assert!(
            all(&load(4, 100, End::Count(99), 1.0))
                .iter()
                .all(|line| line.starts_with("GET"))
        );
    }

    #[test]
    fn both_protocols_ask_for_the_same() {
        let hatokuse = load(2, 10, End::Count(200), 0.5);
        let http = Load {
            protocol: Protocol::Http,
            ..hatokuse.clone()
        };
        let head = "HTTP/1.1\r\nHost: localhost\r\n";
        let as_http = |line: String| {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                ["GET", key] => format!("GET /kv/{key} {head}\r\n"),
                ["SET", key, message] => format!(
                    "PUT /kv/{key} {head}Content-Length: {}\r\n\r\n{message}",
                    message.len()
                ),
                _ => panic!("{line}"),
            }
        };
        let expected: Vec<String> = all(&hatokuse).into_iter().map(as_http).collect();
        assert_eq!(all(&http), expected);
    }

    #[test]
    fn numbers_are_written_as_usual() {
        for number in [0, 9, 10, 1234567890, u64::MAX] {
            let mut out = Vec::new();
            push_decimal(&mut out, number);
            assert_eq!(out, number.to_string().into_bytes());
        }
    }
}
