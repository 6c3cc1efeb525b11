//! What a load consists of: which requests, how many, when, and their bytes. Pure.
//!
//! Keys are the message ids [`KEY_FIRST`]`..KEY_FIRST + keys`. Each connection sets all of them in
//! order, beginning at a place of its own, so that `--count K --keys K` stores every one about once
//! and no two connections write the same key at a time; it gets them by chance.

use std::time::Duration;

use serde::Serialize;

use crate::cli::args::Protocol;
use crate::clock::Instant;

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

/// The threads and sockets that drive a load. Requests, replies and figures are the same in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Generator {
    /// A few threads, each with many connections, which wait in epoll.
    Epoll,
    /// A thread with a blocking socket for each connection.
    Blocking,
}

/// A load, as the user asks for it.
#[derive(Clone, Debug, PartialEq)]
pub struct Load {
    /// Drives its connections.
    pub generator: Generator,
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

/// When a load begins, is measured and ends; the same for all its threads.
#[derive(Clone, Copy, Debug, Default)]
pub struct Times {
    /// The first request is sent.
    pub start: Instant,
    /// Replies count that come then or later.
    pub measured_from: Instant,
    /// No request is sent any more.
    pub until: Instant,
}

/// The requests of an open loop that one thread sends. Request `n` is due `first + n * interval`
/// after the start of the load.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    /// From the start of the load to the first request.
    first: Duration,
    /// Nanoseconds between two requests.
    interval: f64,
}

impl Schedule {
    /// The time from the start of the load to request `number`.
    pub fn due_after(&self, number: u64) -> Duration {
        self.first + Duration::from_nanos((number as f64 * self.interval) as u64)
    }
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

    /// When it is measured and ends if it starts now.
    pub fn times(&self, now: Instant, warmup: Duration) -> Times {
        Times {
            start: now,
            measured_from: now + warmup,
            until: match self.end {
                End::After(time) => now + warmup + time,
                End::Count(_) => now + Duration::MAX,
            },
        }
    }

    /// When the requests of thread `share` are due, which drives that many of the connections;
    /// `None` without a rate.
    pub fn schedule(&self, share: usize, connections: usize) -> Option<Schedule> {
        self.rate.map(|rate| Schedule {
            // The threads' requests fall between each other's.
            first: Duration::from_secs_f64(share as f64 / rate),
            interval: 1e9 * self.connections as f64 / (rate * connections as f64),
        })
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
            generator: Generator::Epoll,
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
    fn threads_together_keep_the_rate() {
        let load = Load {
            rate: Some(300.0),
            ..load(3, 1, End::Count(1), 0.0)
        };
        let due = |share, connections, number| {
            let schedule = load.schedule(share, connections).expect("a rate");
            schedule.due_after(number).as_secs_f64()
        };
        for (connections, interval) in [(1, 0.01), (2, 0.005), (3, 1.0 / 300.0)] {
            let found = due(0, connections, 1) - due(0, connections, 0);
            assert!((found - interval).abs() < 1e-6, "{connections}: {found}");
        }
        // A thread for each connection: the requests of all are 1/300 s apart.
        let all = [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1)];
        for (place, (share, number)) in all.into_iter().enumerate() {
            let found = due(share, 1, number);
            assert!(
                (found - place as f64 / 300.0).abs() < 1e-6,
                "{place}: {found}"
            );
        }
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
