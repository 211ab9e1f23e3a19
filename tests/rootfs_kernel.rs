//! The root file system on the real kernel. Each test runs itself again as "the host" in a private mount namespace, and
//! from there as "the container" in new mount and PID namespaces; nothing reaches the machine's own mounts.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout
)]
#![allow(clippy::disallowed_methods, reason = "the tests play the host, with paths")]

use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use berth::error;
use berth::findings::Findings;
use berth::rootfs::{Facts, Plan, Rootfs, UserNamespaces, detach_leftovers, make_source, plan, prepare};
use berth::sys::mounts::{FsContext, MountAttr, MountFd, attr, set_attributes};
use berth::sys::tasks::{Clone, Cloned, bits, exit_now};
use nix::fcntl::{OFlag, open};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, umask};
use nix::sys::wait::{WaitStatus, waitpid};
use serde_json::{Value, json};

const INSIDE: &str = "BERTH_ROOTFS_TEST_DIRECTORY";

/// Runs `host` in a process and mount namespace of its own, with an empty directory that is removed later. The harness keeps
/// a second thread that only waits, which is why the mounts are read of `thread-self`.
fn on_host(name: &str, host: fn(&Path)) {
    if let Some(directory) = std::env::var_os(INSIDE) {
        await_main_thread();
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_PRIVATE | MsFlags::MS_REC, None::<&str>).unwrap();
        umask(Mode::empty());
        host(Path::new(&directory));
        return;
    }
    if !nix::unistd::geteuid().is_root() {
        println!("SKIP {name}: needs root");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env(INSIDE, directory.path())
        .output()
        .unwrap();
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

/// The harness has a second thread, which starts this one and then only waits. Until it does, it may hold a lock of the C
/// library, which a copy of this process would wait for in vain.
fn await_main_thread() {
    while !fs::read_to_string("/proc/self/stat").unwrap().contains(") S ") {
        std::thread::yield_now();
    }
}

/// Runs `container` in new mount and PID namespaces; `meanwhile` on the host until it ends.
fn in_container(namespaces: CloneFlags, meanwhile: impl FnOnce(), container: impl FnOnce()) {
    match (Clone { namespaces: bits(namespaces), ..Clone::default() }).run().unwrap() {
        Cloned::New => {
            let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(container));
            exit_now(i32::from(ended.is_err()));
        }
        Cloned::Caller(pid, _) => {
            meanwhile();
            assert_eq!(waitpid(pid, None).unwrap(), WaitStatus::Exited(pid, 0), "see the panic above");
        }
    }
}

fn contained(container: impl FnOnce()) {
    in_container(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID, || {}, container);
}

fn root(directory: &Path) -> PathBuf {
    let root = directory.join("rootfs");
    for name in ["proc", "sys", "dev", "etc", "tmp"] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    root
}

fn facts(bundle: &Path) -> Facts<'_> {
    Facts {
        bundle,
        user_namespace: false,
        container_ids: None,
        may_mount: true,
        mount_namespace: true,
        network_namespace: false,
        cgroup_namespace: false,
        cgroups: Vec::new(),
        inherited_cgroups: Vec::new(),
        cgroup_v2: false,
        no_pivot: false,
        terminal: false,
        selinux: false,
    }
}

fn config(mounts: Value, linux: Value) -> Value {
    json!({ "ociVersion": "1.0.2", "root": { "path": "rootfs" }, "mounts": mounts, "linux": linux })
}

/// The config with runc's default mounts, then `more`.
fn full(more: Vec<Value>, linux: Value) -> Value {
    let mut mounts = vec![
        json!({ "destination": "/proc", "type": "proc", "source": "proc" }),
        json!({ "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] }),
        json!({ "destination": "/dev/pts", "type": "devpts", "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"] }),
        json!({ "destination": "/dev/shm", "type": "tmpfs", "source": "shm",
            "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"] }),
        json!({ "destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
            "options": ["nosuid", "noexec", "nodev"] }),
        json!({ "destination": "/sys", "type": "sysfs", "source": "sysfs",
            "options": ["nosuid", "noexec", "nodev", "ro"] }),
    ];
    mounts.extend(more);
    config(Value::Array(mounts), linux)
}

