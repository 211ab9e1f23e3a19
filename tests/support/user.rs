//! An ordinary user of the machine: one that is in no file of the machine, with ranges of ids in files that only its commands see.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::{Bundle, Said, bundle, only_berth, say, shell, skip};

pub const USER: u32 = 12345;
/// The first of the ids that the user may map, for users and for groups.
pub const FIRST: u32 = 300_000;

/// The user's own copy of the binary and a bundle whose user namespace maps just that user; root's and berth's tests only.
pub fn users(script: &str) -> Option<Bundle> {
    let b = bundle(script)?;
    if !only_berth("the others want other things of the host") {
        return None;
    }
    let b = b.namespace("user", None).with(|c| {
        let one = json!([{ "containerID": 0, "hostID": USER, "size": 1 }]);
        c["linux"]["uidMappings"] = one.clone();
        c["linux"]["gidMappings"] = one;
        c["linux"]["resources"] = Value::Null;
        c["mounts"].as_array_mut().unwrap().retain(|mount| mount["type"] != "cgroup");
    });
    b.save();
    super::copy_program(&super::runtime(), &b.scratch().join("berth"));
    fs::create_dir(b.scratch().join("runtime-dir")).unwrap();
    fs::set_permissions(b.scratch(), fs::Permissions::from_mode(0o755)).unwrap();
    for path in [b.scratch().to_owned(), b.scratch().join("runtime-dir"), b.dir()] {
        chown(path, Some(USER), Some(USER)).unwrap();
    }
    Some(b)
}

/// The same without a user namespace, as root's bundles are.
pub fn without_user_namespace(b: Bundle) -> Bundle {
    let b = b.with(|c| {
        c["linux"]["namespaces"].as_array_mut().unwrap().retain(|namespace| namespace["type"] != "user");
        c["linux"].as_object_mut().unwrap().retain(|name, _| !name.ends_with("Mappings"));
    });
    b.save();
    b
}

/// The user's copy of the binary, to be run by whoever becomes the user.
pub fn command(b: &Bundle, args: &[&str]) -> Command {
    let mut command = Command::new(b.scratch().join("berth"));
    command.args(args).current_dir(b.dir()).stdin(Stdio::null());
    command.env_clear().env("XDG_RUNTIME_DIR", b.scratch().join("runtime-dir"));
    command
}

/// Runs the user's command to its end.
#[track_caller]
pub fn as_user(b: &Bundle, args: &[&str]) -> Said {
    say(command(b, args).uid(USER).gid(USER))
}

/// Becomes the user, with these groups besides (`""` for none), in a mount namespace of its own where `script` has been run.
pub fn in_own_view(script: &str, groups: &str, command: &Command) -> Command {
    let groups = if groups.is_empty() { "--clear-groups".to_owned() } else { format!("--groups={groups}") };
    let become_user = format!(
        "mount --make-rprivate / && {script} exec /usr/bin/setpriv --reuid={USER} --regid={USER} {groups} -- \"$@\""
    );
    let inner = shell(&become_user, command);
    let mut outer = Command::new("busybox");
    outer.args(["unshare", "-m"]).arg(inner.get_program()).args(inner.get_args());
    outer.current_dir(command.get_current_dir().unwrap_or(Path::new("/"))).stdin(Stdio::null()).env_clear();
    outer.env("PATH", std::env::var_os("PATH").unwrap_or_default());
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            outer.env(name, value);
        }
    }
    outer
}

/// Runs the command as the user who owns `count` ids from [`FIRST`] on (none for 0), with these groups besides. `None` with a SKIP
/// line where ranges cannot be mapped.
#[track_caller]
pub fn with_ranges(b: &Bundle, count: u32, groups: &str, args: &[&str]) -> Option<Said> {
    if !["/usr/bin/newuidmap", "/usr/bin/newgidmap", "/etc/subuid", "/etc/subgid"]
        .iter()
        .all(|path| Path::new(path).exists())
    {
        skip("needs newuidmap and newgidmap (package uidmap)");
        return None;
    }
    let [passwd, ranges] = ["passwd", "ranges"].map(|name| b.scratch().join(name));
    let users = fs::read_to_string("/etc/passwd").unwrap();
    fs::write(&passwd, format!("{users}berth-tester:x:{USER}:{USER}::/:/bin/sh\n")).unwrap();
    let line = if count == 0 { String::new() } else { format!("berth-tester:{FIRST}:{count}\n") };
    fs::write(&ranges, line).unwrap();
    let script = format!(
        "mount -o bind {passwd} /etc/passwd && mount -o bind {ranges} /etc/subuid && mount -o bind {ranges} /etc/subgid &&",
        passwd = passwd.display(),
        ranges = ranges.display()
    );
    Some(say(&mut in_own_view(&script, groups, &command(b, args))))
}
