//! The closed set of changes to the metadata, and their bytes in the Raft log. Pure.
//!
//! The first byte is the version. A leader that meets a version or kind it does not know must stop:
//! passing it over, it would diverge from the others. Every byte is checked; nothing decodes to a
//! value that [`Command`]'s documentation rules out.
//!
//! Integers are little-endian; `varint` is LEB128, at most 10 bytes; `text` is a varint length, at
//! most [`TEXT_BYTES_MAX`], and that much UTF-8.
//!
//! | part | size | meaning |
//! |---|---|---|
//! | version | 1 | 1; 2 for kind 5; 3 for kinds 6 and 7; 4 for kind 8 |
//! | kind | 1 | as in the next table, from 1 write to 8 admit member |
//! | term | 8 | `Command::term` |
//! | body | to the end | by kind |
//!
//! | kind | body |
//! |---|---|
//! | write | varint number of operations, up to [`OPERATIONS_MAX`]; runs of that many in all |
//! | reserve ids | varint count |
//! | register member | id 8, incarnation 8, nonce 8, then name, address, zone as text |
//! | set tolerance | 1 byte |
//! | once | writes and reservations with tokens: [`super::once`] |
//! | transact | steps with conditions, times to live, reads: [`super::transact`] |
//! | expire | varint: the leader's time in milliseconds since the Unix epoch |
//! | admit member | as register member, then 1 byte: 1 if it may replace, else 0 |
//!
//! A run is neighbouring SETs with one replica set, or neighbouring DELs, so that a set is written
//! once a run: 1 byte number of members, 0 for DELs; the member ids, 8 bytes each, ascending;
//! varint number of operations, at least 1; the operations. A DEL is its key; a SET is its key,
//! revision (8) and varint payload length. A key is a varint: 0 and then a varint message id, or
//! the length of a word (1..=512) and then the word.
//!
//! A command is written in the lowest version that has its kind: a journal of plain writes is one
//! that programs of version 1 read.

mod input;

pub(super) use self::input::Input;
use crate::ids::{Key, MemberId, Revision, TOLERANCE_MAX, TOLERANCE_MIN};
use crate::metadata::message_index::Entry;
use crate::metadata::once::{Once, TokenRefusal};
use crate::metadata::replica_sets::ReplicaSet;
use crate::metadata::tokens::Outcome;
use crate::metadata::transact::Transact;

/// The highest version of the encoding.
const VERSION: u8 = 4;
const KIND_WRITE: u8 = 1;
const KIND_RESERVE_IDS: u8 = 2;
const KIND_REGISTER_MEMBER: u8 = 3;
const KIND_SET_TOLERANCE: u8 = 4;
const KIND_ONCE: u8 = 5;
const KIND_TRANSACT: u8 = 6;
const KIND_EXPIRE: u8 = 7;
const KIND_ADMIT_MEMBER: u8 = 8;

/// The most operations in a command: 16 batches of the most requests. It bounds the memory that
/// decoding takes to a few MiB.
pub const OPERATIONS_MAX: usize = 65_536;
/// The most message ids that one command reserves.
pub const RESERVE_COUNT_MAX: u64 = 1_000_000;
/// The longest name, address or zone, in bytes: far above a host name's 255.
pub const TEXT_BYTES_MAX: usize = 1024;

/// One entry of the Raft log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// The term of the leader that made it; `apply` ignores it in a log entry of another term (R2).
    pub term: u64,
    /// The change.
    pub change: Change,
}

/// What a command changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Writes, in order; each takes effect or not on its own.
    Write(Vec<Operation>),
    /// Reserve the next `count` consecutive message ids of which none is in use.
    ReserveIds {
        /// 1..=1,000,000.
        count: u64,
    },
    /// Take a member into the registry, or renew it. A new id for a name retires the one that it
    /// had, whatever that holds: entries of older builds say so. Written only for an id that has
    /// its name.
    RegisterMember(Registration),
    /// Take a member into the registry, or renew it, unless another id holds messages under its
    /// name.
    AdmitMember {
        /// The member.
        registration: Registration,
        /// The name may be taken from an id that holds messages.
        replace: bool,
    },
    /// Set how many members hold each message.
    SetTolerance(u8),
    /// Writes or reserve ids, at most once for a token.
    Once(Once),
    /// Writes with conditions, times to live, or reads between them.
    Transact(Transact),
    /// Messages whose time to live is over go, as many as one entry takes.
    Expire {
        /// The leader's time in milliseconds since the Unix epoch; set as it is proposed.
        now_ms: u64,
    },
}

