//! What clients did and what they were told: the record that `linearize` judges.
//!
//! Owns no clock: every call and every end comes with a time of the caller's, in nanoseconds or any
//! other number that never goes back. Several clients may record into one history, or each into
//! its own, which are then joined by [`History::merged`].
//!
//! Invariants: an operation ends at most once, and not before its call. Events at the same time
//! happened in the order in which they were recorded; so a call is recorded before its request is
//! sent, and an end after its reply arrived. Of joined histories, whose orders cannot be compared,
//! events at the same time count as concurrent.

use std::fmt;

use bytes::Bytes;

/// What a client asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Stores a message.
    Set {
        /// Under this key.
        key: Bytes,
        /// The payload.
        value: Bytes,
    },
    /// Reads a message.
    Get {
        /// Under this key.
        key: Bytes,
    },
    /// Deletes a message.
    Del {
        /// Under this key.
        key: Bytes,
    },
    /// Stores a message under each of `count` fresh consecutive ids.
    Bulk {
        /// How many ids.
        count: u64,
        /// The payload of each.
        value: Bytes,
    },
    /// Reads and writes that take effect at one moment, in their order; a single one too, where it
    /// has a condition or a time to live, or its revision is known.
    Parts {
        /// At least one.
        parts: Vec<Part>,
        /// All of them, or nothing.
        is_atomic: bool,
    },
}

/// A part of [`Command::Parts`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The message.
    pub key: Bytes,
    /// What to do with it.
    pub ask: Ask,
    /// What it demands of the message.
    pub condition: Option<Condition>,
}

/// See [`Part`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Stores it.
    Set {
        /// The payload.
        value: Bytes,
        /// How long it stays.
        life: Option<Life>,
    },
    /// Reads it.
    Get,
    /// Deletes it.
    Del,
    /// Changes how long it stays from now on; `None`: for ever.
    Expire(Option<Life>),
    /// Asks how long it stays.
    Left,
}

/// How long a message stays, in units of the history's times. The clocks that decide are not those
/// of the clients, so it is a range: it may go from the call on and so much, and must be gone when
/// the write was answered so long ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    /// What was asked for.
    pub asked: u64,
    /// It stays so long.
    pub least: u64,
    /// And no longer than this, if that can be said.
    pub most: Option<u64>,
}

/// What a part demands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// It is the message of this revision.
    Revision(u64),
    /// There is none.
    Absent,
    /// There is one.
    Exists,
}

/// What became of a part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// SET, under this revision.
    Stored(u64),
    /// GET.
    Found {
        /// The payload.
        value: Bytes,
        /// Which write stored it, if that was said.
        revision: Option<u64>,
    },
    /// DEL deleted it, or it expires as was asked.
    Done,
    /// There is no such message.
    NotFound,
    /// The condition does not hold: the message's revision, if there is one.
    Mismatch(Option<u64>),
    /// Not done because another part could not be.
    NotApplied,
    /// It stays so long; `None`: for ever.
    Left(Option<u64>),
    /// Not done, the others may be; of a read: no answer.
    Failed,
}

impl Command {
    /// A SET.
    pub fn set(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Command {
        let (key, value) = (key.into(), value.into());
        Command::Set { key, value }
    }

    /// A GET.
    pub fn get(key: impl Into<Bytes>) -> Command {
        Command::Get { key: key.into() }
    }

    /// A DEL.
    pub fn del(key: impl Into<Bytes>) -> Command {
        Command::Del { key: key.into() }
    }

    /// A bulk SET.
    pub fn bulk(count: u64, value: impl Into<Bytes>) -> Command {
        let value = value.into();
        Command::Bulk { count, value }
    }

    /// Parts that take effect each on its own, or all or none.
    pub fn parts(parts: Vec<Part>, is_atomic: bool) -> Command {
        assert!(!parts.is_empty(), "nothing is asked for");
        Command::Parts { parts, is_atomic }
    }

    /// Whether it changes nothing.
    pub fn is_read(&self) -> bool {
        match self {
            Command::Get { .. } => true,
            Command::Set { .. } | Command::Del { .. } | Command::Bulk { .. } => false,
            Command::Parts { parts, .. } => {
                let is_read = |part: &Part| matches!(part.ask, Ask::Get | Ask::Left);
                parts.iter().all(is_read)
            }
        }
    }

    /// Whether it may be sent with a token. Of parts that take effect each on its own some may
    /// fail, and are done by a repeat, which then has another answer.
    pub fn takes_token(&self) -> bool {
        let is_one = match self {
            Command::Parts { parts, is_atomic } => *is_atomic || parts.len() == 1,
            _ => true,
        };
        is_one && !self.is_read()
    }
}

/// How an operation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// `OK` to SET; to DEL: there was a message, and it is deleted.
    Ok,
    /// GET found this.
    Found(Bytes),
    /// GET or DEL: there is no such message.
    NotFound,
    /// A bulk SET stored its message under each of these ids.
    Ids {
        /// The lowest id.
        first: u64,
        /// The highest id.
        last: u64,
    },
    /// A bulk SET stopped on the way: these first ones are stored, later ones may be.
    Partial {
        /// First and last id, if any is known to be stored.
        stored: Option<(u64, u64)>,
    },
    /// What became of each part.
    Told(Vec<Told>),
    /// Nothing happened.
    Failed,
    /// It may happen at any time after the call, or never.
    Unknown,
}

