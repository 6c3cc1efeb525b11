//! Memory: how much this process may take, and what of it clients and queues get.
//!
//! The limit is the least of the machine's memory and of what the control groups of the process,
//! from its own up to the root, allow it (`memory.max` of version 2, `memory.limit_in_bytes` of
//! version 1). A container's limit is one of these. The process ends without a word when it takes
//! more, so budgets are sized from it at the start.
//!
//! # Peak
//!
//! At rest a leader has some 24 MiB and a member 16 MiB, beside what grows with the messages. Large
//! requests of clients take up to half of their budget, or one of them all that it needs. Frames to
//! the members hold messages below 1 MiB once more for each copy; larger ones are shared, and kept
//! a little longer than their request if a member takes one late. So a leader peaks at
//! `32 MiB + metadata + cache + clients + tolerance * clients / 2`, or with large messages only at
//! `32 MiB + metadata + cache + clients + one message for each member that is late`, 8 MiB of which
//! the allocator keeps for a moment. A member has
//! what arrives, what waits, the group that is written (8 MiB or one message) twice, and reads each
//! full segment once: `16 MiB + index + unfinished + queued + 2 * group + segment`.

use std::fs;
use std::path::{Path, PathBuf};

/// The share of the limit for the input and output of all clients. With two copies, three eighths
/// of the limit are held for them; the rest is for metadata, the cache, and copies that are made
/// again elsewhere. With a sixth, a cluster of 400 MiB in all took 430.
const CLIENTS_SHARE: u64 = 8;

/// The share of a member's limit for requests that arrive, for those that wait, and for a segment.
const MEMBER_SHARE: u64 = 4;

/// Segments are not made smaller than this for want of memory: each is a file, which is kept open.
const SEGMENT_BYTES_MIN: usize = 4 << 20;

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

/// Memory of a member that is sized from its limit, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberBudgets {
    /// For frames of which a part has come.
    pub unfinished: usize,
    /// For requests that wait to be written.
    pub queued: usize,
    /// The size of a segment of the log, which is read into memory as a whole.
    pub segment: usize,
}

impl MemberBudgets {
    /// What fits into `limit`: no more than `self`. One request is taken in any case.
    pub fn within(self, limit: u64) -> MemberBudgets {
        let share = usize::try_from(limit / MEMBER_SHARE).unwrap_or(usize::MAX);
        MemberBudgets {
            unfinished: self.unfinished.min(share),
            queued: self.queued.min(share),
            segment: self.segment.min(share.max(SEGMENT_BYTES_MIN)),
        }
    }
}

/// The limit of each of `count` leaders, or members, of a cluster that may take `total` bytes: the
/// leaders share one half, the members the other.
pub fn share_of(total: u64, count: usize) -> u64 {
    total / 2 / (count.max(1) as u64)
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
            (1024, 128, 32),
            (400, 50, 12),
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

    #[test]
    fn members_share_what_is_not_for_leaders() {
        let usual = MemberBudgets {
            unfinished: 256 << 20,
            queued: 256 << 20,
            segment: 64 << 20,
        };
        assert_eq!(usual.within(4096 * MIB), usual);
        let share = share_of(400 * MIB, 3);
        assert_eq!((share_of(400 * MIB, 1) / MIB, share / MIB), (200, 66));
        let fitting = usual.within(share);
        assert_eq!((fitting.unfinished >> 20, fitting.queued >> 20), (16, 16));
        assert_eq!(fitting.segment >> 20, 16);
        assert_eq!(usual.within(MIB).segment, SEGMENT_BYTES_MIN);
    }
}
