//! The log of members and of the journal: segment files, records, and the hints beside them.

use std::path::Path;
use std::sync::Arc;

use tolerex::disk::atomic_file;
use tolerex::disk::fs::FileSystem as _;
use tolerex::disk::log::{
    Location, Log, LogError, LogOptions, OwnedRecord, Record, Recovery, SealedSegment,
};
use tolerex::disk::mem::{Loss, MemFileSystem};
use tolerex::disk::record::RECORD_HEADER_BYTES;
use tolerex::disk::segment::SECTOR_BYTES;
use tolerex::storage::hints;
use tolerex::storage::log_engine::LogEngine;

use super::pieces;
use super::splits::Numbers;

const DIR: &str = "/log";
const SEGMENT_BYTES: u64 = 8 << 10;
/// Bytes of a group before its records.
const GROUP_HEADER_BYTES: usize = 48;

fn options(salt: u64) -> LogOptions {
    LogOptions {
        segment_bytes: SEGMENT_BYTES,
        reserve_bytes: 0,
        salt,
    }
}

type Opened = Result<(Log, Recovery, Vec<OwnedRecord>), LogError>;

/// Opens the log; what is visited is what is read (A5).
fn open(fs: &MemFileSystem, salt: u64) -> Opened {
    let mut visited: Vec<Location> = Vec::new();
    let mut seen = Vec::new();
    let opened = Log::open(
        Arc::new(fs.clone()),
        Path::new(DIR),
        options(salt),
        &mut |location, record| {
            visited.push(location);
            seen.push(owned(record));
            Ok(())
        },
    );
    let (log, recovery) = opened?;
    let reader = log.reader();
    for (location, record) in visited.into_iter().zip(&seen) {
        assert_eq!(reader.read(location).as_ref().ok(), Some(record));
    }
    assert_eq!(recovery.records, seen.len() as u64);
    Ok((log, recovery, seen))
}

fn owned(record: &Record<'_>) -> OwnedRecord {
    OwnedRecord {
        kind: record.kind,
        number: record.number,
        key: record.key.to_vec().into(),
        payload: record.payload.to_vec().into(),
    }
}

/// Any bytes as segment files are refused by file and place, or are a log that has the same records
/// when it is opened again, and takes more. A piece is a file: a byte for its number and whether
/// its checksums are put right, so that inputs get behind them, and its bytes.
pub fn check_segment(data: &[u8]) {
    let fs = MemFileSystem::new();
    fs.create_dir_all(Path::new(DIR)).expect("a directory");
    for piece in pieces::of(data) {
        let (mark, bytes) = pieces::byte(piece);
        let mut bytes = bytes.to_vec();
        if mark & 0x80 != 0 {
            seal(&mut bytes);
        }
        let path = Path::new(DIR).join(format!("{:08}.log", mark & 0x0f));
        if fs.exists(&path).expect("looked at") {
            continue;
        }
        let file = fs.create(&path).expect("a file");
        file.write_all_at(&bytes, 0).expect("written");
    }
    fs.sync_everything(Path::new(DIR)).expect("synced");
    match LogEngine::open(Arc::new(fs.fork()), Path::new(DIR), options(5)) {
        Ok(_) => {}
        Err(error) => check_error(&error),
    }
    let seen = match open(&fs, 5) {
        Ok((_, _, seen)) => seen,
        Err(error) => return check_error(&error),
    };
    let (mut log, recovery, again) = open(&fs, 6).expect("opened once");
    assert_eq!(again, seen, "other records at the second opening");
    assert_eq!(recovery.cut, None, "what stays was cut");
    let record = Record {
        kind: 9,
        number: u64::MAX,
        key: b"key",
        payload: b"payload",
    };
    log.stage(&record).expect("a short record");
    log.write().expect("written");
    log.sync().expect("synced");
    let (_, _, mut more) = open(&fs, 7).expect("opened twice");
    assert_eq!(more.pop(), Some(owned(&record)));
    assert_eq!(more, seen);
}

fn check_error(error: &LogError) {
    match error {
        LogError::Damaged { file, .. } | LogError::Version { file, .. } => {
            assert!(file.starts_with(DIR), "{error}");
        }
        other => panic!("damage is told as {other}"),
    }
}

fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn u32_at(bytes: &[u8], at: usize) -> usize {
    let bytes = bytes.get(at..at + 4).and_then(<[u8]>::first_chunk);
    bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes) as usize)
}

