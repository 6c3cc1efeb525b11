//! Clients of a group of leaders: one that finds the active leader, and workers that record all
//! they did for the checker.
//!
//! A worker asks one thing after another, with a random rest between; keys are few and shared by
//! all, so that answers depend on each other. The keys change with the era, which the test sets:
//! the history of a key stays short however long the test runs. A write with a token is repeated
//! until its outcome is known; every other unknown outcome stays open in the history.
//!
//! A message's value names its worker and number, so no two are equal.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use crossbeam_channel::{Receiver, bounded};
use tolerex::clock::{Clock, Instant, SystemClock, sleep};
use tolerex::threads::{self, StopSignal, Thread};

use super::client::Client;
use super::history::{CallId, Command, History, Operation, Outcome};
use super::linearize;

/// How long a client rests when nobody serves.
const REST: Duration = Duration::from_millis(10);

/// A write is answered within 2 s, whatever becomes of it; the rest is for a machine under load.
pub const PATIENCE: Duration = Duration::from_secs(4);

/// Keys of an era that are shared by all.
const KEYS: u32 = 5;

/// Reads in one piece while all is read back.
const CHECK_PIPELINE: usize = 200;

const NOT_LEADER: &str = "ERROR: not leader, leader is ";

/// The leaders as one client sees them.
#[derive(Clone, Debug)]
pub struct Route {
    /// Where it connects, by leader.
    pub dial: Vec<SocketAddr>,
    /// What a leader says when it names another one, by leader.
    pub advertised: Vec<String>,
    /// How long it waits for a connection, and for a reply.
    pub patience: Duration,
}

impl Route {
    /// Straight to these.
    pub fn direct(addresses: &[String]) -> Route {
        let parse = |text: &String| text.parse().expect("an address");
        Route {
            dial: addresses.iter().map(parse).collect(),
            advertised: addresses.to_vec(),
            patience: PATIENCE,
        }
    }
}

/// A client of all leaders: stays with the one that serves, and follows hints.
pub struct GroupClient {
    route: Route,
    /// The next leader to be asked.
    turn: usize,
    open: Option<Client>,
}

impl GroupClient {
    /// Connects with the first command.
    pub fn new(route: Route) -> GroupClient {
        GroupClient {
            route,
            turn: 0,
            open: None,
        }
    }

    /// The leader that is asked.
    pub fn leader(&self) -> usize {
        self.turn % self.route.dial.len()
    }

    /// The connection to it, if there is one.
    pub fn connection(&mut self) -> Option<&mut Client> {
        self.open.as_mut()
    }

    /// Sends a command once; the reply line, which may be an error; `None` if the connection
    /// could not be made or broke.
    pub fn ask(&mut self, command: &str) -> Asked {
        if self.open.is_none() {
            let address = self.route.dial[self.leader()];
            self.open = Client::try_connect_within(address, self.route.patience).ok();
        }
        let Some(client) = &mut self.open else {
            self.leave();
            return Asked::NotSent;
        };
        match client.try_command(command) {
            Ok(reply) => {
                self.follow(&reply);
                Asked::Reply(reply)
            }
            Err(_) => {
                self.leave();
                Asked::Broken
            }
        }
    }

    /// Goes where a reply says that the active leader is.
    fn follow(&mut self, reply: &str) {
        if let Some(leader) = reply.strip_prefix(NOT_LEADER) {
            let place = self.route.advertised.iter().position(|one| one == leader);
            let place = place.unwrap_or_else(|| panic!("{leader} is none of {:?}", self.route));
            (self.turn, self.open) = (place, None);
        } else if reply == "ERROR: no leader elected" || reply.contains("may or may not") {
            self.leave();
        }
    }

    /// Goes on to the next leader.
    fn leave(&mut self) {
        (self.turn, self.open) = (self.turn + 1, None);
        sleep(REST);
    }

    /// Sends a command once; `None` if its outcome is not known or nobody serves.
    pub fn try_command(&mut self, command: &str) -> Option<String> {
        match self.ask(command) {
            Asked::Reply(reply) if is_about_leaders(&reply) || reply.contains("may or may not") => {
                None
            }
            Asked::Reply(reply) => Some(reply),
            Asked::NotSent | Asked::Broken => None,
        }
    }

    /// Sends a command that may be sent again until it is answered.
    pub fn command(&mut self, command: &str, timeout: Duration) -> String {
        let mut reply = None;
        super::wait_until(command, timeout, || {
            reply = self.try_command(command);
            reply.is_some()
        });
        reply.expect("waited for")
    }

