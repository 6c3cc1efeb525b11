//! Tolerex and Redis side by side: three synced copies, the same generators, by turns.
//!
//! `cargo bench --bench beside_redis` takes some three minutes. Redis runs as a primary with two
//! replicas, append-only file synced `always`, and a SET counts when `WAIT 2` says that both
//! replicas have it; with a pipeline there is one WAIT behind it. Tolerex runs a leader with three
//! members at tolerance 3, so four processes stand against three. Both are in temporary directories
//! on one disk, on free ports of the loopback.
//!
//! Each load is measured with both generators of `tolerex bench`: one thread that drives all
//! connections by epoll, and a thread with a blocking socket for each connection. What a generator
//! burns is taken from both stores alike. A connection sends a batch (`pipeline` requests), waits
//! for all its replies, and sends the next one; a latency is that of a batch. Rounds alternate, the
//! medians are shown.

mod ratios;
#[path = "../tests/support/mod.rs"]
mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use hdrhistogram::Histogram;
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use serde_json::{Value, json};
use support::client::Client;
use support::cluster::Cluster;
use support::figures::{keep, median, publish};
use support::wait_until;
use tempfile::TempDir;
use tolerex::cli::load::cpu::CpuTime;
use tolerex::cli::load::workload::Generator;
use tolerex::clock::{Clock, Instant, SystemClock};

const COMMAND: &str = "cargo bench --bench beside_redis";

const ROUNDS: usize = 3;
const TIME: Duration = Duration::from_secs(2);
/// Before it is measured.
const WARMUP: Duration = Duration::from_millis(200);
/// A reply that takes longer is none.
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);
const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// Nanoseconds; longer ones count as this.
const LATENCY_MAX: u64 = 60_000_000_000;

const PAYLOAD_BYTES: usize = 100;
/// Keys of a connection, which it alone uses.
const KEYS: u64 = 100;
const CONNECTIONS_MAX: usize = 64;

/// The most bytes that are read from a socket at once.
const SCRATCH_BYTES: usize = 64 << 10;

const GENERATORS: [Generator; 2] = [Generator::Epoll, Generator::Blocking];

/// Connections, pipeline, and whether it reads.
const LOADS: [(usize, u64, bool); 6] = [
    (1, 1, false),
    (64, 1, false),
    (64, 16, false),
    (1, 1, true),
    (64, 1, true),
    (64, 16, true),
];

/// How a server is spoken to.
#[derive(Clone, Copy, PartialEq)]
enum Language {
    Tolerex,
    Redis,
}

/// A store with three copies of everything.
struct Store {
    name: &'static str,
    language: Language,
    address: SocketAddr,
    pids: Vec<u32>,
}

/// A primary and two replicas.
struct Redis {
    servers: Vec<Child>,
    primary: SocketAddr,
    _dirs: Vec<TempDir>,
}

impl Redis {
    fn start() -> Redis {
        let free: Vec<TcpListener> = (0..3)
            .map(|_| TcpListener::bind("127.0.0.1:0").expect("a port"))
            .collect();
        let address = |listener: &TcpListener| listener.local_addr().expect("bound");
        let addresses: Vec<SocketAddr> = free.iter().map(address).collect();
        drop(free);
        let mut redis = Redis {
            servers: Vec::new(),
            primary: addresses[0],
            _dirs: Vec::new(),
        };
        for address in &addresses {
            let dir = tempfile::tempdir().expect("a directory");
            let mut command = Command::new("redis-server");
            command.args(["--bind", "127.0.0.1", "--port", &address.port().to_string()]);
            let flags = "--appendonly yes --appendfsync always --repl-diskless-sync-delay 0";
            command.args(flags.split(' ')).args(["--save", ""]);
            command.arg("--dir").arg(dir.path());
            if *address != redis.primary {
                let port = redis.primary.port().to_string();
                command.args(["--replicaof", "127.0.0.1", &port]);
            }
            command
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            redis
                .servers
                .push(command.spawn().expect("redis-server runs"));
            redis._dirs.push(dir);
        }
        let has_copies = || redis.set_is_copied().is_some();
        wait_until("Redis has two replicas", READY_TIMEOUT, has_copies);
        redis
    }

