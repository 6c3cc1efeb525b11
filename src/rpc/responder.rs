//! The right and duty to answer one call. The answer is encoded by the thread that sends it.

use std::sync::Arc;

use crate::ids::CallId;
use crate::logging;
use crate::protocol::reply::Reply;
use crate::rpc::connection::{SendError, Sender};
use crate::rpc::envelope::{self, Body, Envelope};
use crate::rpc::message::{Refusal, Response};

/// Answers one call, from any thread. Dropped without an answer, it refuses the call. That of a
/// one-way request answers nothing, whatever it is told.
pub struct Responder {
    /// `None` after the answer, and when there is none to give.
    way: Option<Way>,
    call: CallId,
}

/// Where an answer goes.
enum Way {
    /// To the other end of a connection.
    Connection(Arc<Sender>),
    /// To whoever made the call by hand.
    Callback(Box<dyn FnOnce(Response) + Send>),
}

impl Responder {
    pub(crate) fn new(sender: Arc<Sender>, call: CallId) -> Responder {
        Responder {
            way: Some(Way::Connection(sender)),
            call,
        }
    }

    /// The responder of a call that came over no connection.
    pub fn calling(call: CallId, callback: impl FnOnce(Response) + Send + 'static) -> Responder {
        Responder {
            way: Some(Way::Callback(Box::new(callback))),
            call,
        }
    }

    /// The responder of a one-way request.
    pub(crate) fn silent() -> Responder {
        Responder {
            way: None,
            call: CallId(0),
        }
    }

    /// Queues the answer; never blocks for I/O. With the connection gone, the answer is dropped;
    /// with its out queue full, a fetched or forwarded answer is replaced by a small refusal. If
    /// there is no room for small answers either, the connection is closed: a peer that reads does
    /// not have so many calls without an answer.
    pub fn send(mut self, response: Response) {
        self.answer(response);
    }

    fn answer(&mut self, response: Response) {
        let sender = match self.way.take() {
            Some(Way::Connection(sender)) => sender,
            Some(Way::Callback(callback)) => return callback(response),
            None => return,
        };
        let call = self.call;
        let answer = |response| {
            let body = Body::Response(response);
            envelope::encode(Envelope {
                call,
                term: 0,
                body,
            })
        };
        let refusal = without_room(&response);
        let frame = answer(response).or_else(|error| {
            log::error!("call {call} of {}: answer: {error}", sender.peer);
            answer(Response::Refused(Refusal::Other(format!(
                "answer: {error}"
            ))))
        });
        let Ok(frame) = frame else {
            unreachable!("a refusal is small");
        };
        log::debug!("call {call} of {}: {} bytes back", sender.peer, frame.len());
        let sent = match (sender.answer(frame), refusal) {
            (Err(SendError::Busy), Some(refusal)) => {
                log::debug!("call {call} of {}: no room for the answer", sender.peer);
                match answer(Response::Refused(refusal)) {
                    Ok(frame) => sender.answer(frame),
                    Err(_) => unreachable!("a refusal is small"),
                }
            }
            (sent, _) => sent,
        };
        match sent {
            Ok(()) | Err(SendError::Closed(_)) => (),
            Err(SendError::Busy) => {
                if let Some(more) = logging::seldom("rpc answers not read") {
                    log::warn!(
                        "closing the link with {}: it does not read{more}",
                        sender.peer
                    );
                }
                sender.close("the peer does not read its answers");
            }
        }
    }
}

/// What stands in for an answer for which the out queue has no room, if something can: the caller
/// asks another one, or is told that it does not know. What was stored must not be called refused.
fn without_room(response: &Response) -> Option<Refusal> {
    let is_read = |reply: &Reply| matches!(reply, Reply::Value { .. } | Reply::NotFound);
    match response {
        Response::Fetch(_) | Response::Holds(_) => Some(Refusal::Busy),
        Response::Forward(replies) if replies.iter().all(is_read) => Some(Refusal::Busy),
        Response::Forward(_) => Some(Refusal::Other("no room for the answer".to_owned())),
        Response::Store(_) | Response::Release | Response::Register => None,
        Response::Heartbeat(_) => None,
        Response::Snapshot | Response::Join(_) | Response::Standing(_) => None,
        Response::Refused(_) => None,
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.answer(Response::Refused(Refusal::Other("not handled".to_owned())));
    }
}
