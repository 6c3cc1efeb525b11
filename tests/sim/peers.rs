//! Between leaders: Raft messages, and snapshots chunk by chunk.
//!
//! What arrives goes through the service that takes it from the real links, so that it listens to
//! whom it listens there.

use std::net::SocketAddr;

use bytes::Bytes;
use protobuf::Message as _;
use raft::eraftpb::{Entry, Message, MessageType};
use tolerex::group::{IncomingChunk, Outgoing, OutgoingSnapshot};
use tolerex::ids::{CallId, PeerId};
use tolerex::rpc::PeerInfo;
use tolerex::rpc::message::{Purpose, RaftRequest, Request, Response, Role, SnapshotChunk};
use tolerex::rpc::server::{CallInfo, Responder, Service};

use crate::events::{Event, Out};
use crate::net::MS;
use crate::world::{Transfer, World};

/// A call whose number and size nobody looks at.
const CALL: CallInfo = CallInfo {
    id: CallId(0),
    term: 0,
    bytes: 0,
};

/// The leader at the other end of a link.
fn info(number: usize, id: PeerId) -> PeerInfo {
    PeerInfo {
        connection: 0,
        address: SocketAddr::from(([127, 0, 0, 1], 1)),
        name: format!("leader-{number}"),
        node_id: id.0,
        incarnation: 1,
        nonce: 1,
        link: 0,
        role: Role::Leader,
        purpose: Purpose::All,
        separates_fetches: false,
    }
}

/// What a broken or hostile peer makes of a message.
fn absurd(bytes: &[u8], lot: &mut fastrand::Rng) -> Vec<u8> {
    let Ok(mut message) = Message::parse_from_bytes(bytes) else {
        return bytes.to_vec();
    };
    let high = 1 << lot.u32(40..56);
    match lot.u32(..12) {
        0 => {
            message.set_msg_type(MessageType::MsgHeartbeat);
            message.commit = high;
        }
        1 => message.from = lot.u64(1..),
        2 => message.term += high,
        3 => message.term = 0,
        4 => {
            message.set_msg_type(MessageType::MsgAppend);
            (message.index, message.log_term, message.commit) = (high, 0, high);
        }
        5 => {
            message.set_msg_type(MessageType::MsgAppend);
            let term = message.term;
            message.mut_entries().push(Entry {
                index: high,
                term,
                ..Entry::default()
            });
        }
        6 => {
            message.set_msg_type(MessageType::MsgReadIndexResp);
            message.mut_entries().push(Entry::default());
        }
        7 => {
            message.set_msg_type(MessageType::MsgAppendResponse);
            (message.index, message.reject) = (high, lot.bool());
        }
        8 => message.request_snapshot = high,
        9 => {
            message.set_msg_type(MessageType::MsgRequestPreVote);
            message.priority = -1;
        }
        10 => {
            message.set_msg_type(MessageType::MsgSnapshot);
            let metadata = message.mut_snapshot().mut_metadata();
            (metadata.index, metadata.term) = (high, 1);
        }
        _ => return [0x0b].repeat(100_000),
    }
    message.write_to_bytes().unwrap_or_default()
}

impl World {
    pub(crate) fn send_messages(&mut self, from: usize, messages: Vec<Outgoing>) {
        let sender = self.leaders[from].id;
        self.check_promises(from, &messages);
        for message in messages {
            let Some(to) = self.leaders.iter().position(|one| one.id == message.to) else {
                continue;
            };
            let size = message.bytes.len();
            if self.rng.u32(..1000) < self.plan.loss && self.has_faults() {
                self.saw("message lost");
                self.note(format_args!("L{from} lost L{to} {size}"));
                continue;
            }
            let mut at = self.net.arrival(from, to, self.now, !self.plan.reorders);
            if self.plan.reorders && self.has_faults() && self.rng.u32(..32) == 0 {
                // It was in a link that broke.
                self.saw("message overtaken");
                at += self.rng.u64(..500 * MS);
            }
            let arrives = |bytes| Event::Raft {
                from,
                sender,
                to,
                bytes,
            };
            if self.rng.u32(..1000) < self.plan.duplicates && self.has_faults() {
                self.saw("message twice");
                let again = at + self.rng.u64(..200 * MS);
                self.schedule(again, arrives(message.bytes.clone()));
            }
            if self.plan.hostile == Some(from) && self.has_faults() {
                // Drawn apart, so that the rest of the run does not depend on it.
                let mut lot = fastrand::Rng::with_seed(at ^ self.plan.seed << 32);
                if lot.u32(..4) == 0 {
                    self.saw("hostile message");
                    self.schedule(at, arrives(absurd(&message.bytes, &mut lot)));
                }
            }
            self.schedule(at, arrives(message.bytes));
        }
    }

