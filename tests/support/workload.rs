//! Clients that write, delete and read under load, and know what every key may hold.
//!
//! Each client has keys of its own, so what a key may hold follows from its own commands: the last
//! acknowledged value, or that of a later command whose outcome is unknown, because the connection
//! broke or the reply said so. The ids of bulk writes come from the cluster; an acknowledged range
//! is the writer's for good.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded};
use tolerex::clock::{Clock, SystemClock};
use tolerex::threads::{self, StopSignal, Thread};

use super::client::Client;

/// Keys of each client: few enough that overwrites and deletes are common.
const KEYS: usize = 60;

/// Commands in flight of each client, at most.
const PIPELINE_MAX: usize = 12;

/// Reads in one piece while checking.
const CHECK_PIPELINE: usize = 200;

/// What a key may hold; `None` is nothing.
#[derive(Clone, Debug, Default)]
struct Expectation {
    /// By the last command that was acknowledged.
    sure: Option<String>,
    /// By the commands behind it, whose outcome is unknown.
    maybe: Vec<Option<String>>,
}

impl Expectation {
    fn allows(&self, found: Option<&str>) -> bool {
        let mut maybe = self.maybe.iter();
        self.sure.as_deref() == found || maybe.any(|value| value.as_deref() == found)
    }

    fn is_now(&mut self, value: Option<String>) {
        self.sure = value;
        self.maybe.clear();
    }
}

/// A command under way.
enum Operation {
    Set { key: usize, value: String },
    Delete { key: usize },
    Get { key: usize },
    Bulk { count: u64, value: String },
}

/// One client and what it knows.
pub struct Writer {
    name: String,
    random: fastrand::Rng,
    sequence: u64,
    keys: Vec<Expectation>,
    /// First and last id, and value.
    bulks: Vec<(u64, u64, String)>,
    bulk_ids_attempted: u64,
    /// Commands that were acknowledged.
    pub acknowledged: u64,
    /// Replies that were errors.
    pub errors: Vec<String>,
    /// Replies that must not be.
    pub violations: Vec<String>,
    /// The longest time from sending a pipeline to its last reply.
    pub slowest: Duration,
    /// Whether the connection broke, or could not be made.
    pub is_broken: bool,
}

impl Writer {
    fn new(number: usize, seed: u64) -> Writer {
        Writer {
            name: format!("c{number}"),
            random: fastrand::Rng::with_seed(seed ^ number as u64),
            sequence: 0,
            keys: vec![Expectation::default(); KEYS],
            bulks: Vec::new(),
            bulk_ids_attempted: 0,
            acknowledged: 0,
            errors: Vec::new(),
            violations: Vec::new(),
            slowest: Duration::ZERO,
            is_broken: false,
        }
    }

    fn key(&self, key: usize) -> String {
        format!("{}-{key}", self.name)
    }

    /// Works until it is told to stop or the connection breaks.
    fn run(&mut self, address: SocketAddr, stop: &StopSignal) {
        let clock = SystemClock::new();
        self.is_broken = true;
        let Ok(mut client) = Client::try_connect(address) else {
            return;
        };
        while !stop.is_stopped() {
            let depth = self.random.usize(1..=PIPELINE_MAX);
            let operations: Vec<Operation> = (0..depth).map(|_| self.invent()).collect();
            let commands: String = operations
                .iter()
                .map(|operation| self.command(operation) + "\r\n")
                .collect();
            let start = clock.now();
            let mut is_broken = client.send(commands.as_bytes()).is_err();
            for operation in operations {
                let reply = if is_broken { None } else { client.line().ok() };
                is_broken |= reply.is_none();
                self.settle(operation, reply);
            }
            if is_broken {
                return;
            }
            self.slowest = self.slowest.max(clock.now().since(start));
        }
        self.is_broken = false;
    }

    fn invent(&mut self) -> Operation {
        let key = self.random.usize(..KEYS);
        self.sequence += 1;
        let padding = "x".repeat(1 << self.random.u32(0..14));
        let value = format!("{}-{}-{padding}", self.name, self.sequence);
        match self.random.u32(..100) {
            0..60 => Operation::Set { key, value },
            60..75 => Operation::Delete { key },
            75..98 => Operation::Get { key },
            _ => {
                let count = self.random.u64(2..=20);
                self.bulk_ids_attempted += count;
                Operation::Bulk { count, value }
            }
        }
    }

    fn command(&self, operation: &Operation) -> String {
        match operation {
            Operation::Set { key, value } => format!("SET {} {value}", self.key(*key)),
            Operation::Delete { key } => format!("DEL {}", self.key(*key)),
            Operation::Get { key } => format!("GET {}", self.key(*key)),
            Operation::Bulk { count, value } => format!("{count} SET {value}"),
        }
    }

