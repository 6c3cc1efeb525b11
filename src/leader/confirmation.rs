//! A confirmation that this leader led after reads had arrived (R4), which several reads share.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::clock::Instant;
use crate::error::Failure;
use crate::group::{ReadConfirmation, ReadOutcome};
use crate::leader::state::{RunningBatch, Shared};
use crate::net::{Parked, Progress, Waker};
use crate::protocol::reply::Reply;

/// A confirmation that was asked for, for the worker that waits for it.
pub struct Confirmation {
    shared: Arc<Shared>,
    slot: Arc<Mutex<Slot>>,
    deadline: Instant,
    /// A leader that hands over waits for the reads.
    _running: RunningBatch,
}

/// Where the Raft thread leaves the outcome of a confirmation, and whom it wakes then. Its lock is
/// held alone.
#[derive(Default)]
struct Slot {
    outcome: Option<ReadOutcome>,
    waker: Option<Waker>,
}

impl Confirmation {
    /// Begins one, for reads that have arrived.
    pub fn begin(shared: &Arc<Shared>) -> Progress {
        // First: whoever hands over says so, then looks whether batches run.
        let running = shared.batch_runs();
        let slot = Arc::<Mutex<Slot>>::default();
        let told = Arc::clone(&slot);
        let confirmation = shared.group.confirm_read(move |outcome| {
            let mut slot = told.lock();
            slot.outcome = Some(outcome);
            let waker = slot.waker.take();
            drop(slot);
            waker.into_iter().for_each(Waker::wake);
        });
        match confirmation {
            ReadConfirmation::Immediate { .. } => Progress::done(Vec::new()),
            ReadConfirmation::NotServing => not_leader(shared),
            ReadConfirmation::Busy => failed(Failure::Busy),
            ReadConfirmation::Later => Progress::Parked(Box::new(Confirmation {
                shared: Arc::clone(shared),
                slot,
                deadline: shared.clock.now() + shared.limits.read_timeout,
                _running: running,
            })),
        }
    }
}

impl Parked for Confirmation {
    fn deadline(&self) -> Instant {
        self.deadline
    }

    fn arm(&mut self, wake: Waker) {
        let mut slot = self.slot.lock();
        if slot.outcome.is_none() {
            slot.waker = Some(wake);
            return;
        }
        drop(slot);
        wake.wake();
    }

    fn resume(self: Box<Self>) -> Progress {
        let outcome = self.slot.lock().outcome;
        match outcome {
            Some(ReadOutcome::Confirmed { .. }) => Progress::done(Vec::new()),
            Some(ReadOutcome::NotServing) => not_leader(&self.shared),
            Some(ReadOutcome::Busy) => failed(Failure::Busy),
            None if self.shared.clock.now() < self.deadline => Progress::Parked(self),
            None => failed(Failure::ReadTimedOut),
        }
    }
}

fn not_leader(shared: &Shared) -> Progress {
    let leader = shared.leader_address();
    failed(Failure::NotLeader { leader })
}

fn failed(failure: Failure) -> Progress {
    Progress::done(vec![Reply::Failed(failure)])
}
