//! What the leader does with a client's batch: a run of the coordinator, or an answer at once.

use std::sync::Arc;

use log::debug;

use crate::coordinator::Coordinator;
use crate::error::Failure;
use crate::ids::Key;
use crate::leader::drive::Run;
use crate::leader::state::Shared;
use crate::leader::status;
use crate::net::{Handler, Progress};
use crate::protocol::reply::Reply;
use crate::protocol::request::{Batch, Write};

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
        let requests = batch.reply_count();
        let failed = |failure| Progress::Done(vec![Reply::Failed(failure); requests]);
        // A follower answers at once, without waiting for an election.
        let leader = None;
        let Some(term) = self.shared.serving_term() else {
            return failed(Failure::NotLeader { leader });
        };
        let Some(tolerance) = self.shared.view.metadata.tolerance() else {
            return failed(Failure::Busy);
        };
        let number = self.shared.next_batch();
        debug!("batch {number}: {}", describe(&batch));
        let needed = Coordinator::revisions_needed(&batch);
        let Some(revisions) = self.shared.view.allot(term, needed) else {
            return failed(Failure::NotLeader { leader });
        };
        let coordinator = Coordinator::new(batch, revisions, tolerance, self.shared.limits)
            .expect("only a status needs no coordinator");
        Run::new(self.shared.clone(), coordinator, number, term).go_on(may_wait)
    }
}

/// A batch in a line of the log: what it is, and the first key by which to find it.
fn describe(batch: &Batch) -> String {
    let first = |write: &Write| match write {
        Write::Set { key, .. } => format!("SET {key}"),
        Write::Delete { key, .. } => format!("DEL {key}"),
    };
    match batch {
        Batch::Writes(writes) => {
            let first = writes.first().map(first).unwrap_or_default();
            format!("{} writes from {first}", writes.len())
        }
        Batch::Reads(keys) => {
            let first = keys.first().map(Key::to_string).unwrap_or_default();
            format!("{} reads from GET {first}", keys.len())
        }
        Batch::Bulk { count, payload, .. } => format!("{count} SET of {} bytes", payload.len()),
        Batch::Where(key) => format!("WHERE {key}"),
        Batch::Count => "COUNT".to_owned(),
        Batch::Status => "STATUS".to_owned(),
    }
}
