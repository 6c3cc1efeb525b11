//! What becomes of a leader's call: stores and releases go to the append thread, fetches to the
//! readers, through bounded queues; a full one refuses the call as busy. A fetch of records that
//! the system has in memory is answered at once: the way to a reader and back costs more. Large
//! fetches, which come on a link of their own, have a queue and a reader of their own: small ones
//! do not wait for them.
//!
//! Calls arrive on their connection's thread in the order in which the leader sent them, and enter
//! the append queue in that order. Those of one read are executed together; where they are few, by
//! the thread that read them (see `append/queue.rs`). Roles were checked by the RPC server.

use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};
use parking_lot::RwLock;

use crate::ids::{CallId, Fence};
use crate::logging;
use crate::member::append::{AppendQueue, Job, Operation};
use crate::replica::core::{fetch, fetch_at_hand, holds};
use crate::rpc::PeerInfo;
use crate::rpc::frame::FRAME_BYTES_MAX;
use crate::rpc::message::{
    FetchRequest, FetchResult, HoldsRequest, Purpose, Refusal, Request, Response, Role,
};
use crate::rpc::server::{CallInfo, Responder, Service};
use crate::storage::Reader;
use crate::storage::compaction::Step;
use crate::threads::pace::Pace;

/// Bytes of the records in the answer to one fetch. At twice of it the answer would not fit a
/// frame, at a fraction reading many large messages takes more calls.
const FETCH_ANSWER_BYTES_MAX: usize = FRAME_BYTES_MAX - (1 << 20);

/// A link's thread answers a fetch of at most so many records itself. The stores that arrive behind
/// the fetch wait meanwhile, for less than a millisecond. With a limit of 128 the fetches of a deep
/// pipeline would go through the queue of the reader threads instead.
const AT_HAND_RECORDS_MAX: usize = 512;

/// The most payload bytes of such a fetch, for the same reasons.
const AT_HAND_BYTES_MAX: usize = 256 << 10;

/// The member's side of its leaders' calls.
pub struct Handler {
    appends: AppendQueue,
    reader: Arc<dyn Reader>,
    /// The highest durable fence, written by the append thread.
    fence: Arc<RwLock<Fence>>,
    /// None once closed. Guards only itself; a send into a queue never blocks.
    fetches: RwLock<Option<Queues>>,
}

/// Where fetches wait for readers.
struct Queues {
    small: Sender<Fetch>,
    large: Sender<Fetch>,
}

/// What readers answer.
enum Query {
    Fetch(FetchRequest),
    Holds(HoldsRequest),
}

/// A query that waits for a reader.
struct Fetch {
    query: Query,
    call: CallId,
    from: Arc<str>,
    responder: Responder,
}

impl Handler {
    /// A handler, the body that its reader threads share, and that of the reader of large fetches.
    pub fn new(
        appends: AppendQueue,
        reader: Arc<dyn Reader>,
        fence: Arc<RwLock<Fence>>,
        read_queue_requests: usize,
    ) -> (Handler, FetchWorker, FetchWorker) {
        let (small, receiver) = crossbeam_channel::bounded(read_queue_requests);
        let (large, large_receiver) = crossbeam_channel::bounded(read_queue_requests);
        let handler = Handler {
            appends,
            reader: Arc::clone(&reader),
            fence: Arc::clone(&fence),
            fetches: RwLock::new(Some(Queues { small, large })),
        };
        let worker = FetchWorker {
            receiver,
            reader,
            fence,
        };
        let large_worker = FetchWorker {
            receiver: large_receiver,
            ..worker.clone()
        };
        (handler, worker, large_worker)
    }

    /// Has the append thread do a step of compaction; see [`AppendQueue::compact`].
    pub fn compact(&self, step: Step) -> bool {
        self.appends.compact(step)
    }

    /// Takes no more calls; what was taken is still executed, then the threads behind end.
    pub fn close(&self) {
        self.appends.close();
        *self.fetches.write() = None;
    }

    fn append(&self, operation: Operation, call: CallInfo, from: Arc<str>, responder: Responder) {
        let job = Job {
            operation,
            call: call.id,
            from,
            bytes: call.bytes,
            answer: Box::new(move |response| responder.send(response)),
        };
        if let Err(job) = self.appends.add(job) {
            log::debug!("call={} from={}: append queue full", job.call, job.from);
            (job.answer)(Response::Refused(Refusal::Busy));
        }
    }

