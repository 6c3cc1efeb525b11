//! What is on its way to the Raft thread, with who waits for it.

use super::ReadOutcome;
use crate::group::configuration::ConfigurationChange;
use crate::group::proposals::{ProposalOutcome, Reason};

/// A change of the configuration on its way to the Raft thread.
pub struct ChangeRequest {
    pub(in crate::group) term: u64,
    pub(in crate::group) change: ConfigurationChange,
    pub(in crate::group) completion: Completion<()>,
}

/// One proposal on its way to the Raft thread.
pub struct Proposal<O> {
    pub(in crate::group) term: u64,
    pub(in crate::group) data: Vec<u8>,
    pub(in crate::group) completion: Completion<O>,
}

/// The callback of a proposal, boxed so that the Raft thread can keep it.
type Done<O> = Box<dyn FnOnce(ProposalOutcome<O>) + Send>;

/// Calls back exactly once: with the outcome it is given, or when dropped without one.
pub(in crate::group) struct Completion<O> {
    /// Present until called.
    done: Option<Done<O>>,
    /// Whether the entry was appended: decides what a drop means.
    proposed: bool,
}

impl<O> Completion<O> {
    pub(super) fn new(done: impl FnOnce(ProposalOutcome<O>) + Send + 'static) -> Completion<O> {
        Completion {
            done: Some(Box::new(done)),
            proposed: false,
        }
    }

    /// The entry is appended: from here on, a drop means that the outcome is unknown.
    pub(in crate::group) fn proposed(mut self) -> Completion<O> {
        self.proposed = true;
        self
    }

    pub(in crate::group) fn finish(mut self, outcome: ProposalOutcome<O>) {
        if let Some(done) = self.done.take() {
            done(outcome);
        }
    }
}

impl<O> Drop for Completion<O> {
    fn drop(&mut self) {
        if let Some(done) = self.done.take() {
            done(if self.proposed {
                ProposalOutcome::Unknown
            } else {
                ProposalOutcome::NotProposed(Reason::Stopped)
            });
        }
    }
}

/// The callback of a read, called exactly once, or never after [`PendingRead::forget`].
pub struct PendingRead {
    done: Option<Box<dyn FnOnce(ReadOutcome) + Send>>,
}

impl PendingRead {
    pub(super) fn new(done: impl FnOnce(ReadOutcome) + Send + 'static) -> PendingRead {
        PendingRead {
            done: Some(Box::new(done)),
        }
    }

    pub(in crate::group) fn finish(mut self, outcome: ReadOutcome) {
        if let Some(done) = self.done.take() {
            done(outcome);
        }
    }

    /// The caller got its answer otherwise.
    pub(in crate::group) fn forget(mut self) {
        self.done = None;
    }
}

impl Drop for PendingRead {
    fn drop(&mut self) {
        if let Some(done) = self.done.take() {
            done(ReadOutcome::NotServing);
        }
    }
}
