//! Removing segments from a log: the head of a journal, and what compaction emptied.
//!
//! A segment is gone when its successor's header says so, durably; the file goes afterwards, and
//! if it is still there, the next opening removes it unread ([`crate::disk::segment`]). So a
//! removal happens as a whole or not at all, needs no space, and what is missing without such a
//! word is damage.
//!
//! After an error other than [`LogError::Refused`] the log is poisoned.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Log, LogError, Position};
use crate::disk::fs::FileSystem;
use crate::disk::opening::write_header;
use crate::disk::segment::{NOTHING_BEFORE, SegmentHeader, file_name};

/// A segment of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentInfo {
    /// Its number, as in [`super::Location::segment`].
    pub number: u32,
    /// What makes it differ from any other of this number; `None` if its header is damaged.
    pub salt: Option<u64>,
    /// Where its last group ends; `None` if that is not known.
    pub end: Option<u32>,
}

impl Log {
    /// The segments there are, in order. The last one is the one that is appended to.
    pub fn segments(&self) -> Vec<SegmentInfo> {
        let mut infos: Vec<SegmentInfo> = Vec::with_capacity(self.headers.len());
        for (&number, header) in &self.headers {
            if let Some(last) = infos.last_mut() {
                last.end = header.and_then(|header| header.end_of(last.number));
            }
            infos.push(SegmentInfo {
                number,
                salt: header.map(|header| header.salt),
                end: (number == self.end.segment).then_some(self.end.offset),
            });
        }
        infos
    }

    /// Removes all segments before `first_kept` from the log, durably, and then their files. Syncs
    /// first: what made them needless may not be durable yet. On [`LogError::Refused`] nothing is
    /// removed. One whose successor's header is damaged stays, with those behind it.
    pub fn drop_head(&mut self, first_kept: u32) -> Result<(), LogError> {
        let gone: Vec<u32> = self.headers.range(..first_kept).map(|(&n, _)| n).collect();
        assert!(first_kept <= self.end.segment, "the last segment stays");
        if gone.is_empty() || !self.unlink_before(first_kept, NOTHING_BEFORE)? {
            return Ok(());
        }
        for &number in &gone {
            self.forget(number);
        }
        match remove_files(&*self.fs, &self.dir, &gone) {
            // They are not part of the log any more: the next opening removes them.
            Err(LogError::Refused(shortage)) => {
                log::debug!("files of removed segments stay for now: {shortage}");
                Ok(())
            }
            removed => removed.inspect_err(|_| self.poisoned = true),
        }
    }

    /// Removes a segment from the log, durably; its file remains, and goes with
    /// [`LogRemover::remove`] (in a thread that may wait for it) or when the log is opened again.
    /// Syncs first, as [`Log::drop_head`] does. False if the header that has to tell it is damaged:
    /// then it stays. Not for the last segment.
    pub fn retire(&mut self, number: u32) -> Result<bool, LogError> {
        assert!(number < self.end.segment, "the last segment stays");
        let Some(Some(header)) = self.headers.get(&number).copied() else {
            return Ok(false);
        };
        let next = self.headers.range(number + 1..).next();
        let next = *next.expect("the last segment is behind it").0;
        let before = match header.previous_end {
            Some(end) => end,
            None if header.before() == 0 => NOTHING_BEFORE,
            None => Position {
                segment: header.before(),
                offset: 0,
            },
        };
        let unlinked = self.unlink_before(next, before)?;
        if unlinked {
            self.forget(number);
        }
        Ok(unlinked)
    }

    /// Makes the header of segment `number` say that `before` is the end of the segment before it.
    /// False if that header is damaged.
    fn unlink_before(&mut self, number: u32, before: Position) -> Result<bool, LogError> {
        self.sync()?;
        let segment = self.segments.read().get(&number).cloned();
        let header = self.headers.get_mut(&number).and_then(Option::as_mut);
        let (Some(segment), Some(header)) = (segment, header) else {
            return Ok(false);
        };
        let told = SegmentHeader {
            previous_end: Some(before),
            ..*header
        };
        match write_header(&*segment.file, &segment.path, &told) {
            Ok(()) => *header = told,
            Err(error) => {
                self.poisoned |= !error.is_refused();
                return Err(error);
            }
        }
        Ok(true)
    }

    /// Takes a segment out of the tables. Reads that began before go on.
    fn forget(&mut self, number: u32) {
        self.headers.remove(&number);
        self.segments.write().remove(&number);
    }

    /// The reserve; see [`super::LogOptions::reserve_bytes`].
    pub fn reserve_bytes(&self) -> u64 {
        self.options.reserve_bytes
    }

    /// Removes the files of segments that were retired, from any thread.
    pub fn remover(&self) -> LogRemover {
        LogRemover {
            fs: Arc::clone(&self.fs),
            dir: self.dir.clone(),
        }
    }
}

/// Removes the files of segments that were retired; see [`Log::retire`].
#[derive(Clone)]
pub struct LogRemover {
    fs: Arc<dyn FileSystem>,
    dir: PathBuf,
}

impl LogRemover {
    /// Removes the file of a retired segment, durably. After an error it goes when the log is
    /// opened again.
    pub fn remove(&self, number: u32) -> Result<(), LogError> {
        remove_files(&*self.fs, &self.dir, &[number])
    }

    /// The file system and the log's directory, for files beside the segments.
    pub fn disk(&self) -> (&dyn FileSystem, &Path) {
        (&*self.fs, &self.dir)
    }

    /// Bytes that the log's disk has room for; `u64::MAX` if that is not known.
    pub fn free_space(&self) -> u64 {
        self.fs.free_space(&self.dir).unwrap_or(u64::MAX)
    }
}

fn remove_files(fs: &dyn FileSystem, dir: &Path, numbers: &[u32]) -> Result<(), LogError> {
    let failed = |action, file: &Path| {
        let file = file.display().to_string();
        move |source| LogError::from_io(action, file, source)
    };
    for &number in numbers {
        let path = dir.join(file_name(number));
        fs.remove(&path).map_err(failed("remove", &path))?;
    }
    fs.sync_dir(dir).map_err(failed("sync", dir))
}
