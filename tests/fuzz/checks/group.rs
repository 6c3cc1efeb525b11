//! What the group of leaders keeps: its configuration, and the records of its journal.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use tolerex::disk::log::{Log, LogOptions, Record};
use tolerex::disk::mem::MemFileSystem;
use tolerex::group::configuration::{Configuration, PeerAddress};
use tolerex::group::core::{HardState, Persist, Recovered};
use tolerex::group::journal::{Journal, JournalError, Start, Written};
use tolerex::group::window::{EntryKind, LogEntry, Position};
use tolerex::ids::PeerId;

use super::pieces;

/// A configuration is written in one way only; the address of a peer reads back.
pub fn check_configuration(data: &[u8]) {
    if let Some(configuration) = Configuration::decode(data) {
        assert_eq!(configuration.encode(), data);
        let peers = configuration.peers();
        assert!(peers.iter().all(|peer| peer.0 > 0));
    }
    if let Some(address) = PeerAddress::decode(data) {
        assert_eq!(PeerAddress::decode(&address.encode()), Some(address));
    }
}

const DIR: &str = "/journal";
const OWNER: PeerId = PeerId(7);
const WINDOW_BYTES_MAX: usize = 1 << 20;
const OPTIONS: LogOptions = LogOptions {
    segment_bytes: 8 << 10,
    reserve_bytes: 0,
    salt: 3,
};

/// The first piece says what the snapshot has, each other one is a record. Whatever intact records
/// say, they are refused in words, or are a state: committed entries are applied once and in order,
/// the same comes out of a second opening, and what is written then is there at a third.
pub fn check_journal(data: &[u8]) {
    let pieces = pieces::of(data);
    let Some((first, records)) = pieces.split_first() else {
        return;
    };
    let start = start(first);
    let fs = MemFileSystem::new();
    write_records(&fs, records);
    let (mut journal, recovered, applied) = match open(&fs, &start) {
        Ok(opened) => opened,
        Err(JournalError::Invalid { dir, what }) => {
            assert!(dir == DIR && !what.is_empty());
            return;
        }
        Err(other) => panic!("intact records are refused: {other}"),
    };
    let Some(recovered) = recovered else {
        return;
    };
    let HardState { term, commit, .. } = recovered.hard_state;
    let indices: Vec<u64> = applied.iter().map(|entry| entry.index).collect();
    assert!(indices.is_sorted_by(|a, b| a < b), "{indices:?}");
    let within = start.position.index + 1..=commit;
    assert!(
        indices.iter().all(|index| within.contains(index)),
        "{indices:?}"
    );
    assert!(commit >= start.position.index && commit <= recovered.window.last_index());

    // As it may be read a second time: what it was told of a received snapshot, it knows.
    let (again, applied_again) = reopen(&fs, &start);
    assert_eq!(facts(&again), facts(&recovered));
    assert_eq!(applied_again, applied);

    let last = recovered.window.last();
    let (Some(index), true) = (last.index.checked_add(1), term < u64::MAX) else {
        return;
    };
    let entry = LogEntry {
        kind: EntryKind::Command,
        index,
        term: term + 1,
        data: Bytes::from_static(b"new"),
    };
    let persist = Persist {
        number: 1,
        reset: None,
        entries: vec![entry.clone()],
        hard_state: HardState {
            term: term + 1,
            ..recovered.hard_state
        },
    };
    assert!(matches!(journal.write(&[persist]), Ok(Written::Durable)));
    let (third, _) = reopen(&fs, &start);
    assert_eq!(third.window.entry(index), Some(&entry));
}

/// Index and term of the snapshot, whether it came from a peer, then its configuration.
fn start(piece: &[u8]) -> Start {
    let (index, rest) = pieces::byte(piece);
    let (term, rest) = pieces::byte(rest);
    let (mark, rest) = pieces::byte(rest);
    let configuration = Configuration::decode(rest);
    // Before the first entry there is no term, and no snapshot is of index 0.
    let term = if index == 0 { 0 } else { u64::from(term) };
    Start {
        position: Position {
            index: u64::from(index),
            term,
        },
        configuration: configuration.unwrap_or_else(|| Configuration::of([OWNER])),
        is_received: mark & 1 == 1 && index > 0,
    }
}

/// A record: a byte that says its kind and shape, its number and term as a byte or as eight, and
/// its payload, of which a hard state has the owner and a byte of vote and commit index.
fn write_records(fs: &MemFileSystem, pieces: &[&[u8]]) {
    let opened = Log::open(
        Arc::new(fs.clone()),
        Path::new(DIR),
        OPTIONS,
        &mut |_, _| Ok(()),
    );
    let (mut log, _) = opened.expect("a new log");
    for piece in pieces {
        let (mark, rest) = pieces::byte(piece);
        let take = |rest| match mark & 0x40 {
            0 => {
                let (byte, rest) = pieces::byte(rest);
                (u64::from(byte), rest)
            }
            _ => pieces::number(rest),
        };
        let (number, rest) = take(rest);
        let (term, rest) = take(rest);
        let (vote, commit) = (
            pieces::byte(rest).0,
            pieces::byte(rest.get(1..).unwrap_or(&[])).0,
        );
        let hard_state = [OWNER.0, u64::from(vote), u64::from(commit)];
        let hard_state = hard_state.map(u64::to_le_bytes).concat();
        let (kind, is_raw) = (mark & 7, mark & 0x80 != 0);
        let key = term.to_le_bytes();
        let record = Record {
            kind,
            number,
            key: if kind == 2 { &[] } else { &key },
            payload: if kind == 2 && !is_raw {
                &hard_state
            } else {
                rest
            },
        };
        log.stage(&record).expect("a short record");
        if mark & 0x20 == 0 {
            log.write().expect("written");
        }
    }
    log.write().expect("written");
    log.sync().expect("synced");
}

type Opened = (Journal, Option<Recovered>, Vec<LogEntry>);

fn open(fs: &MemFileSystem, start: &Start) -> Result<Opened, JournalError> {
    let mut applied = Vec::new();
    let (journal, recovered) = Journal::open(
        Arc::new(fs.clone()),
        Path::new(DIR),
        OPTIONS,
        OWNER,
        start.clone(),
        WINDOW_BYTES_MAX,
        &mut |entry| applied.push(entry.clone()),
    )?;
    Ok((journal, recovered, applied))
}

/// Opens a copy of what is there.
fn reopen(fs: &MemFileSystem, start: &Start) -> (Recovered, Vec<LogEntry>) {
    let (_, recovered, applied) = open(&fs.fork(), start).expect("opened once");
    (recovered.expect("found once"), applied)
}

/// What of a recovered state can be compared.
fn facts(recovered: &Recovered) -> (HardState, Configuration, Position, Vec<LogEntry>) {
    let window = &recovered.window;
    let entries = window.first_index()..=window.last_index();
    let entries = entries.filter_map(|index| window.entry(index).cloned());
    (
        recovered.hard_state,
        recovered.configuration.clone(),
        window.last(),
        entries.collect(),
    )
}
