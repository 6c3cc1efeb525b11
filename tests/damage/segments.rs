//! The segment of a member's log: sealed, sealed and with a hint, last and ended in order, last and
//! half unsynced; and the hint.
//!
//! The groups of the file are found here by the byte table of `disk::segment`, so it is known which
//! records a damaged byte may cost: those of its group.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use tolerex::disk::log::{LogOptions, Recovery};
use tolerex::disk::mem::MemFileSystem;
use tolerex::ids::{Key, Revision};
use tolerex::storage::log_engine::LogEngine;
use tolerex::storage::{Committed, Engine};

use super::campaign::{Damage, Outcome, Sample, Verdict, names};

const SECTOR_BYTES: usize = 512;
const DATA_START: usize = 1024;
pub const SAMPLE_BYTES: u64 = 64 << 10;

/// A group of a segment: bytes from..to, its records ending before `body_end`.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    pub start: u64,
    pub body_end: u64,
    pub end: u64,
    pub known_synced: u64,
}

/// The groups with records in an undamaged segment.
pub fn groups(segment: &[u8]) -> Vec<Group> {
    let mut groups = Vec::new();
    let mut start = DATA_START;
    while segment.get(start..start + 4) == Some(b"TGRP") {
        let integer =
            |at| u32::from_le_bytes(segment[start + at..][..4].try_into().expect("4 bytes"));
        let length = integer(32) as usize;
        let end = start + (48 + length).next_multiple_of(SECTOR_BYTES);
        if integer(36) > 0 {
            groups.push(Group {
                start: start as u64,
                body_end: (start + 48 + length) as u64,
                end: end as u64,
                known_synced: u64::from(integer(16)),
            });
        }
        start = end;
    }
    groups
}

/// How the segment under test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It has a successor.
    Sealed,
    /// It is the last one, all of it known to be synced.
    Closed,
    /// It is the last one, its second half not known to be synced.
    Open,
}

/// What a commit did.
#[derive(Clone, Debug, Default)]
struct Commit {
    stored: Vec<u64>,
    released: Vec<u64>,
}

/// What was written, and where.
struct Written {
    fate: Fate,
    file: PathBuf,
    /// One for each of `groups`; then those of later segments.
    commits: Vec<Commit>,
    groups: Vec<Group>,
    records: u64,
}

fn options() -> LogOptions {
    LogOptions {
        segment_bytes: SAMPLE_BYTES,
        reserve_bytes: 0,
        salt: 1,
    }
}

fn dir() -> &'static Path {
    Path::new("data/log")
}

fn open(fs: &MemFileSystem) -> Result<(LogEngine, Recovery), String> {
    LogEngine::open(Arc::new(fs.clone()), dir(), options()).map_err(|error| error.to_string())
}

fn payload(number: u64) -> Bytes {
    let length = 60 + number as usize * 37 % 300;
    (0..length)
        .map(|at| (number as usize * 31 + at * 7) as u8)
        .collect::<Vec<u8>>()
        .into()
}

/// A life of an engine until its first segment is full: stores of one to five records a group, and
/// the release of one in nine.
fn live(fate: Fate, hinted: bool) -> (MemFileSystem, Written) {
    let fs = MemFileSystem::new();
    let (engine, _) = open(&fs).expect("opened");
    let mut engine = engine;
    let file = dir().join("00000001.log");
    let (mut commits, mut next) = (Vec::new(), 0);
    let mut is_unsynced = false;
    loop {
        let length = fs.content(&file).expect("a segment").len() as u64;
        let full = length > SAMPLE_BYTES - 1600;
        if fs.content(&dir().join("00000002.log")).is_some() || (full && fate != Fate::Sealed) {
            break;
        }
        if fate == Fate::Open && length > SAMPLE_BYTES / 2 && !is_unsynced {
            engine.idle().expect("idle");
            engine = engine.unsynced();
            is_unsynced = true;
        }
        let mut commit = Commit::default();
        let end = next + 1 + commits.len() as u64 % 5;
        for number in next..end {
            let (revision, key) = (Revision::from_u64(number), Key::Id(number));
            engine
                .store(revision, &key, &payload(number))
                .expect("staged");
            commit.stored.push(number);
            if number % 9 == 8 {
                let old = number - 5;
                engine.release(Revision::from_u64(old)).expect("staged");
                commit.released.push(old);
            }
        }
        assert_eq!(engine.commit().expect("committed"), Committed::Done);
        commits.push(commit);
        next = end;
    }
    if fate != Fate::Open {
        engine.idle().expect("idle");
    }
    if hinted {
        assert!(engine.compactor().hint_one().expect("written"));
    }
    let groups = groups(&fs.content(&file).expect("a segment"));
    let written = Written {
        fate,
        file,
        commits,
        groups,
        records: next,
    };
    (fs, written)
}

