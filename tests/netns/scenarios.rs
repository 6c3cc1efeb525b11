//! What is done to the network, what has to go on meanwhile, and how each is played.
//!
//! A run: the cluster starts, both clients work, the fault comes and lasts, it is healed, both
//! clients are served again within [`SERVICE_MAX`], the cluster is complete again, everything that
//! was written is read, and the histories are checked.

use std::time::Duration;

use tolerex::clock::{Instant, sleep};

use crate::bed::{Bed, STATUS_MAX};
use crate::network::{CLIENTS, LEADERS, NODES, Network, Node, client, name};
use crate::support::clients::{Mix, Work};
use crate::support::group_client::Route;
use crate::support::speakers::Speaker;
use crate::support::wait_until;

/// How long a client waits for a connection and for a reply.
const PATIENCE: Duration = Duration::from_millis(1500);

/// How long a client rests at most between two operations.
const REST: Duration = Duration::from_millis(10);

/// Before the fault, and after it.
const QUIET: Duration = Duration::from_millis(800);

/// How often it is looked who leads.
const LOOK: Duration = Duration::from_millis(50);

/// After healing both clients are served within this.
const SERVICE_MAX: Duration = Duration::from_secs(8);

/// A fault and what it may cost.
pub struct Scenario {
    /// For a person.
    name: &'static str,
    lasts: Duration,
    /// Its steps are evenly spread over that time.
    steps: usize,
    /// Does a step, given the leader that was active before.
    step: fn(&mut dyn Network, Node, usize) -> Result<(), String>,
    /// Whether reads and writes have to go on.
    has_to_serve: bool,
    /// If so, some write is acknowledged again within this time of the last one.
    pause_max: Duration,
    /// The active leader of before has to see that it is not any more.
    steps_down: bool,
    /// The term grows by this much at most.
    terms_max: u64,
    /// See [`PATIENCE`].
    patience: Duration,
}

const USUAL: Scenario = Scenario {
    name: "",
    lasts: Duration::from_secs(5),
    steps: 1,
    step: |_, _, _| Ok(()),
    has_to_serve: true,
    pause_max: Duration::from_secs(5),
    steps_down: false,
    terms_max: 3,
    patience: PATIENCE,
};

/// The active leader is alone.
pub const LEADER_CUT_FROM_EVERYONE: Scenario = Scenario {
    name: "leader cut from everyone",
    step: |network, leader, _| {
        others(leader).for_each(|node| cut(network, leader, node));
        Ok(())
    },
    steps_down: true,
    ..USUAL
};

/// Clients and members still reach the active leader.
pub const LEADER_CUT_FROM_PEERS: Scenario = Scenario {
    name: "leader cut from its peers only",
    step: |network, leader, _| {
        peers(leader).for_each(|node| cut(network, leader, node));
        Ok(())
    },
    steps_down: true,
    ..USUAL
};

/// The active leader, a member and a client on one side, all others on the other one.
pub const HALVES: Scenario = Scenario {
    name: "halves, 1 leader and 1 member | 2 and 2",
    step: |network, leader, _| {
        let side = [leader, LEADERS, client(0)];
        for node in side {
            let others = (0..NODES).filter(|other| !side.contains(other));
            others.for_each(|other| cut(network, node, other));
        }
        Ok(())
    },
    steps_down: true,
    ..USUAL
};

/// It hears its peers, they do not hear it.
pub const LEADER_NOT_HEARD: Scenario = Scenario {
    name: "leader is not heard by its peers",
    step: |network, leader, _| {
        peers(leader).for_each(|node| network.cut(leader, node));
        Ok(())
    },
    steps_down: true,
    ..USUAL
};

/// Its peers hear it, it does not hear them.
pub const LEADER_HEARS_NOBODY: Scenario = Scenario {
    name: "leader does not hear its peers",
    step: |network, leader, _| {
        peers(leader).for_each(|node| network.cut(node, leader));
        Ok(())
    },
    steps_down: true,
    ..USUAL
};

/// The leader hears the member, the member does not hear the leader.
pub const MEMBER_DOES_NOT_HEAR: Scenario = Scenario {
    name: "member does not hear the leader",
    step: |network, leader, _| {
        network.cut(leader, LEADERS);
        Ok(())
    },
    pause_max: Duration::from_secs(2),
    terms_max: 0,
    ..USUAL
};

/// The active leader and another one do not reach each other; a third reaches both.
pub const BRIDGE: Scenario = Scenario {
    name: "bridge node, A-B-C and the leader is A",
    step: |network, leader, _| {
        let far = (leader + 1) % LEADERS;
        cut(network, leader, far);
        Ok(())
    },
    pause_max: Duration::from_secs(2),
    terms_max: 1,
    ..USUAL
};

/// The active leader's cable is out and in, out and in.
pub const FLAPPING: Scenario = Scenario {
    name: "flapping link of the leader",
    lasts: Duration::from_secs(6),
    steps: 20,
    step: |network, leader, step| {
        network.unplug(leader, step.is_multiple_of(2));
        Ok(())
    },
    terms_max: 8,
    ..USUAL
};

/// Every way there and back takes 200 ms longer.
pub const DELAY: Scenario = Scenario {
    name: "200 ms delay of every round trip",
    lasts: Duration::from_secs(8),
    step: |network, _, _| network.delay(Duration::from_millis(100)),
    patience: Duration::from_secs(4),
    ..USUAL
};

/// Twice that. Leaders elect after 300 to 600 ms without one, and an election takes two rounds: it
/// need not succeed while this lasts, and nothing may be answered that is not so.
pub const LONG_DELAY: Scenario = Scenario {
    name: "400 ms delay of every round trip",
    lasts: Duration::from_secs(5),
    step: |network, _, _| network.delay(Duration::from_millis(200)),
    has_to_serve: false,
    terms_max: 20,
    patience: Duration::from_secs(4),
    ..USUAL
};

