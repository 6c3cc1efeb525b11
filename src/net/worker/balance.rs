//! Moves connections from a worker that has much to do to one that has little.
//!
//! New connections are dealt out by number, but all busy ones may be with one worker. So each
//! worker measures its load and reports it ([`loads`](crate::net::loads)). If it is to hand over
//! some of the connections that it serves, these are the next ones that are between two requests.
//! A connection that has moved stays where it is for [`STAY_WINDOWS`].

use std::time::Duration;

use super::{Entry, State, Worker};
use crate::clock::Instant;
use crate::net::loads::{FULL, Surplus, WINDOW, Window};

/// For how many windows a connection stays with the worker that it has moved to: a second at least.
/// So moving costs little however the loads change, and a connection has an effect where it is
/// before it moves again.
const STAY_WINDOWS: u64 = 10;

/// What a worker knows of its load.
#[derive(Debug, Default)]
pub(super) struct Balance {
    /// The number of the window, from 1 on.
    window: u64,
    /// When the window began.
    began: Instant,
    /// How long the worker has waited in the window.
    waited: Duration,
    /// Connections served in the window.
    served: usize,
    /// Connections that are still to be handed over in the window.
    surplus: Option<Surplus>,
}

/// What a worker notes of one of its connections.
#[derive(Debug, Default)]
pub(super) struct Stay {
    /// The number of the window in which the connection was served last.
    served_in: u64,
    /// The number of the first window in which it may be handed over.
    until: u64,
}

impl From<Instant> for Balance {
    /// The first window begins then.
    fn from(began: Instant) -> Balance {
        Balance {
            window: 1,
            began,
            ..Balance::default()
        }
    }
}

impl Balance {
    /// Notes that the worker has waited from the one time to the other. Returns the window if that
    /// has ended.
    fn waited(&mut self, from: Instant, to: Instant) -> Option<Window> {
        self.waited += to.since(from);
        let length = to.since(self.began);
        if length < WINDOW {
            return None;
        }
        let waited = self.waited.min(length).as_nanos() * u128::from(FULL) / length.as_nanos();
        let window = Window {
            began: self.began,
            ended: to,
            load: FULL - u32::try_from(waited).unwrap_or(FULL),
            served: self.served,
        };
        *self = Balance {
            window: self.window + 1,
            began: to,
            ..Balance::default()
        };
        Some(window)
    }

    fn note_served(&mut self, stay: &mut Stay) {
        if stay.served_in != self.window {
            stay.served_in = self.window;
            self.served += 1;
        }
    }

    /// The worker that this connection is to be handed over to, if it is.
    fn hand_over_to(&self, stay: &Stay) -> Option<usize> {
        let surplus = self.surplus?;
        (self.window >= stay.until).then_some(surplus.to)
    }

    fn note_handed_over(&mut self) {
        self.surplus = self.surplus.and_then(|Surplus { count, to }| {
            (count > 1).then_some(Surplus {
                count: count - 1,
                to,
            })
        });
    }

    /// The notes of a connection that has just moved here.
    fn stay_of_moved(&self) -> Stay {
        Stay {
            served_in: 0,
            until: self.window + STAY_WINDOWS,
        }
    }
}

impl Worker {
    /// The worker has waited in its poll from the one time to the other.
    pub(super) fn waited(&mut self, from: Instant, to: Instant) {
        if let Some(window) = self.balance.waited(from, to) {
            self.balance.surplus = self.shared.report_load(self.number, window);
        }
    }

    /// A connection is served.
    pub(super) fn note_served(&mut self, entry: &mut Entry) {
        self.balance.note_served(&mut entry.stay);
    }

