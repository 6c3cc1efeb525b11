//! Writes with conditions, times to live or reads between them, and their bytes in a command. Pure.
//!
//! The body of the command kind *transact* ([`super::command`], where `varint`, `key` and *set*, a
//! replica set as in a run, are described; a *token* is a varint length, 1..=64, and that much
//! UTF-8):
//!
//! | part | size | meaning |
//! |---|---|---|
//! | now | varint | the leader's time in milliseconds since the Unix epoch |
//! | window | varint | for how many milliseconds tokens are remembered, 1..=[`WINDOW_MS_MAX`] |
//! | flags | 1 | bit 0: all or nothing; bit 1: a token of the whole follows |
//! | token | | if bit 1 is set |
//! | sets | varint | how many replica sets; that many follow |
//! | steps | varint | at least 1, up to [`OPERATIONS_MAX`]; that many follow |
//! | each: form | 1 | see below |
//! | each: key | | |
//! | each: token | | if bit 2 is set; not with a token of the whole |
//! | each: time to live | varint | if bit 3 is set: milliseconds, 1..=[`TTL_MS_MAX`] |
//! | each: condition | 8 | the revision, if it demands one |
//! | a SET: set, revision, length | varint, 8, varint | the set's place among those above |
//!
//! The form: bits 0 and 1 are 0 SET, 1 DEL, 2 expire, 3 get; bit 2 a token, not of a get; bit 3 a
//! time to live, of SET and expire only; bits 4 and 5 a condition, of SET and DEL only: 0 none, 1 a
//! revision, 2 absent, 3 exists.

use crate::ids::{Key, Revision, Token};
use crate::metadata::command::{
    DecodeError, Input, OPERATIONS_MAX, Operation, put_key, put_varint,
};
use crate::metadata::once::WINDOW_MS_MAX;
use crate::metadata::replica_sets::ReplicaSet;
use crate::metadata::tokens::bytes::put_token;
use crate::protocol::request::{Condition, TTL_MS_MAX};

const FLAG_ATOMIC: u8 = 1;
const FLAG_TOKEN: u8 = 2;

const FORM_SET: u8 = 0;
const FORM_DELETE: u8 = 1;
const FORM_EXPIRE: u8 = 2;
const FORM_GET: u8 = 3;
const FORM_TOKEN: u8 = 1 << 2;
const FORM_TTL: u8 = 1 << 3;
const FORM_CONDITION_SHIFT: u8 = 4;

/// Steps that take effect in one entry, each seeing what those before it did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transact {
    /// The leader's time in milliseconds since the Unix epoch; set as the command is proposed.
    pub now_ms: u64,
    /// For how long tokens are remembered, 1..=[`WINDOW_MS_MAX`].
    pub window_ms: u64,
    /// Whether all of it takes effect or nothing; else each step on its own.
    pub is_atomic: bool,
    /// Of the whole; its steps have none then.
    pub token: Option<Token>,
    /// At least one.
    pub steps: Vec<Step>,
}

/// A part of a [`Transact`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// By which a repeat of this step is known.
    pub token: Option<Token>,
    /// What it demands; of a SET or DEL only.
    pub condition: Option<Condition>,
    /// Of a SET: its message expires so long after this entry. Of `Expire`: so does the one that
    /// is there; `None`: it never does.
    pub ttl_ms: Option<u64>,
    /// What it does.
    pub action: Action,
}

/// See [`Step`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// A SET or DEL.
    Write(Operation),
    /// Change when the message expires.
    Expire(Key),
    /// Tell where the message's record is.
    Get(Key),
}

impl Transact {
    /// The SETs and DELs.
    pub fn operations(&self) -> impl Iterator<Item = &Operation> {
        self.steps.iter().filter_map(|step| match &step.action {
            Action::Write(operation) => Some(operation),
            Action::Expire(_) | Action::Get(_) => None,
        })
    }

    /// What it may add to the weight of the remembered tokens.
    pub(super) fn room(&self) -> usize {
        match &self.token {
            Some(_) => self.steps.len(),
            None => self.steps.iter().filter(|s| s.token.is_some()).count(),
        }
    }

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        put_varint(out, self.now_ms);
        assert!((1..=WINDOW_MS_MAX).contains(&self.window_ms));
        put_varint(out, self.window_ms);
        let atomic = if self.is_atomic { FLAG_ATOMIC } else { 0 };
        out.push(atomic | self.token.as_ref().map_or(0, |_| FLAG_TOKEN));
        if let Some(token) = &self.token {
            put_token(out, token);
        }
        let mut sets: Vec<ReplicaSet> = Vec::new();
        for operation in self.operations() {
            if let Operation::Set { replicas, .. } = operation
                && !sets.contains(replicas)
            {
                sets.push(*replicas);
            }
        }
        put_varint(out, sets.len() as u64);
        for set in &sets {
            out.push(set.as_slice().len() as u8);
            out.extend(set.as_slice().iter().flat_map(|id| id.0.to_le_bytes()));
        }
        let count = self.steps.len();
        assert!((1..=OPERATIONS_MAX).contains(&count), "{count} steps");
        put_varint(out, count as u64);
        for step in &self.steps {
            assert!(step.token.is_none() || self.token.is_none(), "two tokens");
            step.put(&sets, out);
        }
    }

    pub(super) fn decode(input: &mut Input<'_>) -> Result<Transact, DecodeError> {
        let now_ms = input.varint()?;
        let window_ms = match input.varint()? {
            window_ms @ 1..=WINDOW_MS_MAX => window_ms,
            _ => return Err(DecodeError::Invalid("window of tokens")),
        };
        let flags = input.byte()?;
        if flags & !(FLAG_ATOMIC | FLAG_TOKEN) != 0 {
            return Err(DecodeError::Invalid("flag of a transaction"));
        }
        let token = match flags & FLAG_TOKEN {
            0 => None,
            _ => Some(input.token()?),
        };
        let mut sets = Vec::new();
        for _ in 0..input.length(OPERATIONS_MAX, "number of replica sets")? {
            let set = input.replicas()?;
            sets.push(set.ok_or(DecodeError::Invalid("replica set"))?);
        }
        let mut steps = Vec::new();
        for _ in 0..input.length(OPERATIONS_MAX, "number of steps")? {
            let step = Step::decode(&sets, input)?;
            if step.token.is_some() && token.is_some() {
                return Err(DecodeError::Invalid("token of a step"));
            }
            steps.push(step);
        }
        if steps.is_empty() {
            return Err(DecodeError::Invalid("number of steps"));
        }
        Ok(Transact {
            now_ms,
            window_ms,
            is_atomic: flags & FLAG_ATOMIC != 0,
            token,
            steps,
        })
    }
}

