//! The leader's side of calls from members (registration and heartbeats) and from other leaders.

use std::sync::Arc;

use log::{info, warn};
use parking_lot::Mutex;

use crate::clock::{Clock, Instant};
use crate::cluster::liveness::HEARTBEAT_SILENCE_MAX;
use crate::group::{IncomingChunk, ProposalOutcome};
use crate::ids::{MemberId, PeerId};
use crate::leader::desk::Desk;
use crate::leader::drive::not_proposed;
use crate::leader::state::Shared;
use crate::leader::state::View;
use crate::logging;
use crate::metadata::command::{Applied, Change, Command, Registration};
use crate::protocol::reply::MemberState;
use crate::protocol::request::Batch;
use crate::rpc::PeerInfo;
use crate::rpc::frame::FRAME_BYTES_MAX;
use crate::rpc::link::Link;
use crate::rpc::message::{
    HeartbeatAnswer, JoinAnswer, RaftRequest, Refusal, RegisterRequest, Request, Response, Role,
    SnapshotChunk, StandingAnswer,
};
use crate::rpc::pool::PoolEvents;
use crate::rpc::server::{CallInfo, Responder, Service};

/// The member whose refusal was logged last, and the refusal. Guards only itself.
type LastRefused = Arc<Mutex<Option<(MemberId, Refusal)>>>;

/// The largest frame of a member, in bytes: a registration has 1 KiB at most, a heartbeat less.
const MEMBER_FRAME_BYTES_MAX: usize = 64 << 10;

/// Answers members and other leaders.
pub struct MemberService {
    shared: Arc<Shared>,
    /// Answers what other leaders pass on.
    desk: Option<Arc<Desk>>,
    /// When this leader began to hear members.
    since: Instant,
    /// So that a member which tries again each second is not logged each time.
    refused: LastRefused,
}

impl MemberService {
    /// For all connections of members.
    pub fn new(shared: Arc<Shared>) -> MemberService {
        let (desk, since) = (None, shared.clock.now());
        MemberService {
            shared,
            desk,
            since,
            refused: Arc::default(),
        }
    }

    /// What other leaders pass on is answered there; without it, it is refused.
    pub fn answering(self, desk: Arc<Desk>) -> MemberService {
        MemberService {
            desk: Some(desk),
            ..self
        }
    }

    /// A batch that a follower passes on.
    fn forward(&self, peer: &PeerInfo, batch: Batch, bytes: usize, responder: Responder) {
        let peers = self.shared.group.configuration().peers();
        let takes_part = peers.contains(&PeerId(peer.node_id));
        match self.desk.as_ref().filter(|_| takes_part) {
            Some(desk) => desk.take(batch, bytes, responder),
            None => responder.send(Response::Refused(Refusal::NotLeader)),
        }
    }

    /// Whether the leader that asks takes part.
    fn standing(&self, peer: &PeerInfo) -> Response {
        if self.shared.leading_term().is_none() {
            return Response::Refused(Refusal::NotLeader);
        }
        let peers = self.shared.group.configuration().peers();
        Response::Standing(StandingAnswer {
            takes_part: peers.contains(&PeerId(peer.node_id)),
            client: self.shared.client_address.clone(),
            http: self.shared.http_address.clone(),
        })
    }

    /// Raft messages of another leader of this cluster, whether it takes part as far as is known
    /// here or not: the one that leads may have been added by entries that this one lacks, and gets
    /// from nobody else (Raft thesis 4.1). One that was removed disturbs nobody: PreVote and
    /// CheckQuorum see to that.
    ///
    /// The messages share the memory of their frame, of so many bytes.
    fn raft(&self, peer: &PeerInfo, request: RaftRequest, bytes: usize) {
        let (peers, id) = (&self.shared.view.peers, PeerId(peer.node_id));
        peers.heard(id, &request.address, &peer.name);
        self.shared.group.messages(id, request.messages, bytes);
    }

