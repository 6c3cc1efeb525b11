//! Memory and file descriptors of a server process. At the start its limits are lowered to what the
//! system allows: the number of clients by the descriptors, the budgets and queues by the memory.
//! The thread `trim` returns freed memory to the system from time to time.

use anyhow::Context;

use crate::config::units::show_bytes;
use crate::leader;
use crate::member;
use crate::net;
use crate::resources::allocator;
use crate::resources::descriptors::Descriptors;
use crate::resources::memory::{self, Budgets, MemberBudgets};
use crate::threads::{self, StopSignal, Thread};

/// The defaults of `client_buffer_bytes_max` and `cache_bytes`.
const USUAL_BUDGETS: Budgets = Budgets {
    clients: 256 << 20,
    cache: 64 << 20,
};

/// The default of `segment_bytes`.
const USUAL_SEGMENT_BYTES: usize = 64 << 20;

/// Suits the allocator to large messages, and starts the thread that gives free memory back until
/// `stop`.
pub fn start_trim(stop: StopSignal) -> anyhow::Result<Thread> {
    allocator::fix_sizes();
    let trim = move || {
        while !stop.wait_timeout(allocator::TRIM_INTERVAL) {
            allocator::give_back();
        }
    };
    threads::spawn("trim", trim).context("cannot start the thread trim")
}

/// Takes no more clients than leave descriptors for files and links.
pub fn fit_connections(net: &mut net::Limits, descriptors: Descriptors) {
    let wanted = net.connections_max;
    net.connections_max = descriptors.fit(wanted);
    if net.connections_max < wanted {
        log::warn!(
            "connections_max is {wanted}, and this process may have {} files and sockets open: {} \
             clients are served at a time; raise the limit (ulimit -n, LimitNOFILE) to {} for all",
            descriptors.limit,
            net.connections_max,
            Descriptors::needed(wanted)
        );
    }
}

/// The bytes that this process may take: as configured, or as the system allows if that is 0.
fn limit(configured: u64) -> Option<u64> {
    match configured {
        0 => memory::limit(),
        bytes => Some(bytes),
    }
}

/// Sizes the budgets of a leader from the memory that it may take. Those that the configuration
/// sets to something else than usual stay.
pub fn fit_leader(settings: &mut leader::server::Settings, configured: u64) {
    let Some(limit) = limit(configured) else {
        return;
    };
    let usual = USUAL_BUDGETS;
    let fitting = usual.within(limit, settings.payload_bytes_max);
    let clients = &mut settings.net.budget_bytes;
    *clients = fit(
        "client_buffer_bytes_max",
        *clients,
        usual.clients,
        fitting.clients,
        limit,
    );
    let cache = &mut settings.cache_bytes;
    *cache = fit("cache_bytes", *cache, usual.cache, fitting.cache, limit);
}

/// The value that a setting gets: what fits, if it has the usual value and that is too large.
/// Another one that is too large stays, with a warning.
fn fit(name: &str, value: usize, usual: usize, fitting: usize, limit: u64) -> usize {
    if value <= fitting {
        return value;
    }
    let (set, fits) = (show_bytes(value as u64), show_bytes(fitting as u64));
    let limit = show_bytes(limit);
    if value == usual {
        log::info!("{name} is {fits}: this process may take {limit} of memory");
        return fitting;
    }
    log::warn!(
        "{name} is {set}, and this process may take {limit} of memory: more than {fits} may end it"
    );
    value
}

/// Sizes the queues and the segments of a member from the memory that it may take. A size of
/// segments that the configuration sets to something else than usual stays.
pub fn fit_member(settings: &mut member::Settings, configured: u64) {
    let Some(limit) = limit(configured) else {
        return;
    };
    let limits = &mut settings.limits;
    let usual = MemberBudgets {
        unfinished: limits.unfinished_bytes,
        queued: limits.append_queue_bytes,
        segment: USUAL_SEGMENT_BYTES,
    };
    let fitting = usual.within(limit);
    if fitting.unfinished < usual.unfinished || fitting.queued < usual.queued {
        log::info!(
            "requests may hold {} while they arrive and {} while they wait: this process may take \
             {} of memory",
            show_bytes(fitting.unfinished as u64),
            show_bytes(fitting.queued as u64),
            show_bytes(limit)
        );
    }
    limits.unfinished_bytes = fitting.unfinished;
    limits.append_queue_bytes = fitting.queued;
    let segment = usize::try_from(settings.segment_bytes).unwrap_or(usize::MAX);
    settings.segment_bytes = fit(
        "segment_bytes",
        segment,
        usual.segment,
        fitting.segment,
        limit,
    ) as u64;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Sources;
    use crate::config::leader::LeaderConfig;
    use crate::config::member::MemberConfig;

    #[test]
    fn the_usual_budgets_are_the_defaults() {
        let dir = tempfile::tempdir().expect("a directory");
        let base = dir.path().to_str().expect("UTF-8").to_owned();
        let sources = Sources {
            flags: vec![("base_dir".to_owned(), base)],
            ..Sources::default()
        };
        let config = LeaderConfig::load(&sources).expect("valid").config;
        let usual = Budgets {
            clients: config.client_buffer_bytes_max,
            cache: config.cache_bytes,
        };
        assert_eq!(usual, USUAL_BUDGETS);
        let config = MemberConfig::load(&sources).expect("valid").config;
        assert_eq!(config.segment_bytes, USUAL_SEGMENT_BYTES as u64);
    }
}
