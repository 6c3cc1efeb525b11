//! How long and how hard a client tries.

use std::time::Duration;

use super::error::ClientError;
use crate::ids::Token;
use crate::protocol::request::Condition;

/// When a client stops before its deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// Not at all: it tries through restarts of the whole cluster, and asks a leader again that is
    /// busy or has too few members. For programs.
    UntilDeadline,
    /// When a whole round finds nobody at any address, and at once when the active leader says that
    /// it cannot do it now. While somebody is there and a leader is being elected it waits. For
    /// people and scripts, who would rather know.
    WhileElecting,
    /// At the end of the first round: every address was asked once, and up to
    /// [`REDIRECTS_MAX`](super::attempts::REDIRECTS_MAX) that they pointed to. For whoever asks
    /// again by itself.
    OneRound,
}

/// What a write may carry beside key and payload; by default nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WriteOptions {
    /// What must be so for the write to take effect. Otherwise it ends with
    /// [`ClientError::Mismatch`].
    pub condition: Option<Condition>,
    /// The message expires in so much time, to the millisecond, rounded up: then it is gone as if
    /// it had been deleted. Not of a delete, and not with [`Condition::Exists`].
    pub ttl: Option<Duration>,
    /// A token of the program's own: the write takes effect once in all calls, of all clients,
    /// within the cluster's `dedup_window`. For a program that was started again and does not know
    /// what became of its last write. Without it the client makes one.
    pub token: Option<Token>,
}

impl WriteOptions {
    /// With a condition.
    pub fn on(condition: Condition) -> WriteOptions {
        WriteOptions {
            condition: Some(condition),
            ..WriteOptions::default()
        }
    }

    /// Of a message that expires.
    pub fn lasting(ttl: Duration) -> WriteOptions {
        WriteOptions {
            ttl: Some(ttl),
            ..WriteOptions::default()
        }
    }

    pub(super) fn without_ttl(&self) -> Result<(), ClientError> {
        match self.ttl {
            None => Ok(()),
            Some(_) => Err(ClientError::invalid("a delete has no time to live")),
        }
    }

    /// With a token.
    pub fn once(token: Token) -> WriteOptions {
        WriteOptions {
            token: Some(token),
            ..WriteOptions::default()
        }
    }
}

/// The options of a [`Client`](super::Client), each with its default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientOptions {
    /// How long after a call's begin attempts are still made: 30 s, at most half of
    /// `dedup_window`. The last one ends then too, or later where much is sent: by a second for
    /// each megabyte, and for each 10,000 messages of a bulk write.
    pub deadline: Duration,
    /// How long a reply may stand still before a request that may be repeated goes to the next
    /// leader: 3 s, a leader's own deadline (`write_timeout`, `read_timeout`) and the way. One that
    /// may not be repeated waits until the deadline. More time where much is sent, as above.
    pub attempt_timeout: Duration,
    /// How long one address may take to accept a connection: 1 s.
    pub connect_timeout: Duration,
    /// The cluster's `dedup_window`: 2 minutes. For so long its leaders remember a token.
    pub dedup_window: Duration,
    /// Whether each write carries a fresh token, so that it is repeated until it is answered and
    /// takes effect once: yes. Without it a write whose answer is lost is
    /// [`Unknown`](ClientError::Unknown). Leaders remember about a million tokens, 8,700 new ones a
    /// second with the default window, and answer more with `too many tokens in use`.
    pub tokens: bool,
    /// When it stops before the deadline: [`Patience::UntilDeadline`].
    pub patience: Patience,
    /// Connections that are kept for later calls: 64. A call uses one alone, so a client that more
    /// threads share than that opens some anew all the time; a leader takes 16,384.
    pub idle_connections_max: usize,
}

impl Default for ClientOptions {
    fn default() -> ClientOptions {
        ClientOptions {
            deadline: Duration::from_secs(30),
            attempt_timeout: Duration::from_secs(3),
            connect_timeout: Duration::from_secs(1),
            dedup_window: Duration::from_secs(120),
            tokens: true,
            patience: Patience::UntilDeadline,
            idle_connections_max: 64,
        }
    }
}

impl ClientOptions {
    /// Checks what the program asks for.
    pub(super) fn check(&self) -> Result<(), ClientError> {
        let times = [self.deadline, self.attempt_timeout, self.connect_timeout];
        if times.iter().any(|time| time.is_zero()) {
            return Err(ClientError::invalid("a time-out of 0: accepted: more"));
        }
        // A repeat is sent before the deadline and takes effect some seconds later at most; its
        // token must still be known then.
        if self.deadline > self.dedup_window / 2 {
            let (deadline, window) = (self.deadline, self.dedup_window);
            return Err(ClientError::invalid(format!(
                "deadline {deadline:?}: accepted: up to half of dedup_window, {window:?}"
            )));
        }
        Ok(())
    }
}
