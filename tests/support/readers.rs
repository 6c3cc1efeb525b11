//! Clients that read large messages as fast as they can or not at all, and small writes beside
//! them.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use socket2::Socket;
use tolerex::clock::{Clock, SystemClock, sleep};
use tolerex::threads::{self, StopSignal, Thread};

use super::client::Client;
use super::cluster::Cluster;

/// The length of a large message.
pub const MESSAGE_BYTES: usize = 1 << 20;
const MESSAGES: usize = 30;

/// Stores the large messages.
pub fn fill(cluster: &Cluster) {
    let mut client = cluster.client();
    for number in 0..MESSAGES {
        let payload = vec![number as u8; MESSAGE_BYTES];
        let reply = client.set_bytes(&format!("large-{number}"), &payload);
        assert_eq!(reply.expect("a reply"), "OK");
    }
}

/// Clients that read, each on a thread of its own.
pub struct Readers {
    stop: StopSignal,
    threads: Vec<Thread>,
    counts: crossbeam_channel::Receiver<u64>,
}

impl Readers {
    /// So many, that read until they are told to end.
    pub fn start(address: SocketAddr, count: usize) -> Readers {
        let stop = StopSignal::default();
        let (sender, counts) = crossbeam_channel::bounded(count);
        let start = |number| {
            let (stop, sender) = (stop.clone(), sender.clone());
            let body = move || _ = sender.send(reader(address, number, &stop));
            threads::spawn("reader", body).expect("a thread")
        };
        Readers {
            threads: (0..count).map(start).collect(),
            stop,
            counts,
        }
    }

    /// Ends them; gives how many messages came. None of them failed.
    pub fn finish(self) -> u64 {
        self.stop.stop();
        let count = self.threads.len();
        self.threads.into_iter().for_each(Thread::join);
        let counts: Vec<u64> = self.counts.try_iter().collect();
        assert_eq!(counts.len(), count, "a reader failed");
        counts.iter().sum()
    }
}

/// Reads large messages, 20 in flight, until it is told to stop; gives how many came.
fn reader(address: SocketAddr, number: usize, stop: &StopSignal) -> u64 {
    let mut client = Client::connect(address);
    let (mut sent, mut received) = (number, 0);
    while !stop.is_stopped() {
        let mut commands = String::new();
        for _ in 0..20 {
            sent += 7;
            commands += &format!("GETB large-{}\r\n", sent % MESSAGES);
        }
        client.send(commands.as_bytes()).expect("sent");
        for _ in 0..20 {
            let head = client.line().expect("a reply");
            // A read for which there is no room in time is refused.
            if head == "ERROR: busy, try again" {
                continue;
            }
            assert!(head.starts_with("VALUE "), "{head}");
            client.skip(MESSAGE_BYTES + 2).expect("its payload");
            received += 1;
        }
    }
    received
}

/// A connection that asks for 20 large messages and takes nothing.
pub fn non_reader(address: SocketAddr) -> TcpStream {
    let mut stream = connect_small(address);
    let commands: String = (0..20).map(|n| format!("GETB large-{n}\r\n")).collect();
    stream.write_all(commands.as_bytes()).expect("sent");
    stream
}

/// A connection whose system takes little for it.
pub fn connect_small(address: SocketAddr) -> TcpStream {
    let socket = Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.set_recv_buffer_size(4096).expect("a small buffer");
    socket.connect(&address.into()).expect("a connection");
    socket.into()
}

/// Small writes, one each 5 ms: how long each took, all of them acknowledged.
pub fn write_for(cluster: &Cluster, time: Duration) -> Vec<Duration> {
    let mut client = cluster.client();
    let clock = SystemClock::new();
    let end = clock.now() + time;
    let mut times = Vec::new();
    while clock.now() < end {
        let start = clock.now();
        assert_eq!(
            client.command(&format!("SET small {}", "x".repeat(100))),
            "OK"
        );
        times.push(clock.now().since(start));
        sleep(Duration::from_millis(5));
    }
    times.sort_unstable();
    times
}
