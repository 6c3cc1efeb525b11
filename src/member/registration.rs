//! Keeps this member known to one leader address: dials it, registers, sends a heartbeat each
//! second, and begins again when the link is lost. One `beat-N` thread each, so that a silent
//! leader holds up no other.
//!
//! A leader that is not the active one refuses the registration; it is tried again before long, so
//! that the member is registered wherever the active leader turns up. A refusal that says that this
//! data directory is a rolled back or cloned one ends the process: serving on would count copies
//! that are not there.
//!
//! When another member id has this member's name, the process waits: it says what to do and tries
//! again each second, so that it goes on as soon as the other one's data directory is given up, or
//! its own start was a mistake that is undone. One that hears from a heartbeat that its id was
//! retired says so and registers again, which leads to the same wait.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::RwLock;

use crate::clock::Clock;
use crate::disk::fs::FileSystem;
use crate::ids::Fence;
use crate::member::identity;
use crate::member::witness::Witness;
use crate::rpc::LocalIdentity;
use crate::rpc::greeting::{Expected, GreetingError};
use crate::rpc::link::{CallError, Link};
use crate::rpc::message::{
    HeartbeatRequest, Refusal, RegisterRequest, Request, Response, Role, Seen,
};
use crate::rpc::tls::TlsContext;
use crate::storage::Reader;
use crate::threads::StopSignal;

/// Between two heartbeats. Leaders call a member *down* in their status after three without one.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);

/// Between two attempts to register with a leader that is not the active one, or not yet: how long
/// a cluster that starts waits for its members, at most.
const REGISTER_INTERVAL: Duration = Duration::from_millis(250);

/// How often the wait for the next heartbeat looks whether the link is still open: how long a
/// restarted leader goes without this member, at most, beside [`RETRY_INTERVAL`].
const LINK_CHECK_INTERVAL: Duration = Duration::from_millis(200);

/// Between two attempts to reach a leader.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// How long a call may take; a registration is committed by the leader group meanwhile. Shorter
/// than the time that an orderly stop allows.
const CALL_TIMEOUT: Duration = Duration::from_secs(3);

/// The body of a `beat-N` thread; a clone for each.
#[derive(Clone)]
pub struct Registration {
    /// What this member says in its Hello.
    pub identity: LocalIdentity,
    /// Where leaders reach this member's RPC, `host:port`.
    pub address: String,
    /// Its placement zone, empty for none.
    pub zone: String,
    /// The name may be taken from an id that holds messages.
    pub replace: bool,
    /// Records that were acknowledged may be lost: the directory has a note of it.
    pub incomplete: Arc<AtomicBool>,
    /// Our certificate.
    pub tls: Arc<TlsContext>,
    /// For deadlines.
    pub clock: Arc<dyn Clock>,
    /// Where the counters come from.
    pub reader: Arc<dyn Reader>,
    /// The highest fence executed, as the append thread shares it.
    pub fence: Arc<RwLock<Fence>>,
    /// What leaders said is committed.
    pub witness: Arc<Witness>,
    /// The disk whose free space is told, and a directory on it.
    pub disk: (Arc<dyn FileSystem>, PathBuf),
    /// Ends the thread.
    pub stop: StopSignal,
}

/// How the log line begins that tells what somebody must do before this member takes part;
/// `tolerex up` shows such lines.
pub const WAITING: &str = "waiting for a decision: ";

/// Why a link to a leader ended.
enum End {
    /// This member may not serve any more.
    Rejected(Refusal),
    /// To be tried again.
    Lost(String),
}

impl Registration {
    /// Keeps registered with `leader`, `host:port`, until the stop signal; an error is a refusal
    /// after which the member must exit.
    pub fn run(&self, leader: &str) -> Result<(), Refusal> {
        // What was logged last, so that a leader that stays away does not fill the log.
        let mut reported = String::new();
        while !self.stop.is_stopped() {
            match self.serve_link(leader, &mut reported) {
                Ok(()) => break,
                Err(End::Rejected(refusal)) => {
                    if let Refusal::StaleIncarnation { .. } = refusal {
                        self.take_back_incarnation();
                    }
                    return Err(refusal);
                }
                Err(End::Lost(reason)) => {
                    if reason != reported {
                        log::warn!("leader {leader}: {reason}");
                    }
                    reported = reason;
                }
            }
            self.stop.wait_timeout(RETRY_INTERVAL);
        }
        Ok(())
    }

    /// What was lost is not listed by the metadata any more: nobody has to be told of it again.
    fn forget_losses(&self) {
        if !self.incomplete.swap(false, Ordering::AcqRel) {
            return;
        }
        let (fs, dir) = &self.disk;
        match identity::forget_losses(fs.as_ref(), dir) {
            Ok(()) => log::info!("all copies that leaders list for this member are here"),
            Err(error) => {
                // The next heartbeat tries again.
                self.incomplete.store(true, Ordering::Release);
                log::warn!("the note of losses stays in {}: {error}", dir.display());
            }
        }
    }

    fn take_back_incarnation(&self) {
        let (fs, dir) = &self.disk;
        let incarnation = self.identity.incarnation;
        if let Err(error) = identity::take_back(fs.as_ref(), dir, incarnation) {
            log::error!("the next start may be accepted with old data: {error}");
        }
    }

