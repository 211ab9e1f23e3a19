//! Which cgroup hierarchies this host has, where they are mounted, and where this process is in each (cgroups(7)).

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result};
use nix::fcntl::OFlag;
use nix::sys::statfs::{CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, FsType, statfs};

use super::directory::{open, read_bytes};
use crate::mountinfo::{self, Mount};

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// The last component of the mount point: what the same hierarchy is called inside a container (`cpu,cpuacct`).
    pub name: String,
    /// The controllers: of v1 as /proc/self/cgroup lists them (`name=systemd` for a named one), of v2 those of its root.
    pub controllers: Vec<String>,
    /// Where it is mounted.
    pub mount: PathBuf,
    /// This process's own cgroup below `mount`, without a leading slash. `None` when it is not visible through this
    /// mount, as in a cgroup namespace that shows somebody else's part of the hierarchy.
    pub own: Option<PathBuf>,
}

/// The hierarchies that are mounted where this process can reach them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Layout {
    /// The v1 hierarchies, in the order of /proc/self/cgroup.
    pub v1: Vec<Hierarchy>,
    /// The v2 hierarchy. Beside v1 ones the host is "hybrid": each controller is in one of them only.
    pub unified: Option<Hierarchy>,
}

impl Layout {
    /// Reads /proc/self/mountinfo and /proc/self/cgroup, and the names of the controllers that v2 has. A hierarchy whose
    /// mount is hidden under another one is left out.
    pub fn read() -> Result<Layout> {
        let read = |path: &Path| -> Result<Vec<u8>> {
            let text = open(path, OFlag::O_RDONLY).and_then(|file| read_bytes(file.as_fd()));
            text.with_context(|| format!("read {}", path.display()))
        };
        let mut layout =
            Layout::parse(&read(Path::new("/proc/self/mountinfo"))?, &read(Path::new("/proc/self/cgroup"))?);
        layout.v1.retain(|hierarchy| is_of_type(&hierarchy.mount, CGROUP_SUPER_MAGIC));
        layout.unified = layout.unified.filter(|unified| is_of_type(&unified.mount, CGROUP2_SUPER_MAGIC));
        if let Some(unified) = &layout.unified {
            let text = read(&unified.mount.join("cgroup.controllers"))?;
            layout.set_unified_controllers(&String::from_utf8_lossy(&text));
        }
        Ok(layout)
    }

    /// The layout that the two files describe (proc_pid_mountinfo(5), cgroups(7)). They do not say which controllers v2
    /// has: that list stays empty.
    pub fn parse(mountinfo: &[u8], cgroup: &[u8]) -> Layout {
        let mounts: Vec<Mount<'_>> = mountinfo::of_kinds(mountinfo, &[V1, V2]).collect();
        let mut layout = Layout::default();
        for line in cgroup.split(|byte| *byte == b'\n') {
            let mut fields = line.splitn(3, |byte| *byte == b':').skip(1);
            let (Some(names), Some(own)) = (fields.next(), fields.next()) else { continue };
            let own = Path::new(OsStr::from_bytes(own.strip_suffix(b" (deleted)").unwrap_or(own)));
            let names = String::from_utf8_lossy(names);
            let controllers: Vec<String> =
                names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
            let Some(mount) = best(&mounts, controllers.first().map(String::as_str), own) else { continue };
            let hierarchy = Hierarchy {
                name: mount.point.file_name().unwrap_or_default().to_string_lossy().into_owned(),
                mount: mount.point.clone(),
                own: below(own, &mount.root),
                controllers,
            };
            if hierarchy.controllers.is_empty() {
                layout.unified = Some(hierarchy);
            } else {
                layout.v1.push(hierarchy);
            }
        }
        layout
    }

    /// Takes over the text of cgroup.controllers. A controller is in one hierarchy only: one that a v1 hierarchy has is not
    /// counted twice, whatever the text says.
    fn set_unified_controllers(&mut self, text: &str) {
        let in_v1 = |name: &str| self.v1.iter().any(|v1| v1.controllers.iter().any(|known| known == name));
        let names = text.split_whitespace().filter(|name| !in_v1(name)).map(str::to_owned).collect();
        if let Some(unified) = &mut self.unified {
            unified.controllers = names;
        }
    }

    /// No v1 hierarchy, but the unified one.
    pub fn is_v2(&self) -> bool {
        self.v1.is_empty() && self.unified.is_some()
    }
}

/// The types of file system of the two versions.
const V1: &str = "cgroup";
const V2: &str = "cgroup2";

/// Whether the path leads to a file system of that type.
fn is_of_type(path: &Path, kind: FsType) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == kind)
}

