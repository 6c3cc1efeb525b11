//! The structures that the leader's threads share, and their locks.
//!
//! [`View`] is what applying entries changes, so it exists before the group and without it;
//! [`Shared`] is the whole.
//!
//! Lock order (ARCHITECTURE: locks), one after the other and never over I/O: a shard of the message
//! index, the cluster, the releases, a shard of the cache, an inbox.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;

use crate::clock::{Clock, Instant};
use crate::cluster::Cluster;
use crate::coordinator::release::{Release, ReleaseQueue};
use crate::coordinator::{Charge, Found, Limits, Question, Revisions, Settlement, Told};
use crate::faults::{self, Fault};
use crate::group::{Configuration, GroupHandle, PeerAddress, Role};
use crate::ids::{Fence, Key, LogPosition, MemberId, Revision};
use crate::leader::cache::Cache;
use crate::leader::command_time::CommandTime;
use crate::leader::gate::{Gate, Surroundings};
use crate::leader::links::{MemberLink, MemberLinks};
use crate::leader::machine::Metadata;
use crate::leader::peers::Peers;
use crate::leader::standing::Removal;
use crate::metadata::command::Applied;
use crate::metadata::listing::list;
use crate::metadata::replica_sets::ReplicaSet;
use crate::metadata::state::Shards;
use crate::net;
use crate::net::budget::Budget;
use crate::net::helpers::Helpers;

/// How long a call to a member may stay unanswered, beyond what its bytes need. Nobody waits that
/// long for its answer: after it, what the call holds of the member's room in flight is given back.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// What the applied log says, and what is known of the members.
pub struct View {
    /// The applied metadata.
    pub metadata: Metadata,
    /// The members: registry, liveness, load.
    pub cluster: Mutex<Cluster>,
    /// The other leaders.
    pub peers: Arc<Peers>,
    releases: Mutex<Releases>,
    /// Whether clients are served.
    pub gate: Gate,
    /// Whether there is no other leader.
    is_alone: AtomicBool,
    /// Holds one ring for the `house` thread; a second one adds nothing.
    bell: (Sender<()>, Receiver<()>),
}

/// Revisions handed out, and what members may forget.
struct Releases {
    queue: ReleaseQueue,
    /// The term served in, and the sequence of its next revision.
    term: u64,
    next_sequence: u64,
}

impl View {
    /// Before anything was applied.
    pub fn new(cluster: Cluster) -> View {
        View {
            metadata: Metadata::default(),
            cluster: Mutex::new(cluster),
            peers: Arc::default(),
            releases: Mutex::new(Releases {
                queue: ReleaseQueue::new(),
                term: 0,
                next_sequence: 0,
            }),
            gate: Gate::default(),
            is_alone: AtomicBool::new(false),
            bell: bounded(1),
        }
    }

    /// The no-op of `term` was applied, behind that entry: its revisions are handed out from here
    /// on (R5), once the gate is open.
    pub fn begin_term(&self, term: u64, behind: LogPosition) {
        self.gate.begin(term, behind);
        // Nothing was sent in it so far, so no link is its own.
        self.look_at_gate(None, &|| behind.index + 1, &|_| false);
        let mut releases = self.releases.lock();
        releases.queue.begin_term(term);
        releases.term = term;
        releases.next_sequence = 0;
        drop(releases);
        // Those of an earlier term may have been released since.
        self.cluster.lock().forget_missing();
    }

    /// A copy is not what the metadata says of it: if it is listed, it counts as missing from here
    /// on, until it is released. Whether it is.
    pub fn copy_missing(&self, member: MemberId, revision: Revision, key: &Key) -> bool {
        let listed = || {
            let entry = self.metadata.find(key)?;
            let is_it = entry.revision == revision && entry.replicas.contains(member);
            is_it.then_some(entry)
        };
        let Some(entry) = listed() else {
            return false;
        };
        let length = entry.length;
        self.cluster.lock().copy_missing(member, revision, length);
        // A release that was applied before this line has not found it; a later one does.
        let still_listed = listed().is_some();
        if !still_listed {
            self.cluster.lock().released(&[(revision, entry.replicas)]);
        }
        still_listed
    }

    /// `term` is served no longer.
    pub fn end_term(&self) {
        self.gate.end();
        self.releases.lock().queue.end_term();
    }

    /// From here on these leaders take part.
    pub fn configure(&self, configuration: &Configuration) {
        self.peers.configure(configuration);
        let others = configuration.voters.len() + configuration.outgoing.len();
        self.is_alone.store(others == 1, Ordering::Release);
    }

