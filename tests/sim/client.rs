//! Clients: each has one batch under way, asks another leader when one does not serve, and records
//! what it asked and was told.
//!
//! A connection that breaks and a reply that does not come leave the outcome unknown; the client
//! goes on, and the history keeps the operation open. A write with a token is asked again until its
//! outcome is known, and now and then once more.

use std::collections::BTreeMap;

use bytes::Bytes;
use fastrand::Rng;
use tolerex::error::{Failure, Outcome as Certainty};
use tolerex::ids::{Key, Revision, Token};
use tolerex::protocol::reply::Reply;
use tolerex::protocol::request::{self, Batch, SetOptions, Step, Transaction, Write};

use crate::events::Event;
use crate::history::{Ask, CallId, Command, Condition, Life, Outcome, Part, Told};
use crate::net::MS;
use crate::plan::{Kind, Plan};
use crate::world::{Phase, World};

/// How often a write with a token is asked, at most.
const TRIES_MAX: u32 = 12;

/// Operations in one batch, at most.
const BATCH_MAX: usize = 6;

/// Parts of a transaction, at most. All keys of a run are soon joined by them.
const PARTS_MAX: usize = 3;

/// A write with a token.
struct Once {
    token: Bytes,
    command: Command,
    tries: u32,
}

/// A client.
pub struct Client {
    rng: Rng,
    /// Whom it asks.
    leader: usize,
    /// Batches still to be sent.
    left: usize,
    /// The batch under way: its number, and its operations in the history.
    under_way: Option<(u64, Vec<CallId>)>,
    /// What it asks for.
    asked: Vec<Command>,
    /// The last revision that it was told of each key.
    revisions: BTreeMap<Bytes, u64>,
    /// How many of 20 batches read.
    reads: u32,
    /// The write with a token that is to be asked again, or is under way.
    once: Option<Once>,
    /// For values that no other write has.
    written: u64,
    /// Tokens made.
    tokens: u64,
    /// Keys to read again at the end.
    pub to_read: Vec<Bytes>,
}

impl Client {
    /// The client with this number.
    pub fn new(number: usize, plan: &Plan) -> Client {
        let mut rng = Rng::with_seed(plan.seed ^ 0xc1 ^ (number as u64) << 16);
        Client {
            leader: rng.usize(..plan.leaders),
            reads: rng.choice([8, 8, 8, 17]).unwrap_or(8),
            once: None,
            rng,
            left: plan.operations,
            under_way: None,
            asked: Vec::new(),
            revisions: BTreeMap::new(),
            written: 0,
            tokens: 0,
            to_read: Vec::new(),
        }
    }

    /// Whether nothing is under way or to be done.
    pub fn is_idle(&self) -> bool {
        let is_done = self.left == 0 && self.to_read.is_empty();
        is_done && self.under_way.is_none() && self.once.is_none()
    }

    fn key(&mut self, plan: &Plan) -> Bytes {
        let number = self.rng.usize(..plan.keys);
        let text = match number % 2 {
            // A name, and an id that bulk writes may hand out.
            0 => format!("k{number}"),
            _ => format!("{number}"),
        };
        Bytes::from(text)
    }

    fn value(&mut self, number: usize) -> Bytes {
        self.written += 1;
        let filler = self.rng.usize(..200);
        Bytes::from(format!("{number}.{}.{:0filler$}", self.written, 0))
    }

    /// What to ask next, and by which token.
    fn wishes(&mut self, number: usize, plan: &Plan) -> (Vec<Command>, Option<Bytes>) {
        if self.once.is_none() {
            let commands = self.commands(number, plan);
            if commands.len() > 1
                || !commands[0].takes_token()
                || !plan.has_tokens
                || self.rng.bool()
            {
                return (commands, None);
            }
            self.tokens += 1;
            let token = Bytes::from(format!("t{number}.{}", self.tokens));
            self.once = commands.into_iter().next().map(|command| Once {
                token,
                command,
                tries: 0,
            });
        }
        let once = self.once.as_mut().expect("there is one");
        once.tries += 1;
        (vec![once.command.clone()], Some(once.token.clone()))
    }

