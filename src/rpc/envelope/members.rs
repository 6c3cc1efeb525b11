//! Registration and heartbeats of members: protobuf from and to our types, with all checks. Pure.

use super::{Checked, NAME_BYTES_MAX, ZONE_BYTES_MAX, from_fence, to_fence, to_label, wire};
use crate::ids::{Fence, LogPosition, Revision};
use crate::rpc::message::{HeartbeatAnswer, HeartbeatRequest, RegisterRequest, Seen};

pub(super) fn from_register(request: RegisterRequest) -> wire::RegisterRequest {
    wire::RegisterRequest {
        address: request.address,
        zone: request.zone,
        seen: Some(from_seen(request.seen)),
        replace: request.replace,
        incomplete: request.incomplete,
        records: request.records,
    }
}

pub(super) fn from_heartbeat(request: HeartbeatRequest) -> wire::HeartbeatRequest {
    wire::HeartbeatRequest {
        records: request.records,
        bytes: request.bytes,
        free: request.free,
        seen: Some(from_seen(request.seen)),
    }
}

pub(super) fn to_heartbeat(request: wire::HeartbeatRequest) -> Checked<HeartbeatRequest> {
    Ok(HeartbeatRequest {
        records: request.records,
        bytes: request.bytes,
        free: request.free,
        seen: to_seen(request.seen)?,
    })
}

pub(super) fn to_register(request: wire::RegisterRequest) -> Checked<RegisterRequest> {
    let address = to_label(
        request.address,
        1,
        NAME_BYTES_MAX,
        "register_request.address",
    )?;
    let zone = to_label(request.zone, 0, ZONE_BYTES_MAX, "register_request.zone")?;
    let seen = to_seen(request.seen)?;
    let wire::RegisterRequest {
        replace,
        incomplete,
        records,
        ..
    } = request;
    Ok(RegisterRequest {
        address,
        zone,
        seen,
        replace,
        incomplete,
        records,
    })
}

fn from_seen(seen: Seen) -> wire::Seen {
    wire::Seen {
        fence: Some(from_fence(seen.fence)),
        revision: seen.revision.map_or(0, Revision::as_u64),
        committed: Some(from_position(seen.committed)),
    }
}

/// Missing parts are nothing seen.
fn to_seen(seen: Option<wire::Seen>) -> Checked<Seen> {
    let seen = seen.unwrap_or_default();
    Ok(Seen {
        fence: seen.fence.map_or(Ok(Fence::default()), |fence| {
            to_fence(Some(fence), "seen.fence")
        })?,
        revision: (seen.revision != 0).then_some(Revision::from_u64(seen.revision)),
        committed: to_position(seen.committed),
    })
}

pub(super) fn from_heartbeat_answer(answer: HeartbeatAnswer) -> wire::HeartbeatResponse {
    wire::HeartbeatResponse {
        committed: Some(from_position(answer.committed)),
        has_all: answer.has_all,
    }
}

pub(super) fn to_heartbeat_answer(response: wire::HeartbeatResponse) -> HeartbeatAnswer {
    HeartbeatAnswer {
        committed: to_position(response.committed),
        has_all: response.has_all,
    }
}

pub(super) fn from_position(position: LogPosition) -> wire::LogPosition {
    let LogPosition { term, index } = position;
    wire::LogPosition { term, index }
}

pub(super) fn to_position(position: Option<wire::LogPosition>) -> LogPosition {
    let wire::LogPosition { term, index } = position.unwrap_or_default();
    LogPosition { term, index }
}
