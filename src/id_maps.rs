//! Id mappings of user namespaces (user_namespaces(7)): checked, written for a new namespace, and held by one for a mount.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{Pid, pipe2};
use oci_spec::runtime::LinuxIdMapping;

use crate::error::{Hinted, hinted};
use crate::findings::Findings;
use crate::proc::Proc;
use crate::sys::tasks::{Clone, Cloned, exit_now, pidfd_send_signal};

/// Lines that the kernel takes (user_namespaces(7)).
const MAX_LINES: usize = 340;

/// One line of `/proc/PID/uid_map`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct IdMap {
    /// First id inside.
    pub container: u32,
    /// First id outside.
    pub host: u32,
    /// How many.
    pub size: u32,
}

/// Reads the mappings at `field`; what the kernel would not take is a problem.
pub fn plan(field: &str, mappings: Option<&[LinuxIdMapping]>, findings: &mut Findings) -> Vec<IdMap> {
    let mappings = mappings.unwrap_or_default();
    let map: Vec<IdMap> = mappings
        .iter()
        .map(|m| IdMap { container: m.container_id(), host: m.host_id(), size: m.size() })
        .collect();
    check(field, &map, findings);
    map
}

/// What the kernel would not take is a problem.
pub fn check(field: &str, map: &[IdMap], findings: &mut Findings) {
    if map.len() > MAX_LINES {
        findings.problem(field, format!("{} mappings are too many: the kernel takes {MAX_LINES}", map.len()));
        return;
    }
    for (index, line) in map.iter().enumerate() {
        let end = |first: u32| u64::from(first) + u64::from(line.size) > u64::from(u32::MAX);
        if line.size == 0 {
            findings.problem(format!("{field}[{index}].size"), "is 0");
        } else if end(line.container) || end(line.host) {
            findings.problem(format!("{field}[{index}]"), "reaches beyond the highest id, 4294967294");
        } else if let Some(other) = map.iter().take(index).position(|earlier| overlap(earlier, line)) {
            findings.problem(format!("{field}[{index}]"), format!("overlaps {field}[{other}]"));
        }
    }
}

/// They share an id, inside or outside.
fn overlap(one: &IdMap, other: &IdMap) -> bool {
    let meet = |a: u32, b: u32| {
        u64::from(a) < u64::from(b) + u64::from(other.size)
            && u64::from(b) < u64::from(a) + u64::from(one.size)
    };
    meet(one.container, other.container) || meet(one.host, other.host)
}

/// The id outside that `inside` is mapped to.
pub fn outside(map: &[IdMap], inside: u32) -> Option<u32> {
    let line = map.iter().find(|line| inside >= line.container && inside - line.container < line.size)?;
    line.host.checked_add(inside - line.container)
}

/// The text of a uid_map or gid_map file.
pub fn text(map: &[IdMap]) -> String {
    map.iter().map(|line| format!("{} {} {}\n", line.container, line.host, line.size)).collect()
}

/// Maps the ids of the new user namespace that `pid` is in: written by us, or with the set-user-ID programs of shadow-utils
/// for an ordinary user with more than its own id. Errors name `owner`'s uidMappings or gidMappings.
pub fn write(pid: Pid, owner: &str, uids: &[IdMap], gids: &[IdMap]) -> Result<()> {
    let field = |name: &str| format!("{owner}.{name}");
    let privileged = nix::unistd::geteuid().is_root();
    if !privileged && !is_own_alone(uids, gids) {
        map_with("newuidmap", pid, uids).with_context(|| field("uidMappings"))?;
        return map_with("newgidmap", pid, gids).with_context(|| field("gidMappings"));
    }
    write_own(pid, owner, uids, gids, privileged).map_err(|error| match crate::error::errno(&error) {
        Some(Errno::EPERM) if crate::host::in_user_namespace() => hinted(
            crate::error::text(&error),
            "hostID counts in the user namespace that berth is in: a range must lie in one line of /proc/self/uid_map or gid_map, \
             and to map its root takes CAP_SETFCAP",
        ),
        _ => error,
    })
}

/// Whether nothing but the caller itself is mapped, for which no set-user-ID program is needed.
fn is_own_alone(uids: &[IdMap], gids: &[IdMap]) -> bool {
    let alone = |map: &[IdMap], own: u32| matches!(map, [line] if line.size == 1 && line.host == own);
    alone(uids, nix::unistd::geteuid().as_raw()) && alone(gids, nix::unistd::getegid().as_raw())
}

fn write_own(pid: Pid, owner: &str, uids: &[IdMap], gids: &[IdMap], privileged: bool) -> Result<()> {
    let field = |name: &str| format!("{owner}.{name}");
    let proc = Proc::open()?;
    if !privileged {
        // user_namespaces(7): an ordinary user gives up setgroups(2) for a group mapping
        proc.write(&Path::new(&pid.to_string()).join("setgroups"), b"deny")
            .with_context(|| field("gidMappings: deny setgroups"))?;
    }
    proc.write(&Path::new(&pid.to_string()).join("gid_map"), text(gids).as_bytes())
        .with_context(|| field("gidMappings"))?;
    proc.write(&Path::new(&pid.to_string()).join("uid_map"), text(uids).as_bytes())
        .with_context(|| field("uidMappings"))
}

