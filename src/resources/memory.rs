//! Memory: how much this process may take, and what of it the clients of a leader get.
//!
//! The limit is the least of the machine's memory and of what the control groups of the process,
//! from its own up to the root, allow it (`memory.max` of version 2, `memory.limit_in_bytes` of
//! version 1). A container's limit is one of these. The process ends without a word when it takes
//! more, so budgets are sized from it at the start.

use std::fs;
use std::path::{Path, PathBuf};

/// The share of the limit for the input and output of all clients. A message on its way is held up
/// to four times: as input, in a frame for each of two members, and encrypted; so a sixteenth is a
/// quarter of the memory, and leaves the rest to metadata, the cache, and members of a cluster that
/// share the limit.
const CLIENTS_SHARE: u64 = 16;

/// The share of the limit for the cache.
const CACHE_SHARE: u64 = 32;

/// The bytes that this process may take; `None` if that is not known.
pub fn limit() -> Option<u64> {
    let read = |path: &Path| fs::read_to_string(path).ok();
    let machine = read(Path::new("/proc/meminfo")).and_then(|text| total(&text));
    let groups = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
    let allowed = files(&groups)
        .into_iter()
        .filter_map(|path| bytes(&read(&path)?));
    allowed.chain(machine).min()
}

/// `MemTotal` of `/proc/meminfo`, in bytes.
fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The files that limit the process, from `/proc/self/cgroup`: of each group, and of those above.
fn files(groups: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
            continue;
        };
        let (root, name) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            _ if controllers.split(',').any(|one| one == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => continue,
        };
        let path = path.trim_start_matches('/');
        let above = Path::new(path).ancestors();
        files.extend(above.map(|group| Path::new(root).join(group).join(name)));
    }
    files
}

/// The content of such a file; `None` for no limit. Version 1 writes a number near 2^63 for that,
/// which the machine's memory undercuts.
fn bytes(content: &str) -> Option<u64> {
    content.trim().parse().ok()
}

/// Memory of a leader that is sized from its limit, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budgets {
    /// For the input and output of all clients.
    pub clients: usize,
    /// For the cache.
    pub cache: usize,
}

impl Budgets {
    /// What fits into `limit`: no more than `self`, with room for a message of `payload_bytes_max`.
    pub fn within(self, limit: u64, payload_bytes_max: usize) -> Budgets {
        let share = |of: u64| usize::try_from(limit / of).unwrap_or(usize::MAX);
        let clients = share(CLIENTS_SHARE).max(payload_bytes_max);
        Budgets {
            clients: self.clients.min(clients),
            cache: self.cache.min(share(CACHE_SHARE)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_limit_is_that_of_the_group_and_of_those_above_it() {
        let shown = |groups: &str| -> Vec<String> {
            let files = files(groups).into_iter();
            files.map(|path| path.display().to_string()).collect()
        };
        assert_eq!(
            shown("0::/a.slice/b.scope\n"),
            [
                "/sys/fs/cgroup/a.slice/b.scope/memory.max",
                "/sys/fs/cgroup/a.slice/memory.max",
                "/sys/fs/cgroup/memory.max",
            ]
        );
        assert_eq!(
            shown("4:cpu,cpuacct:/x\n3:memory:/docker/1\n1:name=systemd:/y:z\n"),
            [
                "/sys/fs/cgroup/memory/docker/1/memory.limit_in_bytes",
                "/sys/fs/cgroup/memory/docker/memory.limit_in_bytes",
                "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            ]
        );
        assert_eq!(shown("0::/\n"), ["/sys/fs/cgroup/memory.max"]);
        assert!(shown("nonsense\n\n7:\n").is_empty());
    }

    #[test]
    fn what_is_no_number_is_no_limit() {
        assert_eq!(bytes("419430400\n"), Some(400 * MIB));
        assert_eq!(bytes("max\n"), None);
        assert_eq!(bytes(""), None);
        assert_eq!(
            total("MemFree: 1 kB\nMemTotal:       2048 kB\n"),
            Some(2 * MIB)
        );
        assert_eq!(total("MemTotal: many\n"), None);
        assert!(
            limit().is_some_and(|limit| limit > MIB),
            "this machine has memory"
        );
    }

    #[test]
    fn budgets_fit_the_limit_and_hold_one_message() {
        let usual = Budgets {
            clients: 256 << 20,
            cache: 64 << 20,
        };
        for (limit, clients, cache) in [
            (64 << 10, 256, 64),
            (4096, 256, 64),
            (2048, 128, 64),
            (400, 25, 12),
            (64, 16, 2),
        ] {
            let found = usual.within(limit * MIB, 16 << 20);
            assert_eq!(
                (found.clients >> 20, found.cache >> 20),
                (clients, cache),
                "{limit}"
            );
        }
    }
}
