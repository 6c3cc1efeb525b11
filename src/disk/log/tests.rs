//! The log on the operating system's files, its reader across threads, its filler, big records.
//! Crash images are in `tests/crash_images.rs`, operations step by step in `testscripts/`.

use super::*;
use crate::disk::fs::OsFileSystem;
use crate::disk::mem::{Fault, Loss, MemFileSystem, Operation};
use crate::threads::{StopSignal, spawn};

const OPTIONS: LogOptions = LogOptions {
    segment_bytes: 64 << 10,
    reserve_bytes: 0,
    salt: 1,
};

fn record(number: u64, payload: &[u8]) -> Record<'_> {
    Record {
        kind: 1,
        number,
        key: b"key",
        payload,
    }
}

fn open(fs: &(impl FileSystem + Clone + 'static), dir: &Path) -> (Log, Recovery, Vec<u64>) {
    let mut seen = Vec::new();
    let (log, recovery) = Log::open(Arc::new(fs.clone()), dir, OPTIONS, &mut |_, record| {
        seen.push(record.number);
        Ok(())
    })
    .expect("opened");
    (log, recovery, seen)
}

#[test]
fn the_operating_systems_files_hold_a_log() {
    let dir = tempfile::tempdir().expect("a directory");
    let dir = dir.path().join("made/here");
    let (mut log, _, _) = open(&OsFileSystem, &dir);
    let reader = log.reader();
    let mut locations = Vec::new();
    for number in 0..200 {
        locations.push(
            log.stage(&record(number, &[number as u8; 1000]))
                .expect("staged"),
        );
        if number % 3 == 0 {
            log.write().expect("written");
            log.sync().expect("synced");
        }
    }
    log.write().expect("written");
    log.idle().expect("idle");
    assert!(log.end().segment >= 3 && log.end() == log.synced());
    drop(log);
    for (number, location) in (0..).zip(&locations) {
        let read = reader.read(*location).expect("read");
        assert_eq!(
            (read.number, &read.payload[..]),
            (number, &[number as u8; 1000][..])
        );
    }
    let (_, recovery, seen) = open(&OsFileSystem, &dir);
    assert_eq!(seen, (0..200).collect::<Vec<_>>());
    assert_eq!((recovery.damaged, recovery.cut), (vec![], None));
}

#[test]
fn the_filler_makes_segments_ahead_while_the_log_is_written_and_read() {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut log, _, _) = open(&OsFileSystem, dir.path());
    let stop = StopSignal::default();
    let (filler, reader) = (log.filler(), log.reader());
    let stopped = stop.clone();
    let fills = spawn("fill", move || filler.run(&stopped)).expect("a thread");
    let (written, to_read) = crossbeam_channel::bounded::<(u64, Location)>(16);
    let reads = spawn("read", move || {
        for (number, location) in to_read {
            assert_eq!(reader.read(location).expect("read").number, number);
        }
    })
    .expect("a thread");
    let mut number = 0;
    let mut filled = 0;
    // Until the log was seen to take a filled segment: its file is long before it is written.
    while filled < 2 {
        let segment = log.end().segment;
        let location = log.stage(&record(number, &[7; 5000])).expect("staged");
        log.write().expect("written");
        written.send((number, location)).expect("the reader lives");
        if log.end().segment > segment {
            filled += usize::from(log.allocated == OPTIONS.segment_bytes);
            while !dir.path().join("next.tmp").exists() {
                crate::clock::sleep(std::time::Duration::from_millis(1));
            }
        }
        number += 1;
    }
    stop.stop();
    drop(written);
    fills.join();
    reads.join();
    drop(log);
    let (_, recovery, seen) = open(&OsFileSystem, dir.path());
    assert_eq!(seen, (0..number).collect::<Vec<_>>());
    assert_eq!((recovery.damaged, recovery.cut), (vec![], None));
}

#[test]
fn a_record_of_the_frame_limit_fits_any_segment_and_its_buffer_is_given_back() {
    let fs = MemFileSystem::new();
    let dir = Path::new("/log");
    let (mut log, _, _) = open(&fs, dir);
    log.stage(&record(1, b"before")).expect("staged");
    log.write().expect("written");
    let payload = vec![5; 32 << 20];
    let location = log.stage(&record(2, &payload)).expect("staged");
    assert!(log.staged_bytes() > payload.len());
    log.write().expect("written");
    log.sync().expect("synced");
    assert_eq!(location.segment, 2);
    assert!(log.staged.buffer.capacity() <= BUFFER_BYTES_KEPT);
    assert!(log.reader().read(location).expect("read").payload == payload);
    log.stage(&record(3, b"behind")).expect("staged");
    log.write().expect("written");
    assert_eq!(log.end().segment, 3);
    fs.crash(Loss::Everything);
    let (_, recovery, seen) = open(&fs, dir);
    assert_eq!(seen, [1, 2]);
    assert_eq!(recovery.segments, 3);
}

#[test]
fn an_empty_record_and_an_empty_write_are_fine() {
    let fs = MemFileSystem::new();
    let (mut log, _, _) = open(&fs, Path::new("/log"));
    log.write().expect("nothing to write");
    log.sync().expect("nothing to sync");
    let empty = Record {
        kind: 0,
        number: 0,
        key: b"",
        payload: b"",
    };
    let location = log.stage(&empty).expect("staged");
    log.write().expect("written");
    let read = log.reader().read(location).expect("read");
    assert_eq!(
        (read.kind, read.number, read.key.len(), read.payload.len()),
        (0, 0, 0, 0)
    );
}