    /// A piece of a snapshot, of the leader that this one follows: anybody else's would replace
    /// what is on the disk by something that is not the group's.
    fn snapshot(&self, peer: &PeerInfo, chunk: SnapshotChunk, responder: Responder) {
        if self.shared.group.status().leader != Some(PeerId(peer.node_id)) {
            let reason = format!("{} does not follow {}", self.shared.name, peer.name);
            return responder.send(Response::Refused(Refusal::Other(reason)));
        }
        let chunk = IncomingChunk {
            from: PeerId(peer.node_id),
            transfer: chunk.transfer,
            offset: chunk.offset,
            bytes: chunk.bytes,
            end: chunk.end,
        };
        self.shared.group.receive_chunk(chunk, move |result| {
            responder.send(match result {
                Ok(()) => Response::Snapshot,
                Err(error) => Response::Refused(Refusal::Other(error.to_string())),
            });
        });
    }

    /// Whether this leader can be added to the group of `peer`.
    fn join(&self, peer: &PeerInfo) -> Response {
        let configuration = self.shared.group.configuration();
        let is_free = configuration.peers().is_empty();
        if !is_free && !configuration.peers().contains(&PeerId(peer.node_id)) {
            let name = &self.shared.name;
            let refusal = format!("{name} is in another group: it must be started with --join");
            return Response::Refused(Refusal::Other(refusal));
        }
        Response::Join(JoinAnswer {
            rpc: self.shared.rpc_address.clone(),
            client: self.shared.client_address.clone(),
            http: self.shared.http_address.clone(),
            has_log: !is_free,
        })
    }

    /// Proposes the registration; the answer follows when it is applied.
    fn register(&self, peer: &PeerInfo, request: RegisterRequest, responder: Responder) {
        // Whether it leads or not: it may lead the next term.
        self.shared.told(MemberId(peer.node_id), request.seen);
        let Some(term) = self.shared.leading_term() else {
            return responder.send(Response::Refused(Refusal::NotLeader));
        };
        let registration = Registration {
            id: MemberId(peer.node_id),
            name: peer.name.clone(),
            address: request.address,
            zone: request.zone,
            incarnation: peer.incarnation,
            nonce: peer.nonce,
        };
        let change = match self.name_holder(&registration) {
            Holder::Itself => Change::RegisterMember(registration.clone()),
            Holder::Another(refusal) => {
                log_refusal(&self.refused, &registration, &refusal);
                return responder.send(Response::Refused(refusal));
            }
            Holder::Free => Change::AdmitMember {
                registration: registration.clone(),
                replace: request.replace,
            },
        };
        let command = Command { term, change };
        let (refused, shared) = (Arc::clone(&self.refused), Arc::clone(&self.shared));
        let (incomplete, records) = (request.incomplete, request.records);
        self.shared
            .group
            .propose(term, command.encode(), move |outcome| {
                let answer = match outcome {
                    // Another id has come to have the name since: the next try says so.
                    ProposalOutcome::Applied(Applied::Retired)
                        if is_known_by_name(&shared, &registration) =>
                    {
                        Err(Refusal::Busy)
                    }
                    ProposalOutcome::Applied(applied) => registered(&registration, &applied),
                    ProposalOutcome::NotProposed(reason) => {
                        Err(Refusal::Other(not_proposed(reason).to_string()))
                    }
                    ProposalOutcome::Lost | ProposalOutcome::Unknown => Err(Refusal::NotLeader),
                };
                responder.send(match answer {
                    Ok(()) => {
                        note_losses(&shared, &registration, incomplete, records);
                        Response::Register
                    }
                    Err(refusal) => {
                        log_refusal(&refused, &registration, &refusal);
                        Response::Refused(refusal)
                    }
                });
            });
    }
}

/// Whether the id belongs to the name with which it registers, retired or not.
fn is_known_by_name(shared: &Shared, registration: &Registration) -> bool {
    let cluster = shared.view.cluster.lock();
    let known = cluster.member(registration.id);
    known.is_some_and(|known| known.name == registration.name)
}

