//! The crate's configurations and changes as our own, and back. Pure.

use protobuf::Message as _;
use raft::RawNode;
use raft::eraftpb::{
    ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState,
};

use super::storage::MemoryLog;
use super::{CoreError, HardState, ORIGIN, wire};
use crate::group::configuration::{Configuration, ConfigurationChange, PeerAddress};
use crate::group::window::Window;
use crate::ids::PeerId;

/// As the crate has it.
pub(super) fn conf_state(configuration: &Configuration) -> ConfState {
    let ids = |set: &std::collections::BTreeSet<PeerId>| set.iter().map(|id| id.0).collect();
    ConfState {
        voters: ids(&configuration.voters),
        voters_outgoing: ids(&configuration.outgoing),
        learners: ids(&configuration.learners),
        learners_next: ids(&configuration.learners_next),
        auto_leave: configuration.auto_leave,
        ..ConfState::default()
    }
}

/// As we have it.
pub(super) fn configuration(state: &ConfState) -> Configuration {
    let peers = |ids: &[u64]| ids.iter().copied().map(PeerId).collect();
    Configuration {
        voters: peers(&state.voters),
        outgoing: peers(&state.voters_outgoing),
        learners: peers(&state.learners),
        learners_next: peers(&state.learners_next),
        auto_leave: state.auto_leave,
        ..Configuration::default()
    }
}

/// The configuration after `change` made `state` of `before`.
pub(super) fn after(
    before: &Configuration,
    change: &ConfChangeV2,
    state: &ConfState,
) -> Result<Configuration, CoreError> {
    let mut addresses = before.addresses.clone();
    if let (Some(single), false) = (change.changes.first(), change.context.is_empty()) {
        let address = PeerAddress::decode(&change.context)
            .ok_or_else(|| CoreError("a bad address of a peer".to_owned()))?;
        addresses.insert(PeerId(single.node_id), address);
    }
    Ok(configuration(state).with_addresses(addresses))
}

/// A change as it is proposed: one of the voters always through a joint configuration that ends by
/// itself.
pub(super) fn conf_change(change: &ConfigurationChange) -> ConfChangeV2 {
    let (kind, peer) = match change {
        ConfigurationChange::AddLearner(peer, _) => (ConfChangeType::AddLearnerNode, peer),
        // What it is already.
        ConfigurationChange::Promote(peer) | ConfigurationChange::Describe(peer, _) => {
            (ConfChangeType::AddNode, peer)
        }
        ConfigurationChange::Remove(peer) => (ConfChangeType::RemoveNode, peer),
        ConfigurationChange::LeaveJoint => return ConfChangeV2::default(),
    };
    let (transition, address) = match change {
        ConfigurationChange::Describe(_, address) => (ConfChangeTransition::Auto, Some(address)),
        ConfigurationChange::AddLearner(_, address) => {
            (ConfChangeTransition::Implicit, Some(address))
        }
        _ => (ConfChangeTransition::Implicit, None),
    };
    let single = ConfChangeSingle {
        change_type: kind,
        node_id: peer.0,
        ..ConfChangeSingle::default()
    };
    ConfChangeV2 {
        transition,
        changes: vec![single].into(),
        context: address.map(PeerAddress::encode).unwrap_or_default().into(),
        ..ConfChangeV2::default()
    }
}

/// Decodes the data of an entry of kind `Configuration`.
pub(super) fn decode(data: &[u8]) -> Result<ConfChangeV2, CoreError> {
    if !wire::is_without_groups(data, &wire::CHANGE) {
        let reason = "a change of the configuration has groups";
        return Err(CoreError(reason.to_owned()));
    }
    ConfChangeV2::parse_from_bytes(data)
        .map_err(|source| CoreError(format!("a change of the configuration: {source}")))
}

/// The configuration after an entry of kind `Configuration` with this data is applied. An error
/// means that the change is impossible: it follows from the arguments alone, so the entry has no
/// effect on any peer.
pub fn changed(before: &Configuration, data: &[u8]) -> Result<Configuration, CoreError> {
    let change = decode(data)?;
    // A participant that does nothing else: only the crate knows what a change means.
    let storage = MemoryLog {
        hard_state: HardState::INITIAL,
        configuration: before.clone(),
        window: Window::new(ORIGIN, 0),
        snapshot: None,
        wants_snapshot: std::cell::Cell::new(false),
    };
    let config = raft::Config {
        id: 1,
        applied: ORIGIN.index,
        ..raft::Config::default()
    };
    let error = |source: raft::Error| CoreError(format!("a change of the configuration: {source}"));
    let logger = slog::Logger::root(slog::Discard, slog::o!());
    let mut node = RawNode::new(&config, storage, &logger).map_err(error)?;
    let state = node.apply_conf_change(&change).map_err(error)?;
    let after = after(before, &change, &state)?;
    match after.is_possible() {
        true => Ok(after),
        false => Err(CoreError(format!("no group can change to {after:?}"))),
    }
}
