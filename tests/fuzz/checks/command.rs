//! Commands of the metadata: their bytes, and what they do when applied.

use tolerex::metadata::command::Command;
use tolerex::metadata::snapshot::Restore;
use tolerex::metadata::state::{PlainShards, Shards, State};

use super::pieces;

/// What decodes is written in as many bytes or fewer, and reads back.
pub fn check_one(data: &[u8]) {
    match Command::decode(data) {
        Ok(command) => {
            let bytes = command.encode();
            assert!(bytes.len() <= data.len(), "written longer than it was read");
            assert_eq!(Command::decode(&bytes).as_ref(), Ok(&command));
            assert_eq!(command.encode(), bytes);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// Commands in a row have the same outcome and leave the same state in any layout of shards (A3),
/// also behind a snapshot. One piece is one command; a first byte of 0 puts it into another term.
pub fn check_entries(data: &[u8]) {
    let mut state = State::new(PlainShards::new(1));
    let mut other = State::new(PlainShards::new(7));
    for (index, piece) in (1..).zip(pieces::of(data)) {
        let (mark, bytes) = pieces::byte(piece);
        let Ok(command) = Command::decode(bytes) else {
            continue;
        };
        let term = match mark {
            0 => command.term.wrapping_add(1),
            _ => command.term,
        };
        let applied = state.apply(index, term, &command);
        assert_eq!(applied, other.apply(index, term, &command));
    }
    assert_eq!(state.digest(), other.digest(), "two layouts, two states");
    assert_eq!(state.take_changed_loads(), other.take_changed_loads());
    let chunks = snapshot_of(&mut other);
    let restored = restore(&chunks, 3).expect("our own snapshot");
    assert_eq!(
        state.digest(),
        restored.digest(),
        "a snapshot of another state"
    );
}

/// The chunks of a snapshot of a state as it is.
pub fn snapshot_of(state: &mut State<PlainShards>) -> Vec<Vec<u8>> {
    let mut capture = state.begin_snapshot(state.applied_index());
    let mut chunks = Vec::new();
    while let Some(chunk) = capture.next_chunk(state.shards_mut()) {
        chunks.push(chunk);
    }
    state.shards_mut().end_snapshot();
    chunks
}

/// The state that a snapshot restores, or why it does not.
pub fn restore<T: AsRef<[u8]>>(chunks: &[T], shards: usize) -> Result<State<PlainShards>, String> {
    let mut state = State::new(PlainShards::new(shards));
    let mut restore = Restore::default();
    for chunk in chunks {
        let taken = restore.chunk(&mut state, chunk.as_ref());
        taken.map_err(|error| error.to_string())?;
    }
    let index = restore.finish(&mut state);
    assert_eq!(
        index.clone().unwrap_or(state.applied_index()),
        state.applied_index()
    );
    index.map_err(|error| error.to_string())?;
    Ok(state)
}
