//! Lets messages expire: proposes an entry when the time of one is over. What it takes away is
//! decided in `apply` (`metadata::state`, module `transact`).
//!
//! One proposal is under way at a time. Where it is refused or lost, the next round tries again; a
//! follower leaves it to the active leader.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use log::debug;

use crate::group::ProposalOutcome;
use crate::leader::state::Shared;
use crate::metadata::command::{Change, Command};

/// What is remembered from round to round.
#[derive(Default)]
pub struct Expiry {
    is_proposed: Arc<AtomicBool>,
}

impl Expiry {
    /// Proposes what is due, as the leader that serves in `term`.
    pub fn round(&self, shared: &Arc<Shared>, term: u64) {
        if self.rest(shared) != Some(Duration::ZERO) {
            return;
        }
        self.is_proposed.store(true, Ordering::Release);
        let now_ms = shared.command_ms();
        let change = Change::Expire { now_ms };
        let (told, is_proposed) = (shared.clone(), self.is_proposed.clone());
        let command = Command { term, change };
        shared
            .group
            .propose(term, command.encode(), move |outcome| {
                match outcome {
                    ProposalOutcome::Applied(applied) => debug!("{applied:?}"),
                    other => debug!("expiry was not proposed or is lost: {other:?}"),
                }
                is_proposed.store(false, Ordering::Release);
                // There may be more than one entry takes.
                told.view.ring();
            });
    }

    /// For how long there is nothing to do; `None`: until something changes.
    pub fn rest(&self, shared: &Shared) -> Option<Duration> {
        if self.is_proposed.load(Ordering::Acquire) {
            return None;
        }
        let next_ms = shared.view.metadata.next_expiry_ms()?;
        let rest_ms = next_ms.saturating_sub(shared.command_ms());
        Some(Duration::from_millis(rest_ms))
    }
}