/// One write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// The message is now this record; the record it had before is released.
    Set {
        /// The message.
        key: Key,
        /// The record.
        revision: Revision,
        /// The members that acknowledged the record.
        replicas: ReplicaSet,
        /// The payload's length in bytes.
        length: u32,
    },
    /// The message is gone; the record it had is released.
    Delete {
        /// The message.
        key: Key,
    },
}

/// A member as the registry holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// Its id.
    pub id: MemberId,
    /// Its name: of the ids that have it, one is not retired.
    pub name: String,
    /// Where leaders reach its RPC, `host:port`.
    pub address: String,
    /// Placement zone, empty for none.
    pub zone: String,
    /// How often its data directory has been started.
    pub incarnation: u64,
    /// Random for each start.
    pub nonce: u64,
}

/// What `apply` did with a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Applied {
    /// Nothing: the command's term is not the entry's (R2).
    WrongTerm,
    /// One result for each operation, in order, and the copies that no metadata names any more.
    Write {
        /// In the order of the operations.
        results: Vec<OperationResult>,
        /// Replaced, deleted and refused records, with the members that hold them.
        released: Vec<(Revision, ReplicaSet)>,
    },
    /// One result for each step, and the copies that no metadata names any more.
    Transacted {
        /// In the order of the steps.
        results: Vec<StepResult>,
        /// As of a write.
        released: Vec<(Revision, ReplicaSet)>,
    },
    /// Messages have expired.
    Expired {
        /// How many.
        messages: u64,
        /// Their records.
        released: Vec<(Revision, ReplicaSet)>,
    },
    /// Message ids `first..first + count` are reserved.
    Reserved {
        /// The lowest.
        first: u64,
    },
    /// No `count` consecutive free ids are left.
    IdsExhausted,
    /// The token of a reservation has been answered.
    Repeated(Outcome),
    /// The token has a reservation; messages of the bulk write may be missing.
    Resumed {
        /// The lowest id.
        first: u64,
        /// The ranges of positions that were stored, begin and end, ascending.
        stored: Vec<(u32, u32)>,
    },
    /// Nothing is reserved because of the token.
    Refused(TokenRefusal),
    /// The member is in the registry.
    Registered {
        /// The id that the name had before, if that was another.
        retired: Option<MemberId>,
    },
    /// The registration is older than the registered one.
    StaleIncarnation {
        /// The registered incarnation.
        registered: u64,
    },
    /// The id is registered for another name, or was retired.
    Retired,
    /// The name belongs to another id, which holds messages; nothing changed.
    NameHeld {
        /// That id.
        holder: MemberId,
        /// How many messages list it.
        messages: u64,
    },
    /// The setting holds from here on.
    Set,
}

impl Applied {
    /// The copies that no metadata names any more.
    pub fn released(&self) -> &[(Revision, ReplicaSet)] {
        match self {
            Applied::Write { released, .. }
            | Applied::Transacted { released, .. }
            | Applied::Expired { released, .. } => released,
            _ => &[],
        }
    }
}

/// What became of one step of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepResult {
    /// Of anything but a read.
    Done(OperationResult),
    /// The record that the message had then; `None`: there was no such message.
    Got(Option<Entry>),
}

/// What became of one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperationResult {
    /// The message is stored.
    Stored {
        /// Whether there was no such message before.
        created: bool,
    },
    /// When the message expires was changed.
    ExpirySet,
    /// The condition does not hold; nothing changed.
    Mismatch {
        /// What the message was written by; `None`: there is no such message.
        revision: Option<Revision>,
    },
    /// Nothing changed, because of another step of the same transaction.
    NotApplied {
        /// That step, from 0 on.
        position: usize,
    },
    /// The message was there and is gone.
    Deleted,
    /// There was no message to delete.
    NotFound,
    /// The replica set names a member that is not in the registry; nothing changed.
    UnknownMember,
    /// The token of this write has been answered; nothing changed.
    Repeated(Outcome),
    /// This message of a bulk write was stored by an earlier entry; nothing changed.
    StoredBefore,
    /// Nothing changed because of the token.
    Refused(TokenRefusal),
}

