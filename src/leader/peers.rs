//! The way to the other leaders of the group: links kept open to all that take part, Raft messages
//! on them, snapshots beside them.
//!
//! A leader dials each peer and sends on its own link; what the peer sends comes on the peer's. A
//! peer is dialled where its last message said that it is reached, else where the configuration
//! says so: after a change of address the others learn the new one from the first message.
//!
//! Owns the pool of links, a thread `snap` for each snapshot that is being sent, and the thread
//! `admin`, which changes the group. A message for which there is no link, or no room on it, is
//! lost; Raft is told and sends it again. A snapshot goes chunk by chunk, each answered before the
//! next, [`SNAPSHOT_BYTES_PER_SECOND`] at most, so that a peer that catches up does not slow down
//! the others.
//!
//! Lock: the table of targets, held for a few instructions; the pool is called under it and does
//! not block.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use log::{info, warn};
use parking_lot::Mutex;

use crate::clock::{Clock, Instant};
use crate::group::configuration::PEERS_MAX;
use crate::group::{Configuration, GroupHandle, OutgoingSnapshot, PeerAddress, Transport};
use crate::ids::PeerId;
use crate::logging;
use crate::metadata::command::Applied;
use crate::rpc::link::Link;
use crate::rpc::message::{JoinAnswer, JoinRequest, RaftRequest, Request, Response, SnapshotChunk};
use crate::rpc::pool::{Pool, PoolEvents};
use crate::threads::{self, StopSignal, Thread, Threads};

/// Bytes of a snapshot that are sent in a second to one peer. A quarter of a 1 Gbit/s network:
/// commits go on beside it, and twice of it is felt by them on two cores. 1,000,000 messages are
/// some 40 MB.
const SNAPSHOT_BYTES_PER_SECOND: u64 = 32 << 20;

/// How long a peer may take to answer a chunk: it syncs the file with the last one.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a leader that is to be added may take to answer.
const JOIN_TIMEOUT: Duration = Duration::from_secs(3);

/// Leaders of which messages were heard, at most: twice as many as a group can have. Beyond it
/// those that take no part are not dialled.
const HEARD_MAX: usize = 2 * PEERS_MAX;

/// Messages in one frame, and their bytes, at most.
const FRAME_MESSAGES_MAX: usize = 1024;
const FRAME_BYTES_MAX: usize = 8 << 20;

/// The other leaders, as all threads share them.
#[derive(Default)]
pub struct Peers {
    /// There once the group is open: its id is in our Hello.
    own: OnceLock<Own>,
    targets: Mutex<Targets>,
    /// Of the threads that send snapshots.
    stop: StopSignal,
    snapshots: Mutex<Vec<Thread>>,
    /// The thread `admin`, which changes the group; one at a time.
    admin: Mutex<Option<Thread>>,
}

struct Own {
    id: PeerId,
    /// Where our RPC is reached, for each message.
    address: String,
    pool: Pool<PeerId>,
    group: GroupHandle<Applied>,
    clock: Arc<dyn Clock>,
}

#[derive(Default)]
struct Targets {
    /// Where each peer of the configuration is reached, and its name.
    configured: BTreeMap<PeerId, (String, String)>,
    /// The same, as its last message said.
    heard: BTreeMap<PeerId, (String, String)>,
}

impl Peers {
    /// The group is open: from here on peers are dialled.
    pub fn open(
        &self,
        id: PeerId,
        address: String,
        pool: Pool<PeerId>,
        group: GroupHandle<Applied>,
        clock: Arc<dyn Clock>,
    ) {
        let own = Own {
            id,
            address,
            pool,
            group,
            clock,
        };
        assert!(self.own.set(own).is_ok(), "opened once");
        let targets = self.targets.lock();
        self.dial(&targets);
    }