    /// Notes what a reply says; `None` is a broken connection.
    fn settle(&mut self, operation: Operation, reply: Option<String>) {
        let is_unknown = match &reply {
            None => true,
            Some(reply) => reply.contains("may or may not have happened"),
        };
        let reply = reply.unwrap_or_default();
        if reply.starts_with("ERROR: ") {
            self.errors.push(reply.clone());
        }
        if is_unknown {
            match operation {
                Operation::Set { key, value } => self.keys[key].maybe.push(Some(value)),
                Operation::Delete { key } => self.keys[key].maybe.push(None),
                Operation::Get { .. } | Operation::Bulk { .. } => {}
            }
            return;
        }
        if reply.starts_with("ERROR: ") {
            return; // Nothing happened.
        }
        self.acknowledged += 1;
        let command = self.command(&operation);
        let is_right = match operation {
            Operation::Set { key, value } => {
                self.keys[key].is_now(Some(value));
                reply == "OK"
            }
            Operation::Delete { key } => {
                let was_nothing = self.keys[key].allows(None);
                let was_something = self.keys[key].sure.is_some()
                    || self.keys[key].maybe.iter().any(Option::is_some);
                self.keys[key].is_now(None);
                (reply == "OK" && was_something) || (reply == "NOT_FOUND" && was_nothing)
            }
            Operation::Get { key } => self.keys[key].allows(value_of(&reply)),
            Operation::Bulk { count, value } => {
                let range = reply.strip_prefix("OK ").and_then(|ids| {
                    let (first, last) = ids.split_once('-')?;
                    Some((first.parse::<u64>().ok()?, last.parse::<u64>().ok()?))
                });
                range.is_some_and(|(first, last)| {
                    self.bulks.push((first, last, value));
                    last - first + 1 == count
                })
            }
        };
        if !is_right {
            self.violations.push(format!("{command}: {reply}"));
        }
    }
}

fn value_of(reply: &str) -> Option<&str> {
    (reply != "NOT_FOUND").then_some(reply)
}

/// Clients at work.
pub struct Work {
    stop: StopSignal,
    threads: Vec<Thread>,
    finished: Receiver<Writer>,
}

impl Work {
    /// Sets clients to work, new ones or those of an earlier round.
    pub fn start(address: SocketAddr, writers: Vec<Writer>) -> Work {
        let stop = StopSignal::default();
        let (sender, finished) = bounded(writers.len());
        let start_one = |mut writer: Writer| {
            let (stop, sender) = (stop.clone(), sender.clone());
            let body = move || {
                writer.run(address, &stop);
                _ = sender.send(writer);
            };
            threads::spawn("writer", body).expect("a thread")
        };
        let threads = writers.into_iter().map(start_one).collect();
        Work {
            stop,
            threads,
            finished,
        }
    }

    /// Ends the work.
    pub fn finish(self) -> Vec<Writer> {
        self.stop.stop();
        let count = self.threads.len();
        self.threads.into_iter().for_each(Thread::join);
        let mut writers: Vec<Writer> = self.finished.iter().collect();
        assert_eq!(writers.len(), count, "a client panicked");
        writers.sort_by(|a, b| a.name.cmp(&b.name));
        writers
    }
}

/// `count` clients that have not done anything yet.
pub fn writers(count: usize, seed: u64) -> Vec<Writer> {
    (0..count).map(|number| Writer::new(number, seed)).collect()
}

/// Error replies of all clients since the last check.
pub fn errors(writers: &[Writer]) -> Vec<String> {
    let errors = writers.iter().flat_map(|writer| writer.errors.iter());
    errors.cloned().collect()
}

/// Reads everything back: each message must hold what it may hold, deleted ones must be gone, and
/// COUNT must be the number of those found. What was unknown is known from here on.
pub fn check(client: &mut Client, writers: &mut [Writer]) {
    check_with(client, writers, 0);
}

/// The same where there are so many messages of others.
pub fn check_with(client: &mut Client, writers: &mut [Writer], others: u64) {
    let mut count = others;
    let mut bulk_values = HashMap::new();
    let mut ids = 0;
    for writer in writers.iter_mut() {
        assert_eq!(writer.violations, Vec::<String>::new());
        let names: Vec<String> = (0..KEYS).map(|key| writer.key(key)).collect();
        for (key, reply) in read(client, &names).into_iter().enumerate() {
            let found = value_of(&reply);
            let expectation = &mut writer.keys[key];
            let name = &names[key];
            assert!(
                expectation.allows(found),
                "{name} is {found:?}, allowed: {expectation:?}"
            );
            count += u64::from(found.is_some());
            expectation.is_now(found.map(str::to_owned));
        }
        for (first, last, value) in &writer.bulks {
            (*first..=*last)
                .for_each(|id| assert!(bulk_values.insert(id, value.clone()).is_none()));
        }
        ids += writer.bulk_ids_attempted;
        writer.errors.clear();
        writer.slowest = Duration::ZERO;
    }
    let names: Vec<String> = (1..=ids).map(|id| id.to_string()).collect();
    for (id, reply) in (1..=ids).zip(read(client, &names)) {
        let found = value_of(&reply);
        if let Some(value) = bulk_values.get(&id) {
            assert_eq!(found, Some(value.as_str()), "id {id} of a bulk write");
        }
        count += u64::from(found.is_some());
    }
    assert_eq!(client.command("COUNT"), count.to_string());
}

fn read(client: &mut Client, keys: &[String]) -> Vec<String> {
    let mut replies = Vec::new();
    for keys in keys.chunks(CHECK_PIPELINE) {
        let commands: Vec<String> = keys.iter().map(|key| format!("GET {key}")).collect();
        replies.extend(client.pipeline(&commands).expect("replies"));
    }
    for (key, reply) in keys.iter().zip(&replies) {
        assert!(!reply.starts_with("ERROR"), "GET {key}: {reply}");
    }
    replies
}
