//! What leaders say to each other in an envelope: Raft messages, snapshots, joining. Pure.
//!
//! Raft messages are bytes here: `group` alone decodes them. As in the parent, `to_` checks what a
//! peer sent, and `from_` asserts the same of what we send ourselves.

use bytes::Bytes;

use super::{Checked, NAME_BYTES_MAX, invalid, to_label, wire};
use crate::ids::PeerId;
use crate::rpc::message::{JoinAnswer, JoinRequest, RaftRequest, SnapshotChunk, StandingAnswer};

/// Messages of one frame. Twice of it would not make frames fewer in practice: what one step of
/// Raft makes for one peer are some tens.
pub const RAFT_MESSAGES_MAX: usize = 1024;

/// Bytes of one chunk of a snapshot: large enough that its round trip does not count, small enough
/// that what waits behind it on the link does so for some milliseconds only.
pub const CHUNK_BYTES_MAX: usize = 1 << 20;

/// The Raft message of a snapshot, which holds positions and the group's peers, not the file.
pub const SNAPSHOT_END_BYTES_MAX: usize = 1 << 20;

/// Voters with which a group may begin; it has three or five of them.
pub const FOUNDERS_MAX: usize = 16;

pub(super) fn from_raft(request: RaftRequest) -> wire::RaftRequest {
    check_messages(&request.messages).expect("1 to 1,024 messages are posted at once");
    wire::RaftRequest {
        address: request.address,
        messages: request.messages,
    }
}

pub(super) fn to_raft(request: wire::RaftRequest) -> Checked<RaftRequest> {
    check_messages(&request.messages)?;
    Ok(RaftRequest {
        address: to_label(request.address, 1, NAME_BYTES_MAX, "raft_request.address")?,
        messages: request.messages,
    })
}

fn check_messages(messages: &[Bytes]) -> Checked<()> {
    match messages.len() {
        0 => invalid("raft_request.messages", "is empty"),
        1..=RAFT_MESSAGES_MAX => Ok(()),
        _ => invalid("raft_request.messages", "has too many entries"),
    }
}

pub(super) fn from_chunk(chunk: SnapshotChunk) -> wire::SnapshotRequest {
    check_chunk(&chunk).expect("a chunk within the limits is sent");
    wire::SnapshotRequest {
        transfer: chunk.transfer,
        offset: chunk.offset,
        bytes: chunk.bytes,
        end: chunk.end,
    }
}

pub(super) fn to_chunk(request: wire::SnapshotRequest) -> Checked<SnapshotChunk> {
    let chunk = SnapshotChunk {
        transfer: request.transfer,
        offset: request.offset,
        bytes: request.bytes,
        end: request.end,
    };
    check_chunk(&chunk)?;
    Ok(chunk)
}

fn check_chunk(chunk: &SnapshotChunk) -> Checked<()> {
    match chunk.bytes.len() {
        0 => return invalid("snapshot_request.bytes", "is empty"),
        1..=CHUNK_BYTES_MAX => (),
        _ => return invalid("snapshot_request.bytes", "is too long"),
    }
    // So that the receiver can add them.
    if chunk.offset.checked_add(chunk.bytes.len() as u64).is_none() {
        return invalid("snapshot_request.offset", "is too large");
    }
    match chunk.end.as_ref().map(Bytes::len) {
        Some(0) => invalid("snapshot_request.end", "is empty"),
        None | Some(1..=SNAPSHOT_END_BYTES_MAX) => Ok(()),
        Some(_) => invalid("snapshot_request.end", "is too long"),
    }
}

pub(super) fn from_join(request: JoinRequest) -> wire::JoinRequest {
    check_founders(&request.founders).expect("1 to 16 founders, none 0 and each once");
    wire::JoinRequest {
        founders: request.founders.into_iter().map(|peer| peer.0).collect(),
    }
}

pub(super) fn to_join(request: wire::JoinRequest) -> Checked<JoinRequest> {
    let founders: Vec<PeerId> = request.founders.into_iter().map(PeerId).collect();
    check_founders(&founders)?;
    Ok(JoinRequest { founders })
}

fn check_founders(founders: &[PeerId]) -> Checked<()> {
    const FIELD: &str = "join_request.founders";
    match founders.len() {
        0 => return invalid(FIELD, "is empty"),
        1..=FOUNDERS_MAX => (),
        _ => return invalid(FIELD, "has too many entries"),
    }
    if founders.contains(&PeerId(0)) {
        return invalid(FIELD, "has a 0");
    }
    let mut rest = founders;
    while let [first, others @ ..] = rest {
        if others.contains(first) {
            return invalid(FIELD, "has an entry twice");
        }
        rest = others;
    }
    Ok(())
}

pub(super) fn from_join_answer(answer: JoinAnswer) -> wire::JoinResponse {
    wire::JoinResponse {
        rpc: answer.rpc,
        client: answer.client,
        http: answer.http,
        has_log: answer.has_log,
    }
}

pub(super) fn to_join_answer(response: wire::JoinResponse) -> Checked<JoinAnswer> {
    let address = |text, field| to_label(text, 1, NAME_BYTES_MAX, field);
    Ok(JoinAnswer {
        rpc: address(response.rpc, "join_response.rpc")?,
        client: address(response.client, "join_response.client")?,
        http: to_label(response.http, 0, NAME_BYTES_MAX, "join_response.http")?,
        has_log: response.has_log,
    })
}

pub(super) fn from_standing(answer: StandingAnswer) -> wire::StandingResponse {
    wire::StandingResponse {
        takes_part: answer.takes_part,
        client: answer.client,
        http: answer.http,
    }
}

pub(super) fn to_standing(response: wire::StandingResponse) -> Checked<StandingAnswer> {
    const FIELD: &str = "standing_response.client";
    Ok(StandingAnswer {
        takes_part: response.takes_part,
        client: to_label(response.client, 1, NAME_BYTES_MAX, FIELD)?,
        http: to_label(response.http, 0, NAME_BYTES_MAX, "standing_response.http")?,
    })
}
