//! The write modes of the storage engines, on the disk below the target directory.
//!
//! `1` is one writer: a record, then its commit. `64` is 64 writers: what the append thread finds
//! in its queue makes up one group, so 64 records and one commit. Nothing is spared: a commit of
//! mode `sync` returns when `fdatasync` has. `lone` is what the disk itself needs for a small
//! durable write: an append of 4 KiB and an `fdatasync`.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput};
use tempfile::TempDir;
use tolerex::disk::fs::OsFileSystem;
use tolerex::disk::log::LogOptions;
use tolerex::ids::{Key, Revision};
use tolerex::storage::log_engine::LogEngine;
use tolerex::storage::{Committed, Engine};
use tolerex::threads::{self, StopSignal, Thread};

const SIZES: [usize; 3] = [100, 1 << 10, 64 << 10];
const WRITERS: [u64; 2] = [1, 64];

/// An engine as a member runs it, with the thread that zero-fills its segments.
struct Running {
    engine: Box<dyn Engine>,
    filler: Option<Thread>,
    stop: StopSignal,
}

type Open = fn(&Path) -> Running;

/// Engine and write mode: one line each.
const ENGINES: &[(&str, Open)] = &[("log-sync", open_log)];

fn open_log(dir: &Path) -> Running {
    let opened = LogEngine::open(Arc::new(OsFileSystem), dir, LogOptions::default());
    let (engine, _) = opened.expect("an empty directory");
    let stop = StopSignal::default();
    let filler = engine.filler();
    let fills = stop.clone();
    let filler = threads::spawn("fill", move || filler.run(&fills)).expect("a thread");
    Running {
        engine: Box::new(engine),
        filler: Some(filler),
        stop,
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.stop();
        if let Some(filler) = self.filler.take() {
            filler.join();
        }
    }
}

/// A directory on the disk that the build uses: the system's temporary one may be in memory.
fn directory() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory")
}

pub fn all(criterion: &mut Criterion) {
    lone(criterion);
    for size in SIZES {
        for writers in WRITERS {
            let mut group = criterion.benchmark_group(format!("disk/{size}B/{writers}"));
            group.throughput(Throughput::Elements(writers));
            for (name, open) in ENGINES {
                let payload = Bytes::from(vec![b'x'; size]);
                group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
                    let dir = directory();
                    let mut running = open(dir.path());
                    let mut sequence = 0;
                    bencher.iter(|| commit(&mut *running.engine, &mut sequence, writers, &payload));
                });
            }
            group.finish();
        }
    }
}

/// A group of so many records, brought to the write mode.
fn commit(engine: &mut dyn Engine, sequence: &mut u64, records: u64, payload: &Bytes) {
    for _ in 0..records {
        *sequence += 1;
        let revision = Revision::new(1, *sequence);
        let stored = engine.store(revision, &Key::Id(*sequence), payload);
        stored.expect("the disk works");
    }
    let committed = engine.commit().expect("the disk works");
    assert_eq!(committed, Committed::Done, "there is space on the disk");
}

fn lone(criterion: &mut Criterion) {
    criterion.bench_function("disk/lone 4096B append and fdatasync", |bencher| {
        let dir = directory();
        let mut file = File::create(dir.path().join("lone")).expect("a file");
        let block = [b'x'; 4096];
        bencher.iter(|| {
            file.write_all(&block).expect("the disk works");
            file.sync_data().expect("the disk works");
        });
    });
}