impl Step {
    /// The message that it is about.
    pub fn key(&self) -> &Key {
        match &self.action {
            Action::Write(operation) => operation.key(),
            Action::Expire(key) | Action::Get(key) => key,
        }
    }

    fn put(&self, sets: &[ReplicaSet], out: &mut Vec<u8>) {
        let form = match &self.action {
            Action::Write(Operation::Set { .. }) => FORM_SET,
            Action::Write(Operation::Delete { .. }) => FORM_DELETE,
            Action::Expire(_) => FORM_EXPIRE,
            Action::Get(_) => FORM_GET,
        };
        let condition = match self.condition {
            None => 0,
            Some(Condition::Revision(_)) => 1,
            Some(Condition::Absent) => 2,
            Some(Condition::Exists) => 3,
        };
        let may_have = |what: bool, forms: &[u8]| {
            assert!(!what || forms.contains(&form), "a step of form {form}");
        };
        may_have(self.token.is_some(), &[FORM_SET, FORM_DELETE, FORM_EXPIRE]);
        may_have(self.ttl_ms.is_some(), &[FORM_SET, FORM_EXPIRE]);
        may_have(self.condition.is_some(), &[FORM_SET, FORM_DELETE]);
        let token = self.token.as_ref().map_or(0, |_| FORM_TOKEN);
        let ttl = self.ttl_ms.map_or(0, |_| FORM_TTL);
        out.push(form | token | ttl | condition << FORM_CONDITION_SHIFT);
        put_key(out, self.key());
        if let Some(token) = &self.token {
            put_token(out, token);
        }
        if let Some(ttl_ms) = self.ttl_ms {
            assert!((1..=TTL_MS_MAX).contains(&ttl_ms), "{ttl_ms} ms to live");
            put_varint(out, ttl_ms);
        }
        if let Some(Condition::Revision(revision)) = self.condition {
            out.extend(revision.as_u64().to_le_bytes());
        }
        if let Action::Write(Operation::Set {
            revision,
            replicas,
            length,
            ..
        }) = &self.action
        {
            let place = sets.iter().position(|set| set == replicas);
            put_varint(out, place.expect("every set is in the table") as u64);
            out.extend(revision.as_u64().to_le_bytes());
            put_varint(out, u64::from(*length));
        }
    }

    fn decode(sets: &[ReplicaSet], input: &mut Input<'_>) -> Result<Step, DecodeError> {
        let bits = input.byte()?;
        let form = bits & 3;
        let (has_token, has_ttl) = (bits & FORM_TOKEN != 0, bits & FORM_TTL != 0);
        let condition = bits >> FORM_CONDITION_SHIFT;
        let is_odd = condition > 3
            || (has_token && form == FORM_GET)
            || (has_ttl && matches!(form, FORM_GET | FORM_DELETE))
            || (condition > 0 && matches!(form, FORM_GET | FORM_EXPIRE));
        if is_odd {
            return Err(DecodeError::Invalid("form of a step"));
        }
        let key = input.key()?;
        let token = if has_token {
            Some(input.token()?)
        } else {
            None
        };
        let ttl_ms = match has_ttl {
            false => None,
            true => match input.varint()? {
                ttl_ms @ 1..=TTL_MS_MAX => Some(ttl_ms),
                _ => return Err(DecodeError::Invalid("time to live")),
            },
        };
        let condition = match condition {
            0 => None,
            1 => Some(Condition::Revision(Revision::from_u64(input.u64()?))),
            2 => Some(Condition::Absent),
            _ => Some(Condition::Exists),
        };
        let action = match form {
            FORM_SET => {
                let place = input.length(OPERATIONS_MAX, "place of a replica set")?;
                let replicas = sets.get(place).copied();
                Action::Write(Operation::Set {
                    key,
                    replicas: replicas.ok_or(DecodeError::Invalid("place of a replica set"))?,
                    revision: Revision::from_u64(input.u64()?),
                    length: input.payload_length()?,
                })
            }
            FORM_DELETE => Action::Write(Operation::Delete { key }),
            FORM_EXPIRE => Action::Expire(key),
            _ => Action::Get(key),
        };
        Ok(Step {
            token,
            condition,
            ttl_ms,
            action,
        })
    }
}

#[cfg(test)]
pub(super) mod tests;