    /// Whether both replicas take a write.
    fn set_is_copied(&self) -> Option<()> {
        let mut stream = TcpStream::connect(self.primary).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
        stream.write_all(b"SET ready yes\r\nWAIT 2 500\r\n").ok()?;
        let mut reply = [0; 9];
        stream.read_exact(&mut reply).ok()?;
        (reply == *b"+OK\r\n:2\r\n").then_some(())
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        for server in &mut self.servers {
            _ = server.kill();
            _ = server.wait();
        }
    }
}

impl Language {
    /// Writes a batch: connection `number`'s requests from its `first`-th on. Gives the lines that
    /// the replies will have.
    fn write(self, out: &mut Vec<u8>, number: usize, first: u64, load: (u64, bool)) -> usize {
        let (pipeline, reads) = load;
        let payload = [b'x'; PAYLOAD_BYTES];
        for place in first..first + pipeline {
            let key = 1 + number as u64 * KEYS + place % KEYS;
            let name = if reads { "GET" } else { "SET" };
            write!(out, "{name} {key}").expect("a vector takes all");
            if !reads {
                out.push(b' ');
                out.extend_from_slice(&payload);
            }
            out.extend_from_slice(b"\r\n");
        }
        let lines = pipeline as usize;
        match (self, reads) {
            (Language::Tolerex, _) => lines,
            // A message's length stands before it.
            (Language::Redis, true) => 2 * lines,
            (Language::Redis, false) => {
                out.extend_from_slice(b"WAIT 2 1000\r\n");
                lines + 1
            }
        }
    }

    /// Whether a reply line is that of a request that was done. The first bytes tell.
    fn is_done(self, line: &[u8]) -> bool {
        let expected: &[&[u8]] = match self {
            Language::Tolerex => &[b"OK", b"xx"],
            Language::Redis => &[b"+O", b":2", b"$1", b"xx"],
        };
        expected.iter().any(|begin| line.starts_with(begin))
    }
}

/// A connection and the batch that is on its way on it.
struct Connection {
    stream: TcpStream,
    number: usize,
    /// Requests made so far.
    requests: u64,
    /// Lines that are to come for the batch.
    lines: usize,
    sent_at: Instant,
    /// A line whose end has not come.
    partial: Vec<u8>,
}

impl Connection {
    fn open(store: &Store, number: usize) -> Connection {
        let stream = match store.language {
            Language::Redis => TcpStream::connect(store.address).expect("Redis is there"),
            Language::Tolerex => Client::connect(store.address).into_stream(),
        };
        stream.set_nodelay(true).expect("a socket");
        let timeout = Some(REPLY_TIMEOUT);
        stream.set_read_timeout(timeout).expect("a socket");
        Connection {
            stream,
            number,
            requests: 0,
            lines: 0,
            sent_at: Instant::default(),
            partial: Vec::new(),
        }
    }

    /// Takes what has come, or waits for it; true when the batch is answered.
    fn take(&mut self, store: &Store, scratch: &mut [u8]) -> bool {
        let count = self.stream.read(scratch).expect("a reply");
        assert!(count > 0, "{} has closed a connection", store.name);
        for piece in scratch[..count].split_inclusive(|byte| *byte == b'\n') {
            self.partial.extend_from_slice(piece);
            if piece.last() != Some(&b'\n') {
                continue;
            }
            let line = &self.partial;
            let text = String::from_utf8_lossy(line);
            assert!(store.language.is_done(line), "{}: {text}", store.name);
            self.partial.clear();
            self.lines -= 1;
        }
        self.lines == 0
    }
}

/// A load on a store.
struct Load<'a> {
    store: &'a Store,
    generator: Generator,
    /// Requests of a batch.
    pipeline: u64,
    reads: bool,
    /// How long it runs.
    time: Duration,
    /// Each connection makes at least so many requests.
    requests_min: u64,
    clock: SystemClock,
}

/// What a load came to.
struct Found {
    rate: f64,
    p50_us: f64,
    p99_us: f64,
    cpu_us: f64,
}

/// Latencies of batches, in nanoseconds.
fn latencies() -> Histogram<u64> {
    Histogram::new_with_bounds(1_000, LATENCY_MAX, 3).expect("in order")
}

