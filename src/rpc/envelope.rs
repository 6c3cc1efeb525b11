//! Protobuf <-> message types: one [`Envelope`] is the body of one frame. Pure.
//!
//! Every check of remote input is here: a decoded value holds only valid keys, known enum values,
//! and counts and sizes within the limits below, and a request has a call id unless it is one-way;
//! errors name the field. Whether an answer fits its call, and whether a peer may call at all, is
//! known to `link` and `server`. What leaders say to each other is in `envelope/peers.rs`.
//!
//! Payloads are slices of the frame, not copies: who keeps a small one for long copies it, or the
//! whole frame stays in memory.
//!
//! Limits: protobuf is decoded before counts are checked, so a peer of our own cluster that sends
//! 32 MiB of empty records makes this allocate some forty times as much for a moment.

use bytes::Bytes;
use prost::Message as _;

use crate::ids::{CallId, Fence, Key, Revision};
use crate::rpc::frame::{FRAME_BYTES_MAX, Frame, FrameTooLarge};
use crate::rpc::message::{
    FetchRequest, FetchResult, HOLDS_REVISIONS_MAX, Hello, HoldsRequest, ReleaseRequest, Request,
    Response, StoreResult,
};

mod forward;
mod hello;
mod members;
mod peers;
mod stores;

/// The generated types, named nowhere else.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
mod wire {
    include!(concat!(env!("OUT_DIR"), "/tolerex.v1.rs"));
}

pub use forward::forwarded_bytes;
pub use peers::{CHUNK_BYTES_MAX, FOUNDERS_MAX, RAFT_MESSAGES_MAX, SNAPSHOT_END_BYTES_MAX};
use wire::envelope::Body as WireBody;

/// Records of one store, revisions of one fetch: those of the largest batch.
pub const RECORDS_MAX: usize = 4096;

/// Revisions of one release: 512 KiB of them.
pub const RELEASES_MAX: usize = 65_536;

/// The largest payload: a frame less 1 MiB for all else.
pub const PAYLOAD_BYTES_MAX: usize = FRAME_BYTES_MAX - (1 << 20);

/// Longest node name and address, as in DNS.
const NAME_BYTES_MAX: usize = 255;

/// Longest zone label.
const ZONE_BYTES_MAX: usize = 64;

/// Longest reason in words; our own are cut there.
const REASON_BYTES_MAX: usize = 1024;

/// The body of one frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// Pairs answer and call; 0 for Hellos and for what is one-way.
    pub call: CallId,
    /// The sender's Raft term, 0 when it has none.
    pub term: u64,
    /// What is said.
    pub body: Body,
}

/// What a frame says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// The first frame each way.
    Hello(Hello),
    /// A call, or what is said one way.
    Request(Request),
    /// An answer, or the refusal of a Hello.
    Response(Response),
}

