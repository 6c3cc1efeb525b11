//! The append thread and its queue: stores and releases in one order, a group at a time.
//!
//! Owns the engine's write side, the replica core and the fence file. Whatever waits in the queue
//! makes up the next group: the busier the member, the larger the groups, the fewer syncs a record.
//! A group's order: stage all, persist the fence if raised (R10), commit, then send the answers.
//! When a step fails nothing of the group is answered, and the thread ends with the error. In the
//! write mode `buffered` it also hands the engine's buffer to the system in time.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Sender;
use log::Level;
use parking_lot::RwLock;

use crate::clock::{Clock, Instant};
use crate::disk::atomic_file;
use crate::disk::error::LogError;
use crate::disk::fs::FileSystem;
use crate::error::Shortage;
use crate::faults::{self, Fault};
use crate::ids::{CallId, Fence};
use crate::logging;
use crate::replica::core::Replica;
use crate::replica::fence;
use crate::rpc::message::{Refusal, ReleaseRequest, Response, StoreRequest, StoreResult};
use crate::storage::buffer::FLUSH_INTERVAL;
use crate::storage::compaction::Step;
use crate::storage::{Engine, Fatal};
use crate::threads::wakeups;

mod queue;

pub use self::queue::AppendQueue;
use self::queue::{Queue, Woken, Work};

/// Without a request for this long, the known-synced offset is made durable, so that a crash then
/// leaves no doubt about any record. A tenth of it would add syncs between the requests of a slow
/// client, ten times it leaves more to rewrite after a crash.
const IDLE_AFTER: Duration = Duration::from_millis(100);

/// How often the engine's paths are compared with its files while nothing is stored: a removed
/// directory is noticed within that, as a heartbeat of a leader's view. Each is a system call.
const IN_PLACE_INTERVAL: Duration = Duration::from_secs(1);

/// A group takes no more requests from here on: some 40 ms of writing at 200 MB/s. More would make
/// its first request wait for its last, less would sync more often for large messages.
const GROUP_BYTES_MAX: usize = 8 << 20;

/// A group takes no more requests than this, for the same reason.
const GROUP_REQUESTS_MAX: usize = 1024;

/// How a request is answered.
pub type Answer = Box<dyn FnOnce(Response) + Send>;

/// A request for the append thread.
pub struct Job {
    /// What to do.
    pub operation: Operation,
    /// Which call this is, for the log.
    pub call: CallId,
    /// Who asks, for the log.
    pub from: Arc<str>,
    /// Size of the request, in bytes.
    pub bytes: usize,
    /// Takes the answer; not called if the member fails first.
    pub answer: Answer,
}

/// What changes the store.
pub enum Operation {
    /// Store records.
    Store(StoreRequest),
    /// Forget records.
    Release(ReleaseRequest),
}

/// The body of the append thread.
pub struct Appender {
    engine: Box<dyn Engine>,
    replica: Replica<Ticket>,
    /// The file system and the file of the fence.
    fence_file: (Arc<dyn FileSystem>, PathBuf),
    /// The highest durable fence, for the readers to compare fetches with. Written here alone.
    shared_fence: Arc<RwLock<Fence>>,
    queue: Arc<Queue>,
    /// Whether the last group that was refused for want of space has been the last word.
    full: bool,
    /// Whether the last request was refused: more of them are no news.
    refusing: bool,
    clock: Arc<dyn Clock>,
    /// When the engine's buffer must be flushed, if it holds anything.
    flush_at: Option<Instant>,
    /// When nothing was asked for a while; `None` once the engine was told so.
    idle_at: Option<Instant>,
}

/// What is needed to answer a request and to tell about it.
struct Ticket {
    answer: Answer,
    call: CallId,
    from: Arc<str>,
    fence: Fence,
    /// Records or revisions named.
    count: usize,
}

