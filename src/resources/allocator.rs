//! The allocator of the C library (glibc): sizes that suit large messages, and free memory that is
//! given back.
//!
//! glibc keeps what is freed, in an arena for each few threads, and raises the size from which it
//! maps a buffer by itself to that of the largest one freed so far: after a burst of messages of 16
//! MB a leader kept 650 MB. So the two sizes are fixed, and free pages of all arenas go back every
//! [`TRIM_INTERVAL`] while the process is not small. A buffer is given back within that time once
//! it is free; nothing is said of buffers that are kept.
//!
//! Rejected: mimalloc took a fifth less CPU time for GETs with 16 in flight, none for GETs one by
//! one, a third more for SETs with 16 in flight, and twice the resident memory (184 MiB beside 99
//! of a leader, 61 to 71 beside 25 to 29 of a member, after these loads by `tolerex bench`).
//!
//! Rejected too: giving back at once (a `M_TRIM_THRESHOLD` of 128 KiB, or buffers of 1 MiB mapped)
//! costs twice the CPU time for reads of 1 MiB, for pages that are used again at once; jemalloc a
//! third more. With another C library this does nothing.

// The C library has no safe interface to its allocator; the calls take no pointers.
#![allow(unsafe_code)]

use std::fs;
use std::time::Duration;

/// From this size on a buffer is mapped by itself, and given back when it is freed. Half of it and
/// frames with several messages of 1 MiB cost their pages anew each time, twice of it leaves holes
/// of that size.
const MAP_BYTES_MIN: usize = 4 << 20;

/// Free bytes at the end of an arena that are kept until the next trim: sixteen such buffers.
const ARENA_FREE_BYTES_MAX: usize = 64 << 20;

/// How often free pages are given back. A second look each second would be felt by a busy process,
/// which needs them again (some 50 ms of CPU time for 200 MB).
pub const TRIM_INTERVAL: Duration = Duration::from_secs(3);

/// A process with less resident memory is left alone: at rest it has half of this.
const SMALL_BYTES: u64 = 48 << 20;

/// Gives free pages back, unless the process is small. To be called every [`TRIM_INTERVAL`].
pub fn give_back() {
    if resident_bytes().is_none_or(|bytes| bytes > SMALL_BYTES) {
        trim();
    }
}

/// Resident memory of this process, as far as it is known.
fn resident_bytes() -> Option<u64> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    pages.checked_mul(rustix::param::page_size() as u64)
}

/// Fixes the sizes. Before many threads are started.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn fix_sizes() {
    let sizes = [
        (libc::M_MMAP_THRESHOLD, MAP_BYTES_MIN),
        (libc::M_TRIM_THRESHOLD, ARENA_FREE_BYTES_MAX),
    ];
    for (parameter, bytes) in sizes {
        let bytes = libc::c_int::try_from(bytes).expect("some MiB");
        // SAFETY: `mallopt` takes two numbers and may be called at any time.
        if unsafe { libc::mallopt(parameter, bytes) } != 1 {
            log::warn!("the allocator keeps its sizes: parameter {parameter} was refused");
        }
    }
}

/// Fixes the sizes, were they known.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn fix_sizes() {}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn trim() {
    // SAFETY: `malloc_trim` takes a number and may be called at any time.
    unsafe { libc::malloc_trim(0) };
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn trim() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_resident_memory() {
        assert!(resident_bytes().is_some_and(|bytes| bytes > 1 << 20));
    }
}
