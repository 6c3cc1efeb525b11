//! The `help-N` threads: what computes for long is done there, so that no worker keeps its other
//! connections waiting for it.
//!
//! The queue is bounded by the number given to [`queue`], the most batches that may be under way.
//! Each connection and each call has one task at most, so the queue is full only if nearly all of
//! them need help at once. Then the thread that brings a task computes it itself: that is slow for
//! its other connections, but nothing waits and nothing is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};

/// Something to compute. It must not wait.
type Task = Box<dyn FnOnce() + Send>;

enum Job {
    Do(Task),
    End,
}

/// The way to the threads; cloned to any.
#[derive(Clone)]
pub struct Helpers {
    queue: Sender<Job>,
    /// Tasks handed over since the start.
    taken: Arc<AtomicU64>,
}

/// The body of a thread; clones share the queue.
#[derive(Clone)]
pub(super) struct Helper(Receiver<Job>);

/// The two ends of a queue for so many tasks.
pub(super) fn queue(tasks_max: usize) -> (Helpers, Helper) {
    let (sender, receiver) = bounded(tasks_max);
    let taken = Arc::default();
    let queue = sender;
    (Helpers { queue, taken }, Helper(receiver))
}

impl Helpers {
    /// Has a task done soon.
    pub fn run(&self, task: impl FnOnce() + Send + 'static) {
        self.taken.fetch_add(1, Ordering::Relaxed);
        match self.queue.try_send(Job::Do(Box::new(task))) {
            Ok(()) => {}
            Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) => {
                if let Job::Do(task) = job {
                    task();
                }
            }
        }
    }

    /// Tasks handed over since the start.
    pub fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// Ends one thread, after the tasks that wait. If the queue is full, waits for a place in it,
    /// for `patience` at most: the threads go on with the tasks, which do not wait.
    pub(super) fn end_one(&self, patience: Duration) {
        _ = self.queue.send_timeout(Job::End, patience);
    }
}

impl Helper {
    pub(super) fn run(self) {
        while let Ok(Job::Do(task)) = self.0.recv() {
            task();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::threads::spawn;

    #[test]
    fn a_thread_ends_even_if_the_queue_is_full_when_it_is_told() {
        let (helpers, helper) = queue(1);
        let (release, released) = bounded::<()>(1);
        let (begun, begins) = bounded(1);
        let thread = spawn("help-1", move || helper.run()).expect("a thread");
        helpers.run(move || {
            _ = begun.send(());
            _ = released.recv();
        });
        begins.recv().expect("the first task is taken");
        let (done, results) = bounded(1);
        helpers.run(move || _ = done.send(()));
        let releases = spawn("releases", move || {
            crate::clock::sleep(Duration::from_millis(50));
            _ = release.send(());
        });
        helpers.end_one(Duration::from_secs(20));
        results.recv().expect("the task that waited is done");
        thread.join();
        releases.expect("a thread").join();
        assert_eq!(helpers.taken(), 2);
    }
}
