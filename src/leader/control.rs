//! What can be asked and changed while a leader runs.

use std::sync::Arc;

use log::{info, warn};

use crate::cluster::Strategy;
use crate::group::ProposalOutcome;
use crate::leader::state::Shared;
use crate::metadata::command::{Change, Command};
use crate::rpc::tls::TlsContext;

/// For questions and a reload of settings, from any thread.
pub struct Control {
    shared: Arc<Shared>,
    tls: Arc<TlsContext>,
}

impl Control {
    pub(super) fn new(shared: Arc<Shared>, tls: Arc<TlsContext>) -> Control {
        Control { shared, tls }
    }

    /// Whether the leader leads and serves.
    pub fn is_active(&self) -> bool {
        self.shared.serving_term().is_some()
    }

    /// Reads the certificates again; the last good ones stay if the new ones are bad.
    pub fn reload_certificates(&self) {
        match self.tls.reload() {
            Ok(()) => info!("certificates are read again"),
            Err(error) => warn!("the certificates in use stay: {error}"),
        }
    }

    /// Chooses members in this way from now on.
    pub fn set_strategy(&self, strategy: Strategy) {
        self.shared.view.cluster.lock().set_strategy(strategy);
    }

    /// Proposes a tolerance if it differs from the one in force. Does not wait.
    pub fn set_tolerance(&self, tolerance: u8) {
        if self.shared.view.metadata.tolerance() == Some(tolerance) {
            return;
        }
        let members = self.shared.view.cluster.lock();
        let members = members
            .members()
            .filter(|member| !member.is_retired)
            .count();
        if members < usize::from(tolerance) {
            warn!("tolerance {tolerance} is more than the {members} members: writes will fail");
        }
        let Some(term) = self.shared.leading_term() else {
            return warn!("tolerance {tolerance} is not proposed: this is not the active leader");
        };
        let change = Change::SetTolerance(tolerance);
        let command = Command { term, change };
        let group = &self.shared.group;
        group.propose(term, command.encode(), move |outcome| match outcome {
            ProposalOutcome::Applied(_) => info!("tolerance is {tolerance} now"),
            ProposalOutcome::NotProposed(_) | ProposalOutcome::Lost | ProposalOutcome::Unknown => {
                warn!("tolerance {tolerance} was not set");
            }
        });
    }
}
