//! The threads of a group, from their start to their end.

use crate::disk::log::Filler;
use crate::group::journal_thread::JournalThread;
use crate::group::raft_thread::RaftThread;
use crate::group::snapshots::{SnapshotThread, Task};
use crate::group::{GroupError, StateMachine};
use crate::threads::queue::Sender;
use crate::threads::{StopSignal, Thread, spawn};

/// How many threads there are.
const ALL: usize = 4;

/// Threads that run.
pub(super) struct Running {
    /// In the order of joining: `raft` first, which closes the queues of the others.
    threads: Vec<Thread>,
    /// For those that work towards something that nobody waits for.
    stop: StopSignal,
    /// Wakes the `snapshot` thread for the stop signal.
    tasks: Sender<Task>,
}

impl Running {
    /// Starts all, or none: those already running end before an error is returned.
    pub(super) fn start<S: StateMachine + 'static>(
        raft: RaftThread<S>,
        journal: JournalThread<S::Output>,
        snapshot: SnapshotThread<S::Output>,
        filler: Filler,
        (stop, tasks): (StopSignal, Sender<Task>),
        on_failure: impl FnOnce(GroupError) + Send + 'static,
    ) -> Result<Running, GroupError> {
        let mut running = Running {
            threads: Vec::new(),
            stop,
            tasks,
        };
        let stop = running.stop.clone();
        let started = running
            .add("fill", move || filler.run(&stop))
            .and_then(|()| running.add("snapshot", move || snapshot.run()))
            .and_then(|()| running.add("journal", move || journal.run()))
            .and_then(|()| running.add("raft", move || raft.run(on_failure)));
        // What did not start is dropped by now, and with it the queues of what did.
        match started {
            Ok(()) => Ok(running),
            Err(error) => {
                running.join();
                Err(error)
            }
        }
    }

    fn add(
        &mut self,
        name: &'static str,
        body: impl FnOnce() + Send + 'static,
    ) -> Result<(), GroupError> {
        let thread = spawn(name, body).map_err(|source| GroupError::Io {
            action: "start thread",
            what: name.to_owned(),
            source,
        })?;
        self.threads.insert(0, thread);
        Ok(())
    }

    /// Waits for the Raft thread, which was told to stop or failed, and the journal with its last
    /// sync; then ends the others.
    pub(super) fn join(self) {
        let mut threads = self.threads.into_iter();
        let is_complete = threads.len() == ALL;
        if is_complete {
            threads.by_ref().take(2).for_each(Thread::join);
        }
        self.stop.stop();
        // Full: it looks at the signal before the next task.
        _ = self.tasks.try_send(Task::End);
        threads.for_each(Thread::join);
    }
}
