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
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
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

/// What the append thread takes from its queue.
enum Work {
    Request(Job),
    /// A step of compaction, and where to tell whether it was done.
    Compact(Step, Sender<bool>),
}

/// What changes the store.
pub enum Operation {
    /// Store records.
    Store(StoreRequest),
    /// Forget records.
    Release(ReleaseRequest),
}

/// The sending side of the append thread's queue, shared by the connections' threads.
pub struct AppendQueue {
    /// None once closed. Guards only itself; a send into the queue never blocks.
    sender: RwLock<Option<Sender<Work>>>,
    /// Bytes of the requests that wait.
    bytes: Arc<AtomicUsize>,
    bytes_max: usize,
}

impl AppendQueue {
    /// Hands a request to the append thread, or gives it back if the queue is full or closed.
    pub fn push(&self, job: Job) -> Result<(), Job> {
        let sender = self.sender.read();
        let Some(sender) = sender.as_ref() else {
            return Err(job);
        };
        let bytes = job.bytes;
        let waiting = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        if waiting > 0 && waiting + bytes > self.bytes_max {
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
            return Err(job);
        }
        sender.try_send(Work::Request(job)).map_err(|error| {
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
            match error.into_inner() {
                Work::Request(job) => job,
                Work::Compact(..) => unreachable!("a request was sent"),
            }
        })
    }

    /// Has the append thread do a step of compaction, between two groups, and waits until it is
    /// done. False if the queue is full or closed, if the step cannot be done now, and if the
    /// thread ends before.
    pub fn compact(&self, step: Step) -> bool {
        let (done, outcome) = crossbeam_channel::bounded(1);
        let sender = self.sender.read().clone();
        let sent = sender.is_some_and(|sender| sender.try_send(Work::Compact(step, done)).is_ok());
        sent && outcome.recv().unwrap_or(false)
    }

    /// Takes no more requests; the append thread ends when it has executed those that wait.
    pub fn close(&self) {
        *self.sender.write() = None;
    }
}

/// The body of the append thread.
pub struct Appender {
    engine: Box<dyn Engine>,
    replica: Replica<Ticket>,
    /// The file system and the file of the fence.
    fence_file: (Arc<dyn FileSystem>, PathBuf),
    /// The highest durable fence, for the readers to compare fetches with. Written here alone.
    shared_fence: Arc<RwLock<Fence>>,
    receiver: Receiver<Work>,
    /// Bytes of the requests that wait, shared with the queue.
    bytes: Arc<AtomicUsize>,
    /// Whether the last group that was refused for want of space has been the last word.
    full: bool,
    /// Whether the last request was refused: more of them are no news.
    refusing: bool,
    clock: Arc<dyn Clock>,
    /// When the engine's buffer must be flushed, if it holds anything.
    flush_at: Option<Instant>,
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
    /// An appender and its queue, of `requests` requests and `bytes_max` bytes.
    pub fn new(
        engine: Box<dyn Engine>,
        fence: Fence,
        fence_file: (Arc<dyn FileSystem>, PathBuf),
        clock: Arc<dyn Clock>,
        (requests, bytes_max): (usize, usize),
    ) -> (Appender, AppendQueue) {
        let (sender, receiver) = crossbeam_channel::bounded(requests);
        let bytes = Arc::new(AtomicUsize::new(0));
        let queue = AppendQueue {
            sender: RwLock::new(Some(sender)),
            bytes: Arc::clone(&bytes),
            bytes_max,
        };
        let appender = Appender {
            engine,
            replica: Replica::new(fence),
            fence_file,
            shared_fence: Arc::new(RwLock::new(fence)),
            receiver,
            bytes,
            full: false,
            refusing: false,
            clock,
            flush_at: None,
        };
        (appender, queue)
    }

    /// The highest durable fence, as fetches are compared with it.
    pub fn shared_fence(&self) -> Arc<RwLock<Fence>> {
        Arc::clone(&self.shared_fence)
    }

    /// Executes requests until the queue is closed and empty, then leaves the log synced to its
    /// end.
    pub fn run(mut self) -> Result<(), Fatal> {
        // Whether nothing happened since the engine was told so last.
        let mut idle = false;
        let mut idle_at = self.clock.now() + IDLE_AFTER;
        loop {
            let wake_at = self.flush_at.or((!idle).then_some(idle_at));
            let wait = match wake_at {
                None => IN_PLACE_INTERVAL,
                Some(at) => at.since(self.clock.now()),
            };
            let received = self.receiver.recv_timeout(wait);
            match received {
                Ok(work) => {
                    self.execute(work)?;
                    (idle, idle_at) = (false, self.clock.now() + IDLE_AFTER);
                }
                Err(RecvTimeoutError::Timeout) if self.flush_at.is_some() => {
                    self.flush_in_time()?;
                }
                Err(RecvTimeoutError::Timeout) if idle => self.engine.check_in_place()?,
                Err(RecvTimeoutError::Timeout) => {
                    self.idle()?;
                    idle = true;
                }
                Err(RecvTimeoutError::Disconnected) => return self.engine.close(),
            }
        }
    }

