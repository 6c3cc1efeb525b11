//! Checks a peer's message against what this participant knows, before the `raft` crate sees it.
//! Pure.
//!
//! The crate trusts its peers: it panics on a heartbeat that commits beyond the own log, on entries
//! with gaps, on a snapshot with an impossible configuration. A broken or hostile peer that holds a
//! valid certificate must not end a process, so [`check`] refuses:
//!
//! * a message whose sender is not the peer at the other end of the link;
//! * kinds of messages and fields that this implementation never sends (forwarded requests and
//!   their answers, requests for a snapshot, priorities), and messages without a term, which the
//!   crate would take for its own;
//! * a term more than [`Revision::TERM_JUMP_MAX`] above the last committed entry's, unless this
//!   participant has nothing yet and cannot compare;
//! * a heartbeat whose commit index is above the own last index. (A leader sends the lower one of
//!   its commit index and the index up to which the receiver's log is known to agree.) The commit
//!   index of an append is not compared: it is normally above the log of a follower that lags;
//! * entries that do not continue the position before them, or that cannot be applied
//!   ([`check_commands`]): they are not acknowledged, so they are committed nowhere as long as a
//!   majority of the leaders is sound. A leader that sends such entries holds the group up until
//!   another one is elected;
//! * an acknowledgement beyond the own log, and heartbeats, appends and snapshots of a second
//!   leader in a term that has one;
//! * anything of a peer that takes no part as far as is known here, while a leader is known that
//!   was heard of within an election time-out. The one that leads may have been added by entries
//!   that are missing here (Raft thesis 4.1), but then no other leader is heard of.
//!
//! Known limit: a peer that was elected is trusted with the meaning of what it replicates, as Raft
//! is no protocol for that (thesis 1.2).

use raft::eraftpb::{ConfChangeV2, ConfState, Entry, EntryType, Message, MessageType};

use super::{MessageDropped, membership};
use crate::group::configuration::PeerAddress;
use crate::ids::{PeerId, Revision};

/// No log gets as long: with a million entries a second it takes two thousand years. Sums of
/// indexes below it do not overflow.
const INDEX_MAX: u64 = 1 << 56;

/// Bytes of the context of a message: a read's number has 8, the word of a transfer 16.
const CONTEXT_BYTES_MAX: usize = 64;

/// Bytes of one entry.
const ENTRY_BYTES_MAX: usize = crate::group::ENTRY_BYTES_MAX;

/// What a participant knows when a message arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known {
    /// Its own id.
    pub own: PeerId,
    /// The latest term that it has seen.
    pub term: u64,
    /// The term of the last entry that it knows to be committed; 0 if it has none and waits to be
    /// added.
    pub committed_term: u64,
    /// The leader of `term`, if one is known; it may be itself.
    pub leader: Option<PeerId>,
    /// Whether a leader, itself included, was heard of within an election time-out.
    pub hears_leader: bool,
    /// The index of the last entry of its log.
    pub last_index: u64,
    /// Whether the peer at the other end of the link takes part, as far as is known.
    pub takes_part: bool,
}

/// Checks a message that came on the link of the peer `link`.
pub(super) fn check(message: &Message, link: PeerId, known: &Known) -> Result<(), MessageDropped> {
    let absurd = |reason: String| Err(MessageDropped::Absurd(reason));
    check_sender(message, link)?;
    if message.to != known.own.0 {
        // A peer that knew this address under an earlier id.
        let to = PeerId(message.to);
        return Err(MessageDropped::Untimely(format!("it is for {to}")));
    }
    let kind = message.get_msg_type();
    if !is_sent_by_peers(kind) {
        return absurd(format!("{kind:?} is not sent between peers"));
    }
    if !known.takes_part && known.hears_leader && known.leader != Some(link) {
        let reason = format!("peer {link} takes no part, and there is a leader");
        return Err(MessageDropped::Untimely(reason));
    }
    check_fields(message)?;
    check_term(message.term, known)?;
    let is_of_leader = matches!(
        kind,
        MessageType::MsgAppend | MessageType::MsgHeartbeat | MessageType::MsgSnapshot
    );
    let is_other_leader = |leader: PeerId| leader != link;
    if is_of_leader && message.term == known.term && known.leader.is_some_and(is_other_leader) {
        let term = message.term;
        return absurd(format!("{kind:?} of a second leader in term {term}"));
    }
    match kind {
        MessageType::MsgHeartbeat if message.commit > known.last_index => absurd(format!(
            "a heartbeat commits {}, the log ends at {}",
            message.commit, known.last_index
        )),
        MessageType::MsgAppend => check_append(message),
        MessageType::MsgSnapshot => check_snapshot(message, known.own),
        MessageType::MsgAppendResponse if is_answer_to(known, message.term) => {
            let highest = message.index.max(message.reject_hint);
            if highest > known.last_index {
                let last = known.last_index;
                return absurd(format!("{highest} is acknowledged, the log ends at {last}"));
            }
            Ok(())
        }
        MessageType::MsgTimeoutNow if known.leader != Some(link) => {
            let reason = "told to stand for election by another than the leader";
            Err(MessageDropped::Untimely(reason.to_owned()))
        }
        _ => Ok(()),
    }
}

