//! `tolerex bench`: a load on a cluster, and how fast it was.
//!
//! [`workload`] says what is sent, [`driver`] sends it, [`replies`] reads the answers, [`opener`]
//! follows the leader, [`recorder`] keeps what came of it, [`report`] tells. Threads: `bench-N`
//! drive a share of the connections each, with `--blocking` one of them; they start together when
//! all are there. `bench-open` opens connections again that lost their leader, `signal` ends the
//! load early on Ctrl-C, with the figures so far; `main` waits, and shows the progress on a
//! terminal.

pub mod cpu;
pub mod driver;
pub mod opener;
pub mod recorder;
pub mod replies;
pub mod report;
pub mod workload;

use std::io;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use rustix::process::{Resource, getrlimit, setrlimit};
use signal_hook::consts::{SIGINT, SIGTERM};

use super::args::{BenchArgs, ClusterArgs};
use super::cluster;
use super::exit::{Exit, ToolError, print};

use super::signals::SignalWatch;
use crate::client::Patience;
use crate::clock::{Clock, Instant, SystemClock};
use crate::threads::{self, Thread};
use cpu::CpuTime;
use driver::{Driver, Shared};
use opener::Opener;
use recorder::Recorder;
use report::{Progress, Report, Run};
use workload::{End, Generator, Load, Requests, Times};

/// How often the progress is shown; a person reads no faster.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);

/// The share of the time that a warm-up takes, and at most so long: caches, and the servers'
/// connections and segments, are warm within fractions of a second.
const WARMUP_SHARE: f64 = 0.1;
const WARMUP_MAX: Duration = Duration::from_secs(1);

/// The longest load; longer ones are a test of patience.
const SECONDS_MAX: f64 = 86_400.0;

/// How what is read is stored before: few connections, deep pipelines, the fastest way.
const FILL_CONNECTIONS: u64 = 16;
const FILL_PIPELINE: usize = 64;

/// Payload bytes in flight on one connection while filling.
const FILL_BYTES: usize = 1 << 20;

/// Stack of a thread that drives connections: several times what its deepest calls need, a head of
/// HTTP with 64 fields and a problem's JSON. With `--blocking` there are thousands; the usual 2 MiB
/// for each would be beyond many limits of address space.
const STACK_BYTES: usize = 128 << 10;

/// How long the leader may take to take a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Where a load goes.
#[derive(Clone, Copy)]
struct Target<'a> {
    /// The active leader's address.
    address: &'a str,
    /// Where another one is looked for when that leads no more.
    at: &'a ClusterArgs,
}

/// Runs `tolerex bench`.
pub fn run(args: &BenchArgs) -> Result<(), ToolError> {
    let load = load(args)?;
    raise_file_limit();
    let client = cluster::client(&args.at, Patience::WhileElecting)?;
    let address = opener::find(&client, load.protocol)?;
    let pids = match &args.at.data_dir {
        Some(dir) => cpu::servers(dir)?,
        None => Vec::new(),
    };
    let shared = Arc::new(Shared::default());
    let signals = SignalWatch::start(&[SIGINT, SIGTERM], {
        let shared = Arc::clone(&shared);
        move |_| shared.stop.store(true, Ordering::Relaxed)
    })?;
    let target = Target {
        address: &address,
        at: &args.at,
    };
    let filled = match args.stored {
        true => Ok(()),
        false => fill(target, &load, &shared),
    };
    let result = filled.and_then(|()| {
        let warmup = match load.end {
            End::After(time) => time.mul_f64(WARMUP_SHARE).min(WARMUP_MAX),
            End::Count(_) => Duration::ZERO,
        };
        drive(target, &load, warmup, &shared, "bench", &pids)
    });
    signals.finish();
    let (recorder, run) = result?;
    let report = Report::new(&address, &load, &recorder, run);
    let text = if args.json {
        report.json()
    } else {
        report.text()
    };
    print(text.as_bytes())?;
    if report.ops == 0 && report.errors > 0 {
        return Err(ToolError::failed("no request was done"));
    }
    Ok(())
}

