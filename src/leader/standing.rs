//! Whether this leader takes part still, asked of the active leader.
//!
//! One that was removed while it was away is not told by Raft: nobody sends it anything more, and
//! it goes on asking for votes that it does not get. So a leader without a leader asks the others
//! now and then. Only the active one answers, which has applied every change of the group: as long
//! as it does not know the asking one, that was removed, for a leader takes part from the moment at
//! which the active one applied that. What is told is for people and clients: the log and `STATUS`
//! say it, and clients are sent to the leader that answered. It changes nothing in Raft, and ends
//! when this leader hears of a leader by Raft again.

use std::sync::Arc;
use std::time::Duration;

use log::{debug, info, warn};
use parking_lot::Mutex;

use crate::clock::Instant;
use crate::leader::state::Shared;
use crate::rpc::message::{Request, Response, StandingAnswer};

/// How often the others are asked: an election in good order is over by then.
const ASK_INTERVAL: Duration = Duration::from_secs(1);

/// What the active leader has said, if it was that this one takes no part.
#[derive(Default)]
pub struct Removal {
    /// Where clients reach it, and where over HTTP, if they do.
    leader: Mutex<Option<(String, String)>>,
}

impl Removal {
    /// Where clients reach the group that this leader was removed from; `None` if it takes part, as
    /// far as it knows.
    pub fn leader(&self) -> Option<String> {
        self.leader
            .lock()
            .as_ref()
            .map(|(client, _)| client.clone())
    }

    /// The same over HTTP; empty if it does not serve that.
    pub fn leader_http(&self) -> Option<String> {
        self.leader.lock().as_ref().map(|(_, http)| http.clone())
    }

    fn told(&self, answer: StandingAnswer) {
        let leader = (!answer.takes_part).then_some((answer.client, answer.http));
        let before = std::mem::replace(&mut *self.leader.lock(), leader.clone());
        match (before, leader) {
            (None, Some((leader, _))) => warn!(
                "this leader was removed from its group, whose active leader serves clients at \
                 {leader}: stop it; to add it again, empty its directory, start it with --join, \
                 and GROUP ADD it"
            ),
            (Some(_), None) => info!("this leader takes part again"),
            (None, None) | (Some(_), Some(_)) => {}
        }
    }
}

/// Asks from time to time, on the thread `house`.
#[derive(Default)]
pub struct Inquirer {
    /// When to ask next; `None` while there is a leader.
    next: Option<Instant>,
}

impl Inquirer {
    /// Asks if it is time to.
    pub fn round(&mut self, shared: &Arc<Shared>) {
        let peers = &shared.view.peers;
        let (Some(own), configuration) = (peers.own_id(), shared.group.configuration()) else {
            return;
        };
        let all = configuration.peers();
        let takes_part = all.contains(&own);
        let waits_to_be_added = all.is_empty();
        if waits_to_be_added || (takes_part && shared.group.status().leader.is_some()) {
            self.next = None;
            if shared.removal.leader().is_some() {
                shared.removal.told(StandingAnswer {
                    takes_part: true,
                    client: String::new(),
                    http: String::new(),
                });
            }
            return;
        }
        let now = shared.clock.now();
        if now < *self.next.get_or_insert(now + ASK_INTERVAL) {
            return;
        }
        self.next = Some(now + ASK_INTERVAL);
        for link in all.iter().filter_map(|peer| peers.link(*peer)) {
            let answered = Arc::clone(shared);
            let completion = move |result| match result {
                Ok(Response::Standing(answer)) => answered.removal.told(answer),
                // Not the active one, or not there.
                other => debug!("asked whether this leader takes part: {other:?}"),
            };
            let deadline = now + ASK_INTERVAL;
            if let Err(error) = link.call(0, Request::Standing, deadline, Box::new(completion)) {
                debug!("not asked whether this leader takes part: {error}");
            }
        }
    }
}
