//! Leaders and members are killed, held still and restarted at random under load, over and over:
//! every answer that a client got was allowed, by HaToKuSe and by HTTP, plain writes as well as
//! conditions, batches and times to live; and at the end all agree.
//!
//! `CYCLES=200 cargo test --release --test process cycles -- --ignored --nocapture`, with `SEED=n`
//! for the same order of faults (not of events: these are real processes).
//!
//! What may break at a time: any number of leaders, as their disks stay; one member, as tolerance
//! is 2 of 3 members. A kill with -9 keeps the page cache, so this speaks for crashes of processes;
//! power failures are the simulation's matter.

use std::time::Duration;

use rustix::process::Signal;
use tolerex::clock::{Clock, Instant, SystemClock, sleep};

use crate::support::client::Client;
use crate::support::clients::{Mix, Work};
use crate::support::cluster::{Cluster, tolerex};
use crate::support::group_client::{GroupClient, Route};
use crate::support::speakers::Speaker;
use crate::support::wait_until;

const LEADERS: usize = 3;
const CLIENTS: usize = 6;

/// How long a client rests at most between two operations.
const REST: Duration = Duration::from_millis(8);

/// After a cycle's last fault writes are acknowledged within this.
const SERVICE_MAX: Duration = Duration::from_secs(10);

/// After the last cycle all is as it was within this.
const RECOVERY_MAX: Duration = Duration::from_secs(20);

/// What is done to one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// kill -9, and a start a little later.
    Kill,
    /// SIGSTOP, and SIGCONT a little later.
    Hold,
    /// An orderly stop, and a start.
    Restart,
}

const FAULTS: [Fault; 3] = [Fault::Kill, Fault::Hold, Fault::Restart];

struct Cycles {
    cluster: Cluster,
    random: fastrand::Rng,
    client: GroupClient,
    /// By fault: how many leaders and members took it.
    taken: [[usize; 2]; 3],
    /// How long writes took to go on after each cycle's end, ascending at the end.
    returns: Vec<Duration>,
}

impl Cycles {
    fn new(seed: u64) -> Cycles {
        // Small, so that snapshots are taken and sent on the way.
        let environment = [("TOLEREX_SNAPSHOT_BYTES", "256KiB")];
        let cluster = Cluster::start_with(&["--leaders", "3"], &environment);
        let route = Route::direct(&cluster.leaders("hatokuse"));
        Cycles {
            cluster,
            random: fastrand::Rng::with_seed(seed),
            client: GroupClient::new(route),
            taken: [[0; 2]; 3],
            returns: Vec::new(),
        }
    }

    fn rest(&mut self, from_ms: u64, to_ms: u64) {
        sleep(Duration::from_millis(self.random.u64(from_ms..=to_ms)));
    }

    fn tool(&self, verb: &str, name: &str) {
        let dir = self.cluster.dir().to_str().expect("UTF-8");
        let output = tolerex(&[verb, name, "--data-dir", dir]);
        let errors = crate::errors(&output);
        assert!(output.status.success(), "{verb} {name}: {errors}");
    }

    /// Who takes a fault in this cycle: the active leader often, some leaders, a member.
    fn choose(&mut self) -> Vec<String> {
        let mut names = self.cluster.leaders("name");
        let mut chosen = Vec::new();
        match self.random.u32(..10) {
            0..4 => {
                self.client.group(SERVICE_MAX);
                chosen.push(names.swap_remove(self.client.leader()));
            }
            4..6 => chosen.push(names.swap_remove(self.random.usize(..LEADERS))),
            6 => {
                self.random.shuffle(&mut names);
                chosen.extend(names.into_iter().take(2));
            }
            7 => chosen.extend(names),
            _ => {}
        }
        if chosen.is_empty() || self.random.u32(..3) == 0 {
            chosen.push(format!("member-{}", self.random.u32(1..=3)));
        }
        chosen
    }

    fn cycle(&mut self, number: usize, work: &Work) {
        let mut faults = Vec::new();
        for name in self.choose() {
            let fault = FAULTS[self.random.usize(..FAULTS.len())];
            self.taken[fault as usize][usize::from(name.starts_with("member"))] += 1;
            match fault {
                Fault::Kill => self.cluster.kill(&name),
                Fault::Hold => self.cluster.signal(&name, Signal::STOP),
                Fault::Restart => self.tool("stop", &name),
            }
            faults.push((name, fault));
            self.rest(0, 300);
        }
        // Shorter and longer than an election, and than a member takes to be `down`.
        self.rest(0, 2500);
        for (name, fault) in &faults {
            match fault {
                Fault::Hold => self.cluster.signal(name, Signal::CONT),
                Fault::Kill | Fault::Restart => self.tool("start", name),
            }
            self.rest(0, 200);
        }
        let ended = work.now();
        let what = format!("service after {faults:?}");
        wait_until(&what, SERVICE_MAX, || work.served_since(ended));
        let took = work.now().since(ended);
        println!(
            "cycle {number}: {faults:?} up to {} ms, served after {} ms, {} operations so far",
            ended.as_nanos() / 1_000_000,
            took.as_millis(),
            work.answered()
        );
        self.returns.push(took);
        // Now and then the next faults hit what has not recovered yet. Not members: the one before
        // must be there again, else more are away than are promised to be survived.
        self.wait_for_members();
        self.rest(0, 400);
    }