    /// From here on these take part.
    pub fn configure(&self, configuration: &Configuration) {
        let mut targets = self.targets.lock();
        let peers = configuration.peers();
        let gone = |peer: &PeerId| !peers.contains(peer);
        // A leader that waits to be added knows its peers from their messages alone.
        let is_waiting = peers.is_empty();
        let heard = targets.heard.keys().filter(|_| !is_waiting);
        for peer in targets
            .configured
            .keys()
            .chain(heard)
            .filter(|peer| gone(peer))
        {
            if let Some(own) = self.own.get() {
                own.pool.remove(*peer);
            }
        }
        let target = |(peer, address): (&PeerId, &crate::group::PeerAddress)| {
            (*peer, (address.rpc.clone(), address.name.clone()))
        };
        targets.configured = configuration.addresses.iter().map(target).collect();
        if !is_waiting {
            targets.heard.retain(|peer, _| peers.contains(peer));
        }
        self.dial(&targets);
    }

    /// A message of `peer`, whose name is `name`, says that it is reached at `address`.
    pub fn heard(&self, peer: PeerId, address: &str, name: &str) {
        let mut targets = self.targets.lock();
        let known = targets.heard.get(&peer).cloned();
        if known
            .as_ref()
            .is_some_and(|known| known.0 == address && known.1 == name)
        {
            // A thread for it could not be started: it is tried again.
            if self.own.get().is_some_and(|own| !own.pool.holds(peer)) {
                self.dial(&targets);
            }
            return;
        }
        let is_configured = targets.configured.contains_key(&peer);
        if !is_configured {
            // One id for a certificate's name, and no more of them than a group can have.
            let is_earlier = |id: &PeerId, heard: &(String, String), targets: &Targets| {
                heard.1 == name && *id != peer && !targets.configured.contains_key(id)
            };
            let earlier: Vec<PeerId> = targets
                .heard
                .iter()
                .filter(|(id, heard)| is_earlier(id, heard, &targets))
                .map(|(id, _)| *id)
                .collect();
            for id in earlier {
                targets.heard.remove(&id);
                if let Some(own) = self.own.get() {
                    own.pool.remove(id);
                }
            }
            if targets.heard.len() >= HEARD_MAX && known.is_none() {
                return;
            }
        }
        if let Some(more) = logging::seldom("peer is reached") {
            info!("peer {name} ({peer}) is reached at {address}{more}");
        }
        let target = (address.to_owned(), name.to_owned());
        targets.heard.insert(peer, target);
        self.dial(&targets);
    }

    fn dial(&self, targets: &Targets) {
        let Some(own) = self.own.get() else {
            return;
        };
        let known = targets.configured.iter().chain(&targets.heard);
        let known: BTreeMap<_, _> = known.collect();
        for (peer, (address, name)) in known {
            if *peer != own.id && !address.is_empty() {
                own.pool.set(*peer, address, name);
            }
        }
    }

    /// Runs `body` on the thread `admin`; false if that is busy, or there cannot be one.
    pub fn run_admin(&self, body: impl FnOnce() + Send + 'static) -> bool {
        let mut admin = self.admin.lock();
        if admin.as_ref().is_some_and(|thread| !thread.is_finished()) || self.stop.is_stopped() {
            return false;
        }
        if let Some(ended) = admin.take() {
            ended.join();
        }
        match threads::spawn("admin", body) {
            Ok(thread) => *admin = Some(thread),
            Err(error) => warn!("no thread to change the group: {error}"),
        }
        admin.is_some()
    }

    /// Waits; true when it is time to end.
    pub fn rest(&self, time: Duration) -> bool {
        self.stop.wait_timeout(time)
    }

