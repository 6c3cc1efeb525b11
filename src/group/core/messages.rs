//! Messages between peers: which are taken, and how they leave. Pure.

use protobuf::Message as _;
use raft::eraftpb::{Message, MessageType};

use super::copies::Conflict;
use super::{membership, wire};
use crate::group::configuration::Configuration;
use crate::group::window::Position;
use crate::ids::PeerId;

/// Why a message was dropped.
#[derive(Debug, thiserror::Error)]
pub enum MessageDropped {
    /// No intact peer sends it, see [`super::guard`].
    #[error("message of a peer dropped: {0}")]
    Absurd(String),
    /// It would overwrite what is committed, see [`super::copies`].
    #[error("{0}")]
    Conflict(Conflict),
    /// It came too late, or is for somebody else; Raft makes up for it.
    #[error("message of a peer dropped: {0}")]
    Untimely(String),
}

/// A message to a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// To whom.
    pub to: PeerId,
    /// The message, for [`super::Core::step`] of that peer.
    pub bytes: Vec<u8>,
    /// If it is about a snapshot: which one. The peer takes the message only after the file.
    pub snapshot: Option<Position>,
}

/// A message that carries a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotMessage {
    /// Who sent it, as it says.
    pub from: PeerId,
    /// The last entry that is in it.
    pub position: Position,
    /// Who takes part there.
    pub configuration: Configuration,
}

/// What a message with a snapshot says of it; `None` if it is no such message.
pub fn snapshot_of(bytes: &[u8]) -> Option<SnapshotMessage> {
    let message = decode(bytes).ok()?;
    if message.get_msg_type() != MessageType::MsgSnapshot {
        return None;
    }
    let metadata = message.get_snapshot().get_metadata();
    Some(SnapshotMessage {
        from: PeerId(message.from),
        position: Position {
            index: metadata.index,
            term: metadata.term,
        },
        configuration: membership::configuration(metadata.get_conf_state()),
    })
}

pub(super) fn decode(bytes: &[u8]) -> Result<Message, MessageDropped> {
    if !wire::is_without_groups(bytes, &wire::MESSAGE) {
        return Err(MessageDropped::Absurd("it has groups".to_owned()));
    }
    Message::parse_from_bytes(bytes)
        .map_err(|source| MessageDropped::Absurd(format!("undecodable: {source}")))
}

/// Whether a message asks for a vote, or whether one would be given.
pub(super) fn asks_for_vote(bytes: &[u8]) -> bool {
    Message::parse_from_bytes(bytes).is_ok_and(|message| {
        matches!(
            message.get_msg_type(),
            MessageType::MsgRequestVote | MessageType::MsgRequestPreVote
        )
    })
}

pub(super) fn encode(messages: Vec<Message>) -> Vec<Outgoing> {
    let outgoing = |message: Message| {
        let bytes = message
            .write_to_bytes()
            .expect("a message built by the crate has all its fields");
        let metadata = message.get_snapshot().get_metadata();
        let is_snapshot = message.get_msg_type() == MessageType::MsgSnapshot;
        Outgoing {
            to: PeerId(message.to),
            bytes,
            snapshot: is_snapshot.then_some(Position {
                index: metadata.index,
                term: metadata.term,
            }),
        }
    };
    messages.into_iter().map(outgoing).collect()
}