fn planned(config: &Value, facts: &Facts<'_>) -> Plan {
    let mut findings = Findings::default();
    let spec = serde_json::from_value(config.clone()).unwrap();
    let plan = plan(&spec, facts, &mut findings);
    assert!(findings.problems.is_empty(), "{findings:?}");
    plan
}

fn ready(plan: &Plan) -> anyhow::Result<Rootfs> {
    prepare(plan, &mut |_| anyhow::bail!("nobody asks without a user namespace"))
}

/// All the way into the container.
fn enter(config: &Value, facts: &Facts<'_>) -> Rootfs {
    let plan = planned(config, facts);
    let mut rootfs = ready(&plan).map_err(|error| error::text(&error)).unwrap();
    rootfs.switch(&plan).map_err(|error| error::text(&error)).unwrap();
    rootfs.finish(&plan).map_err(|error| error::text(&error)).unwrap();
    rootfs
}

/// Why `prepare` refuses.
fn refusal(config: &Value, facts: &Facts<'_>) -> String {
    error::text(&ready(&planned(config, facts)).map(drop).unwrap_err())
}

/// Mount point -> (attributes, optional fields, type, superblock options), the topmost mount of each.
fn mount_at(path: &str) -> Option<(String, String, String, String)> {
    let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    table.lines().rev().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let left: Vec<_> = left.split(' ').collect();
        let right: Vec<_> = right.split(' ').collect();
        (left[4] == path)
            .then(|| (left[5].to_owned(), left[6..].join(" "), right[0].to_owned(), right[2].to_owned()))
    })
}

fn shared_tmpfs(at: &Path) {
    fs::create_dir_all(at).unwrap();
    let context = FsContext::open(c"tmpfs").unwrap();
    context.create().unwrap();
    let mount = context.mount(0).unwrap();
    mount.attach(directory(at).as_fd()).unwrap();
    let shared = MountAttr { propagation: MsFlags::MS_SHARED.bits(), ..MountAttr::default() };
    set_attributes(mount.as_fd(), &shared, false).unwrap();
}

fn directory(at: &Path) -> OwnedFd {
    open(at, OFlag::O_PATH | OFlag::O_DIRECTORY, Mode::empty()).unwrap()
}

fn tmpfs_on(at: &Path) {
    fs::create_dir_all(at).unwrap();
    mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
}

fn paths() -> Value {
    json!({
        "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/nothing", "/sys/firmware", "/proc/acpi"],
        "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger", "/proc/missing"],
    })
}

#[test]
fn the_default_mounts_look_as_asked() {
    on_host("the_default_mounts_look_as_asked", |host| {
        root(host);
        contained(|| {
            let mut config = full(Vec::new(), paths());
            config["root"]["readonly"] = json!(true);
            enter(&config, &facts(host));
            for (path, attributes, kind, options) in [
                ("/", "ro,relatime", "", ""),
                ("/proc", "rw,relatime", "proc", "rw"),
                ("/dev", "rw,nosuid", "tmpfs", "rw,size=65536k,mode=755"),
                ("/dev/pts", "rw,nosuid,noexec,relatime", "devpts", "rw,gid=5,mode=620,ptmxmode=666"),
                ("/dev/shm", "rw,nosuid,nodev,noexec,relatime", "tmpfs", "rw,size=65536k"),
                ("/dev/mqueue", "rw,nosuid,nodev,noexec,relatime", "mqueue", "rw"),
                ("/sys", "ro,nosuid,nodev,noexec,relatime", "sysfs", "rw"),
                ("/proc/sys", "ro,relatime", "proc", "rw"),
            ] {
                let found = mount_at(path).unwrap_or_else(|| panic!("{path} is no mount"));
                assert_eq!(found.0, attributes, "{path}");
                if !kind.is_empty() {
                    // how a kernel numbers the inodes of a tmpfs is its own affair
                    let shown = found.3.trim_end_matches(",inode64");
                    assert_eq!((found.2.as_str(), shown), (kind, options), "{path}");
                }
            }
            assert!(fs::write("/x", "").is_err());
            assert!(fs::write("/proc/sys/kernel/core_pattern", "x").is_err());
            assert!(fs::write("/proc/sysrq-trigger", "").is_err());
            fs::write("/dev/shm/x", "x").unwrap();
            // the host's tree is gone
            assert!(!Path::new(host).exists());
            assert!(!fs::read_to_string("/proc/thread-self/mountinfo").unwrap().contains("/sys/fs/cgroup"));
            assert_eq!(std::env::current_dir().unwrap(), Path::new("/"));
        });
    });
}

