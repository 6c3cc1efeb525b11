//! Messages between peers: which are taken, and how they leave. Pure.

use protobuf::Message as _;
use raft::eraftpb::{EntryType, Message, MessageType};

use super::membership;
use crate::group::configuration::Configuration;
use crate::group::window::Position;
use crate::ids::{PeerId, Revision};

/// Why a message was dropped.
#[derive(Debug, thiserror::Error)]
#[error("message of a peer dropped: {0}")]
pub struct MessageDropped(pub(super) String);

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
    /// The last entry that is in it.
    pub position: Position,
    /// Who takes part there.
    pub configuration: Configuration,
}

/// What a message with a snapshot says of it; `None` if it is no such message.
pub fn snapshot_of(bytes: &[u8]) -> Option<SnapshotMessage> {
    let message = Message::parse_from_bytes(bytes).ok()?;
    if message.get_msg_type() != MessageType::MsgSnapshot {
        return None;
    }
    let metadata = message.get_snapshot().get_metadata();
    Some(SnapshotMessage {
        position: Position {
            index: metadata.index,
            term: metadata.term,
        },
        configuration: membership::configuration(metadata.get_conf_state()),
    })
}

pub(super) fn decode(bytes: &[u8]) -> Result<Message, MessageDropped> {
    Message::parse_from_bytes(bytes)
        .map_err(|source| MessageDropped(format!("undecodable: {source}")))
}

/// Whether the participant `own` takes a message at all.
pub(super) fn check(message: &Message, own: PeerId) -> Result<(), MessageDropped> {
    let refuse = |reason: String| Err(MessageDropped(reason));
    if message.to != own.0 {
        return refuse(format!("it is for {}", PeerId(message.to)));
    }
    if message.term > Revision::TERM_MAX {
        return refuse(format!("term {} is too high", message.term));
    }
    let is_known = |kind| matches!(kind, EntryType::EntryNormal | EntryType::EntryConfChangeV2);
    if !message
        .entries
        .iter()
        .all(|entry| is_known(entry.get_entry_type()))
    {
        return refuse("an entry of an unknown kind".to_owned());
    }
    match message.get_msg_type() {
        MessageType::MsgPropose | MessageType::MsgReadIndex | MessageType::MsgTransferLeader => {
            refuse("requests are not forwarded between peers".to_owned())
        }
        _ => Ok(()),
    }
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
