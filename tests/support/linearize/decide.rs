//! Whether requests on keys that belong together have an order: searches one after the other, until
//! one of them tells.
//!
//! First without long chains of unknown requests, as most of these do not matter. Where that does
//! not tell soon, parts are looked at, as what is wrong hardly ever takes all of a history. Then it
//! is searched as far as the bound allows.

use super::joined::Search;
use super::narrow::narrowed;
use super::parts::Op;
use super::register::Verdict;
use super::windows::wrong_part;

/// States that a try to narrow a failure may visit, and how many tries there are: what is left out
/// becomes unknown, of which there are then many.
const NARROWING_STATES_MAX: usize = 2_000;
const NARROWING_TRIES_MAX: usize = 300;

/// How long chains of unknown requests may be, one try after the other: nearly all unknown requests
/// do not matter, and with few an order is found soon if there is one.
const CHAIN_MAX: [usize; 3] = [1, 3, usize::MAX];

/// Of the states that a search may visit, those after which it is first asked whether a small part
/// is wrong: a right history hardly ever takes as many, a wrong one may take all.
const QUICK_PART: usize = 40;

/// What the search for an order of requests found.
pub(super) struct Found {
    pub verdict: Verdict,
    /// Those that have no order, where it is wrong: all, or a part.
    pub core: Vec<Op>,
    /// How many states were visited.
    pub states: usize,
}

/// Whether the requests have an order.
pub(super) fn decide(ops: &[Op], states_max: usize) -> Found {
    let found = |verdict, core, states| Found {
        verdict,
        core,
        states,
    };
    if let Some(op) = ops.iter().find(|op| op.contradicts_itself()) {
        return found(Verdict::Wrong, vec![op.clone()], 0);
    }
    let (verdict, mut states) = decide_all(ops, states_max / QUICK_PART);
    match verdict {
        Verdict::Right => return found(verdict, Vec::new(), states),
        Verdict::Wrong => return found(verdict, ops.to_vec(), states),
        Verdict::Undecided => {}
    }
    let (part, more) = wrong_part(ops, states_max / 2);
    states += more;
    if let Some(part) = part {
        return found(Verdict::Wrong, part, states);
    }
    let (verdict, more) = decide_all(ops, states_max);
    found(verdict, ops.to_vec(), states + more)
}

fn decide_all(ops: &[Op], states_max: usize) -> (Verdict, usize) {
    let mut states = 0;
    for chain_max in CHAIN_MAX {
        let mut search = Search::new(ops);
        search.chain_max = chain_max;
        let verdict = search.run(states_max, None);
        states += search.states;
        if verdict != Verdict::Wrong || !search.has_more {
            return (verdict, states);
        }
    }
    unreachable!("the last try leaves nothing out")
}

/// Leaves out what a failure does not need: a read is dropped, a write becomes unknown.
pub(super) fn narrow(ops: &[Op]) -> Vec<Op> {
    let forget = |op: &mut Op| {
        op.end = None;
        op.acts.iter_mut().for_each(|act| act.told = None);
    };
    let is_wrong = |ops: &[Op]| Search::new(ops).run(NARROWING_STATES_MAX, None) == Verdict::Wrong;
    let is_answered = |op: &Op| op.end.is_some();
    narrowed(ops, NARROWING_TRIES_MAX, is_answered, forget, is_wrong)
}
