//! A snapshot of the metadata at one index, taken while commands go on: to bytes and back. Pure.
//!
//! [`State::begin_snapshot`] notes what is small, the registry and the settings, and from then on
//! every shard is copied before its first change ([`ShardCell`]). A [`Capture`], on any thread,
//! takes shard by shard as it was, the copy or else the shard itself, and encodes chunks of some
//! [`CHUNK_BYTES`]. The table of replica sets is not copied: it is pinned (`replica_sets`). The
//! table of tokens is shared, and copied part by part as it changes (`tokens`).
//!
//! Memory: the shards that were changed and not taken yet, at most one copy of the index; the
//! shard that is being encoded; one chunk. Pauses: a change copies its shard at most once for a
//! snapshot, and a batch of n changes copies n shards at most.
//!
//! A [`Restore`] takes the chunks into an empty state, in any layout of shards, and gives the same
//! state and digest (A3); it releases nothing (R14). Every value is checked: what a message names
//! is registered, no key is there twice, and the counters are those that the messages add up to.
//!
//! # Bytes
//!
//! Little-endian; `varint`, `text`, `key`, `registration` and `set` (1 byte number of members, then
//! ids of 8 bytes, ascending) as in [`super::command`]. Whoever stores chunks keeps their lengths
//! and checksums. The head comes first, members before messages; otherwise in no order. A state
//! that never saw a token is written in version 1, one in which messages expire in version 3, any
//! other in version 2.
//!
//! | chunk | part | size | meaning |
//! |---|---|---|---|
//! | head | kind | 1 | 1 |
//! | | version | 1 | 1, 2 or 3: of all chunks |
//! | | index | 8 | everything up to it is in the snapshot, nothing after it |
//! | | messages, members | varint each | how many there are |
//! | | reserved until | varint | `Settings::reserved_until` |
//! | | tolerance | 1 | 0: not set |
//! | | clock, tokens | varint each | from version 2 on: `Tokens::clock_ms`, how many there are |
//! | members | kind | 1 | 2 |
//! | | count | varint | that many follow |
//! | | each: retired | 1 | 0 or 1 |
//! | | each: registration | | |
//! | | each: records, bytes | varint each | its counters |
//! | messages | kind | 1 | 3 |
//! | | sets | varint | at least 1; that many follow |
//! | | each: set | | |
//! | | count | varint | at least 1; that many follow |
//! | | each: key | | |
//! | | each: set | varint | its place among the chunk's sets |
//! | | each: revision, length | 8, varint | |
//! | | each: expiry | varint | from version 3 on: milliseconds since the Unix epoch, 0: never |
//! | tokens | kind | 1 | 4, from version 2 on |
//! | | count | varint | at least 1; that many follow |
//! | | each: token, expiry, use | | see `metadata::tokens`, module `bytes` |

mod shard_cell;

use std::collections::{BTreeMap, HashMap, VecDeque};

use rustc_hash::FxBuildHasher;

pub use self::shard_cell::ShardCell;
use crate::faults::{self, Fault};
use crate::ids::{Key, MemberId, Revision, TOLERANCE_MAX};
use crate::metadata::command::{DecodeError, Input, put_key, put_registration, put_varint};
use crate::metadata::members::Member;
use crate::metadata::message_index::{Messages, Slot, shard_of};
use crate::metadata::replica_sets::{ReplicaSet, ReplicaSets, SetId};
use crate::metadata::settings::Settings;
use crate::metadata::state::{Shards, State};
use crate::metadata::tokens::Frozen;

/// The highest version.
const VERSION: u8 = 3;
const KIND_HEAD: u8 = 1;
const KIND_MEMBERS: u8 = 2;
const KIND_MESSAGES: u8 = 3;
const KIND_TOKENS: u8 = 4;

/// A chunk is complete with the first item that makes it this long. A reader holds one in memory;
/// with a tenth of it, the sets would be written more often than they save.
const CHUNK_BYTES: usize = 64 << 10;

/// Bytes of a chunk at most: above [`CHUNK_BYTES`] it has one item and its sets (63 bytes at most
/// for each message of at least 11).
pub const CHUNK_BYTES_MAX: usize = 1 << 20;

/// Why chunks are not a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// Written by a later version of the program.
    #[error("the snapshot has version {0}, this program knows up to {VERSION}")]
    UnknownVersion(u8),
    /// A part has a value that it may not have, or contradicts another.
    #[error("the snapshot has a bad {0}")]
    Invalid(&'static str),
}

