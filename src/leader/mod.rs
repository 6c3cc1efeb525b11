//! The leader process.
