//! The client of a cluster: finds the active leader among several, follows it when it changes, and
//! repeats only what is safe to repeat.
//!
//! ```no_run
//! use tolerex::client::Client;
//! use tolerex::ids::Key;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut client = Client::new(["127.0.0.1:6666", "127.0.0.1:6766", "127.0.0.1:6866"])?;
//! let key = Key::parse(b"greeting")?;
//! client.set(&key, b"hello")?;
//! assert_eq!(client.get(&key)?.map(|message| message.payload), Some(b"hello".to_vec()));
//! # Ok(())
//! # }
//! ```
//!
//! A [`Client`] is used by one thread and keeps one connection, to the leader that answered last.
//! Each call asks, waits and returns: one round trip where nothing goes wrong. It owns no thread.
//!
//! **Finding the leader.** The addresses are asked in turn ([`attempts`] has the rules, as a value
//! without a socket). `not leader, leader is HOST:PORT` is followed, at most
//! [`REDIRECTS_MAX`](attempts::REDIRECTS_MAX) times in a row; where nobody answers, or no leader is
//! elected, it goes on to the next, rests and begins again, until the deadline.
//!
//! **Three outcomes.** A call is done (`Ok`), failed (nothing happened), or unknown: the error's
//! [`outcome`](ClientError::outcome) tells. Reads are always repeated. So are writes, because each
//! carries a fresh token (`ONCE` in HaToKuSe) by which the leaders know a repeat: it takes effect
//! once and gets the first answer, also from another leader. A write is unknown only if the
//! deadline passed, or if it carries no token (see [`ClientOptions::tokens`], [`Client::raw`]).
//! `failed` is never said of a write of which any attempt may have been executed.
//!
//! Known limits: a server that stands still, with a repeat unread in its socket, for longer than
//! `dedup_window` less the deadline, may execute it a second time; the window is the setting to
//! raise where processes are paused for minutes. Time-outs bound how long a reply stands still, so
//! a large value that trickles in may take longer than the deadline. Names are resolved by the
//! system, which has time-outs of its own. One request is in flight at a time.

mod answer;
pub mod attempts;
mod connection;
mod error;
mod options;
mod request;
#[cfg(test)]
mod tests;

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

pub use self::answer::Answer;
pub use self::connection::{Connection, Reply};
pub use self::error::ClientError;
pub use self::options::{ClientOptions, Patience};
pub use self::request::{Form, Request};
use crate::clock::{self, Clock, Instant, SystemClock};
use crate::config::kinds::is_host_port;
pub use crate::error::Outcome;
use crate::ids::{Key, Revision, Token};
use attempts::{Attempts, Event, Policy, Step};

/// A socket's time-out must not be 0, and is rounded to milliseconds by some systems.
const TIMEOUT_MIN: Duration = Duration::from_millis(1);

/// A message that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Names the write that stored it; another one after each write of the key.
    pub revision: Revision,
    /// Its bytes.
    pub payload: Vec<u8>,
}

/// See the [module](self).
pub struct Client {
    /// Where the leaders are, as the program said; not empty.
    addresses: Vec<String>,
    options: ClientOptions,
    clock: Arc<dyn Clock>,
    random: fastrand::Rng,
    /// The leader that answered last, and the connection to it while it is open.
    last: Option<String>,
    connection: Option<Connection>,
    /// What every token of this client begins with: random, so that clients never share one.
    token_prefix: String,
    /// Tokens made so far.
    tokens: u64,
}

impl Client {
    /// A client of the leaders at these addresses (`host:port`), with the default options. Nothing
    /// is sent yet.
    ///
    /// # Errors
    /// [`ClientError::Invalid`]: there is no address, or one is none.
    pub fn new<A: Into<String>>(
        addresses: impl IntoIterator<Item = A>,
    ) -> Result<Client, ClientError> {
        Client::with_options(addresses, ClientOptions::default())
    }

    /// The same with options.
    ///
    /// # Errors
    /// [`ClientError::Invalid`]: an address or an option cannot be.
    pub fn with_options<A: Into<String>>(
        addresses: impl IntoIterator<Item = A>,
        options: ClientOptions,
    ) -> Result<Client, ClientError> {
        options.check()?;
        let addresses: Vec<String> = addresses.into_iter().map(Into::into).collect();
        if addresses.is_empty() {
            return Err(ClientError::invalid("no address: accepted: host:port, …"));
        }
        if let Some(bad) = addresses.iter().find(|address| !is_host_port(address)) {
            return Err(ClientError::invalid(format!("{bad}: accepted: host:port")));
        }
        let random = || {
            let why = |error| ClientError::invalid(format!("no random numbers: {error}"));
            getrandom::u64().map_err(why)
        };
        Ok(Client {
            addresses,
            options,
            clock: SystemClock::shared(),
            random: fastrand::Rng::with_seed(random()?),
            last: None,
            connection: None,
            token_prefix: format!("{:016x}", random()?),
            tokens: 0,
        })
    }