    /// Asks the leader whose RPC is at `address` to belong to this group: who it is. Blocks for
    /// some seconds at most.
    pub fn invite(&self, address: &str) -> anyhow::Result<(PeerId, PeerAddress)> {
        let own = self.own.get();
        let own = own.ok_or_else(|| anyhow::anyhow!("this leader is not open yet"))?;
        let link = own.pool.visit(address)?;
        let peer = PeerId(link.peer().node_id);
        let name = link.peer().name.clone();
        let founders = own.group.configuration().voters.iter().copied().collect();
        let request = Request::Join(JoinRequest { founders });
        match link.call_wait(0, request, own.clock.now() + JOIN_TIMEOUT)? {
            Response::Join(answer) => {
                let JoinAnswer {
                    rpc,
                    client,
                    http,
                    has_log,
                } = answer;
                let takes_part = own.group.configuration().peers().contains(&peer);
                if has_log && !takes_part {
                    anyhow::bail!(
                        "{name} ({peer}) took part before and has a log: its directory must be \
                         emptied, and it must be started with --join, under a new id"
                    );
                }
                let address = PeerAddress {
                    name,
                    rpc,
                    client,
                    http,
                };
                Ok((peer, address))
            }
            Response::Refused(refusal) => anyhow::bail!("{refusal}"),
            other => anyhow::bail!("it answers something else: {other:?}"),
        }
    }

    /// Our id, once the group is open.
    pub fn own_id(&self) -> Option<PeerId> {
        Some(self.own.get()?.id)
    }

    /// The open link to `peer`.
    pub fn link(&self, peer: PeerId) -> Option<Arc<Link>> {
        self.own.get()?.pool.link(peer)
    }

    /// Ends the links and the threads until `deadline`; names those that are late.
    pub fn stop(&self, deadline: Instant) -> Result<(), Vec<String>> {
        self.stop.stop();
        let Some(own) = self.own.get() else {
            return Ok(());
        };
        let links = own.pool.stop(deadline);
        let mut threads = Threads::default();
        let snapshots = std::mem::take(&mut *self.snapshots.lock());
        let admin = self.admin.lock().take();
        for thread in snapshots.into_iter().chain(admin) {
            threads.push(thread);
        }
        let snapshots = threads.join(&*own.clock, deadline);
        match (links, snapshots) {
            (Ok(()), other) | (other, Ok(())) => other,
            (Err(mut late), Err(more)) => {
                late.extend(more);
                Err(late)
            }
        }
    }

    /// Sends to one peer, in order.
    fn post(&self, to: PeerId, messages: Vec<Bytes>) {
        let Some(own) = self.own.get() else {
            return;
        };
        let sent = own.pool.link(to).is_some_and(|link| {
            split(messages).into_iter().all(|messages| {
                let address = own.address.clone();
                let request = Request::Raft(RaftRequest { address, messages });
                link.post(0, request).is_ok()
            })
        });
        if !sent {
            own.group.unreachable(to);
        }
    }
}

/// Frames of messages, in order.
fn split(messages: Vec<Bytes>) -> Vec<Vec<Bytes>> {
    let mut frames: Vec<Vec<Bytes>> = Vec::new();
    let mut bytes = 0;
    for message in messages {
        let is_full = |frame: &Vec<Bytes>| {
            frame.len() >= FRAME_MESSAGES_MAX || bytes + message.len() > FRAME_BYTES_MAX
        };
        match frames.last_mut().filter(|frame| !is_full(frame)) {
            Some(frame) => {
                bytes += message.len();
                frame.push(message);
            }
            None => {
                bytes = message.len();
                frames.push(vec![message]);
            }
        }
    }
    frames
}

/// What the Raft thread sends with.
pub struct PeerTransport {
    peers: Arc<Peers>,
}

impl PeerTransport {
    /// To these.
    pub fn new(peers: Arc<Peers>) -> PeerTransport {
        PeerTransport { peers }
    }
}

impl Transport for PeerTransport {
    fn send(&mut self, messages: Vec<crate::group::Outgoing>) {
        let mut by_peer: BTreeMap<PeerId, Vec<Bytes>> = BTreeMap::new();
        for message in messages {
            let queue = by_peer.entry(message.to).or_default();
            queue.push(message.bytes.into());
        }
        for (peer, messages) in by_peer {
            self.peers.post(peer, messages);
        }
    }

