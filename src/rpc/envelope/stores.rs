//! Stores: encoded from the records themselves, and decoded. Pure.
//!
//! A store is what a leader sends most, with up to 4,096 records. Its frame is written from the
//! records, without a message of the generated types in between: that would be a list as long, and
//! a buffer for the key of each record. The bytes are the same; a test compares them.

use std::sync::Arc;

use prost::Message as _;
use prost::encoding::{encode_varint, encoded_len_varint};

use super::{Checked, RECORDS_MAX, from_fence, invalid, to_fence, to_key, to_payload, wire};
use crate::ids::{CallId, Key, Revision};
use crate::rpc::frame::{Frame, FrameTooLarge};
use crate::rpc::message::{StoreRecord, StoreRequest};

/// Field numbers of `tolerex.proto`, each with its wire type: 0 a varint, 1 eight bytes, 2 bytes
/// behind their length.
mod tag {
    pub(super) const CALL_ID: u8 = 1 << 3;
    pub(super) const TERM: u8 = 2 << 3;
    pub(super) const STORE_REQUEST: u8 = 10 << 3 | 2;
    pub(super) const FENCE: u8 = 1 << 3 | 2;
    pub(super) const RECORDS: u8 = 2 << 3 | 2;
    pub(super) const REVISION: u8 = 1 << 3 | 1;
    pub(super) const KEY: u8 = 2 << 3 | 2;
    pub(super) const PAYLOAD: u8 = 3 << 3 | 2;
    pub(super) const ID: u8 = 1 << 3;
    pub(super) const WORD: u8 = 2 << 3 | 2;
}

/// The length of a field of bytes: tag, length, bytes.
fn field_len(bytes: usize) -> usize {
    1 + encoded_len_varint(bytes as u64) + bytes
}

fn key_len(key: &Key) -> usize {
    match key {
        Key::Id(id) => 1 + encoded_len_varint(*id),
        Key::Word(word) => field_len(word.len()),
    }
}

fn record_len(record: &StoreRecord) -> usize {
    // As in all of proto3, a number that is 0 and bytes that are none are left out; what is one of
    // several, such as a key's name, is not.
    let revision = match record.revision.as_u64() {
        0 => 0,
        _ => 1 + size_of::<u64>(),
    };
    let payload = match record.payload.len() {
        0 => 0,
        bytes => field_len(bytes),
    };
    revision + field_len(key_len(&record.key)) + payload
}

fn put_number(frame: &mut Vec<u8>, tag: u8, number: u64) {
    frame.push(tag);
    encode_varint(number, frame);
}

fn put_bytes(frame: &mut Vec<u8>, tag: u8, bytes: &[u8]) {
    put_number(frame, tag, bytes.len() as u64);
    frame.extend_from_slice(bytes);
}

fn put_record(frame: &mut Frame, record: &StoreRecord) {
    let own = frame.own();
    put_number(own, tag::RECORDS, record_len(record) as u64);
    let revision = record.revision.as_u64();
    if revision > 0 {
        own.push(tag::REVISION);
        own.extend_from_slice(&revision.to_le_bytes());
    }
    put_number(own, tag::KEY, key_len(&record.key) as u64);
    match &record.key {
        Key::Id(id) => put_number(own, tag::ID, *id),
        Key::Word(word) => put_bytes(own, tag::WORD, word.as_bytes()),
    }
    if !record.payload.is_empty() {
        put_number(frame.own(), tag::PAYLOAD, record.payload.len() as u64);
        frame.push(&record.payload);
    }
}

/// Encodes a whole frame with a store, prefix included.
pub(super) fn encode(
    call: CallId,
    term: u64,
    request: &StoreRequest,
) -> Result<Frame, FrameTooLarge> {
    let records = &request.records;
    assert!(records.len() <= RECORDS_MAX, "store too many");
    let fence = from_fence(request.fence);
    let fence_len = fence.encoded_len();
    let record_fields = records.iter().map(|record| field_len(record_len(record)));
    let store_len = field_len(fence_len) + record_fields.sum::<usize>();
    let number_len = |number| match number {
        0 => 0,
        _ => 1 + encoded_len_varint(number),
    };
    let body_len = number_len(call.0) + number_len(term) + field_len(store_len);
    let mut frame = Frame::begin(body_len)?;
    let whole = frame.len() + body_len;
    for (tag, number) in [(tag::CALL_ID, call.0), (tag::TERM, term)] {
        if number > 0 {
            put_number(frame.own(), tag, number);
        }
    }
    put_number(frame.own(), tag::STORE_REQUEST, store_len as u64);
    put_number(frame.own(), tag::FENCE, fence_len as u64);
    fence
        .encode(frame.own())
        .expect("a Vec grows as it is written");
    for record in records.iter() {
        put_record(&mut frame, record);
    }
    assert_eq!(frame.len(), whole, "a frame is as long as its prefix says");
    Ok(frame)
}

/// Checks a store that arrived.
pub(super) fn to_request(request: wire::StoreRequest) -> Checked<StoreRequest> {
    if request.records.len() > RECORDS_MAX {
        return invalid("store_request.records", "has too many entries");
    }
    let to_record = |record: wire::store_request::Record| {
        Ok(StoreRecord {
            revision: Revision::from_u64(record.revision),
            key: to_key(record.key, "store_request.records.key")?,
            payload: to_payload(record.payload, "store_request.records.payload")?,
        })
    };
    let records = request.records.into_iter().map(to_record);
    Ok(StoreRequest {
        fence: to_fence(request.fence, "store_request.fence")?,
        records: Arc::new(records.collect::<Checked<_>>()?),
    })
}

/// The generated type of a store, by which its encoding is tested.
#[cfg(test)]
pub(super) fn from_request(request: &StoreRequest) -> wire::StoreRequest {
    let from_record = |record: &StoreRecord| wire::store_request::Record {
        revision: record.revision.as_u64(),
        key: Some(super::from_key(record.key.clone())),
        payload: record.payload.clone(),
    };
    wire::StoreRequest {
        fence: Some(from_fence(request.fence)),
        records: request.records.iter().map(from_record).collect(),
    }
}