/// Puts the checksums of a segment file right, wherever there may be headers and records.
fn seal(bytes: &mut [u8]) {
    for copy in bytes.chunks_mut(SECTOR_BYTES).take(2) {
        if copy.len() >= 44 {
            let checksum = crc32c::crc32c(&copy[..40]);
            put_u32(copy, 40, checksum);
        }
    }
    let Some(salt) = bytes.get(16..24).map(crc32c::crc32c) else {
        return;
    };
    let mut start = 2 * SECTOR_BYTES;
    while start + GROUP_HEADER_BYTES <= bytes.len() {
        if bytes[start..].starts_with(b"TGRP") {
            let body = start + GROUP_HEADER_BYTES;
            let end = body
                .saturating_add(u32_at(bytes, start + 32))
                .min(bytes.len());
            seal_records(&mut bytes[body..end], salt);
            let checksum = crc32c::crc32c_append(salt, &bytes[body..end]);
            put_u32(bytes, start + 40, checksum);
            let checksum = crc32c::crc32c_append(salt, &bytes[start + 8..body]);
            put_u32(bytes, start + 4, checksum);
        }
        start += SECTOR_BYTES;
    }
}

fn seal_records(mut bytes: &mut [u8], salt: u32) {
    while bytes.len() >= RECORD_HEADER_BYTES {
        let key = usize::from(u16::from_le_bytes([bytes[16], bytes[17]]));
        let length = (RECORD_HEADER_BYTES + key).saturating_add(u32_at(bytes, 4));
        let (record, rest) = bytes.split_at_mut(length.min(bytes.len()));
        let checksum = crc32c::crc32c_append(salt, &record[4..]);
        put_u32(record, 0, checksum);
        bytes = rest;
    }
}

/// What is written, a record for each piece, is there again; of it a crash leaves a prefix with all
/// that was synced (A6), and a bit that flips then is reported and never returned (A5).
pub fn check_records(data: &[u8]) {
    let fs = MemFileSystem::new();
    let (mut log, _, _) = open(&fs, 1).expect("a new log");
    let (mut written, mut promised) = (Vec::new(), 0);
    for piece in pieces::of(data) {
        let (mark, rest) = pieces::byte(piece);
        let (number, rest) = pieces::number(rest);
        let (key, payload) = rest.split_at(usize::from(mark >> 2).min(rest.len()));
        let record = Record {
            kind: mark,
            number,
            key,
            payload,
        };
        log.stage(&record).expect("a short record");
        written.push(owned(&record));
        if mark & 1 == 0 {
            log.write().expect("written");
            if mark & 2 == 0 {
                log.sync().expect("synced");
                promised = written.len();
            }
        }
    }
    log.write().expect("written");
    drop(log);
    let (_, _, seen) = open(&fs.fork(), 2).expect("nothing is lost");
    assert_eq!(seen, written);

    let mut numbers = Numbers::of(data);
    fs.crash(Loss::Random(numbers.below(1 << 30) as u64));
    let (_, recovery, seen) = open(&fs, 3).expect("our own log");
    assert_eq!(recovery.damaged, []);
    assert!(written.starts_with(&seen), "not a prefix: {seen:?}");
    assert!(seen.len() >= promised, "what was synced is lost");

    let names = fs.list(Path::new(DIR)).expect("listed");
    let path = Path::new(DIR).join(&names[numbers.below(names.len())]);
    let bytes = fs.content(&path).map_or(0, |bytes| bytes.len());
    if bytes == 0 {
        return;
    }
    fs.flip_bit(&path, numbers.below(bytes) as u64, numbers.below(8) as u8);
    match open(&fs, 4) {
        Ok((_, recovery, left)) => {
            let mut rest = seen.iter();
            let is_known = |record| rest.any(|before| before == record);
            assert!(left.iter().all(is_known), "a record that was not written");
            let is_told = !recovery.damaged.is_empty() || recovery.cut.is_some();
            assert!(left == seen || is_told, "damage is not told");
        }
        Err(error) => check_error(&error),
    }
}

/// The hint of this segment: what is valid names records that can lie there, and is written so;
/// anything else is refused with a place, within its frame and as a file.
pub fn check_hint(data: &[u8]) {
    let segment = SealedSegment {
        number: 3,
        salt: 0x1122_3344_5566_7788,
        end: 4096,
    };
    let dir = Path::new(DIR);
    let path = hints::path(dir, segment.number);
    let fs = MemFileSystem::new();
    fs.create_dir_all(dir).expect("a directory");
    let file = fs.create(&path).expect("a file");
    file.write_all_at(data, 0).expect("written");
    match hints::read(&fs, dir, &segment) {
        Ok(entries) => assert!(entries.is_some(), "the file is there"),
        Err(error) => check_error(&error),
    }
    atomic_file::write(&fs, &path, data).expect("written");
    match hints::read(&fs, dir, &segment) {
        Ok(entries) => {
            let entries = entries.expect("the file is there");
            let mut free_from = 0;
            for Location { offset, length, .. } in entries.iter().map(|entry| entry.location) {
                assert!(free_from <= offset && offset + length <= segment.end);
                free_from = offset + length;
            }
            let before = fs.content(&path);
            hints::write(&fs, dir, &segment, &entries).expect("written");
            assert_eq!(fs.content(&path), before);
        }
        Err(error) => check_error(&error),
    }
}
