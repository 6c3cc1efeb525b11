//! The write modes of both engines behind the append thread, on the disk below the target
//! directory.
//!
//! A member without its network: `1` and `64` writers are threads that each hand the append thread
//! a record, and the next one when the answer has come. What waits together is committed together,
//! as in a member. An iteration is one record of each writer, and nothing is spared: in mode `sync`
//! an answer means that `fdatasync` has returned. `lone` is what the disk itself needs for a small
//! durable write: an append of 4 KiB and an `fdatasync`.
//!
//! What one measurement leaves behind must not be paid for by the next one. So each ends with a
//! sync of the file system, and the files of engine `files` are removed when all is measured: ext4
//! gives no inode away again for some minutes after its file was removed, and looks at each of them
//! whenever it makes a file, which made stores up to ten times as slow. For the same reason a
//! second run within five minutes finds `files` slower.

use std::fs::File;
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput};
use crossbeam_channel::bounded;
use tempfile::TempDir;
use tolerex::clock::{Clock, SystemClock};
use tolerex::disk::fs::{FileSystem, OsFileSystem};
use tolerex::disk::log::LogOptions;
use tolerex::ids::{CallId, Fence, Key, Revision};
use tolerex::member::Limits;
use tolerex::member::append::{AppendQueue, Appender, Job, Operation};
use tolerex::rpc::message::{Response, StoreRecord, StoreRequest, StoreResult};
use tolerex::storage::opening::{self, StoreOptions};
use tolerex::storage::{EngineKind, WriteMode};
use tolerex::threads::{self, StopSignal, Thread};

const SIZES: [usize; 3] = [100, 1 << 10, 64 << 10];
const WRITERS: [u64; 2] = [1, 64];

const MODES: [(EngineKind, WriteMode); 6] = [
    (EngineKind::Log, WriteMode::Sync),
    (EngineKind::Log, WriteMode::Unbuffered),
    (EngineKind::Log, WriteMode::Buffered),
    (EngineKind::Files, WriteMode::Sync),
    (EngineKind::Files, WriteMode::Unbuffered),
    (EngineKind::Files, WriteMode::Buffered),
];

const FENCE: Fence = Fence { term: 1, link: 1 };

/// A store as a member runs it: the append thread, and the one that fills segments ahead. Nothing
/// is released here, so there is nothing to compact.
struct Store {
    queue: Arc<AppendQueue>,
    /// The next record's number.
    next: Arc<AtomicU64>,
    threads: Vec<Thread>,
    stop: StopSignal,
}

impl Store {
    fn open(dir: &TempDir, engine: EngineKind, io: WriteMode) -> Store {
        let fs: Arc<dyn FileSystem> = Arc::new(OsFileSystem);
        let options = StoreOptions {
            engine,
            io,
            log: LogOptions::default(),
        };
        let store = opening::open(&fs, dir.path(), &options).expect("an empty directory");
        let limits = Limits::default();
        let (appender, queue) = Appender::new(
            store.engine,
            FENCE,
            (fs, dir.path().join("fence")),
            SystemClock::shared(),
            (limits.append_queue_requests, limits.append_queue_bytes),
        );
        let append = move || appender.run().expect("the disk works");
        let mut threads = vec![threads::spawn("append", append).expect("a thread")];
        let stop = StopSignal::default();
        if let Some(filler) = store.filler {
            let stop = stop.clone();
            threads.push(threads::spawn("fill", move || filler.run(&stop)).expect("a thread"));
        }
        Store {
            queue: Arc::new(queue),
            next: Arc::default(),
            threads,
            stop,
        }
    }

    /// The time in which `writers` threads have `records` records acknowledged, all together.
    fn write(&self, writers: u64, records: u64, payload: &Bytes) -> Duration {
        let end = self.next.load(Ordering::Relaxed) + records;
        let begin = Arc::new(Barrier::new(writers as usize + 1));
        let start_one = |_| {
            let (queue, next) = (Arc::clone(&self.queue), Arc::clone(&self.next));
            let (begin, payload) = (Arc::clone(&begin), Bytes::copy_from_slice(payload));
            let body = move || {
                begin.wait();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= end {
                        break;
                    }
                    store(&queue, number, &payload);
                }
            };
            threads::spawn("writer", body).expect("a thread")
        };
        let threads: Vec<Thread> = (0..writers).map(start_one).collect();
        let clock = SystemClock::new();
        begin.wait();
        let start = clock.now();
        threads.into_iter().for_each(Thread::join);
        clock.now().since(start)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.queue.close();
        self.stop.stop();
        self.threads.drain(..).for_each(Thread::join);
    }
}

/// Stores one record and waits for its acknowledgement.
fn store(queue: &AppendQueue, number: u64, payload: &Bytes) {
    let (sender, answer) = bounded(1);
    let record = StoreRecord {
        revision: Revision::new(1, number),
        key: Key::Id(number),
        payload: payload.clone(),
    };
    let job = Job {
        operation: Operation::Store(StoreRequest {
            fence: FENCE,
            records: Arc::new(vec![record]),
        }),
        call: CallId(number),
        from: "leader-1".into(),
        bytes: payload.len(),
        answer: Box::new(move |response| sender.send(response).expect("it is waited for")),
    };
    assert!(queue.push(job).is_ok(), "the queue has room for all");
    let stored = Response::Store(vec![StoreResult::Stored]);
    assert_eq!(answer.recv().expect("an answer"), stored);
}

/// A directory on the disk that the build uses: the system's temporary one may be in memory.
fn directory() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory")
}

/// Lets the disk come to rest.
fn settle() {
    let dir = File::open(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    rustix::fs::syncfs(&dir).expect("the disk works");
}

pub fn all(criterion: &mut Criterion) {
    let mut dirs = Vec::new();
    lone(criterion);
    for size in SIZES {
        let payload = Bytes::from(vec![b'x'; size]);
        for writers in WRITERS {
            let mut group = criterion.benchmark_group(format!("disk/{size}B/{writers}"));
            group.throughput(Throughput::Elements(writers));
            // As many iterations in each sample: a sample of one would have no neighbours.
            group.sampling_mode(SamplingMode::Flat);
            for (engine, io) in MODES {
                let name = format!("{engine}-{io}");
                group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
                    let dir = directory();
                    let store = Store::open(&dir, engine, io);
                    bencher.iter_custom(|rounds| store.write(writers, rounds * writers, &payload));
                    drop(store);
                    match engine {
                        EngineKind::Log => drop(dir),
                        EngineKind::Files => dirs.push(dir),
                    }
                    settle();
                });
            }
            group.finish();
        }
    }
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