impl Appender {
    /// An appender and its queue, which has `limits`: so many requests, of so many bytes.
    pub fn new(
        engine: Box<dyn Engine>,
        fence: Fence,
        fence_file: (Arc<dyn FileSystem>, PathBuf),
        clock: Arc<dyn Clock>,
        limits: (usize, usize),
    ) -> (Appender, AppendQueue) {
        let (queue, sending) = Queue::new(Arc::clone(&clock), limits);
        let idle_at = Some(clock.now() + IDLE_AFTER);
        let appender = Appender {
            engine,
            replica: Replica::new(fence),
            fence_file,
            shared_fence: Arc::new(RwLock::new(fence)),
            queue,
            full: false,
            refusing: false,
            clock,
            flush_at: None,
            idle_at,
        };
        (appender, sending)
    }

    /// The highest durable fence, as fetches are compared with it.
    pub fn shared_fence(&self) -> Arc<RwLock<Fence>> {
        Arc::clone(&self.shared_fence)
    }

    /// Executes requests until the queue is closed and empty, then leaves the log synced to its
    /// end.
    pub fn run(self) -> Result<(), Fatal> {
        let queue = Arc::clone(&self.queue);
        let mut appender = Box::new(self);
        loop {
            if appender.step()? {
                continue;
            }
            if queue.has_ended() {
                return appender.engine.close();
            }
            appender.look_at_time()?;
            let wake_at = appender.wake_at();
            appender = match queue.sleep(appender, wake_at) {
                Woken::Go(appender) => appender,
                Woken::Failed(failure) => return Err(failure),
            };
        }
    }

    /// Executes what waits as one group, or one step of compaction; false if nothing waits.
    pub fn step(&mut self) -> Result<bool, Fatal> {
        let Some(work) = self.queue.take() else {
            return Ok(false);
        };
        let begun = self.clock.now();
        self.execute(work)?;
        self.queue.group_ended(begun);
        self.idle_at = Some(self.clock.now() + IDLE_AFTER);
        Ok(true)
    }

    /// When there is something to do although nothing waits.
    fn wake_at(&self) -> Instant {
        let at = self.flush_at.or(self.idle_at);
        at.unwrap_or_else(|| self.clock.now() + IN_PLACE_INTERVAL)
    }

    /// Called when no request waits: does what is due at this time.
    fn look_at_time(&mut self) -> Result<(), Fatal> {
        let now = self.clock.now();
        if self.flush_at.is_some() {
            return self.flush_in_time();
        }
        match self.idle_at {
            None => self.engine.check_in_place(),
            Some(at) if at <= now => {
                self.idle_at = None;
                self.engine.idle()
            }
            Some(_) => Ok(()),
        }
    }

    /// Nothing was asked for a while: makes the known-synced offset durable.
    pub fn idle(&mut self) -> Result<(), Fatal> {
        self.engine.idle()
    }

    fn execute(&mut self, work: Work) -> Result<(), Fatal> {
        match work {
            Work::Request(job) => {
                self.execute_group(job)?;
                self.flush_in_time()
            }
            Work::Compact(step, done) => self.compact(&step, &done),
        }
    }

    /// Flushes the engine's buffer if it is time, and notes when it will be.
    fn flush_in_time(&mut self) -> Result<(), Fatal> {
        let now = self.clock.now();
        if self.flush_at.is_some_and(|at| at <= now) {
            self.engine.flush()?;
            self.flush_at = None;
        }
        self.flush_at = match self.engine.is_buffering() {
            true => self.flush_at.or(Some(now + FLUSH_INTERVAL)),
            false => None,
        };
        Ok(())
    }

    /// Does a step of compaction. Between groups, as the engine demands.
    fn compact(&mut self, step: &Step, done: &Sender<bool>) -> Result<(), Fatal> {
        let outcome = self.engine.compact(step)?;
        // It waits for the answer, or it is not there any more.
        _ = done.try_send(outcome);
        Ok(())
    }

