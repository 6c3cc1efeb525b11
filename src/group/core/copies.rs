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
//! A leader that has another entry where one is committed here was elected without it. Its message
//! is not taken, and this participant stops with what it has ([`GroupError::Overwrites`]).
//!
//! Known limit: what peers know ends with their processes. When all that knew it are down or were
//! started since, an older copy takes part; members then tell whoever is elected with it that it
//! lacks committed entries, and it does not serve.

use std::collections::{BTreeMap, BTreeSet};

use raft::StateRole;
use raft::eraftpb::{Message, MessageType};

use super::{Core, CoreStatus, MessageDropped, Outgoing, messages};
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
            asks,
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
        self.check_overwrite(message)?;
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

    /// Refuses what would overwrite committed entries.
    fn check_overwrite(&mut self, message: &Message) -> Result<(), MessageDropped> {
        let raft = &self.node.raft;
        if message.get_msg_type() != MessageType::MsgAppend || message.term < raft.term {
            return Ok(());
        }
        let log = &raft.raft_log;
        let behind = std::iter::once((message.index, message.log_term));
        let entries = message
            .entries
            .iter()
            .map(|entry| (entry.index, entry.term));
        let differs = |(index, term): &(u64, u64)| {
            // Below what is in memory nothing can be compared: the crate passes over it, too.
            let is_held = *index >= log.first_index();
            is_held && *index <= log.committed && log.term(*index).is_ok_and(|own| own != *term)
        };
        let Some((index, _)) = behind.chain(entries).find(differs) else {
            return Ok(());
        };
        let (peer, term) = (PeerId(message.from), message.term);
        self.recall.objection = Some(GroupError::Overwrites { peer, term, index });
        Err(MessageDropped::Untimely(format!(
            "{peer} would overwrite entry {index}"
        )))
    }
}
