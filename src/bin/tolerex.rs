//! The `tolerex` binary.

fn main() {}
