//! What is said of a history that is not allowed.

use bytes::Bytes;

use super::super::history::{Command, Operation, text};
use super::register::{Search, narrow};
use super::split::{ABSENT, Action, Step};
use super::{Fault, Request, Rule, STATES_MAX, decide, joined, parts};

/// Lines of a kind in a report.
const LINES_MAX: usize = 30;

/// Makes faults of what searches found.
pub(super) struct Report;

impl Report {
    pub fn undecided(key: &[u8], steps: usize, states_max: usize) -> Fault {
        let key_text = text(key);
        Fault {
            rule: Rule::Undecided,
            key: Some(Bytes::copy_from_slice(key)),
            report: format!(
                "key {key_text}: not decided: {steps} operations, {states_max} states visited"
            ),
        }
    }

    pub fn wrong_parts(
        (keys, total): (&[&[u8]], usize),
        ops: &[parts::Op],
        requests: &[Request<'_>],
        operations: &[Operation],
    ) -> Fault {
        let core = decide::narrow(ops);
        let mut search = joined::Search::new(&core);
        search.run(STATES_MAX, None);
        let deepest = search.deepest;
        let mut search = joined::Search::new(&core);
        search.run(STATES_MAX, Some(deepest));
        let order = search.order();
        let is_stuck = |index: &usize| core[*index].end.is_some() && !order.contains(index);
        let stuck: Vec<usize> = (0..core.len()).filter(is_stuck).collect();
        let names: Vec<String> = keys.iter().map(|key| text(key)).collect();
        let count = core.iter().filter(|op| op.end.is_some()).count();
        let mut report = format!(
            "keys {}: no order fits {count} of {} operations",
            names.join(" "),
            total
        );
        for (title, indices) in [
            ("the longest order found", order),
            ("cannot come next", stuck),
        ] {
            report += &format!("\n {title}:");
            let hidden = indices.len().saturating_sub(LINES_MAX);
            for index in &indices[hidden..] {
                let request = &requests[core[*index].request];
                report += &format!("\n  {}", operations[request.calls[0]]);
            }
        }
        Fault {
            rule: Rule::Order,
            key: Some(Bytes::copy_from_slice(keys[0])),
            report,
        }
    }

    pub fn wrong(
        key: &[u8],
        steps: &[Step],
        requests: &[Request<'_>],
        operations: &[Operation],
    ) -> Fault {
        let core = narrow(steps);
        let mut search = Search::new(&core);
        search.run(STATES_MAX, None);
        let deepest = search.deepest;
        let mut search = Search::new(&core);
        search.run(STATES_MAX, Some(deepest));
        let order = search.order();
        let is_left = |index: &usize| !order.contains(index);
        let mut stuck: Vec<usize> = (0..core.len()).filter(is_left).collect();
        stuck.retain(|index| core[*index].end.is_some());
        let mut unknown: Vec<usize> = (0..core.len()).filter(is_left).collect();
        unknown.retain(|index| matters(&core[*index], &core));

        let shown = |index: &usize| {
            let request = &requests[core[*index].request];
            let calls = request
                .calls
                .iter()
                .map(|call| operations[*call].to_string());
            let mut shown = calls.collect::<Vec<String>>().join("\n    same token: ");
            let is_bulk = matches!(request.command, Command::Bulk { .. });
            if is_bulk && core[*index].action == Action::See(ABSENT) {
                shown += " (so the id was unused)";
            }
            shown
        };
        let count = core.iter().filter(|step| step.end.is_some()).count();
        let total = steps.len();
        let key_text = text(key);
        let mut report = format!("key {key_text}: no order fits {count} of {total} operations");
        let mut list = |title: &str, indices: &[usize]| {
            if indices.is_empty() {
                return;
            }
            report += &format!("\n {title}:");
            let hidden = indices.len().saturating_sub(LINES_MAX);
            if hidden > 0 {
                report += &format!("\n  ({hidden} more)");
            }
            let last = indices.iter().skip(hidden);
            last.for_each(|index| report += &format!("\n  {}", shown(index)));
        };
        list("the longest order found", &order);
        list("cannot come next", &stuck);
        list("may have happened or not, or overwritten", &unknown);
        Fault {
            rule: Rule::Order,
            key: Some(Bytes::copy_from_slice(key)),
            report,
        }
    }
}

/// Whether a step without an end could have helped one of those that have one.
fn matters(step: &Step, core: &[Step]) -> bool {
    let mut needs = core.iter().filter(|other| {
        other.end.is_some_and(|end| step.call < end)
            && match step.action {
                Action::Write(value) => {
                    other.action == Action::Take || other.action == Action::See(value)
                }
                Action::Clear => other.action == Action::See(ABSENT),
                Action::See(_) | Action::Take => false,
            }
    });
    step.end.is_none() && needs.next().is_some()
}
