//! The runtime that is tried: a program with runc's command line.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// A runtime.
#[derive(Debug, Clone)]
pub struct Runtime {
    /// Its program.
    pub path: PathBuf,
    /// The name that it gives itself, or its file's.
    pub name: String,
    /// Its version, without what a distribution adds.
    pub version: String,
}

impl Runtime {
    /// The runtime at `path`, or of this name in PATH.
    pub fn find(path: &Path) -> Result<Self> {
        let path = located(path).with_context(|| format!("no program {}", path.display()))?;
        let said = Command::new(&path)
            .arg("--version")
            .output()
            .with_context(|| format!("run {} --version", path.display()))?;
        ensure!(said.status.success(), "{} --version ends with {}", path.display(), said.status);
        let file = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let (name, version) = name_and_version(&String::from_utf8_lossy(&said.stdout), &file);
        Ok(Self { path, name, version })
    }
}

/// `program` as an absolute path; a bare name is looked up in PATH and the system's folders.
fn located(program: &Path) -> Option<PathBuf> {
    if program.components().count() > 1 {
        return std::fs::canonicalize(program).ok();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// `runc version 1.1.5+ds1` -> runc, 1.1.5.
fn name_and_version(text: &str, file: &str) -> (String, String) {
    let words: Vec<&str> = text.lines().next().unwrap_or_default().split_whitespace().collect();
    let version = words.iter().find(|word| word.starts_with(|c: char| c.is_ascii_digit()));
    let name = words.first().filter(|word| word.starts_with(|c: char| c.is_ascii_alphabetic()));
    let version = version.and_then(|word| word.split('+').next()).unwrap_or("unknown");
    (name.map_or_else(|| file.to_owned(), ToString::to_string), version.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_versions() {
        let of = |text| name_and_version(text, "file");
        assert_eq!(of("runc version 1.1.5+ds1\ncommit: 1"), ("runc".to_owned(), "1.1.5".to_owned()));
        assert_eq!(of("crun version 1.8.1\n"), ("crun".to_owned(), "1.8.1".to_owned()));
        assert_eq!(of(""), ("file".to_owned(), "unknown".to_owned()));
    }
}