    /// The write with a token came to something; whether it is over.
    fn tried(&mut self, outcome: &Outcome) {
        let Some(once) = &mut self.once else {
            return;
        };
        use Outcome::{Failed, Found, Ids, NotFound, Ok, Partial, Told, Unknown};
        let is_known = match outcome {
            Ok | NotFound | Found(_) | Ids { .. } | Told(_) => true,
            Partial { .. } | Failed | Unknown => false,
        };
        if once.tries >= TRIES_MAX {
            self.once = None;
        } else if is_known {
            // As if the reply had been lost, the last time.
            once.tries = TRIES_MAX - 1;
            if self.rng.u32(..4) > 0 {
                self.once = None;
            }
        }
    }

    /// What to ask next.
    fn commands(&mut self, number: usize, plan: &Plan) -> Vec<Command> {
        if let Some(key) = self.to_read.last() {
            return vec![Command::get(key.clone())];
        }
        let count = match self.rng.u32(..4) {
            0 => self.rng.usize(2..=BATCH_MAX),
            _ => 1,
        };
        let reads = self.reads;
        match self.rng.u32(..26) {
            20.. => vec![self.parts(number, plan)],
            0 => {
                let count = self.rng.u64(2..=5);
                vec![Command::bulk(count, self.value(number))]
            }
            lot if lot <= reads => (0..count).map(|_| Command::get(self.key(plan))).collect(),
            _ => (0..count)
                .map(|_| match self.rng.u32(..5) {
                    0 => Command::del(self.key(plan)),
                    _ => Command::set(self.key(plan), self.value(number)),
                })
                .collect(),
        }
    }
}

impl Client {
    /// Parts that take effect at one moment.
    fn parts(&mut self, number: usize, plan: &Plan) -> Command {
        let count = self.rng.usize(1..=PARTS_MAX);
        if count == 1 && self.rng.u32(..8) == 0 {
            let key = self.key(plan);
            let (ask, condition) = (Ask::Left, None);
            let left = Part {
                key,
                ask,
                condition,
            };
            return Command::parts(vec![left], false);
        }
        let parts = (0..count).map(|_| self.part(number, plan)).collect();
        Command::parts(parts, self.rng.bool())
    }

    fn part(&mut self, number: usize, plan: &Plan) -> Part {
        let key = self.key(plan);
        let ask = match self.rng.u32(..10) {
            0..5 => Ask::Set {
                value: self.value(number),
                life: (self.rng.u32(..4) == 0).then(|| self.life(plan)).flatten(),
            },
            5..7 => Ask::Get,
            7 => Ask::Del,
            8 => Ask::Expire(self.life(plan)),
            _ => Ask::Expire(None),
        };
        let is_write = matches!(ask, Ask::Set { .. } | Ask::Del);
        let condition = match self.rng.u32(..6) {
            0..3 if is_write => {
                let known = self.revisions.get(&key).copied();
                known.map(Condition::Revision)
            }
            3 if is_write => Some(Condition::Absent),
            4 if is_write => Some(Condition::Exists),
            _ => None,
        };
        Part {
            key,
            ask,
            condition,
        }
    }

    /// How long a message stays. Where clocks differ, another leader may end it at once.
    fn life(&mut self, plan: &Plan) -> Option<Life> {
        let ttl = self.rng.u64(50..=2_000) * MS;
        plan.has_ttl.then_some(Life {
            asked: ttl,
            least: match plan.has(Kind::Clock) {
                true => 0,
                // Rounded on both ends.
                false => ttl - 2 * MS,
            },
            most: None,
        })
    }

    /// Remembers the revisions that it was told.
    fn learn(&mut self, place: usize, outcome: &Outcome) {
        let Some(command) = self.asked.get(place) else {
            return;
        };
        for (key, revision) in outcome.revisions(command) {
            self.revisions.insert(key.clone(), revision);
        }
    }
}