impl From<DecodeError> for RestoreError {
    fn from(error: DecodeError) -> RestoreError {
        RestoreError::Invalid(match error {
            DecodeError::Invalid(what) => what,
            DecodeError::Truncated => "end of a chunk",
            DecodeError::UnknownKind(_) | DecodeError::UnknownVersion(_) => "kind of chunk",
        })
    }
}

/// A snapshot that is being taken; see the header of this file. Whoever owns it calls
/// [`Shards::end_snapshot`] when it is complete or given up.
pub struct Capture {
    /// The chunks of the head and the members.
    first: VecDeque<Vec<u8>>,
    /// Then these, as what is shared with them is copied when it changes.
    tokens: Frozen,
    /// The next shard to take.
    next_shard: usize,
    /// What is left of the one before.
    messages: Messages,
    /// Whether it tells when messages expire.
    has_expiry: bool,
    /// [`CHUNK_BYTES`], less in tests.
    chunk_bytes: usize,
}

impl<S: Shards> State<S> {
    /// Begins a snapshot of the state as it is, with all entries up to `index` applied and no later
    /// one. There is one at a time.
    pub fn begin_snapshot(&mut self, index: u64) -> Capture {
        assert!(
            index >= self.applied_index,
            "entry {} is applied, a snapshot at {index} cannot be taken",
            self.applied_index
        );
        self.shards.begin_snapshot();
        Capture {
            first: encode_small(self, index),
            tokens: self.tokens.freeze(),
            next_shard: 0,
            messages: Messages::default(),
            has_expiry: !self.expiry.is_empty(),
            chunk_bytes: CHUNK_BYTES,
        }
    }
}

/// The head and the members.
fn encode_small<S: Shards>(state: &State<S>, index: u64) -> VecDeque<Vec<u8>> {
    let tokens = &state.tokens;
    let has_tokens = tokens.clock_ms() > 0 || !tokens.is_empty();
    let version = match (state.expiry.is_empty(), has_tokens) {
        (false, _) => 3,
        (true, true) => 2,
        (true, false) => 1,
    };
    let mut head = vec![KIND_HEAD, version];
    head.extend(index.to_le_bytes());
    put_varint(&mut head, state.messages);
    put_varint(&mut head, state.members.iter().count() as u64);
    put_varint(&mut head, state.settings.reserved_until);
    head.push(state.settings.tolerance.unwrap_or(0));
    if version > 1 {
        put_varint(&mut head, tokens.clock_ms());
        put_varint(&mut head, tokens.len() as u64);
    }
    let mut chunks = VecDeque::from([head]);
    let mut members = state.members.iter().peekable();
    while members.peek().is_some() {
        let mut body = Vec::new();
        let mut count = 0;
        while body.len() < CHUNK_BYTES {
            let Some(member) = members.next() else {
                break;
            };
            body.push(u8::from(member.is_retired));
            put_registration(&mut body, &member.registration);
            put_varint(&mut body, member.records);
            put_varint(&mut body, member.bytes);
            count += 1;
        }
        chunks.push_back(counted(KIND_MEMBERS, count, &body));
    }
    chunks
}

fn counted(kind: u8, count: u64, body: &[u8]) -> Vec<u8> {
    let mut chunk = vec![kind];
    put_varint(&mut chunk, count);
    chunk.extend(body);
    chunk
}

impl Capture {
    /// The next chunk; `None` when the snapshot is complete. `shards` is where it began.
    pub fn next_chunk<S: Shards>(&mut self, shards: &mut S) -> Option<Vec<u8>> {
        if let Some(chunk) = self.first.pop_front() {
            return Some(chunk);
        }
        let mut body = Vec::new();
        let tokens = self.tokens.encode(self.chunk_bytes, &mut body);
        if tokens > 0 {
            return Some(counted(KIND_TOKENS, tokens, &body));
        }
        let mut chunk = MessageChunk::default();
        loop {
            shards.read_sets(|sets| self.fill(&mut chunk, sets));
            if chunk.body.len() >= self.chunk_bytes || self.next_shard == shards.shard_count() {
                return chunk.finish();
            }
            self.messages = shards.take_shard(self.next_shard).into_messages();
            self.next_shard += 1;
        }
    }

    /// Adds messages of the shard at hand until the chunk is full.
    fn fill(&mut self, chunk: &mut MessageChunk, sets: &ReplicaSets) {
        while chunk.body.len() < self.chunk_bytes {
            let Some((key, slot, expires_ms)) = self.messages.next() else {
                return;
            };
            chunk.add(&key, slot, sets);
            if self.has_expiry {
                let is_told = !faults::has(Fault::SnapshotWithoutExpiry);
                put_varint(&mut chunk.body, expires_ms.filter(|_| is_told).unwrap_or(0));
            }
        }
    }
}

