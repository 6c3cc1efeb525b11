//! From single requests to batches, and from replies back to their places. Pure.
//!
//! A run of consecutive writes becomes one batch, a run of consecutive reads another; anything else
//! is a batch of its own. Steps that need no execution (an error, a help text) may stand between
//! the requests of a run: they neither end it nor lose their place among the replies.
//!
//! Invariants, asserted below:
//! * at most one batch is out, and the next begins behind it (A7);
//! * a batch has at most [`BATCH_REQUESTS_MAX`] requests of [`BATCH_BYTES_MAX`] payload bytes, or
//!   one larger request; with local steps counted, as many steps;
//! * each request gets exactly one reply, in order.

use std::collections::VecDeque;

use super::reply::Reply;
use super::request::{BATCH_BYTES_MAX, BATCH_REQUESTS_MAX, Batch, Write};
use crate::ids::Key;

/// What a request is taken to cost beside its payload, for [`Pipeline::bytes_held`]: key, enum and
/// vector slots. Only the order of magnitude matters.
const REQUEST_BYTES: usize = 64;

/// Requests of which an idle session keeps the place, some 1 KiB with this many. With fewer, a
/// client that pipelines 16 requests has it allocated anew for each of its batches.
const KEPT_REQUESTS_MAX: usize = 16;

/// Requests for which a batch has room from its beginning, if the one before it had as many.
const EXPECTED_REQUESTS_MAX: usize = 256;

/// A single request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Work {
    /// Joins a run of writes.
    Write(Write),
    /// Joins a run of reads.
    Read(Key),
    /// A batch of its own with one reply: `Bulk`, `Where`, `Count` or `Status`.
    Alone(Batch),
}

impl Work {
    fn payload_len(&self) -> usize {
        match self {
            Work::Write(write) => write.payload_len(),
            Work::Alone(Batch::Bulk { payload, .. }) => payload.len(),
            Work::Read(_) | Work::Alone(_) => 0,
        }
    }
}

/// Requests of one connection on their way to replies. `F` says how a step is to be written out.
#[derive(Debug)]
pub struct Pipeline<F> {
    /// The steps of the batch that is collected or out, in order.
    steps: VecDeque<Step<F>>,
    /// The batch being collected, or what is left of a batch of reads that was answered in part.
    batch: Option<Batch>,
    /// Payload bytes of `batch`, in or out.
    batch_bytes: usize,
    /// Requests of `batch`, in or out; at most as many as `steps`.
    batch_requests: usize,
    /// The keys of a batch of several reads that is out, in case it is answered in part.
    keys_out: Vec<Key>,
    /// Requests of the batch taken last: the next one is likely to have as many.
    batch_requests_expected: usize,
    /// Whether a batch was taken and is not complete.
    is_out: bool,
    /// Whether the batch taken last is a transaction.
    is_transaction: bool,
    /// Whether `batch` is the rest of one that was answered in part: nothing joins it.
    is_rest: bool,
    /// The request that did not fit the batch: the next one begins with it.
    next: Option<(Work, F)>,
}

#[derive(Debug)]
enum Step<F> {
    Local(F),
    Request(F),
}

impl<F> Default for Pipeline<F> {
    fn default() -> Pipeline<F> {
        Pipeline {
            steps: VecDeque::new(),
            batch: None,
            batch_bytes: 0,
            batch_requests: 0,
            keys_out: Vec::new(),
            batch_requests_expected: 1,
            is_out: false,
            is_transaction: false,
            is_rest: false,
            next: None,
        }
    }
}

impl<F> Pipeline<F> {
    /// Whether more steps may be added to the batch being collected.
    pub fn is_open(&self) -> bool {
        let is_closed = self.is_out || self.is_rest || self.next.is_some();
        !is_closed && self.steps.len() < BATCH_REQUESTS_MAX
    }

