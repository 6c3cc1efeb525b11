//! Faults: which, when, on whom.
//!
//! All choices are made whether a kind is switched off or not, so that a seed without a kind is
//! still much the same.

use std::path::Path;
use std::time::Duration;

use tolerex::disk::fs::FileSystem;
use tolerex::disk::mem::{Fault, MemFileSystem, Operation};
use tolerex::group::Role;

use crate::events::Event;
use crate::net::MS;
use crate::plan::Kind;
use crate::world::World;

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

/// The first bytes of a segment that a turned bit may be in: behind its header.
const ROT_BEGIN: u64 = 4096;

impl World {
    pub(crate) fn fault(&mut self) {
        if !self.has_faults() {
            return;
        }
        let pause = self.chance.u64(10..=self.plan.fault_ms.max(11));
        self.after(pause * MS, Event::Fault);
        let Some(kind) = self.chance.choice(self.plan.drawn.iter().copied()) else {
            return;
        };
        let servers = self.plan.leaders + self.plan.members;
        let node = self.chance.usize(..servers);
        let other = self.chance.usize(..servers);
        let length = self.chance.u64(50..=2_000) * MS;
        let lot = self.chance.u64(..1 << 48);
        // Often the one that serves.
        let node = match self.chance.bool() {
            true => self.leading().unwrap_or(node),
            false => node,
        };
        if !self.plan.has(kind) {
            return;
        }
        self.note(format_args!("fault {} {node} {other}", kind.name()));
        match kind {
            Kind::Net => self.disturb(node, other, length, lot),
            Kind::Disk => self.spoil(node, length, lot),
            Kind::Crash => self.crash(node, length, lot),
            Kind::Pause => self.pause(node, length),
            Kind::Clock => self.set_clock(node, lot),
            Kind::Group => self.change_group(node, other, lot),
        }
    }

    fn leading(&self) -> Option<usize> {
        self.leaders.iter().position(|one| one.serving().is_some())
    }

    fn cut(&mut self, one: usize, other: usize, until: u64) {
        self.net.block(one, other, until);
        self.net.block(other, one, until);
    }

