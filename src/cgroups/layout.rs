//! Which cgroup hierarchies this host has, where they are mounted, and where this process is in each (cgroups(7)).

use std::os::fd::AsFd;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result};
use nix::fcntl::OFlag;

use super::directory::{open, read_all};

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
    /// Reads /proc/self/mountinfo and /proc/self/cgroup, and the names of the controllers that v2 has.
    pub fn read() -> Result<Layout> {
        let read = |path: &Path| -> Result<String> {
            let text = open(path, OFlag::O_RDONLY).and_then(|file| read_all(file.as_fd()));
            text.with_context(|| format!("read {}", path.display()))
        };
        let mut layout =
            Layout::parse(&read(Path::new("/proc/self/mountinfo"))?, &read(Path::new("/proc/self/cgroup"))?);
        if let Some(unified) = &mut layout.unified {
            let file = unified.mount.join("cgroup.controllers");
            let text = read(&file)?;
            unified.controllers = text.split_whitespace().map(str::to_owned).collect();
        }
        Ok(layout)
    }

    /// The layout that the two files describe (proc_pid_mountinfo(5), cgroups(7)). They do not say which controllers v2
    /// has: that list stays empty.
    pub fn parse(mountinfo: &str, cgroup: &str) -> Layout {
        let mounts: Vec<Mount> = mountinfo.lines().filter_map(Mount::parse).collect();
        let mut layout = Layout::default();
        for line in cgroup.lines() {
            let mut fields = line.splitn(3, ':').skip(1);
            let (Some(names), Some(own)) = (fields.next(), fields.next()) else { continue };
            let own = own.strip_suffix(" (deleted)").unwrap_or(own);
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

    /// No v1 hierarchy, but the unified one.
    pub fn is_v2(&self) -> bool {
        self.v1.is_empty() && self.unified.is_some()
    }
}

/// A mount of type `cgroup` or `cgroup2`.
#[derive(Debug)]
struct Mount {
    root: String,
    point: PathBuf,
    unified: bool,
    options: String,
}

impl Mount {
    fn parse(line: &str) -> Option<Mount> {
        // a host with many containers has thousands of lines, and few of them are of interest
        let (mount, filesystem) = line.split_once(" - cgroup")?;
        let (version, rest) = filesystem.split_once(' ')?;
        let unified = match version {
            "" => false,
            "2" => true,
            _ => return None,
        };
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        Some(Mount {
            root: unescape(root),
            point: PathBuf::from(unescape(point)),
            unified,
            options: rest.split(' ').next_back()?.to_owned(),
        })
    }

    fn shows(&self, controller: Option<&str>) -> bool {
        match controller {
            None => self.unified,
            Some(name) => !self.unified && self.options.split(',').any(|option| option == name),
        }
    }
}

/// The mount to work through: one below /sys/fs/cgroup that shows this process's own cgroup, before one that shows it, before
/// any other. Of mounts on the same point the last covers the rest.
fn best<'a>(mounts: &'a [Mount], controller: Option<&str>, own: &str) -> Option<&'a Mount> {
    let rank = |mount: &Mount| {
        (below(own, &mount.root).is_some(), mount.point.starts_with("/sys/fs/cgroup"), mount.root == "/")
    };
    let mut best: Option<&Mount> = None;
    for mount in mounts.iter().filter(|mount| mount.shows(controller)) {
        let better = best.is_none_or(|best| best.point == mount.point || rank(mount) > rank(best));
        if better {
            best = Some(mount);
        }
    }
    best
}

/// `own` relative to the mount's `root`, when it is at or below it and neither leads out of the cgroup namespace.
fn below(own: &str, root: &str) -> Option<PathBuf> {
    let own = Path::new(own);
    if own.components().any(|part| part == Component::ParentDir) {
        return None;
    }
    own.strip_prefix(root).ok().map(Path::to_owned)
}

/// The octal escapes of mountinfo: `\040` is a space.
fn unescape(field: &str) -> String {
    if !field.contains('\\') {
        return field.to_owned();
    }
    let mut parts = field.split('\\');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        match part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                bytes.extend(part.bytes().skip(3));
            }
            None => {
                bytes.push(b'\\');
                bytes.extend(part.bytes());
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let layout = Layout::parse(HYBRID, HYBRID_OWN);
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
        let layout = Layout::parse(
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
            Layout::parse(&mountinfo, &format!("4:memory:{own}\n")).v1.remove(0).own
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
        let layout = Layout::parse(mountinfo, "4:memory:/docker/x\n");
        assert_eq!(layout.v1[0].mount, Path::new("/sys/fs/cgroup/memory"));
    }

    #[test]
    fn the_upper_of_two_mounts_on_one_point_counts() {
        let mountinfo = "\
52 1 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
53 52 0:32 /a /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
";
        let layout = Layout::parse(mountinfo, "4:memory:/a/b\n");
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
        let layout = Layout::parse(mountinfo, "4:memory:/\nbroken\n5:pids:/\n");
        assert_eq!(layout.v1.len(), 1);
        assert_eq!(layout.v1[0].mount, Path::new("/mnt/a b\\c"));
    }
}