    /// Whether no step waits: what needs no execution may be written out at once.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty() && self.next.is_none()
    }

    /// Whether the batch taken last is a transaction.
    pub fn is_transaction(&self) -> bool {
        self.is_transaction
    }

    /// The forms of the steps of the batch that is collected or out.
    pub fn forms(&self) -> impl Iterator<Item = &F> {
        self.steps.iter().map(|step| match step {
            Step::Local(form) | Step::Request(form) => form,
        })
    }

    /// Whether a batch is out.
    pub fn is_out(&self) -> bool {
        self.is_out
    }

    /// Bytes that the collected, taken and next requests hold, about.
    pub fn bytes_held(&self) -> usize {
        let next = self.next.as_ref().map_or(0, |(work, _)| work.payload_len());
        self.batch_bytes + self.steps.len() * REQUEST_BYTES + next
    }

    /// Adds a request. What does not fit the batch waits for the next one, and closes this one.
    pub fn request(&mut self, work: Work, form: F) {
        assert!(self.is_open(), "a request behind a closed batch");
        let bytes = work.payload_len();
        let fits = self.batch_bytes + bytes <= BATCH_BYTES_MAX;
        match (&mut self.batch, work) {
            (None, work) => {
                self.batch = Some(match work {
                    Work::Write(write) => Batch::Writes(self.list_of(write)),
                    Work::Read(key) => Batch::Reads(self.list_of(key)),
                    Work::Alone(batch) => batch,
                });
            }
            (Some(Batch::Writes(writes)), Work::Write(write)) if fits => writes.push(write),
            (Some(Batch::Reads(keys)), Work::Read(key)) => keys.push(key),
            (Some(_), work) => {
                self.next = Some((work, form));
                return;
            }
        }
        self.batch_bytes += bytes;
        self.batch_requests += 1;
        self.steps.push_back(Step::Request(form));
    }

    /// The first requests of a batch, with room for as many as the batch before it had.
    fn list_of<T>(&self, first: T) -> Vec<T> {
        let expected = self.batch_requests_expected.clamp(1, EXPECTED_REQUESTS_MAX);
        let mut list = Vec::with_capacity(expected);
        list.push(first);
        list
    }

    /// Adds a step that needs no execution.
    pub fn local(&mut self, form: F) {
        assert!(self.is_open(), "a step behind a closed batch");
        self.steps.push_back(Step::Local(form));
    }

    /// Takes the collected batch, if there is one; it is out until it is complete.
    pub fn take(&mut self) -> Option<Batch> {
        if self.is_out {
            return None;
        }
        let batch = self.batch.take()?;
        if let Batch::Reads(keys) = &batch
            && keys.len() > 1
        {
            self.keys_out.clone_from(keys);
        }
        self.batch_requests_expected = self.batch_requests;
        self.is_transaction = matches!(batch, Batch::Transaction(_));
        self.is_out = true;
        self.is_rest = false;
        Some(batch)
    }

    /// Completes the batch that is out: `write` is called for each step in order, with its reply if
    /// it is a request. Reads may be answered in part; the rest becomes the batch to take next.
    pub fn complete(&mut self, replies: Vec<Reply>, mut write: impl FnMut(F, Option<Reply>)) {
        assert!(self.is_out, "replies without a batch");
        let count = replies.len();
        let all = count == self.batch_requests;
        let part = count > 0 && count < self.keys_out.len();
        assert!(
            all || part,
            "{count} replies to {} requests",
            self.batch_requests
        );
        self.is_out = false;
        self.batch_requests -= count;

        let mut replies = replies.into_iter();
        while let Some(step) = self.steps.pop_front() {
            match step {
                Step::Local(form) => write(form, None),
                Step::Request(form) => match replies.next() {
                    Some(reply) => write(form, Some(reply)),
                    None => {
                        self.steps.push_front(Step::Request(form));
                        break;
                    }
                },
            }
        }
        if part {
            self.keys_out.drain(..count);
            self.batch = Some(Batch::Reads(std::mem::take(&mut self.keys_out)));
            self.is_rest = true;
            return;
        }
        assert!(self.steps.is_empty(), "a step without a reply");
        self.keys_out.clear();
        self.batch_bytes = 0;
        if let Some((work, form)) = self.next.take() {
            self.request(work, form);
        }
    }

    /// Gives back what empty queues hold.
    pub fn release_buffers(&mut self) {
        if self.steps.is_empty() {
            if self.steps.capacity() > KEPT_REQUESTS_MAX {
                self.steps = VecDeque::new();
            }
            if self.keys_out.capacity() > KEPT_REQUESTS_MAX {
                self.keys_out = Vec::new();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::error::Failure;

    fn set(length: usize) -> Work {
        let payload = Bytes::from(vec![0; length]);
        Work::Write(Write::set(Key::Id(1), payload, None))
    }

    fn busy(count: usize) -> Vec<Reply> {
        vec![Reply::Failed(Failure::Busy); count]
    }

    fn len(batch: &Batch) -> usize {
        match batch {
            Batch::Writes(writes) => writes.len(),
            Batch::Reads(keys) => keys.len(),
            Batch::Bulk { .. } | Batch::Where(_) | Batch::Count => 1,
            Batch::Transaction(_) | Batch::Ttl(_) | Batch::List(_) => 1,
            Batch::Status | Batch::Group(_) => 1,
        }
    }

    #[test]
    fn a_batch_ends_at_its_limits() {
        let max = BATCH_BYTES_MAX;
        for (sizes, expected) in [
            (vec![1; BATCH_REQUESTS_MAX], vec![BATCH_REQUESTS_MAX]),
            (vec![max / 2, max / 2, 1], vec![2, 1]),
            (vec![max / 2, max / 2 + 1, 1], vec![1, 2]),
            (vec![max + 1, 1], vec![1, 1]),
            (vec![1, max + 1, max, 1], vec![1, 1, 1, 1]),
        ] {
            let mut pipeline = Pipeline::default();
            let mut sizes = sizes.into_iter();
            let mut batches = Vec::new();
            loop {
                while pipeline.is_open() {
                    let Some(size) = sizes.next() else { break };
                    pipeline.request(set(size), ());
                }
                let Some(batch) = pipeline.take() else { break };
                batches.push(len(&batch));
                pipeline.complete(busy(len(&batch)), |(), reply| assert!(reply.is_some()));
            }
            assert_eq!(batches, expected);
            assert!(pipeline.is_empty() && pipeline.bytes_held() == 0);
        }
    }

    #[test]
    fn local_steps_count_towards_the_limit() {
        let mut pipeline = Pipeline::default();
        pipeline.request(set(1), 0);
        for step in 1..BATCH_REQUESTS_MAX {
            assert!(pipeline.is_open());
            pipeline.local(step);
        }
        assert!(!pipeline.is_open());
        assert!(pipeline.take().is_some() && pipeline.take().is_none());
        let mut order = Vec::new();
        pipeline.complete(busy(1), |step, reply| order.push((step, reply.is_some())));
        assert_eq!(order.len(), BATCH_REQUESTS_MAX);
        assert!(
            order
                .iter()
                .enumerate()
                .all(|(at, step)| *step == (at, at == 0))
        );
    }

    #[test]
    #[should_panic(expected = "0 replies to 1 requests")]
    fn each_request_gets_a_reply() {
        let mut pipeline = Pipeline::default();
        pipeline.request(set(1), ());
        pipeline.take();
        pipeline.complete(Vec::new(), |(), _| {});
    }
}
