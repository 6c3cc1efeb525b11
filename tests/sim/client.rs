//! Clients: each has one batch under way, asks another leader when one does not serve, and records
//! what it asked and was told.
//!
//! A connection that breaks and a reply that does not come leave the outcome unknown; the client
//! goes on, and the history keeps the operation open. A write with a token is asked again until its
//! outcome is known, and now and then once more.

use bytes::Bytes;
use fastrand::Rng;
use tolerex::error::{Failure, Outcome as Certainty};
use tolerex::ids::{Key, Token};
use tolerex::protocol::reply::Reply;
use tolerex::protocol::request::{Batch, Write};

use crate::events::Event;
use crate::history::{CallId, Command, Outcome};
use crate::net::MS;
use crate::plan::Plan;
use crate::world::{Phase, World};

/// How often a write with a token is asked, at most.
const TRIES_MAX: u32 = 12;

/// Operations in one batch, at most.
const BATCH_MAX: usize = 6;

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
            let is_write = !matches!(commands[0], Command::Get { .. });
            if commands.len() > 1 || !is_write || !plan.has_tokens || self.rng.bool() {
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
        use Outcome::{Failed, Found, Ids, NotFound, Ok, Partial, Unknown};
        let is_known = match outcome {
            Ok | NotFound | Found(_) | Ids { .. } => true,
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
        match self.rng.u32(..20) {
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
        Command::Get { .. } | Command::Bulk { .. } => None,
    });
    Batch::Writes(writes.collect())
}

fn outcome(reply: &Reply) -> Outcome {
    match reply {
        Reply::Stored { .. } | Reply::Deleted => Outcome::Ok,
        Reply::NotFound => Outcome::NotFound,
        Reply::Value { payload, .. } => Outcome::Found(payload.clone()),
        Reply::BulkStored { first, last } => Outcome::Ids {
            first: *first,
            last: *last,
        },
        Reply::Failed(Failure::BulkPartial { stored, .. }) => Outcome::Partial { stored: *stored },
        Reply::Failed(failure) => match failure.outcome() {
            Certainty::Failed => Outcome::Failed,
            Certainty::Unknown => Outcome::Unknown,
        },
        Reply::Location { .. } | Reply::Count(_) | Reply::Status(_) => Outcome::Unknown,
        Reply::Group(_) | Reply::GroupChanged => Outcome::Unknown,
        Reply::ExpirySet | Reply::Mismatch { .. } | Reply::Transaction(_) => Outcome::Unknown,
        Reply::TimeToLive { .. } | Reply::Keys(_) => Outcome::Unknown,
    }
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
        let calls = commands.into_iter().map(|command| match &token {
            Some(token) => self.history.call_once(who, now, token.clone(), command),
            None => self.history.call(who, now, command),
        });
        let calls: Vec<CallId> = calls.collect();
        let request = self.number();
        let size = calls.len();
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
                for (call, reply) in calls.iter().zip(replies) {
                    let outcome = outcome(reply);
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
        let mut keys: Vec<Bytes> = Vec::new();
        for operation in self.history.operations() {
            match (&operation.command, &operation.outcome) {
                (Command::Set { key, .. }, _) => keys.push(key.clone()),
                (Command::Bulk { count, .. }, Outcome::Ids { first, .. }) => {
                    let ids = *first..first + count;
                    keys.extend(ids.map(|id| Bytes::from(id.to_string())));
                }
                _ => {}
            }
        }
        keys.sort_unstable();
        keys.dedup();
        let count = self.clients.len();
        for (number, key) in keys.into_iter().enumerate() {
            self.clients[number % count].to_read.push(key);
        }
        for client in 0..count {
            self.after(MS, Event::Next { client });
        }
    }
}
