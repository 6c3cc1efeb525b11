//! The one place through which each batch of a client passes, whatever its protocol, before small
//! writes of several connections become one batch.

use super::Connection;
use crate::clock::Instant;
use crate::protocol::admission::{Admission, Offered};
use crate::protocol::reply::Reply;
use crate::protocol::request::Batch;

impl Connection {
    /// Has a batch that the session offers permitted, and returns it. A batch that is refused is
    /// answered instead.
    pub fn permit(
        &mut self,
        batch: Batch,
        admission: &dyn Admission,
        now: Instant,
    ) -> Option<Batch> {
        self.offered = Some(Offered::new(&batch, now));
        let failure = match admission.permit(&self.caller, &batch) {
            Ok(()) => return Some(batch),
            Err(failure) => failure,
        };
        let replies = vec![Reply::Failed(failure); batch.reply_count()];
        self.count(&replies, admission, now);
        self.complete(replies, None);
        None
    }

    /// Counts the batch that has these replies.
    pub fn count(&mut self, replies: &[Reply], admission: &dyn Admission, now: Instant) {
        let offered = self.offered.take().expect("it was offered");
        admission.count(&self.caller, &offered, replies, now);
    }
}