/// What an opening found.
struct Found {
    records: BTreeMap<u64, Bytes>,
    /// What was said of damaged records.
    reports: Vec<String>,
    is_cut: bool,
}

fn read(fs: &MemFileSystem, written: &Written) -> Result<Found, String> {
    let (engine, recovery) = open(fs)?;
    let mut reports: Vec<String> = recovery.damaged.iter().map(|bad| bad.to_string()).collect();
    let mut records = BTreeMap::new();
    let reader = engine.reader();
    for number in 0..written.records {
        match reader.fetch(Revision::from_u64(number)) {
            Ok(None) => {}
            Ok(Some((key, found))) if key == Key::Id(number) && found == payload(number) => {
                records.insert(number, found);
            }
            Ok(Some((key, found))) => {
                return Err(format!(
                    "wrong record {number}: key {key}, {} bytes",
                    found.len()
                ));
            }
            Err(error) => reports.push(error.to_string()),
        }
    }
    // By a hint, a record that is damaged is known and counted.
    let counted = records.len()..=records.len() + reports.len();
    if !counted.contains(&(reader.counters().records as usize)) {
        return Err(format!(
            "{} records are counted, {} found",
            reader.counters().records,
            records.len()
        ));
    }
    Ok(Found {
        records,
        reports,
        is_cut: recovery.cut.is_some(),
    })
}

