//! Looks for what is wrong in a small part of a history that is too large to be searched.
//!
//! A part is some answered requests that ended one after another, and the keys that they name. What
//! others said is forgotten: they may have happened or not, at any time from their calls on. That
//! allows more orders than there are, so a part that has none is wrong, and with it all.

use super::joined::Search;
use super::parts::{Ask, Op, forget_unread};
use super::register::Verdict;

/// Answered requests in a part. Most of what is wrong shows in a few.
const SIZES: [usize; 6] = [1, 2, 3, 6, 12, 24];

/// States that the search of a part may visit: few at first, as most parts are right.
const BOUNDS: [usize; 2] = [300, 5_000];

/// A part that has no order, and how many states were visited.
pub(super) fn wrong_part(ops: &[Op], states_max: usize) -> (Option<Vec<Op>>, usize) {
    let mut answered: Vec<usize> = (0..ops.len()).collect();
    answered.retain(|op| ops[*op].end.is_some());
    answered.sort_unstable_by_key(|op| ops[*op].end);
    let mut states = 0;
    for (bound, size) in BOUNDS
        .into_iter()
        .flat_map(|bound| SIZES.map(|size| (bound, size)))
    {
        for kept in answered.windows(size).step_by(size.div_ceil(3)) {
            let mut slots: Vec<usize> = kept.iter().flat_map(|op| ops[*op].slots()).collect();
            slots.sort_unstable();
            slots.dedup();
            // Each key alone, of which there is little to search, then all of them.
            let alone = slots.chunks(1).filter(|_| slots.len() > 1);
            for slots in alone.chain([slots.as_slice()]) {
                let part = part(ops, kept, slots);
                let mut search = Search::new(&part);
                let verdict = search.run(bound, None);
                states += search.states;
                if verdict == Verdict::Wrong {
                    return (Some(part), states);
                }
                if states > states_max {
                    return (None, states);
                }
            }
        }
    }
    (None, states)
}

/// What is done to these keys: all that is known of some requests, nothing of the others.
fn part(ops: &[Op], kept: &[usize], slots: &[usize]) -> Vec<Op> {
    let slot_of = |slot: usize| slots.binary_search(&slot).ok();
    let mut part = Vec::new();
    for (index, op) in ops.iter().enumerate() {
        let mut op = op.clone();
        op.acts.retain(|act| slot_of(act.slot).is_some());
        for act in &mut op.acts {
            act.slot = slot_of(act.slot).expect("retained");
        }
        if kept.contains(&index) {
            part.extend(Some(op).filter(|op| !op.acts.is_empty()));
            continue;
        }
        op.end = None;
        for act in &mut op.acts {
            act.told = None;
            if let Ask::Set(_, Some(life)) | Ask::Expire(Some(life)) = &mut act.ask {
                (life.asked, life.least, life.most) = (0, 0, None);
            }
        }
        part.extend(op.pieces().filter(|piece| !piece.is_read()));
    }
    forget_unread(&mut part);
    part
}
