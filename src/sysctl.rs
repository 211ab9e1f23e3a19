//! Kernel parameters of the container's own namespaces (`linux.sysctl`).
//!
//! A parameter that belongs to no namespace, or to one that the container shares, would change the host: only those of
//! the list in [`owner`] pass, and only with a namespace of their kind that is the container's own.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use nix::errno::Errno;

use crate::error::{hinted, reason};
use crate::findings::Findings;
use crate::proc::Proc;

/// Which namespaces are the container's own: new, or joined and not the host's; and which names it sets by other fields.
#[derive(Debug, Clone, Copy, Default)]
pub struct NamespaceFacts {
    /// IPC.
    pub ipc: bool,
    /// Network.
    pub network: bool,
    /// UTS.
    pub uts: bool,
    /// User.
    pub user: bool,
    /// The configuration has `hostname`, which sets `kernel.hostname`.
    pub hostname_given: bool,
    /// The configuration has `domainname`, which sets `kernel.domainname`.
    pub domainname_given: bool,
}

/// One parameter to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sysctl {
    /// The file below `/proc/sys`.
    pub path: PathBuf,
    /// What is written to it.
    pub value: String,
}

/// The namespace that a parameter belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    Ipc,
    Network,
    Uts,
    User,
}

/// The parameters in the order of their paths. What belongs to no namespace of the container is a problem each.
pub fn plan(sysctl: &HashMap<String, String>, facts: NamespaceFacts, findings: &mut Findings) -> Vec<Sysctl> {
    let mut names: Vec<&String> = sysctl.keys().collect();
    names.sort_unstable();
    let mut planned: Vec<Sysctl> = Vec::with_capacity(names.len());
    for name in names {
        let field = || format!("linux.sysctl[{name:?}]");
        let value = sysctl.get(name).map_or("", String::as_str);
        let Some(path) = path_of(name) else {
            findings.problem_hint(
                field(),
                "not a kernel parameter's name",
                "write it as sysctl(8) does: net.ipv4.ip_forward or net/ipv4/ip_forward",
            );
            continue;
        };
        if let Err(why) = allowed(&path, facts) {
            findings.problem(field(), why);
            continue;
        }
        if value.contains('\0') {
            findings.problem(field(), "the value holds a NUL byte");
            continue;
        }
        if planned.iter().any(|other| other.path == path) {
            findings.problem(field(), "the same parameter is given twice, in two spellings");
            continue;
        }
        planned.push(Sysctl { path, value: value.to_owned() });
    }
    planned.sort_by(|a, b| a.path.cmp(&b.path));
    planned
}

/// Writes the parameters. The caller must be in the container's namespaces: procfs shows those of the process that opens.
pub fn apply(sysctls: &[Sysctl], proc: &Proc) -> anyhow::Result<()> {
    for sysctl in sysctls {
        let what =
            || format!("linux.sysctl: write {:?} to \"/proc/sys/{}\"", sysctl.value, sysctl.path.display());
        let answer = proc.write_here_or_now(&Path::new("sys").join(&sysctl.path), sysctl.value.as_bytes());
        match answer {
            Ok(()) => {}
            Err(errno @ Errno::ENOENT) => {
                let hint = "this kernel, or this kind of namespace, has no such parameter";
                return Err(hinted(format!("{}: {}", what(), reason(errno)), hint));
            }
            Err(errno @ Errno::EXDEV) => {
                let hint = "something is mounted over this path of the host's /proc";
                return Err(hinted(format!("{}: {}", what(), reason(errno)), hint));
            }
            Err(errno) => return Err(errno).with_context(what),
        }
    }
    Ok(())
}

/// The file of a parameter below `/proc/sys`. As in sysctl(8), the first separator decides: after a dot, dots separate
/// and a slash stands for a dot inside a component (`net.ipv4.conf.eth0/1.forwarding`); after a slash it is the path.
fn path_of(name: &str) -> Option<PathBuf> {
    let separator = name.chars().find(|c| matches!(c, '.' | '/'))?;
    let mut path = PathBuf::new();
    for part in name.split(separator) {
        let part = if separator == '.' { part.replace('/', ".") } else { part.to_owned() };
        if part.is_empty() || part == "." || part == ".." || part.contains('\0') {
            return None;
        }
        path.push(part);
    }
    Some(path)
}

fn allowed(path: &Path, facts: NamespaceFacts) -> Result<(), &'static str> {
    if facts.hostname_given && path == Path::new("kernel/hostname") {
        return Err("conflicts with `hostname`, which sets the same name");
    }
    if facts.domainname_given && path == Path::new("kernel/domainname") {
        return Err("conflicts with `domainname`, which sets the same name");
    }
    match owner(path)? {
        Owner::Ipc if !facts.ipc => Err("needs an IPC namespace of the container's own"),
        Owner::Network if !facts.network => Err("needs a network namespace of the container's own"),
        Owner::Uts if !facts.uts => Err("needs a UTS namespace of the container's own"),
        Owner::User if !facts.user => Err("needs a user namespace of the container's own"),
        Owner::Ipc | Owner::Network | Owner::Uts | Owner::User => Ok(()),
    }
}

