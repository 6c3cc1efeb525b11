//! A response to come: what it is, and what of its request it needs. Pure.

use super::fields::{Accept, EntityTag, Range, Tags};
use super::node::{Document, Probe};
use super::problem::Problem;
use crate::ids::Key;

/// How a step is written out.
#[derive(Debug)]
pub enum Form {
    /// Of PUT: the key that was stored.
    Stored(Key),
    /// Of DELETE.
    Deleted,
    /// Of GET: the message.
    Value(Box<Reading>),
    /// A page of keys.
    Keys,
    /// The results of a batch.
    Transaction {
        /// Whether all of it was asked for or nothing.
        is_atomic: bool,
    },
    /// A document of the node.
    Document(Document),
    /// The node's health.
    Check {
        /// What was asked.
        probe: Probe,
        /// Whether each check is listed.
        is_verbose: bool,
        /// Names of checks that do not count.
        excluded: Vec<String>,
    },
    /// A problem.
    Problem(Box<Problem>),
    /// The body is wanted.
    Continue,
}

/// What a GET wants of a message.
#[derive(Debug)]
pub struct Reading {
    /// Its name.
    pub key: Key,
    /// Which representation.
    pub accept: Accept,
    /// Only if it is one of these.
    pub if_match: Option<Tags>,
    /// Only if it is none of these.
    pub if_none_match: Option<Tags>,
    /// Only these bytes of it.
    pub range: Option<Range>,
    /// Only then if it is this one.
    pub if_range: Option<Option<EntityTag>>,
}

/// Whether the connection goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It does.
    Keep,
    /// It does, and an HTTP/1.0 client wants to be told.
    KeepOld,
    /// It ends.
    Close,
}

/// What a response needs to know of its request beside what was asked.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    /// Whether the body is left out.
    pub is_head: bool,
    /// Whether something was to be written: then a problem says its outcome.
    pub is_write: bool,
    /// Whether the connection goes on.
    pub end: End,
}

impl Way {
    /// The last response.
    pub fn last(is_write: bool) -> Way {
        Way {
            is_head: false,
            is_write,
            end: End::Close,
        }
    }
}

/// A response to come.
#[derive(Debug)]
pub struct Step {
    /// What it is.
    pub form: Form,
    /// How it is written.
    pub way: Way,
    /// What was asked for, to be asked elsewhere.
    pub target: Box<str>,
}

impl Step {
    /// A problem, known without execution.
    pub fn problem(problem: Problem, way: Way) -> Step {
        Step {
            form: Form::Problem(Box::new(problem)),
            way,
            target: Box::default(),
        }
    }
}
