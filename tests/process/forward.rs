//! `redirect = "forward"`: clients of followers notice little of which leader is the active one.

use std::net::SocketAddr;
use std::time::Duration;

use tolerex::clock::{Clock, SystemClock, sleep};

use crate::support::client::Client;
use crate::support::cluster::{Cluster, tolerex};
use crate::support::wait_until;

/// No fail-over may take longer.
const FAIL_OVER_MAX: Duration = Duration::from_secs(5);

fn addresses(cluster: &Cluster) -> Vec<SocketAddr> {
    let all = cluster.leaders("hatokuse").into_iter();
    all.map(|text| text.parse().expect("an address")).collect()
}

/// The place of the active leader.
fn active(addresses: &[SocketAddr]) -> Option<usize> {
    let role = |address: &SocketAddr| {
        let status = Client::try_connect(*address).ok()?.status();
        Some(status["role"] == "leader")
    };
    addresses.iter().position(|one| role(one) == Some(true))
}

/// A client of one leader, which it never leaves.
struct Loyal {
    address: SocketAddr,
    client: Client,
    written: Vec<u64>,
    /// Replies of each kind that are no `OK`.
    refused: usize,
    unknown: usize,
}

impl Loyal {
    fn new(address: SocketAddr) -> Loyal {
        Loyal {
            address,
            client: Client::connect(address),
            written: Vec::new(),
            refused: 0,
            unknown: 0,
        }
    }

    fn key(&self, number: u64) -> String {
        format!("{}-{number}", self.address.port())
    }

    /// Writes a number that was not written before; whether that was acknowledged.
    fn write(&mut self, number: u64) -> bool {
        let key = self.key(number);
        let reply = self.client.command(&format!("SET {key} v-{number}"));
        match reply.as_str() {
            "OK" => {
                self.written.push(number);
                return true;
            }
            "ERROR: timed out, the write may or may not have happened" => self.unknown += 1,
            "ERROR: no leader elected" | "ERROR: busy, try again" => self.refused += 1,
            other if other.starts_with("ERROR: not leader, leader is ") => self.refused += 1,
            other => panic!("{other}"),
        }
        false
    }

    fn read_all(&mut self) {
        for number in self.written.clone() {
            let key = self.key(number);
            let found = self.client.command(&format!("GET {key}"));
            assert_eq!(found, format!("v-{number}"), "{key} was acknowledged");
        }
    }
}

#[test]
fn commands_to_followers_succeed_while_the_leader_is_killed() {
    let cluster = Cluster::start_with(&["--leaders", "3"], &[("TOLEREX_REDIRECT", "forward")]);
    let clock = SystemClock::new();
    let addresses = addresses(&cluster);
    let names = cluster.leaders("name");
    let first = active(&addresses).expect("one serves");
    let followers = addresses.iter().enumerate();
    let followers = followers.filter(|(place, _)| *place != first);
    let mut clients: Vec<Loyal> = followers.map(|(_, one)| Loyal::new(*one)).collect();
    let mut number = 0;
    for _ in 0..100 {
        number += 1;
        for client in &mut clients {
            assert!(client.write(number), "no reason to refuse it");
        }
    }
    cluster.kill(&names[first]);
    let killed = clock.now();
    for client in &mut clients {
        wait_until("a write by a follower", FAIL_OVER_MAX, || {
            number += 1;
            client.write(number)
        });
    }
    let took = clock.now().since(killed);
    // The new active leader answers itself, the other one passes on: neither sends clients away.
    for _ in 0..100 {
        number += 1;
        for client in &mut clients {
            assert!(client.write(number), "no reason to refuse it");
        }
    }
    let dir = cluster.dir().to_str().expect("UTF-8");
    let started = tolerex(&["start", &names[first], "--data-dir", dir]);
    assert!(started.status.success(), "{}", crate::errors(&started));
    clients.push(Loyal::new(addresses[first]));
    let last = clients.last_mut().expect("it was pushed");
    wait_until("a write by the one that is back", FAIL_OVER_MAX, || {
        number += 1;
        last.write(number)
    });
    for client in &mut clients {
        client.read_all();
        let Loyal {
            address,
            written,
            refused,
            unknown,
            ..
        } = client;
        println!(
            "{address}: {} acknowledged, {refused} refused, {unknown} unknown, {} ms",
            written.len(),
            took.as_millis()
        );
        // One batch was on its way when the link broke, at most.
        assert!(*unknown <= 1, "{unknown} unknown");
    }
}

#[test]
fn a_follower_that_forwards_is_of_use_while_its_leader_stands_still() {
    use rustix::process::Signal;
    let cluster = Cluster::start_with(&["--leaders", "3"], &[("TOLEREX_REDIRECT", "forward")]);
    let addresses = addresses(&cluster);
    let names = cluster.leaders("name");
    let first = active(&addresses).expect("one serves");
    let mut client = Loyal::new(addresses[(first + 1) % 3]);
    assert!(client.write(1));
    cluster.signal(&names[first], Signal::STOP);
    // More commands than there are workers, all at once and all passed on to one that is silent:
    // each is answered in time, and the follower goes on for others meanwhile.
    let waiting: Vec<_> = (0..100)
        .map(|number| {
            let mut client = Client::connect(client.address);
            let command = format!("SET w-{number} x\r\n");
            client.send(command.as_bytes()).expect("sent");
            client
        })
        .collect();
    let asked = SystemClock::new();
    let began = asked.now();
    assert_eq!(Client::connect(client.address).status()["role"], "follower");
    assert!(
        asked.now().since(began) < Duration::from_secs(1),
        "it is held up"
    );
    for mut one in waiting {
        let reply = one.line().expect("a reply");
        assert!(
            reply == "OK" || reply.starts_with("ERROR: "),
            "{reply} is no answer"
        );
    }
    let mut number = 1;
    wait_until("another leads", 2 * FAIL_OVER_MAX, || {
        number += 1;
        client.write(number)
    });
    cluster.signal(&names[first], Signal::CONT);
    sleep(Duration::from_millis(500));
    client.read_all();
}
