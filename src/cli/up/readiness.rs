//! Whether a local cluster serves: asks the active leader for `STATUS JSON` until it does.
//!
//! The thread `ready` ends when all members are registered and up and all leaders have a vote, or
//! when it is told to stop. Until all leaders had a vote once, in whichever run, it adds them to
//! the group: never later, as one that was removed, or has lost its data, is the user's to add.

use std::io;
use std::time::Duration;

use anyhow::Result;
use serde::Deserialize;

use super::manifest::Role;
use super::setup::Plan;
use crate::client::{Connection, Request};
use crate::threads::{self, StopSignal, Thread};

/// How often the leader is asked.
const ASK_INTERVAL: Duration = Duration::from_millis(100);

/// How long a leader may take to take a connection, and for an answer: one that adds another has
/// twelve seconds for it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// What is known of a cluster that starts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    /// How many members hold each message; 0 while no active leader has said so.
    pub tolerance: usize,
    /// Where clients reach the active leader.
    pub leader: String,
    /// Members that are up.
    pub registered: usize,
    /// Names of members that are expected and not up, and of leaders without a vote.
    pub missing: Vec<String>,
    /// The active leader says that all leaders have a vote.
    pub is_gathered: bool,
}

impl Readiness {
    /// Whether a write would find its members.
    pub fn serves(&self) -> bool {
        self.tolerance > 0 && self.registered >= self.tolerance
    }

    /// Says what is missing.
    pub fn complaint(&self) -> String {
        if self.tolerance == 0 {
            return "not ready: no leader has answered yet".to_owned();
        }
        if self.missing.is_empty() {
            let (tolerance, up) = (self.tolerance, self.registered);
            return format!(
                "not ready: each message needs {tolerance} members (the tolerance), and there are \
                 only {up}; add some by --members, or lower the tolerance"
            );
        }
        format!("not registered yet: {}", self.missing.join(", "))
    }
}

/// As much of `STATUS JSON` as is needed here.
#[derive(Deserialize)]
struct Status {
    role: String,
    leader: Option<String>,
    tolerance: usize,
    members: Vec<MemberStatus>,
}

#[derive(Deserialize)]
struct MemberStatus {
    name: String,
    state: String,
}

/// As much of `GROUP JSON` as is needed here.
#[derive(Deserialize)]
struct GroupStatus {
    peers: Vec<PeerStatus>,
}

#[derive(Deserialize)]
struct PeerStatus {
    name: String,
    role: String,
}

/// Who should be there.
pub struct Expected {
    /// Names of the members.
    pub members: Vec<String>,
    /// Where clients reach the leaders.
    pub addresses: Vec<String>,
    /// Names and RPC addresses of the leaders.
    pub leaders: Vec<(String, String)>,
    /// Whether leaders that take no part are added.
    pub adds: bool,
}

/// Starts the thread `ready`; `on_change` gets each answer that differs from the one before.
pub fn watch(
    plan: &Plan,
    stop: StopSignal,
    on_change: impl Fn(Readiness) + Send + 'static,
) -> Result<Thread> {
    let members = plan.of_role(Role::Member);
    let leaders = plan.of_role(Role::Leader);
    let expected = Expected {
        members: members.map(|planned| planned.name.clone()).collect(),
        addresses: plan.client_addresses(),
        leaders: leaders
            .map(|planned| (planned.name.clone(), planned.addresses.rpc.to_string()))
            .collect(),
        adds: plan.gathers,
    };
    let body = move || {
        let mut last = Readiness::default();
        while !stop.is_stopped() {
            if let Ok(answer) = ask(&expected)
                && answer != last
            {
                last = answer;
                on_change(last.clone());
            }
            if last.serves() && last.missing.is_empty() {
                return;
            }
            stop.wait_timeout(ASK_INTERVAL);
        }
    };
    Ok(threads::spawn("ready", body)?)
}

