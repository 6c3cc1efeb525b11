//! The files of a leader: journal, snapshot of the metadata, `peer.id`. Opened by `group::inspect`,
//! which does what a start does before it starts threads.
//!
//! A leader alone cannot know what stood at a damaged place, so it refuses to start, naming file
//! and
//! offset. Only a torn tail of the journal, behind the known-synced offset, is cut.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tolerex::clock::SystemClock;
use tolerex::disk::log::LogOptions;
use tolerex::disk::mem::MemFileSystem;
use tolerex::group::core::{HardState, ORIGIN, Persist, Recovered};
use tolerex::group::identity::Identity;
use tolerex::group::journal::{Journal, Written};
use tolerex::group::snapshots::files::{SnapshotFiles, Written as SnapshotWritten};
use tolerex::group::window::{EntryKind, LogEntry, Position};
use tolerex::group::{
    Bootstrap, Configuration, GroupOptions, SnapshotSource, StateMachine, Timing, inspect,
};
use tolerex::ids::{Key, MemberId, PeerId, Revision};
use tolerex::metadata::command::{Change, Command, Operation, Registration};
use tolerex::metadata::replica_sets::ReplicaSet;
use tolerex::metadata::snapshot::Capture;
use tolerex::metadata::state::{PlainShards, Shards, State};
use tolerex::threads::StopSignal;

use super::campaign::{Damage, Outcome, Sample, Verdict, names};
use super::segments::{Group, SAMPLE_BYTES, groups};

const OWNER: PeerId = PeerId(7);
const TERM: u64 = 2;
const SEGMENT: &str = "group/journal/00000001.log";
const PEER: &str = "group/peer.id";

fn log_options() -> LogOptions {
    LogOptions {
        segment_bytes: SAMPLE_BYTES,
        reserve_bytes: 0,
        salt: 5,
    }
}

/// Keeps what it is given.
#[derive(Default)]
struct Recorder {
    entries: Vec<(u64, Vec<u8>)>,
    chunks: Vec<Vec<u8>>,
    restored: Option<u64>,
}

impl StateMachine for Recorder {
    type Output = ();

    fn apply(&mut self, index: u64, term: u64, data: &[u8]) -> Result<(), String> {
        assert_eq!(term, TERM);
        self.entries.push((index, data.to_vec()));
        Ok(())
    }

    fn restore(&mut self, chunk: &[u8]) -> Result<(), String> {
        self.chunks.push(chunk.to_vec());
        Ok(())
    }

    fn restored(&mut self, index: u64) -> Result<(), String> {
        self.restored = Some(index);
        Ok(())
    }
}

fn open(fs: &MemFileSystem) -> Result<(Recorder, Recovered), String> {
    let options = GroupOptions {
        fs: Arc::new(fs.clone()),
        dir: PathBuf::from("group"),
        clock: SystemClock::shared(),
        bootstrap: Bootstrap::Existing,
        log: log_options(),
        snapshot_bytes: 1 << 20,
        timing: Timing::default(),
        asks_peers: true,
        asks_members: false,
        on_failure: Box::new(|error| panic!("{error}")),
    };
    let mut machine = Recorder::default();
    let recovered = inspect(&options, &mut machine).map_err(|error| error.to_string())?;
    Ok((machine, recovered))
}

fn entry(index: u64) -> LogEntry {
    let length = 20 + index as usize * 53 % 400;
    let data: Vec<u8> = (0..length)
        .map(|at| (index as usize * 31 + at * 7) as u8)
        .collect();
    LogEntry {
        kind: EntryKind::Command,
        index,
        term: TERM,
        data: data.into(),
    }
}

/// Writes entries as a leader alone does: what was written before is committed.
fn append(journal: &mut Journal, indices: std::ops::Range<u64>) {
    let write = Persist {
        number: 0,
        reset: None,
        hard_state: HardState {
            term: TERM,
            vote: Some(OWNER),
            commit: indices.start - 1,
        },
        entries: indices.map(entry).collect(),
    };
    assert_eq!(journal.write(&[write]).expect("written"), Written::Durable);
}