/// Remote input that is not a valid envelope.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum EnvelopeError {
    /// Not protobuf of our contract.
    #[error("undecodable frame: {0}")]
    Undecodable(#[from] prost::DecodeError),
    /// Protobuf with a value that the contract does not allow.
    #[error("field {field} {problem}")]
    Invalid {
        /// Its path in `tolerex.proto`.
        field: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
}

type Checked<T> = Result<T, EnvelopeError>;

fn invalid<T>(field: &'static str, problem: &'static str) -> Checked<T> {
    Err(EnvelopeError::Invalid { field, problem })
}

/// Encodes a whole frame, prefix included. Counts above the limits are the caller's mistake.
pub fn encode(envelope: Envelope) -> Result<Frame, FrameTooLarge> {
    if let Err(error) = check_call(envelope.call, &envelope.body) {
        panic!("{error}");
    }
    if let Body::Request(Request::Store(request)) = &envelope.body {
        return stores::encode(envelope.call, envelope.term, request);
    }
    let wire = wire::Envelope {
        call_id: envelope.call.0,
        term: envelope.term,
        body: Some(match envelope.body {
            Body::Hello(hello) => WireBody::Hello(hello::from_hello(hello)),
            Body::Request(request) => from_request(request),
            Body::Response(response) => from_response(response),
        }),
    };
    let mut frame = Frame::begin(wire.encoded_len())?;
    wire.encode(frame.own())
        .expect("a frame grows as it is written");
    Ok(frame)
}

/// Decodes and checks the body of a frame.
pub fn decode(body: Bytes) -> Checked<Envelope> {
    let wire = wire::Envelope::decode(body)?;
    let body = match wire.body {
        None => return invalid("body", "is missing or unknown"),
        Some(WireBody::Hello(hello)) => Body::Hello(hello::to_hello(hello)?),
        Some(WireBody::Refused(refused)) => {
            Body::Response(Response::Refused(hello::to_refusal(refused)?))
        }
        Some(WireBody::StoreRequest(request)) => {
            Body::Request(Request::Store(stores::to_request(request)?))
        }
        Some(WireBody::FetchRequest(request)) => Body::Request(Request::Fetch(FetchRequest {
            fence: to_fence(request.fence, "fetch_request.fence")?,
            revisions: to_revisions(request.revisions, RECORDS_MAX, "fetch_request.revisions")?,
        })),
        Some(WireBody::ReleaseRequest(request)) => {
            Body::Request(Request::Release(ReleaseRequest {
                fence: to_fence(request.fence, "release_request.fence")?,
                revisions: to_revisions(
                    request.revisions,
                    RELEASES_MAX,
                    "release_request.revisions",
                )?,
            }))
        }
        Some(WireBody::HoldsRequest(request)) => Body::Request(Request::Holds(HoldsRequest {
            fence: to_fence(request.fence, "holds_request.fence")?,
            revisions: to_revisions(
                request.revisions,
                HOLDS_REVISIONS_MAX,
                "holds_request.revisions",
            )?,
        })),
        Some(WireBody::RegisterRequest(request)) => {
            Body::Request(Request::Register(members::to_register(request)?))
        }
        Some(WireBody::HeartbeatRequest(request)) => {
            Body::Request(Request::Heartbeat(members::to_heartbeat(request)?))
        }
        Some(WireBody::StoreResponse(response)) => {
            Body::Response(Response::Store(to_store_results(response)?))
        }
        Some(WireBody::FetchResponse(response)) => {
            Body::Response(Response::Fetch(to_fetch_results(response)?))
        }
        Some(WireBody::ReleaseResponse(_)) => Body::Response(Response::Release),
        Some(WireBody::HoldsResponse(response)) if response.held.len() > HOLDS_REVISIONS_MAX => {
            return invalid("holds_response.held", "has too many entries");
        }
        Some(WireBody::HoldsResponse(response)) => Body::Response(Response::Holds(response.held)),
        Some(WireBody::RegisterResponse(_)) => Body::Response(Response::Register),
        Some(WireBody::HeartbeatResponse(response)) => {
            Body::Response(Response::Heartbeat(members::to_heartbeat_answer(response)))
        }
        Some(WireBody::RaftRequest(request)) => {
            Body::Request(Request::Raft(peers::to_raft(request)?))
        }
        Some(WireBody::SnapshotRequest(request)) => {
            Body::Request(Request::Snapshot(peers::to_chunk(request)?))
        }
        Some(WireBody::SnapshotResponse(_)) => Body::Response(Response::Snapshot),
        Some(WireBody::JoinRequest(request)) => {
            Body::Request(Request::Join(peers::to_join(request)?))
        }
        Some(WireBody::JoinResponse(response)) => {
            Body::Response(Response::Join(peers::to_join_answer(response)?))
        }
        Some(WireBody::ForwardRequest(request)) => {
            Body::Request(Request::Forward(forward::to_batch(request)?))
        }
        Some(WireBody::ForwardResponse(response)) => {
            Body::Response(Response::Forward(forward::to_replies(response)?))
        }
        Some(WireBody::StandingRequest(_)) => Body::Request(Request::Standing),
        Some(WireBody::StandingResponse(response)) => {
            Body::Response(Response::Standing(peers::to_standing(response)?))
        }
    };
    let call = CallId(wire.call_id);
    check_call(call, &body)?;
    let term = wire.term;
    Ok(Envelope { call, term, body })
}

/// A call id is what makes a request a call: one without it would wait for its answer for ever.
fn check_call(call: CallId, body: &Body) -> Checked<()> {
    match body {
        Body::Request(request) if request.kind().is_one_way() && call != CallId(0) => {
            invalid("call_id", "is not 0 in a one-way request")
        }
        Body::Request(request) if !request.kind().is_one_way() && call == CallId(0) => {
            invalid("call_id", "is 0 in a call")
        }
        Body::Hello(_) | Body::Request(_) | Body::Response(_) => Ok(()),
    }
}

fn from_request(request: Request) -> WireBody {
    match request {
        Request::Store(_) => unreachable!("stores are encoded without a wire message"),
        Request::Fetch(request) => {
            assert!(request.revisions.len() <= RECORDS_MAX, "fetch too many");
            WireBody::FetchRequest(wire::FetchRequest {
                fence: Some(from_fence(request.fence)),
                revisions: from_revisions(request.revisions),
            })
        }
        Request::Release(request) => {
            assert!(request.revisions.len() <= RELEASES_MAX, "release too many");
            WireBody::ReleaseRequest(wire::ReleaseRequest {
                fence: Some(from_fence(request.fence)),
                revisions: from_revisions(request.revisions),
            })
        }
        Request::Holds(request) => {
            let revisions = request.revisions;
            assert!(revisions.len() <= HOLDS_REVISIONS_MAX, "ask for too many");
            WireBody::HoldsRequest(wire::HoldsRequest {
                fence: Some(from_fence(request.fence)),
                revisions: from_revisions(revisions),
            })
        }
        Request::Register(request) => WireBody::RegisterRequest(members::from_register(request)),
        Request::Heartbeat(request) => WireBody::HeartbeatRequest(members::from_heartbeat(request)),
        Request::Raft(request) => WireBody::RaftRequest(peers::from_raft(request)),
        Request::Snapshot(chunk) => WireBody::SnapshotRequest(peers::from_chunk(chunk)),
        Request::Join(request) => WireBody::JoinRequest(peers::from_join(request)),
        Request::Forward(batch) => WireBody::ForwardRequest(forward::from_batch(batch)),
        Request::Standing => WireBody::StandingRequest(wire::StandingRequest {}),
    }
}

fn from_response(response: Response) -> WireBody {
    match response {
        Response::Store(results) => WireBody::StoreResponse(wire::StoreResponse {
            results: results.into_iter().map(from_store_result).collect(),
        }),
        Response::Fetch(results) => WireBody::FetchResponse(wire::FetchResponse {
            results: results.into_iter().map(from_fetch_result).collect(),
        }),
        Response::Release => WireBody::ReleaseResponse(wire::ReleaseResponse {}),
        Response::Holds(held) => WireBody::HoldsResponse(wire::HoldsResponse { held }),
        Response::Register => WireBody::RegisterResponse(wire::RegisterResponse {}),
        Response::Heartbeat(answer) => {
            WireBody::HeartbeatResponse(members::from_heartbeat_answer(answer))
        }
        Response::Snapshot => WireBody::SnapshotResponse(wire::SnapshotResponse {}),
        Response::Join(answer) => WireBody::JoinResponse(peers::from_join_answer(answer)),
        Response::Forward(replies) => WireBody::ForwardResponse(forward::from_replies(replies)),
        Response::Standing(answer) => WireBody::StandingResponse(peers::from_standing(answer)),
        Response::Refused(refusal) => WireBody::Refused(hello::from_refusal(refusal)),
    }
}

/// Text that goes to logs and tables: bounded, and nothing that moves a terminal's cursor.
fn to_label(text: String, min: usize, max: usize, field: &'static str) -> Checked<String> {
    if text.len() < min {
        return invalid(field, "is empty");
    }
    if text.len() > max {
        return invalid(field, "is too long");
    }
    if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return invalid(field, "has white space or control characters");
    }
    Ok(text)
}