    /// The answer to a fetch of a few records, all of them in memory.
    fn at_hand(&self, request: &FetchRequest) -> Option<Response> {
        if request.revisions.len() > AT_HAND_RECORDS_MAX {
            return None;
        }
        let highest = *self.fence.read();
        fetch_at_hand(&*self.reader, highest, request, AT_HAND_BYTES_MAX)
    }

    fn read(
        &self,
        query: Query,
        call: CallInfo,
        (from, purpose): (Arc<str>, Purpose),
        responder: Responder,
    ) {
        let fetch = Fetch {
            query,
            call: call.id,
            from,
            responder,
        };
        let refused = match self.fetches.read().as_ref() {
            Some(queues) => {
                let queue = match purpose {
                    Purpose::All => &queues.small,
                    Purpose::Fetches => &queues.large,
                };
                queue.try_send(fetch).map_err(|error| error.into_inner())
            }
            None => Err(fetch),
        };
        if let Err(fetch) = refused {
            log::debug!("call={} from={}: read queue full", fetch.call, fetch.from);
            let busy = Response::Refused(Refusal::Busy);
            fetch.responder.send(busy);
        }
    }
}

impl Service for Handler {
    fn admits(&self, peer: &PeerInfo) -> Result<(), Refusal> {
        match peer.role {
            Role::Leader => Ok(()),
            Role::Member | Role::Client => {
                Err(Refusal::Other("only leaders connect here".to_owned()))
            }
        }
    }

    fn connected(&self, peer: &PeerInfo) -> Result<(), Refusal> {
        log::info!("{peer} connected, link={}", peer.link);
        Ok(())
    }

    fn handle(&self, peer: &PeerInfo, call: CallInfo, request: Request, responder: Responder) {
        let from: Arc<str> = peer.name.as_str().into();
        match request {
            Request::Store(request) => {
                self.append(Operation::Store(request), call, from, responder);
            }
            Request::Release(request) => {
                self.append(Operation::Release(request), call, from, responder);
            }
            Request::Fetch(request) => {
                if peer.purpose == Purpose::All {
                    self.appends.note_fetch();
                    if let Some(response) = self.at_hand(&request) {
                        let (records, call) = (request.revisions.len(), call.id);
                        log::debug!("call={call} from={from} fetch records={records} at hand");
                        return responder.send(response);
                    }
                }
                let query = Query::Fetch(request);
                self.read(query, call, (from, peer.purpose), responder);
            }
            Request::Holds(request) => {
                let query = Query::Holds(request);
                self.read(query, call, (from, peer.purpose), responder);
            }
            Request::Register(_) | Request::Heartbeat(_) => {
                let reason = "a member takes no registrations".to_owned();
                responder.send(Response::Refused(Refusal::Other(reason)));
            }
            Request::Raft(_)
            | Request::Snapshot(_)
            | Request::Join(_)
            | Request::Forward(_)
            | Request::Standing => {
                let reason = "a member is no peer of leaders".to_owned();
                responder.send(Response::Refused(Refusal::Other(reason)));
            }
        }
    }

    fn read_ended(&self, _peer: &PeerInfo) {
        self.appends.execute();
    }

    fn disconnected(&self, peer: &PeerInfo) {
        log::info!("{peer} disconnected, link={}", peer.link);
    }
}

/// The body of a reader thread; clones share the queue.
#[derive(Clone)]
pub struct FetchWorker {
    receiver: Receiver<Fetch>,
    reader: Arc<dyn Reader>,
    /// The highest durable fence, written by the append thread.
    fence: Arc<RwLock<Fence>>,
}

impl FetchWorker {
    /// Answers fetches until the queue is closed and empty.
    pub fn run(self, mut pace: Option<Pace>) {
        for fetch in &self.receiver {
            self.answer(fetch);
            pace.iter_mut().for_each(Pace::rest);
        }
    }

    /// For whoever steps it by hand: answers one that waits; false if none does.
    pub fn step(&self) -> bool {
        let waiting = self.receiver.try_recv();
        waiting.is_ok_and(|fetch| {
            self.answer(fetch);
            true
        })
    }

