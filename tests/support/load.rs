//! A closed-loop load of HaToKuSe commands: C connections, each with P commands in flight.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::bounded;
use tolerex::clock::{Clock, SystemClock, sleep};
use tolerex::threads::{self, StopSignal, Thread};

use super::client::Client;

/// What a load found.
#[derive(Debug)]
pub struct Load {
    /// Commands answered in a second.
    pub per_second: f64,
    /// Median time from sending a pipeline to its last reply.
    pub p50: Duration,
    /// The same, for 99 in 100.
    pub p99: Duration,
    /// Error replies.
    pub errors: u64,
}

/// Sends `command(connection, n)` over all connections for `time`.
pub fn run<F>(
    address: SocketAddr,
    connections: usize,
    depth: usize,
    time: Duration,
    command: F,
) -> Load
where
    F: Fn(usize, u64) -> String + Send + Sync + 'static,
{
    let command = Arc::new(command);
    let clock = SystemClock::new();
    let stop = StopSignal::default();
    let (sender, results) = bounded(connections);
    let start_one = |connection: usize| {
        let (command, stop, sender) = (command.clone(), stop.clone(), sender.clone());
        let body = move || {
            let mut client = Client::connect(address);
            let (mut n, mut errors, mut times) = (0, 0, Vec::new());
            let clock = SystemClock::new();
            while !stop.is_stopped() {
                let commands: Vec<String> = (n..n + depth as u64)
                    .map(|n| command(connection, n))
                    .collect();
                n += depth as u64;
                let start = clock.now();
                let replies = client.pipeline(&commands).expect("replies");
                times.push(clock.now().since(start));
                let failed = replies.iter().filter(|reply| reply.starts_with("ERROR"));
                errors += failed.count() as u64;
            }
            _ = sender.send((n, errors, times));
        };
        threads::spawn("load", body).expect("a thread")
    };
    let start = clock.now();
    let threads: Vec<Thread> = (0..connections).map(start_one).collect();
    sleep(time);
    stop.stop();
    threads.into_iter().for_each(Thread::join);
    let elapsed = clock.now().since(start).as_secs_f64();
    drop(sender);
    let results: Vec<(u64, u64, Vec<Duration>)> = results.iter().collect();
    assert_eq!(results.len(), connections, "a connection failed");
    let mut times: Vec<Duration> = results.iter().flat_map(|result| result.2.clone()).collect();
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    Load {
        per_second: results.iter().map(|result| result.0).sum::<u64>() as f64 / elapsed,
        p50: at(0.5),
        p99: at(0.99),
        errors: results.iter().map(|result| result.1).sum(),
    }
}

/// Opens `count` connections, sends one command on each, and then takes their replies.
pub fn waiting(address: SocketAddr, count: u64, command: impl Fn(u64) -> String) -> Vec<String> {
    let mut clients: Vec<Client> = (0..count).map(|_| Client::connect(address)).collect();
    for (n, client) in (0..count).zip(&mut clients) {
        client
            .send(format!("{}\r\n", command(n)).as_bytes())
            .expect("sent");
    }
    let replies = clients.iter_mut().map(|client| client.line());
    replies.map(|reply| reply.expect("a reply")).collect()
}

/// Sends `total` commands over all connections; gives the number of error replies.
pub fn count<F>(
    address: SocketAddr,
    connections: usize,
    depth: usize,
    total: u64,
    command: F,
) -> u64
where
    F: Fn(usize, u64) -> String + Send + Sync + 'static,
{
    let command = Arc::new(command);
    let (sender, results) = bounded(connections);
    let share = total / connections as u64;
    assert_eq!(
        share * connections as u64,
        total,
        "each connection has the same share"
    );
    let start_one = |connection: usize| {
        let (command, sender) = (command.clone(), sender.clone());
        let body = move || {
            let mut client = Client::connect(address);
            let commands: Vec<String> = (0..share).map(|n| command(connection, n)).collect();
            let mut errors = 0;
            for commands in commands.chunks(depth) {
                let replies = client.pipeline(commands).expect("replies");
                errors += replies
                    .iter()
                    .filter(|reply| reply.starts_with("ERROR"))
                    .count();
            }
            _ = sender.send(errors as u64);
        };
        threads::spawn("load", body).expect("a thread")
    };
    let threads: Vec<Thread> = (0..connections).map(start_one).collect();
    threads.into_iter().for_each(Thread::join);
    drop(sender);
    let results: Vec<u64> = results.iter().collect();
    assert_eq!(results.len(), connections, "a connection failed");
    results.iter().sum()
}
