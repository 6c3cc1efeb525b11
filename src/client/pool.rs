//! Connections that wait for the next call.
//!
//! Holds up to `idle_max` of them, to whichever leaders answered; when it is full the one that has
//! waited longest goes. Those in use are not counted: a call takes one out and gives it back.

use std::collections::VecDeque;

use parking_lot::Mutex;

use super::connection::Connection;

pub(super) struct Pool {
    /// With the address of each, the one that came last at the end. Guards only itself, and
    /// nothing slow is done under it.
    idle: Mutex<VecDeque<(String, Connection)>>,
    idle_max: usize,
}

impl Pool {
    pub fn new(idle_max: usize) -> Pool {
        Pool {
            idle: Mutex::default(),
            idle_max,
        }
    }

    /// A connection to this address that the server has not closed meanwhile: what is sent on one
    /// that it has closed is lost.
    pub fn take(&self, address: &str) -> Option<Connection> {
        loop {
            let (_, connection) = {
                let mut idle = self.idle.lock();
                let place = idle.iter().rposition(|(to, _)| to == address)?;
                idle.remove(place)?
            };
            if connection.is_quiet() {
                return Some(connection);
            }
        }
    }

    /// Keeps a connection on which every reply was taken.
    pub fn put(&self, address: String, connection: Connection) {
        let mut dropped = Vec::new();
        let mut idle = self.idle.lock();
        idle.push_back((address, connection));
        while idle.len() > self.idle_max {
            dropped.extend(idle.pop_front());
        }
        // They are closed when the lock is let go.
        drop(idle);
    }
}
