//! Faults, their end, and what must come after it.
//!
//! **Liveness**: within [`SETTLE`] from the end of the faults one leader serves, every request has
//! ended, and all leaders have applied the same log to the same state. Then, in half of the runs
//! after a power failure of everything that loses all that is not synced, every key is read again,
//! within the same time; the history with these reads is judged.

use std::time::Duration;

use tolerex::disk::fs::FileSystem;
use tolerex::disk::mem::{Fault, Loss, Operation};

use crate::net::MS;
use crate::plan::Kind;
use crate::world::{Event, Phase, World};

/// From the end of the faults to rest: 400 ticks.
const SETTLE: u64 = 20_000 * MS;

/// How often to look whether it has come to rest.
const LOOK: u64 = 25 * MS;

/// The calls that are made to fail.
const FAILING: [Operation; 8] = [
    Operation::Sync,
    Operation::Sync,
    Operation::Write,
    Operation::Write,
    Operation::Read,
    Operation::Create,
    Operation::SyncDir,
    Operation::SetLen,
];

impl World {
    /// Whether things may fail.
    pub fn has_faults(&self) -> bool {
        self.phase == Phase::Faults
    }

    pub(crate) fn fault(&mut self) {
        if !self.has_faults() {
            return;
        }
        let pause = self.chance.u64(10..=self.plan.fault_ms.max(11));
        self.after(pause * MS, Event::Fault);
        // All choices are made whether the kind is switched off or not, so that a seed without a
        // kind is still much the same.
        let Some(kind) = self.chance.choice(self.plan.drawn.iter().copied()) else {
            return;
        };
        let node = self.chance.usize(..self.plan.leaders + self.plan.members);
        let other = self.chance.usize(..self.plan.leaders + self.plan.members);
        let length = self.chance.u64(50..=2_000) * MS;
        let lot = self.chance.u64(..1 << 32);
        // Often the one that serves.
        let serving = self.leaders.iter().position(|one| one.serving().is_some());
        let node = match self.chance.bool() {
            true => serving.unwrap_or(node),
            false => node,
        };
        if !self.plan.has(kind) {
            return;
        }
        self.trace.note(
            self.now,
            format_args!("fault {} {node} {other}", kind.name()),
        );
        match kind {
            Kind::Net => self.disturb(node, other, length, lot),
            Kind::Disk => self.spoil(node, length, lot),
            Kind::Crash => self.crash(node, length, lot),
            Kind::Pause => self.pause(node, length),
            Kind::Clock => self.set_clock(node, lot),
            Kind::Group => self.hand_over(node, other),
        }
    }

    fn disturb(&mut self, node: usize, other: usize, length: u64, lot: u64) {
        let until = self.now + length;
        let nodes = self.plan.leaders + self.plan.members + self.plan.clients;
        match lot % 9 {
            // One is cut off, or from the other servers only.
            0 | 1 => {
                let last = if lot.is_multiple_of(9) {
                    nodes
                } else {
                    nodes - self.plan.clients
                };
                for peer in (0..last).filter(|peer| *peer != node) {
                    self.net.block(node, peer, until);
                    self.net.block(peer, node, until);
                }
            }
            // One direction.
            2 => self.net.block(node, other, until),
            // Halves.
            3 => {
                let side = |node: usize| lot >> (8 + node % 24) & 1;
                for from in 0..nodes {
                    for to in (0..nodes).filter(|to| side(*to) != side(from)) {
                        self.net.block(from, to, until);
                    }
                }
            }
            // One is slow to reach.
            4 => {
                for peer in 0..nodes {
                    self.net.clog(peer, node, 400 * MS, until);
                }
            }
            // The one that serves from its peers, not from clients and members.
            5..8 => {
                let serving = self.leaders.iter().position(|one| one.serving().is_some());
                let node = serving.unwrap_or(node % self.plan.leaders);
                for peer in (0..self.plan.leaders).filter(|peer| *peer != node) {
                    self.net.block(node, peer, until);
                    self.net.block(peer, node, until);
                }
                return;
            }
            _ => {}
        }
        // The links between, in a while.
        for link in 0..self.net.links.len() {
            let one = &self.net.links[link];
            let is_near =
                one.leader == node || one.leader == other || self.member_node(one.member) == node;
            if one.is_open && is_near && self.chance.u32(..3) == 0 {
                self.about(Duration::from_millis(800), Event::Break { link });
            }
        }
    }

    fn spoil(&mut self, node: usize, length: u64, lot: u64) {
        let leaders = self.plan.leaders;
        let until = self.now + length;
        let fs = match node < leaders {
            true => self.leaders[node].fs.clone(),
            false => self.members[node - leaders].fs.clone(),
        };
        let fault = match lot % 5 {
            0 => Some(Fault::Io),
            1 => Some(Fault::ShortWrite),
            2 => Some(Fault::NoSpace),
            _ => None,
        };
        match fault {
            Some(fault) => {
                let kind = FAILING[(lot >> 8) as usize % FAILING.len()];
                fs.fail(kind, lot >> 16 & 31, fault);
                if kind == Operation::SyncDir {
                    match node < leaders {
                        true => self.leaders[node].has_lost_names = true,
                        false => self.members[node - leaders].has_lost_names = true,
                    }
                }
            }
            // Full, until the next time that this is looked at.
            None if lot % 5 == 3 => {
                let free = fs.free_space("".as_ref()).unwrap_or(0);
                match free == u64::MAX {
                    true => {
                        let used: u64 = 60_000 + (lot >> 8 & 0xffff);
                        fs.set_capacity(Some(used));
                    }
                    false => fs.set_capacity(None),
                }
            }
            None if node < leaders => self.leaders[node].slow_until = until,
            None => self.members[node - leaders].slow_until = until,
        }
    }