#[test]
fn masked_files_and_directories_are_empty_and_stay_so() {
    on_host("masked_files_and_directories_are_empty_and_stay_so", |host| {
        let root = root(host);
        fs::create_dir(root.join("secret")).unwrap();
        fs::write(root.join("secret/file"), "x").unwrap();
        fs::write(root.join("etc/secret"), "x").unwrap();
        let before = fs::metadata("/dev/null").unwrap();
        contained(|| {
            let linux =
                json!({ "maskedPaths": ["/secret", "/etc/secret", "/etc/none", "/etc/secret/below"] });
            enter(&full(Vec::new(), linux), &facts(host));
            assert_eq!(fs::read("/etc/secret").unwrap(), b"");
            assert_eq!(fs::read_dir("/secret").unwrap().count(), 0);
            assert!(fs::write("/secret/new", "").is_err());
            // the mask is the host's own node: nobody may change it from here
            assert!(fs::set_permissions("/etc/secret", fs::Permissions::from_mode(0o0)).is_err());
            assert!(std::os::unix::fs::chown("/etc/secret", Some(7), None).is_err());
            fs::write("/etc/secret", "swallowed").unwrap();
        });
        let after = fs::metadata("/dev/null").unwrap();
        assert_eq!((before.mode(), before.uid()), (after.mode(), after.uid()));
    });
}

#[test]
fn device_nodes_and_links_are_made_as_asked() {
    on_host("device_nodes_and_links_are_made_as_asked", |host| {
        root(host);
        contained(|| {
            let linux = json!({ "devices": [
                { "path": "/dev/net/tun", "type": "u", "major": 10, "minor": 200, "fileMode": 0o640, "uid": 7, "gid": 8 },
                { "path": "/dev/disk", "type": "b", "major": 7, "minor": 200, "fileMode": 0o660 },
                { "path": "/tmp/pipe", "type": "p", "fileMode": 0o600 },
            ]});
            enter(&full(Vec::new(), linux), &facts(host));
            for (name, major, minor) in [
                ("null", 1, 3),
                ("zero", 1, 5),
                ("full", 1, 7),
                ("random", 1, 8),
                ("urandom", 1, 9),
                ("tty", 5, 0),
            ] {
                let found = fs::metadata(format!("/dev/{name}")).unwrap();
                assert!(found.file_type().is_char_device());
                assert_eq!(found.rdev(), nix::sys::stat::makedev(major, minor), "{name}");
                assert_eq!(found.mode() & 0o7777, 0o666, "{name}");
            }
            let tun = fs::metadata("/dev/net/tun").unwrap();
            assert_eq!((tun.mode() & 0o7777, tun.uid(), tun.gid()), (0o640, 7, 8));
            assert!(fs::metadata("/dev/disk").unwrap().file_type().is_block_device());
            assert!(fs::metadata("/tmp/pipe").unwrap().file_type().is_fifo());
            for (name, target) in
                [("fd", "/proc/self/fd"), ("stdin", "/proc/self/fd/0"), ("ptmx", "pts/ptmx")]
            {
                assert_eq!(fs::read_link(format!("/dev/{name}")).unwrap(), Path::new(target));
            }
        });
    });
}

