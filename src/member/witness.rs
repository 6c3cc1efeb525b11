//! What the leaders said is committed in their log, kept as a witness: a leader that was started
//! from an older copy of its directory has lost entries that it had stored, and cannot know that by
//! itself. It is told at registration and with each heartbeat.
//!
//! The file `committed` in the data directory, integers little endian, wrapped and checksummed by
//! `disk::atomic_file`:
//!
//! | offset | size | type | meaning |
//! |---|---|---|---|
//! | 0 | 1 | u8 | version, 1 |
//! | 1 | 8 | u64 | term |
//! | 9 | 8 | u64 | index |
//!
//! It is written when it is older than [`SAVE_INTERVAL`], and at an orderly stop. What a crash
//! forgets is said again by the next leader. A missing or damaged file is no witness, and costs the
//! member nothing else.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::Instant;
use crate::disk::atomic_file;
use crate::disk::error::LogError;
use crate::disk::fs::FileSystem;
use crate::ids::LogPosition;

/// Between two writes of the file. Ten times as often would cost a busy disk two syncs a second; a
/// tenth of it leaves more to a crash.
const SAVE_INTERVAL: Duration = Duration::from_secs(5);

/// The version of the file.
const VERSION: u8 = 1;

/// The furthest entry that a leader said is committed.
pub struct Witness {
    fs: Arc<dyn FileSystem>,
    path: PathBuf,
    committed: Mutex<LogPosition>,
    /// Held over a write of the file, so that it never goes back; nobody waits for it but a stop.
    saved: Mutex<Saved>,
}

/// What the file holds.
struct Saved {
    committed: LogPosition,
    at: Option<Instant>,
}

impl Witness {
    /// Continues with what the file in `dir` holds.
    pub fn open(fs: Arc<dyn FileSystem>, dir: &Path) -> Result<Witness, LogError> {
        let path = dir.join("committed");
        let committed = match atomic_file::read(fs.as_ref(), &path) {
            Ok(bytes) => bytes.and_then(|bytes| decode(&bytes)).unwrap_or_default(),
            Err(error @ LogError::Damaged { .. }) => {
                log::warn!("{error}: what leaders have committed is learnt anew");
                LogPosition::default()
            }
            Err(error) => return Err(error),
        };
        Ok(Witness {
            fs,
            path,
            committed: Mutex::new(committed),
            saved: Mutex::new(Saved {
                committed,
                at: None,
            }),
        })
    }

    /// The furthest entry so far.
    pub fn committed(&self) -> LogPosition {
        *self.committed.lock()
    }

    /// A leader says that it has committed this.
    pub fn told(&self, committed: LogPosition, now: Instant) {
        {
            let mut furthest = self.committed.lock();
            *furthest = committed.max(*furthest);
        }
        // Locked: another thread writes the file just now.
        let Some(mut saved) = self.saved.try_lock() else {
            return;
        };
        if saved.at.is_none_or(|at| now.since(at) >= SAVE_INTERVAL) {
            saved.at = Some(now);
            self.write(&mut saved);
        }
    }

    /// Writes what is not in the file yet.
    pub fn save(&self) {
        self.write(&mut self.saved.lock());
    }

    fn write(&self, saved: &mut Saved) {
        let committed = self.committed();
        if committed == saved.committed {
            return;
        }
        match atomic_file::write(self.fs.as_ref(), &self.path, &encode(committed)) {
            Ok(()) => saved.committed = committed,
            // The next time it may be there is space.
            Err(error) => log::warn!("{} is not written: {error}", self.path.display()),
        }
    }
}

fn encode(position: LogPosition) -> Vec<u8> {
    let mut bytes = vec![VERSION];
    bytes.extend_from_slice(&position.term.to_le_bytes());
    bytes.extend_from_slice(&position.index.to_le_bytes());
    bytes
}

fn decode(bytes: &[u8]) -> Option<LogPosition> {
    let (&version, rest) = bytes.split_first()?;
    let (term, index) = rest.split_at_checked(8)?;
    let term = u64::from_le_bytes(term.try_into().ok()?);
    let index = u64::from_le_bytes(index.try_into().ok()?);
    (version == VERSION).then_some(LogPosition { term, index })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::mem::MemFileSystem;

    fn at(term: u64, index: u64) -> LogPosition {
        LogPosition { term, index }
    }

    #[test]
    fn the_furthest_entry_is_kept_and_comes_back() {
        let fs: Arc<dyn FileSystem> = Arc::new(MemFileSystem::new());
        let dir = Path::new("member");
        fs.create_dir_all(dir).unwrap();
        let open = || Witness::open(Arc::clone(&fs), dir).unwrap();
        let (witness, mut now) = (open(), Instant::default());
        assert_eq!(witness.committed(), at(0, 0));
        witness.told(at(2, 9), now);
        witness.told(at(1, 50), now);
        witness.told(at(2, 12), now);
        assert_eq!(witness.committed(), at(2, 12));
        assert_eq!(open().committed(), at(2, 9), "written seldom");
        now = now + SAVE_INTERVAL;
        witness.told(at(2, 12), now);
        assert_eq!(open().committed(), at(2, 12));
        witness.told(at(3, 13), now);
        witness.save();
        assert_eq!(open().committed(), at(3, 13));
        atomic_file::write(fs.as_ref(), &dir.join("committed"), b"other").unwrap();
        assert_eq!(open().committed(), at(0, 0), "another version says nothing");
    }
}