    /// Stores a message of any bytes; those of before under this key are gone.
    ///
    /// # Errors
    /// Any but [`ClientError::Partial`].
    pub fn set(&mut self, key: &Key, payload: &[u8]) -> Result<(), ClientError> {
        let token = self.fresh_token();
        self.write(&Request::set(key, payload, token.as_ref()))
    }

    /// The same under a token of the program's own, which takes effect once in all calls, of all
    /// clients, within the cluster's `dedup_window`. For a program that was started again and does
    /// not know what became of its last write.
    ///
    /// # Errors
    /// As [`Client::set`].
    pub fn set_once(
        &mut self,
        key: &Key,
        payload: &[u8],
        token: &Token,
    ) -> Result<(), ClientError> {
        self.write(&Request::set(key, payload, Some(token)))
    }

    /// Reads a message; `None` if there is none.
    ///
    /// # Errors
    /// [`ClientError::NoLeader`], [`ClientError::Unavailable`]; never an unknown outcome.
    pub fn get(&mut self, key: &Key) -> Result<Option<Message>, ClientError> {
        let Reply { line, rest, .. } = self.call(&Request::get(key))?.done()?;
        if line == b"NOT_FOUND" {
            return Ok(None);
        }
        let (revision, _) = connection::value_of(&line).ok_or_else(|| refused(&line))?;
        Ok(Some(Message {
            revision: Revision::from_u64(revision),
            payload: rest,
        }))
    }

    /// Deletes a message; false if there was none.
    ///
    /// # Errors
    /// As [`Client::set`].
    pub fn delete(&mut self, key: &Key) -> Result<bool, ClientError> {
        let token = self.fresh_token();
        self.delete_with(key, token.as_ref())
    }

    /// The same under a token of the program's own, as [`Client::set_once`].
    ///
    /// # Errors
    /// As [`Client::set`].
    pub fn delete_once(&mut self, key: &Key, token: &Token) -> Result<bool, ClientError> {
        self.delete_with(key, Some(token))
    }

    /// Stores one message `count` times (1 to 1,000,000, at most 1 GiB in all) under fresh
    /// consecutive ids; gives them. Not atomic. The message is a single line: no LF, no CR at its
    /// end. With a token (see [`ClientOptions::tokens`]) a repeat goes on under the same ids.
    ///
    /// # Errors
    /// Any; [`ClientError::Partial`] tells what is stored.
    pub fn set_bulk(
        &mut self,
        count: u64,
        payload: &[u8],
    ) -> Result<RangeInclusive<u64>, ClientError> {
        let token = self.fresh_token();
        self.bulk_with(count, payload, token.as_ref())
    }

    /// The same under a token of the program's own, as [`Client::set_once`].
    ///
    /// # Errors
    /// As [`Client::set_bulk`].
    pub fn set_bulk_once(
        &mut self,
        count: u64,
        payload: &[u8],
        token: &Token,
    ) -> Result<RangeInclusive<u64>, ClientError> {
        self.bulk_with(count, payload, Some(token))
    }

    /// Sends a command as a person types it, without line end, and the payload of a SETB; gives the
    /// reply, which may be an error ([`Reply::done`]). Nothing is added: a write is repeated only
    /// if it begins with `ONCE`. PROMPT, QUIT and EXIT are refused, the connection being the
    /// client's. HELP, STATUS and GROUP are answered by any leader: after [`Client::leader`] by the
    /// active one.
    ///
    /// # Errors
    /// [`ClientError::NoLeader`], [`ClientError::Unknown`], [`ClientError::Invalid`], and after the
    /// deadline what the leader last said.
    pub fn raw(&mut self, line: &[u8], payload: Option<&[u8]>) -> Result<Reply, ClientError> {
        self.call(&Request::raw(line, payload)?)
    }

    /// The address that answered last, if any did: usually the active leader's.
    pub fn address(&self) -> Option<&str> {
        self.last.as_deref()
    }

    /// The address of the active leader: one that has just confirmed that it leads.
    ///
    /// # Errors
    /// [`ClientError::NoLeader`], [`ClientError::Unavailable`].
    pub fn leader(&mut self) -> Result<String, ClientError> {
        self.call(&Request::count())?.done()?;
        Ok(self.last.clone().expect("it has just answered"))
    }