/// A chunk of messages that is being put together.
#[derive(Default)]
struct MessageChunk {
    sets: Vec<u8>,
    places: HashMap<SetId, u64, FxBuildHasher>,
    count: u64,
    body: Vec<u8>,
}

impl MessageChunk {
    fn add(&mut self, key: &Key, slot: Slot, sets: &ReplicaSets) {
        let next = self.places.len() as u64;
        let place = *self.places.entry(slot.set).or_insert_with(|| {
            let set = sets.pinned(slot.set);
            let members = set.as_slice();
            self.sets.push(members.len() as u8);
            self.sets
                .extend(members.iter().flat_map(|id| id.0.to_le_bytes()));
            next
        });
        put_key(&mut self.body, key);
        put_varint(&mut self.body, place);
        self.body.extend(slot.revision.as_u64().to_le_bytes());
        put_varint(&mut self.body, u64::from(slot.length));
        self.count += 1;
    }

    /// Its bytes; none if it has no message.
    fn finish(self) -> Option<Vec<u8>> {
        if self.count == 0 {
            return None;
        }
        let mut bytes = Vec::with_capacity(self.sets.len() + self.body.len() + 24);
        bytes.push(KIND_MESSAGES);
        put_varint(&mut bytes, self.places.len() as u64);
        bytes.extend(self.sets);
        put_varint(&mut bytes, self.count);
        bytes.extend(self.body);
        assert!(bytes.len() <= CHUNK_BYTES_MAX, "a chunk is too long");
        Some(bytes)
    }
}

/// Takes the chunks of a snapshot into an empty state.
#[derive(Debug, Default)]
pub struct Restore {
    /// Once it was read.
    head: Option<Head>,
    /// Messages so far.
    messages: u64,
    /// Records and bytes of each member by the messages so far.
    counted: BTreeMap<MemberId, (u64, u64)>,
}

#[derive(Debug)]
struct Head {
    index: u64,
    version: u8,
    messages: u64,
    members: u64,
    settings: Settings,
    clock_ms: u64,
    tokens: u64,
}

/// A set of a chunk, and what names it there.
struct NamedSet {
    set: ReplicaSet,
    records: u64,
    bytes: u64,
}

impl Restore {
    /// Takes the next chunk. After an error the state is of no use.
    pub fn chunk<S: Shards>(
        &mut self,
        state: &mut State<S>,
        chunk: &[u8],
    ) -> Result<(), RestoreError> {
        let mut input = Input { rest: chunk };
        let kind = input.byte()?;
        match (kind, &self.head) {
            (KIND_HEAD, None) => self.head = Some(Head::decode(&mut input)?),
            (KIND_MEMBERS, Some(_)) if self.messages == 0 => members(state, &mut input)?,
            (KIND_MESSAGES, Some(head)) => {
                let has_expiry = head.version >= 3;
                self.messages(state, has_expiry, &mut input)?;
            }
            (KIND_TOKENS, Some(_)) => {
                for _ in 0..input.length(CHUNK_BYTES_MAX, "number of tokens")? {
                    state.tokens.decode(&mut input)?;
                }
            }
            _ => return Err(RestoreError::Invalid("kind of chunk")),
        }
        match input.rest.is_empty() {
            true => Ok(()),
            false => Err(RestoreError::Invalid("end of a chunk")),
        }
    }