/// Has the copies of a member that registered compared, if records of it may be lost: it says so,
/// or has fewer than the metadata lists. The numbers say something only while nothing is stored
/// there: there is no data link, or only one to an earlier start.
fn note_losses(
    shared: &Shared,
    registration: &Registration,
    incomplete: bool,
    records: Option<u64>,
) {
    let id = registration.id;
    let mut cluster = shared.view.cluster.lock();
    let start_before = cluster.member(id).and_then(|member| member.start);
    cluster.started(id, registration.nonce, records.is_some());
    let Some(member) = cluster.member(id) else {
        return;
    };
    let listed = member.load.records();
    let is_linked = member.liveness.is_connected()
        && start_before.is_none_or(|start| start == registration.nonce);
    let is_short = !is_linked && records.is_some_and(|held| held < listed);
    if incomplete || is_short {
        let name = &member.name;
        let held = records.map_or("unknown".to_owned(), |held| held.to_string());
        warn!("member {name} ({id}) may have lost records: {held} are there, {listed} are listed");
        cluster.report_incomplete(id);
        drop(cluster);
        shared.view.ring();
    }
}

/// Logs a refused registration, unless it is the one that was logged last.
fn log_refusal(last: &LastRefused, registration: &Registration, refusal: &Refusal) {
    let refused = Some((registration.id, refusal.clone()));
    let mut last = last.lock();
    if *last == refused {
        return;
    }
    if let Some(more) = logging::seldom("registration refused") {
        let Registration { name, id, .. } = registration;
        warn!("registration of {name} ({id}) is refused: {refusal}{more}");
        *last = refused;
    }
}

/// Who has the name of a member that registers.
enum Holder {
    /// This id.
    Itself,
    /// Another id, which is up: the member is refused.
    Another(Refusal),
    /// None, or one that is not up: the registry decides.
    Free,
}

impl MemberService {
    /// Who has a name now. An id whose process is up keeps its name: a second process with its
    /// certificate, or the same machine started twice, must not end it.
    fn name_holder(&self, registration: &Registration) -> Holder {
        let cluster = self.shared.view.cluster.lock();
        let (id, name, now) = (registration.id, &registration.name, self.shared.clock.now());
        if let Some(holder) = cluster.other_of_name(name, id) {
            let state = cluster.state(holder.id, now);
            // A leader that has just started has not heard of anybody yet.
            let is_unknown = holder.liveness.last_seen().is_none()
                && now.since(self.since) < HEARTBEAT_SILENCE_MAX;
            return match state != MemberState::Down || is_unknown {
                true => Holder::Another(Refusal::NameHeld {
                    holder: holder.id,
                    messages: holder.load.records(),
                    is_up: true,
                }),
                false => Holder::Free,
            };
        }
        let known = cluster.member(id);
        match known.is_some_and(|known| !known.is_retired && known.name == *name) {
            true => Holder::Itself,
            false => Holder::Free,
        }
    }

    /// Whether the member is retired, as far as the active leader knows.
    fn is_retired(&self, id: MemberId) -> bool {
        let is_active_leader = self.shared.serving_term().is_some();
        let cluster = self.shared.view.cluster.lock();
        is_active_leader && cluster.member(id).is_some_and(|member| member.is_retired)
    }
}

fn registered(registration: &Registration, applied: &Applied) -> Result<(), Refusal> {
    match applied {
        Applied::Registered { retired } => {
            let Registration {
                name, id, address, ..
            } = registration;
            let incarnation = registration.incarnation;
            info!("member {name} ({id}) registered at {address}, incarnation {incarnation}");
            if let Some(retired) = retired {
                warn!("member {name} came with another id, {id}: {retired} is retired");
            }
            Ok(())
        }
        Applied::StaleIncarnation { registered } => Err(Refusal::StaleIncarnation {
            incarnation: registration.incarnation,
            registered: *registered,
        }),
        Applied::Retired => Err(Refusal::Retired(registration.id)),
        Applied::NameHeld { holder, messages } => Err(Refusal::NameHeld {
            holder: *holder,
            messages: *messages,
            is_up: false,
        }),
        Applied::WrongTerm => Err(Refusal::NotLeader),
        Applied::Write { .. }
        | Applied::Transacted { .. }
        | Applied::Expired { .. }
        | Applied::Reserved { .. }
        | Applied::IdsExhausted
        | Applied::Repeated(_)
        | Applied::Resumed { .. }
        | Applied::Refused(_)
        | Applied::Set => unreachable!("a registration is answered as one"),
    }
}

