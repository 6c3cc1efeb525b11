//! Compiles `proto/tolerex.proto` with protox, so that the build needs no protoc.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto/tolerex.proto");
    let descriptors = protox::compile(["proto/tolerex.proto"], ["proto"])?;
    // `bytes` fields become `bytes::Bytes`: a payload is a slice of its frame, not a copy.
    prost_build::Config::new()
        .bytes(["."])
        .compile_fds(descriptors)?;
    Ok(())
}
