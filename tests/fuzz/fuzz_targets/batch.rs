//! See `tests/fuzz/checks/mod.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tolerex_fuzz::run("batch", data));