    /// `GROUP JSON` of the active leader.
    pub fn group(&mut self, timeout: Duration) -> serde_json::Value {
        let mut group = None;
        super::wait_until("the active leader is found", timeout, || {
            let is_found = self.try_command("COUNT").is_some();
            let asked = if is_found {
                self.ask("GROUP JSON")
            } else {
                Asked::NotSent
            };
            if let Asked::Reply(reply) = asked {
                group = serde_json::from_str(&reply).ok();
            }
            group.is_some()
        });
        group.expect("waited for")
    }
}

/// What became of a command that was sent once.
pub enum Asked {
    /// There was no connection to send it on: nothing happened.
    NotSent,
    /// The connection broke, or no reply came: it may have happened.
    Broken,
    /// This was the answer.
    Reply(String),
}

impl Asked {
    /// What is wrong, without what differs from one time to the next.
    fn trouble(&self) -> Option<String> {
        let reply = match self {
            Asked::NotSent => return Some("not reached".to_owned()),
            Asked::Broken => return Some("no reply".to_owned()),
            Asked::Reply(reply) => reply.strip_prefix("ERROR: ")?,
        };
        let same = reply.split(" (").next().unwrap_or(reply);
        let same = same.split(" is ").next().unwrap_or(same);
        Some(same.to_owned())
    }
}

fn is_about_leaders(reply: &str) -> bool {
    reply.starts_with(NOT_LEADER) || reply == "ERROR: no leader elected"
}

/// What a reply means for the history.
fn outcome(command: &Command, reply: &str) -> Outcome {
    if let Some(error) = reply.strip_prefix("ERROR: ") {
        let stored = error.split_once("(stored ").map(|(_, ids)| {
            let ids = ids.trim_end_matches(')');
            (ids != "none").then(|| ids_of(ids).unwrap_or_else(|| panic!("{reply}")))
        });
        return match stored {
            Some(stored) => Outcome::Partial { stored },
            None if error.contains("may or may not") => Outcome::Unknown,
            None => Outcome::Failed,
        };
    }
    match (command, reply) {
        (_, "NOT_FOUND") => Outcome::NotFound,
        (Command::Get { .. }, value) => Outcome::Found(Bytes::from(value.to_owned())),
        (Command::Set { .. } | Command::Del { .. }, "OK") => Outcome::Ok,
        (Command::Bulk { .. }, reply) => match reply.strip_prefix("OK ").and_then(ids_of) {
            Some((first, last)) => Outcome::Ids { first, last },
            None => panic!("{command}: {reply}"),
        },
        (command, reply) => panic!("{command}: {reply}"),
    }
}

fn ids_of(text: &str) -> Option<(u64, u64)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    Some((first.parse().ok()?, last.parse().ok()?))
}

fn text_of(command: &Command) -> String {
    let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
    match command {
        Command::Set { key, value } => format!("SET {} {}", text(key), text(value)),
        Command::Get { key } => format!("GET {}", text(key)),
        Command::Del { key } => format!("DEL {}", text(key)),
        Command::Bulk { count, value } => format!("{count} SET {}", text(value)),
        Command::Parts { .. } => panic!("{command}: not one of these clients' commands"),
    }
}

/// What all workers share.
struct Shared {
    clock: SystemClock,
    stop: StopSignal,
    era: AtomicU32,
    /// The highest id that a bulk write was given.
    ids: AtomicU64,
    /// By worker: when its last acknowledged write began.
    acknowledged: Vec<AtomicU64>,
    /// Sum over all workers.
    done: AtomicU64,
    /// The longest rest between two operations of a worker, in microseconds.
    rest: u64,
}

/// One client at work.
struct Worker {
    number: u32,
    client: GroupClient,
    random: fastrand::Rng,
    shared: Arc<Shared>,
    history: History,
    sequence: u64,
    /// When each write of its own was acknowledged.
    acknowledged: Vec<(Instant, Instant)>,
    /// Calls that were not answered as wished, by what the client saw.
    troubles: BTreeMap<String, usize>,
}

impl Worker {
    fn run(&mut self) {
        while !self.shared.stop.is_stopped() {
            let (command, is_once) = self.invent();
            if is_once {
                self.repeat(&command);
            } else {
                self.once(&command, None);
            }
            let rest = self.random.u64(..=self.shared.rest);
            sleep(Duration::from_micros(rest));
        }
    }

    fn key(&mut self) -> Bytes {
        let ids = self.shared.ids.load(Ordering::Relaxed);
        if ids > 0 && self.random.u32(..12) == 0 {
            // One of those handed out of late, which its writer does not have for itself.
            return Bytes::from((ids - self.random.u64(..ids.min(20))).to_string());
        }
        let era = self.shared.era.load(Ordering::Relaxed);
        Bytes::from(format!("e{era}-{}", self.random.u32(..KEYS)))
    }

