//! What keeps an older copy of a leader's directory from doing harm. Pure.
//!
//! # Terms
//!
//! Terms that members have obeyed are stepped over: [`Core::leave_terms`].
//!
//! # Peers
//!
//! A participant that runs on an older copy of its directory (a restored backup, a disk that was
//! rolled back) has forgotten votes, and entries that it had acknowledged: counted with others, it
//! could elect a leader without entries that are committed. It cannot know that; its peers may.
//! Each remembers, as long as it runs, of each other one the last committed entry that this had
//! stored, and the latest term in which it promised something. So one that starts again asks each
//! peer what that knows of it, and until it is told takes nothing from that peer and sends it
//! nothing. If that is more than it has, it stops for good ([`GroupError::OlderCopy`]). Committed
//! entries are never cut and terms never go back, so an intact one always has that much.
//!
//! Of the crate's messages those that it uses inside of a process never go to a peer; two of these
//! kinds carry the question and the answer.
//!
//! # Committed entries
//!
//! A leader that has another entry where one is committed here was elected without it: it, or one
//! that voted for it, runs on an older copy. A [`Conflict`] with it stands until an entry of a
//! later term than its own is committed here. Until then this participant takes no append,
//! heartbeat or snapshot of that leader in its term, and votes neither for it nor for a log that
//! ends in its term. So nothing that is committed here is overwritten, and a hostile peer that
//! sends such a message isolates nobody but itself. If the leader was elected, this participant is
//! stuck until people decide which of the logs is to be kept.
//!
//! Known limit: what peers know ends with their processes. When all that knew it are down or were
//! started since, an older copy takes part; what members know ([`super::floor`]) then keeps it from
//! electing a leader that lacks committed entries.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use raft::StateRole;
use raft::eraftpb::{Message, MessageType};

use super::{Core, CoreStatus, MessageDropped, Outgoing, messages};
use crate::faults::{self, Fault};
use crate::group::{GroupError, Leadership};
use crate::ids::{LogPosition, PeerId, Revision};

impl CoreStatus {
    /// It serves from here on, in `term`.
    pub fn serving_in(&self, term: u64) -> Leadership {
        Leadership::Serving {
            term,
            behind: self.behind,
        }
    }
}

/// A peer that led, or claimed to lead, without an entry that is committed here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The peer.
    pub peer: PeerId,
    /// The term in which it did so.
    pub term: u64,
    /// The first entry that was seen to differ.
    pub index: u64,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Conflict { peer, term, index } = self;
        write!(
            f,
            "leader {peer} of term {term} has another entry at {index} of the log, which is \
             committed here: it, or one that voted for it, runs on an older copy of its directory. \
             This leader keeps what it has and does not follow it. To give its entries up: remove \
             it from the group (tolerex group remove ID), empty its directory, start it with \
             --join, and add it again (tolerex group add HOST:PORT)"
        )
    }
}

/// Why a participant neither leads nor follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// It cannot follow the one that leads.
    Conflict(Conflict),
    /// Its log ends below what members know to be committed, and none that has more leads.
    Lacks {
        /// The furthest entry that members know to be committed.
        committed: LogPosition,
        /// Its last entry.
        last: LogPosition,
    },
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Obstacle::Conflict(conflict) => write!(f, "{conflict}"),
            Obstacle::Lacks { committed, last } => write!(
                f,
                "this leader's log ends at entry {last}, and members know of committed entries up \
                 to {committed}: it waits for a leader that has them. If none does, all leaders \
                 started with --accept-loss {}.{} give them up",
                committed.term, committed.index
            ),
        }
    }
}

/// Conflicts that are remembered; the oldest is forgotten first, and found again. A group has few
/// leaders.
const CONFLICTS_MAX: usize = 16;

/// What do you know of me?
const ASK: MessageType = MessageType::MsgCheckQuorum;

/// The answer: the index of an entry, and a term.
const TELL: MessageType = MessageType::MsgSnapStatus;

/// Peers whose answer is remembered; those beyond are asked again and again. A group has some tens
/// over the years.
const TOLD_MAX: usize = 1024;

/// What is known of peers, and what they are asked.
#[derive(Default)]
pub(super) struct Recall {
    /// It asks them.
    asks: bool,
    /// Those that have told.
    told: BTreeSet<PeerId>,
    /// What this one knows of each. Peers take part by entries of the log, so there are few.
    known: BTreeMap<PeerId, Known>,
    /// Leaders that lack committed entries, the latest last; none twice.
    conflicts: Vec<Conflict>,
    /// To be sent.
    outbox: Vec<Message>,
    /// Why this participant must stop.
    objection: Option<GroupError>,
}