fn shows(mount: &Mount<'_>, controller: Option<&str>) -> bool {
    match controller {
        None => mount.kind == V2.as_bytes(),
        Some(name) => mount.kind == V1.as_bytes() && mount.has_option(name.as_bytes()),
    }
}

/// The mount to work through: one below /sys/fs/cgroup that shows this process's own cgroup, before one that shows it, before
/// any other. Of mounts on the same point the last covers the rest.
fn best<'m, 't>(mounts: &'m [Mount<'t>], controller: Option<&str>, own: &Path) -> Option<&'m Mount<'t>> {
    let rank = |mount: &Mount<'_>| {
        (
            below(own, &mount.root).is_some(),
            mount.point.starts_with("/sys/fs/cgroup"),
            mount.root == Path::new("/"),
        )
    };
    let mut best: Option<&Mount<'_>> = None;
    for mount in mounts.iter().filter(|mount| shows(mount, controller)) {
        let better = best.is_none_or(|best| best.point == mount.point || rank(mount) > rank(best));
        if better {
            best = Some(mount);
        }
    }
    best
}

/// `own` relative to the mount's `root`, when it is at or below it and neither leads out of the cgroup namespace.
fn below(own: &Path, root: &Path) -> Option<PathBuf> {
    if own.components().any(|part| part == Component::ParentDir) {
        return None;
    }
    own.strip_prefix(root).ok().map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(mountinfo: &str, cgroup: &str) -> Layout {
        Layout::parse(mountinfo.as_bytes(), cgroup.as_bytes())
    }

    const HYBRID: &str = "\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:10 master:2 - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate
";
    const HYBRID_OWN: &str =
        "9:name=systemd:/user.slice\n5:memory:/user.slice/a:b\n3:cpu,cpuacct:/\n2:pids:/\n0::/user.slice/c\n";

    #[test]
    fn a_hybrid_host_has_both_kinds() {
        let layout = parse(HYBRID, HYBRID_OWN);
        let names: Vec<_> = layout.v1.iter().map(|hierarchy| hierarchy.name.as_str()).collect();
        assert_eq!(names, ["systemd", "memory", "cpu,cpuacct"], "pids is not mounted");
        assert_eq!(layout.v1[0].controllers, ["name=systemd"]);
        assert_eq!(layout.v1[1].own.as_deref(), Some(Path::new("user.slice/a:b")));
        assert_eq!(layout.v1[2].controllers, ["cpu", "cpuacct"]);
        assert_eq!(layout.v1[2].own.as_deref(), Some(Path::new("")));
        let unified = layout.unified.as_ref().unwrap();
        assert_eq!(unified.mount, Path::new("/sys/fs/cgroup/unified"));
        assert_eq!(unified.own.as_deref(), Some(Path::new("user.slice/c")));
        assert!(!layout.is_v2());
    }

    #[test]
    fn a_v2_host_has_the_unified_one_only() {
        let layout = parse(
            "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n",
            "0::/system.slice/docker.service\n",
        );
        assert!(layout.is_v2());
        assert_eq!(layout.unified.unwrap().own.as_deref(), Some(Path::new("system.slice/docker.service")));
    }

    #[test]
    fn the_mounts_root_is_taken_off_the_own_path() {
        let parse = |root: &str, own: &str| {
            let mountinfo = format!("30 23 0:26 {root} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n");
            self::parse(&mountinfo, &format!("4:memory:{own}\n")).v1.remove(0).own
        };
        // a container's bind mount without a cgroup namespace
        assert_eq!(parse("/docker/x", "/docker/x"), Some(PathBuf::new()));
        assert_eq!(parse("/docker/x", "/docker/x/in"), Some(PathBuf::from("in")));
        // somebody else's part of the hierarchy; a name that only begins alike
        assert_eq!(parse("/docker/x", "/docker/y"), None);
        assert_eq!(parse("/docker/x", "/docker/xy"), None);
        // a cgroup namespace: its own mount, one from outside, and a process that sits above the namespace's root
        assert_eq!(parse("/", "/in"), Some(PathBuf::from("in")));
        assert_eq!(parse("/..", "/"), None);
        assert_eq!(parse("/", "/../other"), None);
    }

    #[test]
    fn of_several_mounts_the_usual_place_that_shows_us_is_taken() {
        let mountinfo = "\
50 1 0:32 /docker/x /var/lib/x/cgroup/memory rw - cgroup cgroup rw,memory
51 1 0:32 / /mnt/memory rw - cgroup cgroup rw,memory
52 1 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
53 1 0:32 / /srv/memory rw - cgroup cgroup rw,memory
";
        let layout = parse(mountinfo, "4:memory:/docker/x\n");
        assert_eq!(layout.v1[0].mount, Path::new("/sys/fs/cgroup/memory"));
    }

    #[test]
    fn the_upper_of_two_mounts_on_one_point_counts() {
        let mountinfo = "\
52 1 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
53 52 0:32 /a /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
";
        let layout = parse(mountinfo, "4:memory:/a/b\n");
        assert_eq!(layout.v1[0].own.as_deref(), Some(Path::new("b")));
    }

    #[test]
    fn escaped_and_broken_lines_are_understood_or_left_out() {
        let mountinfo = "\
garbage
52 1 0:32 / /mnt/a\\040b\\134c rw - cgroup cgroup rw,memory
53 1 0:33 / /x - cgroupish none rw,pids
54 1 - cgroup
";
        let layout = parse(mountinfo, "4:memory:/\nbroken\n5:pids:/\n");
        assert_eq!(layout.v1.len(), 1);
        assert_eq!(layout.v1[0].mount, Path::new("/mnt/a b\\c"));
    }

    /// Where each limit's controller is: the name of the hierarchy, by controller.
    fn homes(mountinfo: &str, cgroup: &str, unified: &str) -> Vec<(String, String)> {
        let mut layout = parse(mountinfo, cgroup);
        layout.set_unified_controllers(unified);
        let home = |hierarchy: &Hierarchy| {
            let name = hierarchy.name.clone();
            hierarchy.controllers.iter().map(move |controller| (controller.clone(), name.clone())).collect()
        };
        let all: Vec<Vec<_>> = layout.v1.iter().chain(&layout.unified).map(home).collect();
        all.concat()
    }

    #[track_caller]
    fn check(found: &[(String, String)], expected: &[(&str, &str)]) {
        let found: Vec<_> = found.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn each_controller_is_used_where_it_is() {
        // controllers on either side, and some that the kernel has and nobody has mounted
        let own = "9:name=systemd:/\n5:memory:/\n3:cpu,cpuacct:/\n2:pids:/\n0::/\n";
        check(
            &homes(HYBRID, own, "io hugetlb\n"),
            &[
                ("name=systemd", "systemd"),
                ("memory", "memory"),
                ("cpu", "cpu,cpuacct"),
                ("cpuacct", "cpu,cpuacct"),
                ("io", "unified"),
                ("hugetlb", "unified"),
            ],
        );
        // one that is in both lists belongs to the v1 hierarchy that this process is in
        check(
            &homes(HYBRID, "5:memory:/\n0::/\n", "memory io\n"),
            &[("memory", "memory"), ("io", "unified")],
        );
        // one that has gone over to v2 while its v1 mount is still there
        check(&homes(HYBRID, "3:cpu,cpuacct:/\n0::/\n", "memory\n").split_off(2), &[("memory", "unified")]);
        // v1 only, and cgroup2 mounted although no line shows it
        check(&homes(HYBRID, "5:memory:/\n", "memory\n"), &[("memory", "memory")]);
        check(&homes("", own, ""), &[]);
    }

    #[test]
    fn co_mounted_controllers_are_found_in_any_order_and_by_any_mount() {
        let mountinfo = "\
32 31 0:29 / /sys/fs/cgroup/cpuacct,cpu rw - cgroup cgroup rw,seclabel,cpuacct,cpu
33 31 0:30 / /sys/fs/cgroup/net_cls,net_prio rw - cgroup cgroup rw,net_cls,net_prio
34 31 0:29 / /mnt/cpu rw - cgroup cgroup rw,cpuacct,cpu
";
        check(
            &homes(mountinfo, "4:net_prio,net_cls:/\n3:cpu,cpuacct:/\n", ""),
            &[
                ("net_prio", "net_cls,net_prio"),
                ("net_cls", "net_cls,net_prio"),
                ("cpu", "cpuacct,cpu"),
                ("cpuacct", "cpuacct,cpu"),
            ],
        );
    }

    #[test]
    fn paths_keep_every_byte() {
        let layout = Layout::parse(
            b"52 1 0:32 / /mnt/\xff\\012 rw - cgroup cgroup rw,memory\n",
            b"4:memory:/a\xfe (deleted)\n",
        );
        assert_eq!(layout.v1[0].mount.as_os_str().as_bytes(), b"/mnt/\xff\n");
        assert_eq!(layout.v1[0].own.as_ref().unwrap().as_os_str().as_bytes(), b"a\xfe");
    }
}
