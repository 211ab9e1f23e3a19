//! What the fuzz targets share: hosts that are only data, a guard against touching the real one, and what is true of every
//! plan.

use std::path::{Component, Path, PathBuf};
use std::sync::Once;

use berth::cgroups::{self, Hierarchy, Layout};
use berth::findings::Findings;
use berth::host::Host;
use berth::plan::Request;
use berth::security_labels::LsmFacts;
use libseccomp::{ScmpAction, ScmpFilterContext, ScmpSyscall};

/// What only applying does. The fuzzer itself reads, writes and removes files.
const APPLYING: &[&str] = &[
    "bind",
    "bpf",
    "chdir",
    "chroot",
    "clone",
    "clone3",
    "connect",
    "execve",
    "execveat",
    "fchdir",
    "fork",
    "fsopen",
    "keyctl",
    "kill",
    "mkdir",
    "mkdirat",
    "mknod",
    "mknodat",
    "mount",
    "mount_setattr",
    "move_mount",
    "open_tree",
    "pivot_root",
    "prctl",
    "ptrace",
    "sched_setaffinity",
    "sched_setattr",
    "setdomainname",
    "setgroups",
    "sethostname",
    "setns",
    "setresgid",
    "setresuid",
    "setrlimit",
    "socket",
    "socketpair",
    "symlink",
    "symlinkat",
    "umount2",
    "unshare",
    "vfork",
];

extern "C" fn stop(_signal: libc::c_int) {
    // SAFETY: abort may be called in a signal handler; the fuzzer then keeps the input.
    unsafe { libc::abort() }
}

/// From the first input on, a system call that changes the host or makes a process is a crash.
pub fn touch_nothing() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: the handler is a function that only aborts.
        unsafe { libc::signal(libc::SIGSYS, stop as *const () as libc::sighandler_t) };
        let mut filter = ScmpFilterContext::new(ScmpAction::Allow).unwrap();
        for name in APPLYING {
            filter.add_rule(ScmpAction::Trap, ScmpSyscall::from_name(name).unwrap()).unwrap();
        }
        filter.load().unwrap();
    });
}

fn hierarchy(name: &str, own: Option<&str>) -> Hierarchy {
    Hierarchy {
        name: name.to_owned(),
        controllers: name.split(',').map(str::to_owned).collect(),
        mount: Path::new("/sys/fs/cgroup").join(name),
        own: own.map(PathBuf::from),
    }
}

/// cgroup v1, both versions, v2, and none.
pub fn layouts() -> Vec<Layout> {
    let v1 = || {
        [
            "memory",
            "cpu,cpuacct",
            "cpuset",
            "blkio",
            "devices",
            "pids",
            "hugetlb",
            "net_cls,net_prio",
            "rdma",
            "name=systemd",
        ]
        .map(|name| hierarchy(name, Some("own/cgroup")))
        .to_vec()
    };
    let v2 = |controllers: &str| {
        let controllers = controllers.split_whitespace().map(str::to_owned).collect();
        Hierarchy {
            controllers,
            mount: PathBuf::from("/sys/fs/cgroup/unified"),
            ..hierarchy("unified", Some("own/cgroup"))
        }
    };
    vec![
        Layout { v1: v1(), unified: None },
        Layout { v1: v1(), unified: Some(v2("")) },
        Layout { v1: Vec::new(), unified: Some(v2("cpu cpuset io memory hugetlb pids rdma misc")) },
        Layout::default(),
    ]
}

/// A host with this layout, for root or for an ordinary user.
pub fn host(layout: Layout, rootless: bool) -> Host {
    Host {
        euid: if rootless { 1000 } else { 0 },
        rootless,
        user_namespace: rootless,
        layout,
        systemd: None,
        last_capability: 40,
        held_capabilities: if rootless { 0 } else { u64::MAX },
        lsm: LsmFacts { apparmor: rootless, selinux: !rootless },
    }
}

/// What the command line of `create` adds.
pub fn request() -> Request {
    Request { id: "fuzz".to_owned(), resctrl: Some(PathBuf::from("/no/such/resctrl")), ..Request::default() }
}

/// Each finding says where and why.
pub fn findings_are_told(findings: &Findings) {
    for finding in findings.problems.iter().chain(&findings.warnings) {
        assert!(!finding.field.is_empty() && !finding.why.is_empty(), "{finding:?}");
    }
}

/// A cgroup that is accepted lies below the mount points and is none of them.
pub fn cgroup_is_inside(plan: &cgroups::Plan) {
    for (name, path) in plan.cgroup().mount_sources() {
        let mount = Path::new("/sys/fs/cgroup").join(if name.is_empty() { "unified" } else { &name });
        let below = path.strip_prefix(&mount).unwrap_or_else(|_| panic!("{path:?} is not below {mount:?}"));
        assert!(below.components().next().is_some(), "{path:?} is a root cgroup");
        assert!(below.components().all(|part| matches!(part, Component::Normal(_))), "{path:?} leads out");
        assert!(!path.as_os_str().as_encoded_bytes().contains(&0), "{path:?} has a null byte");
    }
}
