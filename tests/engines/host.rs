//! This machine: its programs, its cgroups as an engine sees them, and what is left on it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::mount::MsFlags;
use nix::sched::{CloneFlags, unshare};

/// Where a program lies: the distribution's directories before `/usr/local` and the caller's.
pub fn finds(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    ["/usr/bin", "/usr/sbin", "/bin", "/sbin"]
        .iter()
        .map(PathBuf::from)
        .chain(std::env::split_paths(&path))
        .map(|directory| directory.join(program))
        .find(|file| file.is_file())
}

/// Why an engine that needs root and these programs cannot run here at all.
pub fn cannot_run(programs: &[&str]) -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("it needs root".to_owned());
    }
    let missing = programs.iter().find(|program| finds(program).is_none());
    missing.map(|program| format!("{program} is not installed"))
}

/// Runs a program of the host to its end; it has to succeed. Gives what it printed.
pub fn host(program: &str, args: &[&str]) -> Result<String> {
    let output =
        Command::new(program).args(args).stdin(Stdio::null()).output().context(program.to_owned())?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {args:?}: {}", error.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether systemd runs this machine. sd_booted(3) looks at the same directory.
pub fn has_systemd() -> bool {
    Path::new("/run/systemd/system").exists()
}

/// Why nothing can be checkpointed here.
pub fn lacks_criu() -> Option<&'static str> {
    let check = Command::new("criu").arg("check").stdin(Stdio::null()).output();
    match check {
        Err(_) => Some("criu is not installed"),
        Ok(output) if !output.status.success() => Some("criu does not work on this kernel"),
        Ok(_) => None,
    }
}

/// A program that says the same word again and again, which is lost when it is not continued but begun anew.
pub const REMEMBERS: &str = "w=$(cat /proc/sys/kernel/random/uuid); while :; do echo $w > /word.new; mv /word.new /word; sleep 0.1; done";

/// Takes all memory once there is a file `/go`: engines begin to watch what they have started.
pub const OUT_OF_MEMORY_AT_GO: &str = "until [ -e /go ]; do usleep 10000; done; exec tail /dev/zero";

/// What engines and runtimes need of the machine's `/run` to reach systemd, of the system and of users.
const OF_SYSTEMD: [&str; 3] = ["systemd", "dbus", "user"];

/// Private namespaces for this thread and what it starts: mounts (with a `/run` of its own, so that no
/// running engine is found, but systemd where there is one) and network (with its own loopback).
pub fn make_private() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).context("unshare mounts and network")?;
    host("mount", &["--make-rprivate", "/"])?;
    let place = tempfile::tempdir()?;
    let run = place.path().to_string_lossy().into_owned();
    host("mount", &["-t", "tmpfs", "-o", "mode=755", "tmpfs", &run])?;
    for name in OF_SYSTEMD.iter().filter(|_| has_systemd()) {
        let (theirs, ours) = (Path::new("/run").join(name), place.path().join(name));
        if theirs.is_dir() {
            std::fs::create_dir(&ours)?;
            host("mount", &["--rbind", &theirs.to_string_lossy(), &ours.to_string_lossy()])?;
        }
    }
    // mount(8) would look for its notes in the old /run
    let (kind, data) = (None::<&str>, None::<&str>);
    nix::mount::mount(Some(place.path()), "/run", kind, MsFlags::MS_MOVE, data).context("move /run")?;
    host("ip", &["link", "set", "lo", "up"]).map(drop)
}

/// A tmpfs with shared propagation, for bind mounts.
pub fn make_volumes(place: &Path) -> Result<()> {
    std::fs::create_dir(place)?;
    let place = place.to_string_lossy();
    host("mount", &["-t", "tmpfs", "-o", "mode=755", "tmpfs", &place])?;
    host("mount", &["--make-shared", &place]).map(drop)
}

/// Which cgroups an engine sees in this mount namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cgroups {
    V1,
    V2,
    Both,
}

impl Cgroups {
    pub fn here() -> Self {
        if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
            Self::V2
        } else if Path::new("/sys/fs/cgroup/unified/cgroup.procs").exists() {
            Self::Both
        } else {
            Self::V1
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
            Self::Both => "v1 and v2",
        }
    }
}

/// Takes cgroup2 away from the view of a machine that has both when `BERTH_TEST_CGROUPS=v1` wants it.
pub fn choose_cgroups(view: &Path) -> Result<()> {
    let wanted = std::env::var("BERTH_TEST_CGROUPS").is_ok_and(|view| view == "v1");
    if wanted { show_cgroup1_only(view) } else { Ok(()) }
}

/// Puts a copy of the cgroup tree that lacks `unified` in its place. Unmounting alone would leave a plain
/// directory there, on the machine's own tmpfs, in which runtimes would then make cgroups that are none.
pub fn show_cgroup1_only(view: &Path) -> Result<()> {
    std::fs::create_dir(view)?;
    host("mount", &["-t", "tmpfs", "-o", "mode=755", "cgroup", &view.to_string_lossy()])?;
    for entry in std::fs::read_dir("/sys/fs/cgroup")? {
        let entry = entry?;
        let (path, place) = (entry.path(), view.join(entry.file_name()));
        if path.is_symlink() {
            std::os::unix::fs::symlink(std::fs::read_link(&path)?, &place)?;
        } else if path.is_dir() && !path.ends_with("unified") {
            std::fs::create_dir(&place)?;
            host("mount", &["--bind", &path.to_string_lossy(), &place.to_string_lossy()])?;
        }
    }
    host("umount", &["-R", "-l", "/sys/fs/cgroup"])?;
    host("mount", &["--rbind", &view.to_string_lossy(), "/sys/fs/cgroup"])?;
    host("umount", &["-R", "-l", &view.to_string_lossy()]).map(drop)
}

