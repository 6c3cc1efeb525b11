//! What a node takes.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::GroupView;
use crate::disk::log::LogError;
use crate::group::configuration::Configuration;
use crate::group::core::MessageDropped;
use crate::group::handle::{ChangeRequest, PendingRead, Proposal};
use crate::group::journal::JournalError;
use crate::group::proposals::{ProposalOutcome, Reason};
use crate::group::room::Room;
use crate::group::snapshots::incoming::Received;
use crate::group::window::Position;
use crate::ids::{LogPosition, PeerId};
use crate::logging;

/// What a node takes.
pub enum Event<O> {
    /// Propose an entry.
    Propose(Proposal<O>),
    /// Confirm leadership for a read.
    Read(PendingRead),
    /// Change who takes part.
    Change(ChangeRequest),
    /// Hand leadership to this peer, or to any.
    Transfer(Option<PeerId>),
    /// Take part in terms above this one only.
    LeaveTerms(u64),
    /// Members know of a committed entry; whether enough of them have told.
    MembersTold {
        /// The furthest one.
        committed: LogPosition,
        /// No more are waited for.
        is_enough: bool,
    },
    /// Say how it stands.
    Inspect(Box<dyn FnOnce(GroupView) + Send>),
    /// A message that came on the link of a peer.
    Message {
        /// The peer at the other end of the link.
        link: PeerId,
        /// The message.
        message: Bytes,
        /// What it takes of the inbox, if it waited in one.
        room: Option<Arc<Room>>,
    },
    /// A message to a peer was lost.
    Unreachable(PeerId),
    /// The snapshot of a peer is here, durable and whole.
    SnapshotReceived {
        /// The peer at the other end of the link.
        link: PeerId,
        /// What came.
        received: Received,
    },
    /// A snapshot has reached a peer, or has not.
    SnapshotSent {
        /// Which peer.
        to: PeerId,
        /// Whether it has.
        arrived: bool,
    },
    /// Writes are durable.
    Persisted {
        /// Up to this one.
        number: u64,
        /// Bytes that the journal took, in all.
        journal_bytes: u64,
    },
    /// The snapshot that was begun is durable.
    SnapshotDurable {
        /// The last entry that is in it.
        position: Position,
        /// Who takes part, there.
        configuration: Configuration,
        /// Its length.
        bytes: u64,
    },
    /// The system refused the snapshot that was begun: no space, for one.
    SnapshotRefused,
    /// The snapshot that was begun could not be written.
    SnapshotFailed(LogError),
    /// The journal failed; it writes nothing more.
    JournalFailed(JournalError),
    /// Hand over, finish what is appended, within this time, and end.
    Stop(Duration),
}

impl<O> Event<O> {
    /// It was not delivered: whoever waits for it is told so.
    pub(in crate::group) fn refuse(self, reason: Reason) {
        match self {
            Event::Propose(proposal) => {
                let outcome = ProposalOutcome::NotProposed(reason);
                proposal.completion.finish(outcome);
            }
            Event::Change(request) => {
                let outcome = ProposalOutcome::NotProposed(reason);
                request.completion.finish(outcome);
            }
            // What else waits is told by being dropped.
            _ => {}
        }
    }

    /// It was not delivered, and the caller says so itself.
    pub(in crate::group) fn forget(self) {
        if let Event::Read(read) = self {
            read.forget();
        }
    }
}

/// What becomes of a message that was dropped.
pub(super) fn log_dropped(result: Result<(), MessageDropped>) {
    match result {
        Ok(()) => {}
        Err(error @ MessageDropped::Untimely(_)) => log::debug!("{error}"),
        Err(error) => {
            let what = match error {
                MessageDropped::Conflict(_) => "raft leader not followed",
                _ => "raft message dropped",
            };
            if let Some(more) = logging::seldom(what) {
                log::error!("{error}{more}");
            }
        }
    }
}
