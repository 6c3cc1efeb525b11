//! How the system chooses between the threads of this machine.
//!
//! A thread that wakes usually takes the processor from one that runs. For a worker that is bad:
//! the client that sent a request, or the link that brings an answer, is interrupted after the
//! first of several, the worker serves that one, sleeps, and is woken for the next. So workers have
//! the policy `SCHED_BATCH`: one that wakes takes an idle processor as ever, but where all are busy
//! it waits until a thread there sleeps or has had its time (some milliseconds), and then finds
//! more to do at once. Source: `sched(7)`.
//!
//! Measured with two processors, which leader, members and clients share, and `tolerex bench` with
//! 64 connections: a third more GETs a second, a tenth more with a pipeline of 16, and as many
//! where each connection has a thread. Beside two processes that keep both processors busy, a GET
//! or SET of one connection takes as long as without it. Rejected: the same for the Raft thread and
//! the journal, as SETs took three times as long beside such processes.

// The C library has no safe interface for this; see the call.
#![allow(unsafe_code)]

/// Has the calling thread wait, whenever it wakes, for a processor that is idle or whose thread has
/// had its time. If the system refuses that, nothing changes.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn interrupt_nobody() {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: 0 means the calling thread, and the call reads the parameters before it returns.
    if unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const parameters) } != 0 {
        log::debug!(
            "this thread keeps its policy: {}",
            std::io::Error::last_os_error()
        );
    }
}

/// As on Linux, were there such a policy.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn interrupt_nobody() {}

#[cfg(all(test, target_os = "linux", target_env = "gnu"))]
mod tests {
    use super::*;

    /// The scheduling policy of the calling thread, as a number: 0 is the usual one, 3 is
    /// `SCHED_BATCH`. It is field 41 of `/proc/thread-self/stat` (`proc_pid_stat(5)`). Field 2, the
    /// name, may contain spaces, so fields are counted behind it.
    fn policy() -> String {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").expect("it is there");
        let (_, fields) = stat.rsplit_once(") ").expect("a name in parentheses");
        let policy = fields.split(' ').nth(38).expect("field 41");
        policy.to_owned()
    }

    #[test]
    fn only_the_thread_that_asked_for_it_interrupts_nobody() {
        let (found, policies) = crossbeam_channel::bounded(2);
        let thread = crate::threads::spawn("worker", move || {
            found.send(policy()).expect("there is room");
            interrupt_nobody();
            found.send(policy()).expect("there is room");
        });
        thread.expect("a thread").join();
        assert_eq!(policies.iter().collect::<Vec<_>>(), ["0", "3"]);
        assert_eq!(policy(), "0");
    }
}
