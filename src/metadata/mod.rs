//! The replicated state: which messages exist, where their copies are. Pure.

pub mod command;
pub mod replica_sets;