impl Service for MemberService {
    /// An id belongs to the name with which the group knows it. One that it does not know yet may
    /// belong to anybody who has a certificate.
    fn admits(&self, peer: &PeerInfo) -> Result<(), Refusal> {
        let known = match peer.role {
            Role::Leader => {
                let configuration = self.shared.group.configuration();
                let address = configuration.addresses.get(&PeerId(peer.node_id));
                address.map(|address| address.name.clone())
            }
            Role::Member => {
                let cluster = self.shared.view.cluster.lock();
                let mut members = cluster.members();
                let member = members.find(|member| member.id == MemberId(peer.node_id));
                member.map(|member| member.name.clone())
            }
            Role::Client => {
                let reason = "only members and leaders connect here".to_owned();
                return Err(Refusal::Other(reason));
            }
        };
        match known.filter(|name| !name.is_empty() && *name != peer.name) {
            None => Ok(()),
            Some(name) => {
                let (role, id) = (peer.role, peer.node_id);
                let reason = format!(
                    "id {id:016x} belongs to {role} {name}, not to {}",
                    peer.name
                );
                Err(Refusal::Other(reason))
            }
        }
    }

    fn frame_bytes_max(&self, peer: &PeerInfo) -> usize {
        match peer.role {
            Role::Leader => FRAME_BYTES_MAX,
            Role::Member | Role::Client => MEMBER_FRAME_BYTES_MAX,
        }
    }

    fn connected(&self, _peer: &PeerInfo) -> Result<(), Refusal> {
        Ok(())
    }

    fn handle(&self, peer: &PeerInfo, call: CallInfo, request: Request, responder: Responder) {
        match request {
            Request::Register(request) => self.register(peer, request, responder),
            Request::Heartbeat(counters) => {
                let now = self.shared.clock.now();
                let id = MemberId(peer.node_id);
                if self.is_retired(id) {
                    return responder.send(Response::Refused(Refusal::Retired(id)));
                }
                let is_serving = self.shared.serving_term().is_some();
                let has_all = {
                    let mut cluster = self.shared.view.cluster.lock();
                    cluster.heartbeat(id, &counters, now);
                    is_serving && cluster.has_all(id, peer.nonce)
                };
                self.shared.told(id, counters.seen);
                let committed = self.shared.committed();
                let answer = HeartbeatAnswer { committed, has_all };
                responder.send(Response::Heartbeat(answer));
            }
            Request::Store(_) | Request::Fetch(_) | Request::Release(_) | Request::Holds(_) => {
                let refusal = Refusal::Other("a leader stores no payloads".to_owned());
                responder.send(Response::Refused(refusal));
            }
            Request::Raft(request) => self.raft(peer, request, call.bytes),
            Request::Snapshot(chunk) => self.snapshot(peer, chunk, responder),
            Request::Join(_) => responder.send(self.join(peer)),
            Request::Forward(batch) => self.forward(peer, batch, call.bytes, responder),
            Request::Standing => responder.send(self.standing(peer)),
        }
    }

    fn disconnected(&self, _peer: &PeerInfo) {}
}

/// Told by the pool when the data link to a member opens or breaks.
pub struct LinkEvents {
    view: Arc<View>,
    clock: Arc<dyn Clock>,
}

impl LinkEvents {
    /// For the pool.
    pub fn new(view: Arc<View>, clock: Arc<dyn Clock>) -> LinkEvents {
        LinkEvents { view, clock }
    }
}

impl PoolEvents<MemberId> for LinkEvents {
    fn up(&self, member: MemberId, _link: &Arc<Link>) {
        self.view.member_up(member, self.clock.now());
    }

    fn down(&self, member: MemberId) {
        self.view.member_down(member, self.clock.now());
    }
}