fn map_with(program: &str, pid: Pid, map: &[IdMap]) -> Result<()> {
    let path = format!("/usr/bin/{program}");
    let numbers = map.iter().flat_map(|line| [line.container, line.host, line.size]);
    let output = Command::new(&path)
        .env_clear()
        .arg(pid.to_string())
        .args(numbers.map(|number| number.to_string()))
        .output()
        .map_err(|error| {
            hinted(
                format!("run {path:?}: {error}"),
                "install the package uidmap (shadow-utils) for ranges of ids",
            )
        })?;
    if !output.status.success() {
        return Err(hinted(
            format!("{path:?}: {}", String::from_utf8_lossy(&output.stderr).trim_end()),
            "the ranges that a user may map are in /etc/subuid and /etc/subgid",
        ));
    }
    Ok(())
}

/// A new user namespace with these mappings, in which no process is: what an id-mapped mount wants. It is made around a
/// process that ends at once. Errors name `owner`'s uidMappings or gidMappings.
pub fn namespace(owner: &str, uids: &[IdMap], gids: &[IdMap]) -> Result<OwnedFd> {
    let (wait, go) = pipe2(OFlag::O_CLOEXEC).context("make a pipe")?;
    let flag = u64::from(libc::CLONE_NEWUSER as u32);
    match (Clone { namespaces: flag, ..Clone::default() }).run() {
        Ok(Cloned::New) => {
            drop(go);
            // until it is killed, or else nobody is there to do it
            let _end = File::from(wait).read(&mut [0]);
            exit_now(0)
        }
        Ok(Cloned::Caller(pid, pidfd)) => {
            let made = write(pid, owner, uids, gids).and_then(|()| {
                let path = format!("/proc/{pid}/ns/user");
                // not reaped yet, so the pid is its own
                open(path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
                    .with_context(|| format!("open {path:?}"))
            });
            pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL).context("end the process in the namespace")?;
            while waitid(Id::PIDFd(pidfd.as_fd()), WaitPidFlag::WEXITED) == Err(Errno::EINTR) {}
            drop(go);
            made
        }
        Err(errno) => Err(anyhow::Error::new(errno).context(Hinted {
            message: "make a user namespace for the mapping".to_owned(),
            hint: "see user.max_user_namespaces and kernel.unprivileged_userns_clone of sysctl(8)".to_owned(),
        })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(lines: &[(u32, u32, u32)]) -> Vec<IdMap> {
        lines.iter().map(|&(container, host, size)| IdMap { container, host, size }).collect()
    }

    #[test]
    fn what_the_kernel_would_not_take_is_a_problem() {
        for (lines, problem) in [
            (&[(0, 1000, 5), (5, 2000, 1)][..], None),
            (&[(0, 4_294_967_294, 1)], None),
            (&[(0, 1000, 0)], Some("x[0].size: is 0")),
            (&[(0, 4_294_967_295, 1)], Some("x[0]: reaches beyond the highest id, 4294967294")),
            (&[(1, 0, u32::MAX)], Some("x[0]: reaches beyond the highest id, 4294967294")),
            (&[(0, 1000, 5), (10, 1004, 1)], Some("x[1]: overlaps x[0]")),
            (&[(3, 1000, 5), (0, 2000, 4)], Some("x[1]: overlaps x[0]")),
        ] {
            let mut findings = Findings::default();
            check("x", &map(lines), &mut findings);
            let found =
                findings.problems.first().map(|problem| format!("{}: {}", problem.field, problem.why));
            assert_eq!(found.as_deref(), problem, "{lines:?}");
        }
        let mut findings = Findings::default();
        let many: Vec<_> = (0..341).map(|n| (n, n, 1)).collect();
        check("x", &map(&many), &mut findings);
        assert_eq!(findings.problems.len(), 1);
    }

    #[test]
    fn an_id_is_looked_up_line_by_line() {
        let map = map(&[(0, 1000, 1), (1, 100_000, 10)]);
        let found = [0, 1, 10, 11].map(|id| outside(&map, id));
        assert_eq!(found, [Some(1000), Some(100_000), Some(100_009), None]);
        assert_eq!(text(&map), "0 1000 1\n1 100000 10\n");
    }

    #[test]
    fn a_namespace_outlives_the_process_that_it_was_made_around() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let made = namespace("mounts[0]", &map(&[(0, 5000, 10)]), &map(&[(0, 6000, 10)])).unwrap();
        let kind = crate::sys::tasks::namespace_type(made.as_fd()).unwrap();
        assert_eq!(kind, libc::CLONE_NEWUSER as u64);
    }
}
