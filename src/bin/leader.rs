//! The `leader` binary.

fn main() {}