#[test]
fn a_payload_that_looks_like_a_group_is_not_taken_for_one() {
    let fs = MemFileSystem::new();
    let dir = Path::new("/log");
    let (mut log, _, _) = open(&fs, dir);
    log.stage(&record(1, b"first")).expect("staged");
    log.write().expect("written");
    // The log's own bytes as a payload, at every offset to a sector.
    let copy = fs.content(&dir.join("00000001.log")).expect("there");
    for shift in 0..64 {
        let payload = [vec![0; shift * 8], copy.clone()].concat();
        log.stage(&record(2 + shift as u64, &payload))
            .expect("staged");
        log.write().expect("written");
    }
    log.sync().expect("synced");
    let path = dir.join("00000001.log");
    let before = open(&fs, dir).2;
    // Without the headers of their groups, no payload becomes a group in their place.
    assert!(fs.flip_bit(&path, 1536, 0));
    let (_, recovery, seen) = open(&fs, dir);
    let expected: Vec<u64> = before
        .iter()
        .copied()
        .filter(|number| *number != 2)
        .collect();
    assert_eq!(seen, expected);
    assert_eq!(recovery.damaged.len(), 1);
}

#[test]
fn a_format_of_the_future_is_refused_by_name() {
    let fs = MemFileSystem::new();
    let dir = Path::new("/log");
    drop(open(&fs, dir));
    let file = fs.open(&dir.join("00000001.log")).expect("there");
    let mut header = [0; 512];
    file.read_at(&mut header, 0).expect("read");
    header[8] = 2;
    let checksum = crc32c::crc32c(&header[..40]);
    header[40..44].copy_from_slice(&checksum.to_le_bytes());
    file.write_all_at(&header, 0).expect("written");
    let opened = Log::open(Arc::new(fs), dir, OPTIONS, &mut |_, _| Ok(()));
    let error = opened.err().expect("refused").to_string();
    assert!(
        error.contains("00000001.log") && error.contains("version 2"),
        "{error}"
    );
}

#[test]
fn an_error_of_visit_ends_the_opening() {
    let fs = MemFileSystem::new();
    let dir = Path::new("/log");
    let (mut log, _, _) = open(&fs, dir);
    log.stage(&record(1, b"x")).expect("staged");
    log.write().expect("written");
    let opened = Log::open(Arc::new(fs), dir, OPTIONS, &mut |_, _| {
        Err(LogError::Poisoned)
    });
    assert!(matches!(opened, Err(LogError::Poisoned)));
}

#[test]
fn salts_differ_by_segment_and_by_opening() {
    let mut salts: Vec<u64> = (0..10)
        .flat_map(|salt| (1..100).map(move |number| segment_salt(salt, number)))
        .collect();
    salts.sort_unstable();
    salts.dedup();
    assert_eq!(salts.len(), 990);
}

/// Opens the log with the smallest segments, and expects no damage.
fn open_small(fs: &MemFileSystem) -> (Log, Vec<u64>) {
    let options = LogOptions {
        segment_bytes: 4 << 10,
        ..OPTIONS
    };
    let mut seen = Vec::new();
    let disk = Arc::new(fs.clone());
    let (log, recovery) = Log::open(disk, Path::new("/log"), options, &mut |_, record| {
        seen.push(record.number);
        Ok(())
    })
    .expect("opened");
    assert_eq!(recovery.damaged, []);
    (log, seen)
}

/// Five segments of one record each.
fn five_segments() -> (MemFileSystem, Log) {
    let fs = MemFileSystem::new();
    let (mut log, _) = open_small(&fs);
    for number in 1..=5 {
        log.stage(&record(number, &[7; 3000])).expect("staged");
        log.write().expect("written");
    }
    log.sync().expect("synced");
    assert_eq!(log.segments().len(), 5);
    (fs, log)
}

#[test]
fn removing_segments_is_all_or_nothing_through_any_failure_and_crash() {
    let whole: Vec<u64> = (1..=5).collect();
    for fault in [Fault::Io, Fault::ShortWrite, Fault::NoSpace] {
        for head in [true, false] {
            for call in 0.. {
                let (fs, mut log) = five_segments();
                let left: &[u64] = if head { &[4, 5] } else { &[1, 3, 4, 5] };
                fs.fail(Operation::Any, call, fault);
                let done = match head {
                    true => log.drop_head(4).is_ok(),
                    false => log.retire(2).is_ok() && log.remover().remove(2).is_ok(),
                };
                fs.heal();
                for seed in 0..12 {
                    let fs = fs.fork();
                    if seed > 0 {
                        fs.crash(Loss::Random(seed));
                    }
                    let (_, seen) = open_small(&fs);
                    assert!(seen == left || !done && seen == whole, "{call} {seen:?}");
                    fs.crash(Loss::Everything);
                    let (log, again) = open_small(&fs);
                    assert_eq!(seen, again, "what was recovered is durable");
                    assert_eq!(log.segments().len(), seen.len());
                    let names = fs.list(Path::new("/log")).expect("listed");
                    assert_eq!(names.len(), seen.len(), "{names:?}");
                }
                if done && call > 30 {
                    break;
                }
            }
        }
    }
}

#[test]
fn a_segment_whose_name_is_not_durable_is_not_trusted() {
    let fs = MemFileSystem::new();
    // The first is that of the directory as it was found.
    fs.fail(Operation::SyncDir, 1, Fault::Io);
    let disk = Arc::new(fs.clone());
    let opened = Log::open(disk, Path::new("/log"), OPTIONS, &mut |_, _| Ok(()));
    assert!(matches!(opened, Err(LogError::Io { .. })));
    let (mut log, _) = open_small(&fs);
    let record = Record {
        kind: 1,
        number: 7,
        key: b"",
        payload: b"x",
    };
    log.stage(&record).expect("staged");
    log.write().expect("written");
    log.sync().expect("synced");
    fs.crash(Loss::Everything);
    assert_eq!(open_small(&fs).1, [7]);
}