    fn delete_with(&mut self, key: &Key, token: Option<&Token>) -> Result<bool, ClientError> {
        let reply = self.call(&Request::delete(key, token))?.done()?;
        match reply.line.as_slice() {
            b"OK" => Ok(true),
            b"NOT_FOUND" => Ok(false),
            line => Err(unknown(line)),
        }
    }

    fn bulk_with(
        &mut self,
        count: u64,
        payload: &[u8],
        token: Option<&Token>,
    ) -> Result<RangeInclusive<u64>, ClientError> {
        let reply = self.call(&Request::bulk(count, payload, token)?)?.done()?;
        let ids = std::str::from_utf8(&reply.line).ok().and_then(|text| {
            let (first, last) = text.strip_prefix("OK ")?.split_once('-')?;
            Some(first.parse().ok()?..=last.parse().ok()?)
        });
        ids.ok_or_else(|| unknown(&reply.line))
    }

    fn write(&mut self, request: &Request) -> Result<(), ClientError> {
        let reply = self.call(request)?.done()?;
        match reply.line.as_slice() {
            b"OK" => Ok(()),
            line => Err(unknown(line)),
        }
    }

    /// A token that no other write has; `None` where none is wanted.
    fn fresh_token(&mut self) -> Option<Token> {
        if !self.options.tokens {
            return None;
        }
        self.tokens += 1;
        let text = format!("{}-{:x}", self.token_prefix, self.tokens);
        Some(Token::parse(text.as_bytes()).expect("hexadecimal digits and a hyphen"))
    }

    /// Makes a call: attempts until one of them has the caller's reply.
    fn call(&mut self, request: &Request) -> Result<Reply, ClientError> {
        let policy = Policy {
            patience: self.options.patience,
            deadline: self.clock.now() + self.options.deadline,
            attempt_timeout: self.options.attempt_timeout,
            extra: request.extra,
            is_write: request.is_write,
            is_repeatable: request.is_repeatable,
        };
        let last = self.last.as_deref();
        let mut attempts = Attempts::new(policy, &self.addresses, last, self.random.fork());
        let mut reply = Reply::default();
        let mut event = Event::Start;
        loop {
            event = match attempts.step(event, self.clock.now()) {
                Step::Ask { address, until } => match self.attempt(address, request, until) {
                    Ok(answer) => {
                        let line = answer.line.clone();
                        reply = answer;
                        Event::Answered(line)
                    }
                    Err(failed) => failed,
                },
                Step::Rest { until } => {
                    clock::sleep(until.since(self.clock.now()));
                    Event::Rested
                }
                Step::Reply => return Ok(reply),
                Step::GiveUp(error) => return Err(error),
            };
        }
    }

    /// One attempt, on the open connection if it is to the same address.
    fn attempt(
        &mut self,
        address: String,
        request: &Request,
        until: Instant,
    ) -> Result<Reply, Event> {
        // What is sent on a connection that the server has closed while it was idle is lost.
        let is_there = self.last.as_ref() == Some(&address);
        let open = self.connection.take();
        let open = open.filter(|connection| is_there && connection.is_quiet());
        let left = || until.since(self.clock.now()).max(TIMEOUT_MIN);
        let mut connection = match open {
            Some(connection) => connection,
            None => {
                let timeout = self.options.connect_timeout.min(left());
                let opened = Connection::open(&address, timeout);
                opened.map_err(|error| Event::Unreachable(error.to_string()))?
            }
        };
        let timeout = left();
        let asked = connection
            .set_timeout(timeout)
            .and_then(|()| connection.ask(request));
        let reply = asked.map_err(|error| Event::Lost(error.to_string()))?;
        (self.last, self.connection) = (Some(address), Some(connection));
        Ok(reply)
    }
}

impl Reply {
    /// The reply, unless it is an error.
    ///
    /// # Errors
    /// What an `ERROR: …` of a leader means.
    pub fn done(self) -> Result<Reply, ClientError> {
        match answer::error_of(&self.line) {
            Some(error) => Err(error),
            None => Ok(self),
        }
    }
}

/// A write was answered by what is no answer to it.
fn unknown(line: &[u8]) -> ClientError {
    let reason = format!("{}; {}", connection::bad(line), answer::UNKNOWN);
    ClientError::Unknown { reason }
}

/// A read was.
fn refused(line: &[u8]) -> ClientError {
    let reason = connection::bad(line).to_string();
    ClientError::Refused { reason }
}