/// Checks what the flags ask for.
fn load(args: &BenchArgs) -> Result<Load, ToolError> {
    let refuse = |text: String| Err(ToolError::usage(text));
    if !(0.0..=1.0).contains(&args.get_ratio) {
        return refuse(format!("--get-ratio {}: accepted: 0 to 1", args.get_ratio));
    }
    if args.stored && args.get_ratio == 0.0 {
        return refuse("--stored: needs a --get-ratio above 0".to_owned());
    }
    if let Some(rate) = args.rate
        && !(0.001..=1e9).contains(&rate)
    {
        return refuse(format!("--rate {rate}: accepted: 0.001 to 1000000000"));
    }
    let seconds = args.seconds.unwrap_or(10.0);
    if !(0.001..=SECONDS_MAX).contains(&seconds) {
        return refuse(format!(
            "--seconds {seconds}: accepted: 0.001 to {SECONDS_MAX}"
        ));
    }
    Ok(Load {
        generator: if args.blocking {
            Generator::Blocking
        } else {
            Generator::Epoll
        },
        protocol: args.protocol,
        connections: args.connections as usize,
        pipeline: args.pipeline as usize,
        size: args.size as usize,
        rate: args.rate,
        end: match args.count {
            Some(count) => End::Count(count),
            None => End::After(Duration::from_secs_f64(seconds)),
        },
        get_ratio: args.get_ratio,
        keys: args.keys,
    })
}

/// As many connections as the system allows. Less than are asked for is said when one fails.
fn raise_file_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    _ = setrlimit(Resource::Nofile, limit);
}

/// Stores what the load will read.
fn fill(target: Target<'_>, load: &Load, shared: &Arc<Shared>) -> Result<(), ToolError> {
    if load.get_ratio == 0.0 {
        return Ok(());
    }
    let fill = Load {
        generator: Generator::Epoll,
        connections: load.keys.min(FILL_CONNECTIONS) as usize,
        pipeline: (FILL_BYTES / load.size.max(1)).clamp(1, FILL_PIPELINE),
        rate: None,
        end: End::Count(load.keys),
        get_ratio: 0.0,
        ..load.clone()
    };
    let (recorder, _) = drive(target, &fill, Duration::ZERO, shared, "filling", &[])?;
    match recorder.first_error() {
        None => Ok(()),
        Some(error) => Err(ToolError::failed(format!(
            "cannot store what is to be read: {error}"
        ))),
    }
}

/// Runs a load to its end, on threads of its own.
fn drive(
    target: Target<'_>,
    load: &Load,
    warmup: Duration,
    shared: &Arc<Shared>,
    what: &'static str,
    pids: &[u32],
) -> Result<(Recorder, Run), ToolError> {
    let clock = SystemClock::shared();
    let connections = connect(target.address, load)?;
    let client = cluster::client(target.at, Patience::WhileElecting)?;
    let leaders = (client, load.protocol);
    let (opener, opening) = Opener::start(leaders, load.connections, Arc::clone(shared))?;
    let shares = connections.into_iter().enumerate();
    let drivers = shares.map(|(share, connections)| {
        let schedule = load.schedule(share, connections.len());
        let (clock, shared) = (Arc::clone(&clock), Arc::clone(shared));
        let opener = Some(opener.share(connections.len()));
        Driver::new(connections, load, schedule, clock, shared, opener)
    });
    let drivers: io::Result<Vec<Driver>> = drivers.collect();
    let drivers = drivers.context("cannot watch connections")?;
    // It ends with the last driver.
    drop(opener);
    let threads = drivers.len();
    let crew = match Crew::start(drivers) {
        Ok(crew) => crew,
        Err(error) => {
            opening.join();
            return Err(anyhow::Error::from(error).into());
        }
    };

    let times = load.times(clock.now(), warmup);
    let mut watch = Watch {
        times,
        load_end: load.end,
        pids,
        cpu_before: None,
        progress: Progress::new(what),
    };
    crew.go(times);
    let (recorder, last_reply) = watch.until_all_ended(&crew.results, &*clock, shared);
    let cpu = watch.finish();
    crew.join();
    opening.join();
    let run = Run {
        threads,
        elapsed: last_reply.since(times.measured_from),
        warmup,
        interrupted: shared.stop.load(Ordering::Relaxed),
        server_cpu: cpu.map(|(servers, _)| servers),
        bench_cpu: cpu.map(|(_, bench)| bench),
    };
    Ok((recorder, run))
}

/// The threads that drive a load, one for each driver.
struct Crew {
    threads: Vec<Thread>,
    /// Gives each thread the times of the load, once. Threads end without them.
    starts: Sender<Times>,
    /// A thread's result; closed when the last thread has ended.
    results: Receiver<(Recorder, Instant)>,
}

impl Crew {
    /// Starts the threads, which wait for [`go`](Crew::go): a load begins when all are there. If
    /// one cannot be started the others end.
    fn start(drivers: Vec<Driver>) -> io::Result<Crew> {
        let count = drivers.len();
        let (starts, gate) = bounded(count);
        let (sender, results) = bounded(count);
        let mut crew = Crew {
            threads: Vec::with_capacity(count),
            starts,
            results,
        };
        for (share, driver) in drivers.into_iter().enumerate() {
            let (gate, sender) = (gate.clone(), sender.clone());
            let body = move || {
                if let Ok(times) = gate.recv() {
                    // The receiver outlives the threads.
                    _ = sender.send(driver.run(times));
                }
            };
            match threads::spawn_with_stack(format!("bench-{share}"), STACK_BYTES, body) {
                Ok(thread) => crew.threads.push(thread),
                Err(error) => {
                    crew.join();
                    return Err(error);
                }
            }
        }
        Ok(crew)
    }

