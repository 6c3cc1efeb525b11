//! Messages and logs in words, for the golden scripts. Peers are named by their ids: p1, p2, …

use raft::eraftpb::{ConfChangeType, Message, MessageType};

use super::{Core, membership, messages};
use crate::group::window::{EntryKind, LogEntry};
use crate::ids::PeerId;

/// The longest text of an entry that is shown in full.
const TEXT_BYTES_MAX: usize = 24;

/// A peer's name.
pub fn name(peer: PeerId) -> String {
    format!("p{}", peer.0)
}

/// The names of peers.
pub fn names<'a>(peers: impl IntoIterator<Item = &'a PeerId>) -> String {
    let names: Vec<String> = peers.into_iter().map(|peer| name(*peer)).collect();
    names.join(" ")
}

/// What was proposed, in short.
pub fn text(data: &[u8]) -> String {
    match std::str::from_utf8(data) {
        Ok(text) if data.len() <= TEXT_BYTES_MAX => text.to_owned(),
        Ok(text) => format!("{}({} bytes)", text.trim_end_matches('.'), data.len()),
        Err(_) => format!("({} bytes)", data.len()),
    }
}

/// `index@term`, and what stands there.
pub fn entry(entry: &LogEntry) -> String {
    let LogEntry { index, term, .. } = *entry;
    let content = match entry.kind {
        EntryKind::Command if entry.data.is_empty() => "-".to_owned(),
        EntryKind::Command => text(&entry.data),
        EntryKind::Configuration => change(&entry.data),
    };
    format!("{index}@{term}:{content}")
}

/// Entries in a row.
pub fn entries<'a>(list: impl IntoIterator<Item = &'a LogEntry>) -> String {
    let list: Vec<String> = list.into_iter().map(entry).collect();
    match list.is_empty() {
        true => "nothing".to_owned(),
        false => list.join(" "),
    }
}

/// A change of the configuration.
fn change(data: &[u8]) -> String {
    let change = membership::decode(data).expect("an entry of the crate");
    if change.changes.is_empty() {
        return "leave".to_owned();
    }
    let singles = change.changes.iter().map(|single| {
        let kind = match single.get_change_type() {
            ConfChangeType::AddNode => "voter",
            ConfChangeType::AddLearnerNode => "learner",
            ConfChangeType::RemoveNode => "remove",
        };
        format!("{kind}({})", name(PeerId(single.node_id)))
    });
    let singles: Vec<String> = singles.collect();
    singles.join(",")
}

/// The kind of a message, without the crate's prefix.
pub fn kind(bytes: &[u8]) -> String {
    kind_of(&parse(bytes))
}

fn parse(bytes: &[u8]) -> Message {
    messages::decode(bytes).expect("a message of the crate")
}

fn kind_of(message: &Message) -> String {
    // The two kinds that are used between peers for what these know of each other.
    match message.get_msg_type() {
        MessageType::MsgCheckQuorum => return "Ask".to_owned(),
        MessageType::MsgSnapStatus => return "Tell".to_owned(),
        _ => {}
    }
    let kind = format!("{:?}", message.get_msg_type());
    kind.trim_start_matches("Msg").to_owned()
}

/// A message with all that counts in it.
pub fn message(bytes: &[u8]) -> String {
    let message = parse(bytes);
    let (kind, term) = (kind_of(&message), message.term);
    let (index, log_term, commit) = (message.index, message.log_term, message.commit);
    let answer = match message.reject {
        true => "no",
        false => "yes",
    };
    let read = match <[u8; 8]>::try_from(&message.context[..]) {
        Ok(context) => format!(", read {}", u64::from_be_bytes(context)),
        Err(_) => String::new(),
    };
    let details = match message.get_msg_type() {
        MessageType::MsgRequestVote | MessageType::MsgRequestPreVote => {
            let is_forced = message.context == raft::CAMPAIGN_TRANSFER;
            let forced = if is_forced { ", handed over" } else { "" };
            format!(", log ends {index}@{log_term}{forced}")
        }
        MessageType::MsgSnapStatus => format!(", stored up to {index}"),
        MessageType::MsgRequestVoteResponse | MessageType::MsgRequestPreVoteResponse => {
            format!(", {answer}")
        }
        MessageType::MsgAppend => {
            let list = message.entries.iter().cloned().map(super::log_entry);
            let list: Vec<LogEntry> = list.collect();
            let list = entries(&list);
            format!(", after {index}@{log_term} {list}, commit {commit}")
        }
        MessageType::MsgAppendResponse if message.reject => {
            let hint = message.reject_hint;
            format!(", no: not after {index}, try {hint}@{log_term}")
        }
        MessageType::MsgAppendResponse => format!(", up to {index}"),
        MessageType::MsgHeartbeat => format!(", commit {commit}{read}"),
        MessageType::MsgHeartbeatResponse => read,
        MessageType::MsgSnapshot => {
            let metadata = message.get_snapshot().get_metadata();
            format!(", at {}@{}", metadata.index, metadata.term)
        }
        _ => String::new(),
    };
    format!("{kind} term {term}{details}")
}

impl Core {
    /// For whom it votes in its term.
    pub fn vote(&self) -> Option<PeerId> {
        let vote = self.node.raft.vote;
        (vote != raft::INVALID_ID).then_some(PeerId(vote))
    }

    /// Its log: the position before the first entry that it holds, and those.
    pub fn log(&self) -> String {
        let window = &self.node.store().window;
        let first = window.first_index();
        let before = first - 1;
        let term = window.term(before).expect("the base has a term");
        let held = (first..=window.last_index()).filter_map(|index| window.entry(index));
        format!("({before}@{term}) {}", entries(held))
    }

    /// Its applied entries leave, as if many others had followed, unless a peer that is there wants
    /// them.
    pub fn forget_applied(&mut self) {
        let (applied, wanted) = (self.status().applied, self.wanted());
        self.node.mut_store().window.trim(applied, wanted, 0);
    }
}
