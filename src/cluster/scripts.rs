//! Golden scripts for liveness and placement: `testscripts/`, one file a subject.

use std::error::Error;
use std::fmt::Write as _;
use std::time::Duration;

use super::tests::read_order;
use super::{Cluster, Strategy};
use crate::clock::Instant;
use crate::ids::MemberId;
use crate::metadata::command::Registration;
use crate::rpc::message::HeartbeatRequest;

/// What scripts say. Members are named by their id, a small number.
#[derive(goldenscript::Command)]
enum Command {
    /// Registers a member.
    Register {
        id: u64,
        #[arg(key, optional)]
        zone: String,
    },
    /// Its name came with a new id.
    Retire { id: u64 },
    /// Our data link to it opens.
    Connect { id: u64 },
    /// Our data link to it breaks.
    Disconnect { id: u64 },
    /// It is late with an answer.
    Late { id: u64 },
    /// It answers.
    Answer { id: u64 },
    /// It sends a heartbeat with this much free space.
    Beat {
        id: u64,
        #[arg(key)]
        free_mib: Option<u64>,
    },
    /// It refuses a record for lack of space.
    Full { id: u64 },
    /// The metadata counts this many copies on it.
    Holds { id: u64, records: u64 },
    /// Time passes.
    Tick { ms: u64 },
    /// Chooses members for a run.
    Choose {
        copies: usize,
        #[arg(key, optional)]
        records: Option<u64>,
        #[arg(key)]
        exclude: Option<u64>,
    },
    /// Ends the charge of a choice.
    Settle { id: u64, records: u64 },
    /// In which order to read from these members.
    ReadOrder(Vec<u64>),
    /// Shows all members.
    Status,
}

struct Runner {
    cluster: Cluster,
    now: Instant,
}

fn names(members: &[MemberId]) -> String {
    let names: Vec<String> = members.iter().map(|id| id.0.to_string()).collect();
    names.join(" ")
}

impl Runner {
    fn status(&self) -> Result<String, Box<dyn Error>> {
        let mut out = String::new();
        for member in self.cluster.members() {
            let fitness = member.liveness.fitness(self.now);
            let fitness = fitness.map_or("none".to_owned(), |fitness| format!("{fitness:?}"));
            let seen = member.liveness.last_seen();
            writeln!(
                out,
                "{} {} fitness={} records={} in_flight={} seen={}",
                member.name,
                member.state(self.now),
                fitness.to_lowercase(),
                member.load.records(),
                member.load.records_in_flight(),
                seen.map_or("never".to_owned(), |at| format!(
                    "{:?} ago",
                    self.now.since(at)
                )),
            )?;
        }
        Ok(out)
    }
}

impl goldenscript::Runner for Runner {
    type Command = Command;

    fn run(
        &mut self,
        command: &Command,
        _context: &goldenscript::Context,
    ) -> Result<String, Box<dyn Error>> {
        let (cluster, now) = (&mut self.cluster, self.now);
        match command {
            Command::Register { id, zone } => cluster.register(&Registration {
                id: MemberId(*id),
                name: format!("member-{id}"),
                address: format!("127.0.0.1:{id}"),
                zone: zone.clone(),
                incarnation: 1,
                nonce: 1,
            }),
            Command::Retire { id } => cluster.retire(MemberId(*id)),
            Command::Connect { id } => cluster.connected(MemberId(*id), now),
            Command::Disconnect { id } => cluster.disconnected(MemberId(*id), now),
            Command::Late { id } => cluster.late(MemberId(*id), now),
            Command::Answer { id } => cluster.answered(MemberId(*id), now),
            Command::Beat { id, free_mib } => {
                let free = free_mib.unwrap_or(1 << 20) << 20;
                let (records, bytes) = (0, 0);
                let counters = HeartbeatRequest {
                    records,
                    bytes,
                    free,
                    seen: Default::default(),
                };
                cluster.heartbeat(MemberId(*id), &counters, now);
            }
            Command::Full { id } => cluster.refused_full(MemberId(*id), now),
            Command::Holds { id, records } => cluster.set_load(MemberId(*id), *records, 0),
            Command::Tick { ms } => self.now = now + Duration::from_millis(*ms),
            Command::Choose {
                copies,
                records,
                exclude,
            } => {
                let exclude: Vec<MemberId> = exclude.iter().map(|id| MemberId(*id)).collect();
                let chosen = cluster.choose(*copies, &exclude, records.unwrap_or(1), 0, now);
                return Ok(format!("chosen: {}\n", names(&chosen)));
            }
            Command::Settle { id, records } => cluster.settle(MemberId(*id), *records, 0),
            Command::ReadOrder(ids) => {
                let ids: Vec<MemberId> = ids.iter().map(|id| MemberId(*id)).collect();
                let order = read_order(cluster, &ids, now);
                let order: Vec<MemberId> = order.into_iter().map(MemberId).collect();
                return Ok(format!("read: {}\n", names(&order)));
            }
            Command::Status => return self.status(),
        }
        Ok(String::new())
    }
}

fn run(script: &str) {
    let cluster = Cluster::new(Strategy::LeastLoaded, 1);
    let now = Instant::from_nanos(0);
    let path = format!("src/cluster/testscripts/{script}");
    goldenscript::run(&mut Runner { cluster, now }, path).expect("the script runs");
}

#[test]
fn liveness_of_a_member_that_dies_and_comes_back() {
    run("liveness_dies_and_comes_back");
}

#[test]
fn placement_newcomer_catches_up_without_taking_all() {
    run("placement_newcomer");
}

#[test]
fn placement_full_disk_is_avoided_for_a_while() {
    run("placement_full_disk");
}
