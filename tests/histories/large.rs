//! Large histories with conditions of which many requests were never answered: each is decided, and
//! in time.

use std::time::Duration;

use tolerex::clock::{Clock, SystemClock};

use crate::parts::{Store, line, random_part};
use crate::support::history::{Command, Outcome};
use crate::support::linearize::{Rule, check_within};
use crate::{Line, record};

/// Answered requests before, unknown ones all at once, and answered ones beside and after them.
struct Storm {
    unknown: usize,
    keys: usize,
    clients: usize,
    /// How many of a hundred unknown ones take effect.
    done: u32,
}

/// Run by a real store.
fn storm(random: &mut fastrand::Rng, shape: &Storm) -> Vec<Line> {
    const BEFORE: usize = 20;
    const AFTER: usize = 60;
    // When it takes effect, call, end; an unknown one may do so at any time from its call on.
    let mut points: Vec<(u64, u64, Option<u64>)> = Vec::new();
    for index in 0..BEFORE as u64 {
        points.push((20 * index + 5, 20 * index, Some(20 * index + 9)));
    }
    for _ in 0..shape.unknown {
        let call = random.u64(500..1_000);
        let point = match random.u32(..100) < shape.done {
            true => random.u64(call + 1..4_000),
            false => u64::MAX,
        };
        points.push((point, call, None));
    }
    let mut free_at = vec![600; shape.clients];
    for _ in 0..AFTER {
        let free_at = &mut free_at[random.usize(..shape.clients)];
        let (call, end) = (*free_at + random.u64(..20), *free_at + random.u64(30..120));
        *free_at = end + 1;
        points.push((random.u64(call + 1..end), call, Some(end)));
    }
    points.sort_unstable();
    let mut store = Store::default();
    let mut lines = Vec::new();
    for (index, (point, call, end)) in points.into_iter().enumerate() {
        let last = store.revision;
        let count = [1, 1, 2, 3][random.usize(..4)];
        let parts = (0..count).map(|part| random_part(random, shape.keys, 10 * index + part, last));
        let parts: Vec<_> = parts.collect();
        let is_atomic = random.bool();
        let told = (point < u64::MAX).then(|| store.perform(&parts, is_atomic, point));
        lines.push(Line {
            client: 1,
            token: None,
            command: Command::parts(parts, is_atomic),
            call,
            end,
            outcome: told
                .filter(|_| end.is_some())
                .map_or(Outcome::Unknown, Outcome::Told),
        });
    }
    lines
}

/// What comes at the end and no order allows, whatever the unknown ones did.
const NEVER: &[&str] = &[
    "5000..5001 1 SET k0 z -> OK@9001; 5002..5003 1 SET k0 y -> OK@9002; 5004..5005 1 GET k0 -> z",
    "5000..5001 1 SET k0 z -> OK@9001; 5002..5009 1 IF 9001 SET k0 y -> OK@9002;
     5002..5009 2 IF 9001 DEL k0 -> OK",
    "5000..5001 1 ATOMIC SET k0 z, SET k1 z -> OK@9001, OK@9002;
     5002..5003 1 GET k0 -> NOT_FOUND; 5004..5005 1 IF 9001 DEL k0 -> OK",
    "5000..5001 1 SET k0 z -> OK@9001; 5002..5003 1 IF 9001 SET k0 y -> MISMATCH@9001",
    "5000..5001 1 GET k0 -> never",
    "5000..5001 1 ATOMIC SET k0 z, IF 9001 SET k1 y -> OK@9002, MISMATCH@9003;
     5002..5003 1 GET k0 -> z",
];

/// A right one is found right, a wrong one is never, and hardly ever takes more than is allowed.
#[test]
fn many_unknown_requests_are_decided() {
    const STATES_MAX: usize = 400_000;
    let mut random = fastrand::Rng::with_seed(1);
    let clock = SystemClock::new();
    let (mut most, mut undecided) = (0, 0);
    let began = clock.now();
    for round in 0..18 {
        let shape = Storm {
            unknown: [50, 100, 200][round % 3],
            keys: random.usize(2..=6),
            clients: random.usize(2..=6),
            done: [0, 5, 20][random.usize(..3)],
        };
        let mut lines = storm(&mut random, &shape);
        let right = check_within(&record(&lines), STATES_MAX);
        let right = right.unwrap_or_else(|fault| panic!("{round}: {fault}"));
        most = most.max(right.states);
        let never = NEVER[(round / 3) % NEVER.len()];
        lines.extend(never.split(';').map(line));
        let wrong = check_within(&record(&lines), STATES_MAX).expect_err(never);
        match wrong.rule {
            Rule::Undecided => undecided += 1,
            rule => assert_eq!(rule, Rule::Order, "{round}: {wrong}"),
        }
    }
    let took = clock.now().since(began);
    println!("{took:?}, at most {most} states of a right one, {undecided} wrong ones undecided");
    assert!(undecided <= 2, "{undecided}");
    assert!(took < Duration::from_secs(60), "{took:?}");
}
