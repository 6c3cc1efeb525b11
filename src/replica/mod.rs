//! What a member does with each request of a leader, in execution order. Pure: the storage engine
//! and its reader are handed in.
//!
//! Stores and releases pass through one [`core::Replica`], owned by the append thread, in the order
//! of its queue:
//!
//! 1. [`core::Replica::stage`] compares each request's fence with the highest executed (R8, R10). A
//!    lower one is refused, a higher one raises it; what is admitted is staged in the engine.
//! 2. If the fence was raised, the shell makes it durable, in every write mode, and says so with
//!    [`core::Replica::persisted`]. Nothing of the group has had an effect so far.
//! 3. [`core::Replica::commit`] gives the group its effect, and the answers.
//!
//! Fetches do not pass there: [`core::fetch`] refuses one with a lower fence and raises nothing, so
//! that slow reads do not hold up stores.

pub mod core;
pub mod fence;