impl Written {
    /// What is there after these commits.
    fn after<'a>(&self, commits: impl Iterator<Item = &'a Commit>) -> BTreeMap<u64, Bytes> {
        let mut records = BTreeMap::new();
        for commit in commits {
            records.extend(
                commit
                    .stored
                    .iter()
                    .map(|number| (*number, payload(*number))),
            );
            commit
                .released
                .iter()
                .for_each(|old| _ = records.remove(old));
        }
        records
    }

    fn judge(&self, fs: &MemFileSystem, damage: Damage) -> Verdict {
        let found = read(fs, self)?;
        let outcome = match damage {
            Damage::Flip(byte, _) => self.judge_flip(&found, byte)?,
            Damage::Cut(byte) => self.judge_cut(&found, byte)?,
        };
        // Opening is not the damage: the next one finds the same.
        let (Damage::Flip(byte, _) | Damage::Cut(byte)) = damage;
        if byte.is_multiple_of(16) && read(fs, self)?.records != found.records {
            return Err("the second opening finds something else".to_owned());
        }
        Ok(outcome)
    }

    /// The byte costs its group at most, and what is behind it if that was not known to be synced.
    fn judge_flip(&self, found: &Found, byte: u64) -> Verdict {
        let hit = self
            .groups
            .iter()
            .position(|group| (group.start..group.end).contains(&byte));
        let all = self.after(self.commits.iter());
        // Behind the groups there may be a mark, and it may be cut: it holds nothing.
        if found.records == all && (!found.is_cut || hit.is_none()) {
            return Ok(Outcome::Whole);
        }
        let Some(hit) = hit else {
            return Err(format!(
                "{:?} for a byte outside of all groups",
                found.reports
            ));
        };
        if found.is_cut {
            let synced = self.groups.iter().map(|group| group.known_synced).max();
            if self.fate != Fate::Open || byte < synced.unwrap_or_default() {
                return Err("something known to be synced is cut".to_owned());
            }
            let before = self.after(self.commits[..hit].iter());
            return match found.records == before {
                true => Ok(Outcome::Prefix),
                false => Err(format!(
                    "{} records instead of a prefix",
                    found.records.len()
                )),
            };
        }
        self.named(found)?;
        let touched = &self.commits[hit];
        let is_touched =
            |number: &u64| touched.stored.contains(number) || touched.released.contains(number);
        for number in 0..self.records {
            let is_right = found.records.get(&number) == all.get(&number);
            if !is_right && !is_touched(&number) {
                return Err(format!("record {number} is in no damaged group"));
            }
        }
        Ok(Outcome::Reported)
    }

    /// What is before the cut is there.
    fn judge_cut(&self, found: &Found, at: u64) -> Verdict {
        let kept = self
            .groups
            .iter()
            .take_while(|group| group.body_end <= at)
            .count();
        let behind = &self.commits[self.groups.len()..];
        let before = self.after(self.commits[..kept].iter().chain(behind));
        if self.fate == Fate::Sealed {
            if kept == self.groups.len() {
                let is_whole = found.records == self.after(self.commits.iter());
                return is_whole
                    .then_some(Outcome::Whole)
                    .ok_or("some are lost".to_owned());
            }
            self.named(found)?;
            let cut = &self.commits[kept..self.groups.len()];
            let may_differ = |number: &u64| {
                cut.iter().any(|commit| {
                    commit.stored.contains(number) || commit.released.contains(number)
                })
            };
            let all = self.after(self.commits.iter());
            let bad = (0..self.records)
                .find(|number| found.records.get(number) != all.get(number) && !may_differ(number));
            return match bad {
                None => Ok(Outcome::Reported),
                Some(number) => Err(format!("record {number} is before the cut")),
            };
        }
        if found.records != before {
            return Err(format!(
                "{} records, not {}",
                found.records.len(),
                before.len()
            ));
        }
        if at < SECTOR_BYTES as u64 {
            self.named(found)?;
            return Ok(Outcome::Reported);
        }
        match found.reports.first() {
            None => Ok(Outcome::Prefix),
            Some(report) => Err(format!("a torn tail is taken for damage: {report}")),
        }
    }

    fn named(&self, found: &Found) -> Result<(), String> {
        let named = found.reports.iter().any(|report| names(report, &self.file));
        named
            .then_some(())
            .ok_or_else(|| format!("nothing names {}: {:?}", self.file.display(), found.reports))
    }
}

fn sample(name: &'static str, fate: Fate, hinted: bool) -> Sample {
    let (fs, written) = live(fate, hinted);
    let file = written.file.clone();
    assert!(written.groups.len() > 30, "{}", written.groups.len());
    assert_eq!(
        written.groups.len() < written.commits.len(),
        fate == Fate::Sealed
    );
    let whole = read(&fs.fork(), &written).expect("read");
    assert_eq!(whole.records, written.after(written.commits.iter()));
    assert_eq!((whole.reports.len(), whole.is_cut), (0, false));
    Sample::new(name, &fs, &file, move |fs, damage| {
        written.judge(fs, damage)
    })
}

/// The hint of a sealed segment: without it, everything is read from the segment.
fn hint() -> Sample {
    let (fs, written) = live(Fate::Sealed, true);
    let all = written.after(written.commits.iter());
    let path = dir().join("00000001.hint");
    let damaged = path.clone();
    Sample::new("hint", &fs, &path, move |fs, _| {
        let found = read(fs, &written)?;
        if found.records != all || !found.reports.is_empty() || found.is_cut {
            let (left, reports) = (found.records.len(), found.reports);
            return Err(format!("{left} records of {}, {reports:?}", all.len()));
        }
        match fs.content(&damaged) {
            None => Ok(Outcome::Whole),
            Some(_) => Err("the damaged hint is still there".to_owned()),
        }
    })
}

pub fn samples() -> Vec<Sample> {
    vec![
        sample("segment, sealed", Fate::Sealed, false),
        sample("segment, sealed, with a hint", Fate::Sealed, true),
        sample("segment, last, closed", Fate::Closed, false),
        sample("segment, last, half unsynced", Fate::Open, false),
        hint(),
    ]
}
