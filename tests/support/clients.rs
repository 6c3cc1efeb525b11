//! Workers that record all they did for the checker.
//!
//! A worker asks one thing after another, with a random rest between; keys are few and shared by
//! all, so that answers depend on each other. The keys change with the era, which the test sets:
//! the history of a key stays short however long the test runs. A write with a token is repeated
//! until its outcome is known; every other unknown outcome stays open in the history.
//!
//! A message's value names its worker and number, so no two are equal.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use crossbeam_channel::{Receiver, bounded};
use tolerex::clock::{Clock, Instant, SystemClock, sleep};
use tolerex::threads::{self, StopSignal, Thread};

use super::group_client::{GroupClient, REST};
use super::history::{Ask, CallId, Command, Condition, History, Life, Operation, Outcome, Part};
use super::linearize;
use super::speakers::{Speaker, line_of, outcome_of_line};

/// Keys of an era that are shared by all.
const KEYS: u32 = 5;

/// Reads in one piece while all is read back.
const CHECK_PIPELINE: usize = 200;

/// Parts of a batch, at most: all keys of an era are soon joined by them.
const PARTS_MAX: usize = 3;

/// Times to live are rounded to milliseconds, on both ends.
const ROUNDING: Duration = Duration::from_millis(2);

/// A message whose time is over is gone within this, whatever befalls the leaders.
const EXPIRY_MAX: Duration = Duration::from_secs(15);

