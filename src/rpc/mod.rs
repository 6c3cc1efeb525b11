//! The wire between leaders and members.

pub mod message;
