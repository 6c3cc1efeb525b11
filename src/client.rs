//! The client of a cluster: finds the active leader among several, follows it when it changes, and
//! repeats only what is safe to repeat.
//!
//! ```
//! # use tolerex::testing::Cluster;
//! use tolerex::client::Client;
//! use tolerex::ids::Key;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let cluster = Cluster::start(1, 2, 2)?;
//! # let addresses = cluster.addresses();
//! // Of a cluster on this machine: ["127.0.0.1:6666", "127.0.0.1:6766", "127.0.0.1:6866"].
//! let client = Client::new(addresses)?;
//! let key = Key::parse(b"greeting")?;
//! client.set(&key, b"hello")?;
//! assert_eq!(client.get(&key)?.map(|message| message.payload), Some(b"hello".to_vec()));
//!
//! // Many requests in flight at a time.
//! let mut pipeline = client.pipeline();
//! for number in 0..1000 {
//!     pipeline.set(&Key::Id(number), b"x");
//! }
//! for result in pipeline.run() {
//!     result?;
//! }
//! assert!(client.delete(&Key::Id(999))?);
//!
//! // Compare-and-set: one of all that try takes the turn.
//! use tolerex::client::{ClientError, Condition};
//! let turn = Key::parse(b"turn")?;
//! let mine = client.set_if(&turn, b"mine", Condition::Absent)?;
//! let theirs = client.set_if(&turn, b"theirs", Condition::Absent);
//! assert_eq!(theirs, Err(ClientError::Mismatch { revision: Some(mine) }));
//! client.delete_if(&turn, Condition::Revision(mine))?;
//!
//! // Together, all or nothing.
//! let mut batch = client.batch();
//! batch.atomic().set(&turn, b"ours").delete(&Key::Id(998)).get(&turn);
//! assert!(batch.run()?.iter().all(Result::is_ok));
//!
//! // Keys in their order, and messages that go by themselves.
//! let ids = client.list("99").map(|listed| Ok(listed?.key));
//! let ids: Result<Vec<Key>, ClientError> = ids.collect();
//! assert_eq!(ids?, [99, 990, 991, 992, 993, 994, 995, 996, 997].map(Key::Id));
//! client.expire(&key, std::time::Duration::from_secs(60))?;
//! # Ok(())
//! # }
//! ```
//!
//! A [`Client`] is shared by cloning it, or by reference, between as many threads as one likes. A
//! call asks, waits and returns: one round trip where nothing goes wrong, on a connection that no
//! other call uses meanwhile. Up to [`idle_connections_max`](ClientOptions::idle_connections_max)
//! connections are kept for later calls. It owns no thread.
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
//! system, which has time-outs of its own.

mod answer;
pub mod attempts;
mod batch;
mod calls;
mod connection;
mod done;
mod error;
mod list;
mod options;
mod pipeline;
mod pool;
mod request;
#[cfg(test)]
mod tests;

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

pub use self::answer::Answer;
pub use self::batch::Batch;
use self::calls::{Caller, Memory};
pub(crate) use self::connection::connect;
pub use self::connection::{Connection, Reply};
pub use self::done::{Done, Message, Page, TimeToLive};
pub use self::error::ClientError;
pub use self::list::List;
pub use self::options::{ClientOptions, Patience, WriteOptions};
pub use self::pipeline::Pipeline;
use self::pool::Pool;
pub(crate) use self::request::without_prefixes;
pub use self::request::{Form, Request};
use crate::clock::SystemClock;
use crate::config::kinds::is_host_port;
pub use crate::error::Outcome;
use crate::ids::{Key, Revision, Token};
pub use crate::protocol::reply::ListedKey;
pub use crate::protocol::request::Condition;
use crate::protocol::request::TTL_MS_MAX;

