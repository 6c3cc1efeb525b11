//! Deliberate faults, to see that the simulation finds them. Pure but for the switch.
//!
//! Each breaks one rule that safety rests on. The switch exists only with the feature
//! `deliberate-faults`, which nothing but the tests turns on; without it [`has`] is false at
//! compile time. It is set for a thread, as a simulation runs in one.

/// A rule that is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A member acknowledges records that it has written and not synced (A6).
    AcknowledgeBeforeSync,
    /// The journal says that writes are durable that are not synced.
    JournalBeforeSync,
    /// A vote is not persisted.
    VoteNotPersisted,
    /// What promises something stored leaves before it is stored.
    SendBeforePersist,
    /// Reads are not confirmed (R4).
    ReadWithoutReadIndex,
    /// A leader serves before the first entry of its term is applied (R5).
    ServeBeforeNoOp,
    /// A batch is proposed and applied in another term than its own (R2).
    ProposeInOtherTerm,
    /// A member executes whatever comes (R10).
    IgnoreFence,
    /// A member keeps its fence in memory only (R10).
    FenceNotPersisted,
    /// A copy counts whose link broke before the answer (R9).
    CountFailedCopy,
    /// A batch whose copies were acknowledged in an earlier term is proposed in this one (R9).
    CountEarlierTermCopy,
    /// A leader releases before the first entry of its term is applied (R5).
    ReleaseBeforeNoOp,
    /// What is applied at start releases, once the leader serves (R14).
    ReplayReleases,
    /// What follows a snapshot is replayed without its first entry (R14).
    SnapshotWithoutLastEntry,
    /// What a torn write left at the end of a log is not cut (A6).
    TornTailKept,
    /// What may still happen is answered as failed (R15).
    UnknownAsFailed,
    /// Conditions are compared when their entry is proposed, and not in `apply` (R3).
    CompareWhenProposed,
    /// Of a transaction that is refused, the steps before the refusal are done (R3).
    RefusedTransactionInPart,
    /// A transaction's token is not remembered.
    TransactionTokenForgotten,
    /// A message that was stored anew expires when the one before would have.
    OldExpiryOfNewMessage,
    /// A snapshot does not tell when messages expire.
    SnapshotWithoutExpiry,
    /// A new id takes the name of a member that holds messages (R11).
    NewIdRetiresHolder,
    /// A leader that starts again asks its peers nothing: on an older copy of its directory it
    /// votes and acknowledges entries.
    OlderCopyVotes,
}

impl Fault {
    /// All of them.
    pub const ALL: [Fault; 23] = [
        Fault::AcknowledgeBeforeSync,
        Fault::JournalBeforeSync,
        Fault::VoteNotPersisted,
        Fault::SendBeforePersist,
        Fault::ReadWithoutReadIndex,
        Fault::ServeBeforeNoOp,
        Fault::ProposeInOtherTerm,
        Fault::IgnoreFence,
        Fault::FenceNotPersisted,
        Fault::CountFailedCopy,
        Fault::CountEarlierTermCopy,
        Fault::ReleaseBeforeNoOp,
        Fault::ReplayReleases,
        Fault::SnapshotWithoutLastEntry,
        Fault::TornTailKept,
        Fault::UnknownAsFailed,
        Fault::CompareWhenProposed,
        Fault::RefusedTransactionInPart,
        Fault::TransactionTokenForgotten,
        Fault::OldExpiryOfNewMessage,
        Fault::SnapshotWithoutExpiry,
        Fault::NewIdRetiresHolder,
        Fault::OlderCopyVotes,
    ];
}

#[cfg(feature = "deliberate-faults")]
thread_local! {
    static SWITCH: std::cell::Cell<Option<Fault>> = const { std::cell::Cell::new(None) };
}

/// Whether the code of this thread has the fault.
#[cfg(feature = "deliberate-faults")]
pub fn has(fault: Fault) -> bool {
    SWITCH.get() == Some(fault)
}

/// Whether the code has the fault: never.
#[cfg(not(feature = "deliberate-faults"))]
pub const fn has(_fault: Fault) -> bool {
    false
}

/// Gives the code of this thread a fault, or none.
#[cfg(feature = "deliberate-faults")]
pub fn set(fault: Option<Fault>) {
    SWITCH.set(fault);
}