    /// Hands on to the group what members know, see [`Gate::tell_group`].
    pub fn tell_group(&self, term: u64, hand_on: impl FnOnce(LogPosition, bool) -> bool) {
        let registered = self.registered();
        let around = (term, &registered[..], self.copies());
        self.gate.tell_group(around, hand_on);
    }

    fn registered(&self) -> Vec<MemberId> {
        let cluster = self.cluster.lock();
        let members = cluster.members().filter(|member| !member.is_retired);
        members.map(|member| member.id).collect()
    }

    /// Copies of each message.
    fn copies(&self) -> usize {
        self.metadata.tolerance().unwrap_or(1).into()
    }

    /// Opens or closes the gate as the reports of members demand, with `applied` the last entry
    /// that is applied; the term above which the group must go on, if it must.
    pub fn look_at_gate(
        &self,
        now: Option<Instant>,
        applied: &dyn Fn() -> u64,
        is_own_link: &dyn Fn(u64) -> bool,
    ) -> Option<u64> {
        let registered = self.registered();
        let around = Surroundings {
            registered: &registered,
            tolerance: self.copies(),
            applied,
            is_alone: self.is_alone.load(Ordering::Acquire),
            is_own_link,
        };
        self.gate.look(now, &around)
    }

    /// Allots and opens `count` revisions of the term that is served (R6); `None` if that is not
    /// `term` any more.
    pub fn allot(&self, term: u64, count: u64) -> Option<Revisions> {
        let mut releases = self.releases.lock();
        if releases.term != term {
            return None;
        }
        assert!(
            count <= Revision::SEQUENCE_MAX - releases.next_sequence,
            "term {term} has no more revisions: the next start begins a new one"
        );
        let first = Revision::new(term, releases.next_sequence);
        releases.next_sequence += count;
        let revisions = Revisions { first, count };
        if count > 0 {
            releases.queue.open(revisions);
        }
        Some(revisions)
    }

    /// Closes the revisions of a batch and queues the copies that it gave up.
    pub fn settle(&self, settlement: Settlement) {
        let is_release = !settlement.given_up.is_empty();
        if settlement.closed.count > 0 || is_release {
            self.releases.lock().queue.settle(settlement);
        }
        if is_release {
            self.ring();
        }
    }

    /// Queues records that the metadata no longer lists.
    pub fn released(&self, records: &[(Revision, ReplicaSet)]) {
        if !records.is_empty() {
            self.releases.lock().queue.released(records);
            self.ring();
        }
    }

    /// Until the value is dropped no member is told to forget what is released from here on.
    pub fn hold_releases(self: &Arc<Self>) -> ReleaseHold {
        let number = self.releases.lock().queue.hold();
        ReleaseHold(Arc::clone(self), number)
    }

    /// The data link to a member opened.
    pub fn member_up(&self, member: MemberId, now: Instant) {
        self.cluster.lock().connected(member, now);
        self.releases.lock().queue.member_up(member);
        self.ring();
    }

    /// The data link to a member broke.
    pub fn member_down(&self, member: MemberId, now: Instant) {
        self.cluster.lock().disconnected(member, now);
        self.releases.lock().queue.member_down(member);
    }

    /// The next release to send in `term`; none if that is not served any more (R5).
    pub fn next_release(&self, term: u64) -> Option<Release> {
        let mut releases = self.releases.lock();
        if releases.term != term && !faults::has(Fault::ReleaseBeforeNoOp) {
            return None;
        }
        releases.queue.next_release()
    }

    /// The member forgot what release `number` named.
    pub fn release_done(&self, number: u64, member: MemberId) {
        self.releases.lock().queue.answered(number, member, true);
        self.ring();
    }

    /// The release had no effect and will have none.
    pub fn release_refused(&self, number: u64, member: MemberId) {
        self.releases.lock().queue.answered(number, member, false);
    }

    /// There is something for the `house` thread.
    pub fn ring(&self) {
        // Full means that it has been rung already.
        _ = self.bell.0.try_send(());
    }

    /// Waits until the bell rings, `timeout` at most; whether it did. Without a time-out it only
    /// looks: the channel would spin and yield before it gave up.
    pub fn wait_for_bell(&self, timeout: Duration) -> bool {
        if timeout.is_zero() {
            return self.bell.1.try_recv().is_ok();
        }
        self.bell.1.recv_timeout(timeout).is_ok()
    }
}