/// Why bytes are not a command. The process that reads it from its Raft log stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Written by a later version of the program.
    #[error("command has version {0}, this program knows up to {VERSION}")]
    UnknownVersion(u8),
    /// Written by a later version of the program.
    #[error("command has kind {0}, which this program does not know")]
    UnknownKind(u8),
    /// The bytes end within a part.
    #[error("command ends early")]
    Truncated,
    /// A part has a value that it may not have.
    #[error("command has a bad {0}")]
    Invalid(&'static str),
}

impl Command {
    /// The command's bytes. The limits of this module hold for it, or it is our mistake: what comes
    /// from outside is checked before it gets here.
    pub fn encode(&self) -> Vec<u8> {
        let (version, kind) = match &self.change {
            Change::Write(_) => (1, KIND_WRITE),
            Change::ReserveIds { .. } => (1, KIND_RESERVE_IDS),
            Change::RegisterMember(_) => (1, KIND_REGISTER_MEMBER),
            Change::SetTolerance(_) => (1, KIND_SET_TOLERANCE),
            Change::Once(_) => (2, KIND_ONCE),
            Change::Transact(_) => (3, KIND_TRANSACT),
            Change::Expire { .. } => (3, KIND_EXPIRE),
            Change::AdmitMember { .. } => (4, KIND_ADMIT_MEMBER),
        };
        let mut out = vec![version, kind];
        out.extend(self.term.to_le_bytes());
        match &self.change {
            Change::Write(operations) => put_operations(&mut out, operations),
            Change::ReserveIds { count } => {
                assert!((1..=RESERVE_COUNT_MAX).contains(count));
                put_varint(&mut out, *count);
            }
            Change::RegisterMember(registration) => put_registration(&mut out, registration),
            Change::SetTolerance(tolerance) => {
                assert!((TOLERANCE_MIN..=TOLERANCE_MAX).contains(tolerance));
                out.push(*tolerance);
            }
            Change::Once(once) => once.put(&mut out),
            Change::Transact(transact) => transact.put(&mut out),
            Change::Expire { now_ms } => put_varint(&mut out, *now_ms),
            Change::AdmitMember {
                registration,
                replace,
            } => {
                put_registration(&mut out, registration);
                out.push(u8::from(*replace));
            }
        }
        out
    }

    /// The SETs and DELs, if it has any.
    pub fn operations(&self) -> impl Iterator<Item = &Operation> {
        let (plain, transact): (&[Operation], _) = match &self.change {
            Change::Write(operations) => (operations, None),
            Change::Once(once) => (once.operations(), None),
            Change::Transact(transact) => (&[], Some(transact)),
            Change::ReserveIds { .. }
            | Change::RegisterMember(_)
            | Change::AdmitMember { .. }
            | Change::SetTolerance(_)
            | Change::Expire { .. } => (&[], None),
        };
        let steps = transact.into_iter().flat_map(Transact::operations);
        plain.iter().chain(steps)
    }

    /// Sets the time of a command that carries one, as it is proposed.
    pub fn set_time(&mut self, now_ms: u64) {
        match &mut self.change {
            Change::Once(once) => once.now_ms = now_ms,
            Change::Transact(transact) => transact.now_ms = now_ms,
            Change::Expire { now_ms: time } => *time = now_ms,
            Change::Write(_)
            | Change::ReserveIds { .. }
            | Change::RegisterMember(_)
            | Change::AdmitMember { .. }
            | Change::SetTolerance(_) => {}
        }
    }

