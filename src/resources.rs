//! What the system gives this process: file descriptors and memory, and what fits into them.
//!
//! [`descriptors`] and [`memory`] look at the system once, at the start; the functions that compute
//! with what they found are pure. [`allocator`] gives free memory back while the process runs.

pub mod allocator;
pub mod descriptors;
pub mod memory;