#[test]
fn links_of_the_image_lead_nowhere_outside() {
    on_host("links_of_the_image_lead_nowhere_outside", |host| {
        let canary = host.join("canary");
        fs::create_dir(&canary).unwrap();
        fs::write(canary.join("ptmx"), "x").unwrap();
        let count = || fs::read_dir(&canary).unwrap().count();
        let root = root(host);
        // /dev is a link, with and without a mount on it
        fs::remove_dir(root.join("dev")).unwrap();
        for target in
            [canary.clone(), Path::new("../../../../../../../../").join(canary.strip_prefix("/").unwrap())]
        {
            symlink(&target, root.join("dev")).unwrap();
            contained(|| {
                let found = refusal(&config(json!([]), json!({})), &facts(host));
                assert!(found.contains("/dev") && found.contains("link"), "{found}");
            });
            contained(|| drop(ready(&planned(&full(Vec::new(), json!({})), &facts(host)))));
            fs::remove_file(root.join("dev")).unwrap();
        }
        fs::create_dir(root.join("dev")).unwrap();
        assert_eq!((count(), fs::read(canary.join("ptmx")).unwrap()), (1, b"x".to_vec()));
        // a target that is a link out, dangling inside
        symlink(&canary, root.join("data")).unwrap();
        symlink(canary.join("new"), root.join("etc/file")).unwrap();
        symlink(canary.join("console"), root.join("dev/console")).unwrap();
        contained(|| {
            let mounts = json!([
                { "destination": "/data/sub", "type": "tmpfs", "source": "tmpfs" },
                { "destination": "/etc/file", "type": "bind", "source": "/etc/passwd", "options": ["bind", "ro"] },
            ]);
            let plan = planned(&config(mounts, json!({})), &facts(host));
            let rootfs = ready(&plan).unwrap();
            let terminal = open(c"/dev/null", OFlag::O_RDWR, Mode::empty()).unwrap();
            let found = error::text(&rootfs.mount_console(terminal.as_fd()).unwrap_err());
            assert!(found.contains("symbolic link"), "{found}");
        });
        assert_eq!(count(), 1);
        assert!(root.join(canary.strip_prefix("/").unwrap()).join("sub").is_dir());
    });
}

#[test]
fn proc_and_sys_must_be_real_directories() {
    on_host("proc_and_sys_must_be_real_directories", |host| {
        let root = root(host);
        for (name, kind) in [("proc", "proc"), ("sys", "sysfs")] {
            fs::remove_dir(root.join(name)).unwrap();
            symlink("tmp", root.join(name)).unwrap();
            contained(|| {
                let mounts = json!([{ "destination": format!("/{name}"), "type": kind, "source": kind }]);
                let found = refusal(&config(mounts, json!({})), &facts(host));
                assert!(found.starts_with(&format!("mounts[0]: mount {kind} on \"/{name}\": ")), "{found}");
                assert!(found.contains("not a real directory"), "{found}");
            });
            fs::remove_file(root.join(name)).unwrap();
            fs::create_dir(root.join(name)).unwrap();
        }
        symlink("/proc/sys", root.join("alias")).unwrap();
        contained(|| {
            let mounts = json!([
                { "destination": "/proc", "type": "proc", "source": "proc" },
                { "destination": "/alias/kernel", "type": "tmpfs", "source": "tmpfs" },
            ]);
            let found = refusal(&config(mounts, json!({})), &facts(host));
            assert!(found.contains("leads into /proc"), "{found}");
        });
        contained(|| {
            let mounts =
                json!([{ "destination": "/proc", "type": "bind", "source": "/tmp", "options": ["rbind"] }]);
            let found = refusal(&config(mounts, json!({})), &facts(host));
            assert!(found.contains("not the root of a procfs"), "{found}");
        });
    });
}

#[test]
fn a_missing_source_and_an_unknown_option_are_told_in_full() {
    on_host("a_missing_source_and_an_unknown_option_are_told_in_full", |host| {
        root(host);
        contained(|| {
            let mounts = json!([{ "destination": "/data", "source": "gone", "options": ["bind"] }]);
            let plan = planned(&config(mounts, json!({})), &facts(host));
            let failed = ready(&plan).unwrap_err();
            let source = host.join("gone");
            assert_eq!(
                error::text(&failed),
                format!("mounts[0]: bind {source:?} on \"/data\": no such file or directory")
            );
            assert!(error::hint(&failed).unwrap().contains("before the root is switched"));
        });
        contained(|| {
            let mounts = json!([{ "destination": "/data", "type": "tmpfs", "source": "tmpfs", "options": ["colour=red"] }]);
            let found = refusal(&config(mounts, json!({})), &facts(host));
            assert!(found.contains("Unknown parameter 'colour'"), "{found}");
        });
    });
}

