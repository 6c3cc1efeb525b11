//! No participant becomes leader without the entries that members know to be committed. Pure.
//!
//! Each member remembers the furthest entry that a leader told it is committed, and tells all
//! leaders: the highest of these is the **floor**. A log whose last entry is below it, in the order
//! in which Raft compares logs, lacks a committed entry. With intact directories such a log belongs
//! to a follower that lags, and is not elected (Raft thesis 3.6.1). Where a participant runs on an
//! older copy of its directory it might be: this participant asks for no vote while its own log is
//! below the floor, and votes for no log that is. So nobody leads until one returns that has the
//! entries, and nothing is overwritten meanwhile; what peers know of each other ([`super::copies`])
//! is not needed for that.
//!
//! A participant that has just started knows no floor. It neither votes nor asks for votes until
//! enough members have told it, or for [`HOLD_TICKS`]: members that are up tell within half a
//! second.
//!
//! A participant that is alone elects itself: nobody else can have the entries.
//!
//! Known limits: members are told with their heartbeats, so entries that were committed within the
//! last second before a leader was lost may be above the floor that they know. A member that names
//! an entry which does not exist keeps the group from electing until the loss of it is accepted
//! (`accept_loss`).

use raft::StateRole;
use raft::eraftpb::{Message, MessageType};

use super::copies::Obstacle;
use super::{Core, MessageDropped, Outgoing, messages};
use crate::ids::LogPosition;

/// Ticks for which a participant that has just started waits for members: 2 s. Half of it is what
/// members take to dial again; with ten times as much, members that are down would delay each
/// election after a start of all leaders by many seconds.
const HOLD_TICKS: u32 = 40;

/// Candidacies in a row that are given up before people are told: until then another one, which
/// has the entries, may be elected.
const CANDIDACIES_MIN: u32 = 4;

/// The floor as far as members have told it, and what follows from it.
#[derive(Default)]
pub(super) struct Floor {
    floor: LogPosition,
    /// Ticks for which it still waits for members.
    hold_ticks: u32,
    /// Candidacies that were given up since it knew a leader.
    given_up: u32,
}

impl Floor {
    pub(super) fn new(asks_members: bool) -> Floor {
        Floor {
            hold_ticks: if asks_members { HOLD_TICKS } else { 0 },
            ..Floor::default()
        }
    }
}

impl Core {
    /// Members know that `floor` is committed; if `is_enough` have told, none is waited for.
    pub fn members_told(&mut self, floor: LogPosition, is_enough: bool) {
        self.floor.floor = floor;
        if is_enough {
            self.floor.hold_ticks = 0;
        }
    }

    /// The last entry here that is known to be committed: Raft forgets in a crash how far that was,
    /// and members may know.
    pub(super) fn known_committed(&self) -> u64 {
        let log = &self.node.raft.raft_log;
        let LogPosition { term, index } = self.floor.floor;
        match log.term(index) {
            Ok(own) if own == term => log.committed.max(index),
            _ => log.committed,
        }
    }

    fn last(&self) -> LogPosition {
        let log = &self.node.raft.raft_log;
        let index = log.last_index();
        let term = log.term(index).unwrap_or_default();
        LogPosition { term, index }
    }

    fn is_held(&self) -> bool {
        self.floor.hold_ticks > 0
    }

    pub(super) fn tick_floor(&mut self) {
        self.floor.hold_ticks = self.floor.hold_ticks.saturating_sub(1);
        let raft = &self.node.raft;
        if raft.leader_id != raft::INVALID_ID || self.last() >= self.floor.floor {
            self.floor.given_up = 0;
        }
    }

    /// Takes out requests for votes that this participant must not be given.
    pub(super) fn give_up_candidacy(&mut self, outgoing: &mut Vec<Outgoing>) {
        if !self.is_held() && self.last() >= self.floor.floor {
            return;
        }
        let count = outgoing.len();
        outgoing.retain(|message| !messages::asks_for_vote(&message.bytes));
        if outgoing.len() < count && !self.is_held() {
            self.floor.given_up += 1;
        }
    }

    /// Drops a request for a vote that must not be given.
    pub(super) fn check_candidate(&self, message: &Message) -> Result<(), MessageDropped> {
        let is_request = matches!(
            message.get_msg_type(),
            MessageType::MsgRequestVote | MessageType::MsgRequestPreVote
        );
        if !is_request {
            return Ok(());
        }
        let (term, index) = (message.log_term, message.index);
        if self.is_held() {
            let reason = "members are heard first".to_owned();
            return Err(MessageDropped::Untimely(reason));
        }
        if (LogPosition { term, index }) < self.floor.floor {
            let floor = self.floor.floor;
            let reason = format!("a candidate lacks entry {floor}, which is committed");
            return Err(MessageDropped::Untimely(reason));
        }
        Ok(())
    }

    /// Why this participant neither leads nor follows, once that has lasted.
    pub fn obstacle(&self) -> Option<Obstacle> {
        let raft = &self.node.raft;
        if raft.leader_id != raft::INVALID_ID || raft.state == StateRole::Leader {
            return None;
        }
        if let Some(conflict) = self.conflict() {
            return Some(Obstacle::Conflict(conflict));
        }
        (self.floor.given_up >= CANDIDACIES_MIN).then(|| Obstacle::Lacks {
            committed: self.floor.floor,
            last: self.last(),
        })
    }
}
