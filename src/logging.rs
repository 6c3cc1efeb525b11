//! One log line format, and its level at run time.