#[test]
fn bind_mounts_take_their_options() {
    on_host("bind_mounts_take_their_options", |host| {
        root(host);
        let volume = host.join("volume");
        fs::create_dir_all(volume.join("sub")).unwrap();
        fs::write(volume.join("file"), "x").unwrap();
        tmpfs_on(&volume.join("sub"));
        contained(|| {
            let bind = |to: &str, options: Value| json!({ "destination": to, "source": "volume", "options": options });
            let mounts = vec![
                bind("/a", json!(["rbind", "ro"])),
                bind("/b", json!(["rbind", "rro", "nosuid"])),
                bind("/c", json!(["bind", "noatime", "nosymfollow"])),
                json!({ "destination": "/etc/file", "source": "volume/file", "options": ["bind", "rprivate", "ro"] }),
            ];
            enter(&full(mounts, json!({})), &facts(host));
            assert!(mount_at("/a").unwrap().0.starts_with("ro"));
            assert!(mount_at("/a/sub").unwrap().0.starts_with("rw"));
            assert!(mount_at("/b").unwrap().0.starts_with("ro,nosuid"));
            assert!(mount_at("/b/sub").unwrap().0.starts_with("ro"));
            assert!(mount_at("/c/sub").is_none());
            let attributes = mount_at("/c").unwrap().0;
            assert!(attributes.contains("noatime") && attributes.contains("nosymfollow"), "{attributes}");
            assert_eq!(fs::read("/etc/file").unwrap(), b"x");
            assert!(fs::write("/etc/file", "y").is_err());
        });
    });
}

#[test]
fn a_shared_volume_carries_mounts_to_the_host_and_a_slave_only_from_it() {
    on_host("a_shared_volume_carries_mounts_to_the_host_and_a_slave_only_from_it", |host| {
        root(host);
        for name in ["shared", "slave", "private", "plain"] {
            shared_tmpfs(&host.join(name));
        }
        let (mut told, tell) = std::io::pipe().unwrap();
        let (mut go_on, mut go) = std::io::pipe().unwrap();
        let meanwhile = || {
            told.read_exact(&mut [0]).unwrap();
            for name in ["shared", "slave", "private", "plain"] {
                tmpfs_on(&host.join(name).join("from-host"));
            }
            go.write_all(b"x").unwrap();
        };
        in_container(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID, meanwhile, || {
            let mount = |name: &str, option: &str| json!({ "destination": format!("/{name}"), "source": name, "options": ["rbind", option] });
            let mounts = vec![
                mount("shared", "rshared"),
                mount("slave", "rslave"),
                mount("private", "rprivate"),
                json!({ "destination": "/plain", "source": "plain", "options": ["rbind"] }),
            ];
            enter(&full(mounts, json!({})), &facts(host));
            (&tell).write_all(b"x").unwrap();
            go_on.read_exact(&mut [0]).unwrap();
            let seen = ["shared", "slave", "private", "plain"]
                .map(|name| mount_at(&format!("/{name}/from-host")).is_some());
            assert_eq!(seen, [true, true, false, true]);
            assert!(mount_at("/shared").unwrap().1.contains("shared:"));
            for name in ["shared", "slave", "private"] {
                tmpfs_on(&Path::new("/").join(name).join("from-container"));
            }
        });
        let seen = ["shared", "slave", "private"]
            .map(|name| mount_at(host.join(name).join("from-container").to_str().unwrap()).is_some());
        assert_eq!(seen, [true, false, false]);
    });
}

