//! Stands in for the crate `regex`, which oci-spec asks for to check `process.execCPUAffinity` and which would be a fifth of berth's
//! binary. regex-lite is of the same makers and has the same interface without Unicode tables: its
//! `\d` is 0 to 9 alone, as the kernel's numbers are.

pub use regex_lite::Regex;