/// What workers ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mix {
    /// SET, GET, DEL and bulk writes.
    Plain,
    /// Conditions, batches and times to live too. Whoever speaks HTTP asks for these alone.
    Full,
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
    speaker: Speaker,
    mix: Mix,
    /// Those it was told last.
    revisions: HashMap<Bytes, u64>,
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
            let command = self.invent();
            if command.takes_token() && self.random.u32(..4) == 0 {
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

    fn value(&mut self) -> Bytes {
        self.sequence += 1;
        let filler = 1 << self.random.u32(0..10);
        Bytes::from(format!("c{}.{}.{:0filler$}", self.number, self.sequence, 0))
    }

    fn invent(&mut self) -> Command {
        let is_http = matches!(self.speaker, Speaker::Http(_));
        match self.random.u32(..100) {
            ..30 if is_http => {
                let count = self.random.usize(2..=PARTS_MAX);
                let parts = (0..count).map(|_| self.part(true)).collect();
                Command::parts(parts, self.random.bool())
            }
            30.. if is_http => Command::parts(vec![self.part(false)], false),
            60.. if self.mix == Mix::Full => {
                let ask = match self.random.u32(..10) {
                    ..3 => Ask::Set {
                        value: self.value(),
                        life: None,
                    },
                    3..5 => Ask::Del,
                    5..7 => Ask::Expire(Some(self.life(1000))),
                    7 => Ask::Expire(None),
                    _ => Ask::Left,
                };
                let part = self.with_condition(ask, false);
                Command::parts(vec![part], false)
            }
            ..25 | 60..75 => Command::set(self.key(), self.value()),
            25..33 | 75..82 => Command::del(self.key()),
            33..58 | 82..98 => Command::get(self.key()),
            _ => Command::bulk(self.random.u64(2..=12), self.value()),
        }
    }

    /// Of a request by HTTP.
    fn part(&mut self, is_in_batch: bool) -> Part {
        let ask = match self.random.u32(..10) {
            ..5 => Ask::Set {
                value: self.value(),
                life: (self.random.u32(..4) == 0).then(|| self.life(1)),
            },
            5..8 => Ask::Get,
            _ => Ask::Del,
        };
        self.with_condition(ask, is_in_batch)
    }

    fn with_condition(&mut self, ask: Ask, is_in_batch: bool) -> Part {
        let key = self.key();
        let is_write = matches!(ask, Ask::Set { .. } | Ask::Del);
        let condition = match self.random.u32(..6) {
            ..3 if is_write => {
                let known = self.revisions.get(&key).copied();
                known.map(Condition::Revision)
            }
            3 if is_write => Some(Condition::Absent),
            4 if is_write && !is_in_batch => Some(Condition::Exists),
            _ => None,
        };
        Part {
            key,
            ask,
            condition,
        }
    }

    /// In units of so many milliseconds, up to 2 s.
    fn life(&mut self, unit_ms: u64) -> Life {
        let least = 50_u64.div_ceil(unit_ms);
        let asked = Duration::from_millis(unit_ms * self.random.u64(least..=2000 / unit_ms));
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).expect("a short time");
        Life {
            asked: nanos(asked),
            least: nanos(asked - ROUNDING),
            most: Some(nanos(asked + EXPIRY_MAX)),
        }
    }

    /// Remembers the revisions that it was told.
    fn learn(&mut self, command: &Command, outcome: &Outcome) {
        for (key, revision) in outcome.revisions(command) {
            self.revisions.insert(key.clone(), revision);
        }
    }

    /// One call; whether its outcome is known to be other than failed.
    fn once(&mut self, command: &Command, token: Option<&str>) -> bool {
        let began = self.shared.clock.now();
        let call = self.call(command, token, began);
        let (outcome, trouble) = self.speaker.ask(command, token);
        let now = self.shared.clock.now();
        if let Some(trouble) = trouble {
            *self.troubles.entry(trouble).or_default() += 1;
        }
        self.learn(command, &outcome);
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
            if !command.is_read() {
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
        self.sequence += 1;
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
    /// One client for each speaker; each rests `rest` at most between two operations. `enter` is
    /// called first in each client's thread.
    pub fn start(
        speakers: Vec<Speaker>,
        mix: Mix,
        seed: u64,
        rest: Duration,
        enter: impl Fn(usize) + Send + Sync + 'static,
    ) -> Work {
        let shared = Arc::new(Shared {
            clock: SystemClock::new(),
            stop: StopSignal::default(),
            era: AtomicU32::new(0),
            ids: AtomicU64::new(0),
            acknowledged: speakers.iter().map(|_| AtomicU64::new(0)).collect(),
            done: AtomicU64::new(0),
            rest: u64::try_from(rest.as_micros()).expect("a short rest"),
        });
        let (sender, finished) = bounded(speakers.len());
        let enter = Arc::new(enter);
        let start_one = |(number, speaker): (usize, Speaker)| {
            let (sender, enter) = (sender.clone(), Arc::clone(&enter));
            let mut worker = Worker {
                number: u32::try_from(number).expect("few clients"),
                speaker,
                mix,
                revisions: HashMap::new(),
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
        let threads = speakers.into_iter().enumerate().map(start_one).collect();
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
    /// The longest time between `from` and `to` in which no write was acknowledged, and its begin.
    pub fn longest_pause(&self, from: Instant, to: Instant) -> (Instant, Duration) {
        let ends = self.writes.iter().map(|(_, end)| *end);
        let inside = ends.filter(|end| *end >= from && *end <= to);
        let mut last = from;
        let mut longest = (from, Duration::ZERO);
        for end in inside.chain([to]) {
            let pause = end.since(last);
            if pause > longest.1 {
                longest = (last, pause);
            }
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
        let keys = self.history.keys();
        let mut history = History::default();
        let leader = client.connection().expect("it has answered");
        for keys in keys.chunks(CHECK_PIPELINE) {
            let now = self.shared.clock.now().as_nanos();
            let gets: Vec<Command> = keys.iter().cloned().map(Command::get).collect();
            let lines: Vec<String> = gets.iter().map(line_of).collect();
            let number = self.clients;
            let calls = gets
                .iter()
                .map(|get| history.call(number, now, get.clone()));
            let calls: Vec<CallId> = calls.collect();
            let replies = leader.pipeline(&lines).expect("replies");
            let now = self.shared.clock.now().as_nanos();
            for ((call, get), reply) in calls.into_iter().zip(&gets).zip(&replies) {
                assert!(!reply.starts_with("ERROR"), "{get}: {reply}");
                history.end(call, now, outcome_of_line(get, reply));
            }
        }
        self.clients += 1;
        let before = std::mem::take(&mut self.history);
        self.history = History::merged([before, history]);
        keys.len()
    }

    /// Every answer was allowed.
    pub fn check(&self) -> linearize::Summary {
        linearize::check(&self.history).unwrap_or_else(|fault| panic!("{fault}"))
    }
}