    fn invent(&mut self) -> (Command, bool) {
        self.sequence += 1;
        let filler = 1 << self.random.u32(0..10);
        let value = format!("c{}.{}.{:0filler$}", self.number, self.sequence, 0);
        let is_once = self.random.u32(..4) == 0;
        match self.random.u32(..100) {
            0..40 => (Command::set(self.key(), value), is_once),
            40..55 => (Command::del(self.key()), is_once),
            55..97 => (Command::get(self.key()), false),
            _ => (Command::bulk(self.random.u64(2..=12), value), is_once),
        }
    }

    /// One call; whether its outcome is known to be other than failed.
    fn once(&mut self, command: &Command, token: Option<&str>) -> bool {
        let line = match token {
            Some(token) => format!("ONCE {token} {}", text_of(command)),
            None => text_of(command),
        };
        let began = self.shared.clock.now();
        let call = self.call(command, token, began);
        let asked = self.client.ask(&line);
        let now = self.shared.clock.now();
        if let Some(trouble) = asked.trouble() {
            *self.troubles.entry(trouble).or_default() += 1;
        }
        let outcome = match asked {
            Asked::NotSent => Outcome::Failed,
            Asked::Broken => Outcome::Unknown,
            Asked::Reply(reply) => outcome(command, &reply),
        };
        let is_read = matches!(command, Command::Get { .. });
        let is_done = match &outcome {
            Outcome::Failed | Outcome::Unknown | Outcome::Partial { .. } => false,
            Outcome::Ids { last, .. } => {
                self.shared.ids.fetch_max(*last, Ordering::Relaxed);
                true
            }
            Outcome::Ok | Outcome::Found(_) | Outcome::NotFound | Outcome::Told(_) => true,
        };
        if is_done {
            self.shared.done.fetch_add(1, Ordering::Relaxed);
            if !is_read {
                self.acknowledged.push((began, now));
                let own = &self.shared.acknowledged[self.number as usize];
                own.store(began.as_nanos(), Ordering::Relaxed);
            }
        }
        self.history.end(call, now.as_nanos(), outcome);
        is_done
    }

    fn call(&mut self, command: &Command, token: Option<&str>, now: Instant) -> CallId {
        let (number, now, command) = (self.number, now.as_nanos(), command.clone());
        match token {
            Some(token) => self
                .history
                .call_once(number, now, token.to_owned(), command),
            None => self.history.call(number, now, command),
        }
    }

    /// The same with a token until it is done.
    fn repeat(&mut self, command: &Command) {
        let token = format!("t{}.{}", self.number, self.sequence);
        while !self.once(command, Some(&token)) && !self.shared.stop.is_stopped() {
            sleep(REST);
        }
    }
}

/// Clients at work.
pub struct Work {
    shared: Arc<Shared>,
    threads: Vec<Thread>,
    finished: Receiver<Worker>,
}

/// What they did.
pub struct Done {
    /// Of all clients.
    pub history: History,
    /// Operations that were answered.
    pub answered: u64,
    /// Call and end of acknowledged writes, by end.
    pub writes: Vec<(Instant, Instant)>,
    /// Calls that were not answered as wished, by what the client saw.
    pub troubles: BTreeMap<String, usize>,
    shared: Arc<Shared>,
    clients: u32,
}

impl Work {
    /// One client for each route; each rests `rest` at most between two operations. `enter` is
    /// called first in each client's thread.
    pub fn start(
        routes: Vec<Route>,
        seed: u64,
        rest: Duration,
        enter: impl Fn(usize) + Send + Sync + 'static,
    ) -> Work {
        let shared = Arc::new(Shared {
            clock: SystemClock::new(),
            stop: StopSignal::default(),
            era: AtomicU32::new(0),
            ids: AtomicU64::new(0),
            acknowledged: routes.iter().map(|_| AtomicU64::new(0)).collect(),
            done: AtomicU64::new(0),
            rest: u64::try_from(rest.as_micros()).expect("a short rest"),
        });
        let (sender, finished) = bounded(routes.len());
        let enter = Arc::new(enter);
        let start_one = |(number, route): (usize, Route)| {
            let (sender, enter) = (sender.clone(), Arc::clone(&enter));
            let mut worker = Worker {
                number: u32::try_from(number).expect("few clients"),
                client: GroupClient::new(route),
                random: fastrand::Rng::with_seed(seed ^ number as u64),
                shared: Arc::clone(&shared),
                history: History::default(),
                sequence: 0,
                acknowledged: Vec::new(),
                troubles: BTreeMap::new(),
            };
            let body = move || {
                enter(number);
                worker.run();
                _ = sender.send(worker);
            };
            threads::spawn("client", body).expect("a thread")
        };
        let threads = routes.into_iter().enumerate().map(start_one).collect();
        Work {
            shared,
            threads,
            finished,
        }
    }

    /// The time, by the clock of the history.
    pub fn now(&self) -> Instant {
        self.shared.clock.now()
    }

