//! Batches as JSON.

use std::borrow::Cow;

use serde_json::{Value, json};
use tolerex::protocol::batch::{self, InvalidBatch};
use tolerex::protocol::request::{
    BATCH_REQUESTS_MAX, Batch, Condition, Step, TTL_MS_MAX, Transaction, Write,
};

use super::answers;

/// The longest payload; small, so that inputs reach it.
const PAYLOAD_BYTES_MAX: usize = 200;

/// What is read keeps the limits and, written as JSON, reads back; results for it are JSON with one
/// for each operation. What is refused is refused in words. Times to live and single values too.
pub fn check(data: &[u8]) {
    match batch::parse(data, None, PAYLOAD_BYTES_MAX) {
        Ok(transaction) => check_transaction(&transaction),
        Err(InvalidBatch::Malformed(reason) | InvalidBatch::TooLarge(reason)) => {
            assert!(!reason.is_empty());
        }
    }
    if let Ok(payload) = batch::parse_value(data, PAYLOAD_BYTES_MAX) {
        assert!(payload.len() <= PAYLOAD_BYTES_MAX);
        let json = value_json(&payload).to_string();
        assert_eq!(
            batch::parse_value(json.as_bytes(), PAYLOAD_BYTES_MAX),
            Ok(payload)
        );
    }
    if let Ok(ms) = batch::parse_ttl(&String::from_utf8_lossy(data)) {
        assert!((1..=TTL_MS_MAX).contains(&ms));
        assert_eq!(batch::parse_ttl(&format!("{ms}ms")), Ok(ms));
    }
}

fn check_transaction(transaction: &Transaction) {
    assert!((1..=BATCH_REQUESTS_MAX).contains(&transaction.steps.len()));
    let mut operations = Vec::new();
    for step in &transaction.steps {
        assert!(step.payload_len() <= PAYLOAD_BYTES_MAX);
        operations.push(operation_json(step));
    }
    let json = json!({"operations": operations, "atomic": transaction.is_atomic}).to_string();
    let again = batch::parse(json.as_bytes(), None, PAYLOAD_BYTES_MAX);
    assert_eq!(again.as_ref(), Ok(transaction));

    let replies = answers::steps(&transaction.steps);
    let written = batch::write(&replies);
    let answer: Value = serde_json::from_slice(&written).expect("JSON");
    let results = answer["results"].as_array().expect("an array");
    assert_eq!(results.len(), transaction.steps.len());
    assert!(results.iter().all(|result| result["status"].is_string()));
    // The same in a pipeline's hands: one reply.
    assert_eq!(Batch::Transaction(transaction.clone()).reply_count(), 1);
}

/// A payload as `{"value":…}`.
fn value_json(payload: &[u8]) -> Value {
    let (value, encoding): (Cow<'_, str>, _) = batch::encode_value(payload);
    match encoding {
        None => json!({"value": value}),
        Some(encoding) => json!({"value": value, "encoding": encoding}),
    }
}

fn operation_json(step: &Step) -> Value {
    let (mut json, condition) = match step {
        Step::Get(key) => (json!({"type": "get", "key": key.to_string()}), None),
        Step::Write(Write::Set {
            key,
            payload,
            options,
        }) => {
            let mut json = value_json(payload);
            json["type"] = "set".into();
            json["key"] = key.to_string().into();
            if let Some(ms) = options.ttl_ms {
                json["ttl"] = format!("{ms}ms").into();
            }
            (json, options.condition)
        }
        Step::Write(Write::Delete { key, condition, .. }) => (
            json!({"type": "delete", "key": key.to_string()}),
            *condition,
        ),
        Step::Write(Write::Expire { .. }) => panic!("JSON has no such operation"),
    };
    match condition {
        None => {}
        Some(Condition::Absent) => json["if_revision"] = 0.into(),
        Some(Condition::Revision(revision)) => json["if_revision"] = revision.to_string().into(),
        Some(Condition::Exists) => panic!("JSON has no such condition"),
    }
    json
}