/// Whether a message is of the peer at the other end of the link.
pub(super) fn check_sender(message: &Message, link: PeerId) -> Result<(), MessageDropped> {
    let from = PeerId(message.from);
    match from == link {
        true => Ok(()),
        false => {
            let reason = format!("peer {link} sends in the name of {from}");
            Err(MessageDropped::Absurd(reason))
        }
    }
}

/// The kinds that this implementation sends; the others are the crate's own, or requests that are
/// not forwarded, and their answers.
fn is_sent_by_peers(kind: MessageType) -> bool {
    match kind {
        MessageType::MsgAppend
        | MessageType::MsgAppendResponse
        | MessageType::MsgRequestVote
        | MessageType::MsgRequestVoteResponse
        | MessageType::MsgSnapshot
        | MessageType::MsgHeartbeat
        | MessageType::MsgHeartbeatResponse
        | MessageType::MsgTimeoutNow
        | MessageType::MsgRequestPreVote
        | MessageType::MsgRequestPreVoteResponse => true,
        MessageType::MsgHup
        | MessageType::MsgBeat
        | MessageType::MsgPropose
        | MessageType::MsgUnreachable
        | MessageType::MsgSnapStatus
        | MessageType::MsgCheckQuorum
        | MessageType::MsgTransferLeader
        | MessageType::MsgReadIndex
        | MessageType::MsgReadIndexResp => false,
    }
}

/// What holds of the fields of every message, whoever receives it.
fn check_fields(message: &Message) -> Result<(), MessageDropped> {
    let absurd = |reason: &str| Err(MessageDropped::Absurd(reason.to_owned()));
    if message.term == 0 {
        return absurd("it has no term");
    }
    if message.log_term > message.term {
        return absurd("its log is of a later term than its own");
    }
    let indexes = [message.index, message.commit, message.reject_hint];
    if indexes.into_iter().any(|index| index >= INDEX_MAX) {
        return absurd("an index is too high");
    }
    if message.request_snapshot != 0 || message.priority != 0 || message.deprecated_priority != 0 {
        return absurd("it has fields that are not in use");
    }
    if message.context.len() > CONTEXT_BYTES_MAX {
        return absurd("its context is too long");
    }
    if !message.entries.is_empty() && message.get_msg_type() != MessageType::MsgAppend {
        return absurd("it has entries and is no append");
    }
    Ok(())
}

fn check_term(term: u64, known: &Known) -> Result<(), MessageDropped> {
    let highest = match known.committed_term {
        0 => Revision::TERM_MAX,
        committed => known
            .term
            .max(committed.saturating_add(Revision::TERM_JUMP_MAX)),
    };
    if term > highest.min(Revision::TERM_MAX) {
        let (own, committed) = (known.term, known.committed_term);
        return Err(MessageDropped::Absurd(format!(
            "term {term} is too high: this is term {own}, the last committed entry is of term \
             {committed}"
        )));
    }
    Ok(())
}

/// Whether an acknowledgement in `term` is one of an append of this participant.
fn is_answer_to(known: &Known, term: u64) -> bool {
    term == known.term && known.leader == Some(known.own)
}

fn check_append(message: &Message) -> Result<(), MessageDropped> {
    let absurd = |reason: String| Err(MessageDropped::Absurd(reason));
    // A leader without the position before the entries sends a snapshot.
    if message.log_term == 0 {
        return absurd("an append does not name the term before it".to_owned());
    }
    let (mut index, mut term) = (message.index, message.log_term);
    for entry in message.get_entries() {
        if entry.index != index + 1 || entry.term < term || entry.term > message.term {
            return absurd(format!(
                "entry {} of term {} does not follow {index} of term {term}",
                entry.index, entry.term
            ));
        }
        (index, term) = (entry.index, entry.term);
        check_entry(entry)?;
    }
    Ok(())
}

