//! Reads the parts of commands and snapshots, and checks every one. Pure.

use super::{
    DecodeError, OPERATIONS_MAX, Operation, RESERVE_COUNT_MAX, Registration, TEXT_BYTES_MAX,
};
use crate::ids::{KEY_BYTES_MAX, Key, MemberId, Revision, TOLERANCE_MAX};
use crate::metadata::replica_sets::ReplicaSet;

/// What is left to decode.
pub(in crate::metadata) struct Input<'a> {
    pub(in crate::metadata) rest: &'a [u8],
}

impl<'a> Input<'a> {
    pub(in crate::metadata) fn take(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self
            .rest
            .split_at_checked(count)
            .ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    pub(in crate::metadata) fn byte(&mut self) -> Result<u8, DecodeError> {
        let (first, rest) = self.rest.split_first().ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(*first)
    }

    pub(in crate::metadata) fn u64(&mut self) -> Result<u64, DecodeError> {
        let (first, rest) = self
            .rest
            .split_first_chunk()
            .ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(u64::from_le_bytes(*first))
    }

    pub(in crate::metadata) fn varint(&mut self) -> Result<u64, DecodeError> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            // The tenth byte has room for one bit.
            if shift == 63 && bits > 1 {
                return Err(DecodeError::Invalid("varint"));
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(DecodeError::Invalid("varint"))
    }

    /// A varint that is at most `max`, which is far below 2^32.
    pub(in crate::metadata) fn length(
        &mut self,
        max: usize,
        what: &'static str,
    ) -> Result<usize, DecodeError> {
        let length = usize::try_from(self.varint()?).unwrap_or(usize::MAX);
        (length <= max)
            .then_some(length)
            .ok_or(DecodeError::Invalid(what))
    }

    pub(in crate::metadata) fn count_of_ids(&mut self) -> Result<u64, DecodeError> {
        match self.varint()? {
            count @ 1..=RESERVE_COUNT_MAX => Ok(count),
            _ => Err(DecodeError::Invalid("count of ids")),
        }
    }

    pub(in crate::metadata) fn operations(&mut self) -> Result<Vec<Operation>, DecodeError> {
        let total = self.length(OPERATIONS_MAX, "number of operations")?;
        let mut operations = Vec::new();
        while operations.len() < total {
            let replicas = self.replicas()?;
            let left = total - operations.len();
            let count = self.length(left, "number of operations")?;
            if count == 0 {
                return Err(DecodeError::Invalid("number of operations"));
            }
            for _ in 0..count {
                let key = self.key()?;
                operations.push(match replicas {
                    Some(replicas) => Operation::Set {
                        key,
                        revision: Revision::from_u64(self.u64()?),
                        replicas,
                        length: self.payload_length()?,
                    },
                    None => Operation::Delete { key },
                });
            }
        }
        Ok(operations)
    }

    pub(in crate::metadata) fn payload_length(&mut self) -> Result<u32, DecodeError> {
        let length = u32::try_from(self.varint()?);
        length.map_err(|_| DecodeError::Invalid("payload length"))
    }

    /// The replica set of a run; `None` for a run of DELs.
    pub(in crate::metadata) fn replicas(&mut self) -> Result<Option<ReplicaSet>, DecodeError> {
        let count = self.byte()?;
        if count == 0 {
            return Ok(None);
        }
        if count > TOLERANCE_MAX {
            return Err(DecodeError::Invalid("replica set"));
        }
        let members = (0..count).map(|_| self.u64().map(MemberId));
        let members = members.collect::<Result<Vec<_>, _>>()?;
        let replicas = ReplicaSet::new(&members).ok_or(DecodeError::Invalid("replica set"))?;
        if replicas.as_slice() != members {
            return Err(DecodeError::Invalid("order of a replica set"));
        }
        Ok(Some(replicas))
    }

    pub(in crate::metadata) fn key(&mut self) -> Result<Key, DecodeError> {
        match self.length(KEY_BYTES_MAX, "length of a key")? {
            0 => Ok(Key::Id(self.varint()?)),
            length => match Key::parse(self.take(length)?) {
                Ok(key @ Key::Word(_)) => Ok(key),
                Ok(Key::Id(_)) | Err(_) => Err(DecodeError::Invalid("key")),
            },
        }
    }

    pub(in crate::metadata) fn registration(&mut self) -> Result<Registration, DecodeError> {
        Ok(Registration {
            id: MemberId(self.u64()?),
            incarnation: self.u64()?,
            nonce: self.u64()?,
            name: self.text()?,
            address: self.text()?,
            zone: self.text()?,
        })
    }

    fn text(&mut self) -> Result<String, DecodeError> {
        let length = self.length(TEXT_BYTES_MAX, "length of a text")?;
        let text = std::str::from_utf8(self.take(length)?);
        Ok(text.map_err(|_| DecodeError::Invalid("text"))?.to_owned())
    }
}
