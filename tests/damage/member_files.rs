//! The files of the `files` engine: payload, side file, version of the layout, and the names, which
//! carry key, revision, length and checksum. Each is read with and without the file `unsynced`,
//! whose
//! presence has everything verified at opening.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use tolerex::disk::fs::FileSystem;
use tolerex::disk::log::LogOptions;
use tolerex::disk::mem::MemFileSystem;
use tolerex::ids::{Key, Revision};
use tolerex::storage::opening::{self, Store, StoreOptions};
use tolerex::storage::{Committed, EngineKind, WriteMode, file_name};

use super::campaign::{Outcome, Sample, Verdict, names};

const RECORDS: u64 = 3;

fn open(fs: &MemFileSystem, io: WriteMode) -> Result<Store, String> {
    let options = StoreOptions {
        engine: EngineKind::Files,
        io,
        log: LogOptions {
            reserve_bytes: 0,
            ..LogOptions::default()
        },
    };
    let fs: Arc<dyn FileSystem> = Arc::new(fs.clone());
    opening::open(&fs, Path::new("data"), &options).map_err(|error| error.to_string())
}

/// The first has a payload of 64 KiB, the second a key that is too long for a name.
fn record(number: u64) -> (Revision, Key, Bytes) {
    let (key, length) = match number {
        0 => (Key::parse(b"first.key").expect("a key"), 64 << 10),
        1 => (Key::parse("ü".repeat(250).as_bytes()).expect("a key"), 300),
        _ => (Key::Id(number), 200),
    };
    let payload: Vec<u8> = (0..length)
        .map(|at| (number as usize + at * 7) as u8)
        .collect();
    (Revision::new(1, 700 + number), key, payload.into())
}

/// A directory with the records, and whether its last run ended in order.
fn live(in_order: bool) -> MemFileSystem {
    let fs = MemFileSystem::new();
    let io = match in_order {
        true => WriteMode::Sync,
        false => WriteMode::Unbuffered,
    };
    let mut engine = open(&fs, io).expect("opened").engine;
    for number in 0..RECORDS {
        let (revision, key, payload) = record(number);
        engine.store(revision, &key, &payload).expect("staged");
        assert_eq!(engine.commit().expect("committed"), Committed::Done);
    }
    engine.idle().expect("idle");
    fs
}

/// The file in the directory of the records whose name passes.
fn file(fs: &MemFileSystem, passes: impl Fn(&str) -> bool) -> PathBuf {
    let dir = Path::new("data/files/02");
    let names = fs.list(dir).expect("listed");
    let name = names.iter().find(|name| passes(name)).expect("a file");
    dir.join(name)
}

/// What an opening found.
struct Found {
    /// Which records are there.
    present: Vec<bool>,
    /// What was said while opening and reading.
    reports: Vec<String>,
}

/// Reads all records, and those of the other revisions, of which there must be none.
fn read(fs: &MemFileSystem, others: &[Revision]) -> Result<Found, String> {
    let store = open(fs, WriteMode::Sync)?;
    let damaged = store.recovery.damaged.iter();
    let mut reports: Vec<String> = damaged.map(|bad| bad.to_string()).collect();
    let reader = store.engine.reader();
    let mut present = Vec::new();
    for number in 0..RECORDS {
        let (revision, key, payload) = record(number);
        let found = reader.fetch(revision);
        let length = reader.length(revision);
        present.push(matches!(found, Ok(Some(_))));
        match found {
            Ok(None) => {}
            Ok(Some(found)) if found == (key, payload.clone()) => {
                if length != Some(payload.len() as u32) {
                    return Err(format!("record {number} has a length of {length:?}"));
                }
            }
            Ok(Some((key, _))) => return Err(format!("wrong record {number}: key {key}")),
            Err(error) => reports.push(error.to_string()),
        }
    }
    for other in others {
        match reader.fetch(*other) {
            Ok(None) => {}
            Ok(Some(_)) => return Err(format!("revision {other} was never stored")),
            Err(error) => reports.push(error.to_string()),
        }
    }
    Ok(Found { present, reports })
}