/// A leader's directory with an empty journal.
fn new_group(start: Position) -> (MemFileSystem, Journal) {
    let fs = MemFileSystem::new();
    let dir = Path::new("group/journal");
    tolerex::disk::fs::FileSystem::create_dir_all(&fs, dir).expect("made");
    let identity = Identity {
        peer: OWNER,
        voters: vec![OWNER],
        is_ready: true,
    };
    identity.write(&fs, Path::new("group")).expect("written");
    let disk = Arc::new(fs.clone());
    let opened = Journal::open(
        disk,
        dir,
        log_options(),
        OWNER,
        super::start_at(start, OWNER),
        1 << 20,
        &mut |_| (),
    );
    let (journal, recovered) = opened.expect("a journal");
    assert!(recovered.is_none());
    (fs, journal)
}

/// How the segment under test ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Sealed,
    /// The last one, all of it known to be synced.
    Closed,
    /// The last one; of its last write it is not known.
    Killed,
}

struct Log {
    fate: Fate,
    groups: Vec<Group>,
    /// The last entry of each group, those of later segments included.
    lasts: Vec<u64>,
}

fn journal(name: &'static str, fate: Fate) -> Sample {
    let (fs, mut journal) = new_group(ORIGIN);
    let (mut lasts, mut next) = (Vec::new(), ORIGIN.index + 1);
    loop {
        let length = fs.content(Path::new(SEGMENT)).expect("a segment").len() as u64;
        let rolled = fs
            .content(Path::new("group/journal/00000002.log"))
            .is_some();
        if rolled || (length > SAMPLE_BYTES - 3000 && fate != Fate::Sealed) {
            break;
        }
        let end = next + 1 + lasts.len() as u64 % 4;
        append(&mut journal, next..end);
        lasts.push(end - 1);
        next = end;
    }
    if fate != Fate::Killed {
        journal.idle().expect("idle");
    }
    let written = Log {
        fate,
        groups: groups(&fs.content(Path::new(SEGMENT)).expect("a segment")),
        lasts,
    };
    assert!(written.groups.len() > 30, "{}", written.groups.len());
    let last = *written.lasts.last().expect("some");
    assert_eq!(read_entries(&fs.fork()), Ok(last), "undamaged");
    Sample::new(name, &fs, Path::new(SEGMENT), move |fs, damage| {
        written.judge(fs, damage)
    })
}

/// The last entry, each being there with its data, applied or not.
fn read_entries(fs: &MemFileSystem) -> Result<u64, String> {
    let (machine, recovered) = open(fs)?;
    let mut next = ORIGIN.index + 1;
    for (index, data) in machine.entries {
        if index != next || data != entry(index).data {
            return Err(format!("WRONG: entry {index} in the place of {next}"));
        }
        next += 1;
    }
    if recovered.hard_state.commit + 1 != next {
        return Err(format!("WRONG: commit is {}", recovered.hard_state.commit));
    }
    while let Some(found) = recovered.window.entry(next) {
        if *found != entry(next) {
            return Err(format!("WRONG: entry {next} is {found:?}"));
        }
        next += 1;
    }
    Ok(next - 1)
}

impl Log {
    fn judge(&self, fs: &MemFileSystem, damage: Damage) -> Verdict {
        let last = match read_entries(fs) {
            Ok(last) => last,
            // Refused, and refused again, with the same words.
            Err(error) if names(&error, Path::new(SEGMENT)) => {
                return match (damage, read_entries(fs)) {
                    (_, Err(again)) if again == error => Ok(Outcome::Reported),
                    (_, again) => Err(format!("{error}, and then {again:?}")),
                };
            }
            // Nothing of it is left: the journal is missed as a whole.
            Err(error) => {
                let is_emptied = matches!(damage, Damage::Cut(at) if at < self.groups[0].body_end);
                let is_missed = is_emptied && error.contains("group has a peer.id and no journal");
                return is_missed.then_some(Outcome::Reported).ok_or(error);
            }
        };
        let all = self.lasts.last().copied().unwrap_or_default();
        if last == all {
            return Ok(Outcome::Whole);
        }
        if self.fate == Fate::Sealed {
            return Err(format!("{last} entries without a word"));
        }
        let kept = match damage {
            Damage::Cut(at) => self
                .groups
                .iter()
                .take_while(|group| group.body_end <= at)
                .count(),
            Damage::Flip(byte, _) => {
                let synced = self.groups.iter().map(|group| group.known_synced).max();
                if self.fate != Fate::Killed || byte < synced.unwrap_or_default() {
                    return Err(format!("{last} entries without a word"));
                }
                self.groups
                    .iter()
                    .take_while(|group| group.end <= byte)
                    .count()
            }
        };
        let expected = kept.checked_sub(1).map(|at| self.lasts[at]);
        match expected == Some(last) {
            true => Ok(Outcome::Prefix),
            false => Err(format!("{last} is the last entry, not {expected:?}")),
        }
    }
}