/// All that the leader's threads share.
pub struct Shared {
    /// The process's clock.
    pub clock: Arc<dyn Clock>,
    /// Times and sizes of batches.
    pub limits: Limits,
    /// What the log and the links change.
    pub view: Arc<View>,
    /// The Raft group.
    pub group: GroupHandle<Applied>,
    /// Links to members.
    pub links: Arc<dyn MemberLinks>,
    /// Payloads read often.
    pub cache: Cache,
    /// Bytes held for clients, and reserved for them.
    pub budget: Arc<Budget>,
    /// The threads that make pages of listings, once clients are served. Until then the thread that
    /// needs a page makes it.
    pub helpers: OnceLock<Helpers>,
    /// The node's name.
    pub name: String,
    /// Where clients reach this leader, `host:port`.
    pub client_address: String,
    /// Where they do over HTTP; empty: nowhere.
    pub http_address: String,
    /// Where members and other leaders do.
    pub rpc_address: String,
    /// Whether it was removed from its group.
    pub removal: Removal,
    /// Batches begun, to tell them apart in the log.
    batches: AtomicU64,
    /// Batches under way.
    running: AtomicUsize,
    /// This leader stops and hands over: it begins no more batches.
    is_handing_over: AtomicBool,
    time: CommandTime,
}

/// What this leader is to a batch that arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The active leader, in this term.
    Serves(u64),
    /// There will be an active leader soon: this one was elected and does not serve yet, or hands
    /// over and does not know yet to whom.
    Changes,
    /// Another one leads, or nobody.
    Follows,
}

impl Shared {
    /// The whole, from its parts.
    pub fn new(
        clock: Arc<dyn Clock>,
        limits: Limits,
        view: Arc<View>,
        group: GroupHandle<Applied>,
        links: Arc<dyn MemberLinks>,
        cache_bytes: usize,
        own: PeerAddress,
    ) -> Shared {
        Shared {
            time: CommandTime::new(&*clock),
            clock,
            limits,
            view,
            group,
            links,
            cache: Cache::new(cache_bytes),
            budget: Budget::new(net::Limits::default().budget_bytes),
            helpers: OnceLock::new(),
            name: own.name,
            client_address: own.client,
            http_address: own.http,
            rpc_address: own.rpc,
            removal: Removal::default(),
            batches: AtomicU64::new(0),
            running: AtomicUsize::new(0),
            is_handing_over: AtomicBool::new(false),
        }
    }

    /// With this budget for clients.
    pub fn within(self, budget: Arc<Budget>) -> Shared {
        Shared { budget, ..self }
    }

    /// What to do with a batch.
    pub fn standing(&self) -> Standing {
        let status = self.group.status();
        let gate = &self.view.gate;
        let leads = status.role == Role::Leader && !gate.is_left(status.term);
        let is_handing_over = self.is_handing_over.load(Ordering::SeqCst);
        match (leads, is_handing_over) {
            (true, false) if status.serving && gate.is_open(status.term) => {
                Standing::Serves(status.term)
            }
            (true, _) => Standing::Changes,
            (false, true) if status.leader.is_none() => Standing::Changes,
            (false, _) => Standing::Follows,
        }
    }

    /// From here on no batch is begun.
    pub fn begin_hand_over(&self) {
        self.is_handing_over.store(true, Ordering::SeqCst);
    }

    /// Batches that were begun and have no replies yet.
    pub fn batches_running(&self) -> usize {
        self.running.load(Ordering::SeqCst)
    }

    /// A batch begins, until the value is dropped.
    pub fn batch_runs(self: &Arc<Self>) -> RunningBatch {
        self.running.fetch_add(1, Ordering::SeqCst);
        RunningBatch(Arc::clone(self))
    }

    /// The term that this leader serves in, if it serves.
    pub fn serving_term(&self) -> Option<u64> {
        self.leading_term()
            .filter(|term| self.view.gate.is_open(*term))
    }

    /// Where clients reach the active leader, `host:port`, as far as this one knows.
    pub fn leader_address(&self) -> Option<String> {
        if let Some(leader) = self.removal.leader() {
            return Some(leader);
        }
        let leader = self.group.status().leader?;
        let configuration = self.group.configuration();
        let address = configuration.addresses.get(&leader)?;
        let client = &address.client;
        // Nobody is sent to where they come from: a leader that does not serve yet is none.
        (!client.is_empty() && *client != self.client_address).then(|| client.clone())
    }

    /// The same over HTTP, if that leader serves it.
    pub fn leader_http(&self) -> Option<String> {
        let http = match self.removal.leader_http() {
            Some(http) => http,
            None => {
                let leader = self.group.status().leader?;
                let configuration = self.group.configuration();
                configuration.addresses.get(&leader)?.http.clone()
            }
        };
        (!http.is_empty() && http != self.http_address).then_some(http)
    }

