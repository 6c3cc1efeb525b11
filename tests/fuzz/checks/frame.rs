//! Frames: a stream of bytes cut by length prefixes.

use bytes::Bytes;
use tolerex::rpc::frame::{Decoder, Frame, FrameTooLarge, PREFIX_BYTES};

use super::{envelope, pieces, splits};

/// The first byte gives the limit, the rest is the stream. In whatever parts it comes, the same
/// frames come out, up to the same error; no more than one frame and a part is held; frames written
/// anew are the stream. Each body is looked at as an envelope.
pub fn check(data: &[u8]) {
    let (limit, stream) = pieces::byte(data);
    let max = usize::from(limit) * 16;
    let [whole, others @ ..] = splits::of(stream).map(|split| frames(max, &split));
    for other in others {
        assert_eq!(other, whole, "another split, other frames");
    }
    let (bodies, left, error) = whole;
    let mut written = Vec::new();
    for body in &bodies {
        assert!(body.len() <= max);
        let begun = Frame::begin(body.len()).expect("a small frame");
        written.extend(begun.to_vec());
        written.extend_from_slice(body);
        envelope::check(body);
    }
    assert_eq!(stream.get(..written.len()), Some(&written[..]));
    assert_eq!(stream.len(), written.len() + left);
    if let Some(FrameTooLarge { bytes, max: told }) = error {
        assert!(bytes > max && told == max);
    }
}

type Frames = (Vec<Bytes>, usize, Option<FrameTooLarge>);

/// The frames of a stream, the bytes behind them, and the error that ended them.
fn frames(max: usize, split: &[&[u8]]) -> Frames {
    let mut decoder = Decoder::new(max);
    let mut bodies = Vec::new();
    let mut error = None;
    for part in split {
        decoder.push(part);
        loop {
            match decoder.next_frame() {
                Ok(Some(body)) => {
                    assert_eq!(error, None, "a frame behind an error");
                    bodies.push(body);
                }
                Ok(None) => break,
                Err(found) => {
                    assert!(error.is_none_or(|before| before == found));
                    error = Some(found);
                    break;
                }
            }
        }
        if error.is_none() {
            assert!(
                decoder.buffered() < PREFIX_BYTES + max,
                "more than a frame is held"
            );
        }
    }
    (bodies, decoder.buffered(), error)
}