fn from_fence(fence: Fence) -> wire::Fence {
    wire::Fence {
        term: fence.term,
        link: fence.link,
    }
}

fn to_fence(fence: Option<wire::Fence>, field: &'static str) -> Checked<Fence> {
    match fence {
        Some(wire::Fence { term, link }) => Ok(Fence { term, link }),
        None => invalid(field, "is missing"),
    }
}

fn from_revisions(revisions: Vec<Revision>) -> Vec<u64> {
    revisions.into_iter().map(Revision::as_u64).collect()
}

fn to_revisions(values: Vec<u64>, max: usize, field: &'static str) -> Checked<Vec<Revision>> {
    if values.len() > max {
        return invalid(field, "has too many entries");
    }
    Ok(values.into_iter().map(Revision::from_u64).collect())
}

fn from_key(key: Key) -> wire::Key {
    let name = match key {
        Key::Id(id) => wire::key::Name::Id(id),
        Key::Word(word) => wire::key::Name::Word(Bytes::from(word.into_boxed_bytes())),
    };
    wire::Key { name: Some(name) }
}

fn to_key(key: Option<wire::Key>, field: &'static str) -> Checked<Key> {
    match key.and_then(|key| key.name) {
        None => invalid(field, "is missing"),
        Some(wire::key::Name::Id(id)) => Ok(Key::Id(id)),
        Some(wire::key::Name::Word(word)) => match Key::parse(&word) {
            Ok(key @ Key::Word(_)) => Ok(key),
            Ok(Key::Id(_)) => invalid(field, "is a message id sent as a word"),
            Err(_) => invalid(field, "is not 1 to 512 bytes without white space"),
        },
    }
}

fn to_payload(payload: Bytes, field: &'static str) -> Checked<Bytes> {
    if payload.len() > PAYLOAD_BYTES_MAX {
        return invalid(field, "is too long");
    }
    Ok(payload)
}

fn from_store_result(result: StoreResult) -> i32 {
    let result = match result {
        StoreResult::Stored => wire::store_response::Result::Stored,
        StoreResult::DiskFull => wire::store_response::Result::DiskFull,
        StoreResult::Refused => wire::store_response::Result::Refused,
        StoreResult::Conflict => wire::store_response::Result::Conflict,
    };
    result as i32
}

fn to_store_results(response: wire::StoreResponse) -> Checked<Vec<StoreResult>> {
    use wire::store_response::Result as Wire;
    if response.results.len() > RECORDS_MAX {
        return invalid("store_response.results", "has too many entries");
    }
    let to_result = |result: i32| match Wire::try_from(result) {
        Ok(Wire::Stored) => Ok(StoreResult::Stored),
        Ok(Wire::DiskFull) => Ok(StoreResult::DiskFull),
        Ok(Wire::Refused) => Ok(StoreResult::Refused),
        Ok(Wire::Conflict) => Ok(StoreResult::Conflict),
        Ok(Wire::Unspecified) | Err(_) => invalid("store_response.results", "is unknown"),
    };
    response.results.into_iter().map(to_result).collect()
}

fn from_fetch_result(result: FetchResult) -> wire::fetch_response::Result {
    use wire::fetch_response::Status;
    let bare = |status: Status| wire::fetch_response::Result {
        status: status as i32,
        key: None,
        payload: Bytes::new(),
    };
    match result {
        FetchResult::Found { key, payload } => wire::fetch_response::Result {
            status: Status::Found as i32,
            key: Some(from_key(key)),
            payload,
        },
        FetchResult::Missing => bare(Status::Missing),
        FetchResult::Damaged => bare(Status::Damaged),
        FetchResult::Omitted => bare(Status::Omitted),
    }
}