/// The transaction, or the question how long a message stays.
fn transaction(parts: &[Part], is_atomic: bool, token: Option<Token>) -> Batch {
    let key = |part: &Part| Key::parse(&part.key).expect("a good key");
    if let [part] = parts
        && part.ask == Ask::Left
    {
        return Batch::Ttl(key(part));
    }
    let ttl = |life: &Option<Life>| life.map(|life| life.asked / MS);
    let steps = parts.iter().map(|part| {
        let condition = part.condition.map(|condition| match condition {
            Condition::Revision(revision) => {
                request::Condition::Revision(Revision::from_u64(revision))
            }
            Condition::Absent => request::Condition::Absent,
            Condition::Exists => request::Condition::Exists,
        });
        let (key, token) = (key(part), None);
        match &part.ask {
            Ask::Set { value, life } => Step::Write(Write::Set {
                key,
                payload: value.clone(),
                options: SetOptions {
                    token,
                    condition,
                    ttl_ms: ttl(life),
                },
            }),
            Ask::Get | Ask::Left => Step::Get(key),
            Ask::Del => Step::Write(Write::Delete {
                key,
                token,
                condition,
            }),
            Ask::Expire(life) => Step::Write(Write::Expire {
                key,
                token,
                ttl_ms: ttl(life),
            }),
        }
    });
    Batch::Transaction(Transaction {
        steps: steps.collect(),
        is_atomic,
        token,
    })
}

/// The batch that asks for all of it.
fn batch(commands: &[Command], token: Option<&Bytes>) -> Batch {
    let token = || token.map(|token| Token::parse(token).expect("a good token"));
    let key = |key: &Bytes| Key::parse(key).expect("a good key");
    if let [Command::Bulk { count, value }] = commands {
        return Batch::Bulk {
            count: *count,
            payload: value.clone(),
            token: token(),
        };
    }
    if let [Command::Parts { parts, is_atomic }] = commands {
        return transaction(parts, *is_atomic, token());
    }
    let reads = commands.iter().filter_map(|command| match command {
        Command::Get { key: name } => Some(key(name)),
        _ => None,
    });
    let reads: Vec<Key> = reads.collect();
    if !reads.is_empty() {
        return Batch::Reads(reads);
    }
    let writes = commands.iter().filter_map(|command| match command {
        Command::Set { key: name, value } => Some(Write::set(key(name), value.clone(), token())),
        Command::Del { key: name } => Some(Write::delete(key(name), token())),
        Command::Get { .. } | Command::Bulk { .. } | Command::Parts { .. } => None,
    });
    Batch::Writes(writes.collect())
}

fn outcome(command: &Command, reply: &Reply) -> Outcome {
    match (command, reply) {
        (Command::Parts { .. }, Reply::Transaction(replies)) => told(replies),
        (Command::Parts { .. }, Reply::NotFound | Reply::TimeToLive { .. }) => {
            told(std::slice::from_ref(reply))
        }
        (_, Reply::Stored { .. } | Reply::Deleted) => Outcome::Ok,
        (_, Reply::NotFound) => Outcome::NotFound,
        (_, Reply::Value { payload, .. }) => Outcome::Found(payload.clone()),
        (_, Reply::BulkStored { first, last }) => Outcome::Ids {
            first: *first,
            last: *last,
        },
        (_, Reply::Failed(Failure::BulkPartial { stored, .. })) => {
            Outcome::Partial { stored: *stored }
        }
        (_, Reply::Failed(failure)) => match failure.outcome() {
            Certainty::Failed => Outcome::Failed,
            Certainty::Unknown => Outcome::Unknown,
        },
        (_, reply) => panic!("{reply:?} is no answer to {command}"),
    }
}

/// What became of each part.
fn told(replies: &[Reply]) -> Outcome {
    let is_unknown = |reply: &Reply| match reply {
        Reply::Failed(failure) => failure.outcome() == Certainty::Unknown,
        _ => false,
    };
    if replies.iter().any(is_unknown) {
        return Outcome::Unknown;
    }
    let told: Vec<Told> = replies
        .iter()
        .map(|reply| match reply {
            Reply::Stored { revision, .. } => Told::Stored(revision.as_u64()),
            Reply::Deleted | Reply::ExpirySet => Told::Done,
            Reply::NotFound => Told::NotFound,
            Reply::Value { revision, payload } => Told::Found {
                value: payload.clone(),
                revision: Some(revision.as_u64()),
            },
            Reply::Mismatch { revision } => {
                Told::Mismatch(revision.map(|revision| revision.as_u64()))
            }
            Reply::TimeToLive { ms } => Told::Left(*ms),
            Reply::Failed(Failure::NotApplied { .. }) => Told::NotApplied,
            Reply::Failed(_) => Told::Failed,
            reply => panic!("{reply:?} is no answer to a part"),
        })
        .collect();
    Outcome::of_parts(told)
}