/// The answer of the active leader, or of any while there is none.
pub fn ask(expected: &Expected) -> io::Result<Readiness> {
    let mut found = Err(io::Error::other("there is no leader"));
    for address in &expected.addresses {
        let Ok(mut leader) = Connection::open(address, CONNECT_TIMEOUT) else {
            continue;
        };
        let mut readiness = view(&mut leader, &expected.members)?;
        if readiness.tolerance > 0 {
            let leaders = gather(&mut leader, expected)?;
            readiness.is_gathered = leaders.is_empty();
            readiness.missing.extend(leaders);
            return Ok(readiness);
        }
        found = Ok(readiness);
    }
    found
}

/// What the leader at an address sees of these members; any leader knows them.
pub fn seen_by(address: &str, members: &[String]) -> io::Result<Readiness> {
    view(&mut Connection::open(address, CONNECT_TIMEOUT)?, members)
}

fn view(leader: &mut Connection, members: &[String]) -> io::Result<Readiness> {
    leader.set_timeout(ANSWER_TIMEOUT)?;
    read(&line(leader, "STATUS JSON")?, members)
}

/// Adds the leaders that take no part, if that is our task; gives those without a vote.
fn gather(leader: &mut Connection, expected: &Expected) -> io::Result<Vec<String>> {
    if expected.leaders.len() == 1 {
        return Ok(Vec::new());
    }
    let group: GroupStatus = serde_json::from_slice(&line(leader, "GROUP JSON")?)?;
    let mut missing = Vec::new();
    for (name, rpc) in &expected.leaders {
        let peer = group.peers.iter().find(|peer| peer.name == *name);
        if peer.is_some_and(|peer| peer.role == "voter") {
            continue;
        }
        missing.push(name.clone());
        // The one that leads adds itself: it says where it is reached.
        if peer.is_none() && expected.adds && group.peers.iter().all(|peer| !peer.name.is_empty()) {
            // It may not be there yet: the next round tries again.
            line(leader, &format!("GROUP ADD {rpc}"))?;
        }
    }
    Ok(missing)
}

/// The line that answers a command.
fn line(leader: &mut Connection, command: &str) -> io::Result<Vec<u8>> {
    let request = Request::raw(command.as_bytes(), None).map_err(io::Error::other)?;
    Ok(leader.ask(&request)?.line)
}

fn read(line: &[u8], expected: &[String]) -> io::Result<Readiness> {
    let status: Status = serde_json::from_slice(line)?;
    let is_up = |name: &String| {
        status
            .members
            .iter()
            .any(|m| m.name == *name && m.state == "up")
    };
    let (up, missing): (Vec<&String>, Vec<&String>) = expected.iter().partition(|n| is_up(n));
    Ok(Readiness {
        tolerance: if status.role == "leader" {
            status.tolerance
        } else {
            0
        },
        leader: status.leader.unwrap_or_default(),
        registered: up.len(),
        missing: missing.into_iter().cloned().collect(),
        is_gathered: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_serves_when_enough_members_are_up() {
        let expected: Vec<String> = ["a", "b", "c"].map(str::to_owned).to_vec();
        let line =
            br#"{"role":"leader","tolerance":2,"members":[{"name":"a","state":"up","id":"1"},
            {"name":"b","state":"down"}]}"#;
        let readiness = read(line, &expected).expect("readable");
        assert!(!readiness.serves());
        assert_eq!(readiness.complaint(), "not registered yet: b, c");
        let line = br#"{"role":"leader","tolerance":2,"members":[{"name":"a","state":"up"},
            {"name":"c","state":"up"}]}"#;
        let readiness = read(line, &expected).expect("readable");
        assert!(readiness.serves());
        assert_eq!(
            (readiness.registered, readiness.missing),
            (2, vec!["b".to_owned()])
        );
        let follower = String::from_utf8_lossy(line).replace("leader", "follower");
        assert!(
            !read(follower.as_bytes(), &expected)
                .expect("readable")
                .serves()
        );
        assert!(!Readiness::default().serves());
        let readiness = Readiness {
            tolerance: 5,
            registered: 3,
            ..Readiness::default()
        };
        let complaint = readiness.complaint();
        assert!(
            complaint.contains("needs 5 members") && complaint.contains("only 3"),
            "{complaint}"
        );
        assert!(read(b"ERROR: no", &expected).is_err());
    }
}
