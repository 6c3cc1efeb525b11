//! What a participant knows of and decides about the others: progress, snapshots, leadership, who
//! takes part. Pure.

use raft::{ProgressState, SnapshotStatus, StateRole};

use super::{Core, CoreError, Role, membership};
use crate::group::configuration::{Configuration, ConfigurationChange};
use crate::group::proposals::Reason;
use crate::group::window::{LogEntry, Position};
use crate::ids::PeerId;

/// A learner that is at most so many entries behind what is committed becomes a voter: as many are
/// on their way at any moment under load, and are sent in a few messages.
const CAUGHT_UP_ENTRIES: u64 = 1024;

/// How far a peer is, as a leader sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Which one.
    pub peer: PeerId,
    /// Its log is known to agree up to here.
    pub matched: u64,
    /// It was heard of within an election time-out.
    pub is_active: bool,
    /// A snapshot is on its way to it.
    pub gets_snapshot: bool,
}

impl Core {
    /// A message to `peer` was lost.
    pub fn unreachable(&mut self, peer: PeerId) {
        self.answering.forget(peer);
        self.node.report_unreachable(peer.0);
    }

    /// A snapshot has reached `peer`, or has not.
    pub fn snapshot_sent(&mut self, peer: PeerId, arrived: bool) {
        let status = match arrived {
            true => SnapshotStatus::Finish,
            false => SnapshotStatus::Failure,
        };
        self.node.report_snapshot(peer.0, status);
    }

    /// A snapshot is durable here and may be sent to peers.
    pub fn offer_snapshot(&mut self, position: Position, configuration: Configuration) {
        self.node.mut_store().snapshot = Some((position, configuration));
    }

    /// Whether a peer needs a newer snapshot than the one that was offered. Said once.
    pub fn takes_snapshot(&mut self) -> bool {
        self.node.store().wants_snapshot.take()
    }

    /// Appends a change of the configuration, if this participant serves in `term` and no other
    /// change is under way; returns the entry's index.
    pub fn change(&mut self, term: u64, change: &ConfigurationChange) -> Result<u64, Reason> {
        let status = self.status();
        if !status.serving || status.term != term {
            return Err(Reason::NotLeader);
        }
        let wants_leave = *change == ConfigurationChange::LeaveJoint;
        if self.node.raft.has_pending_conf() || self.configuration().is_joint() != wants_leave {
            return Err(Reason::Busy);
        }
        let change = membership::conf_change(change);
        match self.node.propose_conf_change(Vec::new(), change) {
            Ok(()) => Ok(self.node.raft.raft_log.last_index()),
            Err(_) => Err(Reason::Busy),
        }
    }

    /// Applies a committed entry that changes the configuration; before [`Core::applied`] of it. An
    /// error means that the change is impossible: the entry has no effect, on any peer.
    pub fn apply_change(&mut self, entry: &LogEntry) -> Result<(), CoreError> {
        membership::changed(self.configuration(), &entry.data)?;
        let change = membership::decode(&entry.data)?;
        let state = self
            .node
            .apply_conf_change(&change)
            .map_err(|source| CoreError(format!("entry {}: {source}", entry.index)))?;
        let store = self.node.mut_store();
        store.configuration = membership::after(&store.configuration, &change, &state)?;
        let raft = &mut self.node.raft;
        if raft.state == StateRole::Leader && raft.prs().get(self.id.0).is_none() {
            let term = raft.term;
            raft.become_follower(term, raft::INVALID_ID);
        }
        Ok(())
    }

    /// The snapshot that was just installed says where its peers are reached, too.
    pub fn describe(&mut self, configuration: Configuration) {
        let store = self.node.mut_store();
        assert!(
            store.configuration.is_like(&configuration),
            "another snapshot"
        );
        if let Some((_, offered)) = &mut store.snapshot {
            *offered = configuration.clone();
        }
        store.configuration = configuration;
    }

    /// Who takes part, as of the last applied entry.
    pub fn configuration(&self) -> &Configuration {
        &self.node.store().configuration
    }

    /// A change that this participant, if it serves, should propose without being asked: to leave
    /// a joint configuration whose leader is gone, or to promote a learner that has caught up.
    pub fn next_change(&self) -> Option<ConfigurationChange> {
        let raft = &self.node.raft;
        if !self.status().serving || raft.has_pending_conf() {
            return None;
        }
        let configuration = self.configuration();
        if configuration.is_joint() {
            return Some(ConfigurationChange::LeaveJoint);
        }
        let has_caught_up = |peer: &&PeerId| {
            let progress = raft.prs().get(peer.0);
            progress.is_some_and(|progress| {
                // It has answered: a vote of one that has nothing is a vote that is missing.
                progress.matched > 0
                    && progress.state != ProgressState::Snapshot
                    && progress.recent_active
                    && progress.matched + CAUGHT_UP_ENTRIES >= raft.raft_log.committed
            })
        };
        let learner = configuration.learners.iter().find(has_caught_up);
        learner.map(|peer| ConfigurationChange::Promote(*peer))
    }

    /// Hands leadership to `peer`, or to the voter that is most up to date; nothing happens if
    /// there is none, or if this participant does not lead. It may fail silently.
    pub fn transfer(&mut self, peer: Option<PeerId>) {
        self.transfer_to(|one| match peer {
            Some(peer) => one.peer == peer,
            None => one.is_active,
        });
    }

    /// The same to one that has stored the entry at `index`, if there is one.
    pub fn transfer_to_quicker(&mut self, index: u64) {
        self.transfer_to(|one| one.is_active && one.matched >= index);
    }

    fn transfer_to(&mut self, is_candidate: impl Fn(&Progress) -> bool) {
        let is_other_voter = |progress: &Progress| {
            progress.peer != self.id && self.configuration().voters.contains(&progress.peer)
        };
        let candidates = self.progress().into_iter().filter(is_other_voter);
        let chosen = candidates
            .filter(is_candidate)
            .max_by_key(|one| one.matched)
            .map(|one| one.peer);
        if let (Some(chosen), Role::Leader) = (chosen, self.status().role) {
            self.node.transfer_leader(chosen.0);
        }
    }

    /// Whether leadership is being handed over.
    pub fn is_transferring(&self) -> bool {
        self.node.raft.lead_transferee.is_some()
    }

    /// How far each peer is, by id; empty unless this participant leads.
    pub fn progress(&self) -> Vec<Progress> {
        let raft = &self.node.raft;
        if raft.state != StateRole::Leader {
            return Vec::new();
        }
        let one = |(id, progress): (&u64, &raft::Progress)| Progress {
            peer: PeerId(*id),
            matched: progress.matched,
            is_active: progress.recent_active || *id == self.id.0,
            gets_snapshot: progress.state == ProgressState::Snapshot,
        };
        let mut all: Vec<Progress> = raft.prs().iter().map(one).collect();
        all.sort_unstable_by_key(|progress| progress.peer);
        all
    }

    /// Entries above this are still to be sent to a peer that is there.
    pub(super) fn wanted(&self) -> u64 {
        let raft = &self.node.raft;
        if raft.state != StateRole::Leader {
            return u64::MAX;
        }
        let active = raft.prs().iter().filter(|(_, peer)| peer.recent_active);
        let needs = active.map(|(_, peer)| peer.matched.max(peer.pending_snapshot));
        needs.min().unwrap_or(u64::MAX)
    }
}
