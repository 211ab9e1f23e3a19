//! Stands in for the crate `regex`, which oci-spec asks for to check `process.execCPUAffinity` and which would be a fifth of berth's
//! binary. regex-lite is of the same makers and has the same interface without Unicode tables, which `[0-9]` does not need.

pub use regex_lite::Regex;
