//! Whether a local cluster serves: asks the active leader for `STATUS JSON` until it does.
//!
//! The thread `ready` ends when all members are registered and up and all leaders have a vote, or
//! when it is told to stop. Until all leaders had a vote once, in whichever run, it adds them to
//! the group: never later, as one that was removed, or has lost its data, is the user's to add.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use anyhow::Result;
use serde::Deserialize;

use super::manifest::Role;
use super::setup::Plan;
use crate::client::{Connection, Request};
use crate::clock::{Clock, Instant, SystemClock};
use crate::threads::{self, StopSignal, Thread};

/// How often the leader is asked.
const ASK_INTERVAL: Duration = Duration::from_millis(100);

/// How long a leader may take to take a connection, and for an answer: one that adds another has
/// twelve seconds for it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// Until a leader that was refused is to be added again: at first, doubled each time, and at most.
const ADD_PAUSE_MIN: Duration = Duration::from_millis(100);
const ADD_PAUSE_MAX: Duration = Duration::from_secs(5);

/// After so many refusals, some 3 s, the reason is told: until then the leader may be starting.
const REFUSALS_MIN: u32 = 6;

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
    /// Why a leader that answers does not serve, while none does.
    pub reason: Option<String>,
    /// Why leaders are not added to the group, a line each.
    pub refusals: Vec<String>,
}

impl Readiness {
    /// Whether a write would find its members.
    pub fn serves(&self) -> bool {
        self.tolerance > 0 && self.registered >= self.tolerance
    }

    /// Says what is missing.
    pub fn complaint(&self) -> String {
        if self.tolerance == 0 {
            return match &self.reason {
                Some(reason) => format!("not ready: {reason}"),
                None => "not ready: no leader has answered yet".to_owned(),
            };
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
    reason: Option<String>,
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
        let mut gathering = Gathering::default();
        let clock = SystemClock::new();
        while !stop.is_stopped() {
            if let Ok(answer) = ask(&expected, &mut gathering, clock.now())
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
pub fn ask(expected: &Expected, gathering: &mut Gathering, now: Instant) -> io::Result<Readiness> {
    let mut reason = None;
    let mut found = Err(io::Error::other("there is no leader"));
    for address in &expected.addresses {
        let Ok(mut leader) = Connection::open(address, CONNECT_TIMEOUT) else {
            continue;
        };
        let mut readiness = view(&mut leader, &expected.members)?;
        if readiness.tolerance > 0 {
            let leaders = gathering.round(&mut leader, expected, now)?;
            readiness.is_gathered = leaders.is_empty();
            readiness.missing.extend(leaders);
            readiness.refusals = gathering.refusals();
            return Ok(readiness);
        }
        // A follower knows of no reason.
        reason = reason.or(readiness.reason.take());
        found = Ok(Readiness {
            reason: reason.clone(),
            ..readiness
        });
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

/// The leaders that are to be added to the group, by name.
#[derive(Default)]
pub struct Gathering {
    attempts: BTreeMap<String, Attempt>,
}

/// The state of an attempt to add a leader to the group.
#[derive(Default)]
struct Attempt {
    refusals: u32,
    /// Why the last attempt was refused.
    reason: String,
    /// Not to be tried again before.
    next: Option<Instant>,
}

impl Gathering {
    /// Adds the leaders that take no part, if that is our task; gives those without a vote.
    fn round(
        &mut self,
        leader: &mut Connection,
        expected: &Expected,
        now: Instant,
    ) -> io::Result<Vec<String>> {
        if expected.leaders.len() == 1 {
            return Ok(Vec::new());
        }
        let group: GroupStatus = serde_json::from_slice(&line(leader, "GROUP JSON")?)?;
        let mut missing = Vec::new();
        for (name, rpc) in &expected.leaders {
            let peer = group.peers.iter().find(|peer| peer.name == *name);
            if peer.is_some_and(|peer| peer.role == "voter") {
                self.attempts.remove(name);
                continue;
            }
            missing.push(name.clone());
            // The one that leads adds itself: it says where it is reached.
            let is_due = peer.is_none() && expected.adds;
            if is_due && group.peers.iter().all(|peer| !peer.name.is_empty()) {
                let attempt = self.attempts.entry(name.clone()).or_default();
                if !attempt.is_due(now) {
                    continue;
                }
                let answer = line(leader, &format!("GROUP ADD {rpc}"))?;
                let answer = String::from_utf8_lossy(&answer);
                if let Some(reason) = answer.trim_end().strip_prefix("ERROR: ") {
                    attempt.refused(reason, now);
                }
            }
        }
        Ok(missing)
    }

    /// Why leaders are refused again and again, a line each.
    fn refusals(&self) -> Vec<String> {
        let attempts = self.attempts.iter();
        let lasting = attempts.filter(|(_, attempt)| attempt.refusals >= REFUSALS_MIN);
        lasting
            .map(|(name, attempt)| format!("{name} is not added to the group: {}", attempt.reason))
            .collect()
    }
}

impl Attempt {
    fn is_due(&self, now: Instant) -> bool {
        self.next.is_none_or(|next| now >= next)
    }

    /// The leader is not added now. It may be starting, so it is tried again soon at first.
    fn refused(&mut self, reason: &str, now: Instant) {
        let pause = ADD_PAUSE_MIN * (1 << self.refusals.min(10));
        self.next = Some(now + pause.min(ADD_PAUSE_MAX));
        self.refusals += 1;
        self.reason = reason.to_owned();
    }
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
        reason: status.reason,
        refusals: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_leader_is_tried_again_ever_later_and_its_reason_is_told() {
        let mut gathering = Gathering::default();
        let mut now = Instant::default();
        let mut pauses = Vec::new();
        for tries in 0..REFUSALS_MIN + 3 {
            assert_eq!(gathering.refusals().is_empty(), tries < REFUSALS_MIN);
            let attempt = gathering.attempts.entry("b".to_owned()).or_default();
            assert!(attempt.is_due(now));
            attempt.refused("it was removed", now);
            let before = now;
            while !attempt.is_due(now) {
                now = now + ADD_PAUSE_MIN;
            }
            pauses.push(now.since(before).as_millis());
        }
        assert_eq!(pauses[..4], [100, 200, 400, 800]);
        assert_eq!(pauses.last(), Some(&5_000));
        let told = ["b is not added to the group: it was removed"];
        assert_eq!(gathering.refusals(), told);
    }

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
        let waiting = br#"{"role":"waiting","reason":"1 of 2","tolerance":2,"members":[]}"#;
        let waiting = read(waiting, &expected).expect("readable");
        assert_eq!(waiting.complaint(), "not ready: 1 of 2");
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
