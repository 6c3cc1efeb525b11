//! What a client says and hears for which there is no room.

use bytes::Bytes;

use crate::protocol::Session;
use crate::protocol::output::Output;
use crate::protocol::reply::Reply;
use crate::protocol::request::Batch;

/// The session of a client for which there is no room: it has one thing to say.
pub struct Farewell {
    output: Output,
}

impl Farewell {
    /// Says `refusal`.
    pub fn new(refusal: &Bytes) -> Farewell {
        let mut output = Output::default();
        output.extend(refusal);
        Farewell { output }
    }
}

impl Session for Farewell {
    fn receive(&mut self, _bytes: &[u8]) {}

    fn end_of_input(&mut self) {}

    fn next_batch(&mut self) -> Option<Batch> {
        None
    }

    fn complete(&mut self, _replies: Vec<Reply>) {
        unreachable!("it offers no batch");
    }

    fn output(&mut self) -> &mut Output {
        &mut self.output
    }

    fn is_paused(&self) -> bool {
        false
    }

    fn is_idle(&self) -> bool {
        false
    }

    fn wants_close(&self) -> bool {
        true
    }

    fn bytes_held(&self) -> usize {
        self.output.len()
    }

    fn input_bytes(&self) -> usize {
        0
    }

    fn input_bytes_expected(&self) -> usize {
        0
    }

    fn shed(&mut self) {}

    fn release_buffers(&mut self) {}
}