/// Refuses a message with an entry whose data cannot be applied, as `check` says.
pub(super) fn check_commands(
    message: &Message,
    check: fn(&[u8]) -> Result<(), String>,
) -> Result<(), MessageDropped> {
    for entry in message.get_entries() {
        // The empty entry that begins a term is Raft's own.
        if entry.get_entry_type() == EntryType::EntryNormal && !entry.data.is_empty() {
            check(&entry.data).map_err(|reason| {
                let (index, from) = (entry.index, PeerId(message.from));
                MessageDropped::Absurd(format!(
                    "entry {index} of leader {from} cannot be applied and is not stored: {reason}"
                ))
            })?;
        }
    }
    Ok(())
}

fn check_entry(entry: &Entry) -> Result<(), MessageDropped> {
    let index = entry.index;
    let absurd = |what: &str| Err(MessageDropped::Absurd(format!("entry {index} {what}")));
    if !entry.context.is_empty() || entry.data.len() > ENTRY_BYTES_MAX {
        return absurd("is too long");
    }
    match entry.get_entry_type() {
        EntryType::EntryNormal => Ok(()),
        EntryType::EntryConfChange => absurd("is of an unknown kind"),
        EntryType::EntryConfChangeV2 => match membership::decode(&entry.data) {
            Ok(change) if is_known_change(&change) => Ok(()),
            Ok(_) | Err(_) => absurd("is no change of the configuration"),
        },
    }
}

/// Whether a change of the configuration has the form of one that is proposed here.
fn is_known_change(change: &ConfChangeV2) -> bool {
    let changes = change.get_changes();
    let has_address = change.context.is_empty() || PeerAddress::decode(&change.context).is_some();
    changes.len() <= 1 && changes.iter().all(|single| single.node_id != 0) && has_address
}

fn check_snapshot(message: &Message, own: PeerId) -> Result<(), MessageDropped> {
    let absurd = |reason: &str| Err(MessageDropped::Absurd(reason.to_owned()));
    let metadata = message.get_snapshot().get_metadata();
    if metadata.index == 0 || metadata.index >= INDEX_MAX {
        return absurd("a snapshot at an impossible index");
    }
    if metadata.term == 0 || metadata.term > message.term {
        return absurd("a snapshot of an impossible term");
    }
    let state = metadata.get_conf_state();
    let configuration = membership::configuration(state);
    if !is_written_once(state) || !configuration.is_possible() {
        return absurd("a snapshot of an impossible group");
    }
    if !configuration.peers().contains(&own) {
        return absurd("a snapshot of a group without this leader");
    }
    Ok(())
}

