//! Pushes to the session of a connection.
//!
//! They are taken from the outbox while the client has read most of what was sent before, and only
//! between two replies. What is taken is output like replies, so a client that does not read is
//! dealt with in the same way, and the rest waits in the outbox.

use std::sync::Arc;

use super::Connection;
use crate::net::budget::OUTPUT_ALLOWANCE_BYTES;
use crate::net::mailbox::Mailbox;
use crate::net::outbox::Bounds;
use crate::net::pusher::{Home, Outbox, Pusher};

/// Unread output from which on no more pushes are taken. It is half of what chokes a connection
/// while the budget is crossed, so pushes alone do not keep its requests from being read.
const OUTPUT_BYTES_MAX: usize = OUTPUT_ALLOWANCE_BYTES / 2;

impl Connection {
    /// A way to push to the session, while it is found at this place of this worker.
    pub fn pusher(&mut self, mailbox: &Arc<Mailbox>, place: usize, bounds: Bounds) -> Pusher {
        let outbox = self.outbox.get_or_insert_with(|| {
            let home = Home {
                mailbox: Arc::clone(mailbox),
                place,
                accepted_at: self.accepted_at,
            };
            Outbox::new(bounds, Arc::clone(self.charge.budget()), home)
        });
        outbox.pusher()
    }

    /// Another worker owns the connection from now on, in the same place.
    pub fn moves_to(&self, mailbox: &Arc<Mailbox>) {
        if let Some(outbox) = &self.outbox {
            outbox.moves_to(Arc::clone(mailbox));
        }
    }

    /// Whether somebody has a way to push to the session.
    pub fn is_subscribed(&self) -> bool {
        self.outbox.as_ref().is_some_and(Outbox::is_subscribed)
    }

    /// Whether pushes wait that may be taken now.
    pub fn has_pushes(&mut self) -> bool {
        self.push_room() > 0
            && self
                .outbox
                .as_ref()
                .is_some_and(|outbox| !outbox.is_empty())
    }

    /// Has the session take pushes, as far as that may be now.
    pub fn take_pushes(&mut self) {
        let room = self.push_room();
        let Some(outbox) = self.outbox.as_ref().filter(|_| room > 0) else {
            return;
        };
        outbox.take(room, |push| self.session.push(push));
        if outbox.is_empty() && !outbox.is_subscribed() {
            self.outbox = None;
        }
        self.recharge();
    }

    /// Bytes of pushes that may join the output now.
    fn push_room(&mut self) -> usize {
        if self.outbox.is_none() || self.session.is_amid_reply() {
            return 0;
        }
        OUTPUT_BYTES_MAX.saturating_sub(self.session.output().len())
    }
}
