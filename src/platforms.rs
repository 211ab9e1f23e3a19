//! Sections of a configuration that are for other platforms (runtime-spec, config.md, "Platform-specific configuration").

use crate::findings::Findings;

/// The sections of config.json that are for other platforms, and which.
pub const OTHERS: [(&str, &str); 5] = [
    ("solaris", "Solaris"),
    ("windows", "Windows"),
    ("vm", "virtual machines"),
    ("zos", "z/OS"),
    ("freebsd", "FreeBSD"),
];

/// Who gives such a section expects what Linux has not.
pub fn refuse(section: &str, findings: &mut Findings) {
    for (_, platform) in OTHERS.iter().filter(|(name, _)| *name == section) {
        findings.problem(section, format!("is for {platform}: berth makes containers of Linux"));
    }
}