/// Every packet is lost with a chance of one in ten.
pub const LOSS: Scenario = Scenario {
    name: "10 % loss on every way",
    lasts: Duration::from_secs(6),
    step: |network, _, _| network.lose(10),
    ..USUAL
};

fn others(node: Node) -> impl Iterator<Item = Node> {
    (0..NODES).filter(move |other| *other != node)
}

fn peers(leader: Node) -> impl Iterator<Item = Node> {
    (0..LEADERS).filter(move |other| *other != leader)
}

/// Both directions.
fn cut(network: &mut dyn Network, one: Node, other: Node) {
    network.cut(one, other);
    network.cut(other, one);
}

/// What happened, with the time since the fault began.
struct Events {
    began: Instant,
    lines: Vec<String>,
    /// By leader: the term in which it served when it was last looked.
    serving: [Option<u64>; LEADERS],
}

impl Events {
    fn note(&mut self, now: Instant, what: &str) {
        let time = now.since(self.began).as_secs_f64();
        self.lines.push(format!("  {time:6.2} s  {what}"));
    }

    /// Looks who serves; who is not reached at once is not asked.
    fn look<N: Network>(&mut self, bed: &Bed<N>, work: &Work) {
        for leader in 0..LEADERS {
            let Some(status) = bed.status(leader, LOOK) else {
                continue;
            };
            let term = status["term"].as_u64().expect("a number");
            let is_serving = status["role"] == "leader";
            let before = std::mem::replace(&mut self.serving[leader], is_serving.then_some(term));
            let what = match (before, is_serving) {
                (Some(before), false) => format!("serves no more in term {before}"),
                (before, true) if before != Some(term) => format!("serves in term {term}"),
                _ => continue,
            };
            self.note(work.now(), &format!("{} {what}", name(leader)));
        }
    }

    /// Looks until a time has come.
    fn look_until<N: Network>(&mut self, bed: &Bed<N>, work: &Work, time: Instant) {
        while work.now() < time {
            self.look(bed, work);
            sleep(LOOK.min(time.since(work.now())));
        }
    }
}

/// Plays a scenario on a network.
pub fn play<N: Network>(network: N, scenario: &Scenario) {
    let mut bed = Bed::start(network);
    let (leader, term) = bed.wait_complete();
    let speakers = (0..CLIENTS).map(|number| {
        Speaker::hatokuse(Route {
            patience: scenario.patience,
            ..bed.network.route(number)
        })
    });
    let speakers: Vec<Speaker> = speakers.collect();
    let enter = bed.network.enter();
    let seed = fastrand::u64(..);
    let work = Work::start(speakers, Mix::Plain, seed, REST, move |number| {
        enter(number)
    });
    sleep(QUIET);
    let before = work.answered();
    assert!(before > 10, "{before} operations before the fault");

    let mut events = Events {
        began: work.now(),
        lines: Vec::new(),
        serving: [None; LEADERS],
    };
    events.serving[leader] = Some(term);
    if let Err(reason) = suffer(&mut bed, scenario, leader, &work, &mut events) {
        work.finish();
        return println!("skipped: {}: {reason}", scenario.name);
    }
    let during = work.answered() - before;
    if scenario.steps_down {
        let status = bed.status(leader, STATUS_MAX).expect("it is reached");
        // Where it reaches members, these tell it of entries that its successor has committed: it
        // waits for a leader that has them.
        let role = status["role"].as_str().expect("text");
        assert!(["follower", "waiting"].contains(&role), "{status}");
    }
    bed.network.heal();
    let healed = work.now();
    events.note(healed, "healed");
    wait_until("both clients are served", SERVICE_MAX, || {
        work.all_served_since(healed)
    });
    let served = work.now();
    events.note(served, "both clients are served");
    work.set_era(2);
    events.look_until(&bed, &work, served + QUIET);
    let mut done = work.finish();
    let (_, last_term) = bed.wait_complete();
    let keys = done.read_all(&mut bed.client(), SERVICE_MAX);
    let summary = done.check();

    let (_, pause) = done.longest_pause(events.began, served);
    let reads = done.reads(events.began, healed);
    println!(
        "{}\n{}\n  {} operations, {during} of them, {reads} reads, in {:.1} s of fault; no write \
         for {} ms; terms {term} to {last_term}; {keys} keys read back, {} checked\n  \
         clients' troubles: {:?}",
        scenario.name,
        events.lines.join("\n"),
        done.answered,
        healed.since(events.began).as_secs_f64(),
        pause.as_millis(),
        summary.operations,
        done.troubles,
    );
    if scenario.has_to_serve {
        assert!(reads > 0, "no read was answered");
        assert!(pause <= scenario.pause_max, "no write for {pause:?}");
    }
    assert!(
        last_term - term <= scenario.terms_max,
        "terms {term} to {last_term}"
    );
}

/// The fault, as long as it lasts.
fn suffer<N: Network>(
    bed: &mut Bed<N>,
    scenario: &Scenario,
    leader: Node,
    work: &Work,
    events: &mut Events,
) -> Result<(), String> {
    work.set_era(1);
    let line = format!("fault; {} serves", name(leader));
    events.note(events.began, &line);
    for step in 0..scenario.steps {
        (scenario.step)(&mut bed.network, leader, step)?;
        let share = scenario.lasts * u32::try_from(step + 1).expect("few steps");
        let until = events.began + share / u32::try_from(scenario.steps).expect("few steps");
        events.look_until(bed, work, until);
    }
    Ok(())
}
