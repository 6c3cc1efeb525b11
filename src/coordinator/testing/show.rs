//! Proposals and replies as golden scripts show them.

use super::*;

/// `#7`, or `#2.7` in the second part of a bulk write.
pub fn show_tag(tag: Tag) -> String {
    match (tag.part(), tag.0 & u64::from(u32::MAX)) {
        (0, call) => format!("#{call}"),
        (part, call) => format!("#{part}.{call}"),
    }
}

fn show_members(members: &[MemberId]) -> String {
    let names: Vec<String> = members.iter().map(|m| format!("m{}", m.0)).collect();
    names.join(",")
}

pub fn show_command(command: &Command) -> String {
    match &command.change {
        Change::Write(operations) => show_operations(operations, |_| None),
        Change::Once(once) => match &once.change {
            OnceChange::Write { tokens, operations } => show_operations(operations, |at| {
                let position = |(position, _): &&(u32, Token)| *position as usize == at;
                tokens.iter().find(position).map(|(_, token)| token)
            }),
            OnceChange::ReserveIds { token, count } => {
                format!("once {token}: ReserveIds {{ count: {count} }}")
            }
            OnceChange::WritePart { token, operations } => {
                format!("part of {token}: {}", show_operations(operations, |_| None))
            }
        },
        Change::Transact(transact) => {
            let atomic = if transact.is_atomic {
                "all or nothing, "
            } else {
                ""
            };
            let once = transact.token.as_ref();
            let once = once.map_or(String::new(), |token| format!("once {token}, "));
            let steps: Vec<String> = transact.steps.iter().map(show_step).collect();
            format!("{atomic}{once}steps: {}", steps.join("; "))
        }
        change => format!("{change:?}"),
    }
}

fn show_step(step: &transact::Step) -> String {
    let once = step.token.as_ref();
    let once = once.map_or(String::new(), |token| format!("once {token}: "));
    let condition = match step.condition {
        None => String::new(),
        Some(Condition::Revision(revision)) => format!("if {}: ", short(revision)),
        Some(condition) => format!("if {condition:?}: ").to_lowercase(),
    };
    let ttl = step
        .ttl_ms
        .map_or(String::new(), |ms| format!(" for {ms} ms"));
    let action = match &step.action {
        Action::Write(operation) => show_operations(std::slice::from_ref(operation), |_| None),
        Action::Expire(key) => format!("expire {key}"),
        Action::Get(key) => format!("get {key}"),
    };
    format!("{once}{condition}{action}{ttl}")
}

fn show_operations<'a>(
    operations: &[Operation],
    token: impl Fn(usize) -> Option<&'a Token>,
) -> String {
    let once = |at| token(at).map_or(String::new(), |token| format!("once {token}: "));
    let show = |operation: &Operation| match operation {
        Operation::Set {
            key,
            revision,
            replicas,
            length,
        } => format!(
            "set {key}@{} on {} ({length} bytes)",
            short(*revision),
            show_members(replicas.as_slice())
        ),
        Operation::Delete { key } => format!("delete {key}"),
    };
    let shown = operations.iter().enumerate();
    let shown = shown.map(|(at, operation)| once(at) + &show(operation));
    shown.collect::<Vec<_>>().join("; ")
}

pub fn show_reply(reply: &Reply) -> String {
    match reply {
        Reply::Stored { revision, .. } => format!("stored {}", short(*revision)),
        Reply::Value { revision, payload } => {
            format!("value {} {:?}", short(*revision), payload)
        }
        Reply::Failed(failure) => format!("ERROR: {failure}"),
        Reply::Mismatch { revision } => {
            let revision = revision.map_or("nothing".to_owned(), short);
            format!("mismatch, there is {revision}")
        }
        Reply::Transaction(replies) => {
            let replies: Vec<String> = replies.iter().map(show_reply).collect();
            format!("[{}]", replies.join("; "))
        }
        Reply::Location {
            revision,
            bytes,
            replicas,
        } => {
            let replicas: Vec<String> = replicas.iter().map(|r| r.to_string()).collect();
            format!(
                "at {} {bytes} bytes {}",
                short(*revision),
                replicas.join(",")
            )
        }
        reply => format!("{reply:?}"),
    }
}
