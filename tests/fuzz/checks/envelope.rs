//! Envelopes: the bodies of frames, calls and answers of nodes to each other.

use bytes::Bytes;
use tolerex::rpc::envelope::{self, EnvelopeError};
use tolerex::rpc::frame::{FRAME_BYTES_MAX, PREFIX_BYTES};

/// What decodes is written as a frame that decodes to the same, and is written so again. What does
/// not is refused by the name of a field, or as no protobuf of ours.
pub fn check(data: &[u8]) {
    let envelope = match envelope::decode(Bytes::copy_from_slice(data)) {
        Ok(envelope) => envelope,
        Err(error) => {
            let is_named = match error {
                EnvelopeError::Undecodable(_) => true,
                EnvelopeError::Invalid { field, problem } => {
                    !field.is_empty() && !problem.is_empty()
                }
            };
            assert!(is_named, "{error}");
            return;
        }
    };
    let frame = envelope::encode(envelope.clone()).expect("no larger than what came");
    let frame = frame.to_vec();
    let (prefix, body) = frame.split_at(PREFIX_BYTES);
    assert_eq!(prefix, (body.len() as u32).to_be_bytes());
    assert!(body.len() <= FRAME_BYTES_MAX);
    let again = envelope::decode(Bytes::copy_from_slice(body));
    assert_eq!(again.as_ref(), Ok(&envelope));
    let again = envelope::encode(envelope).expect("no larger than before");
    assert_eq!(again.to_vec(), frame);
}
