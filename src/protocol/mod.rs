//! Client protocols: bytes to requests, replies to bytes. Pure.

pub mod reply;
pub mod request;