impl Outcome {
    /// Of parts that were told this; it failed if nothing of it was done.
    pub fn of_parts(told: Vec<Told>) -> Outcome {
        let is_nothing = |told: &Told| matches!(told, Told::Failed | Told::NotApplied);
        match told.iter().all(is_nothing) {
            true => Outcome::Failed,
            false => Outcome::Told(told),
        }
    }

    /// The revisions that it tells of what was asked for, in the order of the parts.
    pub fn revisions<'a>(&'a self, command: &'a Command) -> impl Iterator<Item = (&'a Bytes, u64)> {
        let (parts, told) = match (command, self) {
            (Command::Parts { parts, .. }, Outcome::Told(told)) => (&parts[..], &told[..]),
            _ => (&[][..], &[][..]),
        };
        parts
            .iter()
            .zip(told)
            .filter_map(|(part, told)| match told {
                Told::Stored(revision)
                | Told::Mismatch(Some(revision))
                | Told::Found {
                    revision: Some(revision),
                    ..
                } => Some((&part.key, *revision)),
                _ => None,
            })
    }
}

/// When an event happened: by time, and at the same time by the order of recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment {
    /// As the caller said.
    pub time: u64,
    /// Position among the events of the history.
    pub sequence: u64,
}

/// One call of one client.
#[derive(Clone, Debug)]
pub struct Operation {
    /// Whose.
    pub client: u32,
    /// Shared by the tries of one write, each of which is a call of its own.
    pub token: Option<Bytes>,
    /// What was asked for.
    pub command: Command,
    /// When.
    pub call: Moment,
    /// When the outcome was known; `None` while the call is under way.
    pub end: Option<Moment>,
    /// `Unknown` while the call is under way.
    pub outcome: Outcome,
}

/// Names an operation that was recorded.
#[derive(Clone, Copy, Debug)]
pub struct CallId(usize);

/// Operations of all clients, in the order of their calls.
#[derive(Clone, Debug, Default)]
pub struct History {
    operations: Vec<Operation>,
    /// Events recorded so far.
    events: u64,
}

impl History {
    /// Records a call. To be done before the request is sent.
    pub fn call(&mut self, client: u32, now: u64, command: Command) -> CallId {
        self.record(client, now, None, command)
    }

    /// Records a call of a write with an idempotency token, the first one or a repeat. The record
    /// must not reach over the time for which tokens are remembered.
    pub fn call_once(
        &mut self,
        client: u32,
        now: u64,
        token: impl Into<Bytes>,
        command: Command,
    ) -> CallId {
        assert!(
            !matches!(command, Command::Get { .. }),
            "tokens are for writes"
        );
        self.record(client, now, Some(token.into()), command)
    }

    fn record(&mut self, client: u32, now: u64, token: Option<Bytes>, command: Command) -> CallId {
        let call = self.moment(now);
        self.operations.push(Operation {
            client,
            token,
            command,
            call,
            end: None,
            outcome: Outcome::Unknown,
        });
        CallId(self.operations.len() - 1)
    }

    /// Records how a call ended. To be done after the reply arrived, or when it is given up.
    pub fn end(&mut self, call: CallId, now: u64, outcome: Outcome) {
        let end = self.moment(now);
        let operation = &mut self.operations[call.0];
        assert!(operation.end.is_none(), "it ended before: {operation}");
        assert!(
            operation.call.time <= now,
            "it ends before its call: {operation}"
        );
        operation.end = Some(end);
        operation.outcome = outcome;
    }

    fn moment(&mut self, time: u64) -> Moment {
        self.events += 1;
        let sequence = self.events;
        Moment { time, sequence }
    }

    /// Histories that were recorded apart, with times of one clock.
    pub fn merged(histories: impl IntoIterator<Item = History>) -> History {
        let mut operations: Vec<Operation> = Vec::new();
        let mut events = 0;
        for history in histories {
            operations.extend(history.operations);
            events += history.events;
        }
        for operation in &mut operations {
            operation.call.sequence = 0;
            if let Some(end) = &mut operation.end {
                end.sequence = u64::MAX;
            }
        }
        operations.sort_by_key(|operation| operation.call);
        History { operations, events }
    }