    /// The command with these bytes; never panics.
    pub fn decode(bytes: &[u8]) -> Result<Command, DecodeError> {
        let mut input = Input { rest: bytes };
        let version = input.byte()?;
        if !(1..=VERSION).contains(&version) {
            return Err(DecodeError::UnknownVersion(version));
        }
        let kind = input.byte()?;
        let term = input.u64()?;
        let change = match (version, kind) {
            (1, KIND_WRITE) => Change::Write(input.operations()?),
            (1, KIND_RESERVE_IDS) => Change::ReserveIds {
                count: input.count_of_ids()?,
            },
            (1, KIND_REGISTER_MEMBER) => Change::RegisterMember(input.registration()?),
            (1, KIND_SET_TOLERANCE) => match input.byte()? {
                tolerance @ TOLERANCE_MIN..=TOLERANCE_MAX => Change::SetTolerance(tolerance),
                _ => return Err(DecodeError::Invalid("tolerance")),
            },
            (2, KIND_ONCE) => Change::Once(Once::decode(&mut input)?),
            (3, KIND_TRANSACT) => Change::Transact(Transact::decode(&mut input)?),
            (3, KIND_EXPIRE) => Change::Expire {
                now_ms: input.varint()?,
            },
            (4, KIND_ADMIT_MEMBER) => Change::AdmitMember {
                registration: input.registration()?,
                replace: match input.byte()? {
                    0 => false,
                    1 => true,
                    _ => return Err(DecodeError::Invalid("switch")),
                },
            },
            (_, unknown) => return Err(DecodeError::UnknownKind(unknown)),
        };
        if !input.rest.is_empty() {
            return Err(DecodeError::Invalid("end"));
        }
        Ok(Command { term, change })
    }
}

impl Operation {
    /// The message that it is about.
    pub fn key(&self) -> &Key {
        match self {
            Operation::Set { key, .. } | Operation::Delete { key } => key,
        }
    }

    /// Whether two neighbours are of one run: SETs with the same replica set, or DELs.
    pub(super) fn is_of_run(&self, next: &Operation) -> bool {
        match (self, next) {
            (Operation::Set { replicas: a, .. }, Operation::Set { replicas: b, .. }) => a == b,
            (Operation::Delete { .. }, Operation::Delete { .. }) => true,
            (Operation::Set { .. }, Operation::Delete { .. })
            | (Operation::Delete { .. }, Operation::Set { .. }) => false,
        }
    }
}

/// The body of a write.
pub(super) fn put_operations(out: &mut Vec<u8>, operations: &[Operation]) {
    assert!(operations.len() <= OPERATIONS_MAX, "too many operations");
    // Most are a message id, its revision and a length of two bytes.
    out.reserve(operations.len() * 16);
    put_varint(out, operations.len() as u64);
    for run in operations.chunk_by(Operation::is_of_run) {
        put_run(out, run);
    }
}

/// `run` is not empty.
fn put_run(out: &mut Vec<u8>, run: &[Operation]) {
    match &run[0] {
        Operation::Set { replicas, .. } => {
            let members = replicas.as_slice();
            out.push(members.len() as u8);
            out.extend(members.iter().flat_map(|id| id.0.to_le_bytes()));
        }
        Operation::Delete { .. } => out.push(0),
    }
    put_varint(out, run.len() as u64);
    for operation in run {
        match operation {
            Operation::Set {
                key,
                revision,
                length,
                ..
            } => {
                put_key(out, key);
                out.extend(revision.as_u64().to_le_bytes());
                put_varint(out, u64::from(*length));
            }
            Operation::Delete { key } => put_key(out, key),
        }
    }
}

pub(super) fn put_key(out: &mut Vec<u8>, key: &Key) {
    match key {
        Key::Id(id) => {
            out.push(0);
            put_varint(out, *id);
        }
        Key::Word(word) => {
            put_varint(out, word.len() as u64);
            out.extend(word.as_bytes());
        }
    }
}

pub(super) fn put_registration(out: &mut Vec<u8>, registration: &Registration) {
    let Registration {
        id,
        name,
        address,
        zone,
        incarnation,
        nonce,
    } = registration;
    for number in [id.0, *incarnation, *nonce] {
        out.extend(number.to_le_bytes());
    }
    for text in [name, address, zone] {
        assert!(
            text.len() <= TEXT_BYTES_MAX,
            "text of a registration is too long"
        );
        put_varint(out, text.len() as u64);
        out.extend(text.as_bytes());
    }
}

pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Token;
    use crate::metadata::once::OnceChange;

    fn set(id: u64, members: &[u64]) -> Operation {
        let members: Vec<MemberId> = members.iter().map(|id| MemberId(*id)).collect();
        Operation::Set {
            key: Key::Id(id),
            revision: Revision::new(3, id),
            replicas: ReplicaSet::new(&members).expect("distinct members"),
            length: 100,
        }
    }

    #[test]
    fn the_bytes_of_a_write_are_these() {
        let key = Key::parse(b"ab").expect("a key");
        let change = Change::Write(vec![
            set(1, &[9, 8]),
            set(200, &[8, 9]),
            Operation::Delete { key },
        ]);
        let bytes = Command { term: 3, change }.encode();
        let expected = [
            &[1, 1, 3, 0, 0, 0, 0, 0, 0, 0, 3][..],
            &[2, 8, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 2],
            &[0, 1, 1, 0, 0, 0, 0, 3, 0, 0, 100],
            &[0, 0xc8, 1, 200, 0, 0, 0, 0, 3, 0, 0, 100],
            &[0, 1, 2, b'a', b'b'],
        ];
        assert_eq!(bytes, expected.concat());
    }

    #[test]
    fn the_bytes_of_the_other_kinds_are_these() {
        let text = |text: &str| text.to_owned();
        let registration = Registration {
            id: MemberId(0x0102),
            name: text("m"),
            address: text("h:1"),
            zone: text(""),
            incarnation: 3,
            nonce: u64::MAX,
        };
        let registered = [
            &[2, 1, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0][..],
            &[255; 8],
            &[1, b'm', 3, b'h', b':', b'1', 0],
        ];
        let admitted = Command {
            term: 9,
            change: Change::AdmitMember {
                registration: registration.clone(),
                replace: true,
            },
        };
        let body = [&registered.concat()[..], &[1]].concat();
        let expected = [&[4, 8, 9, 0, 0, 0, 0, 0, 0, 0], &body[..]].concat();
        assert_eq!(admitted.encode(), expected);
        for (change, kind, body) in [
            (Change::ReserveIds { count: 300 }, 2, vec![0xac, 2]),
            (Change::RegisterMember(registration), 3, registered.concat()),
            (Change::SetTolerance(7), 4, vec![7]),
        ] {
            let expected = [&[1, kind, 9, 0, 0, 0, 0, 0, 0, 0], &body[..]].concat();
            assert_eq!(Command { term: 9, change }.encode(), expected);
        }
    }

    #[test]
    fn the_bytes_of_changes_with_tokens_are_these() {
        let token = |text: &str| Token::parse(text.as_bytes()).expect("a token");
        let once = |change| {
            let change = Change::Once(Once {
                now_ms: 300,
                window_ms: 5,
                change,
            });
            let command = Command { term: 3, change };
            let bytes = command.encode();
            assert_eq!(Command::decode(&bytes), Ok(command));
            bytes
        };
        let head = [2, 5, 3, 0, 0, 0, 0, 0, 0, 0, 0xac, 2, 5];
        let delete = |id| Operation::Delete { key: Key::Id(id) };
        let write = once(OnceChange::Write {
            tokens: vec![(1, token("a")), (2, token("bc"))],
            operations: vec![delete(1), delete(2), delete(3)],
        });
        let tail = [&[1, 2, 1, 1, b'a', 0, 2, b'b', b'c', 3, 0, 3][..]];
        let tail = [tail.concat(), vec![0, 1, 0, 2, 0, 3]].concat();
        assert_eq!(write, [&head[..], &tail].concat());
        let (token_, count) = (token("t"), 300);
        let reserve = once(OnceChange::ReserveIds {
            token: token_,
            count,
        });
        assert_eq!(reserve, [&head[..], &[2, 1, b't', 0xac, 2]].concat());
        let part = once(OnceChange::WritePart {
            token: token("t"),
            operations: vec![delete(9)],
        });
        assert_eq!(part, [&head[..], &[3, 1, b't', 1, 0, 1, 0, 9]].concat());
    }

    #[test]
    fn a_full_batch_costs_a_dozen_bytes_a_message_and_its_set_once() {
        let operations = (0..4096).map(|id| set(id, &[1, 2])).collect();
        let command = Command {
            term: 3,
            change: Change::Write(operations),
        };
        let bytes = command.encode();
        assert!(bytes.len() < 4096 * 12 + 64, "{}", bytes.len());
        assert_eq!(Command::decode(&bytes), Ok(command));
    }

    #[test]
    fn unknown_versions_and_kinds_are_errors() {
        let bytes = Command {
            term: 1,
            change: Change::SetTolerance(2),
        }
        .encode();
        let changed = |at: usize, to: u8| {
            let mut bytes = bytes.clone();
            bytes[at] = to;
            Command::decode(&bytes)
        };
        assert_eq!(changed(0, 0), Err(DecodeError::UnknownVersion(0)));
        assert_eq!(changed(0, 5), Err(DecodeError::UnknownVersion(5)));
        assert_eq!(changed(0, 2), Err(DecodeError::UnknownKind(4)));
        assert_eq!(changed(1, 5), Err(DecodeError::UnknownKind(5)));
        assert_eq!(changed(1, 6), Err(DecodeError::UnknownKind(6)));
        assert_eq!(changed(1, 99), Err(DecodeError::UnknownKind(99)));
        assert_eq!(changed(10, 8), Err(DecodeError::Invalid("tolerance")));
    }

    #[test]
    fn values_that_a_command_may_not_have_are_errors() {
        let decode = |kind: u8, body: &[u8]| {
            let version = 1 + u8::from(kind == KIND_ONCE);
            Command::decode(&[&[version, kind, 0, 0, 0, 0, 0, 0, 0, 0], body].concat())
        };
        let member = |id: u8| [id, 0, 0, 0, 0, 0, 0, 0];
        let pair = |a, b| {
            [
                &[1, 2][..],
                &member(a),
                &member(b),
                &[1, 0, 5],
                &[0; 8],
                &[0],
            ]
            .concat()
        };
        assert!(decode(KIND_WRITE, &pair(1, 2)).is_ok());
        for (kind, body) in [
            (KIND_WRITE, pair(2, 1)),
            (KIND_WRITE, pair(1, 1)),
            (KIND_WRITE, vec![1, 8]),
            (KIND_WRITE, vec![1, 0, 0]),
            (KIND_WRITE, vec![1, 0, 2, 0, 5, 0, 6]),
            (KIND_WRITE, vec![1, 0, 1, 0, 5, 0]),
            (KIND_WRITE, vec![1, 0, 1, 1, b'7']),
            (KIND_WRITE, vec![1, 0, 1, 1, b' ']),
            (KIND_WRITE, vec![0x81, 0x80, 4]),
            (
                KIND_WRITE,
                vec![1, 0, 1, 0, 255, 255, 255, 255, 255, 255, 255, 255, 255, 2],
            ),
            (KIND_RESERVE_IDS, vec![0]),
            (KIND_RESERVE_IDS, vec![0xc1, 0x84, 0x3d]),
            (KIND_SET_TOLERANCE, vec![2, 0]),
            // No window, one that is too long, no such change, no token, one of no operation, one
            // with a blank, no ids.
            (KIND_ONCE, vec![0, 0]),
            (KIND_ONCE, vec![0, 0x81, 0xb8, 0x99, 0x29]),
            (KIND_ONCE, vec![0, 1, 9]),
            (KIND_ONCE, vec![0, 1, 1, 0, 0]),
            (KIND_ONCE, vec![0, 1, 1, 1, 1, 1, b't', 1, 0, 1, 0, 9]),
            (KIND_ONCE, vec![0, 1, 3, 1, b' ', 0]),
            (KIND_ONCE, vec![0, 1, 2, 1, b't', 0]),
        ] {
            let decoded = decode(kind, &body);
            assert!(
                matches!(decoded, Err(DecodeError::Invalid(_))),
                "{body:?} {decoded:?}"
            );
        }
    }
}

