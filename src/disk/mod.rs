//! The durable log under a member and the journal of a leader.
