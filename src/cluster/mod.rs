//! What a leader believes of its members: registry, liveness, load. Pure.