impl Load<'_> {
    fn send(&self, connection: &mut Connection) {
        let mut out = Vec::with_capacity(4096);
        let (number, first) = (connection.number, connection.requests);
        let load = (self.pipeline, self.reads);
        connection.lines = self.store.language.write(&mut out, number, first, load);
        connection.requests += self.pipeline;
        connection.sent_at = self.clock.now();
        // A batch finds room: the socket is empty once the one before is answered.
        let sent = connection.stream.write_all(&out);
        sent.expect("the store takes a batch");
    }

    /// Records a batch that was answered, and sends the next one; false at the end.
    fn next(
        &self,
        connection: &mut Connection,
        start: Instant,
        latencies: &mut Histogram<u64>,
    ) -> bool {
        let now = self.clock.now();
        let latency = now.since(connection.sent_at).as_nanos() as u64;
        latencies.saturating_record(latency);
        let goes_on = now.since(start) < self.time || connection.requests < self.requests_min;
        if goes_on {
            self.send(connection);
        }
        goes_on
    }

    /// One thread for all connections.
    fn by_epoll(&self, connections: &mut [Connection]) -> Histogram<u64> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).expect("epoll");
        for (place, connection) in connections.iter().enumerate() {
            let data = epoll::EventData::new_u64(place as u64);
            let flags = epoll::EventFlags::IN;
            epoll::add(&epoll, &connection.stream, data, flags).expect("watched");
        }
        let wait = Timespec {
            tv_sec: REPLY_TIMEOUT.as_secs() as i64,
            tv_nsec: 0,
        };
        let (mut latencies, mut scratch) = (latencies(), vec![0; SCRATCH_BYTES]);
        let mut events = Vec::with_capacity(CONNECTIONS_MAX);
        let start = self.clock.now();
        connections
            .iter_mut()
            .for_each(|connection| self.send(connection));
        let mut open = connections.len();
        while open > 0 {
            events.clear();
            epoll::wait(&epoll, spare_capacity(&mut events), Some(&wait)).expect("epoll");
            assert!(!events.is_empty(), "{} does not answer", self.store.name);
            for event in &events {
                let connection = &mut connections[event.data.u64() as usize];
                if connection.take(self.store, &mut scratch)
                    && !self.next(connection, start, &mut latencies)
                {
                    open -= 1;
                }
            }
        }
        latencies
    }

    /// A thread for each connection, which blocks in its reads.
    fn by_threads(&self, connections: &mut [Connection]) -> Histogram<u64> {
        let all_are_there = Barrier::new(connections.len());
        let one = |connection: &mut Connection| {
            let (mut latencies, mut scratch) = (latencies(), vec![0; SCRATCH_BYTES]);
            all_are_there.wait();
            let start = self.clock.now();
            self.send(connection);
            loop {
                if connection.take(self.store, &mut scratch)
                    && !self.next(connection, start, &mut latencies)
                {
                    return latencies;
                }
            }
        };
        let one = &one;
        thread::scope(|scope| {
            let spawn = |connection| scope.spawn(move || one(connection));
            let threads: Vec<_> = connections.iter_mut().map(spawn).collect();
            let mut all = latencies();
            for thread in threads {
                let latencies = thread.join().expect("no reply is missing or wrong");
                all.add(latencies).expect("the same bounds");
            }
            all
        })
    }

    /// Runs it on these connections.
    fn run(&self, connections: &mut [Connection]) -> Found {
        connections
            .iter_mut()
            .for_each(|connection| connection.requests = 0);
        let before = CpuTime::now(&self.store.pids).expect("the servers run");
        let start = self.clock.now();
        let latencies = match self.generator {
            Generator::Epoll => self.by_epoll(connections),
            Generator::Blocking => self.by_threads(connections),
        };
        let elapsed = self.clock.now().since(start).as_secs_f64();
        let after = CpuTime::now(&self.store.pids).expect("the servers run");
        let (cpu, _) = after.since(before);
        let done: u64 = connections
            .iter()
            .map(|connection| connection.requests)
            .sum();
        let quantile = |share| latencies.value_at_quantile(share) as f64 / 1e3;
        Found {
            rate: done as f64 / elapsed,
            p50_us: quantile(0.5),
            p99_us: quantile(0.99),
            cpu_us: cpu.as_secs_f64() * 1e6 / done as f64,
        }
    }
}

