//! The first frame each way, and refusals. Pure.

use super::{
    Checked, NAME_BYTES_MAX, REASON_BYTES_MAX, from_fence, invalid, to_fence, to_label, wire,
};
use crate::ids::{ClusterId, MemberId};
use crate::rpc::message::{Hello, Purpose, Refusal, Role};

pub(super) fn from_hello(hello: Hello) -> wire::Hello {
    wire::Hello {
        protocol: hello.protocol,
        cluster_id: hello.cluster_id.0,
        name: hello.name,
        node_id: hello.node_id,
        incarnation: hello.incarnation,
        nonce: hello.nonce,
        link: hello.link,
        role: match hello.role {
            Role::Leader => wire::Role::Leader,
            Role::Member => wire::Role::Member,
            Role::Client => wire::Role::Client,
        } as i32,
        purpose: match hello.purpose {
            Purpose::All => wire::Purpose::All,
            Purpose::Fetches => wire::Purpose::Fetches,
        } as i32,
        separates_fetches: hello.separates_fetches,
    }
}

pub(super) fn to_hello(hello: wire::Hello) -> Checked<Hello> {
    let role = match wire::Role::try_from(hello.role) {
        Ok(wire::Role::Leader) => Role::Leader,
        Ok(wire::Role::Member) => Role::Member,
        Ok(wire::Role::Client) => Role::Client,
        Ok(wire::Role::Unspecified) | Err(_) => return invalid("hello.role", "is unknown"),
    };
    let purpose = match wire::Purpose::try_from(hello.purpose) {
        Ok(wire::Purpose::All) => Purpose::All,
        Ok(wire::Purpose::Fetches) if role == Role::Leader => Purpose::Fetches,
        Ok(wire::Purpose::Fetches) => return invalid("hello.purpose", "is for a leader to have"),
        Err(_) => return invalid("hello.purpose", "is unknown"),
    };
    if hello.node_id == 0 && role != Role::Client {
        return invalid("hello.node_id", "is 0");
    }
    Ok(Hello {
        protocol: hello.protocol,
        cluster_id: ClusterId(hello.cluster_id),
        name: to_label(hello.name, 1, NAME_BYTES_MAX, "hello.name")?,
        node_id: hello.node_id,
        incarnation: hello.incarnation,
        nonce: hello.nonce,
        link: hello.link,
        role,
        purpose,
        separates_fetches: hello.separates_fetches,
    })
}

pub(super) fn from_refusal(refusal: Refusal) -> wire::Refused {
    use wire::refused::{NameHeld, Nothing, Reason, StaleIncarnation};
    let reason = match refusal {
        Refusal::StaleFence { highest } => Reason::StaleFence(from_fence(highest)),
        Refusal::NotLeader => Reason::NotLeader(Nothing {}),
        Refusal::Busy => Reason::Busy(Nothing {}),
        Refusal::NoSpace => Reason::NoSpace(Nothing {}),
        Refusal::StaleIncarnation {
            incarnation,
            registered,
        } => Reason::StaleIncarnation(StaleIncarnation {
            incarnation,
            registered,
        }),
        Refusal::Retired(id) => Reason::Retired(id.0),
        Refusal::NameHeld {
            holder,
            messages,
            is_up,
        } => Reason::NameHeld(NameHeld {
            holder: holder.0,
            messages,
            is_up,
        }),
        Refusal::Other(mut words) => {
            let end = (0..=REASON_BYTES_MAX.min(words.len()))
                .rev()
                .find(|&at| words.is_char_boundary(at));
            words.truncate(end.unwrap_or(0));
            Reason::Other(words)
        }
    };
    wire::Refused {
        reason: Some(reason),
    }
}

pub(super) fn to_refusal(refused: wire::Refused) -> Checked<Refusal> {
    use wire::refused::Reason;
    Ok(match refused.reason {
        None => return invalid("refused.reason", "is missing or unknown"),
        Some(Reason::StaleFence(fence)) => Refusal::StaleFence {
            highest: to_fence(Some(fence), "refused.stale_fence")?,
        },
        Some(Reason::NotLeader(_)) => Refusal::NotLeader,
        Some(Reason::Busy(_)) => Refusal::Busy,
        Some(Reason::NoSpace(_)) => Refusal::NoSpace,
        Some(Reason::StaleIncarnation(stale)) => Refusal::StaleIncarnation {
            incarnation: stale.incarnation,
            registered: stale.registered,
        },
        Some(Reason::Retired(id)) => Refusal::Retired(MemberId(id)),
        Some(Reason::NameHeld(held)) => Refusal::NameHeld {
            holder: MemberId(held.holder),
            messages: held.messages,
            is_up: held.is_up,
        },
        Some(Reason::Other(words)) if words.len() > REASON_BYTES_MAX => {
            return invalid("refused.other", "is too long");
        }
        Some(Reason::Other(words)) => Refusal::Other(words.replace(char::is_control, " ")),
    })
}