#[test]
fn the_roots_propagation_is_as_asked_and_the_host_sees_nothing() {
    on_host("the_roots_propagation_is_as_asked_and_the_host_sees_nothing", |host| {
        // the bundle itself is on a shared mount of the host
        shared_tmpfs(&host.join("bundle"));
        let bundle = host.join("bundle");
        root(&bundle);
        let before = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        for (word, expected) in [
            ("shared", "shared:"),
            ("slave", "master:"),
            ("private", ""),
            ("rprivate", ""),
            ("unbindable", "unbindable"),
            ("", "master:"),
        ] {
            contained(|| {
                enter(&full(Vec::new(), json!({ "rootfsPropagation": word })), &facts(&bundle));
                let found = mount_at("/").unwrap().1;
                assert!(found.contains(expected), "{word}: {found}");
                if expected.is_empty() {
                    assert_eq!(found, "", "{word}");
                }
            });
            assert_eq!(fs::read_to_string("/proc/thread-self/mountinfo").unwrap(), before, "{word}");
        }
    });
}

#[test]
fn without_pivot_the_root_is_moved_and_the_hosts_proc_is_gone() {
    on_host("without_pivot_the_root_is_moved_and_the_hosts_proc_is_gone", |host| {
        root(host);
        contained(|| {
            // the bundle is named by a path with a link in it
            symlink(host, host.join("link")).unwrap();
            let link = host.join("link");
            let facts = Facts { no_pivot: true, ..facts(&link) };
            enter(&full(Vec::new(), paths()), &facts);
            assert!(!host.exists());
            let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
            assert_eq!(
                table.lines().filter(|line| line.contains(" - proc ") && line.contains(" / /proc ")).count(),
                1
            );
        });
    });
}

#[test]
fn without_a_mount_namespace_the_mounts_are_the_hosts_and_go_at_delete() {
    on_host("without_a_mount_namespace_the_mounts_are_the_hosts_and_go_at_delete", |host| {
        let root = root(host);
        let before = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        in_container(
            CloneFlags::CLONE_NEWPID,
            || {},
            || {
                let facts = Facts { mount_namespace: false, ..facts(host) };
                enter(&full(Vec::new(), json!({})), &facts);
                assert!(Path::new("/dev/null").exists() && !host.exists());
            },
        );
        assert!(mount_at(root.join("proc").to_str().unwrap()).is_some());
        symlink(host, host.join("link")).unwrap();
        detach_leftovers(&host.join("link/rootfs")).unwrap();
        assert_eq!(fs::read_to_string("/proc/thread-self/mountinfo").unwrap(), before);
        detach_leftovers(&root).unwrap();
        assert_eq!(fs::read_to_string("/proc/thread-self/mountinfo").unwrap(), before);
    });
}