    fn answer(&self, waiting: Fetch) {
        let Fetch {
            query,
            call,
            from,
            responder,
        } = waiting;
        let highest = *self.fence.read();
        let request = match query {
            Query::Fetch(request) => request,
            Query::Holds(request) => {
                let response = holds(self.reader.as_ref(), highest, &request);
                log::debug!(
                    "call={call} from={from} holds records={}",
                    request.revisions.len()
                );
                return responder.send(response);
            }
        };
        let damaged = |revision, error| {
            if let Some(more) = logging::seldom("damaged copy") {
                log::error!(
                    "call={call} from={from}: revision {revision} is damaged: {error}{more}"
                );
            }
        };
        let reader = self.reader.as_ref();
        let response = fetch(reader, highest, &request, FETCH_ANSWER_BYTES_MAX, damaged);
        let (records, Fence { term, link }) = (request.revisions.len(), request.fence);
        match &response {
            Response::Fetch(results) => {
                let found = |result: &&FetchResult| matches!(result, FetchResult::Found { .. });
                let found = results.iter().filter(found).count();
                log::debug!(
                    "call={call} from={from} fetch records={records} found={found} \
                     term={term} link={link}"
                );
            }
            Response::Refused(refusal) => {
                if let Some(more) = logging::seldom("fetch refused") {
                    log::warn!(
                        "call={call} from={from} term={term} link={link}: refused: {refusal}{more}"
                    );
                }
            }
            Response::Store(_)
            | Response::Release
            | Response::Holds(_)
            | Response::Register
            | Response::Heartbeat(_)
            | Response::Snapshot
            | Response::Join(_)
            | Response::Forward(_)
            | Response::Standing(_) => {
                unreachable!("a fetch is answered as one")
            }
        }
        responder.send(response);
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::path::PathBuf;

    use bytes::Bytes;

    use super::*;
    use crate::clock::ManualClock;
    use crate::disk::mem::MemFileSystem;
    use crate::ids::{Key, Revision};
    use crate::member::append::Appender;
    use crate::storage::Engine;
    use crate::storage::model::ModelEngine;

    /// Nothing runs but what the test calls: neither the append thread nor readers.
    #[test]
    fn a_fetch_is_answered_by_the_thread_that_read_it_if_its_records_are_in_memory() {
        let mut engine = ModelEngine::default();
        let revision = Revision::from_u64(7);
        engine
            .store(revision, &Key::Id(1), &Bytes::from_static(b"x"))
            .unwrap();
        engine.commit().unwrap();
        let (reader, fence) = (engine.reader(), Fence { term: 1, link: 1 });
        let (appender, queue) = Appender::new(
            Box::new(engine),
            fence,
            (Arc::new(MemFileSystem::new()), PathBuf::from("fence")),
            Arc::new(ManualClock::default()),
            (8, 1 << 20),
        );
        let (handler, small, _large) = Handler::new(queue, reader, appender.shared_fence(), 8);
        let peer = PeerInfo {
            connection: 1,
            address: SocketAddr::from(([127, 0, 0, 1], 1)),
            name: "leader-1".to_owned(),
            node_id: 1,
            incarnation: 1,
            nonce: 1,
            link: 1,
            role: Role::Leader,
            purpose: Purpose::All,
            separates_fetches: false,
        };
        let (sender, answers) = crossbeam_channel::bounded(1);
        let ask = |revisions: Vec<Revision>| {
            let (id, sender) = (CallId(1), sender.clone());
            let responder = Responder::calling(id, move |answer| _ = sender.send(answer));
            let call = CallInfo {
                id,
                term: 1,
                bytes: 10,
            };
            let request = Request::Fetch(FetchRequest { fence, revisions });
            handler.handle(&peer, call, request, responder);
            answers.try_recv().ok()
        };
        let (key, payload) = (Key::Id(1), Bytes::from_static(b"x"));
        let found = vec![FetchResult::Found { key, payload }];
        assert_eq!(ask(vec![revision]), Some(Response::Fetch(found)));
        assert_eq!(ask(vec![Revision::from_u64(8)]), None, "a reader says so");
        assert!(small.step());
        let missing = Response::Fetch(vec![FetchResult::Missing]);
        assert_eq!(answers.try_recv(), Ok(missing));
        handler.close();
    }
}