    /// Executes `first`, and the requests that are queued after it, as one group with one sync.
    fn execute_group(&mut self, first: Job) -> Result<(), Fatal> {
        let (mut requests, mut bytes) = (1, first.bytes);
        self.stage(first)?;
        while requests < GROUP_REQUESTS_MAX && bytes < GROUP_BYTES_MAX {
            let Some(job) = self.queue.take_request() else {
                break;
            };
            requests += 1;
            bytes += job.bytes;
            self.stage(job)?;
        }
        let saved = match self.replica.unsaved_fence() {
            Some(fence) => {
                // A directory that was removed is told better than by a file that cannot be made.
                self.engine.check_in_place()?;
                self.persist(fence)?
            }
            None => Ok(()),
        };
        let engine = self.engine.as_mut();
        let answers = match saved {
            Ok(()) => self.replica.commit(engine)?,
            Err(Shortage::Space) => self.replica.refuse(engine, &Refusal::NoSpace),
            Err(shortage) => {
                let reason = format!("the fence cannot be recorded: {shortage}");
                self.replica.refuse(engine, &Refusal::Other(reason))
            }
        };
        // The answers of a group leave in one write for each connection.
        let _held = wakeups::hold();
        for (ticket, mut response) in answers {
            self.note_space(&response);
            self.name_shortage(&mut response);
            let is_refused = matches!(response, Response::Refused(_));
            let is_news = !std::mem::replace(&mut self.refusing, is_refused);
            ticket.answer(response, is_news);
        }
        Ok(())
    }

    fn stage(&mut self, job: Job) -> Result<(), Fatal> {
        let (fence, count) = match &job.operation {
            Operation::Store(request) => (request.fence, request.records.len()),
            Operation::Release(request) => (request.fence, request.revisions.len()),
        };
        let from = Arc::clone(&job.from);
        let ticket = Ticket {
            answer: job.answer,
            call: job.call,
            from: job.from,
            fence,
            count,
        };
        let engine = self.engine.as_mut();
        match &job.operation {
            Operation::Store(request) => self.replica.store(engine, request, &from, ticket),
            Operation::Release(request) => self.replica.release(engine, request, &from, ticket),
        }
    }

    /// Makes a raised fence durable, then known to the readers, unless the system refuses it now.
    fn persist(&mut self, fence: Fence) -> Result<Result<(), Shortage>, Fatal> {
        let (fs, path) = &self.fence_file;
        let written = match faults::has(Fault::FenceNotPersisted) {
            true => Ok(()),
            false => atomic_file::write(fs.as_ref(), path, &fence::encode(fence)),
        };
        match written {
            Ok(()) => {}
            Err(LogError::Refused(shortage)) => return Ok(Err(shortage)),
            Err(error) => {
                return Err(Fatal {
                    context: format!("cannot save fence {fence}"),
                    source: io::Error::other(error),
                });
            }
        }
        self.replica.persisted(fence);
        *self.shared_fence.write() = fence;
        log::info!("fence raised to {fence}");
        Ok(Ok(()))
    }

    /// Says once when stores begin to be refused, and once when they are taken again.
    fn note_space(&mut self, response: &Response) {
        let Response::Store(results) = response else {
            return;
        };
        if results.contains(&StoreResult::DiskFull) {
            if !self.full {
                let shortage = self.engine.refusal();
                log::error!("{shortage}: stores are refused, releases and fetches go on");
            }
            self.full = true;
        } else if self.full && results.contains(&StoreResult::Stored) {
            log::info!("stores are taken again");
            self.full = false;
        }
    }
}

impl Appender {
    /// Only a full disk is called one.
    fn name_shortage(&self, response: &mut Response) {
        let Response::Store(results) = response else {
            return;
        };
        if results.contains(&StoreResult::DiskFull) && self.engine.refusal() != Shortage::Space {
            for result in results
                .iter_mut()
                .filter(|result| **result == StoreResult::DiskFull)
            {
                *result = StoreResult::Refused;
            }
        }
    }
}

impl Drop for Appender {
    /// Refuses the requests that are queued, and all later ones.
    fn drop(&mut self) {
        self.queue.end();
    }
}

