//! What the leader does with `GROUP`: says who takes part, and changes it.
//!
//! Only the active leader changes the group; every one says what it knows. A batch is parked until
//! it is answered, [`ANSWER_TIMEOUT`] at most. What dials or waits for the group runs on the thread
//! `admin`, one change at a time: more are answered `busy`. A change that does not come to its end
//! in time may still happen.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use log::info;

use crate::clock::Instant;
use crate::config::kinds::is_host_port;
use crate::error::Failure;
use crate::group::configuration::PEERS_MAX;
use crate::group::{Configuration, ConfigurationChange, GroupView, ProposalOutcome, Reason};
use crate::ids::PeerId;
use crate::leader::slot::Slot;
use crate::leader::state::Shared;
use crate::net::{Parked, Progress, Waker};
use crate::protocol::reply::{GroupTable, PeerRole, PeerState, PeerStatus, Reply};
use crate::protocol::request::GroupRequest;

/// How long the client waits: less than a reply may stand still by our own tool.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(12);

/// How long a change may take, from its first proposal: less than what is left after dialling.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long another leader may take to take over.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(3);

/// Between two attempts, while another change is under way or leadership has not moved.
const RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// What a change ends with.
type Changed = Result<(), Failure>;

/// Begins what was asked.
pub fn begin(shared: &Arc<Shared>, request: GroupRequest) -> Progress {
    let slot = Arc::new(Slot::default());
    let answer = Answer(Arc::clone(&slot));
    if request == GroupRequest::View {
        let shared = Arc::clone(shared);
        let group = shared.group.clone();
        group.inspect(move |view| answer.give(Reply::Group(Box::new(table(&shared, &view)))));
    } else {
        let Some(term) = shared.leading_term() else {
            let leader = shared.leader_address();
            return Progress::done(vec![Reply::Failed(Failure::NotLeader { leader })]);
        };
        let shared = Arc::clone(shared);
        let peers = Arc::clone(&shared.view.peers);
        // When it does not run, the answer that is dropped says `busy`.
        peers.run_admin(move || {
            info!("the group is to be changed: {request:?}");
            answer.give(match change(&shared, term, &request) {
                Ok(()) => Reply::GroupChanged,
                Err(failure) => {
                    info!("{request:?}: {failure}");
                    Reply::Failed(failure)
                }
            });
        });
    }
    let deadline = shared.clock.now() + ANSWER_TIMEOUT;
    let shared = Arc::clone(shared);
    Box::new(Waiting {
        shared,
        slot,
        deadline,
    })
    .resume()
}

/// What is known of the group.
fn table(shared: &Shared, view: &GroupView) -> GroupTable {
    let GroupView {
        configuration,
        progress,
        status,
    } = view;
    let matched: BTreeMap<PeerId, _> = progress.iter().map(|one| (one.peer, one)).collect();
    let row = |peer: PeerId| {
        let address = configuration
            .addresses
            .get(&peer)
            .cloned()
            .unwrap_or_default();
        let progress = matched.get(&peer);
        PeerStatus {
            id: peer.to_string(),
            name: address.name,
            rpc: address.rpc,
            client: address.client,
            http: address.http,
            role: match () {
                () if configuration.voters.contains(&peer) => PeerRole::Voter,
                () if configuration.outgoing.contains(&peer) => PeerRole::Leaving,
                () => PeerRole::Learner,
            },
            state: match progress {
                _ if status.leader == Some(peer) => PeerState::Leader,
                Some(progress) if progress.is_active => PeerState::Follower,
                Some(_) => PeerState::Silent,
                None => PeerState::Unknown,
            },
            matched: progress.map(|progress| progress.matched),
        }
    };
    let mut peers: Vec<PeerStatus> = configuration.peers().into_iter().map(row).collect();
    peers.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
    GroupTable {
        node: shared.name.clone(),
        leader: match shared.serving_term() {
            Some(_) => Some(shared.client_address.clone()),
            None => shared.leader_address(),
        },
        term: status.term,
        peers,
    }
}

fn refused(reason: impl Into<String>) -> Failure {
    let reason = reason.into();
    Failure::NotChanged { reason }
}

/// On the thread `admin`.
fn change(shared: &Shared, term: u64, request: &GroupRequest) -> Changed {
    let configuration = shared.group.configuration();
    match request {
        GroupRequest::View => unreachable!("a view is no change"),
        GroupRequest::Add(address) => add(shared, term, &configuration, address),
        GroupRequest::Remove(text) => remove(shared, term, find(&configuration, text)?),
        GroupRequest::Transfer(text) => transfer(shared, find(&configuration, text)?),
    }
}

/// The peer with this id or name.
fn find(configuration: &Configuration, text: &str) -> Result<PeerId, Failure> {
    let name = |peer: PeerId| {
        configuration
            .addresses
            .get(&peer)
            .map(|one| one.name.as_str())
    };
    let peers = configuration.peers();
    let is_meant = |peer: &PeerId| peer.to_string() == text || name(*peer) == Some(text);
    if let Some(found) = peers.iter().copied().find(is_meant) {
        return Ok(found);
    }
    let accepted: Vec<String> = peers
        .into_iter()
        .map(|peer| format!("{peer} ({})", name(peer).unwrap_or("no name")))
        .collect();
    let accepted = accepted.join(", ");
    Err(refused(format!(
        "no leader {text} in the group; accepted: {accepted}"
    )))
}

