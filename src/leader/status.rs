//! What `STATUS` says: the leader's own view, with or without a leader elected.

use crate::group::{Obstacle, Role};
use crate::leader::state::Shared;
use crate::protocol::reply::{ClusterStatus, MemberStatus};

/// What this leader is to its clients, and, if it neither serves nor follows, why.
pub fn role(shared: &Shared) -> (&'static str, Option<String>) {
    if shared.serving_term().is_some() {
        return ("leader", None);
    }
    if shared.removal.leader().is_some() {
        return ("removed", None);
    }
    let status = shared.group.status();
    let hindrance = || shared.hindrance().map(|failure| failure.to_string());
    match (status.role, status.leader, shared.group.obstacle()) {
        (Role::Leader, _, _) => {
            let begins = || "the first entry of its term is not applied yet".to_owned();
            ("waiting", Some(hindrance().unwrap_or_else(begins)))
        }
        (_, None, Some(obstacle @ Obstacle::Conflict(_))) => ("stuck", Some(obstacle.to_string())),
        (_, None, Some(obstacle)) => ("waiting", Some(obstacle.to_string())),
        (_, None, None) => match hindrance() {
            Some(reason) => ("waiting", Some(reason)),
            None => ("follower", None),
        },
        (_, Some(_), _) => ("follower", None),
    }
}

/// This leader's view of the cluster.
pub fn cluster_status(shared: &Shared) -> ClusterStatus {
    let group = shared.group.status();
    let (role, reason) = role(shared);
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
            missing: member.load.records().saturating_sub(messages),
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
        role: role.to_owned(),
        reason,
        lost: shared.view.gate.loss(),
        leader: match role {
            "leader" => Some(shared.client_address.clone()),
            _ => shared.leader_address(),
        },
        term: group.term,
        tolerance: shared.view.metadata.tolerance().unwrap_or(0),
        strategy: cluster.strategy().to_string(),
        messages: shared.view.metadata.message_count(),
        members,
    }
}
