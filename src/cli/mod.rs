//! The tolerex command.
