//! What the HTTP sessions of this leader ask of it: where the active leader is, documents, health.
//!
//! All of it is this node's own view, from memory, but for the free space of its disk, which is a
//! system call. It never waits for another node, so that it can be asked when nothing else works.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use serde::Serialize;

use crate::clock::Instant;
use crate::disk::fs::FileSystem;
use crate::leader::state::Shared;
use crate::leader::stats::{KindStats, Stats};
use crate::leader::status::{cluster_status, role};
use crate::net::Gauges;
use crate::protocol::http::node::{Check, Document, Node};
use crate::protocol::reply::{MemberState, MemberStatus, PeerRole, PeerState};
use crate::threads::StopSignal;

/// Free bytes without which the disk is as good as full: a segment of the journal, twice.
const FREE_BYTES_MIN: u64 = 128 << 20;

/// This leader, as HTTP sessions see it.
pub struct LeaderNode {
    shared: Arc<Shared>,
    stats: Arc<Stats>,
    /// Whether it passes requests on to the active leader.
    forwards: bool,
    /// Further host names under which it is served.
    http_hosts: Vec<String>,
    fs: Arc<dyn FileSystem>,
    data_dir: PathBuf,
    /// Set when the process is told to stop, or its journal has failed.
    stop: StopSignal,
    started: Instant,
    /// There once clients are served.
    pub gauges: OnceLock<Gauges>,
}

#[derive(Serialize)]
struct LeaderJson {
    /// Client address.
    hatokuse: Option<String>,
    http: Option<String>,
}

#[derive(Serialize)]
struct PeerJson {
    id: String,
    name: String,
    rpc: String,
    hatokuse: String,
    http: String,
    role: PeerRole,
    state: PeerState,
}

#[derive(Serialize)]
struct ClusterJson {
    node: String,
    leader: LeaderJson,
    term: u64,
    tolerance: u8,
    survives: u8,
    strategy: String,
    messages: u64,
    leaders: Vec<PeerJson>,
    members: Vec<MemberStatus>,
}

#[derive(Serialize)]
struct NodeJson {
    node: String,
    role: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lost: Option<String>,
    term: u64,
    serves: bool,
    applied: u64,
    hatokuse: String,
    http: String,
    rpc: String,
    leader: LeaderJson,
    messages: u64,
    version: &'static str,
    uptime_ms: u64,
}

#[derive(Serialize)]
struct StatsJson {
    node: String,
    uptime_ms: u64,
    connections: usize,
    parked_batches: usize,
    client_bytes_held: usize,
    /// What workers did between two polls, since the start: how often, and how often it took
    /// 1,024 us or longer.
    worker_turns: u64,
    long_worker_turns: u64,
    requests: Vec<KindStats>,
}

impl LeaderNode {
    /// The leader with these parts, which starts now.
    pub fn new(
        shared: Arc<Shared>,
        stats: Arc<Stats>,
        (forwards, http_hosts): (bool, Vec<String>),
        (fs, data_dir): (Arc<dyn FileSystem>, PathBuf),
        stop: StopSignal,
    ) -> LeaderNode {
        LeaderNode {
            started: shared.clock.now(),
            shared,
            stats,
            forwards,
            http_hosts,
            fs,
            data_dir,
            stop,
            gauges: OnceLock::new(),
        }
    }

    fn active(&self) -> LeaderJson {
        let shared = &self.shared;
        let own = |address: &String| (!address.is_empty()).then(|| address.clone());
        match shared.serving_term() {
            Some(_) => LeaderJson {
                hatokuse: own(&shared.client_address),
                http: own(&shared.http_address),
            },
            None => LeaderJson {
                hatokuse: shared.leader_address(),
                http: shared.leader_http(),
            },
        }
    }

    fn cluster(&self) -> ClusterJson {
        let status = cluster_status(&self.shared);
        let group = self.shared.group.status();
        let configuration = self.shared.group.configuration();
        let row = |peer| {
            let address = configuration.addresses.get(&peer).cloned();
            let address = address.unwrap_or_default();
            PeerJson {
                id: peer.to_string(),
                name: address.name,
                rpc: address.rpc,
                hatokuse: address.client,
                http: address.http,
                role: match () {
                    () if configuration.voters.contains(&peer) => PeerRole::Voter,
                    () if configuration.outgoing.contains(&peer) => PeerRole::Leaving,
                    () => PeerRole::Learner,
                },
                state: match group.leader == Some(peer) {
                    true => PeerState::Leader,
                    false => PeerState::Unknown,
                },
            }
        };
        let mut leaders: Vec<PeerJson> = configuration.peers().into_iter().map(row).collect();
        leaders.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
        ClusterJson {
            node: status.node,
            leader: self.active(),
            term: status.term,
            tolerance: status.tolerance,
            survives: status.tolerance.saturating_sub(1),
            strategy: status.strategy,
            messages: status.messages,
            leaders,
            members: status.members,
        }
    }

    fn node(&self) -> NodeJson {
        let shared = &self.shared;
        let group = shared.group.status();
        let status = cluster_status(shared);
        NodeJson {
            node: status.node,
            role: status.role,
            reason: status.reason,
            lost: status.lost,
            term: status.term,
            serves: shared.serving_term().is_some(),
            applied: group.applied,
            hatokuse: shared.client_address.clone(),
            http: shared.http_address.clone(),
            rpc: shared.rpc_address.clone(),
            leader: self.active(),
            messages: status.messages,
            version: env!("CARGO_PKG_VERSION"),
            uptime_ms: self.uptime_ms(),
        }
    }

