//! Looks whether bytes may be given to the protobuf library. Pure.
//!
//! Version 2 of the library skips unknown groups by recursion, without a bound (RUSTSEC-2024-0437):
//! a message of some hundred kilobytes would overflow the stack, which ends the process. Raft's
//! messages have no groups, so bytes with one at any level that the library looks at are refused.

/// The fields of a message that are messages themselves.
pub(super) struct Schema(&'static [(u64, &'static Schema)]);

const PLAIN: Schema = Schema(&[]);
const METADATA: Schema = Schema(&[(1, &PLAIN)]);
const SNAPSHOT: Schema = Schema(&[(2, &METADATA)]);
/// `eraftpb.Message`: entries and snapshot.
pub(super) const MESSAGE: Schema = Schema(&[(7, &PLAIN), (9, &SNAPSHOT)]);
/// `eraftpb.ConfChangeV2`: its changes.
pub(super) const CHANGE: Schema = Schema(&[(2, &PLAIN)]);

/// Whether `bytes` have no group; true as well for what is no protobuf at all: the library says so.
pub(super) fn is_without_groups(mut bytes: &[u8], schema: &Schema) -> bool {
    while !bytes.is_empty() {
        let Some(tag) = take_varint(&mut bytes) else {
            return true;
        };
        let length = match tag & 7 {
            0 => match take_varint(&mut bytes) {
                Some(_) => 0,
                None => return true,
            },
            1 => 8,
            2 => match take_varint(&mut bytes) {
                Some(length) => length,
                None => return true,
            },
            3 | 4 => return false,
            5 => 4,
            _ => return true,
        };
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let Some((field, rest)) = bytes.split_at_checked(length) else {
            return true;
        };
        let inner = schema.0.iter().find(|(number, _)| *number == tag >> 3);
        if let Some((_, inner)) = inner.filter(|_| tag & 7 == 2)
            && !is_without_groups(field, inner)
        {
            return false;
        }
        bytes = rest;
    }
    true
}

/// A base-128 number, least significant digits first.
fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for place in 0..10 {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f).checked_shl(7 * place).unwrap_or(0);
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use protobuf::Message as _;
    use raft::eraftpb::{ConfState, Entry, Message};

    use super::*;

    /// Groups of field 100, one in the other.
    fn groups(depth: usize) -> Vec<u8> {
        [0xa3, 0x06].repeat(depth)
    }

    /// `bytes` as field `number`.
    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        let mut length = bytes.len();
        let mut field = vec![number << 3 | 2];
        while length >= 0x80 {
            field.push(length as u8 | 0x80);
            length >>= 7;
        }
        field.push(length as u8);
        [field, bytes.to_vec()].concat()
    }

    #[test]
    fn groups_are_found_at_each_level() {
        let deep = groups(1 << 20);
        let of_snapshot = field(2, &field(1, &deep));
        for bytes in [
            deep.clone(),
            field(7, &deep),
            field(9, &deep),
            field(9, &of_snapshot),
        ] {
            assert!(!is_without_groups(&bytes, &MESSAGE));
        }
        assert!(!is_without_groups(&field(2, &deep), &CHANGE));
    }

    #[test]
    fn whole_messages_and_payloads_of_any_bytes_pass() {
        let mut message = Message {
            term: u64::MAX,
            ..Message::default()
        };
        message.mut_entries().push(Entry {
            data: groups(100).into(),
            ..Entry::default()
        });
        let state = ConfState {
            voters: vec![1, u64::MAX],
            ..ConfState::default()
        };
        let metadata = message.mut_snapshot().mut_metadata();
        metadata.set_conf_state(state);
        let bytes = message.write_to_bytes().expect("encoded");
        for end in 0..=bytes.len() {
            assert!(is_without_groups(&bytes[..end], &MESSAGE));
        }
        assert!(is_without_groups(&[0xff; 30], &MESSAGE));
    }
}