    /// Hands a connection that is idle over to another worker, if it is one too many here;
    /// otherwise gives it back.
    pub(super) fn hand_over(&mut self, place: usize, mut entry: Box<Entry>) -> Option<Box<Entry>> {
        let Some(other) = self.balance.hand_over_to(&entry.stay) else {
            return Some(entry);
        };
        if entry.connection.deregister(self.poll.registry()).is_err() {
            return Some(entry);
        }
        self.balance.note_handed_over();
        entry.state = State::Ready;
        self.shared.pass_on(place, self.number, other, entry);
        None
    }

    /// Takes a connection over from another worker.
    pub(super) fn take_over(&mut self, place: usize, mut entry: Box<Entry>) {
        let token = mio::Token(place);
        if let Err(error) = entry.connection.register(self.poll.registry(), token) {
            log::debug!("a connection cannot be served: {error}");
            return self.close(place, *entry);
        }
        entry.stay = self.balance.stay_of_moved();
        entry.connection.moves_to(&self.mailbox);
        self.put(place, entry);
        self.ready.push_back(place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::loads::Loads;

    fn at(ms: u64) -> Instant {
        Instant::default() + Duration::from_millis(ms)
    }

    #[test]
    fn the_load_is_the_share_of_a_window_without_waiting() {
        let mut balance = Balance::from(at(0));
        let mut stays = [Stay::default(), Stay::default()];
        balance.note_served(&mut stays[0]);
        balance.note_served(&mut stays[0]);
        balance.note_served(&mut stays[1]);
        assert!(balance.waited(at(10), at(30)).is_none());
        let window = balance.waited(at(90), at(100)).expect("it has ended");
        assert_eq!((window.load, window.served), (700, 2));
        assert_eq!((window.began, window.ended), (at(0), at(100)));
        let window = balance.waited(at(100), at(300)).expect("it has ended");
        assert_eq!((window.load, window.served), (0, 0));
    }

    /// Clients of which now these send and now those: whatever the loads, no connection moves twice
    /// within its stay. The worker that each is with and its notes are as in a server.
    #[test]
    fn a_connection_does_not_bounce() {
        const WORKERS: usize = 3;
        let mut all_moves = 0;
        for seed in 0..50 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut loads = Loads::new(WORKERS);
            let mut balances = [(); WORKERS].map(|()| Balance::from(at(0)));
            let mut homes: Vec<usize> = (0..24).map(|_| random.usize(0..WORKERS)).collect();
            let mut stays: Vec<Stay> = homes.iter().map(|_| Stay::default()).collect();
            let mut moved_at: Vec<Option<Instant>> = vec![None; homes.len()];
            let mut sends = vec![false; homes.len()];
            for number in 0..200 {
                let end = at((number + 1) * 100);
                if number % 4 == 0 {
                    // All that send are with one or two of the workers.
                    let hot = random.usize(0..WORKERS);
                    let is_hot = |home: &usize| *home == hot || random.u8(0..8) == 0;
                    sends = homes.iter().map(is_hot).collect();
                }
                let mut served = [0; WORKERS];
                for client in (0..homes.len()).filter(|client| sends[*client]) {
                    let home = homes[client];
                    balances[home].note_served(&mut stays[client]);
                    served[home] += 1;
                    if let Some(to) = balances[home].hand_over_to(&stays[client]) {
                        balances[home].note_handed_over();
                        homes[client] = to;
                        stays[client] = balances[to].stay_of_moved();
                        if let Some(before) = moved_at[client].replace(end) {
                            let stayed = end.since(before);
                            assert!(stayed >= Duration::from_secs(1), "seed {seed}: {stayed:?}");
                        }
                        all_moves += 1;
                    }
                }
                for worker in 0..WORKERS {
                    let works = Duration::from_millis(served[worker] * 20).min(WINDOW);
                    let from = at(number * 100) + works;
                    let window = balances[worker].waited(from, end).expect("it has ended");
                    let surplus = loads.report(worker, window, |other| served[other] == 0);
                    balances[worker].surplus = surplus;
                }
            }
        }
        assert!(all_moves > 100, "{all_moves} connections have moved");
    }
}