/// The chunks of a snapshot of real metadata: 3 members and so many messages.
fn chunks(index: u64) -> Vec<Vec<u8>> {
    let mut state = State::new(PlainShards::new(16));
    let mut at = 1;
    let mut apply = |state: &mut State<PlainShards>, change| {
        at += 1;
        state.apply(at, TERM, &Command { term: TERM, change });
    };
    for id in 1..=3 {
        let registration = Registration {
            id: MemberId(id),
            name: format!("member-{id}"),
            address: format!("127.0.0.1:{id}"),
            zone: String::new(),
            incarnation: 1,
            nonce: id,
        };
        apply(&mut state, Change::RegisterMember(registration));
    }
    let sets: Vec<Operation> = (0..2700)
        .map(|number| Operation::Set {
            key: match number % 2 {
                0 => Key::Id(number),
                _ => Key::parse(format!("a-longer-name-{number:010}").as_bytes()).expect("a key"),
            },
            revision: Revision::new(TERM, number),
            replicas: ReplicaSet::new(&[MemberId(1 + number % 2), MemberId(3)]).expect("two"),
            length: number as u32,
        })
        .collect();
    apply(&mut state, Change::Write(sets));
    let mut capture: Capture = state.begin_snapshot(index);
    let chunks = std::iter::from_fn(|| capture.next_chunk(state.shards_mut())).collect();
    state.shards_mut().end_snapshot();
    chunks
}

struct Chunks(std::vec::IntoIter<Vec<u8>>);

impl SnapshotSource for Chunks {
    fn next_chunk(&mut self) -> Option<Vec<u8>> {
        self.0.next()
    }
}

/// A snapshot at entry 10 of a journal of 14.
fn snapshot() -> Sample {
    let (fs, mut journal) = new_group(ORIGIN);
    for index in 2..=14 {
        append(&mut journal, index..index + 1);
    }
    let files = SnapshotFiles {
        fs: Arc::new(fs.clone()),
        dir: PathBuf::from("group/snapshots"),
        owner: OWNER,
        founders: Configuration::of([OWNER]),
        reserve_bytes: 0,
    };
    files.open(&mut |_| Ok(())).expect("made");
    let position = Position {
        index: 10,
        term: TERM,
    };
    let chunks = chunks(10);
    let source = Box::new(Chunks(chunks.clone().into_iter()));
    let configuration = files.founders.clone();
    let written = files.write(position, &configuration, source, &StopSignal::default());
    assert!(matches!(written, Ok(SnapshotWritten::Durable { .. })));
    let path = PathBuf::from(format!("group/snapshots/{:020}.snapshot", 10));
    let read = move |fs: &MemFileSystem| {
        let (machine, recovered) = open(fs)?;
        let last = (machine.entries.len(), recovered.window.last_index());
        if machine.chunks != chunks || machine.restored != Some(10) || last != (3, 14) {
            return Err(format!("WRONG: another state, with {last:?}"));
        }
        Ok(())
    };
    assert_eq!(read(&fs.fork()), Ok(()), "undamaged");
    let length = fs.content(&path).expect("written").len() as u64;
    assert!(length >= SAMPLE_BYTES, "{length}");
    let damaged = path.clone();
    Sample::new("snapshot", &fs, &path, move |fs, _| match read(fs) {
        Err(error) if names(&error, &damaged) => Ok(Outcome::Reported),
        other => Err(format!("{other:?}")),
    })
}

fn peer_id() -> Sample {
    let (fs, mut journal) = new_group(ORIGIN);
    append(&mut journal, 2..5);
    assert_eq!(read_entries(&fs.fork()), Ok(4), "undamaged");
    Sample::new(
        "peer.id",
        &fs,
        Path::new(PEER),
        |fs, _| match read_entries(fs) {
            Err(error) if names(&error, Path::new(PEER)) => Ok(Outcome::Reported),
            other => Err(format!("{other:?}")),
        },
    )
}

pub fn samples() -> Vec<Sample> {
    vec![
        journal("journal, sealed", Fate::Sealed),
        journal("journal, last, closed", Fate::Closed),
        journal("journal, last, killed", Fate::Killed),
        snapshot(),
        peer_id(),
    ]
}