impl Ticket {
    /// One line for the request, then its answer. A refusal is a warning if it `is_news`.
    fn answer(self, response: Response, is_news: bool) {
        let (call, from, count) = (self.call, &self.from, self.count);
        let Fence { term, link } = self.fence;
        match &response {
            Response::Store(results) => {
                let stored = count_of(results, StoreResult::Stored);
                log::debug!(
                    "call={call} from={from} store records={count} stored={stored} \
                     term={term} link={link}"
                );
                let conflicts = count_of(results, StoreResult::Conflict);
                if conflicts > 0
                    && let Some(more) = logging::seldom("revision conflict")
                {
                    let what = format_args!("{conflicts} revisions exist otherwise");
                    log::error!("call={call} from={from}: {what}{more}");
                }
            }
            Response::Release => {
                log::debug!(
                    "call={call} from={from} release records={count} term={term} link={link}"
                );
            }
            Response::Refused(refusal) => {
                let level = if is_news { Level::Warn } else { Level::Debug };
                log::log!(
                    level,
                    "call={call} from={from} term={term} link={link}: refused: {refusal}"
                );
            }
            Response::Fetch(_)
            | Response::Holds(_)
            | Response::Register
            | Response::Heartbeat(_)
            | Response::Snapshot
            | Response::Join(_)
            | Response::Forward(_)
            | Response::Standing(_) => {
                unreachable!("the replica core answers stores and releases")
            }
        }
        (self.answer)(response);
    }
}