/// Whether no list of a configuration names a peer twice, or 0.
fn is_written_once(state: &ConfState) -> bool {
    let lists = [
        state.get_voters(),
        state.get_learners(),
        state.get_voters_outgoing(),
        state.get_learners_next(),
    ];
    lists.into_iter().all(|list| {
        let mut ids = list.to_vec();
        ids.sort_unstable();
        ids.dedup();
        ids.len() == list.len() && !ids.contains(&0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEADER: PeerId = PeerId(2);
    const TERM_JUMP_MAX: u64 = Revision::TERM_JUMP_MAX;

    /// Participant 1 of three follows 2 in term 7, with a log of 20 entries.
    const KNOWN: Known = Known {
        own: PeerId(1),
        term: 7,
        committed_term: 7,
        leader: Some(LEADER),
        hears_leader: true,
        last_index: 20,
        takes_part: true,
    };

    fn message(kind: MessageType) -> Message {
        let mut message = Message {
            to: 1,
            from: 2,
            term: 7,
            log_term: 7,
            ..Message::default()
        };
        message.set_msg_type(kind);
        message
    }

    fn with(kind: MessageType, change: impl FnOnce(&mut Message)) -> Message {
        let mut message = message(kind);
        change(&mut message);
        message
    }

    fn entry(index: u64, term: u64) -> Entry {
        Entry {
            index,
            term,
            data: vec![1].into(),
            ..Entry::default()
        }
    }

    fn append(index: u64, entries: &[(u64, u64)]) -> Message {
        with(MessageType::MsgAppend, |message| {
            message.index = index;
            message.log_term = 6;
            message.commit = 1_000_000;
            let entries = entries.iter().map(|(index, term)| entry(*index, *term));
            message.set_entries(entries.collect::<Vec<_>>().into());
        })
    }

    fn snapshot(index: u64, term: u64, voters: &[u64]) -> Message {
        with(MessageType::MsgSnapshot, |message| {
            let metadata = message.mut_snapshot().mut_metadata();
            (metadata.index, metadata.term) = (index, term);
            metadata.mut_conf_state().set_voters(voters.to_vec());
        })
    }

    fn is_absurd(message: &Message, known: &Known) -> bool {
        matches!(
            check(message, LEADER, known),
            Err(MessageDropped::Absurd(_))
        )
    }

    #[test]
    fn a_sender_is_the_peer_at_the_other_end() {
        let heartbeat = message(MessageType::MsgHeartbeat);
        assert!(check(&heartbeat, LEADER, &KNOWN).is_ok());
        for link in [PeerId(3), PeerId(9)] {
            let refused = check(&heartbeat, link, &KNOWN);
            assert!(matches!(refused, Err(MessageDropped::Absurd(_))), "{link}");
        }
    }

    #[test]
    fn a_heartbeat_beyond_the_log_is_absurd_and_an_append_is_not() {
        let heartbeat = |commit| with(MessageType::MsgHeartbeat, |one| one.commit = commit);
        assert!(check(&heartbeat(20), LEADER, &KNOWN).is_ok());
        assert!(is_absurd(&heartbeat(21), &KNOWN));
        assert!(is_absurd(&heartbeat(1 << 40), &KNOWN));
        // It lags far behind what is committed.
        assert!(check(&append(20, &[(21, 6), (22, 7)]), LEADER, &KNOWN).is_ok());
        assert!(check(&append(5_000, &[(5_001, 7)]), LEADER, &KNOWN).is_ok());
    }

    #[test]
    fn entries_follow_each_other() {
        for entries in [
            &[(22, 7)][..],
            &[(20, 7)],
            &[(21, 5)],
            &[(21, 8)],
            &[(21, 7), (23, 7)],
            &[(21, 7), (21, 7)],
            &[(21, 7), (22, 6)],
        ] {
            assert!(is_absurd(&append(20, entries), &KNOWN), "{entries:?}");
        }
        let without_term = with(MessageType::MsgAppend, |one| {
            (one.index, one.log_term) = (1 << 40, 0);
        });
        assert!(is_absurd(&without_term, &KNOWN));
        let garbage = with(MessageType::MsgAppend, |one| {
            one.index = 20;
            let mut entry = entry(21, 7);
            entry.set_entry_type(EntryType::EntryConfChangeV2);
            entry.data = vec![0xff; 9].into();
            one.mut_entries().push(entry);
        });
        assert!(is_absurd(&garbage, &KNOWN));
    }

    #[test]
    fn commands_that_cannot_be_applied_are_absurd() {
        let check = |data: &[u8]| match data {
            [1] => Ok(()),
            _ => Err("not 1".to_owned()),
        };
        let with_data = |data: &[u8], kind| {
            let mut message = append(20, &[(21, 7), (22, 7)]);
            let last = &mut message.mut_entries()[1];
            last.set_entry_type(kind);
            last.data = data.to_vec().into();
            check_commands(&message, check)
        };
        assert!(with_data(&[1], EntryType::EntryNormal).is_ok());
        assert!(
            with_data(&[], EntryType::EntryNormal).is_ok(),
            "begins a term"
        );
        assert!(with_data(&[2], EntryType::EntryConfChangeV2).is_ok());
        let refused = with_data(&[2], EntryType::EntryNormal);
        let Err(MessageDropped::Absurd(reason)) = refused else {
            panic!("{refused:?}");
        };
        assert_eq!(
            reason,
            "entry 22 of leader 0000000000000002 cannot be applied and is not stored: not 1"
        );
    }

    #[test]
    fn a_term_far_above_the_committed_one_is_absurd() {
        let of = |term| with(MessageType::MsgRequestVote, |one| one.term = term);
        assert!(check(&of(7 + TERM_JUMP_MAX), LEADER, &KNOWN).is_ok());
        for term in [0, 8 + TERM_JUMP_MAX, Revision::TERM_MAX + 1, u64::MAX] {
            assert!(is_absurd(&of(term), &KNOWN), "term {term}");
        }
        // Step by step nobody gets higher either, unless something is committed on the way.
        let raised = Known {
            term: 7 + TERM_JUMP_MAX,
            ..KNOWN
        };
        assert!(is_absurd(&of(8 + TERM_JUMP_MAX), &raised));
        // One that waits to be added has nothing to compare with.
        let waiting = Known {
            term: 0,
            committed_term: 0,
            leader: None,
            hears_leader: false,
            last_index: 0,
            ..KNOWN
        };
        assert!(check(&of(5 * TERM_JUMP_MAX), LEADER, &waiting).is_ok());
        let told = Known {
            term: 5 * TERM_JUMP_MAX,
            ..waiting
        };
        assert!(check(&of(5 * TERM_JUMP_MAX + 1), LEADER, &told).is_ok());
        assert!(is_absurd(&of(Revision::TERM_MAX + 1), &waiting));
    }

    #[test]
    fn a_term_has_one_leader() {
        let other = Known {
            leader: Some(PeerId(3)),
            ..KNOWN
        };
        let own = Known {
            leader: Some(PeerId(1)),
            ..KNOWN
        };
        for kind in [
            MessageType::MsgHeartbeat,
            MessageType::MsgAppend,
            MessageType::MsgSnapshot,
        ] {
            assert!(is_absurd(&message(kind), &other), "{kind:?}");
            assert!(is_absurd(&message(kind), &own), "{kind:?}");
        }
        let next_term = with(MessageType::MsgHeartbeat, |one| one.term = 8);
        assert!(check(&next_term, LEADER, &other).is_ok());
    }

    #[test]
    fn an_acknowledgement_beyond_the_own_log_is_absurd() {
        let own = Known {
            leader: Some(PeerId(1)),
            ..KNOWN
        };
        let answer = |index, hint| {
            with(MessageType::MsgAppendResponse, |one| {
                (one.index, one.reject_hint) = (index, hint);
            })
        };
        assert!(check(&answer(20, 0), LEADER, &own).is_ok());
        for (index, hint) in [(21, 0), (0, 21), (INDEX_MAX, 0), (u64::MAX, 0)] {
            assert!(is_absurd(&answer(index, hint), &own), "{index} {hint}");
        }
        // A late answer to an earlier leader, whose log was longer.
        let late = with(MessageType::MsgAppendResponse, |one| {
            (one.term, one.log_term, one.index) = (6, 6, 30);
        });
        assert!(check(&late, LEADER, &own).is_ok());
    }

    #[test]
    fn a_stranger_is_not_heard_beside_a_leader() {
        let stranger = Known {
            takes_part: false,
            leader: Some(PeerId(3)),
            ..KNOWN
        };
        let heartbeat = with(MessageType::MsgHeartbeat, |one| one.term = 8);
        let refused = check(&heartbeat, LEADER, &stranger);
        assert!(matches!(refused, Err(MessageDropped::Untimely(_))));
        let leaderless = Known {
            hears_leader: false,
            ..stranger
        };
        assert!(check(&heartbeat, LEADER, &leaderless).is_ok());
        let followed = Known {
            leader: Some(LEADER),
            ..stranger
        };
        assert!(check(&heartbeat, LEADER, &followed).is_ok());
    }

    #[test]
    fn what_this_implementation_never_sends_is_absurd() {
        use MessageType::*;
        for kind in [
            MsgHup,
            MsgBeat,
            MsgPropose,
            MsgUnreachable,
            MsgSnapStatus,
            MsgCheckQuorum,
            MsgTransferLeader,
            MsgReadIndex,
            MsgReadIndexResp,
        ] {
            assert!(is_absurd(&message(kind), &KNOWN), "{kind:?}");
        }
        let changes: [fn(&mut Message); 6] = [
            |one| one.request_snapshot = 1,
            |one| one.priority = -1,
            |one| one.deprecated_priority = 1,
            |one| one.context = vec![0; 65].into(),
            |one| one.log_term = 8,
            |one| one.mut_entries().push(Entry::default()),
        ];
        for (number, change) in changes.into_iter().enumerate() {
            let message = with(MsgHeartbeatResponse, change);
            assert!(is_absurd(&message, &KNOWN), "change {number}");
        }
    }

    #[test]
    fn a_snapshot_is_of_a_possible_group_with_this_leader_in_it() {
        assert!(check(&snapshot(40, 7, &[1, 2, 3]), LEADER, &KNOWN).is_ok());
        for (index, term, voters) in [
            (0, 7, &[1, 2, 3][..]),
            (u64::MAX, 7, &[1, 2, 3]),
            (40, 0, &[1, 2, 3]),
            (40, 8, &[1, 2, 3]),
            (40, 7, &[]),
            (40, 7, &[2, 3]),
            (40, 7, &[1, 1, 2]),
            (40, 7, &[0, 1, 2]),
        ] {
            let message = snapshot(index, term, voters);
            assert!(is_absurd(&message, &KNOWN), "{index} {term} {voters:?}");
        }
    }
}