/// What is known of a peer.
#[derive(Clone, Copy, Default)]
struct Known {
    /// The last committed entry that it has stored.
    stored: u64,
    /// The latest term in which it promised something.
    term: u64,
}

impl Recall {
    pub(super) fn new(asks: bool) -> Recall {
        Recall {
            asks: asks && !faults::has(Fault::OlderCopyVotes),
            ..Recall::default()
        }
    }

    fn is_settled(&self, peer: PeerId) -> bool {
        !self.asks || self.told.contains(&peer)
    }
}

impl Core {
    /// Somebody was obeyed in a term up to `above` that this participant knows nothing of: it takes
    /// part in terms above that only. As when a message of such a term arrives, it does not lead
    /// any more, and stands for election when its time comes. Without effect if there are no terms
    /// above.
    pub fn leave_terms(&mut self, above: u64) {
        let raft = &mut self.node.raft;
        if raft.term <= above && above < Revision::TERM_MAX - 1 {
            raft.become_follower(above, raft::INVALID_ID);
        }
    }

    /// Remembers what stood in the log before the first entry of a term that it leads. Nothing else
    /// is appended in a term before that entry is handed out.
    pub(super) fn note_election(&mut self) {
        let raft = &self.node.raft;
        if raft.state != StateRole::Leader || self.elected.0 == raft.term {
            return;
        }
        let index = raft.raft_log.last_index() - 1;
        let term = raft.raft_log.term(index).unwrap_or_default();
        self.elected = (raft.term, LogPosition { term, index });
    }
}

impl Core {
    /// An error if this participant must stop.
    pub fn objection(&mut self) -> Result<(), GroupError> {
        self.recall.objection.take().map_or(Ok(()), Err)
    }

    /// Takes out what is for peers that have not told yet, and adds questions and answers.
    pub fn screen(&mut self, outgoing: &mut Vec<Outgoing>) {
        outgoing.retain(|message| self.recall.is_settled(message.to));
        self.give_up_candidacy(outgoing);
        let own = std::mem::take(&mut self.recall.outbox);
        outgoing.extend(messages::encode(own));
    }

    /// A leader remembers how far its peers are.
    pub(super) fn remember_peers(&mut self) {
        let raft = &self.node.raft;
        if raft.state != StateRole::Leader {
            return;
        }
        for (peer, progress) in raft.prs().iter() {
            let known = self.recall.known.entry(PeerId(*peer)).or_default();
            let stored = progress.matched.min(raft.raft_log.committed);
            known.stored = known.stored.max(stored);
        }
    }

    /// Asks the peers that have not told yet.
    pub(super) fn ask_peers(&mut self) {
        if !self.recall.asks {
            return;
        }
        for peer in self.configuration().peers() {
            if peer != self.id && !self.recall.told.contains(&peer) {
                self.ask(peer);
            }
        }
    }

    fn ask(&mut self, peer: PeerId) {
        let message = self.own_message(ASK, peer);
        self.recall.outbox.push(message);
    }

    /// Whether a message is a question or an answer of this exchange, which has kinds of its own.
    pub(super) fn is_exchange(message: &Message) -> bool {
        matches!(message.get_msg_type(), ASK | TELL)
    }

    fn own_message(&self, kind: MessageType, to: PeerId) -> Message {
        let mut message = Message::default();
        message.set_msg_type(kind);
        message.from = self.id.0;
        message.to = to.0;
        message
    }