/// See the [module](self). Clones share connections and what is known of the leader.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    caller: Caller,
    /// What every token of this client begins with: random, so that clients never share one.
    token_prefix: String,
    /// Tokens made so far.
    tokens: AtomicU64,
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
        let caller = Caller {
            addresses: addresses.into(),
            pool: Pool::new(options.idle_connections_max),
            options,
            clock: SystemClock::shared(),
            memory: Mutex::new(Memory {
                random: fastrand::Rng::with_seed(random()?),
                last: None,
            }),
        };
        let inner = Inner {
            caller,
            token_prefix: format!("{:016x}", random()?),
            tokens: AtomicU64::new(0),
        };
        Ok(Client {
            inner: Arc::new(inner),
        })
    }

    /// Stores a message of any bytes; those of before under this key are gone. Gives the revision
    /// that names this write.
    ///
    /// # Errors
    /// Any but [`ClientError::Partial`] and [`ClientError::Mismatch`].
    pub fn set(&self, key: &Key, payload: &[u8]) -> Result<Revision, ClientError> {
        self.set_with(key, payload, WriteOptions::default())
    }

    /// The same if the condition holds: compare-and-set. Of many that set a message on the same
    /// revision at a time, one does.
    ///
    /// # Errors
    /// Any but [`ClientError::Partial`].
    pub fn set_if(
        &self,
        key: &Key,
        payload: &[u8],
        condition: Condition,
    ) -> Result<Revision, ClientError> {
        self.set_with(key, payload, WriteOptions::on(condition))
    }

    /// The same with a condition, a time to live, a token of the program's own.
    ///
    /// # Errors
    /// Any but [`ClientError::Partial`].
    pub fn set_with(
        &self,
        key: &Key,
        payload: &[u8],
        options: WriteOptions,
    ) -> Result<Revision, ClientError> {
        let options = self.with_token(options);
        if options.ttl.is_some() {
            let request = batch::single_set(key, payload, &options)?;
            return batch::single_stored(self.call(&request)?);
        }
        done::stored(self.call(&Request::set(key, payload, &options))?)
    }

    /// Reads a message; `None` if there is none.
    ///
    /// # Errors
    /// [`ClientError::NoLeader`], [`ClientError::Unavailable`]; never an unknown outcome.
    pub fn get(&self, key: &Key) -> Result<Option<Message>, ClientError> {
        done::read(self.call(&Request::get(key))?)
    }

    /// Deletes a message; false if there was none.
    ///
    /// # Errors
    /// As [`Client::set`].
    pub fn delete(&self, key: &Key) -> Result<bool, ClientError> {
        self.delete_with(key, WriteOptions::default())
    }

    /// The same if the condition holds.
    ///
    /// # Errors
    /// As [`Client::set_if`].
    pub fn delete_if(&self, key: &Key, condition: Condition) -> Result<bool, ClientError> {
        self.delete_with(key, WriteOptions::on(condition))
    }

    /// The same with a condition, and under a token of the program's own.
    ///
    /// # Errors
    /// As [`Client::set_with`].
    pub fn delete_with(&self, key: &Key, options: WriteOptions) -> Result<bool, ClientError> {
        options.without_ttl()?;
        let options = self.with_token(options);
        done::existed(self.call(&Request::delete(key, &options))?)
    }

    /// Lets a message expire in so much time from now, to the second, rounded up: then it is gone
    /// as if it had been deleted. Storing it again makes it last. False if there is none.
    ///
    /// # Errors
    /// As [`Client::set`].
    pub fn expire(&self, key: &Key, time: Duration) -> Result<bool, ClientError> {
        let part = u64::from(time.subsec_nanos() > 0);
        let whole = time.as_secs().saturating_add(part);
        if !(1..=TTL_MS_MAX / 1000).contains(&whole) {
            return Err(done::no_time_to_live(time));
        }
        let token = self.fresh_token();
        done::existed(self.call(&Request::expire(key, Some(whole), token.as_ref()))?)
    }

    /// Lets a message last; false if there is none.
    ///
    /// # Errors
    /// As [`Client::set`].
    pub fn persist(&self, key: &Key) -> Result<bool, ClientError> {
        let token = self.fresh_token();
        done::existed(self.call(&Request::expire(key, None, token.as_ref()))?)
    }

    /// When a message expires.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub fn ttl(&self, key: &Key) -> Result<TimeToLive, ClientError> {
        done::ttl(self.call(&Request::ttl(key))?)
    }

    /// The keys that begin with `prefix`, all of them if it is empty: an iterator that asks for a
    /// page at a time.
    pub fn list(&self, prefix: &str) -> List<'_> {
        List::new(self, prefix)
    }

    /// One page of such a listing: up to `limit` keys, 1 to 1000, from behind the key `after` on.
    ///
    /// # Errors
    /// As [`Client::get`], and [`ClientError::Invalid`].
    pub fn list_page(
        &self,
        prefix: &str,
        after: Option<&Key>,
        limit: u32,
    ) -> Result<Page, ClientError> {
        done::page(self.call(&Request::list(prefix, after, limit)?)?)
    }

    /// Stores one message `count` times (1 to 1,000,000, at most 1 GiB in all) under fresh
    /// consecutive ids; gives them. Not atomic. The message is a single line: no LF, no CR at its
    /// end. With a token (see [`ClientOptions::tokens`]) a repeat goes on under the same ids.
    ///
    /// # Errors
    /// Any; [`ClientError::Partial`] tells what is stored.
    pub fn set_bulk(&self, count: u64, payload: &[u8]) -> Result<RangeInclusive<u64>, ClientError> {
        let token = self.fresh_token();
        done::ids(self.call(&Request::bulk(count, payload, token.as_ref())?)?)
    }

    /// The same under a token of the program's own, as [`WriteOptions::token`].
    ///
    /// # Errors
    /// As [`Client::set_bulk`].
    pub fn set_bulk_once(
        &self,
        count: u64,
        payload: &[u8],
        token: &Token,
    ) -> Result<RangeInclusive<u64>, ClientError> {
        done::ids(self.call(&Request::bulk(count, payload, Some(token))?)?)
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
    pub fn raw(&self, line: &[u8], payload: Option<&[u8]>) -> Result<Reply, ClientError> {
        self.call(&Request::raw(line, payload)?)
    }

    /// Collects reads and writes that then take effect together, in one entry of the log: in
    /// their order, each seeing what those before it did, and nobody else's in between. Each has an
    /// outcome of its own, or all of them one: [`Batch::atomic`]. At most 4,096 operations, and
    /// 8 MiB of messages or one larger one.
    pub fn batch(&self) -> Batch<'_> {
        Batch::new(self)
    }

    /// Collects requests that are then in flight together on one connection.
    ///
    /// Each has an outcome of its own, as if it had been called by itself. They take effect in
    /// their order while nothing goes wrong. One that has to be repeated (the leader was busy or
    /// changed, the connection broke) may take effect behind later ones.
    pub fn pipeline(&self) -> Pipeline<'_> {
        Pipeline::new(self)
    }

    /// The address that answered last, if any did: usually the active leader's.
    pub fn address(&self) -> Option<String> {
        self.inner.caller.memory.lock().last.clone()
    }

    /// The address of the active leader: one that has just confirmed that it leads.
    ///
    /// # Errors
    /// [`ClientError::NoLeader`], [`ClientError::Unavailable`].
    pub fn leader(&self) -> Result<String, ClientError> {
        let (reply, address) = self.inner.caller.call(&Request::count())?;
        reply.done()?;
        Ok(address)
    }

    /// A token that no other write has; `None` where none is wanted.
    fn fresh_token(&self) -> Option<Token> {
        if !self.inner.caller.options.tokens {
            return None;
        }
        let number = self.inner.tokens.fetch_add(1, Ordering::Relaxed) + 1;
        let text = format!("{}-{number:x}", self.inner.token_prefix);
        Some(Token::parse(text.as_bytes()).expect("hexadecimal digits and a hyphen"))
    }

    /// With a fresh token, if it has none.
    fn with_token(&self, mut options: WriteOptions) -> WriteOptions {
        options.token = options.token.or_else(|| self.fresh_token());
        options
    }

    fn call(&self, request: &Request) -> Result<Reply, ClientError> {
        let (reply, _) = self.inner.caller.call(request)?;
        Ok(reply)
    }
}
