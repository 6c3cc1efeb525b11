//! Whom a leader asks whether it still leads, for reads that wait: no more peers than it needs.
//! Pure.
//!
//! The `raft` crate sends a request of reads (ReadIndex, Raft thesis 6.4) to all peers, and goes on
//! when a majority has answered. Each peer that is asked costs the leader and the peer a message
//! and a few thread switches for each request, so only the voters that answered such requests last
//! are asked, as many as make a majority with the leader. Should one of them stay silent, the next
//! heartbeat, 50 ms later at most, asks all: the crate puts the open request into it. From then on
//! those that answered are asked. All are asked, too, when a request is repeated, while the
//! configuration is joint, and as long as too few are known to answer.

use raft::eraftpb::{Message, MessageType};

use super::Core;
use crate::ids::PeerId;

/// The peers that answer requests of reads, whoever did so last at the front.
#[derive(Debug, Default)]
pub(super) struct Answering(Vec<PeerId>);

impl Answering {
    /// Takes note of a message of a peer.
    pub(super) fn note(&mut self, peer: PeerId, message: &Message) {
        let is_answer = message.get_msg_type() == MessageType::MsgHeartbeatResponse;
        if is_answer && !message.context.is_empty() {
            self.forget(peer);
            self.0.insert(0, peer);
        }
    }

    /// Messages to a peer get lost.
    pub(super) fn forget(&mut self, peer: PeerId) {
        self.0.retain(|one| *one != peer);
    }
}

impl Core {
    /// Asks for a confirmation that this participant leads (R4). It may never be answered.
    pub fn read_index(&mut self, context: u64) {
        let before = self.node.raft.msgs.len();
        self.read_index_of_all(context);
        let Some(asked) = self.majority() else {
            return;
        };
        let mut position = 0;
        self.node.raft.msgs.retain(|message| {
            position += 1;
            let is_request = message.get_msg_type() == MessageType::MsgHeartbeat;
            position <= before || !is_request || asked.contains(&PeerId(message.to))
        });
    }

    /// The same, of all peers.
    pub fn read_index_of_all(&mut self, context: u64) {
        self.node.read_index(context.to_be_bytes().to_vec());
    }

    /// Voters that answer and make a majority with this one, if so many are known.
    fn majority(&self) -> Option<Vec<PeerId>> {
        let configuration = self.configuration();
        let voters = &configuration.voters;
        if configuration.is_joint() || !voters.contains(&self.id) {
            return None;
        }
        let needed = voters.len() / 2;
        let answering = self.answering.0.iter().copied();
        let asked = answering.filter(|peer| *peer != self.id && voters.contains(peer));
        let asked: Vec<PeerId> = asked.take(needed).collect();
        (asked.len() == needed).then_some(asked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_answers_a_read_comes_first_until_messages_to_it_get_lost() {
        let answer = |context: &'static [u8]| Message {
            msg_type: MessageType::MsgHeartbeatResponse,
            context: context.into(),
            ..Message::default()
        };
        let mut answering = Answering::default();
        answering.note(PeerId(1), &answer(b""));
        answering.note(PeerId(1), &Message::default());
        assert_eq!(answering.0, []);
        for peer in [1, 2, 1] {
            answering.note(PeerId(peer), &answer(b"read"));
        }
        assert_eq!(answering.0, [PeerId(1), PeerId(2)]);
        answering.forget(PeerId(1));
        assert_eq!(answering.0, [PeerId(2)]);
    }
}