fn owner(path: &Path) -> Result<Owner, &'static str> {
    let parts: Vec<&str> = path.iter().filter_map(std::ffi::OsStr::to_str).collect();
    match parts.as_slice() {
        [
            "kernel",
            "msgmax" | "msgmnb" | "msgmni" | "sem" | "shmall" | "shmmax" | "shmmni" | "shm_rmid_forced",
        ] => Ok(Owner::Ipc),
        ["fs", "mqueue", _, ..] => Ok(Owner::Ipc),
        ["net", _, ..] => Ok(Owner::Network),
        ["kernel", "domainname" | "hostname"] => Ok(Owner::Uts),
        ["user", _, ..] => Ok(Owner::User),
        _ => Err("not a parameter of a namespace: it would change the host"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: NamespaceFacts = NamespaceFacts {
        ipc: true,
        network: true,
        uts: true,
        user: true,
        hostname_given: false,
        domainname_given: false,
    };

    fn planned(name: &str, facts: NamespaceFacts) -> Result<String, String> {
        let mut findings = Findings::default();
        let planned = plan(&HashMap::from([(name.to_owned(), "1".to_owned())]), facts, &mut findings);
        match findings.problems.first() {
            Some(problem) => Err(problem.why.clone()),
            None => Ok(planned[0].path.display().to_string()),
        }
    }

    #[test]
    fn both_spellings_lead_to_the_file() {
        for (name, path) in [
            ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
            ("net/ipv4/ip_forward", "net/ipv4/ip_forward"),
            ("net.ipv4.conf.eth0/100.forwarding", "net/ipv4/conf/eth0.100/forwarding"),
            ("net/ipv4/conf/eth0.100/forwarding", "net/ipv4/conf/eth0.100/forwarding"),
            ("kernel.shm_rmid_forced", "kernel/shm_rmid_forced"),
            ("fs.mqueue.msg_max", "fs/mqueue/msg_max"),
            ("kernel.domainname", "kernel/domainname"),
            ("kernel.hostname", "kernel/hostname"),
            ("user.max_user_namespaces", "user/max_user_namespaces"),
        ] {
            assert_eq!(planned(name, ALL).as_deref(), Ok(path), "{name}");
        }
    }

    #[test]
    fn what_could_reach_the_host_is_refused() {
        for name in [
            "kernel.core_pattern",
            "kernel/core_pattern",
            "kernel.sem.x",
            "vm.swappiness",
            "fs.mqueue",
            "fs.file-max",
            "net",
            "net.",
            "net..ipv4",
            "net/../kernel/core_pattern",
            "net.ipv4.//.x",
            "net/./core",
            "/net/ipv4/ip_forward",
            ".net.ipv4",
            "net.ipv4.x\0y",
            "",
        ] {
            assert!(planned(name, ALL).is_err(), "{name:?}");
        }
    }

    #[test]
    fn a_shared_namespace_keeps_its_parameters() {
        let shared = NamespaceFacts::default();
        for name in
            ["kernel.sem", "fs.mqueue.msg_max", "net.core.somaxconn", "kernel.domainname", "user.max_x"]
        {
            assert!(planned(name, shared).unwrap_err().contains("of the container's own"), "{name}");
        }
        assert!(planned("net.core.somaxconn", NamespaceFacts { network: true, ..shared }).is_ok());
    }

    #[test]
    fn a_name_is_set_in_one_place() {
        let facts = NamespaceFacts { hostname_given: true, domainname_given: true, ..ALL };
        for name in ["kernel.hostname", "kernel/domainname"] {
            assert!(planned(name, facts).unwrap_err().contains("sets the same name"), "{name}");
        }
    }

    #[test]
    fn all_problems_are_reported_and_one_file_is_written_once() {
        let mut findings = Findings::default();
        let sysctl = ["net.a.b", "net/a/b", "vm.x", "net.0.c"].map(|name| (name.to_owned(), "v".to_owned()));
        let planned = plan(&HashMap::from(sysctl), ALL, &mut findings);
        let paths: Vec<_> = planned.iter().map(|sysctl| sysctl.path.to_str().unwrap()).collect();
        assert_eq!(paths, ["net/0/c", "net/a/b"]);
        let fields: Vec<_> = findings.problems.iter().map(|problem| problem.field.as_str()).collect();
        assert_eq!(fields, ["linux.sysctl[\"net/a/b\"]", "linux.sysctl[\"vm.x\"]"]);
    }
}