/// A user that exists for those who look from our mount namespace only.
pub struct Account<'a> {
    pub name: &'a str,
    pub uid: u32,
    /// The first of its subordinate ids.
    pub first: u32,
    pub count: u32,
}

impl Account<'_> {
    /// Adds the user to the view of `/etc`; the files lie in `directory`.
    pub fn make(&self, directory: &Path, home: &Path) -> Result<()> {
        let Self { name, uid, first, count } = self;
        for (file, line) in [
            ("passwd", format!("{name}:x:{uid}:{uid}::{}:/bin/sh", home.display())),
            ("group", format!("{name}:x:{uid}:")),
            ("subuid", format!("{name}:{first}:{count}")),
            ("subgid", format!("{name}:{first}:{count}")),
        ] {
            let ours = directory.join(format!("etc-{file}"));
            let theirs = Path::new("/etc").join(file);
            let text = std::fs::read_to_string(&theirs).unwrap_or_default();
            std::fs::write(&ours, format!("{text}\n{line}\n"))?;
            host("mount", &["--bind", &ours.to_string_lossy(), &theirs.to_string_lossy()])?;
        }
        Ok(())
    }
}

/// The image that all engines get, as a tar file below `home`: the host's static busybox, its links, and
/// the files that cases ask about.
pub fn image(home: &Path) -> Result<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let root = home.join("image");
    for directory in ["", "bin", "etc", "tmp", "proc", "sys", "dev", "root", "mnt"] {
        std::fs::create_dir(root.join(directory))?;
    }
    std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o755))?;
    std::fs::set_permissions(root.join("tmp"), std::fs::Permissions::from_mode(0o1777))?;
    let busybox = finds("busybox").context("no busybox")?;
    std::fs::copy(&busybox, root.join("bin/busybox"))?;
    let applets = Command::new(&busybox).arg("--list").output()?.stdout;
    for applet in String::from_utf8(applets)?.lines().filter(|name| *name != "busybox") {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet))?;
    }
    std::fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nguest:x:405:100::/tmp:/bin/sh\n")?;
    std::fs::write(root.join("etc/group"), "root:x:0:\nusers:x:100:guest\nwheel:x:10:guest\n")?;
    std::fs::write(root.join("etc/plain"), "not a program\n")?;
    let archive = home.join("image.tar");
    let words = [root.as_os_str(), archive.as_os_str()].map(|word| word.to_string_lossy().into_owned());
    host("tar", &["-C", &words[0], "-cf", &words[1], "."])?;
    Ok(archive)
}

/// The mount points below a directory as this thread sees them, outermost first.
pub fn mounts_below(directory: &Path) -> Result<Vec<PathBuf>> {
    let table = std::fs::read_to_string("/proc/thread-self/mountinfo")?;
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    Ok(points.filter(|point| point.starts_with(directory)).collect())
}

pub fn entries(directory: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// The directories called `name` at the top of every cgroup hierarchy.
pub fn top_cgroups(name: &str) -> Vec<PathBuf> {
    let top = PathBuf::from("/sys/fs/cgroup");
    let mut hierarchies: Vec<PathBuf> =
        entries(&top).into_iter().filter(|path| path.is_dir() && !path.is_symlink()).collect();
    hierarchies.push(top);
    hierarchies.into_iter().map(|path| path.join(name)).filter(|path| path.is_dir()).collect()
}

/// The cgroups below one, innermost first.
pub fn cgroups_below(cgroup: &Path) -> Vec<PathBuf> {
    let children = entries(cgroup).into_iter().filter(|path| path.is_dir());
    children.flat_map(|child| cgroups_below(&child).into_iter().chain([child])).collect()
}

/// Every process of the machine.
pub fn processes() -> Vec<i32> {
    let names = entries(Path::new("/proc")).into_iter();
    names.filter_map(|path| path.file_name()?.to_str()?.parse().ok()).collect()
}

/// Processes other than this one that live in this thread's mount namespace: nobody but us made any.
pub fn processes_in_our_namespace() -> Result<Vec<i32>> {
    let ours = std::fs::read_link("/proc/thread-self/ns/mnt")?;
    let this = std::process::id().cast_signed();
    Ok(processes()
        .into_iter()
        .filter(|pid| *pid != this)
        .filter(|pid| std::fs::read_link(format!("/proc/{pid}/ns/mnt")).is_ok_and(|theirs| theirs == ours))
        .collect())
}

/// Gone, or a zombie that its parent has yet to collect.
pub fn ended(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
}

pub fn command_line(pid: i32) -> String {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ").chars().take(120).collect()
}

/// The limit file of a process by controller, and its text.
pub fn cgroup_file(pid: i32, controller: &str, v1: &str, v2: &str) -> Result<(PathBuf, String)> {
    let lines = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let place = |wanted: &dyn Fn(&str) -> bool| {
        lines.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            wanted(controllers).then(|| path.to_owned())
        })
    };
    let file = match place(&|names| names.split(',').any(|name| name == controller)) {
        Some(path) => {
            Path::new("/sys/fs/cgroup").join(controller).join(path.trim_start_matches('/')).join(v1)
        }
        None => {
            let path = place(&|names| names.is_empty()).context("no cgroup2 line")?;
            Path::new("/sys/fs/cgroup").join(path.trim_start_matches('/')).join(v2)
        }
    };
    let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    Ok((file, text.trim().to_owned()))
}