fn connect(store: &Store, connections: usize) -> Vec<Connection> {
    (0..connections)
        .map(|number| Connection::open(store, number))
        .collect()
}

/// Measures a load by turns: each generator on each store; a row for each pair.
fn measure(stores: &[Store], (connections, pipeline, reads): (usize, u64, bool)) -> Vec<Value> {
    let of = |generator| stores.iter().map(move |store| (generator, store));
    let pairs: Vec<(Generator, &Store)> = GENERATORS.into_iter().flat_map(of).collect();
    let mut found: Vec<Vec<Found>> = pairs.iter().map(|_| Vec::new()).collect();
    for _ in 0..ROUNDS {
        for ((generator, store), found) in pairs.iter().zip(&mut found) {
            let load = |time| Load {
                store,
                generator: *generator,
                pipeline,
                reads,
                time,
                requests_min: 0,
                clock: SystemClock::new(),
            };
            let mut connections = connect(store, connections);
            load(WARMUP).run(&mut connections);
            found.push(load(TIME).run(&mut connections));
        }
    }
    let name = if reads { "GET" } else { "SET" };
    let s = if connections == 1 { "" } else { "s" };
    let depth = match pipeline {
        1 => String::new(),
        _ => format!(" x pipeline {pipeline}"),
    };
    let what = format!("{name}, {connections} connection{s}{depth}");
    let mut rows = Vec::new();
    for ((generator, store), found) in pairs.iter().zip(&found) {
        let of = |field: fn(&Found) -> f64| median(found.iter().map(field).collect());
        let (rate, cpu) = (of(|found| found.rate), of(|found| found.cpu_us));
        let (p50, p99) = (of(|found| found.p50_us), of(|found| found.p99_us));
        let row = json!({
            "what": what, "generator": generator, "store": store.name, "ops_per_s": rate,
            "p50_us": p50, "p99_us": p99, "server_cpu_us_per_op": cpu,
        });
        let generator = row["generator"].as_str().unwrap_or("?");
        println!(
            "| {what} | {generator} | {} | {rate:.0} | {p50:.0} us | {p99:.0} us | {cpu:.1} us |",
            store.name
        );
        rows.push(row);
    }
    rows
}

fn main() {
    // Cargo gives `--bench` when it measures; anything else names benches that are not here, or
    // only asks whether this runs.
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args != ["--bench"] {
        return;
    }
    let version = Command::new("redis-server").arg("--version").output();
    let Ok(version) = version else {
        println!("skipped: redis-server is not installed");
        return;
    };
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    let version = version.split(' ').find_map(|word| word.strip_prefix("v="));
    let cluster = Cluster::start(&["--tolerance", "3"]);
    let redis = Redis::start();
    let names = ["leader-1", "member-1", "member-2", "member-3"];
    let stores = [
        Store {
            name: "Tolerex",
            language: Language::Tolerex,
            address: cluster.address(),
            pids: names.map(|name| cluster.pid(name)).to_vec(),
        },
        Store {
            name: "Redis",
            language: Language::Redis,
            address: redis.primary,
            pids: redis.servers.iter().map(Child::id).collect(),
        },
    ];
    for store in &stores {
        let fill = Load {
            store,
            generator: Generator::Epoll,
            pipeline: 10,
            reads: false,
            time: Duration::ZERO,
            requests_min: KEYS,
            clock: SystemClock::new(),
        };
        fill.run(&mut connect(store, CONNECTIONS_MAX));
    }
    println!("three synced copies; Redis {}", version.unwrap_or("?"));
    println!("| load | generator | store | ops/s | p50 | p99 | CPU of all servers for each |");
    println!("|---|---|---|---|---|---|---|");
    let rows: Vec<Value> = LOADS
        .iter()
        .flat_map(|load| measure(&stores, *load))
        .collect();
    let figures = json!({ "redis": version, "rows": &rows });
    keep("beside-redis", COMMAND, &figures);
    publish("speed-8-beside-redis", COMMAND, &ratios::of(&rows));
}