#[cfg(test)]
mod properties {
    use super::*;
    use crate::ids::Token;
    use crate::metadata::once::{OnceChange, WINDOW_MS_MAX};
    use crate::metadata::transact::tests::any_transact;
    use proptest::prelude::*;

    fn any_key() -> impl Strategy<Value = Key> {
        prop_oneof![
            any::<u64>().prop_map(Key::Id),
            "[a-zäß/]{1,40}".prop_map(|word| Key::Word(word.into())),
        ]
    }

    fn any_operation() -> impl Strategy<Value = Operation> {
        let replicas = proptest::collection::btree_set(1..4_u64, 1..3).prop_map(|members| {
            let members: Vec<MemberId> = members.into_iter().map(MemberId).collect();
            ReplicaSet::new(&members).expect("distinct members")
        });
        prop_oneof![
            3 => (any_key(), any::<u64>(), replicas, any::<u32>()).prop_map(
                |(key, revision, replicas, length)| Operation::Set {
                    key,
                    revision: Revision::from_u64(revision),
                    replicas,
                    length,
                }
            ),
            1 => any_key().prop_map(|key| Operation::Delete { key }),
        ]
    }

    fn any_once() -> impl Strategy<Value = Change> {
        let token = "[!-~é]{1,32}".prop_map(|text| Token::parse(text.as_bytes()).expect("valid"));
        let operation = (any_operation(), proptest::option::of(token.clone()));
        let operations = proptest::collection::vec(operation, 1..20);
        let change = (0..3, token, operations, 1..=RESERVE_COUNT_MAX);
        let change = change.prop_map(|(kind, token, drafts, count)| {
            let (operations, tokens): (Vec<_>, Vec<_>) = drafts.into_iter().unzip();
            let tokens = (0..).zip(tokens);
            let mut tokens: Vec<_> = tokens
                .filter_map(|(at, token)| Some((at, token?)))
                .collect();
            if tokens.is_empty() {
                tokens.push((0, token.clone()));
            }
            match kind {
                0 => OnceChange::Write { tokens, operations },
                1 => OnceChange::ReserveIds { token, count },
                _ => OnceChange::WritePart { token, operations },
            }
        });
        (any::<u64>(), 1..=WINDOW_MS_MAX, change).prop_map(|(now_ms, window_ms, change)| {
            Change::Once(Once {
                now_ms,
                window_ms,
                change,
            })
        })
    }

