//! The member process.
