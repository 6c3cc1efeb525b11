//! A leader's disk that is replaced by an older copy of itself, once in a run: a restored backup, a
//! disk that was rolled back.
//!
//! A copy is kept at a random moment. Later, when all voters have what is committed, the leader
//! stops, and starts again on the copy. Of a group of several it must not vote or acknowledge
//! anything to a peer that knows that it had stored more, and ends when it is told so; no other one
//! does. The only leader goes on: its log agrees with the one before up to the copy at least, no
//! term and no revision is used twice (`oracle`), and if members know more, the loss is told.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use protobuf::Message as _;
use raft::eraftpb::{Message, MessageType};
use tolerex::cluster::{Cluster, Strategy};
use tolerex::disk::mem::MemFileSystem;
use tolerex::group::{GroupOptions, Outgoing, inspect};
use tolerex::ids::PeerId;
use tolerex::leader::machine::Machine;
use tolerex::leader::state::View;

use crate::clock::NodeClock;
use crate::events::Event;
use crate::net::MS;
use crate::world::World;

/// Between two looks whether it is time.
const LOOK: u64 = 3 * MS;

/// A copy of a leader's disk.
pub struct OlderCopy {
    /// Whose.
    pub leader: usize,
    fs: MemFileSystem,
    /// The last entry that was applied when it was made, and the last one of the log on it.
    applied: u64,
    end: u64,
    state: State,
    /// The peer that leads when the leader stops, and up to where that knows its log.
    knower: Option<(PeerId, u64)>,
    /// The furthest entry that members know when it stops.
    witnessed: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The leader runs on its own disk.
    Kept,
    /// It is stopped.
    Away,
    /// It was started on the copy.
    Used,
    /// It was told that it must not take part.
    KeptOut,
}

impl World {
    pub(crate) fn keep_copy(&mut self) {
        if !self.has_faults() {
            return;
        }
        let leader = self.lots.usize(..self.plan.voters);
        let Some(running) = &self.leaders[leader].running else {
            return self.after(LOOK, Event::KeepCopy);
        };
        let applied = running.parts.handle.status().applied;
        let fs = self.leaders[leader].fs.fork();
        let Some(end) = self.log_end(leader, &fs) else {
            return self.after(LOOK, Event::KeepCopy);
        };
        self.note(format_args!("L{leader} copied {applied} {end}"));
        self.older = Some(OlderCopy {
            leader,
            fs,
            applied,
            end,
            state: State::Kept,
            knower: None,
            witnessed: 0,
        });
        let later = self.lots.u64(100..700) * MS;
        self.after(later, Event::StopForCopy);
    }

    /// The last entry of the log on a disk, which stays as it is.
    fn log_end(&self, leader: usize, fs: &MemFileSystem) -> Option<u64> {
        let clock = Arc::new(NodeClock::new(self.now, 0, 0));
        let options = GroupOptions {
            fs: Arc::new(fs.fork()),
            ..self.leaders[leader].options(&self.plan, clock, 0)
        };
        let view = View::new(Cluster::new(Strategy::LeastLoaded, 0));
        let recovered = inspect(&options, &mut Machine::new(Arc::new(view)));
        Some(recovered.ok()?.window.last_index())
    }

    /// Stops the leader of the copy, when all others have what is committed, and mostly only when
    /// something is lost with its disk.
    pub(crate) fn stop_for_copy(&mut self) {
        let Some(older) = self.older.as_ref().filter(|_| self.has_faults()) else {
            return;
        };
        let (leader, end) = (older.leader, older.end);
        let applied = |number: usize| {
            let one = &self.leaders[number];
            let running = one
                .running
                .as_ref()
                .filter(|_| one.paused_until <= self.now);
            running.map(|running| running.parts.handle.status().applied)
        };
        let all: Vec<Option<u64>> = (0..self.plan.voters).map(applied).collect();
        let serving = self.leaders.iter().position(|one| one.serving().is_some());
        let is_quiet = all.iter().all(|one| one.is_some() && *one == all[0]);
        let newest = all[0].unwrap_or_default();
        let is_lossy = newest > end || self.lots.u32(..300) == 0;
        let Some(serving) = serving.filter(|_| is_quiet && is_lossy) else {
            return self.after(LOOK, Event::StopForCopy);
        };
        let matched = self.matched(serving, self.leaders[leader].id);
        let knower = (serving != leader).then(|| (self.leaders[serving].id, matched));
        let members = self.members.iter().filter_map(|one| one.running.as_ref());
        let witnessed = members.map(|member| member.witness.committed().index);
        let witnessed = witnessed.max().unwrap_or_default();
        if newest > end {
            self.saw(match self.plan.voters {
                1 => "older copy loses writes",
                _ => "older copy lacks entries",
            });
        }
        self.crash_leader(leader, false);
        if let Some(older) = &mut self.older {
            older.state = State::Away;
            (older.knower, older.witnessed) = (knower, witnessed);
        }
        let down = self.lots.u64(5..400) * MS;
        self.after(down, Event::StartOnCopy);
    }