/// All but one record are there; if that is not, a report names the file.
fn judge(found: &Found, file: &Path, victim: Option<usize>) -> Verdict {
    let lost = found.present.iter().position(|present| !present);
    let lost_more = found.present.iter().filter(|present| !**present).count() > 1;
    match lost {
        None if found.reports.is_empty() => Ok(Outcome::Whole),
        _ if lost_more || (lost.is_some() && lost != victim) => {
            Err(format!("{:?} are present", found.present))
        }
        _ if found.reports.iter().any(|report| names(report, file)) => Ok(Outcome::Reported),
        _ => Err(format!(
            "nothing names {}: {:?}",
            file.display(),
            found.reports
        )),
    }
}

/// A payload or side file: any change of it costs its record, and nothing else.
fn record_file(name: &'static str, in_order: bool, victim: usize, ending: &str) -> Sample {
    let fs = live(in_order);
    let path = file(&fs, |name| {
        name.ends_with(ending) && (victim > 0 || name.starts_with("first"))
    });
    let damaged = path.clone();
    Sample::new(name, &fs, &path, move |fs, _| {
        let found = read(fs, &[])?;
        match judge(&found, &damaged, Some(victim))? {
            Outcome::Reported if !found.present[victim] => Ok(Outcome::Reported),
            outcome => Err(format!("{outcome:?} of a damaged file")),
        }
    })
}

/// The file `format`: without it as it was, the directory is not opened.
fn format() -> Sample {
    let path = Path::new("data/files/format");
    Sample::new("files, format", &live(true), path, |fs, _| {
        let path = Path::new("data/files/format");
        match read(fs, &[]) {
            Err(error) if names(&error, path) => Ok(Outcome::Reported),
            Err(error) => Err(error),
            Ok(_) => Err("it is opened".to_owned()),
        }
    })
}

pub fn samples() -> Vec<Sample> {
    vec![
        record_file("files, payload", true, 0, ""),
        record_file("files, payload, verified", false, 0, ""),
        record_file("files, side file", true, 1, ".key"),
        format(),
    ]
}

/// The names that one flipped bit or a cut makes of a name, as far as a file can have them.
fn damaged_names(name: &str) -> Vec<String> {
    let flipped = (0..name.len() * 8).filter_map(|bit| {
        let mut bytes = name.as_bytes().to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        String::from_utf8(bytes).ok()
    });
    let cut = (1..name.len()).filter_map(|end| name.get(..end).map(str::to_owned));
    let can_be = |name: &String| !name.contains(['/', '\0']) && name != "." && name != "..";
    flipped.chain(cut).filter(can_be).collect()
}

/// Damages every name in turn; returns how many were tried, and how many were reported.
pub fn run_names() -> (usize, usize) {
    let (mut tried, mut reported) = (0, 0);
    for in_order in [true, false] {
        let sample = live(in_order);
        for name in sample.list(Path::new("data/files/02")).expect("listed") {
            let path = Path::new("data/files/02").join(&name);
            let revision = match file_name::parse_side(&name) {
                Some(revision) => revision,
                None => file_name::parse(&name).expect("one of ours").revision,
            };
            let victim = (0..RECORDS).position(|number| record(number).0 == revision);
            for damaged in damaged_names(&name) {
                let fs = sample.fork();
                let to = path.with_file_name(&damaged);
                if fs.exists(&to).expect("looked") {
                    continue;
                }
                fs.rename(&path, &to).expect("renamed");
                let other = file_name::parse(&damaged).map(|other| other.revision);
                let is_known = |other: &Revision| (0..RECORDS).any(|at| record(at).0 == *other);
                let others: Vec<Revision> =
                    other.filter(|other| !is_known(other)).into_iter().collect();
                // A side file is not seen under another name: its record misses it.
                let is_side = name.ends_with(".key");
                let told = if is_side {
                    file(&fs, |name| name.contains("%."))
                } else {
                    to
                };
                let verdict = read(&fs, &others).and_then(|found| judge(&found, &told, victim));
                match verdict {
                    Ok(Outcome::Reported) => reported += 1,
                    other => panic!("{name} as {damaged:?}: {other:?}"),
                }
                tried += 1;
            }
        }
    }
    (tried, reported)
}
