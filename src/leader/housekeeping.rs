//! The `house` thread: keeps a data link to each registered member, sends releases, lets messages
//! expire, compares members that lost records with the metadata, and asks whether this leader takes
//! part still when it has no leader.
//!
//! It waits on a doorbell that [`View`] rings when there is something to release, the registry has
//! changed, or a message expires earlier than all others. It rests between two rounds, so that
//! under load many releases share one request.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use log::{debug, info, warn};

use crate::coordinator::release::Release;
use crate::faults::{self, Fault};
use crate::group::{ConfigurationChange, PeerAddress, ProposalOutcome, Role};
use crate::ids::MemberId;
use crate::leader::comparison::Comparisons;
use crate::leader::expiry::Expiry;
use crate::leader::standing::Inquirer;
use crate::leader::state::Shared;
use crate::logging;
use crate::rpc::link::CallError;
use crate::rpc::message::{Refusal, ReleaseRequest, Request, Response};
use crate::threads::StopSignal;

/// The rest between two rounds. A member is told to forget within about this; a tenth of it would
/// cost a request and a sync on members for every few overwrites.
const ROUND_INTERVAL: Duration = Duration::from_millis(20);

/// How long a round is waited for when the bell does not ring. Releases whose revisions were open
/// are looked at again no later than this.
const IDLE_INTERVAL: Duration = Duration::from_millis(500);

/// How long a member may take to answer a release. It does not hold up anything but the next
/// release to the same member.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(10);

/// What the thread remembers from round to round.
pub struct Housekeeping {
    shared: Arc<Shared>,
    /// Where each registered member is dialled, and its name.
    targets: BTreeMap<MemberId, (String, String)>,
    inquirer: Inquirer,
    expiry: Expiry,
    comparisons: Comparisons,
}

impl Housekeeping {
    /// Before the first round.
    pub fn new(shared: Arc<Shared>) -> Housekeeping {
        Housekeeping {
            shared,
            targets: BTreeMap::new(),
            inquirer: Inquirer::default(),
            expiry: Expiry::default(),
            comparisons: Comparisons::default(),
        }
    }

    /// The body of the thread.
    pub fn run(mut self, stop: &StopSignal) {
        while !stop.is_stopped() {
            self.round();
            let rest = self.expiry.rest(&self.shared).unwrap_or(IDLE_INTERVAL);
            self.shared.view.wait_for_bell(rest.min(IDLE_INTERVAL));
            if stop.wait_timeout(ROUND_INTERVAL) {
                break;
            }
        }
    }

    /// Does what there is to do now, without waiting for anything.
    pub fn round(&mut self) {
        let shared = &self.shared;
        dial_registered(shared, &mut self.targets);
        shared.look_at_gate();
        self.inquirer.round(shared);
        if let Some(term) = shared.leading_term() {
            describe_itself(shared, term);
        }
        if let Some(term) = shared.serving_term() {
            self.expiry.round(shared, term);
            self.comparisons.round(shared, term);
        }
        if let Some(term) = release_term(shared) {
            while let Some(release) = shared.view.next_release(term) {
                send(shared, term, release);
            }
        }
    }
}

/// The term in which releases are sent, if any: the one that is served (R5).
fn release_term(shared: &Shared) -> Option<u64> {
    if faults::has(Fault::ReleaseBeforeNoOp) {
        let status = shared.group.status();
        return (status.role == Role::Leader).then_some(status.term);
    }
    shared.serving_term()
}

/// Sees to it that the others, and clients through them, know where the active leader is reached.
fn describe_itself(shared: &Shared, term: u64) {
    let Some(peer) = shared.group.status().leader else {
        return;
    };
    let address = PeerAddress {
        name: shared.name.clone(),
        rpc: shared.rpc_address.clone(),
        client: shared.client_address.clone(),
        http: shared.http_address.clone(),
    };
    if shared.group.configuration().addresses.get(&peer) == Some(&address) {
        return;
    }
    let change = ConfigurationChange::Describe(peer, address);
    shared.group.change(term, change, |outcome| match outcome {
        ProposalOutcome::Applied(()) => info!("the group knows where this leader is reached"),
        // The next round tries again.
        other => debug!("the group was not told where this leader is reached: {other:?}"),
    });
}

/// Makes the targets of the links those of the registry.
fn dial_registered(shared: &Shared, targets: &mut BTreeMap<MemberId, (String, String)>) {
    let registered: BTreeMap<_, _> = shared
        .view
        .cluster
        .lock()
        .members()
        .filter(|member| !member.is_retired)
        .map(|member| (member.id, (member.address.clone(), member.name.clone())))
        .collect();
    for (id, (_, name)) in targets.iter() {
        if !registered.contains_key(id) {
            info!("member {name} ({id}) is retired, its link is closed");
            shared.links.remove(*id);
        }
    }
    for (id, (address, name)) in &registered {
        // Known ones too: for one that has no thread yet it tries again.
        shared.links.set(*id, address, name);
    }
    *targets = registered;
}

/// Sends one release of `term`; its answer goes to the queue.
fn send(shared: &Arc<Shared>, term: u64, release: Release) {
    let Release {
        number,
        member,
        revisions,
    } = release;
    // No link: the queue is told by `member_down` and keeps nothing for it.
    let Some(link) = shared.links.link(member) else {
        return shared.view.release_refused(number, member);
    };
    let fence = shared.fence(term, &*link);
    let count = revisions.len();
    let deadline = shared.clock.now() + RELEASE_TIMEOUT;
    let request = Request::Release(ReleaseRequest { fence, revisions });
    let answered = shared.clone();
    let sent = link.call(
        term,
        request,
        deadline,
        Box::new(move |result| match result {
            Ok(Response::Release) => answered.view.release_done(number, member),
            Ok(Response::Refused(Refusal::StaleFence { highest })) if highest.term > term => {
                answered.refused(member, highest);
                answered.view.release_refused(number, member);
            }
            Ok(response) => {
                if let Some(more) = logging::seldom("release refused") {
                    warn!("release {number} was refused by member {member}: {response:?}{more}");
                }
                answered.view.release_refused(number, member);
            }
            // The member may still execute it: it lingers until its next link was used (R8).
            Err(CallError::TimedOut) => {
                warn!("member {member} does not answer, its link is closed");
                // Its end tells the queue.
                if let Some(link) = answered.links.link(member)
                    && link.number() == fence.link
                {
                    link.close();
                }
            }
            Err(error) => debug!("release {number} to member {member}: {error}"),
        }),
    );
    match sent {
        Ok(call) => debug!("release {count} records on {} as call {call}", link.name()),
        Err(error) => {
            debug!("release {number} not sent to member {member}: {error}");
            shared.view.release_refused(number, member);
        }
    }
}
