//! What the system gives this process: file descriptors and memory, and what fits into them.
//!
//! [`descriptors`] and [`memory`] look at the system once, at the start; the functions that compute
//! with what they found are pure.

pub mod descriptors;
pub mod memory;
