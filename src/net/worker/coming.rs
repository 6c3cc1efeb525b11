//! Connections that come to a worker, and those that give way to them.

use mio::Token;

use super::{Entry, State, Stay, Worker};
use crate::clock::Instant;
use crate::logging;
use crate::net::connection::Connection;
use crate::net::newcomer::Newcomer;
use crate::net::places::Place;

impl Worker {
    /// Takes a new connection, in the place of another one if need be.
    pub(super) fn own(&mut self, newcomer: Newcomer) {
        let place = newcomer.place;
        if let Some(instead_of) = newcomer.instead_of
            && let Err(waits_since) = self.give_way(place, instead_of)
        {
            return self.shared.give_back(newcomer, waits_since);
        }
        let kind = self.shared.places.of(place);
        let session = newcomer.session(kind);
        let Newcomer {
            stream,
            caller,
            accepted_at,
            ..
        } = newcomer;
        let charge = self.shared.budget.charge();
        let mut connection = Connection::new((stream, caller), session, charge, accepted_at);
        if let Err(error) = connection.register(self.poll.registry(), Token(place)) {
            log::debug!("a connection cannot be served: {error}");
            drop(connection);
            return self.shared.free(place);
        }
        let mut entry = Box::new(Entry {
            connection,
            state: State::Ready,
            stay: Stay::default(),
        });
        if kind != Place::Reserved {
            self.put(place, entry);
            return self.ready.push_back(place);
        }
        // It can give way at once to the next one: many come together.
        let now = self.shared.clock.now();
        match entry.connection.flush(now) {
            Ok(()) => self.rest(place, entry, now),
            Err(_) => self.close(place, *entry),
        }
    }

    /// Ends the connection in this place, if it has waited since then or longer and its client has
    /// asked for nothing. Otherwise says since when it waits, if it does.
    fn give_way(&mut self, place: usize, instead_of: Instant) -> Result<(), Option<Instant>> {
        let Some(entry) = self.entry(place) else {
            return Err(None);
        };
        let State::Idle {
            timer,
            since: Some(since),
        } = entry.state
        else {
            return Err(None);
        };
        if since > instead_of {
            return Err(Some(since));
        }
        // A client that does not take its replies is asked for no more requests: what it has sent
        // is not read, and would keep its place for it.
        if !entry.connection.has_output() && entry.connection.has_input() {
            self.wake(place);
            return Err(None);
        }
        self.leave_idle(place, timer, Some(since));
        let entry = self.entries[place].take().expect("it was looked at");
        if self.shared.places.of(place) == Place::Reserved {
            self.dismiss(*entry);
        } else if let Some(more) = logging::seldom("idle client closed") {
            log::warn!(
                "connections_max ({}) is reached: a client that was idle for {:.0?} made place for \
                 a new one{more}",
                self.shared.limits.connections_max,
                self.shared.clock.now().since(since)
            );
        }
        Ok(())
    }

    /// Tells the client of a reserved place that its time is over, in another place if one is free.
    fn dismiss(&mut self, mut entry: Entry) {
        if entry.connection.session.wants_close() {
            return;
        }
        entry.connection.session.input_timed_out();
        let Some(place) = self.shared.take_free(Place::Refusal, self.number) else {
            // What the socket does not take at once is lost.
            let _ = entry.connection.flush(self.shared.clock.now());
            return;
        };
        let registry = self.poll.registry();
        if entry.connection.register(registry, Token(place)).is_err() {
            return self.close(place, entry);
        }
        entry.state = State::Ready;
        self.put(place, Box::new(entry));
        self.ready.push_back(place);
    }
}