    fn disturb(&mut self, node: usize, other: usize, length: u64, lot: u64) {
        let until = self.now + length;
        let servers = self.plan.leaders + self.plan.members;
        let nodes = servers + self.plan.clients;
        match lot % 14 {
            0 => {
                self.saw("net cut of all");
                (0..nodes).for_each(|peer| self.cut(node, peer, until));
            }
            1 => {
                self.saw("net cut of servers");
                (0..servers).for_each(|peer| self.cut(node, peer, until));
            }
            2 => {
                self.saw("net one way");
                self.net.block(node, other, until);
            }
            3 => {
                self.saw("net halves");
                let side = |node: usize| lot >> (8 + node % 24) & 1;
                for from in 0..nodes {
                    for to in (0..nodes).filter(|to| side(*to) != side(from)) {
                        self.net.block(from, to, until);
                    }
                }
            }
            4 => {
                self.saw("net slow");
                for peer in 0..nodes {
                    self.net.clog(peer, node, 400 * MS, until);
                }
            }
            5 => self.flap(node, other, lot),
            6..11 => return self.cut_leader(node, length, lot >> 8),
            11 | 12 => return self.bridge(other % self.plan.leaders, until),
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

    /// Its turn of a link that flaps, if there are faults still.
    pub(crate) fn cut_one_way(&mut self, from: usize, to: usize, until: u64) {
        if self.has_faults() {
            self.net.block(from, to, until);
        }
    }

    /// Leaders reach only this one of them: a vote of it that counts twice would show.
    fn bridge(&mut self, middle: usize, until: u64) {
        self.saw("net bridge");
        let leaders = self.plan.leaders;
        for one in (0..leaders).filter(|one| *one != middle) {
            for other in (0..leaders).filter(|other| *other != middle) {
                self.net.block(one, other, until);
            }
        }
    }

    /// A link that is cut and heals again and again.
    fn flap(&mut self, node: usize, other: usize, lot: u64) {
        self.saw("net flaps");
        let beat = 20 * MS + (lot >> 8) % (400 * MS);
        for turn in 0..8 {
            let at = self.now + turn * 2 * beat;
            for (from, to) in [(node, other), (other, node)] {
                let until = at + beat;
                self.schedule(at, Event::Cut { from, to, until });
            }
        }
    }

    /// The leader that serves is cut off from its peers. It still reaches the members, and some
    /// clients: what they are told now is what safety is about. Members may crash meanwhile.
    fn cut_leader(&mut self, node: usize, length: u64, lot: u64) {
        self.saw("net cut of the leader from its peers");
        let node = self.leading().unwrap_or(node % self.plan.leaders);
        let until = self.now + length;
        for peer in (0..self.plan.leaders).filter(|peer| *peer != node) {
            self.cut(node, peer, until);
        }
        for client in 0..self.plan.clients {
            if lot >> client & 1 == 0 {
                self.cut(node, self.client_node(client), until);
                self.hang_up(client);
            }
        }
        if !self.plan.has(Kind::Crash) {
            return;
        }
        // None, one, two, or all of them: what they have obeyed must not be forgotten.
        let members = self.plan.members as u64;
        let count = match lot >> 9 & 3 {
            3 => members,
            count => count,
        };
        let (begin, apart) = (350 + (lot >> 20) % 700, lot >> 34 & 31);
        for turn in 0..count {
            let member = (((lot >> 12) + turn) % members) as usize;
            let crash = Event::Crash {
                node: self.member_node(member),
                is_power: lot >> 8 & 1 == 0,
                down: (1 + lot % 20) * MS,
            };
            self.schedule(self.now + (begin + turn * apart) * MS, crash);
        }
        // For a while only the one that is cut off reaches them again.
        let at = self.now + begin * MS;
        let until = at + 300 * MS;
        for to in 0..if count == members {
            self.plan.members
        } else {
            0
        } {
            let to = self.member_node(to);
            for from in (0..self.plan.leaders).filter(|from| *from != node) {
                self.schedule(at, Event::Cut { from, to, until });
            }
        }
    }

    fn disk_of(&self, node: usize) -> MemFileSystem {
        match node.checked_sub(self.plan.leaders) {
            None => self.leaders[node].fs.clone(),
            Some(member) => self.members[member].fs.clone(),
        }
    }

    fn end_in_power(&mut self, node: usize) {
        match node.checked_sub(self.plan.leaders) {
            None => self.leaders[node].ends_in_power = true,
            Some(member) => self.members[member].ends_in_power = true,
        }
    }

    fn spoil(&mut self, node: usize, length: u64, lot: u64) {
        let (fs, until) = (self.disk_of(node), self.now + length);
        let fault = match lot % 8 {
            0 => Some((Fault::Io, "disk fails")),
            1 => Some((Fault::ShortWrite, "disk short write")),
            2 => Some((Fault::NoSpace, "disk full")),
            _ => None,
        };
        if let Some((fault, what)) = fault {
            self.saw(what);
            let kind = FAILING[(lot >> 8) as usize % FAILING.len()];
            fs.fail(kind, lot >> 16 & 31, fault);
            if kind == Operation::SyncDir {
                self.end_in_power(node);
            }
            return;
        }
        match lot % 8 {
            // Until the next time that this is looked at, or the process ends.
            7 => {
                self.saw("disk out of descriptors");
                fs.set_out_of_descriptors(!fs.is_out_of_descriptors());
            }
            // Full, until the next time that this is looked at.
            3 => match fs.free_space("".as_ref()).unwrap_or(0) {
                u64::MAX => {
                    self.saw("disk without capacity");
                    fs.set_capacity(Some(60_000 + (lot >> 8 & 0xffff)));
                }
                _ => fs.set_capacity(None),
            },
            4 => self.rot(lot >> 8),
            _ => {
                self.saw("disk slow");
                match node.checked_sub(self.plan.leaders) {
                    None => self.leaders[node].slow_until = until,
                    Some(member) => self.members[member].slow_until = until,
                }
            }
        }
    }

    /// Turns a bit in the log of the one member on whose disk this may happen.
    fn rot(&mut self, lot: u64) {
        let member = self.plan.rotten;
        let (Some(id), true) = (self.members[member].id, self.plan.tolerance >= 2) else {
            return;
        };
        let fs = self.members[member].fs.clone();
        let dir = Path::new("member/log");
        let mut names = fs.list(dir).unwrap_or_default();
        names.retain(|name| name.ends_with(".log"));
        let Some(name) = names.get(lot as usize % names.len().max(1)) else {
            return;
        };
        let path = dir.join(name);
        let length = fs.content(&path).map_or(0, |content| content.len()) as u64;
        let at = ROT_BEGIN + (lot >> 8) % length.saturating_sub(ROT_BEGIN).max(1);
        if fs.flip_bit(&path, at, (lot >> 5 & 7) as u8) {
            self.saw("disk rot");
            self.oracle.lock().rotten.insert(id);
        }
    }

    fn crash(&mut self, node: usize, length: u64, lot: u64) {
        let (is_power, is_all) = (lot & 1 == 0, lot >> 1 & 15 == 0);
        if lot >> 5 & 3 == 0 {
            // While it writes: a part of that is on the disk.
            self.saw("crash within a write");
            let after = lot >> 8 & 7;
            self.disk_of(node)
                .fail(Operation::Write, after, Fault::ShortWrite);
            return self.end_in_power(node);
        }
        let nodes = match is_all {
            true => 0..self.plan.leaders + self.plan.members,
            false => node..node + 1,
        };
        if is_all {
            self.saw("crash of all");
        }
        for node in nodes {
            let longest = match self.chance.bool() {
                true => 40 * MS,
                false => length,
            };
            let down = self.chance.u64(5 * MS..=longest);
            self.crash_one(node, is_power, down);
        }
    }

    /// A server ends, and comes back.
    pub(crate) fn crash_one(&mut self, node: usize, is_power: bool, down: u64) {
        if !self.has_faults() {
            return;
        }
        self.saw(match is_power {
            true => "crash of power",
            false => "crash of process",
        });
        match node.checked_sub(self.plan.leaders) {
            None => {
                if self.leaders[node].running.is_some() {
                    self.crash_leader(node, is_power);
                    self.after(down, Event::StartLeader { leader: node });
                }
            }
            Some(member) => {
                if self.members[member].running.is_some() {
                    self.crash_member(member, is_power);
                    self.after(down, Event::StartMember { member });
                }
            }
        }
    }

    /// A follower has come to know of a new term, and may have voted: a good time for a crash, and
    /// for a return before another candidate of the term asks.
    pub(crate) fn may_crash_voter(&mut self, leader: usize) {
        let Some(running) = &self.leaders[leader].running else {
            return;
        };
        let status = running.parts.handle.status();
        let (term, is_voter) = (status.term, status.role == Role::Follower);
        let odds = match self.plan.has_rivals {
            true => 2,
            false => 8,
        };
        if std::mem::replace(&mut self.leaders[leader].last_term, term) == term
            || !is_voter
            || !self.has_faults()
            || !self.plan.has(Kind::Crash)
            || self.chance.u32(..odds) > 0
        {
            return;
        }
        self.saw("crash of voter");
        self.crash_leader(leader, true);
        let down = self.chance.u64(MS / 5..=10 * MS);
        self.after(down, Event::StartLeader { leader });
    }

    fn pause(&mut self, node: usize, length: u64) {
        self.saw("pause");
        let until = self.now + length;
        match node.checked_sub(self.plan.leaders) {
            None => {
                self.leaders[node].raft_lag = self.chance.u64(..=100 * MS);
                self.leaders[node].paused_until = until;
            }
            Some(member) => self.members[member].paused_until = until,
        }
    }

    /// A jump of the wall clock: of any length while the process runs, which must not notice; of
    /// some seconds where the next start finds it so.
    fn set_clock(&mut self, node: usize, lot: u64) {
        let Some(leader) = self.leaders.get_mut(node) else {
            return;
        };
        leader.ahead_ms = ((lot >> 24) % 20_000) as i64 - 10_000;
        if let Some(running) = &leader.running {
            running.clock.jump((lot % 7_200_000) as i64 - 3_600_000);
        }
        self.saw("clock jump");
    }
}
