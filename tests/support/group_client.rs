//! Clients of a group of leaders that find the active one.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tolerex::clock::sleep;

use super::client::Client;

/// How long a client rests when nobody serves.
pub const REST: Duration = Duration::from_millis(10);

/// A write is answered within 2 s, whatever becomes of it; the rest is for a machine under load.
pub const PATIENCE: Duration = Duration::from_secs(4);

const NOT_LEADER: &str = "ERROR: not leader, leader is ";

/// The leaders as one client sees them.
#[derive(Clone, Debug)]
pub struct Route {
    /// Where it connects, by leader.
    pub dial: Vec<SocketAddr>,
    /// What a leader says when it names another one, by leader.
    pub advertised: Vec<String>,
    /// How long it waits for a connection, and for a reply.
    pub patience: Duration,
}

impl Route {
    /// Straight to these.
    pub fn direct(addresses: &[String]) -> Route {
        let parse = |text: &String| text.parse().expect("an address");
        Route {
            dial: addresses.iter().map(parse).collect(),
            advertised: addresses.to_vec(),
            patience: PATIENCE,
        }
    }
}

/// Where a client of all leaders is: it stays with the one that serves, and follows hints. It
/// connects with the first request.
pub struct Seat<C> {
    route: Route,
    /// The next leader to be asked.
    turn: usize,
    open: Option<C>,
}

/// What became of a request that was sent once.
pub enum Asked<R> {
    /// There was no connection to send it on: nothing happened.
    NotSent,
    /// The connection broke, or no reply came: it may have happened.
    Broken,
    /// This was the answer.
    Reply(R),
}

impl<C> Seat<C> {
    /// At the first leader.
    pub fn new(route: Route) -> Seat<C> {
        Seat {
            route,
            turn: 0,
            open: None,
        }
    }

    /// The leader that is asked.
    pub fn leader(&self) -> usize {
        self.turn % self.route.dial.len()
    }

    /// Asks it once, over a new connection if there is none.
    pub fn ask<R>(
        &mut self,
        connect: impl FnOnce(SocketAddr, Duration) -> io::Result<C>,
        ask: impl FnOnce(&mut C) -> io::Result<R>,
    ) -> Asked<R> {
        if self.open.is_none() {
            let address = self.route.dial[self.leader()];
            self.open = connect(address, self.route.patience).ok();
        }
        let Some(connection) = &mut self.open else {
            self.leave();
            return Asked::NotSent;
        };
        match ask(connection) {
            Ok(reply) => Asked::Reply(reply),
            Err(_) => {
                self.leave();
                Asked::Broken
            }
        }
    }

    /// Goes where a reply says that the active leader is.
    pub fn follow(&mut self, leader: &str) {
        let place = self.route.advertised.iter().position(|one| one == leader);
        let place = place.unwrap_or_else(|| panic!("{leader} is none of {:?}", self.route));
        (self.turn, self.open) = (place, None);
    }

    /// Goes on to the next leader.
    pub fn leave(&mut self) {
        (self.turn, self.open) = (self.turn + 1, None);
        sleep(REST);
    }
}

/// One that speaks HaToKuSe.
pub struct GroupClient(Seat<Client>);

impl GroupClient {
    /// Connects with the first command.
    pub fn new(route: Route) -> GroupClient {
        GroupClient(Seat::new(route))
    }

    /// The leader that is asked.
    pub fn leader(&self) -> usize {
        self.0.leader()
    }

    /// The connection to it, if there is one.
    pub fn connection(&mut self) -> Option<&mut Client> {
        self.0.open.as_mut()
    }

    /// Sends a command once; the reply line may be an error.
    pub fn ask(&mut self, command: &str) -> Asked<String> {
        let asked = self.0.ask(Client::try_connect_within, |client| {
            client.try_command(command)
        });
        if let Asked::Reply(reply) = &asked {
            if let Some(leader) = reply.strip_prefix(NOT_LEADER) {
                // Of a bulk write it is also said what of it is stored.
                let leader = leader.split(" (").next();
                self.0.follow(leader.unwrap_or_default());
            } else if reply.starts_with("ERROR: no leader ") || reply.contains("may or may not") {
                self.0.leave();
            }
        }
        asked
    }

    /// Sends a command once; `None` if its outcome is not known or nobody serves.
    pub fn try_command(&mut self, command: &str) -> Option<String> {
        match self.ask(command) {
            Asked::Reply(reply) if is_about_leaders(&reply) || reply.contains("may or may not") => {
                None
            }
            Asked::Reply(reply) => Some(reply),
            Asked::NotSent | Asked::Broken => None,
        }
    }

    /// Sends a command that may be sent again until it is answered.
    pub fn command(&mut self, command: &str, timeout: Duration) -> String {
        let mut reply = None;
        super::wait_until(command, timeout, || {
            reply = self.try_command(command);
            reply.is_some()
        });
        reply.expect("waited for")
    }

    /// `GROUP JSON` of the active leader.
    pub fn group(&mut self, timeout: Duration) -> serde_json::Value {
        let mut group = None;
        super::wait_until("the active leader is found", timeout, || {
            let is_found = self.try_command("COUNT").is_some();
            let asked = if is_found {
                self.ask("GROUP JSON")
            } else {
                Asked::NotSent
            };
            if let Asked::Reply(reply) = asked {
                group = serde_json::from_str(&reply).ok();
            }
            group.is_some()
        });
        group.expect("waited for")
    }
}

fn is_about_leaders(reply: &str) -> bool {
    reply.starts_with(NOT_LEADER) || reply.starts_with("ERROR: no leader ")
}
