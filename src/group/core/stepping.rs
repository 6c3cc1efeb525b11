//! Messages of peers on their way into the crate: decoded, compared with what is known, stepped.
//! Pure.

use raft::StateRole;
use raft::eraftpb::{Message, MessageType};

use super::{Core, MessageDropped, guard, messages};
use crate::ids::PeerId;

impl Core {
    /// Takes a message that came on the link of the peer `link`, as [`super::Batch::messages`] of
    /// that peer had it. One that carries a snapshot is for [`Core::step_snapshot`].
    pub fn step(&mut self, link: PeerId, message: &[u8]) -> Result<(), MessageDropped> {
        let message = messages::decode(message)?;
        if message.get_msg_type() == MessageType::MsgSnapshot {
            let reason = "a snapshot without its file".to_owned();
            return Err(MessageDropped::Absurd(reason));
        }
        if !message.get_entries().is_empty() && self.is_flooded() {
            let reason = "too much waits to be stored".to_owned();
            return Err(MessageDropped::Untimely(reason));
        }
        self.take(link, message)
    }

    /// Takes the message that goes with a snapshot whose file is here, durable and whole. Whether
    /// it is installed the next batch says.
    pub fn step_snapshot(&mut self, link: PeerId, message: &[u8]) -> Result<(), MessageDropped> {
        self.take(link, messages::decode(message)?)
    }

    fn take(&mut self, link: PeerId, message: Message) -> Result<(), MessageDropped> {
        guard::check_sender(&message, link)?;
        if !Core::is_exchange(&message) {
            guard::check(&message, link, &self.known(link))?;
            guard::check_commands(&message, self.check)?;
        }
        if self.is_recall(&message)? {
            return Ok(());
        }
        self.answering.note(link, &message);
        self.node
            .step(message)
            .map_err(|source| MessageDropped::Untimely(source.to_string()))
    }

    /// What a message of the peer `link` is compared with.
    fn known(&self, link: PeerId) -> guard::Known {
        let raft = &self.node.raft;
        let committed_term = raft.raft_log.term(raft.raft_log.committed);
        let leads = raft.state == StateRole::Leader;
        let leader = (raft.leader_id != raft::INVALID_ID).then_some(PeerId(raft.leader_id));
        guard::Known {
            own: self.id,
            term: raft.term,
            committed_term: committed_term.unwrap_or_default(),
            leader,
            hears_leader: leads
                || (leader.is_some() && raft.election_elapsed < raft.election_timeout()),
            last_index: raft.raft_log.last_index(),
            takes_part: self.configuration().peers().contains(&link),
        }
    }
}