fn to_fetch_results(response: wire::FetchResponse) -> Checked<Vec<FetchResult>> {
    use wire::fetch_response::Status;
    if response.results.len() > RECORDS_MAX {
        return invalid("fetch_response.results", "has too many entries");
    }
    let to_result = |result: wire::fetch_response::Result| match Status::try_from(result.status) {
        Ok(Status::Found) => Ok(FetchResult::Found {
            key: to_key(result.key, "fetch_response.results.key")?,
            payload: to_payload(result.payload, "fetch_response.results.payload")?,
        }),
        Ok(Status::Missing) => Ok(FetchResult::Missing),
        Ok(Status::Damaged) => Ok(FetchResult::Damaged),
        Ok(Status::Omitted) => Ok(FetchResult::Omitted),
        Ok(Status::Unspecified) | Err(_) => invalid("fetch_response.results.status", "is unknown"),
    };
    response.results.into_iter().map(to_result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Failure;
    use crate::ids::{ClusterId, LogPosition, MemberId, PeerId, Token};
    use crate::protocol::reply::{KeyPage, ListedKey, MemberState, ReplicaStatus, Reply};
    use crate::protocol::request::{
        BULK_COUNT_MAX, Batch, Condition, ListRequest, PAGE_KEYS_MAX, SetOptions, Step, TTL_MS_MAX,
        Transaction, Write,
    };
    use crate::rpc::frame::PREFIX_BYTES;
    use crate::rpc::message::{
        HeartbeatAnswer, HeartbeatRequest, JoinAnswer, JoinRequest, Purpose, RaftRequest, Refusal,
        RegisterRequest, Role, Seen, SnapshotChunk, StandingAnswer,
    };

    fn body_of(body: WireBody) -> Bytes {
        let envelope = wire::Envelope {
            call_id: 1,
            term: 0,
            body: Some(body),
        };
        Bytes::from(envelope.encode_to_vec())
    }

    fn word(text: &str) -> Option<wire::Key> {
        let name = wire::key::Name::Word(Bytes::copy_from_slice(text.as_bytes()));
        Some(wire::Key { name: Some(name) })
    }

    fn store_of(key: Option<wire::Key>, payload: usize, records: usize) -> WireBody {
        let record = wire::store_request::Record {
            revision: 1,
            key,
            payload: Bytes::from(vec![0; payload]),
        };
        WireBody::StoreRequest(wire::StoreRequest {
            fence: Some(wire::Fence { term: 1, link: 1 }),
            records: vec![record; records],
        })
    }

    fn hello() -> wire::Hello {
        wire::Hello {
            protocol: 1,
            cluster_id: 2,
            name: "member-1".to_owned(),
            node_id: 3,
            incarnation: 4,
            nonce: 5,
            link: 6,
            role: wire::Role::Member as i32,
            purpose: wire::Purpose::All as i32,
            separates_fetches: true,
        }
    }

    #[test]
    fn a_value_that_is_not_allowed_is_named() {
        let words = "w".repeat(REASON_BYTES_MAX + 1);
        let refused = |reason| WireBody::Refused(wire::Refused { reason });
        let cases = [
            (store_of(None, 0, 1), "store_request.records.key is missing"),
            (
                store_of(word("12"), 0, 1),
                "store_request.records.key is a message id",
            ),
            (
                store_of(word("a b"), 0, 1),
                "store_request.records.key is not 1 to 512",
            ),
            (
                store_of(word(""), 0, 1),
                "store_request.records.key is not 1 to 512",
            ),
            (
                store_of(word("k"), PAYLOAD_BYTES_MAX + 1, 1),
                "store_request.records.payload is too long",
            ),
            (
                store_of(word("k"), 0, RECORDS_MAX + 1),
                "store_request.records has too many entries",
            ),
            (
                WireBody::FetchRequest(wire::FetchRequest {
                    fence: None,
                    revisions: vec![1],
                }),
                "fetch_request.fence is missing",
            ),
            (
                WireBody::ReleaseRequest(wire::ReleaseRequest {
                    fence: Some(wire::Fence { term: 1, link: 1 }),
                    revisions: vec![1; RELEASES_MAX + 1],
                }),
                "release_request.revisions has too many entries",
            ),
            (
                WireBody::HoldsRequest(wire::HoldsRequest {
                    fence: Some(wire::Fence { term: 1, link: 1 }),
                    revisions: vec![1; HOLDS_REVISIONS_MAX + 1],
                }),
                "holds_request.revisions has too many entries",
            ),
            (
                WireBody::HoldsResponse(wire::HoldsResponse {
                    held: vec![true; HOLDS_REVISIONS_MAX + 1],
                }),
                "holds_response.held has too many entries",
            ),
            (
                WireBody::StoreResponse(wire::StoreResponse { results: vec![9] }),
                "store_response.results is unknown",
            ),
            (
                WireBody::RegisterRequest(wire::RegisterRequest {
                    address: "host: 1".to_owned(),
                    zone: String::new(),
                    ..Default::default()
                }),
                "register_request.address has white space",
            ),
            (
                WireBody::Hello(wire::Hello { role: 0, ..hello() }),
                "hello.role is unknown",
            ),
            (
                WireBody::Hello(wire::Hello {
                    purpose: wire::Purpose::Fetches as i32,
                    ..hello()
                }),
                "hello.purpose is for a leader to have",
            ),
            (
                WireBody::Hello(wire::Hello {
                    purpose: 2,
                    ..hello()
                }),
                "hello.purpose is unknown",
            ),
            (
                WireBody::Hello(wire::Hello {
                    node_id: 0,
                    ..hello()
                }),
                "hello.node_id is 0",
            ),
            (
                WireBody::Hello(wire::Hello {
                    name: "\x1b[2J".to_owned(),
                    ..hello()
                }),
                "hello.name has white space or control",
            ),
            (refused(None), "refused.reason is missing"),
            (
                refused(Some(wire::refused::Reason::Other(words))),
                "refused.other is too long",
            ),
        ];
        for (body, expected) in cases {
            let text = decode(body_of(body)).expect_err(expected).to_string();
            assert!(text.contains(expected), "{text} instead of {expected}");
        }
        let text = decode(Bytes::new()).expect_err("no body").to_string();
        assert_eq!(text, "field body is missing or unknown");
    }

    #[test]
    fn what_leaders_say_is_checked_too() {
        fn raft(address: &str, messages: usize) -> WireBody {
            WireBody::RaftRequest(wire::RaftRequest {
                address: address.to_owned(),
                messages: vec![Bytes::from("m"); messages],
            })
        }
        fn chunk(offset: u64, bytes: usize, end: Option<usize>) -> WireBody {
            WireBody::SnapshotRequest(wire::SnapshotRequest {
                transfer: 1,
                offset,
                bytes: Bytes::from(vec![0; bytes]),
                end: end.map(|bytes| Bytes::from(vec![0; bytes])),
            })
        }
        fn join(founders: Vec<u64>) -> WireBody {
            WireBody::JoinRequest(wire::JoinRequest { founders })
        }
        fn answer(rpc: &str, client: &str) -> WireBody {
            WireBody::JoinResponse(wire::JoinResponse {
                rpc: rpc.to_owned(),
                client: client.to_owned(),
                http: String::new(),
                has_log: false,
            })
        }
        let long = "h".repeat(NAME_BYTES_MAX + 1);
        let cases = [
            (raft("", 1), "raft_request.address is empty"),
            (raft(&long, 1), "raft_request.address is too long"),
            (raft("h:1", 0), "raft_request.messages is empty"),
            (
                raft("h:1", RAFT_MESSAGES_MAX + 1),
                "raft_request.messages has too many entries",
            ),
            (chunk(0, 0, None), "snapshot_request.bytes is empty"),
            (
                chunk(0, CHUNK_BYTES_MAX + 1, None),
                "snapshot_request.bytes is too long",
            ),
            (
                chunk(u64::MAX, 1, None),
                "snapshot_request.offset is too large",
            ),
            (chunk(0, 1, Some(0)), "snapshot_request.end is empty"),
            (
                chunk(0, 1, Some(SNAPSHOT_END_BYTES_MAX + 1)),
                "snapshot_request.end is too long",
            ),
            (join(vec![]), "join_request.founders is empty"),
            (
                join((1..=FOUNDERS_MAX as u64 + 1).collect()),
                "join_request.founders has too many entries",
            ),
            (join(vec![1, 0]), "join_request.founders has a 0"),
            (
                join(vec![2, 1, 2]),
                "join_request.founders has an entry twice",
            ),
            (answer("", "h:1"), "join_response.rpc is empty"),
            (answer("h:1", "a b"), "join_response.client has white space"),
        ];
        for (body, expected) in cases {
            // A wrong call id is found after a wrong value.
            let text = decode(body_of(body)).expect_err(expected).to_string();
            assert!(text.contains(expected), "{text} instead of {expected}");
        }
        for body in [
            chunk(u64::MAX - 1, 1, None),
            chunk(0, CHUNK_BYTES_MAX, Some(SNAPSHOT_END_BYTES_MAX)),
            join((1..=FOUNDERS_MAX as u64).collect()),
        ] {
            decode(body_of(body)).expect("at the limit");
        }
    }

    #[test]
    fn what_is_passed_on_is_checked_like_a_clients() {
        use wire::forward_request as request;
        use wire::forward_response as response;
        let asks = |batch| WireBody::ForwardRequest(wire::ForwardRequest { batch });
        let writes = |write: request::Write, count| {
            asks(Some(request::Batch::Writes(request::Writes {
                writes: vec![write; count],
            })))
        };
        let write = |key: &str, token: &str| request::Write {
            key: word(key),
            token: token.to_owned(),
            ..request::Write::default()
        };
        let bulk = |count, bytes| {
            asks(Some(request::Batch::Bulk(request::Bulk {
                count,
                payload: Bytes::from(vec![0; bytes]),
                token: String::new(),
            })))
        };
        let answers = |reply| {
            let replies = vec![response::Reply { reply: Some(reply) }];
            WireBody::ForwardResponse(wire::ForwardResponse { replies })
        };
        let fails = |failure| {
            let failure = Some(failure);
            answers(response::reply::Reply::Failed(response::Failure {
                failure,
            }))
        };
        let partial = |reason: Option<response::failure::Failure>, first| {
            let reason = reason.map(|failure| {
                let failure = Some(failure);
                Box::new(response::Failure { failure })
            });
            let stored = Some(response::Range { first, last: 1 });
            response::failure::Failure::BulkPartial(Box::new(response::BulkPartial {
                reason,
                stored,
            }))
        };
        let busy = response::failure::Failure::Code(response::Code::Busy as i32);
        let cases = [
            (asks(None), "forward_request.batch is missing"),
            (writes(write("k", ""), 0), "forward_request.writes is empty"),
            (
                writes(write("k", ""), RECORDS_MAX + 1),
                "forward_request.writes has too many",
            ),
            (writes(write("a b", ""), 1), "forward_request.writes.key is"),
            (
                writes(write("k", "a b"), 1),
                "forward_request.writes.token is not 1 to 64",
            ),
            (bulk(0, 1), "forward_request.bulk.count is not"),
            (
                bulk(BULK_COUNT_MAX + 1, 1),
                "forward_request.bulk.count is not",
            ),
            (
                bulk(BULK_COUNT_MAX, 2000),
                "forward_request.bulk is more than 1 GiB",
            ),
            (
                answers(response::reply::Reply::Plain(0)),
                "forward_response.plain is unknown",
            ),
            (
                fails(response::failure::Failure::Code(0)),
                "forward_response.code is unknown",
            ),
            (
                fails(response::failure::Failure::NotLeader(
                    "h:1\r\nOK".to_owned(),
                )),
                "forward_response.not_leader has white space",
            ),
            (
                fails(partial(None, 1)),
                "forward_response.reason is missing",
            ),
            (
                fails(partial(Some(partial(Some(busy.clone()), 1)), 1)),
                "forward_response.reason is another",
            ),
            (
                fails(partial(Some(busy), 2)),
                "forward_response.range ends before it begins",
            ),
        ];
        for (body, expected) in cases {
            let text = decode(body_of(body)).expect_err(expected).to_string();
            assert!(text.contains(expected), "{text} instead of {expected}");
        }
    }

    #[test]
    fn only_one_way_requests_have_no_call_id() {
        let call = |call_id, body| {
            let term = 0;
            let body = Some(body);
            let envelope = wire::Envelope {
                call_id,
                term,
                body,
            };
            decode(Bytes::from(envelope.encode_to_vec()))
        };
        let raft = || {
            WireBody::RaftRequest(wire::RaftRequest {
                address: "h:1".to_owned(),
                messages: vec![Bytes::new(); RAFT_MESSAGES_MAX],
            })
        };
        let release = || {
            WireBody::ReleaseRequest(wire::ReleaseRequest {
                fence: Some(wire::Fence { term: 1, link: 1 }),
                revisions: vec![],
            })
        };
        assert!(call(0, raft()).is_ok() && call(1, release()).is_ok());
        let text = call(1, raft()).expect_err("called").to_string();
        assert_eq!(text, "field call_id is not 0 in a one-way request");
        let text = call(0, release()).expect_err("posted").to_string();
        assert_eq!(text, "field call_id is 0 in a call");
    }

    #[test]
    fn a_payload_is_a_slice_of_its_frame() {
        let body = body_of(store_of(word("k"), 1000, 1));
        let range = body.as_ptr_range();
        match decode(body.clone()).expect("valid").body {
            Body::Request(Request::Store(store)) => {
                let payload = &store.records[0].payload;
                assert!(payload.len() == 1000 && range.contains(&payload.as_ptr()));
            }
            body => panic!("{body:?}"),
        }
    }

    #[test]
    fn our_own_long_reasons_are_cut_at_a_character() {
        let refusal = Refusal::Other("é".repeat(REASON_BYTES_MAX));
        let frame = encode(Envelope {
            call: CallId(1),
            term: 0,
            body: Body::Response(Response::Refused(refusal)),
        });
        let body = Bytes::from(frame.expect("small").to_vec()).split_off(PREFIX_BYTES);
        let cut = Refusal::Other("é".repeat(REASON_BYTES_MAX / 2));
        assert_eq!(
            decode(body).expect("valid").body,
            Body::Response(Response::Refused(cut))
        );
    }

    mod properties {
        use std::sync::Arc;

        use proptest::collection::vec;
        use proptest::prelude::*;

        use super::*;
        use crate::rpc::message::{StoreRecord, StoreRequest};

        fn key() -> impl Strategy<Value = Key> {
            let word = "[a-zé/]{1,20}".prop_map(|word| Key::Word(word.into()));
            prop_oneof![any::<u64>().prop_map(Key::Id), word]
        }

        fn payload() -> impl Strategy<Value = Bytes> {
            vec(any::<u8>(), 0..40).prop_map(Bytes::from)
        }

        fn fence() -> impl Strategy<Value = Fence> {
            (any::<u64>(), any::<u64>()).prop_map(|(term, link)| Fence { term, link })
        }

        fn position() -> impl Strategy<Value = LogPosition> {
            any::<(u64, u64)>().prop_map(|(term, index)| LogPosition { term, index })
        }

        fn seen() -> impl Strategy<Value = Seen> {
            let revision = proptest::option::of((1..=u64::MAX).prop_map(Revision::from_u64));
            (fence(), revision, position()).prop_map(|(fence, revision, committed)| Seen {
                fence,
                revision,
                committed,
            })
        }

        fn revision() -> impl Strategy<Value = Revision> {
            any::<u64>().prop_map(Revision::from_u64)
        }

        fn request() -> impl Strategy<Value = Request> {
            let record =
                (revision(), key(), payload()).prop_map(|(revision, key, payload)| StoreRecord {
                    revision,
                    key,
                    payload,
                });
            let store = (fence(), vec(record, 0..5)).prop_map(|(fence, records)| {
                let records = Arc::new(records);
                Request::Store(StoreRequest { fence, records })
            });
            let fetch = (fence(), vec(revision(), 0..5))
                .prop_map(|(fence, revisions)| Request::Fetch(FetchRequest { fence, revisions }));
            let release = (fence(), vec(revision(), 0..5)).prop_map(|(fence, revisions)| {
                Request::Release(ReleaseRequest { fence, revisions })
            });
            let holds = (fence(), vec(revision(), 0..5))
                .prop_map(|(fence, revisions)| Request::Holds(HoldsRequest { fence, revisions }));
            let flags = any::<(bool, bool, Option<u64>)>();
            let register = ("[a-z]{1,9}:[0-9]{1,4}", "[a-z]{0,9}", seen(), flags).prop_map(
                |(address, zone, seen, (replace, incomplete, records))| {
                    Request::Register(RegisterRequest {
                        address,
                        zone,
                        seen,
                        replace,
                        incomplete,
                        records,
                    })
                },
            );
            let counters = (any::<(u64, u64, u64)>(), seen());
            let heartbeat = counters.prop_map(|((records, bytes, free), seen)| {
                Request::Heartbeat(HeartbeatRequest {
                    records,
                    bytes,
                    free,
                    seen,
                })
            });
            let bytes = || vec(any::<u8>(), 1..40).prop_map(Bytes::from);
            let raft = ("[a-z]{1,9}:[0-9]{1,4}", vec(payload(), 1..5))
                .prop_map(|(address, messages)| Request::Raft(RaftRequest { address, messages }));
            let end = proptest::option::of(bytes());
            let chunk = (any::<u64>(), 0..=u64::MAX - 40, bytes(), end).prop_map(
                |(transfer, offset, bytes, end)| {
                    Request::Snapshot(SnapshotChunk {
                        transfer,
                        offset,
                        bytes,
                        end,
                    })
                },
            );
            let founders = proptest::collection::btree_set(1..=u64::MAX, 1..5);
            let join = founders.prop_map(|ids| {
                let founders = ids.into_iter().map(PeerId).collect();
                Request::Join(JoinRequest { founders })
            });
            prop_oneof![
                store,
                fetch,
                release,
                holds,
                register,
                heartbeat,
                raft,
                chunk,
                join,
                batch().prop_map(Request::Forward),
                Just(Request::Standing),
            ]
        }

        fn batch() -> impl Strategy<Value = Batch> {
            let token = || {
                let token = "[a-z]{1,9}".prop_map(|text| Token::parse(text.as_bytes()).ok());
                prop_oneof![token, Just(None)]
            };
            let bulk = (1..=BULK_COUNT_MAX, payload(), token());
            let get = || key().prop_map(Step::Get);
            let step = || prop_oneof![get(), write(Just(None)).prop_map(Step::Write)];
            let text = || "[a-z0-9]{0,5}".prop_map(|text| text.into());
            let list = (text(), proptest::option::of(text()), 1..=PAGE_KEYS_MAX);
            prop_oneof![
                vec(write(token()), 1..5).prop_map(Batch::Writes),
                (vec(step(), 1..5), any::<bool>(), token()).prop_map(
                    |(steps, is_atomic, token)| Batch::Transaction(Transaction {
                        steps,
                        is_atomic,
                        token
                    })
                ),
                key().prop_map(Batch::Ttl),
                list.prop_map(|(prefix, after, limit)| Batch::List(ListRequest {
                    prefix,
                    after,
                    limit
                })),
                vec(key(), 1..5).prop_map(Batch::Reads),
                bulk.prop_map(|(count, payload, token)| Batch::Bulk {
                    count,
                    payload,
                    token,
                }),
                key().prop_map(Batch::Where),
                Just(Batch::Count),
            ]
        }

        fn write(
            token: impl Strategy<Value = Option<Token>> + Clone,
        ) -> impl Strategy<Value = Write> {
            let condition = || {
                let one = prop_oneof![
                    revision().prop_map(Condition::Revision),
                    Just(Condition::Absent),
                    Just(Condition::Exists),
                ];
                proptest::option::of(one)
            };
            let ttl_ms = || proptest::option::of(1..=TTL_MS_MAX);
            let options = (token.clone(), condition(), ttl_ms());
            let set = (key(), payload(), options).prop_map(
                |(key, payload, (token, condition, ttl_ms))| Write::Set {
                    key,
                    payload,
                    options: SetOptions {
                        token,
                        condition,
                        ttl_ms,
                    },
                },
            );
            let delete = (key(), token.clone(), condition()).prop_map(|(key, token, condition)| {
                Write::Delete {
                    key,
                    token,
                    condition,
                }
            });
            let expire = (key(), token, ttl_ms()).prop_map(|(key, token, ttl_ms)| Write::Expire {
                key,
                token,
                ttl_ms,
            });
            prop_oneof![set, delete, expire]
        }

        fn page() -> impl Strategy<Value = Reply> {
            let listed = (key(), revision(), any::<u64>());
            let listed = listed.prop_map(|(key, revision, bytes)| ListedKey {
                key,
                revision,
                bytes,
            });
            (vec(listed, 0..3), any::<bool>())
                .prop_map(|(keys, has_more)| Reply::Keys(KeyPage { keys, has_more }))
        }

        fn reply() -> impl Strategy<Value = Reply> {
            prop_oneof![
                5 => simple_reply(),
                1 => vec(simple_reply(), 1..4).prop_map(Reply::Transaction),
            ]
        }

        fn simple_reply() -> impl Strategy<Value = Reply> {
            let range = || (0..9u64, 9..99u64);
            let state = prop_oneof![
                Just(MemberState::Up),
                Just(MemberState::Suspect),
                Just(MemberState::Down),
                Just(MemberState::Retired),
                Just(MemberState::Missing),
            ];
            let replica = ("[a-z0-9-]{1,9}", "[a-z]{1,9}:[0-9]{1,4}", state).prop_map(
                |(name, address, state)| ReplicaStatus {
                    name,
                    address,
                    state,
                },
            );
            let location = (revision(), any::<u64>(), vec(replica, 0..4));
            prop_oneof![
                (revision(), any::<bool>())
                    .prop_map(|(revision, created)| Reply::Stored { revision, created }),
                proptest::option::of(revision()).prop_map(|revision| Reply::Mismatch { revision }),
                proptest::option::of(any::<u64>()).prop_map(|ms| Reply::TimeToLive { ms }),
                Just(Reply::ExpirySet),
                page(),
                Just(Reply::Deleted),
                Just(Reply::NotFound),
                (revision(), payload())
                    .prop_map(|(revision, payload)| Reply::Value { revision, payload }),
                range().prop_map(|(first, last)| Reply::BulkStored { first, last }),
                location.prop_map(|(revision, bytes, replicas)| Reply::Location {
                    revision,
                    bytes,
                    replicas,
                }),
                any::<u64>().prop_map(Reply::Count),
                failure().prop_map(Reply::Failed),
                (failure(), proptest::option::of(range())).prop_map(|(reason, stored)| {
                    let reason = Box::new(reason);
                    Reply::Failed(Failure::BulkPartial { reason, stored })
                }),
            ]
        }

        fn failure() -> impl Strategy<Value = Failure> {
            let address = proptest::option::of("[a-z]{1,9}:[0-9]{1,4}");
            prop_oneof![
                Just(Failure::WriteTimedOut),
                Just(Failure::ReadTimedOut),
                Just(Failure::Busy),
                Just(Failure::TooManyTokens),
                Just(Failure::TokenInUse),
                Just(Failure::TokenExpired),
                Just(Failure::TokenUsed),
                Just(Failure::ValuesTooLarge),
                (0..9usize).prop_map(|position| Failure::NotApplied { position }),
                (0..9usize, 0..9usize)
                    .prop_map(|(have, need)| Failure::NotEnoughMembers { have, need }),
                (0usize..9, 0usize..9).prop_map(|(have, need)| Failure::LeaderWaits { have, need }),
                Just(Failure::LeaderIncomplete),
                any::<u64>().prop_map(|above| Failure::TermOver { above }),
                (0..9usize, 0..9usize).prop_map(|(have, need)| Failure::NoSpace { have, need }),
                "[ -~]{0,30}".prop_map(|replicas| Failure::Unavailable { replicas }),
                address.prop_map(|leader| Failure::NotLeader { leader }),
            ]
        }

        fn refusal() -> impl Strategy<Value = Refusal> {
            prop_oneof![
                fence().prop_map(|highest| Refusal::StaleFence { highest }),
                Just(Refusal::NotLeader),
                Just(Refusal::Busy),
                Just(Refusal::NoSpace),
                any::<(u64, u64)>().prop_map(|(incarnation, registered)| {
                    Refusal::StaleIncarnation {
                        incarnation,
                        registered,
                    }
                }),
                any::<u64>().prop_map(|id| Refusal::Retired(MemberId(id))),
                any::<(u64, u64, bool)>().prop_map(|(holder, messages, is_up)| {
                    Refusal::NameHeld {
                        holder: MemberId(holder),
                        messages,
                        is_up,
                    }
                }),
                "[ -~]{0,30}".prop_map(Refusal::Other),
            ]
        }

        fn response() -> impl Strategy<Value = Response> {
            let stored = prop_oneof![
                Just(StoreResult::Stored),
                Just(StoreResult::DiskFull),
                Just(StoreResult::Refused),
                Just(StoreResult::Conflict),
            ];
            let fetched = prop_oneof![
                (key(), payload()).prop_map(|(key, payload)| FetchResult::Found { key, payload }),
                Just(FetchResult::Missing),
                Just(FetchResult::Damaged),
                Just(FetchResult::Omitted),
            ];
            prop_oneof![
                vec(stored, 0..5).prop_map(Response::Store),
                vec(fetched, 0..5).prop_map(Response::Fetch),
                Just(Response::Release),
                vec(any::<bool>(), 0..9).prop_map(Response::Holds),
                Just(Response::Register),
                (position(), any::<bool>()).prop_map(|(committed, has_all)| {
                    Response::Heartbeat(HeartbeatAnswer { committed, has_all })
                }),
                Just(Response::Snapshot),
                ("[a-z:0-9]{1,20}", "[a-z:0-9]{1,20}", "[a-z:0-9]{0,20}").prop_map(
                    |(rpc, client, http)| {
                        Response::Join(JoinAnswer {
                            has_log: !http.is_empty(),
                            rpc,
                            client,
                            http,
                        })
                    }
                ),
                vec(reply(), 1..5).prop_map(Response::Forward),
                (any::<bool>(), "[a-z:0-9]{1,20}", "[a-z:0-9]{0,20}").prop_map(
                    |(takes_part, client, http)| {
                        Response::Standing(StandingAnswer {
                            takes_part,
                            client,
                            http,
                        })
                    }
                ),
                refusal().prop_map(Response::Refused),
            ]
        }

        fn hello() -> impl Strategy<Value = Hello> {
            let roles = prop_oneof![Just(Role::Leader), Just(Role::Member), Just(Role::Client)];
            (
                any::<[u64; 4]>(),
                1..=u64::MAX,
                any::<u32>(),
                "[a-z0-9-]{1,20}",
                roles,
            )
                .prop_map(
                    |([cluster, incarnation, nonce, link], node_id, protocol, name, role)| Hello {
                        protocol,
                        cluster_id: ClusterId(cluster),
                        name,
                        node_id,
                        incarnation,
                        nonce,
                        link,
                        role,
                        purpose: match role {
                            Role::Leader if nonce % 2 == 0 => Purpose::Fetches,
                            Role::Leader | Role::Member | Role::Client => Purpose::All,
                        },
                        separates_fetches: nonce % 3 == 0,
                    },
                )
        }

        fn envelope() -> impl Strategy<Value = Envelope> {
            let body = prop_oneof![
                hello().prop_map(Body::Hello),
                request().prop_map(Body::Request),
                response().prop_map(Body::Response),
            ];
            (1..=u64::MAX, any::<u64>(), body).prop_map(|(call, term, body)| {
                let one_way = matches!(&body, Body::Request(it) if it.kind().is_one_way());
                let call = CallId(if one_way { 0 } else { call });
                Envelope { call, term, body }
            })
        }

        fn encoded(envelope: Envelope) -> Vec<u8> {
            let frame = encode(envelope).expect("a small frame");
            frame.to_vec().split_off(PREFIX_BYTES)
        }

        proptest! {
            #[test]
            fn what_is_written_reads_back(envelope in envelope()) {
                let body = Bytes::from(encoded(envelope.clone()));
                prop_assert_eq!(decode(body), Ok(envelope));
            }

            #[test]
            fn a_store_is_encoded_as_by_the_generated_types(
                call in 1u64..300,
                term in 0u64..300,
                fence in fence(),
                records in vec((0u64..3, 0u64..300, key(), payload()), 0..5),
            ) {
                let record = |(high, low, key, payload)| StoreRecord {
                    revision: Revision::from_u64(high << 48 | low),
                    key,
                    payload,
                };
                let records = Arc::new(records.into_iter().map(record).collect());
                let store = StoreRequest { fence, records };
                let wire = wire::Envelope {
                    call_id: call,
                    term,
                    body: Some(WireBody::StoreRequest(stores::from_request(&store))),
                };
                let (call, body) = (CallId(call), Body::Request(Request::Store(store)));
                let body = encoded(Envelope { call, term, body });
                prop_assert_eq!(body, wire.encode_to_vec());
            }

            #[test]
            fn flipped_bits_and_truncation_are_errors_or_valid(
                envelope in envelope(),
                flips in vec((any::<prop::sample::Index>(), 0u8..8), 0..4),
                keep in any::<prop::sample::Index>(),
            ) {
                let mut body = encoded(envelope);
                for (at, bit) in flips {
                    if !body.is_empty() {
                        let at = at.index(body.len());
                        body[at] ^= 1 << bit;
                    }
                }
                body.truncate(keep.index(body.len() + 1));
                // What decodes can be said again, and then means the same.
                if let Ok(envelope) = decode(Bytes::from(body)) {
                    let again = Bytes::from(encoded(envelope.clone()));
                    prop_assert_eq!(decode(again), Ok(envelope));
                }
            }
        }
    }
}