    fn messages<S: Shards>(
        &mut self,
        state: &mut State<S>,
        has_expiry: bool,
        input: &mut Input<'_>,
    ) -> Result<(), RestoreError> {
        let mut sets = Vec::new();
        for _ in 0..input.length(CHUNK_BYTES_MAX, "number of sets")? {
            let set = input.replicas()?;
            let set = set.ok_or(RestoreError::Invalid("replica set"))?;
            let mut members = set.as_slice().iter();
            if !members.all(|id| state.members.member(*id).is_some()) {
                return Err(RestoreError::Invalid("member of a replica set"));
            }
            let (records, bytes) = (0, 0);
            sets.push(NamedSet {
                set,
                records,
                bytes,
            });
        }
        let mut messages = Vec::new();
        for _ in 0..input.length(CHUNK_BYTES_MAX, "number of messages")? {
            let key = input.key()?;
            let place = input.length(CHUNK_BYTES_MAX, "place of a set")?;
            let revision = Revision::from_u64(input.u64()?);
            let length = u32::try_from(input.varint()?)
                .map_err(|_| RestoreError::Invalid("payload length"))?;
            let named = sets
                .get_mut(place)
                .ok_or(RestoreError::Invalid("place of a set"))?;
            let expires_ms = if has_expiry { input.varint()? } else { 0 };
            named.records += 1;
            named.bytes += u64::from(length);
            messages.push((key, place, revision, length, expires_ms));
        }
        let ids = self.count(state, &sets)?;
        for (key, place, revision, length, expires_ms) in &messages {
            let slot = Slot {
                revision: *revision,
                set: ids[*place],
                length: *length,
            };
            let shard = shard_of(key, state.shards.shard_count());
            let expires_ms = (*expires_ms > 0).then_some(*expires_ms);
            let held = state.shards.write_shard(shard, |shard| {
                shard.set_expiry(key, expires_ms);
                shard.insert(key, slot)
            });
            if held.is_some() {
                return Err(RestoreError::Invalid("key, which is there twice"));
            }
            state.expiry.extend(expires_ms.map(|at| (at, key.clone())));
        }
        self.messages += messages.len() as u64;
        state.messages = self.messages;
        Ok(())
    }

    /// Interns the sets of a chunk and counts what names them; gives their numbers.
    fn count<S: Shards>(
        &mut self,
        state: &mut State<S>,
        sets: &[NamedSet],
    ) -> Result<Vec<SetId>, RestoreError> {
        if sets.is_empty() || sets.iter().any(|named| named.records == 0) {
            return Err(RestoreError::Invalid("set without a message"));
        }
        for named in sets {
            for id in named.set.as_slice() {
                let (records, bytes) = self.counted.entry(*id).or_default();
                *records += named.records;
                *bytes += named.bytes;
            }
        }
        Ok(state.shards.write_sets(|table| {
            sets.iter()
                .map(|named| table.acquire(&named.set, named.records))
                .collect()
        }))
    }

    /// All chunks were taken: the state is as it was at the index that is returned.
    pub fn finish<S: Shards>(self, state: &mut State<S>) -> Result<u64, RestoreError> {
        let head = self.head.ok_or(RestoreError::Invalid("head"))?;
        if head.messages != self.messages {
            return Err(RestoreError::Invalid("number of messages"));
        }
        let mut members = 0;
        for member in state.members.iter() {
            let id = member.registration.id;
            let counted = self.counted.get(&id).copied().unwrap_or_default();
            if counted != (member.records, member.bytes) {
                return Err(RestoreError::Invalid("counter of a member"));
            }
            state.changed.insert(id);
            members += 1;
        }
        if members != head.members {
            return Err(RestoreError::Invalid("number of members"));
        }
        if state.tokens.len() as u64 != head.tokens {
            return Err(RestoreError::Invalid("number of tokens"));
        }
        state.tokens.restore_clock(head.clock_ms);
        state.settings = head.settings;
        state.applied_index = head.index;
        Ok(head.index)
    }
}

impl Head {
    fn decode(input: &mut Input<'_>) -> Result<Head, RestoreError> {
        let version = input.byte()?;
        if !(1..=VERSION).contains(&version) {
            return Err(RestoreError::UnknownVersion(version));
        }
        let (index, messages, members) = (input.u64()?, input.varint()?, input.varint()?);
        let reserved_until = input.varint()?;
        let tolerance = match input.byte()? {
            0 => None,
            tolerance if tolerance <= TOLERANCE_MAX => Some(tolerance),
            _ => return Err(RestoreError::Invalid("tolerance")),
        };
        let (clock_ms, tokens) = match version {
            1 => (0, 0),
            _ => (input.varint()?, input.varint()?),
        };
        Ok(Head {
            version,
            clock_ms,
            tokens,
            index,
            messages,
            members,
            settings: Settings {
                tolerance,
                reserved_until,
            },
        })
    }
}

fn members<S: Shards>(state: &mut State<S>, input: &mut Input<'_>) -> Result<(), RestoreError> {
    for _ in 0..input.length(CHUNK_BYTES_MAX, "number of members")? {
        let is_retired = match input.byte()? {
            0 => false,
            1 => true,
            _ => return Err(RestoreError::Invalid("mark of a member")),
        };
        let member = Member {
            is_retired,
            registration: input.registration()?,
            records: input.varint()?,
            bytes: input.varint()?,
        };
        if !state.members.restore(member) {
            return Err(RestoreError::Invalid("member, which is there twice"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
