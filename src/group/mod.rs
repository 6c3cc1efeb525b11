//! Raft among leaders.