    fn send_snapshot(&mut self, snapshot: OutgoingSnapshot) {
        let peers = Arc::clone(&self.peers);
        let to = snapshot.to;
        let body = move || {
            let arrived = peers.send_snapshot(snapshot);
            if let Some(own) = peers.own.get() {
                own.group.snapshot_sent(to, arrived);
            }
        };
        match threads::spawn("snap", body) {
            Ok(thread) => self.peers.keep(thread),
            Err(error) => {
                warn!("no thread to send a snapshot: {error}");
                if let Some(own) = self.peers.own.get() {
                    own.group.snapshot_sent(to, false);
                }
            }
        }
    }
}

impl Peers {
    /// Keeps a thread that sends a snapshot, to be joined. There is one for each peer that is
    /// behind; those that have ended go.
    fn keep(&self, thread: Thread) {
        let mut snapshots = self.snapshots.lock();
        let ended = snapshots.extract_if(.., |thread| thread.is_finished());
        ended.for_each(Thread::join);
        snapshots.push(thread);
    }

    /// The body of a thread that sends a snapshot; whether it has arrived.
    fn send_snapshot(&self, snapshot: OutgoingSnapshot) -> bool {
        let Some(own) = self.own.get() else {
            return false;
        };
        let to = snapshot.to;
        info!("a snapshot goes to peer {to}");
        match self.send_chunks(own, snapshot) {
            Ok(()) => {
                info!("peer {to} has the snapshot");
                true
            }
            Err(error) => {
                if let Some(more) = logging::seldom("snapshot for a peer") {
                    warn!("the snapshot for peer {to} did not arrive: {error}{more}");
                }
                false
            }
        }
    }

    fn send_chunks(&self, own: &Own, mut snapshot: OutgoingSnapshot) -> anyhow::Result<()> {
        let link = own.pool.link(snapshot.to);
        let link = link.ok_or_else(|| anyhow::anyhow!("there is no link"))?;
        let transfer = fastrand::u64(..);
        while let Some(chunk) = snapshot.next_chunk(transfer)? {
            let began = own.clock.now();
            let length = chunk.bytes.len() as u64;
            let request = Request::Snapshot(SnapshotChunk {
                transfer: chunk.transfer,
                offset: chunk.offset,
                bytes: chunk.bytes,
                end: chunk.end,
            });
            match link.call_wait(0, request, began + CHUNK_TIMEOUT)? {
                Response::Snapshot => {}
                other => anyhow::bail!("{other:?}"),
            }
            let took = own.clock.now().since(began);
            let due = Duration::from_micros(length * 1_000_000 / SNAPSHOT_BYTES_PER_SECOND);
            if self.stop.wait_timeout(due.saturating_sub(took)) {
                anyhow::bail!("told to stop");
            }
        }
        Ok(())
    }
}

/// Told by the pool when the link to a peer opens or breaks.
pub struct PeerEvents {
    group: GroupHandle<Applied>,
}

impl PeerEvents {
    /// For the pool.
    pub fn new(group: GroupHandle<Applied>) -> PeerEvents {
        PeerEvents { group }
    }
}

impl PoolEvents<PeerId> for PeerEvents {
    fn up(&self, _peer: PeerId, _link: &Arc<Link>) {}

    fn down(&self, peer: PeerId) {
        self.group.unreachable(peer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_split_by_count_and_bytes_in_their_order() {
        let message = |n: usize| Bytes::from(vec![n as u8; 3 << 20]);
        let frames = split((0..5).map(message).collect());
        let first: Vec<Vec<u8>> = frames
            .iter()
            .map(|frame| frame.iter().map(|message| message[0]).collect())
            .collect();
        assert_eq!(first, [vec![0, 1], vec![2, 3], vec![4]]);
        let many = split(vec![Bytes::from_static(b"x"); FRAME_MESSAGES_MAX + 1]);
        assert_eq!(
            many.iter().map(Vec::len).collect::<Vec<_>>(),
            [FRAME_MESSAGES_MAX, 1]
        );
    }
}
