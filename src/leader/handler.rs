//! What the leader does with a client's batch: a run of the coordinator, or an answer at once.

use std::sync::Arc;

use crate::coordinator::Coordinator;
use crate::error::Failure;
use crate::leader::drive::Run;
use crate::leader::state::Shared;
use crate::leader::status;
use crate::net::{Handler, Progress};
use crate::protocol::reply::Reply;
use crate::protocol::request::Batch;

/// Executes the batches of clients.
pub struct ClientHandler {
    shared: Arc<Shared>,
}

impl ClientHandler {
    /// For all connections.
    pub fn new(shared: Arc<Shared>) -> ClientHandler {
        ClientHandler { shared }
    }
}

impl Handler for ClientHandler {
    fn begin(&self, batch: Batch, may_wait: bool) -> Progress {
        if batch == Batch::Status {
            let status = status::cluster_status(&self.shared);
            return Progress::Done(vec![Reply::Status(Box::new(status))]);
        }
        let requests = replies_of(&batch);
        let failed = |failure| Progress::Done(vec![Reply::Failed(failure); requests]);
        // A follower answers at once, without waiting for an election.
        let leader = None;
        let Some(term) = self.shared.serving_term() else {
            return failed(Failure::NotLeader { leader });
        };
        let Some(tolerance) = self.shared.view.metadata.tolerance() else {
            return failed(Failure::Busy);
        };
        let needed = Coordinator::revisions_needed(&batch);
        let Some(revisions) = self.shared.view.allot(term, needed) else {
            return failed(Failure::NotLeader { leader });
        };
        let coordinator = Coordinator::new(batch, revisions, tolerance, self.shared.limits)
            .expect("only a status needs no coordinator");
        let number = self.shared.next_batch();
        Run::new(self.shared.clone(), coordinator, number, term).go_on(may_wait)
    }
}

/// How many replies a batch gets.
fn replies_of(batch: &Batch) -> usize {
    match batch {
        Batch::Writes(writes) => writes.len(),
        Batch::Reads(keys) => keys.len(),
        Batch::Bulk { .. } | Batch::Where(_) | Batch::Count | Batch::Status => 1,
    }
}