    pub(crate) fn send_snapshots(&mut self, from: usize, snapshots: Vec<OutgoingSnapshot>) {
        for snapshot in snapshots {
            let Some(to) = self.leaders.iter().position(|one| one.id == snapshot.to) else {
                // It was removed, and is another one now.
                if let Some(running) = &self.leaders[from].running {
                    running.parts.handle.snapshot_sent(snapshot.to, false);
                }
                continue;
            };
            let number = self.number();
            self.transfers
                .insert((from, to), Transfer { snapshot, number });
            self.next_chunk(from, to);
        }
    }

    pub(crate) fn raft(&mut self, from: usize, sender: PeerId, to: usize, bytes: Vec<u8>) {
        let epoch = self.leaders[to].epoch;
        let is_blocked = self.net.blocked_until(from, to) > self.now;
        let size = bytes.len();
        let Some(running) = self.leader(to, epoch).filter(|_| !is_blocked) else {
            self.note(format_args!("L{to} misses L{from} {size}"));
            let peer = self.leaders[to].id;
            if self.rng.u32(..8) == 0
                && let Some(sender) = &self.leaders[from].running
            {
                sender.parts.handle.unreachable(peer);
            }
            return;
        };
        let request = Request::Raft(RaftRequest {
            address: format!("leader-{from}:2"),
            messages: vec![Bytes::from(bytes)],
        });
        let unanswered = Responder::calling(CallId(0), |_| ());
        running
            .service
            .handle(&info(from, sender), CALL, request, unanswered);
        self.note(format_args!("L{to} hears L{from} {size}"));
        self.advance(to);
    }

    fn next_chunk(&mut self, from: usize, to: usize) {
        let Some(transfer) = self.transfers.get_mut(&(from, to)) else {
            return;
        };
        let number = transfer.number;
        match transfer.snapshot.next_chunk(number) {
            Ok(Some(chunk)) => {
                let at = self.net.arrival(from, to, self.now, true);
                self.schedule(at, Event::Chunk { from, to, chunk });
            }
            Ok(None) => self.end_transfer(from, to, true),
            Err(_) => self.end_transfer(from, to, false),
        }
    }

    fn end_transfer(&mut self, from: usize, to: usize, arrived: bool) {
        self.transfers.remove(&(from, to));
        let peer = self.leaders[to].id;
        if let Some(running) = &self.leaders[from].running {
            running.parts.handle.snapshot_sent(peer, arrived);
        }
        self.advance(from);
    }

    pub(crate) fn chunk(&mut self, from: usize, to: usize, chunk: IncomingChunk) {
        let (transfer, outbox) = (chunk.transfer, self.outbox.clone());
        let epoch = self.leaders[to].epoch;
        let is_blocked = self.net.blocked_until(from, to) > self.now;
        self.note(format_args!("L{to} chunk of L{from} {}", chunk.bytes.len()));
        let taken = move |is_taken| Out::ChunkTaken {
            from,
            to,
            transfer,
            is_taken,
        };
        match self.leader(to, epoch).filter(|_| !is_blocked) {
            Some(running) => {
                let responder = Responder::calling(CallId(0), move |response| {
                    let is_taken = matches!(response, Response::Snapshot);
                    outbox.lock().push(taken(is_taken));
                });
                let request = Request::Snapshot(SnapshotChunk {
                    transfer,
                    offset: chunk.offset,
                    bytes: chunk.bytes,
                    end: chunk.end,
                });
                let info = info(from, chunk.from);
                running.service.handle(&info, CALL, request, responder);
            }
            None => outbox.lock().push(taken(false)),
        }
        self.look_after(to, epoch);
    }

    pub(crate) fn chunk_done(&mut self, from: usize, to: usize, transfer: u64, is_taken: bool) {
        let current = self.transfers.get(&(from, to)).map(|one| one.number);
        self.note(format_args!("L{from} chunk at L{to} {is_taken}"));
        if current == Some(transfer) {
            match is_taken {
                true => self.next_chunk(from, to),
                false => self.end_transfer(from, to, false),
            }
        }
    }
}
