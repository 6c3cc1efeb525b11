//! Client connections: readiness, hand-over to workers and back.