    /// From here on other keys are used.
    pub fn set_era(&self, era: u32) {
        self.shared.era.store(era, Ordering::Relaxed);
    }

    /// Whether a write that began after `time` was acknowledged.
    pub fn served_since(&self, time: Instant) -> bool {
        self.acknowledged().any(|last| last > time)
    }

    /// The same for each client.
    pub fn all_served_since(&self, time: Instant) -> bool {
        self.acknowledged().all(|last| last > time)
    }

    fn acknowledged(&self) -> impl Iterator<Item = Instant> {
        let nanos = self.shared.acknowledged.iter();
        nanos.map(|nanos| Instant::from_nanos(nanos.load(Ordering::Relaxed)))
    }

    /// Operations that were answered so far.
    pub fn answered(&self) -> u64 {
        self.shared.done.load(Ordering::Relaxed)
    }

    /// Ends the work.
    pub fn finish(self) -> Done {
        self.shared.stop.stop();
        let clients = self.threads.len();
        self.threads.into_iter().for_each(Thread::join);
        let workers: Vec<Worker> = self.finished.iter().collect();
        assert_eq!(workers.len(), clients, "a client panicked");
        let mut writes: Vec<(Instant, Instant)> = workers
            .iter()
            .flat_map(|worker| worker.acknowledged.iter().copied())
            .collect();
        writes.sort_by_key(|(_, end)| *end);
        let mut troubles: BTreeMap<String, usize> = BTreeMap::new();
        for (trouble, count) in workers.iter().flat_map(|worker| &worker.troubles) {
            *troubles.entry(trouble.clone()).or_default() += count;
        }
        Done {
            troubles,
            history: History::merged(workers.into_iter().map(|worker| worker.history)),
            answered: self.shared.done.load(Ordering::Relaxed),
            writes,
            clients: u32::try_from(clients).expect("few clients"),
            shared: self.shared,
        }
    }
}

impl Done {
    /// The longest time between `from` and `to` in which no write was acknowledged.
    pub fn longest_pause(&self, from: Instant, to: Instant) -> Duration {
        let ends = self.writes.iter().map(|(_, end)| *end);
        let inside = ends.filter(|end| *end >= from && *end <= to);
        let mut last = from;
        let mut longest = Duration::ZERO;
        for end in inside.chain([to]) {
            longest = longest.max(end.since(last));
            last = end;
        }
        longest
    }

    /// Reads that were asked and answered between `from` and `to`.
    pub fn reads(&self, from: Instant, to: Instant) -> usize {
        let operations = self.history.operations().iter();
        let is_answered = |operation: &&Operation| {
            matches!(operation.command, Command::Get { .. })
                && matches!(operation.outcome, Outcome::Found(_) | Outcome::NotFound)
                && operation.call.time >= from.as_nanos()
                && operation.end.is_some_and(|end| end.time <= to.as_nanos())
        };
        operations.filter(is_answered).count()
    }

    /// Reads every key that was ever written, through the active leader; what it finds joins the
    /// history. Gives how many keys there are.
    pub fn read_all(&mut self, client: &mut GroupClient, timeout: Duration) -> usize {
        client.command("COUNT", timeout);
        let keys = self.keys();
        let mut history = History::default();
        let leader = client.connection().expect("it has answered");
        for keys in keys.chunks(CHECK_PIPELINE) {
            let now = self.shared.clock.now().as_nanos();
            let gets: Vec<Command> = keys.iter().cloned().map(Command::get).collect();
            let lines: Vec<String> = gets.iter().map(text_of).collect();
            let number = self.clients;
            let calls = gets
                .iter()
                .map(|get| history.call(number, now, get.clone()));
            let calls: Vec<CallId> = calls.collect();
            let replies = leader.pipeline(&lines).expect("replies");
            let now = self.shared.clock.now().as_nanos();
            for ((call, get), reply) in calls.into_iter().zip(&gets).zip(&replies) {
                assert!(!reply.starts_with("ERROR"), "{get}: {reply}");
                history.end(call, now, outcome(get, reply));
            }
        }
        self.clients += 1;
        let before = std::mem::take(&mut self.history);
        self.history = History::merged([before, history]);
        keys.len()
    }

    fn keys(&self) -> Vec<Bytes> {
        let mut keys: Vec<Bytes> = Vec::new();
        for operation in self.history.operations() {
            match (&operation.command, &operation.outcome) {
                (Command::Set { key, .. }, _) => keys.push(key.clone()),
                (Command::Bulk { .. }, Outcome::Ids { first, last }) => {
                    keys.extend((*first..=*last).map(|id| Bytes::from(id.to_string())));
                }
                _ => {}
            }
        }
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    /// Every answer was allowed.
    pub fn check(&self) -> linearize::Summary {
        linearize::check(&self.history).unwrap_or_else(|fault| panic!("{fault}"))
    }
}