fn count_of(results: &[StoreResult], result: StoreResult) -> usize {
    results.iter().filter(|other| **other == result).count()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    use std::thread;

    use bytes::Bytes;
    use crossbeam_channel::{Receiver, bounded};

    use super::*;
    use crate::clock::{self, ManualClock, SystemClock};
    use crate::disk::fs::OsFileSystem;
    use crate::ids::{Key, Revision};
    use crate::rpc::message::StoreRecord;
    use crate::storage::model::ModelEngine;
    use crate::storage::{Committed, Reader, Staged};

    /// A model engine that looks at the fence file when it commits, and can fail.
    struct ProbeEngine {
        model: ModelEngine,
        fence_path: PathBuf,
        /// Told the fence on disk at each commit.
        commits: Sender<Option<Fence>>,
        /// Told the thread of each commit.
        threads: Sender<thread::ThreadId>,
        /// Told that nothing was asked for a while.
        idles: Sender<()>,
        fails: Arc<AtomicBool>,
        /// Advanced at each commit by so many milliseconds.
        clock: Arc<ManualClock>,
        commit_ms: Arc<AtomicU64>,
    }

    impl Engine for ProbeEngine {
        fn store(&mut self, at: Revision, key: &Key, payload: &Bytes) -> Result<Staged, Fatal> {
            self.model.store(at, key, payload)
        }

        fn release(&mut self, revision: Revision) -> Result<(), Fatal> {
            self.model.release(revision)
        }

        fn commit(&mut self) -> Result<Committed, Fatal> {
            let bytes = atomic_file::read(&OsFileSystem, &self.fence_path).unwrap();
            let fence = bytes.and_then(|bytes| fence::decode(&bytes));
            _ = self.commits.try_send(fence);
            _ = self.threads.try_send(thread::current().id());
            let commit_ms = self.commit_ms.load(Ordering::Relaxed);
            self.clock.advance(Duration::from_millis(commit_ms));
            if self.fails.load(Ordering::Relaxed) {
                return Err(Fatal {
                    context: "cannot sync a group".to_owned(),
                    source: io::Error::other("the disk is gone"),
                });
            }
            self.model.commit()
        }

        fn discard(&mut self) {
            self.model.discard();
        }

        fn idle(&mut self) -> Result<(), Fatal> {
            _ = self.idles.try_send(());
            self.model.idle()
        }

        fn reader(&self) -> Arc<dyn Reader> {
            self.model.reader()
        }
    }

    struct Rig {
        queue: AppendQueue,
        commits: Receiver<Option<Fence>>,
        threads: Receiver<thread::ThreadId>,
        idles: Receiver<()>,
        fails: Arc<AtomicBool>,
        clock: Arc<ManualClock>,
        commit_ms: Arc<AtomicU64>,
        answers: (Sender<Response>, Receiver<Response>),
        _dir: tempfile::TempDir,
    }

    fn rig(fails: bool) -> (Rig, Appender) {
        let dir = tempfile::tempdir().unwrap();
        let fence_path = dir.path().join("fence");
        let (sender, commits) = bounded(100);
        let (thread_sender, threads) = bounded(1000);
        let (idle_sender, idles) = bounded(1);
        let fails = Arc::new(AtomicBool::new(fails));
        let (clock, commit_ms) = (Arc::<ManualClock>::default(), Arc::<AtomicU64>::default());
        let engine = Box::new(ProbeEngine {
            model: ModelEngine::default(),
            fence_path: fence_path.clone(),
            commits: sender,
            threads: thread_sender,
            idles: idle_sender,
            fails: Arc::clone(&fails),
            clock: Arc::clone(&clock),
            commit_ms: Arc::clone(&commit_ms),
        });
        let file: (Arc<dyn FileSystem>, PathBuf) = (Arc::new(OsFileSystem), fence_path);
        let (appender, queue) = Appender::new(engine, fence(1, 0), file, clock.clone(), (4, 1000));
        let rig = Rig {
            queue,
            commits,
            threads,
            idles,
            fails,
            clock,
            commit_ms,
            answers: bounded(100),
            _dir: dir,
        };
        (rig, appender)
    }

    fn fence(term: u64, link: u64) -> Fence {
        Fence { term, link }
    }

    fn job(rig: &Rig, fence: Fence, sequence: u64, bytes: usize) -> Job {
        let record = StoreRecord {
            revision: Revision::new(fence.term, sequence),
            key: Key::Id(sequence),
            payload: Bytes::from_static(b"x"),
        };
        let records = Arc::new(vec![record]);
        let answers = rig.answers.0.clone();
        Job {
            operation: Operation::Store(StoreRequest { fence, records }),
            call: CallId(sequence),
            from: "leader-1".into(),
            bytes,
            answer: Box::new(move |response| answers.send(response).unwrap()),
        }
    }

    #[test]
    fn what_waits_is_one_group_and_its_fence_is_durable_before_the_effect() {
        let (rig, appender) = rig(false);
        for sequence in 1..=3 {
            let job = job(&rig, fence(2, sequence), sequence, 10);
            assert!(rig.queue.push(job).is_ok());
        }
        rig.queue.close();
        assert!(rig.queue.push(job(&rig, fence(2, 9), 9, 10)).is_err());
        let shared = appender.shared_fence();
        appender.run().unwrap();
        assert_eq!(
            rig.commits.try_iter().collect::<Vec<_>>(),
            [Some(fence(2, 3))]
        );
        assert_eq!(*shared.read(), fence(2, 3));
        let stored = Response::Store(vec![StoreResult::Stored]);
        assert_eq!(
            rig.answers.1.try_iter().collect::<Vec<_>>(),
            vec![stored; 3]
        );
    }

    #[test]
    fn nothing_is_answered_after_a_failed_commit() {
        let (rig, appender) = rig(true);
        assert!(rig.queue.push(job(&rig, fence(1, 1), 1, 10)).is_ok());
        rig.queue.close();
        assert!(appender.run().is_err());
        assert_eq!(rig.answers.1.try_iter().count(), 0);
    }

    #[test]
    fn the_queue_is_bounded_in_requests_and_bytes() {
        let (rig, _appender) = rig(false);
        assert!(rig.queue.push(job(&rig, fence(1, 1), 1, 5000)).is_ok());
        assert!(rig.queue.push(job(&rig, fence(1, 1), 2, 1)).is_err());
        let (rig, _appender) = self::rig(false);
        for sequence in 1..=4 {
            assert!(rig.queue.push(job(&rig, fence(1, 1), sequence, 1)).is_ok());
        }
        assert!(rig.queue.push(job(&rig, fence(1, 1), 5, 1)).is_err());
    }

    const SOON: Duration = Duration::from_secs(5);

    /// A rig whose appender runs on its thread.
    struct Running {
        rig: Rig,
        thread: crate::threads::Thread,
        /// How the thread ended.
        ended: Receiver<Result<(), Fatal>>,
        last: u64,
    }

    impl Running {
        /// After so many requests without a fetch that readers execute the next ones.
        fn start() -> Running {
            let (rig, appender) = rig(false);
            let (sender, ended) = bounded(1);
            let run = move || sender.send(appender.run()).unwrap();
            let mut running = Running {
                rig,
                thread: crate::threads::spawn("append", run).unwrap(),
                ended,
                last: 0,
            };
            for _ in 0..100 {
                running.store(1);
            }
            running
        }

        fn close(self) -> Result<(), Fatal> {
            self.rig.queue.close();
            self.thread.join();
            self.ended.recv().unwrap()
        }

        fn wait_for_rest(&self) {
            let clock = SystemClock::shared();
            let give_up = clock.now() + SOON;
            while !self.rig.queue.is_at_rest() {
                assert!(clock.now() < give_up, "the append thread does not rest");
                clock::sleep(Duration::from_millis(1));
            }
        }

        fn add(&mut self, requests: u64) {
            for _ in 0..requests {
                self.last += 1;
                let job = job(&self.rig, fence(2, 1), self.last, 10);
                assert!(self.rig.queue.add(job).is_ok());
            }
        }

        /// Stores one group as a reader does, while the append thread rests; whether this thread
        /// executed it.
        fn store(&mut self, requests: u64) -> bool {
            self.wait_for_rest();
            self.add(requests);
            self.rig.queue.execute();
            let stored = Response::Store(vec![StoreResult::Stored]);
            for _ in 0..requests {
                assert_eq!(self.rig.answers.1.recv_timeout(SOON), Ok(stored.clone()));
            }
            let executor = self.rig.threads.recv_timeout(SOON).expect("a commit");
            assert!(self.rig.threads.is_empty(), "one group");
            executor == thread::current().id()
        }
    }

    #[test]
    fn the_requests_of_one_read_are_executed_by_its_reader_without_a_wake_up() {
        let mut running = Running::start();
        let before = running.rig.queue.wakes();
        assert!((1..=4).all(|requests| running.store(requests)));
        assert_eq!(running.rig.queue.wakes(), before);
        assert!(running.rig.idles.is_empty());
        running.rig.clock.advance(IDLE_AFTER);
        running.rig.idles.recv_timeout(SOON).expect("it is idle");
        assert!(running.store(1), "after it slept for long, too");
        running.rig.clock.advance(IDLE_AFTER);
        running.rig.idles.recv_timeout(SOON).expect("idle again");
        assert!(running.close().is_ok());
    }

    #[test]
    fn while_fetches_come_or_the_disk_is_slow_the_append_thread_executes() {
        let mut running = Running::start();
        running.wait_for_rest();
        let before = running.rig.queue.wakes();
        running.rig.queue.note_fetch();
        assert!(!running.store(3));
        assert_eq!(running.rig.queue.wakes(), before + 1, "for one read");
        for _ in 0..100 {
            running.store(1);
        }
        assert!(running.store(1));
        running.rig.commit_ms.store(6, Ordering::Relaxed);
        assert!(running.store(1), "it is not known yet");
        assert!(!running.store(1));
        running.rig.commit_ms.store(0, Ordering::Relaxed);
        assert!(!running.store(1), "it was slow before");
        assert!(running.store(1));
        assert!(running.close().is_ok());
    }

    #[test]
    fn a_commit_that_fails_on_a_reader_ends_the_append_thread() {
        let mut running = Running::start();
        running.wait_for_rest();
        running.rig.fails.store(true, Ordering::Relaxed);
        running.add(2);
        running.rig.queue.execute();
        assert!(running.rig.answers.1.is_empty());
        let job = job(&running.rig, fence(2, 1), 1000, 10);
        assert!(running.rig.queue.push(job).is_err());
        assert!(running.close().is_err());
    }
}
