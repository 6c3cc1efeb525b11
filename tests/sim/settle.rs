//! The end of the faults, and what must come after it.
//!
//! **Liveness**: within [`SETTLE`] from the end of the faults one leader serves, every request has
//! ended, no change of the group is under way, and all leaders that take part have applied the same
//! log to the same state. Then, in half of the runs after a power failure of everything that loses
//! all that is not synced, every key is read again, within the same time; the history with these
//! reads is judged.

use tolerex::disk::mem::Loss;
use tolerex::ids::PeerId;

use crate::events::Event;
use crate::net::MS;
use crate::world::{Phase, TICKS, World};

/// From the end of the faults to rest: 400 ticks.
const SETTLE: u64 = 20_000 * MS;

/// How long after its time a message may still be there.
const EXPIRY_MS_MAX: u64 = 2_000;

/// How often to look whether it has come to rest.
const LOOK: u64 = 25 * MS;

impl World {
    /// Whether things may fail.
    pub fn has_faults(&self) -> bool {
        self.phase == Phase::Faults
    }

    /// The faults stop.
    pub(crate) fn calm(&mut self) {
        self.trace.note(self.now, format_args!("calm"));
        self.phase = Phase::Calm;
        self.phase_since = self.now;
        self.net.heal();
        self.mount(self.plan.rotten);
        if self.plan.has_rivals && self.plan.leaders > 1 {
            // Two of a group of two that stand at the same time each time could tie for ever. In
            // the real program each time-out is drawn by chance.
            self.crash_leader(1, false);
            self.leaders[1].ticks = *TICKS.end() + 1;
        }
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
            self.check_loss_is_told();
            return match self.phase {
                // Copies of what is found again may be gone.
                Phase::Calm if self.has_lost_writes() => self.phase = Phase::Over,
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
        let Some((_, configuration)) = self.serving() else {
            return Some("nobody serves".to_owned());
        };
        if configuration.is_joint() || !configuration.learners.is_empty() {
            return Some("a change of the group is under way".to_owned());
        }
        let takes_part = |id: PeerId| configuration.voters.contains(&id);
        let mut states = Vec::new();
        for (number, leader) in self.leaders.iter().enumerate() {
            if !takes_part(leader.id) {
                continue;
            }
            if self.is_kept_out(number) {
                continue;
            }
            let Some(running) = &leader.running else {
                return Some(format!("leader {number} is down"));
            };
            if !running.parked.is_empty() {
                return Some(format!("leader {number} has batches that wait"));
            }
            let (shared, now_ms) = (&running.shared, running.shared.command_ms());
            let next_ms = shared.view.metadata.next_expiry_ms();
            if next_ms.is_some_and(|next_ms| next_ms + EXPIRY_MS_MAX < now_ms) {
                return Some(format!("leader {number} has a message that is over"));
            }
            states.push((running.parts.handle.status().applied, number));
        }
        let (first, last) = (states.iter().min()?, states.iter().max()?);
        if first.0 != last.0 {
            let (index, leader) = first;
            return Some(format!("leader {leader} has applied {index} of {}", last.0));
        }
        if let Some(revision) = self.counted_without_reason() {
            return Some(format!("a copy of {revision} that is not there is counted"));
        }
        let index = first.0;
        for (number, leader) in self.leaders.iter().enumerate() {
            if let Some(running) = leader.running.as_ref().filter(|_| takes_part(leader.id)) {
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