    /// Lets all threads begin. Called once.
    fn go(&self, times: Times) {
        for _ in &self.threads {
            let sent = self.starts.send(times);
            sent.expect("the threads wait, and the queue has room for each");
        }
    }

    fn join(self) {
        drop(self.starts);
        self.threads.into_iter().for_each(Thread::join);
    }
}

/// Opens the connections, and deals them to threads: by epoll as many threads as half the
/// processors, since the servers need theirs too.
fn connect(address: &str, load: &Load) -> Result<Vec<Vec<(TcpStream, Requests)>>, ToolError> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = match load.generator {
        Generator::Epoll => (processors / 2).clamp(1, load.connections),
        Generator::Blocking => load.connections,
    };
    let seed = getrandom::u64().unwrap_or(1); // Any seed is good.
    let mut shares: Vec<Vec<_>> = (0..threads).map(|_| Vec::new()).collect();
    for index in 0..load.connections {
        let stream = opener::dial(address, load.protocol).map_err(|error| {
            let text = format!("connection {} of {}: {error}", index + 1, load.connections);
            ToolError::new(Exit::Unreachable, text)
        })?;
        shares[index % threads].push((stream, load.requests(index, seed)));
    }
    Ok(shares)
}

/// What `main` does while the threads drive the load.
struct Watch<'a> {
    times: Times,
    load_end: End,
    pids: &'a [u32],
    /// At the end of the warm-up.
    cpu_before: Option<CpuTime>,
    progress: Progress,
}

impl Watch<'_> {
    /// Waits for the threads' results; gives them together, and when the last reply came.
    fn until_all_ended(
        &mut self,
        results: &Receiver<(Recorder, Instant)>,
        clock: &dyn Clock,
        shared: &Shared,
    ) -> (Recorder, Instant) {
        let mut all = Recorder::default();
        let mut last_reply = self.times.start;
        let mut shown = self.times.start;
        let mut is_warm = false;
        loop {
            let now = clock.now();
            if !is_warm && now >= self.times.measured_from {
                is_warm = true;
                self.cpu_before = CpuTime::now(self.pids);
            }
            if now.since(shown) >= PROGRESS_INTERVAL {
                let left = match self.load_end {
                    End::After(_) => Some(self.times.until.since(now)),
                    End::Count(_) => None,
                };
                self.progress.show(shared, now.since(shown), left);
                shown = now;
            }
            let mut wait = PROGRESS_INTERVAL;
            if !is_warm {
                wait = wait.min(self.times.measured_from.since(now));
            }
            match results.recv_timeout(wait) {
                Ok((recorder, last)) => {
                    all.merge(recorder);
                    last_reply = last_reply.max(last);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return (all, last_reply),
            }
        }
    }

    /// Removes the progress; gives the processor time that the servers and this process took.
    fn finish(self) -> Option<(Duration, Duration)> {
        self.progress.finish();
        let before = self.cpu_before?;
        CpuTime::now(self.pids).map(|now| now.since(before))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::{Cli, Command};
    use clap::Parser;

    fn parse(flags: &str) -> Result<Load, ToolError> {
        let line = format!("tolerex bench {flags}");
        match Cli::try_parse_from(line.split_whitespace())
            .expect("a command")
            .command
        {
            Command::Bench(args) => load(&args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn flags_become_a_load_or_usage() {
        let load = parse("--count 7 --get-ratio 0.5 --rate 10 --size 0").expect("a load");
        assert_eq!((load.end, load.rate), (End::Count(7), Some(10.0)));
        let load = parse("").expect("a load");
        assert_eq!(load.end, End::After(Duration::from_secs(10)));
        assert_eq!(load.generator, Generator::Epoll);
        // The flag changes the generator and nothing else.
        let flags = "--connections 5 --pipeline 3 --protocol http --rate 9 --seconds 2 --keys 7";
        let epoll = parse(flags).expect("a load");
        let blocking = parse(&format!("--blocking {flags}")).expect("a load");
        let generator = Generator::Blocking;
        assert_eq!(blocking, Load { generator, ..epoll });
        for flags in [
            "--get-ratio 1.1",
            "--get-ratio NaN",
            "--rate 0",
            "--seconds 0",
            "--stored",
        ] {
            assert_eq!(
                parse(flags).map_err(|error| error.exit),
                Err(Exit::Usage),
                "{flags}"
            );
        }
    }
}
