//! Changes of the group while it runs: leaders are added, removed, told to lead, and stopped as an
//! operator stops them.
//!
//! A leader that was removed loses its disk once the group knows nothing of it any more, and comes
//! back under a new id, waiting to be added. Nothing else ever takes a leader's disk.

use std::time::Duration;

use tolerex::disk::mem::MemFileSystem;
use tolerex::group::node::Event as NodeEvent;
use tolerex::group::{Configuration, ConfigurationChange, PeerAddress, ProposalOutcome};
use tolerex::ids::PeerId;

use crate::events::Event;
use crate::leader::now_of;
use crate::net::MS;
use crate::world::World;

/// How long a leader that is told to stop may take.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Between two looks whether a leader is out of the group.
const REJOIN: u64 = 300 * MS;

impl World {
    /// The leader that serves, and who takes part as it knows it.
    pub fn serving(&self) -> Option<(usize, Configuration)> {
        let number = self
            .leaders
            .iter()
            .position(|one| one.serving().is_some())?;
        let running = self.leaders[number].running.as_ref()?;
        Some((number, (*running.parts.handle.configuration()).clone()))
    }

    pub(crate) fn change_group(&mut self, node: usize, other: usize, lot: u64) {
        let leaders = self.plan.leaders;
        match lot % 8 {
            0 | 1 => self.hand_over(node % leaders, other % leaders),
            2 => self.stop_leader(node % leaders),
            3..6 => self.add_leader(),
            _ => self.remove_leader(other % leaders),
        }
    }

    fn hand_over(&mut self, leader: usize, to: usize) {
        self.saw("group transfer");
        let to = self.leaders[to].id;
        if let Some(running) = &self.leaders[leader].running {
            running.parts.handle.transfer(Some(to));
        }
        self.advance(leader);
    }

    /// SIGTERM.
    fn stop_leader(&mut self, leader: usize) {
        let epoch = self.leaders[leader].epoch;
        let Some(running) = self.leader(leader, epoch) else {
            return;
        };
        running.is_stopping = true;
        let now = now_of(running);
        let taken = running.parts.node.take(NodeEvent::Stop(STOP_TIMEOUT), now);
        debug_assert!(taken.is_ok(), "it takes no write");
        self.saw("group stop");
        self.advance(leader);
    }

    /// Ends a leader that has stopped.
    pub(crate) fn end_if_stopped(&mut self, leader: usize) {
        let epoch = self.leaders[leader].epoch;
        let Some(running) = self.leader(leader, epoch).filter(|one| one.is_stopping) else {
            return;
        };
        let now = now_of(running);
        if !running.parts.node.is_finished(now) {
            return;
        }
        self.note(format_args!("L{leader} stopped"));
        self.end_leader(leader);
        let down = self.rng.u64(5 * MS..=500 * MS);
        self.after(down, Event::StartLeader { leader });
    }

    fn add_leader(&mut self) {
        let Some((serving, configuration)) = self.serving() else {
            return;
        };
        let name = |number: usize| format!("leader-{number}");
        let is_known = |number: usize| {
            let id = self.leaders[number].id;
            let mut addresses = configuration.addresses.values();
            configuration.peers().contains(&id) || addresses.any(|one| one.name == name(number))
        };
        let is_free = |number: &usize| !is_known(*number) && !self.leaders[*number].is_leaving;
        let Some(number) = (0..self.plan.leaders).find(is_free) else {
            return;
        };
        let address = PeerAddress {
            name: name(number),
            rpc: format!("leader-{number}:2"),
            client: format!("leader-{number}:1"),
            http: String::new(),
        };
        let change = ConfigurationChange::AddLearner(self.leaders[number].id, address);
        self.propose_change(serving, change, "group add");
    }

    fn remove_leader(&mut self, leader: usize) {
        let Some((serving, configuration)) = self.serving() else {
            return;
        };
        let id = self.leaders[leader].id;
        let is_last = configuration.voters.len() < 2 && configuration.voters.contains(&id);
        let is_part = configuration.peers().contains(&id);
        if is_last || !is_part || self.leaders[leader].is_leaving {
            return;
        }
        self.leaders[leader].is_leaving = true;
        self.propose_change(serving, ConfigurationChange::Remove(id), "group remove");
        self.after(REJOIN, Event::Rejoin { leader });
    }

    fn propose_change(&mut self, leader: usize, change: ConfigurationChange, what: &'static str) {
        let oracle = self.oracle.clone();
        let Some(running) = &self.leaders[leader].running else {
            return;
        };
        let Some(term) = running.shared.serving_term() else {
            return;
        };
        self.trace
            .note(self.now, format_args!("L{leader} {change:?}"));
        let handle = running.parts.handle.clone();
        handle.change(term, change, move |outcome| {
            if let ProposalOutcome::Applied(()) = outcome {
                oracle.lock().census.saw(what);
            }
        });
        self.advance(leader);
    }

    /// Whether the group knows nothing any more of the leader that was to be removed.
    pub(crate) fn rejoin(&mut self, leader: usize) {
        if !self.has_faults() {
            return;
        }
        let id = self.leaders[leader].id;
        match self.serving() {
            Some((_, configuration)) if !configuration.peers().contains(&id) => {
                self.replace_leader(leader);
            }
            Some((serving, _)) => {
                let change = ConfigurationChange::Remove(id);
                self.propose_change(serving, change, "group remove");
                self.after(REJOIN, Event::Rejoin { leader });
            }
            None => self.after(REJOIN, Event::Rejoin { leader }),
        }
    }

    /// A new leader in place of the old one: an empty disk and another id.
    fn replace_leader(&mut self, leader: usize) {
        self.saw("removed leader comes back");
        self.end_leader(leader);
        let id = PeerId(self.rng.u64(1..));
        self.note(format_args!("L{leader} is {id} now"));
        let node = &mut self.leaders[leader];
        node.fs = MemFileSystem::new();
        node.id = id;
        node.joins = true;
        node.is_leaving = false;
        node.last_term = 0;
        let down = self.rng.u64(5 * MS..=500 * MS);
        self.after(down, Event::StartLeader { leader });
    }
}
