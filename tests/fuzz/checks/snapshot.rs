//! Snapshots of the metadata, and the files that they are kept in.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tolerex::disk::fs::FileSystem as _;
use tolerex::disk::log::LogError;
use tolerex::disk::mem::MemFileSystem;
use tolerex::group::configuration::Configuration;
use tolerex::group::snapshots::SnapshotSource;
use tolerex::group::snapshots::files::{Piece, SnapshotFiles, Written};
use tolerex::group::window::Position;
use tolerex::ids::PeerId;
use tolerex::threads::StopSignal;

use super::command::{restore, snapshot_of};
use super::pieces;

/// Any chunks are refused in words, or are a state of which a snapshot is the same state, in any
/// layout of shards. A piece is a chunk.
pub fn check_chunks(data: &[u8]) {
    let chunks = pieces::of(data);
    let mut state = match restore(&chunks, 1) {
        Ok(state) => state,
        Err(error) => {
            assert!(error.starts_with("the snapshot has "), "{error}");
            assert_eq!(restore(&chunks, 5).map(|state| state.digest()), Err(error));
            return;
        }
    };
    let other = restore(&chunks, 5).expect("restored once");
    assert_eq!(state.digest(), other.digest(), "two layouts, two states");
    let again = restore(&snapshot_of(&mut state), 5).expect("our own snapshot");
    assert_eq!(
        state.digest(),
        again.digest(),
        "a snapshot of another state"
    );
    assert_eq!(state.applied_index(), again.applied_index());
    assert_eq!(state.message_count(), again.message_count());
    assert_eq!(state.settings(), again.settings());
}

const DIR: &str = "/snapshots";
const OWNER: PeerId = PeerId(7);
const INDEX: u64 = 42;

struct Chunks(std::vec::IntoIter<Vec<u8>>);

impl SnapshotSource for Chunks {
    fn next_chunk(&mut self) -> Option<Vec<u8>> {
        self.0.next()
    }
}

fn files(fs: &MemFileSystem) -> SnapshotFiles {
    SnapshotFiles {
        fs: Arc::new(fs.clone()),
        dir: PathBuf::from(DIR),
        owner: OWNER,
        founders: Configuration::of([OWNER]),
        reserve_bytes: 0,
    }
}

type Opened = Result<Option<(Position, Configuration, Vec<Vec<u8>>)>, LogError>;

fn open(fs: &MemFileSystem) -> Opened {
    let mut chunks = Vec::new();
    let mut ends = 0;
    let found = files(fs).open(&mut |piece| {
        match piece {
            Piece::Chunk(chunk) => chunks.push(chunk.to_vec()),
            Piece::End { index } => {
                assert_eq!(index, INDEX);
                ends += 1;
            }
        }
        Ok(())
    })?;
    assert_eq!(ends, usize::from(found.is_some()), "the end is told once");
    Ok(found.map(|found| (found.position, found.configuration, chunks)))
}

fn put(fs: &MemFileSystem, bytes: &[u8]) {
    let path = Path::new(DIR).join(format!("{INDEX:020}.snapshot"));
    fs.create_dir_all(Path::new(DIR)).expect("a directory");
    let file = fs.create(&path).expect("a file");
    file.write_all_at(bytes, 0).expect("written");
}

/// An error of a damaged file names it and a place in it.
fn check_error(error: &LogError, bytes: usize) {
    match error {
        LogError::Damaged { file, offset, .. } => {
            assert!(file.ends_with(".snapshot"), "{error}");
            assert!(*offset <= bytes as u64, "{error}, of {bytes} bytes");
        }
        LogError::Version { .. } => {}
        other => panic!("damage is told as {other}"),
    }
}

/// The bytes as a file are refused with a place, or are a snapshot that is written so. And what is
/// written of them (the first piece a configuration, the others chunks) reads back, but not with
/// one byte changed or cut off.
pub fn check_file(data: &[u8]) {
    let fs = MemFileSystem::new();
    put(&fs, data);
    match open(&fs) {
        Ok(found) => assert!(found.is_some(), "the file is there"),
        Err(error) => check_error(&error, data.len()),
    }

    let (term, rest) = pieces::number(data);
    let mut pieces = pieces::of(rest).into_iter();
    let configuration = pieces.next().and_then(Configuration::decode);
    let configuration = configuration.unwrap_or_else(|| Configuration::of([OWNER]));
    let chunks: Vec<Vec<u8>> = pieces.map(<[u8]>::to_vec).collect();
    let chunks: Vec<Vec<u8>> = chunks
        .into_iter()
        .filter(|chunk| !chunk.is_empty())
        .collect();
    let position = Position { index: INDEX, term };
    let fs = MemFileSystem::new();
    let files = files(&fs);
    fs.create_dir_all(Path::new(DIR)).expect("a directory");
    let source = Box::new(Chunks(chunks.clone().into_iter()));
    let written = files.write(position, &configuration, source, &StopSignal::default());
    assert!(matches!(written, Ok(Written::Durable { .. })));
    let path = Path::new(DIR).join(format!("{INDEX:020}.snapshot"));
    let bytes = fs.content(&path).expect("it has its name");
    let found = open(&fs).expect("our own file").expect("it is there");
    assert_eq!(found, (position, configuration, chunks));

    let mut numbers = super::splits::Numbers::of(data);
    let mut damaged = bytes.clone();
    let at = numbers.below(bytes.len());
    match numbers.below(3) {
        0 => damaged.truncate(at),
        1 => damaged.push(0),
        _ => damaged[at] ^= 1 << numbers.below(8),
    }
    let fs = MemFileSystem::new();
    put(&fs, &damaged);
    match open(&fs) {
        Ok(found) => panic!("damage at {at} of {} bytes reads as {found:?}", bytes.len()),
        Err(error) => check_error(&error, damaged.len()),
    }
}