    /// Up to where a leader knows that the log of a peer agrees with its own.
    fn matched(&mut self, leader: usize, peer: PeerId) -> u64 {
        let seen = Arc::new(AtomicU64::new(0));
        if let Some(running) = &self.leaders[leader].running {
            let seen = Arc::clone(&seen);
            running.parts.handle.inspect(move |view| {
                let of_peer = view.progress.iter().find(|one| one.peer == peer);
                let matched = of_peer.map_or(0, |one| one.matched);
                seen.store(matched.min(view.status.commit), Ordering::Relaxed);
            });
        }
        self.advance(leader);
        seen.load(Ordering::Relaxed)
    }

    pub(crate) fn start_on_copy(&mut self) {
        let is_only = self.plan.voters == 1;
        let Some(older) = &mut self.older else {
            return;
        };
        older.state = State::Used;
        let leader = older.leader;
        self.leaders[leader].fs = older.fs.fork();
        if is_only {
            self.oracle.lock().rolled_back(older.applied);
        }
        self.note(format_args!("L{leader} is an older copy"));
        self.start_leader(leader);
    }

    /// A start of a leader: one on the copy, if it was used.
    pub(crate) fn note_start(&mut self, leader: usize) {
        let older = self.older.as_ref().filter(|older| older.leader == leader);
        if older.is_some_and(|older| older.state == State::Used) {
            self.leaders[leader].starts_on_copy += 1;
        }
    }

    /// Whether a leader is not to be started: its disk is being replaced, or it was told to stop.
    pub(crate) fn is_kept_out(&self, leader: usize) -> bool {
        let older = self.older.as_ref().filter(|older| older.leader == leader);
        older.is_some_and(|older| matches!(older.state, State::Away | State::KeptOut))
    }

    /// A leader was told that its directory is an older copy.
    pub(crate) fn keep_out(&mut self, leader: usize) {
        self.crash_leader(leader, false);
        match &mut self.older {
            Some(older) if older.leader == leader && older.state == State::Used => {
                older.state = State::KeptOut;
                self.saw("older copy kept out");
            }
            _ => self.fail(format!("leader {leader} is no older copy, and is told so")),
        }
    }

    /// Whether the only leader has lost what was written behind the copy.
    pub(crate) fn has_lost_writes(&self) -> bool {
        let older = self.older.as_ref().filter(|_| self.plan.voters == 1);
        older.is_some_and(|older| older.state == State::Used)
    }

    /// The loss of what members know is told.
    pub(crate) fn check_loss_is_told(&self) {
        let Some(older) = self.older.as_ref().filter(|_| self.has_lost_writes()) else {
            return;
        };
        let running = self.leaders[older.leader].running.as_ref();
        let is_told = running.is_some_and(|running| running.shared.view.gate.loss().is_some());
        // A later start finds nothing missing.
        let is_first = self.leaders[older.leader].starts_on_copy == 1;
        if older.witnessed > older.end && is_first && !is_told {
            let (end, witnessed) = (older.end, older.witnessed);
            self.fail(format!(
                "the log ends at {end}, members know of {witnessed}, and no loss is told"
            ));
        }
    }

    /// One on an older copy promises nothing to a peer that knows better.
    pub(crate) fn check_promises(&self, from: usize, messages: &[Outgoing]) {
        let Some(older) = self.older.as_ref().filter(|older| older.leader == from) else {
            return;
        };
        let Some((knower, known)) = older.knower.filter(|_| older.state == State::Used) else {
            return;
        };
        // What it lacked another leader may have given it meanwhile, one that had all of it.
        let running = self.leaders[from].running.as_ref();
        let applied = running.map_or(0, |running| running.parts.handle.status().applied);
        if known <= older.end.max(applied) {
            return;
        }
        for message in messages.iter().filter(|message| message.to == knower) {
            let Ok(message) = Message::parse_from_bytes(&message.bytes) else {
                continue;
            };
            let kind = message.get_msg_type();
            let is_promise = match kind {
                MessageType::MsgRequestVote => true,
                MessageType::MsgRequestVoteResponse | MessageType::MsgAppendResponse => {
                    !message.reject
                }
                _ => false,
            };
            if is_promise {
                self.fail(format!(
                    "leader {from} is an older copy, up to {}, and sends {kind:?} to {knower}, \
                     which knows of {known}",
                    older.end
                ));
            }
        }
    }
}