    fn wait_for_members(&mut self) {
        wait_until("all members are up", RECOVERY_MAX, || {
            self.client.group(SERVICE_MAX);
            let leader = self.client.connection().expect("it has answered");
            let Ok(status) = leader.try_command("STATUS JSON") else {
                return false;
            };
            let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
            let members = status["members"].as_array().expect("members");
            members.len() == 3 && members.iter().all(|member| member["state"] == "up")
        });
    }

    /// All leaders follow one, have all of its journal, and say the same of the group.
    fn wait_for_agreement(&mut self) {
        wait_until("all leaders agree", RECOVERY_MAX, || {
            let group = self.client.group(SERVICE_MAX);
            let peers = group["peers"].as_array().expect("peers");
            let is_level = peers.iter().all(|peer| {
                peer["matched"] == peers[0]["matched"]
                    && (peer["state"] == "leader" || peer["state"] == "follower")
                    && peer["role"] == "voter"
            });
            let addresses = self.cluster.leaders("hatokuse");
            let views = addresses.iter().map(|address| {
                let mut leader = Client::connect(address.parse().expect("an address"));
                let status = leader.status();
                (
                    status["leader"].clone(),
                    status["term"].clone(),
                    status["messages"].clone(),
                )
            });
            let mut views: Vec<_> = views.collect();
            views.dedup();
            is_level && peers.len() == LEADERS && views.len() == 1
        });
    }

    /// Leadership goes to each in turn.
    fn transfer(&mut self, place: usize) {
        let name = &self.cluster.leaders("name")[place];
        let addresses = self.cluster.leaders("hatokuse").join(",");
        let output = tolerex(&["group", "transfer", name, "--addr", &addresses]);
        assert!(output.status.success(), "{}", crate::errors(&output));
        self.client.group(SERVICE_MAX);
        assert_eq!(self.client.leader(), place, "the leader after a transfer");
    }
}

fn cycles(count: usize) {
    let seed = std::env::var("SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    println!("SEED={seed}");
    let clock = SystemClock::new();
    let began = clock.now();
    let mut run = Cycles::new(seed);
    let work = Work::start(speakers(&run.cluster), Mix::Full, seed, REST, |_| {});
    for number in 1..=count {
        work.set_era(u32::try_from(number).expect("few cycles"));
        run.cycle(number, &work);
    }
    let (first, last) = (Instant::default(), work.now());
    let mut done = work.finish();
    run.wait_for_members();
    run.wait_for_agreement();
    // Each leader by itself has everything that was acknowledged.
    let mut keys = 0;
    for place in 0..LEADERS {
        run.transfer(place);
        keys = done.read_all(&mut run.client, SERVICE_MAX);
    }
    let summary = done.check();
    report(&mut run, count, clock.now().since(began));
    println!(
        "{} operations answered, {keys} keys, {summary:?}",
        done.answered
    );
    let (from, pause) = done.longest_pause(first, last);
    println!(
        "the longest time without a write: {} ms from {} ms on; troubles: {:?}",
        pause.as_millis(),
        from.as_nanos() / 1_000_000,
        done.troubles
    );
    assert!(done.answered > 50 * count as u64, "{}", done.answered);
    assert!(run.cluster.stop().success(), "{}", run.cluster.errors());
}

/// Half of the clients speak HaToKuSe, half HTTP.
fn speakers(cluster: &Cluster) -> Vec<Speaker> {
    let [lines, http] = ["hatokuse", "http"].map(|name| Route::direct(&cluster.leaders(name)));
    let one = |number| match number % 2 {
        0 => Speaker::hatokuse(lines.clone()),
        _ => Speaker::http(http.clone()),
    };
    (0..CLIENTS).map(one).collect()
}

fn report(run: &mut Cycles, count: usize, took: Duration) {
    for (fault, [leaders, members]) in FAULTS.iter().zip(run.taken) {
        println!("{fault:?}: {leaders} leaders, {members} members");
    }
    run.returns.sort_unstable();
    let at = |share: usize| run.returns[(run.returns.len() - 1) * share / 100].as_millis();
    println!(
        "{count} cycles in {took:.0?}; writes went on after {} ms at the median, {} ms at p90, {} \
         ms at most",
        at(50),
        at(90),
        at(100)
    );
}

#[test]
#[ignore = "slow: CYCLES of faults, 5 if it is not set, half a minute"]
fn cycles_of_faults_under_load_lose_nothing_and_every_answer_was_allowed() {
    let count = std::env::var("CYCLES").map(|count| count.parse().expect("a number"));
    cycles(count.unwrap_or(5));
}