    /// Dials and stays on the link as long as it lasts; `Ok` on the stop signal.
    fn serve_link(&self, leader: &str, reported: &mut String) -> Result<(), End> {
        let expected = Expected {
            role: Role::Leader,
            name: None,
            node_id: None,
        };
        let clock = Arc::clone(&self.clock);
        let link = Link::dial(leader, &expected, &self.tls, &self.identity, 0, clock)?;
        let mut registered = false;
        while !self.stop.is_stopped() {
            if !registered {
                match self.call(&link, Request::Register(self.registration()))? {
                    Ok(()) => {
                        let name = &link.peer().name;
                        log::info!("registered with leader {name} ({leader})");
                        reported.clear();
                        registered = true;
                    }
                    Err(refusal @ Refusal::NameHeld { .. }) => {
                        let reason = format!("{WAITING}{refusal}");
                        if reason != *reported {
                            log::warn!("{reason}");
                        }
                        *reported = reason;
                        self.wait(&link, HEARTBEAT_INTERVAL);
                        continue;
                    }
                    Err(refusal @ Refusal::Retired(_)) => return Err(End::Rejected(refusal)),
                    Err(_) => {}
                }
            }
            match self.call(&link, Request::Heartbeat(self.counters()))? {
                Ok(()) => {}
                Err(refusal) => {
                    if let Refusal::Retired(_) = refusal {
                        log::error!("{refusal}: its name came with another id, it is retired");
                    }
                    // Not the active leader: it may have to be told who we are later.
                    registered = false;
                }
            }
            let interval = match registered {
                true => HEARTBEAT_INTERVAL,
                false => REGISTER_INTERVAL,
            };
            self.wait(&link, interval);
        }
        Ok(())
    }

    /// Whether the call was accepted, or a refusal after which the link is still of use; a leader
    /// that is not the active one refuses.
    fn call(&self, link: &Link, request: Request) -> Result<Result<(), Refusal>, End> {
        let deadline = self.clock.now() + CALL_TIMEOUT;
        match link.call_wait(0, request, deadline)? {
            Response::Register => Ok(Ok(())),
            Response::Heartbeat(answer) => {
                self.witness.told(answer.committed, self.clock.now());
                if answer.has_all {
                    self.forget_losses();
                }
                Ok(Ok(()))
            }
            Response::Refused(
                refusal @ (Refusal::NotLeader
                | Refusal::Busy
                | Refusal::NameHeld { .. }
                | Refusal::Retired(_)),
            ) => Ok(Err(refusal)),
            Response::Refused(refusal) => Err(End::from(refusal)),
            Response::Store(_)
            | Response::Fetch(_)
            | Response::Holds(_)
            | Response::Release
            | Response::Snapshot
            | Response::Join(_)
            | Response::Forward(_)
            | Response::Standing(_) => Err(End::Lost(
                "answers something else than was asked".to_owned(),
            )),
        }
    }

    fn registration(&self) -> RegisterRequest {
        RegisterRequest {
            address: self.address.clone(),
            zone: self.zone.clone(),
            seen: self.seen(),
            replace: self.replace,
            incomplete: self.incomplete.load(Ordering::Acquire),
            records: Some(self.reader.counters().records),
        }
    }

    fn seen(&self) -> Seen {
        Seen {
            fence: *self.fence.read(),
            revision: self.reader.highest(),
            committed: self.witness.committed(),
        }
    }

    fn counters(&self) -> HeartbeatRequest {
        let counters = self.reader.counters();
        let (fs, dir) = &self.disk;
        let free = fs.free_space(dir).unwrap_or_else(|error| {
            log::warn!("free space of {} is not known: {error}", dir.display());
            0
        });
        HeartbeatRequest {
            records: counters.records,
            bytes: counters.bytes,
            free,
            seen: self.seen(),
        }
    }

    /// Waits so long, or until the link is closed or the stop signal set.
    fn wait(&self, link: &Link, interval: Duration) {
        let until = self.clock.now() + interval;
        while link.is_open() && self.clock.now() < until {
            if self.stop.wait_timeout(LINK_CHECK_INTERVAL) {
                return;
            }
        }
    }
}

impl From<Refusal> for End {
    fn from(refusal: Refusal) -> End {
        match refusal {
            Refusal::StaleIncarnation { .. } | Refusal::Retired(_) => End::Rejected(refusal),
            Refusal::StaleFence { .. }
            | Refusal::NotLeader
            | Refusal::Busy
            | Refusal::NoSpace
            | Refusal::NameHeld { .. }
            | Refusal::Other(_) => End::Lost(refusal.to_string()),
        }
    }
}

impl From<CallError> for End {
    fn from(error: CallError) -> End {
        End::Lost(error.to_string())
    }
}

impl From<GreetingError> for End {
    fn from(error: GreetingError) -> End {
        match error {
            GreetingError::Refused(refusal) => End::from(refusal),
            GreetingError::Address { .. }
            | GreetingError::Io(_)
            | GreetingError::TimedOut
            | GreetingError::Tls(_)
            | GreetingError::Protocol(_)
            | GreetingError::WrongPeer(_) => End::Lost(error.to_string()),
        }
    }
}
