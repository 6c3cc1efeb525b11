//! Processor time of the servers of a local cluster, from `/proc`.
//!
//! The steadiest figure of a noisy machine: it hardly depends on what else runs. The kernel counts
//! in ticks of 10 ms, so a load of a second is off by a percent or so.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;

use super::super::up::manifest::{Manifest, State};

/// Processor time used so far.
#[derive(Clone, Copy, Debug)]
pub struct CpuTime {
    /// By the servers.
    pub servers: Duration,
    /// By this process.
    pub bench: Duration,
}

/// The pids of the running servers of a data directory.
pub fn servers(dir: &Path) -> anyhow::Result<Vec<u32>> {
    let manifest = Manifest::read(dir)?.context("no cluster.json")?;
    let rows = manifest.processes.iter();
    let running = rows.filter(|row| row.state == State::Running);
    Ok(running.map(|row| row.pid).collect())
}

impl CpuTime {
    /// That of now; `None` if no server is known, or one has ended.
    pub fn now(pids: &[u32]) -> Option<CpuTime> {
        if pids.is_empty() {
            return None;
        }
        let servers = pids.iter().map(|pid| of(&pid.to_string()));
        Some(CpuTime {
            servers: servers.sum::<Option<Duration>>()?,
            bench: of("self")?,
        })
    }

    /// What was used since `earlier`: by the servers, and by this process.
    pub fn since(self, earlier: CpuTime) -> (Duration, Duration) {
        (
            self.servers.saturating_sub(earlier.servers),
            self.bench.saturating_sub(earlier.bench),
        )
    }
}

fn of(process: &str) -> Option<Duration> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let ticks = ticks(&stat)?;
    let per_second = rustix::param::clock_ticks_per_second();
    Some(Duration::from_secs_f64(ticks as f64 / per_second as f64))
}

/// User and system time (fields 14 and 15 of proc_pid_stat(5)).
fn ticks(stat: &str) -> Option<u64> {
    // The name, field 2, stands in parentheses and may hold anything.
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ').skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_behind_any_name() {
        let stat = "7 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 30 12 0 0 20 0";
        assert_eq!(ticks(stat), Some(42));
        assert_eq!(ticks("nonsense"), None);
        assert!(of("self").is_some());
        assert!(CpuTime::now(&[]).is_none() && CpuTime::now(&[u32::MAX]).is_none());
    }
}