    /// Every key that was written, may have been, or was given out, in order.
    pub fn keys(&self) -> Vec<Bytes> {
        let mut keys: Vec<Bytes> = Vec::new();
        for operation in &self.operations {
            match (&operation.command, &operation.outcome) {
                (Command::Set { key, .. }, _) => keys.push(key.clone()),
                (Command::Parts { parts, .. }, _) => {
                    keys.extend(parts.iter().map(|part| part.key.clone()));
                }
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

    /// All calls.
    pub fn operations(&self) -> &[Operation] {
        &self.operations
    }
}

/// Bytes as text, cut where they are long.
pub fn text(bytes: &[u8]) -> String {
    const SHOWN: usize = 32;
    let cut = &bytes[..bytes.len().min(SHOWN)];
    let rest = bytes.len() - cut.len();
    let shown = cut.escape_ascii();
    if rest == 0 {
        shown.to_string()
    } else {
        format!("{shown}... ({rest} bytes more)")
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Command::Set { key, value } => write!(f, "SET {} {}", text(key), text(value)),
            Command::Get { key } => write!(f, "GET {}", text(key)),
            Command::Del { key } => write!(f, "DEL {}", text(key)),
            Command::Bulk { count, value } => write!(f, "{count} SET {}", text(value)),
            Command::Parts { parts, is_atomic } => {
                if *is_atomic {
                    f.write_str("ATOMIC ")?;
                }
                let parts: Vec<String> = parts.iter().map(ToString::to_string).collect();
                f.write_str(&parts.join(", "))
            }
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.condition {
            Some(Condition::Revision(revision)) => write!(f, "IF {revision} ")?,
            Some(Condition::Absent) => f.write_str("IF 0 ")?,
            Some(Condition::Exists) => f.write_str("IF * ")?,
            None => {}
        }
        let key = text(&self.key);
        match &self.ask {
            Ask::Set { value, life } => {
                write!(f, "SET {key} {}", text(value))?;
                life.iter().try_for_each(|life| write!(f, " TTL {life}"))
            }
            Ask::Get => write!(f, "GET {key}"),
            Ask::Del => write!(f, "DEL {key}"),
            Ask::Expire(Some(life)) => write!(f, "EXPIRE {key} {life}"),
            Ask::Expire(None) => write!(f, "PERSIST {key}"),
            Ask::Left => write!(f, "TTL {key}"),
        }
    }
}

/// `10-20`, or `10-` without an end.
impl fmt::Display for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-", self.least)?;
        self.most.iter().try_for_each(|most| write!(f, "{most}"))
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Told::Stored(revision) => write!(f, "OK@{revision}"),
            Told::Found {
                value,
                revision: Some(revision),
            } => write!(f, "{}@{revision}", text(value)),
            Told::Found {
                value,
                revision: None,
            } => f.write_str(&text(value)),
            Told::Done => f.write_str("OK"),
            Told::NotFound => f.write_str("NOT_FOUND"),
            Told::Mismatch(revision) => write!(f, "MISMATCH@{}", revision.unwrap_or(0)),
            Told::NotApplied => f.write_str("NOT_APPLIED"),
            Told::Left(Some(left)) => write!(f, "LEFT@{left}"),
            Told::Left(None) => f.write_str("NONE"),
            Told::Failed => f.write_str("failed"),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Ok => f.write_str("OK"),
            Outcome::Found(value) => f.write_str(&text(value)),
            Outcome::NotFound => f.write_str("NOT_FOUND"),
            Outcome::Ids { first, last } => write!(f, "OK {first}-{last}"),
            Outcome::Partial { stored: None } => f.write_str("partial (stored none)"),
            Outcome::Partial {
                stored: Some((first, last)),
            } => write!(f, "partial (stored {first}-{last})"),
            Outcome::Told(told) => {
                let told: Vec<String> = told.iter().map(ToString::to_string).collect();
                f.write_str(&told.join(", "))
            }
            Outcome::Failed => f.write_str("failed"),
            Outcome::Unknown => f.write_str("unknown"),
        }
    }
}

/// `[10..25] client 3: SET a 1 -> OK`
impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}..", self.call.time)?;
        if let Some(end) = self.end {
            write!(f, "{}", end.time)?;
        }
        write!(f, "] client {}: ", self.client)?;
        if let Some(token) = &self.token {
            write!(f, "ONCE {} ", text(token))?;
        }
        write!(f, "{} -> {}", self.command, self.outcome)
    }
}