#[test]
fn a_tmpfs_may_start_with_what_it_covers() {
    on_host("a_tmpfs_may_start_with_what_it_covers", |host| {
        let root = root(host);
        let covered = root.join("var");
        fs::create_dir_all(covered.join("deep/er")).unwrap();
        fs::write(covered.join("deep/er/file"), "content").unwrap();
        fs::set_permissions(covered.join("deep/er/file"), fs::Permissions::from_mode(0o4711)).unwrap();
        std::os::unix::fs::lchown(covered.join("deep"), Some(5), Some(6)).unwrap();
        symlink("/etc/passwd", covered.join("link")).unwrap();
        fs::set_permissions(&covered, fs::Permissions::from_mode(0o750)).unwrap();
        contained(|| {
            let mounts = vec![
                json!({ "destination": "/var", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup", "ro"] }),
                json!({ "destination": "/new", "type": "tmpfs", "source": "tmpfs", "options": ["nodev"] }),
            ];
            enter(&full(mounts, json!({})), &facts(host));
            assert_eq!(fs::read_to_string("/var/deep/er/file").unwrap(), "content");
            assert_eq!(fs::metadata("/var/deep/er/file").unwrap().mode() & 0o7777, 0o4711);
            assert_eq!(fs::metadata("/var/deep").unwrap().gid(), 6);
            assert_eq!(fs::read_link("/var/link").unwrap(), Path::new("/etc/passwd"));
            assert_eq!(fs::metadata("/var").unwrap().mode() & 0o7777, 0o750);
            assert!(fs::write("/var/x", "").is_err());
            assert_eq!(fs::metadata("/new").unwrap().mode() & 0o7777, 0o1777);
        });
    });
}

#[test]
fn a_terminal_comes_from_the_containers_own_devpts() {
    on_host("a_terminal_comes_from_the_containers_own_devpts", |host| {
        root(host);
        contained(|| {
            let facts = Facts { terminal: true, ..facts(host) };
            let plan = planned(&full(Vec::new(), json!({})), &facts);
            let mut rootfs = ready(&plan).unwrap();
            rootfs.switch(&plan).unwrap();
            let (master, number) = rootfs.open_pty().unwrap();
            assert_eq!(number, 0);
            let peer = berth::sys::terminal::peer(master.as_fd()).unwrap();
            rootfs.mount_console(peer.as_fd()).unwrap();
            rootfs.finish(&plan).unwrap();
            let (console, pty) = (fs::metadata("/dev/console").unwrap(), fs::metadata("/dev/pts/0").unwrap());
            assert_eq!((console.rdev(), console.ino()), (pty.rdev(), pty.ino()));
        });
        contained(|| {
            let plan = planned(&config(json!([]), json!({})), &facts(host));
            let found = error::text(&ready(&plan).unwrap().open_pty().unwrap_err());
            assert!(found.contains("no devpts"), "{found}");
        });
    });
}

#[test]
fn cgroup_v1_shows_the_containers_own_directories() {
    on_host("cgroup_v1_shows_the_containers_own_directories", |host| {
        root(host);
        // directories stand in for the hierarchies: what is mounted is a directory either way
        for name in ["cpu,cpuacct", "memory", "systemd"] {
            fs::create_dir_all(host.join("cg").join(name)).unwrap();
            fs::write(host.join("cg").join(name).join("tasks"), name).unwrap();
        }
        contained(|| {
            let cgroups = ["cpu,cpuacct", "memory", "systemd"]
                .map(|name| (name.to_owned(), host.join("cg").join(name)));
            let facts = Facts { cgroups: cgroups.to_vec(), ..facts(host) };
            let mount = json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
                "options": ["nosuid", "noexec", "nodev", "relatime", "ro"] });
            enter(&full(vec![mount], json!({})), &facts);
            assert_eq!(mount_at("/sys/fs/cgroup").unwrap().0, "ro,nosuid,nodev,noexec,relatime");
            assert_eq!(mount_at("/sys/fs/cgroup/memory").unwrap().0, "ro,nosuid,nodev,noexec,relatime");
            assert_eq!(fs::read_link("/sys/fs/cgroup/cpu").unwrap(), Path::new("cpu,cpuacct"));
            assert_eq!(fs::read_to_string("/sys/fs/cgroup/cpuacct/tasks").unwrap(), "cpu,cpuacct");
            assert!(fs::write("/sys/fs/cgroup/memory/tasks", "0").is_err());
        });
    });
}

#[test]
fn cgroup_v2_shows_the_containers_own_directory() {
    on_host("cgroup_v2_shows_the_containers_own_directory", |host| {
        root(host);
        let mount = json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
            "options": ["nosuid", "noexec", "nodev", "relatime", "ro"] });
        let config = full(vec![mount], json!({}));
        let own = host.join("own");
        fs::create_dir(&own).unwrap();
        let facts = Facts { cgroup_v2: true, cgroups: vec![(String::new(), own.clone())], ..facts(host) };
        contained(|| {
            enter(&config, &facts);
            assert_eq!(mount_at("/sys/fs/cgroup").unwrap().0, "ro,nosuid,nodev,noexec,relatime");
            assert_eq!(fs::read_dir("/sys/fs/cgroup").unwrap().count(), 0);
        });
        let facts = Facts { cgroup_namespace: true, ..facts };
        let namespaces = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWCGROUP;
        in_container(
            namespaces,
            || {},
            || {
                enter(&config, &facts);
                let found = mount_at("/sys/fs/cgroup").unwrap();
                assert_eq!(
                    (found.0.as_str(), found.2.as_str()),
                    ("ro,nosuid,nodev,noexec,relatime", "cgroup2")
                );
            },
        );
    });
}