    fn any_registration() -> impl Strategy<Value = Registration> {
        (any::<[u64; 3]>(), ".{0,20}", ".{0,20}", ".{0,20}").prop_map(
            |([id, incarnation, nonce], name, address, zone)| Registration {
                id: MemberId(id),
                name,
                address,
                zone,
                incarnation,
                nonce,
            },
        )
    }

    fn any_change() -> impl Strategy<Value = Change> {
        prop_oneof![
            any_once(),
            any_transact(any_key().boxed()).prop_map(Change::Transact),
            any::<u64>().prop_map(|now_ms| Change::Expire { now_ms }),
            proptest::collection::vec(any_operation(), 0..20).prop_map(Change::Write),
            (1..=RESERVE_COUNT_MAX).prop_map(|count| Change::ReserveIds { count }),
            (TOLERANCE_MIN..=TOLERANCE_MAX).prop_map(Change::SetTolerance),
            (any_registration(), any::<Option<bool>>()).prop_map(|(registration, replace)| {
                match replace {
                    None => Change::RegisterMember(registration),
                    Some(replace) => Change::AdmitMember {
                        registration,
                        replace,
                    },
                }
            }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes_to_the_same(term: u64, change in any_change()) {
            let command = Command { term, change };
            prop_assert_eq!(Command::decode(&command.encode()), Ok(command));
        }

        #[test]
        fn damaged_and_arbitrary_bytes_never_panic(
            term: u64,
            change in any_change(),
            flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
            cut: prop::sample::Index,
            noise: Vec<u8>,
        ) {
            let mut bytes = Command { term, change }.encode();
            for (at, with) in flips {
                let at = at.index(bytes.len());
                bytes[at] ^= with;
            }
            bytes.truncate(cut.index(bytes.len()) + 1);
            let _ = Command::decode(&bytes);
            let _ = Command::decode(&noise);
            for kind in KIND_WRITE..=KIND_ADMIT_MEMBER {
                for version in 1..=VERSION {
                    let _ = Command::decode(&[&[version, kind], &noise[..]].concat());
                }
            }
        }

        #[test]
        fn a_command_that_is_cut_is_an_error(term: u64, change in any_change()) {
            let bytes = Command { term, change }.encode();
            for length in 0..bytes.len() {
                prop_assert_eq!(Command::decode(&bytes[..length]), Err(DecodeError::Truncated));
            }
        }
    }
}
