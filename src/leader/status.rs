//! What `STATUS` says: the leader's own view, with or without a leader elected.

use crate::leader::state::Shared;
use crate::protocol::reply::{ClusterStatus, MemberStatus};

/// This leader's view of the cluster.
pub fn cluster_status(shared: &Shared) -> ClusterStatus {
    let group = shared.group.status();
    let is_serving = shared.serving_term().is_some();
    let cluster = shared.view.cluster.lock();
    let now = shared.clock.now();
    let members = cluster
        .members_and_retired()
        .into_iter()
        .filter(|member| !member.is_retired || member.load.records() > 0)
        .map(|member| (member, member.present()))
        .map(|(member, (messages, bytes))| MemberStatus {
            name: member.name.clone(),
            id: member.id.to_string(),
            address: member.address.clone(),
            state: cluster.state(member.id, now),
            reason: member
                .absurd_fence
                .map(|fence| format!("isolated, its fence {fence} is absurdly high")),
            messages,
            bytes,
            free: member.liveness.free(),
            last_seen_ms: member
                .liveness
                .last_seen()
                .map(|seen| u64::try_from(now.since(seen).as_millis()).unwrap_or(u64::MAX)),
        })
        .collect();
    ClusterStatus {
        node: shared.name.clone(),
        role: match () {
            () if is_serving => "leader",
            () if shared.removal.leader().is_some() => "removed",
            () => "follower",
        }
        .to_owned(),
        leader: match is_serving {
            true => Some(shared.client_address.clone()),
            false => shared.leader_address(),
        },
        term: group.term,
        tolerance: shared.view.metadata.tolerance().unwrap_or(0),
        strategy: cluster.strategy().to_string(),
        messages: shared.view.metadata.message_count(),
        members,
    }
}