#[test]
fn in_a_user_namespace_the_hosts_nodes_are_bound_and_sources_can_be_asked_for() {
    on_host("in_a_user_namespace_the_hosts_nodes_are_bound_and_sources_can_be_asked_for", |host| {
        let root = root(host);
        fs::create_dir(host.join("hidden")).unwrap();
        fs::create_dir(host.join("hidden/volume")).unwrap();
        fs::write(host.join("hidden/volume/file"), "x").unwrap();
        fs::set_permissions(host.join("hidden"), fs::Permissions::from_mode(0o700)).unwrap();
        fs::set_permissions(host, fs::Permissions::from_mode(0o755)).unwrap();
        chown_tree(&root, 100_000);
        let facts = Facts { user_namespace: true, network_namespace: true, ..facts(host) };
        let volume = json!({ "destination": "/data", "source": "hidden/volume", "options": ["bind", "ro"] });
        let mut config = full(vec![volume], paths());
        config["mounts"][2]["options"] = json!(["nosuid", "noexec", "ptmxmode=0666"]);
        let plan = planned(&config, &facts);
        let (told, mut tell) = std::io::pipe().unwrap();
        let (mut ready_to_map, mut born) = std::io::pipe().unwrap();
        let namespaces = CloneFlags::CLONE_NEWUSER
            | CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWIPC;
        // the clone is made before: the test has no socket to pass it over
        let mut clone = Some(make_source(&plan, 6, &mut UserNamespaces::of(nix::unistd::getpid())).unwrap());
        match (Clone { namespaces: bits(namespaces), ..Clone::default() }).run().unwrap() {
            Cloned::New => {
                let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    born.write_all(b"x").unwrap();
                    (&told).read_exact(&mut [0]).unwrap();
                    nix::unistd::setresgid(0.into(), 0.into(), 0.into()).unwrap();
                    nix::unistd::setresuid(0.into(), 0.into(), 0.into()).unwrap();
                    let mut asked = Vec::new();
                    let mut rootfs = prepare(&plan, &mut |index| {
                        asked.push(index);
                        Ok(clone.take().unwrap())
                    })
                    .map_err(|error| error::text(&error))
                    .unwrap();
                    rootfs.switch(&plan).map_err(|error| error::text(&error)).unwrap();
                    rootfs.finish(&plan).map_err(|error| error::text(&error)).unwrap();
                    assert_eq!(asked, [6]);
                    assert_eq!(fs::read_to_string("/data/file").unwrap(), "x");
                    assert!(fs::write("/data/file", "y").is_err());
                    fs::write("/dev/null", "x").unwrap();
                    assert!(mount_at("/dev/null").unwrap().0.contains("nosuid"));
                    assert!(fs::write("/proc/sys/kernel/core_pattern", "x").is_err());
                }));
                exit_now(i32::from(ended.is_err()));
            }
            Cloned::Caller(pid, _) => {
                ready_to_map.read_exact(&mut [0]).unwrap();
                fs::write(format!("/proc/{pid}/uid_map"), "0 100000 65536").unwrap();
                fs::write(format!("/proc/{pid}/gid_map"), "0 100000 65536").unwrap();
                tell.write_all(b"x").unwrap();
                assert_eq!(waitpid(pid, None).unwrap(), WaitStatus::Exited(pid, 0), "see the panic above");
            }
        }
    });
}

fn chown_tree(at: &Path, id: u32) {
    std::os::unix::fs::lchown(at, Some(id), Some(id)).unwrap();
    if at.symlink_metadata().unwrap().is_dir() {
        for entry in fs::read_dir(at).unwrap() {
            chown_tree(&entry.unwrap().path(), id);
        }
    }
}

#[test]
fn a_read_only_clone_is_never_writable() {
    on_host("a_read_only_clone_is_never_writable", |host| {
        let detached = MountFd::clone_of(directory(host).as_fd(), false).unwrap();
        let read_only = MountAttr { set: attr::RDONLY, ..MountAttr::default() };
        set_attributes(detached.as_fd(), &read_only, false).unwrap();
        assert_eq!(make_in(detached.as_fd()), Err(nix::errno::Errno::EROFS));
    });
}

fn make_in(at: BorrowedFd<'_>) -> nix::Result<()> {
    nix::sys::stat::mkdirat(at, "x", Mode::S_IRWXU)
}