    /// A number for a batch.
    pub fn next_batch(&self) -> u64 {
        self.batches.fetch_add(1, Ordering::Relaxed)
    }

    /// The time that a command carries, in milliseconds since the Unix epoch.
    pub fn command_ms(&self) -> u64 {
        let reached_ms = self.view.metadata.clock_ms();
        self.time.now_ms(&*self.clock, reached_ms)
    }

    /// The fence of requests of `term` on a link.
    pub fn fence(&self, term: u64, link: &dyn MemberLink) -> Fence {
        Fence {
            term,
            link: link.number(),
        }
    }

    /// When a call with `bytes` of payload is given up.
    pub fn call_deadline(&self, bytes: u64) -> Instant {
        let rate = self.limits.drain_bytes_per_second.max(1);
        self.clock.now() + CALL_TIMEOUT + Duration::from_secs(bytes / rate)
    }

    /// A store has ended: its charge is given back; `answered` if the member answered it.
    pub fn end_store(&self, member: MemberId, charge: Charge, answered: bool) {
        let mut cluster = self.view.cluster.lock();
        cluster.settle(member, charge.records, charge.bytes);
        if answered {
            cluster.answered(member, self.clock.now());
        }
    }

    /// The member answered something.
    pub fn answered(&self, member: MemberId) {
        self.view.cluster.lock().answered(member, self.clock.now());
    }

    /// What the applied metadata holds for each key.
    pub fn look_up(&self, keys: &[Key]) -> Vec<Option<Found>> {
        let find = |key| {
            let entry = self.view.metadata.find(key)?;
            let cached = self.cache.get(entry.revision);
            Some(Found { entry, cached })
        };
        keys.iter().map(find).collect()
    }

    /// Answers a question from the applied metadata.
    pub fn tell(&self, question: Question) -> Told {
        let metadata = &self.view.metadata;
        match question {
            Question::Count => Told::Count(metadata.message_count()),
            Question::Expiry(key) => Told::Expiry(metadata.expiry_ms(&key).map(|expires_ms| {
                let now_ms = self.command_ms();
                expires_ms.map(|expires_ms| expires_ms.saturating_sub(now_ms))
            })),
            Question::List(request) => Told::Keys(list(metadata, &request)),
        }
    }
}

/// A batch under way, for [`Shared::batches_running`].
pub struct RunningBatch(Arc<Shared>);

impl Drop for RunningBatch {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A read of records that may be released meanwhile, see [`View::hold_releases`].
pub struct ReleaseHold(Arc<View>, u64);

impl Drop for ReleaseHold {
    fn drop(&mut self) {
        self.0.releases.lock().queue.end_hold(self.1);
        self.0.ring();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Strategy;

    const M: MemberId = MemberId(1);

    fn view() -> View {
        View::new(Cluster::new(Strategy::LeastLoaded, 1))
    }

    fn one(member: MemberId) -> ReplicaSet {
        ReplicaSet::new(&[member]).expect("one member")
    }

    #[test]
    fn revisions_are_allotted_once_and_only_in_the_term_that_is_served() {
        let view = view();
        assert_eq!(view.allot(3, 1), None);
        view.begin_term(3, LogPosition::default());
        let first = view.allot(3, 5).expect("served");
        let second = view.allot(3, 1).expect("served");
        assert_eq!((first.first, first.count), (Revision::new(3, 0), 5));
        assert_eq!(second.first, Revision::new(3, 5));
        assert_eq!(view.allot(2, 1), None);
        view.end_term();
        // A worker that saw the term as served a moment ago: its proposal will be refused.
        let late = view.allot(3, 1).expect("numbers are left");
        assert_eq!(late.first, Revision::new(3, 6));
        view.begin_term(4, LogPosition::default());
        assert_eq!(view.allot(3, 1), None);
        let next = view.allot(4, 1).expect("served");
        assert_eq!(next.first, Revision::new(4, 0));
    }

    #[test]
    fn a_release_is_handed_out_in_its_own_term_only() {
        let view = view();
        view.begin_term(3, LogPosition::default());
        view.member_up(M, Instant::default());
        view.released(&[(Revision::new(2, 1), one(M))]);
        assert_eq!(view.next_release(4), None);
        view.end_term();
        assert_eq!(view.next_release(3), None);
        view.begin_term(4, LogPosition::default());
        assert_eq!(view.next_release(4), None);
        view.released(&[(Revision::new(2, 2), one(M))]);
        assert_eq!(view.next_release(3), None);
        let release = view.next_release(4).expect("it is queued");
        assert_eq!(release.revisions, [Revision::new(2, 2)]);
    }
}