    fn crash(&mut self, node: usize, length: u64, lot: u64) {
        let leaders = self.plan.leaders;
        let (is_power, is_all) = (lot & 1 == 0, lot >> 1 & 15 == 0);
        let nodes = match is_all {
            true => 0..leaders + self.plan.members,
            false => node..node + 1,
        };
        for node in nodes {
            let longest = match self.chance.bool() {
                true => 40 * MS,
                false => length,
            };
            let down = self.chance.u64(5 * MS..=longest);
            if node < leaders {
                if self.leaders[node].running.is_some() {
                    self.crash_leader(node, is_power);
                    self.after(down, Event::StartLeader { leader: node });
                }
            } else {
                let member = node - leaders;
                if self.members[member].running.is_some() {
                    self.crash_member(member, is_power);
                    self.after(down, Event::StartMember { member });
                }
            }
        }
    }

    /// A leader has come to know of a new term, and may have voted: a good time for a crash.
    pub(crate) fn may_crash_voter(&mut self, leader: usize) {
        let Some(running) = &self.leaders[leader].running else {
            return;
        };
        let term = running.parts.handle.status().term;
        if std::mem::replace(&mut self.leaders[leader].last_term, term) == term
            || !self.has_faults()
            || !self.plan.has(Kind::Crash)
            || self.chance.u32(..8) > 0
        {
            return;
        }
        self.crash_leader(leader, true);
        let down = self.chance.u64(MS..=20 * MS);
        self.after(down, Event::StartLeader { leader });
    }

    fn pause(&mut self, node: usize, length: u64) {
        let leaders = self.plan.leaders;
        let until = self.now + length;
        match node < leaders {
            true => {
                self.leaders[node].raft_lag = self.chance.u64(..=100 * MS);
                self.leaders[node].paused_until = until;
            }
            false => self.members[node - leaders].paused_until = until,
        }
    }

    fn set_clock(&mut self, node: usize, lot: u64) {
        let jump = (lot % 7_200_000) as i64 - 3_600_000;
        if let Some(leader) = self.leaders.get(node)
            && let Some(running) = &leader.running
        {
            running.clock.jump(jump);
        }
    }

    fn hand_over(&mut self, node: usize, other: usize) {
        let leaders = self.plan.leaders;
        let to = self.leaders[other % leaders].id;
        if let Some(running) = &self.leaders[node % leaders].running {
            running.parts.handle.transfer(Some(to));
        }
        self.advance(node % leaders);
    }

    /// The faults stop.
    pub(crate) fn calm(&mut self) {
        self.trace.note(self.now, format_args!("calm"));
        self.phase = Phase::Calm;
        self.phase_since = self.now;
        self.net.heal();
        self.start_all();
        self.after(LOOK, Event::Look);
    }

    fn start_all(&mut self) {
        for leader in 0..self.plan.leaders {
            let node = &mut self.leaders[leader];
            node.fs.heal();
            node.fs.set_capacity(None);
            (node.paused_until, node.slow_until) = (0, 0);
            self.start_leader(leader);
        }
        for member in 0..self.plan.members {
            let node = &mut self.members[member];
            node.fs.heal();
            node.fs.set_capacity(None);
            (node.paused_until, node.slow_until) = (0, 0);
            self.start_member(member);
        }
    }

    pub(crate) fn look(&mut self) {
        let unsettled = self.unsettled();
        if unsettled.is_none() {
            self.trace.note(self.now, format_args!("settled"));
            return match self.phase {
                Phase::Calm => self.begin_reading(),
                Phase::Faults | Phase::Reading | Phase::Over => self.phase = Phase::Over,
            };
        }
        if self.now - self.phase_since > SETTLE {
            let phase = self.phase;
            let what = unsettled.unwrap_or_default();
            return self.fail(format!("liveness: {what}, 400 ticks into {phase:?}"));
        }
        self.after(LOOK, Event::Look);
    }

    /// What has not come to rest.
    fn unsettled(&mut self) -> Option<String> {
        if let Some(client) = self.clients.iter().position(|client| !client.is_idle()) {
            return Some(format!("client {client} waits for an answer"));
        }
        let serving = self
            .leaders
            .iter()
            .filter(|one| one.serving().is_some())
            .count();
        if serving != 1 {
            return Some(format!("{serving} leaders serve"));
        }
        let mut states = Vec::new();
        for (number, leader) in self.leaders.iter().enumerate() {
            let Some(running) = &leader.running else {
                return Some(format!("leader {number} is down"));
            };
            if !running.parked.is_empty() {
                return Some(format!("leader {number} has batches that wait"));
            }
            states.push((running.parts.handle.status().applied, number));
        }
        let (first, last) = (states.iter().min()?, states.iter().max()?);
        if first.0 != last.0 {
            let (index, leader) = first;
            return Some(format!("leader {leader} has applied {index} of {}", last.0));
        }
        let index = first.0;
        for (number, leader) in self.leaders.iter().enumerate() {
            if let Some(running) = &leader.running {
                let digest = running.parts.node.machine().digest();
                self.oracle.lock().digest(number, index, digest);
            }
        }
        None
    }

    fn begin_reading(&mut self) {
        self.phase = Phase::Reading;
        self.phase_since = self.now;
        if self.chance.bool() {
            for leader in 0..self.plan.leaders {
                self.crash_leader(leader, false);
                self.leaders[leader].fs.crash(Loss::Everything);
            }
            for member in 0..self.plan.members {
                self.crash_member(member, false);
                self.members[member].fs.crash(Loss::Everything);
            }
            self.start_all();
        }
        self.read_all();
        self.after(LOOK, Event::Look);
    }
}