    /// For whoever steps it by hand: executes what waits as one group; false if nothing waits.
    pub fn step(&mut self) -> Result<bool, Fatal> {
        match self.receiver.try_recv() {
            Ok(work) => self.execute(work).map(|()| true),
            Err(_) => Ok(false),
        }
    }

    /// Nothing was asked for a while: makes the known-synced offset durable.
    pub fn idle(&mut self) -> Result<(), Fatal> {
        self.engine.idle()
    }

    fn execute(&mut self, work: Work) -> Result<(), Fatal> {
        let next = match work {
            Work::Request(job) => {
                let next = self.execute_group(job)?;
                self.flush_in_time()?;
                next
            }
            Work::Compact(step, done) => Some((step, done)),
        };
        match next {
            Some((step, done)) => self.compact(&step, &done),
            None => Ok(()),
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

    /// Executes `first` and what waits behind it as one group; the step of compaction that ended
    /// the group, if one did.
    fn execute_group(&mut self, first: Job) -> Result<Option<(Step, Sender<bool>)>, Fatal> {
        let (mut requests, mut bytes) = (1, first.bytes);
        let mut next = None;
        self.stage(first)?;
        while requests < GROUP_REQUESTS_MAX && bytes < GROUP_BYTES_MAX {
            match self.receiver.try_recv() {
                Ok(Work::Request(job)) => {
                    requests += 1;
                    bytes += job.bytes;
                    self.stage(job)?;
                }
                Ok(Work::Compact(step, done)) => {
                    next = Some((step, done));
                    break;
                }
                Err(_) => break,
            }
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
        for (ticket, mut response) in answers {
            self.note_space(&response);
            self.name_shortage(&mut response);
            let is_refused = matches!(response, Response::Refused(_));
            let is_news = !std::mem::replace(&mut self.refusing, is_refused);
            ticket.answer(response, is_news);
        }
        Ok(next)
    }

    fn stage(&mut self, job: Job) -> Result<(), Fatal> {
        self.bytes.fetch_sub(job.bytes, Ordering::Relaxed);
        let (fence, count) = match &job.operation {
            Operation::Store(request) => (request.fence, request.records.len()),
            Operation::Release(request) => (request.fence, request.revisions.len()),
        };
        let ticket = Ticket {
            answer: job.answer,
            call: job.call,
            from: job.from,
            fence,
            count,
        };
        let engine = self.engine.as_mut();
        match &job.operation {
            Operation::Store(request) => self.replica.store(engine, request, ticket),
            Operation::Release(request) => self.replica.release(engine, request, ticket),
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
    use bytes::Bytes;
    use crossbeam_channel::{Receiver, bounded};

    use super::*;
    use crate::clock::SystemClock;
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
        fails: bool,
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
            self.commits.send(fence).unwrap();
            if self.fails {
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
            self.model.idle()
        }

        fn reader(&self) -> Arc<dyn Reader> {
            self.model.reader()
        }
    }

    struct Rig {
        queue: AppendQueue,
        appender: Appender,
        commits: Receiver<Option<Fence>>,
        answers: (Sender<Response>, Receiver<Response>),
        _dir: tempfile::TempDir,
    }

    fn rig(fails: bool) -> Rig {
        let dir = tempfile::tempdir().unwrap();
        let fence_path = dir.path().join("fence");
        let (sender, commits) = bounded(100);
        let engine = Box::new(ProbeEngine {
            model: ModelEngine::default(),
            fence_path: fence_path.clone(),
            commits: sender,
            fails,
        });
        let file: (Arc<dyn FileSystem>, PathBuf) = (Arc::new(OsFileSystem), fence_path);
        let (appender, queue) =
            Appender::new(engine, fence(1, 0), file, SystemClock::shared(), (4, 1000));
        Rig {
            queue,
            appender,
            commits,
            answers: bounded(100),
            _dir: dir,
        }
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
        let records = vec![record];
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
        let rig = rig(false);
        for sequence in 1..=3 {
            let job = job(&rig, fence(2, sequence), sequence, 10);
            assert!(rig.queue.push(job).is_ok());
        }
        rig.queue.close();
        assert!(rig.queue.push(job(&rig, fence(2, 9), 9, 10)).is_err());
        let shared = rig.appender.shared_fence();
        rig.appender.run().unwrap();
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
        let rig = rig(true);
        assert!(rig.queue.push(job(&rig, fence(1, 1), 1, 10)).is_ok());
        rig.queue.close();
        assert!(rig.appender.run().is_err());
        assert_eq!(rig.answers.1.try_iter().count(), 0);
    }

    #[test]
    fn the_queue_is_bounded_in_requests_and_bytes() {
        let rig = rig(false);
        assert!(rig.queue.push(job(&rig, fence(1, 1), 1, 5000)).is_ok());
        assert!(rig.queue.push(job(&rig, fence(1, 1), 2, 1)).is_err());
        let rig = self::rig(false);
        for sequence in 1..=4 {
            assert!(rig.queue.push(job(&rig, fence(1, 1), sequence, 1)).is_ok());
        }
        assert!(rig.queue.push(job(&rig, fence(1, 1), 5, 1)).is_err());
    }
}