    /// Takes a question or an answer; true if it was one. What comes from a peer that has not told
    /// yet is dropped, and what would overwrite committed entries.
    pub(super) fn is_recall(&mut self, message: &Message) -> Result<bool, MessageDropped> {
        let from = PeerId(message.from);
        if message.to != self.id.0 {
            return Ok(false);
        }
        match message.get_msg_type() {
            ASK => {
                self.remember_peers();
                let known = self.recall.known.get(&from).copied().unwrap_or_default();
                let mut answer = self.own_message(TELL, from);
                answer.index = known.stored;
                answer.term = known.term;
                self.recall.outbox.push(answer);
                return Ok(true);
            }
            TELL => {
                self.told(from, message.index, message.term);
                return Ok(true);
            }
            _ => {}
        }
        if !self.recall.is_settled(from) {
            self.ask(from);
            let reason = format!("{from} is asked first what it knows of this leader");
            return Err(MessageDropped::Untimely(reason));
        }
        // These promise what is stored; others may be of a term that is not.
        let is_promise = match message.get_msg_type() {
            MessageType::MsgRequestVote | MessageType::MsgAppendResponse => true,
            MessageType::MsgRequestVoteResponse => !message.reject,
            _ => false,
        };
        let takes_part = self.configuration().peers().contains(&from);
        if is_promise && takes_part && message.term <= Revision::TERM_MAX {
            let known = self.recall.known.entry(from).or_default();
            known.term = known.term.max(message.term);
        }
        self.check_conflicts(message)?;
        self.check_candidate(message)?;
        Ok(false)
    }

    /// A peer says what it knows of this participant.
    fn told(&mut self, peer: PeerId, known: u64, term: u64) {
        if !self.recall.asks || !self.configuration().peers().contains(&peer) {
            self.remember_told(peer);
            return;
        }
        let raft = &self.node.raft;
        let last = raft.raft_log.last_index();
        if known > last || term > raft.term {
            self.recall.objection = Some(GroupError::OlderCopy {
                peer,
                known,
                term,
                last,
            });
            return;
        }
        self.remember_told(peer);
    }

    fn remember_told(&mut self, peer: PeerId) {
        if self.recall.told.len() < TOLD_MAX {
            self.recall.told.insert(peer);
        }
    }

    /// The latest conflict that stands.
    pub fn conflict(&self) -> Option<Conflict> {
        self.recall.conflicts.last().copied()
    }

    /// Forgets the conflicts that are over: a log with the entry that is committed now is newer
    /// than those of their terms.
    pub(super) fn end_conflicts(&mut self) {
        if self.recall.conflicts.is_empty() {
            return;
        }
        let log = &self.node.raft.raft_log;
        let term = log.term(log.committed).unwrap_or_default();
        let stands = |conflict: &Conflict| term <= conflict.term;
        self.recall.conflicts.retain(stands);
    }

    /// Refuses what would overwrite committed entries, and what comes of a peer that tried.
    fn check_conflicts(&mut self, message: &Message) -> Result<(), MessageDropped> {
        let peer = PeerId(message.from);
        let is_refused = |conflict: &&Conflict| match message.get_msg_type() {
            MessageType::MsgAppend
            | MessageType::MsgHeartbeat
            | MessageType::MsgSnapshot
            | MessageType::MsgTimeoutNow => (conflict.peer, conflict.term) == (peer, message.term),
            // Only the leader of a term makes entries of it.
            MessageType::MsgRequestVote | MessageType::MsgRequestPreVote => {
                conflict.peer == peer || conflict.term == message.log_term
            }
            _ => false,
        };
        if let Some(conflict) = self.recall.conflicts.iter().find(is_refused) {
            let reason = format!("{peer} lacks entry {}, committed here", conflict.index);
            return Err(MessageDropped::Untimely(reason));
        }
        let Some(conflict) = self.find_conflict(message) else {
            return Ok(());
        };
        let conflicts = &mut self.recall.conflicts;
        conflicts.retain(|earlier| earlier.peer != peer);
        if conflicts.len() == CONFLICTS_MAX {
            conflicts.remove(0);
        }
        conflicts.push(conflict);
        Err(MessageDropped::Conflict(conflict))
    }

    /// The first committed entry that the entries of a message are not.
    fn find_conflict(&self, message: &Message) -> Option<Conflict> {
        let raft = &self.node.raft;
        if message.get_msg_type() != MessageType::MsgAppend || message.term < raft.term {
            return None;
        }
        let log = &raft.raft_log;
        let committed = self.known_committed();
        let behind = std::iter::once((message.index, message.log_term));
        let entries = message
            .entries
            .iter()
            .map(|entry| (entry.index, entry.term));
        let differs = |(index, term): &(u64, u64)| {
            // Below what is in memory nothing can be compared: the crate passes over it, too.
            let is_held = *index >= log.first_index();
            is_held && *index <= committed && log.term(*index).is_ok_and(|own| own != *term)
        };
        let (index, _) = behind.chain(entries).find(differs)?;
        let (peer, term) = (PeerId(message.from), message.term);
        Some(Conflict { peer, term, index })
    }
}
