//! What a member does with each request. Pure.