fn add(shared: &Shared, term: u64, configuration: &Configuration, address: &str) -> Changed {
    if !is_host_port(address) {
        let text = format!("{address} is no address; accepted: host:port of a leader's RPC");
        return Err(refused(text));
    }
    let count = configuration.peers().len();
    if count >= PEERS_MAX {
        return Err(refused(format!(
            "{count} leaders take part; accepted: {PEERS_MAX} at most"
        )));
    }
    let invited = shared.view.peers.invite(address);
    let (peer, found) = invited.map_err(|error| {
        let text = format!("{address}: {error}; accepted: a leader started with --join");
        refused(text)
    })?;
    let configuration = shared.group.configuration();
    if configuration.peers().contains(&peer) {
        return Ok(());
    }
    // A name stands for one leader: the old one with it is gone, and its vote must go first.
    let mut same = configuration.addresses.iter();
    if let Some((old, _)) = same.find(|(_, known)| known.name == found.name) {
        let name = &found.name;
        let text = format!("{name} takes part already as {old}: GROUP REMOVE {old} comes first");
        return Err(refused(text));
    }
    propose(shared, term, &ConfigurationChange::AddLearner(peer, found))
}

fn remove(shared: &Shared, term: u64, peer: PeerId) -> Changed {
    if shared.group.status().leader == Some(peer) {
        let text = "this is the active leader: GROUP TRANSFER <id> of another one comes first";
        return Err(refused(text));
    }
    propose(shared, term, &ConfigurationChange::Remove(peer))?;
    // Its vote counts until the joint configuration has ended.
    let give_up = shared.clock.now() + CHANGE_TIMEOUT;
    while shared.group.configuration().peers().contains(&peer) {
        if shared.clock.now() >= give_up || shared.view.peers.rest(RETRY_INTERVAL) {
            return Err(timed_out());
        }
    }
    Ok(())
}

fn transfer(shared: &Shared, peer: PeerId) -> Changed {
    if !shared.group.configuration().voters.contains(&peer) {
        return Err(refused("it has no vote; accepted: a voter"));
    }
    let give_up = shared.clock.now() + TRANSFER_TIMEOUT;
    let leads = || shared.group.status().leader == Some(peer);
    if !leads() {
        shared.group.transfer(Some(peer));
    }
    while !leads() {
        if shared.clock.now() >= give_up || shared.view.peers.rest(RETRY_INTERVAL) {
            return Err(refused(
                "it did not take over; GROUP says whether it is there",
            ));
        }
    }
    Ok(())
}

/// Proposes a change until it is applied, or cannot be.
fn propose(shared: &Shared, term: u64, change: &ConfigurationChange) -> Changed {
    let give_up = shared.clock.now() + CHANGE_TIMEOUT;
    loop {
        let (done, outcome) = sync_channel(1);
        shared.group.change(term, change.clone(), move |outcome| {
            // The receiver may have given up.
            _ = done.send(outcome);
        });
        let left = give_up.since(shared.clock.now());
        match outcome.recv_timeout(left) {
            Ok(ProposalOutcome::Applied(())) => return Ok(()),
            Ok(ProposalOutcome::NotProposed(Reason::Busy)) => {}
            Ok(ProposalOutcome::NotProposed(Reason::DiskFull)) => return Err(Failure::Busy),
            Ok(ProposalOutcome::NotProposed(_) | ProposalOutcome::Lost) => {
                let leader = shared.leader_address();
                return Err(Failure::NotLeader { leader });
            }
            Ok(ProposalOutcome::Unknown) | Err(_) => return Err(timed_out()),
        }
        // Another change is under way: one at a time.
        if shared.clock.now() >= give_up || shared.view.peers.rest(RETRY_INTERVAL) {
            return Err(refused("another change is under way, try again"));
        }
    }
}

fn timed_out() -> Failure {
    refused("timed out, the change may or may not have happened")
}

/// Answers once: `busy` when dropped.
struct Answer(Arc<Slot<Reply>>);

impl Answer {
    fn give(self, reply: Reply) {
        self.0.fill(reply);
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        // Without effect if it was given.
        self.0.fill(Reply::Failed(Failure::Busy));
    }
}

/// The batch that waits for it.
struct Waiting {
    shared: Arc<Shared>,
    slot: Arc<Slot<Reply>>,
    deadline: Instant,
}

impl Parked for Waiting {
    fn deadline(&self) -> Instant {
        self.deadline
    }

    fn arm(&mut self, wake: Waker) {
        self.slot.arm(wake);
    }

    fn resume(self: Box<Self>) -> Progress {
        match self.slot.take() {
            Some(reply) => Progress::done(vec![reply]),
            None if self.shared.clock.now() >= self.deadline => {
                Progress::done(vec![Reply::Failed(timed_out())])
            }
            None => Progress::Parked(self),
        }
    }
}
