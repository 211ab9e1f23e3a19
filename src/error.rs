//! How errors read: `operation: field or path: why`, with a hint where the reader can act.
//!
//! Errors are [`anyhow::Error`] chains. Code adds context with what it was doing; the kernel's reason is kept as the
//! `Errno` or `io::Error` at the chain's end and is put into words only here, in lower case, because engines match
//! the words ([`phrases`]).

use std::fmt;

use nix::errno::Errno;

/// Texts that engines look for in an error. A change here breaks the engine that is named.
pub mod phrases {
    /// containerd's shim (`kill`, `delete`), CRI-O
    pub const DOES_NOT_EXIST: &str = "container does not exist";
    /// containerd's shim (`kill`), CRI-O (case-sensitive)
    pub const NOT_RUNNING: &str = "container not running";
    /// podman, containerd's integration tests, people
    pub const ID_EXISTS: &str = "container with given ID already exists";
    /// dockerd (exit 127), podman (exit 127)
    pub const NOT_FOUND_IN_PATH: &str = "executable file not found in $PATH";
    /// dockerd (exit 126): a directory as the command
    pub const IS_A_DIRECTORY: &str = "is a directory";
    /// dockerd and podman (exit 126)
    pub const PERMISSION_DENIED: &str = "permission denied";
    /// runc's text for `exec` into a stopped container
    pub const EXEC_STOPPED: &str = "cannot exec in a stopped container";
    /// runc's text for `exec` into a paused container
    pub const EXEC_PAUSED: &str = "cannot exec in a paused container (use --ignore-paused to override)";
}

/// Errors that are one phrase, for code that asks which one it is.
macro_rules! phrase_errors {
    ($($(#[$doc:meta])* $name:ident: $phrase:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy)]
        pub struct $name;

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(phrases::$phrase)
            }
        }

        impl std::error::Error for $name {}
    )*};
}

phrase_errors! {
    /// There is no such container.
    DoesNotExist: DOES_NOT_EXIST;
    /// There is such a container already.
    Exists: ID_EXISTS;
    /// The container's process is not there to be signalled.
    NotRunning: NOT_RUNNING;
}

/// A hook of start has failed, after which the container is destroyed (runtime-spec, runtime.md, lifecycle, step 7).
#[derive(Debug, Clone)]
pub struct HookFailed(pub String);

impl fmt::Display for HookFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for HookFailed {}

/// An error message that comes with advice. Both are texts for people.
#[derive(Debug, Clone)]
pub struct Hinted {
    /// What is wrong.
    pub message: String,
    /// What the reader can do about it.
    pub hint: String,
}

impl fmt::Display for Hinted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Hinted {}

/// An error with advice for the reader.
pub fn hinted(message: impl Into<String>, hint: impl Into<String>) -> anyhow::Error {
    anyhow::Error::new(Hinted { message: message.into(), hint: hint.into() })
}

/// The kernel's reason in words, lower case: `no such file or directory`.
pub fn reason(errno: Errno) -> String {
    errno.desc().chars().enumerate().map(|(i, c)| if i == 0 { c.to_ascii_lowercase() } else { c }).collect()
}

/// The whole chain on one line, outermost context first.
pub fn text(error: &anyhow::Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    for cause in error.chain() {
        let part = if let Some(errno) = cause.downcast_ref::<Errno>() {
            reason(*errno)
        } else if let Some(code) =
            cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error)
        {
            reason(Errno::from_raw(code))
        } else {
            cause.to_string()
        };
        if parts.last() != Some(&part) {
            parts.push(part);
        }
    }
    parts.join(": ")
}

/// The innermost hint of the chain, or the one that goes with the kernel's error wherever it comes up.
pub fn hint(error: &anyhow::Error) -> Option<String> {
    // one that was added as context is no link of the chain by its own type
    let given = error
        .chain()
        .filter_map(|cause| cause.downcast_ref())
        .last()
        .or_else(|| error.downcast_ref::<Hinted>());
    given.map(|hinted| hinted.hint.clone()).or_else(|| {
        let hint = match errno(error)? {
            Errno::ENOSYS => {
                "the kernel is older than 5.12, or a seccomp filter around berth hides one of its system calls"
            }
            Errno::EMFILE => "the limit on open files is too low for berth: 64 are enough (ulimit -n)",
            _ => return None,
        };
        Some(hint.to_owned())
    })
}

/// The kernel's error at the chain's end, if one is there.
pub fn errno(error: &anyhow::Error) -> Option<Errno> {
    error.chain().find_map(|cause| {
        cause.downcast_ref::<Errno>().copied().or_else(|| {
            cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error).map(Errno::from_raw)
        })
    })
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn the_kernels_reason_is_lower_case_and_last() {
        let error = Err::<(), _>(Errno::ENOENT).context("open \"/x\"").context("create \"web\"").unwrap_err();
        assert_eq!(text(&error), "create \"web\": open \"/x\": no such file or directory");
        let io = Err::<(), _>(std::io::Error::from_raw_os_error(13)).context("open \"/x\"").unwrap_err();
        assert_eq!(text(&io), "open \"/x\": permission denied");
        assert_eq!(errno(&io), Some(Errno::EACCES));
    }

    #[test]
    fn a_hint_that_is_context_is_found_too() {
        let hint = Hinted { message: "no such thing".to_owned(), hint: "make one".to_owned() };
        let error = anyhow::Error::new(Errno::ENOENT).context(hint).context("create");
        assert_eq!(text(&error), "create: no such thing: no such file or directory");
        assert_eq!(super::hint(&error).as_deref(), Some("make one"));
        assert_eq!(errno(&error), Some(Errno::ENOENT));
    }

    #[test]
    fn a_hint_is_found_below_context() {
        let error = Err::<(), _>(hinted("no such thing", "make one")).context("create").unwrap_err();
        assert_eq!(text(&error), "create: no such thing");
        assert_eq!(hint(&error).as_deref(), Some("make one"));
    }
}