impl World {
    pub(crate) fn next(&mut self, number: usize) {
        let client = &mut self.clients[number];
        if client.under_way.is_some() {
            return;
        }
        if client.once.is_none() && client.to_read.is_empty() {
            if client.left == 0 || self.phase != Phase::Faults {
                client.left = 0;
                return;
            }
            client.left -= 1;
        }
        let (commands, token) = client.wishes(number, &self.plan);
        let batch = batch(&commands, token.as_ref());
        let leader = client.leader;
        let (who, now) = (number as u32, self.now);
        let asked = commands.clone();
        let calls = commands.into_iter().map(|command| match &token {
            Some(token) => self.history.call_once(who, now, token.clone(), command),
            None => self.history.call(who, now, command),
        });
        let calls: Vec<CallId> = calls.collect();
        let request = self.number();
        let size = calls.len();
        self.clients[number].asked = asked;
        self.trace.note(
            self.now,
            format_args!("C{number} asks L{leader} #{request} {size}"),
        );
        self.clients[number].under_way = Some((request, calls));
        let at = self
            .net
            .arrival(self.client_node(number), leader, self.now, true);
        let event = Event::Submit {
            client: number,
            request,
            leader,
            batch,
        };
        self.schedule(at, event);
        let given_up = Event::Reply {
            client: number,
            request,
            replies: None,
        };
        self.after(self.plan.patience_ms * MS, given_up);
    }

    /// A client loses its connection, whatever is under way.
    pub fn hang_up(&mut self, client: usize) {
        if let Some((request, _)) = self.clients[client].under_way {
            self.disconnect(client, request);
        }
    }

    /// The connection of a client has broken.
    pub fn disconnect(&mut self, client: usize, request: u64) {
        let replies = None;
        let event = Event::Reply {
            client,
            request,
            replies,
        };
        self.after(MS, event);
    }

    pub(crate) fn reply(&mut self, number: usize, request: u64, replies: Option<Vec<Reply>>) {
        let leaders = self.plan.leaders;
        let client = &mut self.clients[number];
        if client
            .under_way
            .as_ref()
            .is_none_or(|(current, _)| *current != request)
        {
            return;
        }
        let Some((_, calls)) = client.under_way.take() else {
            return;
        };
        let mut is_served = false;
        match &replies {
            Some(replies) => {
                // A batch of reads may be answered in parts; the rest is given up.
                for (place, (call, reply)) in calls.iter().zip(replies).enumerate() {
                    let outcome = outcome(&client.asked[place], reply);
                    client.learn(place, &outcome);
                    is_served |= !matches!(reply, Reply::Failed(_));
                    client.tried(&outcome);
                    self.history.end(*call, self.now, outcome);
                }
                let is_read = replies
                    .iter()
                    .all(|reply| matches!(reply, Reply::Value { .. } | Reply::NotFound));
                if replies.len() != calls.len() && !is_read {
                    self.oracle.lock().fail(format!(
                        "A7: {} replies to {} requests",
                        replies.len(),
                        calls.len()
                    ));
                }
                if is_served && is_read && !client.to_read.is_empty() {
                    client.to_read.pop();
                }
            }
            None => {
                client.tried(&Outcome::Unknown);
                // Some insist.
                if client.rng.bool() {
                    client.leader = (client.leader + 1) % leaders;
                }
            }
        }
        if replies.is_some() && !is_served {
            client.leader = client.rng.usize(..leaders);
        }
        let think = match is_served {
            true => client.rng.u64(..=self.plan.think_ms),
            false => client.rng.u64(20..=100),
        };
        let told = replies.as_ref().map(Vec::len);
        self.trace.note(
            self.now,
            format_args!("C{number} told #{request} {told:?} {is_served}"),
        );
        self.after(think * MS, Event::Next { client: number });
    }

    /// Has all keys read once more.
    pub fn read_all(&mut self) {
        let keys = self.history.keys();
        let count = self.clients.len();
        for (number, key) in keys.into_iter().enumerate() {
            self.clients[number % count].to_read.push(key);
        }
        for client in 0..count {
            self.after(MS, Event::Next { client });
        }
    }
}