    fn stats(&self) -> StatsJson {
        let gauges = self.gauges.get();
        let gauge = |read: fn(&Gauges) -> usize| gauges.map_or(0, read);
        let turns = gauges.map(Gauges::turns).unwrap_or_default();
        StatsJson {
            node: self.shared.name.clone(),
            uptime_ms: self.uptime_ms(),
            connections: gauge(Gauges::connections),
            parked_batches: gauge(Gauges::under_way),
            client_bytes_held: gauge(Gauges::bytes_held),
            worker_turns: turns.count(),
            long_worker_turns: turns.of_at_least_us(10),
            requests: self.stats.all(),
        }
    }

    fn uptime_ms(&self) -> u64 {
        let uptime = self.shared.clock.now().since(self.started);
        u64::try_from(uptime.as_millis()).unwrap_or(u64::MAX)
    }

    /// With whether a restart would mend it: it gives no space to a full disk.
    fn journal(&self) -> ((bool, String), bool) {
        let is_full = self.shared.group.is_disk_full();
        match (self.stop.is_stopped(), is_full) {
            (true, _) => ((false, "the process is stopping".to_owned()), true),
            (false, true) => (
                (
                    false,
                    "its disk is full, or the system refuses the write for now: writes wait"
                        .to_owned(),
                ),
                false,
            ),
            (false, false) => ((true, "it takes writes".to_owned()), true),
        }
    }

    fn leader_check(&self) -> (bool, String) {
        let shared = &self.shared;
        let status = shared.group.status();
        if shared.removal.leader().is_some() {
            return (false, "this leader was removed from its group".to_owned());
        }
        if let Some(term) = shared.serving_term() {
            return (true, format!("this one, in term {term}"));
        }
        match (role(shared).1, status.leader) {
            (Some(reason), _) => (false, reason),
            (None, Some(_)) => match shared.leader_address() {
                Some(address) => (true, address),
                None => (false, "its address is not known".to_owned()),
            },
            (None, None) => (false, "none is elected".to_owned()),
        }
    }

    fn members(&self) -> (bool, String) {
        let Some(tolerance) = self.shared.view.metadata.tolerance() else {
            return (false, "no tolerance is set".to_owned());
        };
        let cluster = self.shared.view.cluster.lock();
        let now = self.shared.clock.now();
        let is_up = |state| matches!(state, MemberState::Up | MemberState::Suspect);
        let members = cluster.members();
        let up = members.filter(|member| is_up(member.state(now))).count();
        let text = format!("{up} are connected, {tolerance} are needed");
        (up >= usize::from(tolerance), text)
    }

    /// Whether as many members as a message needs have room for it, unless none is full.
    fn space(&self) -> (bool, String) {
        let Some(tolerance) = self.shared.view.metadata.tolerance() else {
            return (false, "no tolerance is set".to_owned());
        };
        let cluster = self.shared.view.cluster.lock();
        let now = self.shared.clock.now();
        let connected = cluster.members();
        let connected =
            connected.filter(|member| !member.is_retired && member.liveness.is_connected());
        let (with_room, full): (Vec<_>, Vec<_>) =
            connected.partition(|member| member.liveness.has_room(now));
        let count = with_room.len();
        let mut text = format!("{count} connected members have room, {tolerance} are needed");
        if !full.is_empty() {
            let names: Vec<&str> = full.iter().map(|member| member.name.as_str()).collect();
            text += &format!("; full, or refusing messages: {}", names.join(", "));
        }
        // That too few are connected is the check of members.
        (full.is_empty() || count >= usize::from(tolerance), text)
    }

    fn disk(&self) -> (bool, String) {
        match self.fs.free_space(&self.data_dir) {
            Ok(free) => {
                let text = format!("{free} bytes are free, {FREE_BYTES_MIN} are needed");
                (free >= FREE_BYTES_MIN, text)
            }
            Err(error) => (false, format!("the free space is not known: {error}")),
        }
    }
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("text and numbers are JSON")
}

impl Node for LeaderNode {
    fn wall_ms(&self) -> u64 {
        self.shared.clock.wall_ms()
    }

    fn leader(&self) -> Option<String> {
        self.shared.leader_http()
    }

    fn group_http(&self) -> Vec<String> {
        let configuration = self.shared.group.configuration();
        let peers = configuration.addresses.values();
        let mut addresses: Vec<String> = peers.map(|peer| peer.http.clone()).collect();
        // Before it was added to a group it knows none.
        addresses.push(self.shared.http_address.clone());
        addresses
    }

    fn hosts(&self) -> Vec<String> {
        let configuration = self.shared.group.configuration();
        let peers = configuration.addresses.values();
        let mut hosts: Vec<String> = peers
            .flat_map(|peer| [&peer.http, &peer.client, &peer.rpc])
            .cloned()
            .collect();
        let shared = &self.shared;
        hosts.extend(
            [
                &shared.http_address,
                &shared.client_address,
                &shared.rpc_address,
            ]
            .map(Clone::clone),
        );
        hosts.extend_from_slice(&self.http_hosts);
        hosts
    }

    fn redirects(&self) -> bool {
        let is_other = || self.shared.serving_term().is_none() && self.leader().is_some();
        !self.forwards && is_other()
    }

    fn document(&self, which: Document) -> String {
        match which {
            Document::ClusterInfo => json(&self.cluster()),
            Document::Status => json(&self.node()),
            Document::Stats => json(&self.stats()),
        }
    }

    fn checks(&self) -> Vec<Check> {
        let check = |name, (ok, detail), is_vital| Check {
            name,
            ok,
            detail,
            is_vital,
        };
        let (journal, is_vital) = self.journal();
        vec![
            check("journal", journal, is_vital),
            check("leader", self.leader_check(), false),
            check("members", self.members(), false),
            check("space", self.space(), false),
            check("disk", self.disk(), false),
        ]
    }
}
