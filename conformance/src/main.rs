//! The runtime-spec's requirements, seen from outside, checked on any OCI runtime.

fn main() {}
