//! The replicated state: which messages exist, where their copies are. Pure.
//!
//! Changes come as [`command::Command`]s in the order of the Raft log and take effect in
//! [`state::State::apply`] alone (A3). What leaders merely believe (who is up, how busy a member
//! is) is not replicated: it is in `cluster`, and safety never rests on it.
//!
//! Lookups run beside `apply` on other threads: [`state::Shards`] is where the two meet.

pub mod command;
pub mod listing;
pub mod members;
pub mod message_index;
pub mod once;
pub mod replica_sets;
pub mod settings;
pub mod snapshot;
pub mod state;
pub mod tokens;
pub mod transact;
