//! A batch of requests as a value that events step. Pure.
