//! The security context: what a container's processes are and may do.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::Cases;
use crate::cri::pod::secured;
use crate::cri::scene::{Scene, process_field};
use crate::play::{Outcome, PASSED, skipped};

pub const CASES: Cases = &[
    ("security: user and groups", user),
    ("security: capabilities", capabilities),
    ("security: privileged", privileged),
    ("security: read-only root file system", read_only_root),
    ("security: allowPrivilegeEscalation: false", no_new_privileges),
    ("security: seccomp profiles", seccomp),
    ("security: masked and read-only paths", paths),
];

fn user(scene: &Scene<'_>) -> Result<Outcome> {
    let pod = scene.pod("user", json!({}))?;
    let context = json!({
        "run_as_user": { "value": 1234 }, "run_as_group": { "value": 2345 }, "supplemental_groups": [3456, 4567],
    });
    let script = "id -u; id -g; id -G; touch /denied 2>/dev/null || echo denied; echo > /dev/stdout";
    let reply = pod.plays("ids", script, secured(context))?.exits(0)?;
    ensure!(reply.lines() == ["1234", "2345", "2345 3456 4567", "denied", ""], "{reply:?}");
    // with the groups and the home that the image knows
    let script = "id -u; id -g; id -G; echo $HOME";
    let reply = pod.plays("name", script, secured(json!({ "run_as_username": "guest" })))?.exits(0)?;
    let lines = reply.lines();
    ensure!(lines[..2] == ["405", "100"] && lines[2].contains("10") && lines[3] == "/tmp", "{reply:?}");
    // and an exec is the same user
    let container = pod.idle("exec", secured(json!({ "run_as_user": { "value": 1234 } })))?;
    scene.exec(&container, &["id", "-u"])?.prints("1234")?;
    PASSED
}

/// The effective set of a container's process, as a number.
fn effective(scene: &Scene<'_>, container: &str) -> Result<u64> {
    Ok(u64::from_str_radix(&process_field(scene.pid("Container", container)?, "CapEff")?, 16)?)
}

fn capabilities(scene: &Scene<'_>) -> Result<Outcome> {
    const CHOWN: u64 = 1;
    const NET_ADMIN: u64 = 1 << 12;
    const NET_BIND_SERVICE: u64 = 1 << 10;
    let pod = scene.pod("caps", json!({}))?;
    let changed = |capabilities: Value| secured(json!({ "capabilities": capabilities }));
    let container = pod.idle("plain", json!({}))?;
    let usual = effective(scene, &container)?;
    ensure!(usual & CHOWN != 0 && usual & NET_ADMIN == 0, "the usual set is {usual:x}");
    let words = json!({ "add_capabilities": ["NET_ADMIN"], "drop_capabilities": ["CHOWN"] });
    let container = pod.idle("both", changed(words))?;
    let set = effective(scene, &container)?;
    ensure!(set == (usual | NET_ADMIN) & !CHOWN, "{set:x} after {usual:x}");
    let script = "ip link add kind type dummy 2>/dev/null || ip link set lo mtu 60000 && echo changed; chown 1 /tmp || echo refused";
    let reply = scene.sh(&container, script)?.exits(0)?;
    ensure!(reply.out == "changed\nrefused\n", "{reply:?}");
    let words = json!({ "add_capabilities": ["NET_BIND_SERVICE"], "drop_capabilities": ["ALL"] });
    let container = pod.idle("one", changed(words))?;
    let set = effective(scene, &container)?;
    ensure!(set == NET_BIND_SERVICE, "{set:x} instead of one");
    PASSED
}

fn privileged(scene: &Scene<'_>) -> Result<Outcome> {
    let pod = match scene.pod("privileged", secured(json!({ "privileged": true }))) {
        Ok(pod) => pod,
        Err(error) if format!("{error:#}").contains("apabilit") => {
            return skipped("this machine has not all capabilities to give");
        }
        Err(error) => return Err(error),
    };
    let container = match pod
        .idle("c", secured(json!({ "privileged": true, "masked_paths": [], "readonly_paths": [] })))
    {
        Ok(container) => container,
        Err(error) if format!("{error:#}").contains("apabilit") => {
            return skipped("this machine has not all capabilities to give");
        }
        Err(error) => return Err(error),
    };
    scene.sh(&container, "mount -t tmpfs tmpfs /mnt && echo mounted")?.prints("mounted")?;
    // of the mount: the file system is read-only if the runtime made it so for the pod's own container
    let options = "grep ' / /sys ' /proc/self/mountinfo | cut -d' ' -f6 | cut -d, -f1";
    scene.sh(&container, options)?.prints("rw")?;
    scene
        .sh(&container, "test -c /dev/kmsg -o -c /dev/loop-control -o -c /dev/fuse && echo devices")?
        .prints("devices")?;
    scene.sh(&container, "echo 1 > /proc/sys/net/ipv4/ip_forward && echo written")?.prints("written")?;
    let pid = scene.pid("Container", &container)?;
    ensure!(process_field(pid, "Seccomp")? == "0", "a filter is in force");
    ensure!(
        process_field(pid, "CapEff")? == process_field(std::process::id().cast_signed(), "CapEff")?,
        "the capabilities"
    );
    PASSED
}

fn read_only_root(scene: &Scene<'_>) -> Result<Outcome> {
    let pod = scene.pod("readonly", json!({}))?;
    let script = "touch /x 2>&1 | grep -o 'Read-only file system'; touch /dev/shm/x && echo shm; echo > /dev/null && echo null";
    let reply = pod.plays("c", script, secured(json!({ "readonly_rootfs": true })))?.exits(0)?;
    ensure!(reply.out == "Read-only file system\nshm\nnull\n", "{reply:?}");
    PASSED
}

fn no_new_privileges(scene: &Scene<'_>) -> Result<Outcome> {
    let pod = scene.pod("privileges", json!({}))?;
    for (name, flag, want) in [("yes", true, "1"), ("no", false, "0")] {
        let container = pod.idle(name, secured(json!({ "no_new_privs": flag })))?;
        let pid = scene.pid("Container", &container)?;
        ensure!(process_field(pid, "NoNewPrivs")? == want, "no_new_privs {flag}");
        scene
            .exec(&container, &["grep", "NoNewPrivs", "/proc/self/status"])?
            .prints(&format!("NoNewPrivs:\t{want}"))?;
    }
    PASSED
}

fn seccomp(scene: &Scene<'_>) -> Result<Outcome> {
    let profile = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95 }],
    });
    let path = scene.daemon.home().join(format!("profile-{}.json", scene.runtime));
    std::fs::write(&path, profile.to_string())?;
    let pod = scene.pod("seccomp", json!({}))?;
    let with = |profile: Value| secured(json!({ "seccomp": profile }));
    let mode = |container: &str| process_field(scene.pid("Container", container)?, "Seccomp");
    let script =
        "unshare -U true 2>/dev/null && echo unshared; mkdir /tmp/d 2>&1 | grep -o 'Operation not supported'";

    let container = pod.idle("none", with(json!({ "profile_type": 1 })))?;
    ensure!(mode(&container)? == "0", "unconfined");
    let container = pod.idle("usual", with(json!({ "profile_type": 0 })))?;
    ensure!(mode(&container)? == "2", "the engine's default");
    let reply = scene.sh(&container, script)?;
    ensure!(reply.out.is_empty(), "{reply:?}");
    let container = pod.idle("own", with(json!({ "profile_type": 2, "localhost_ref": path })))?;
    ensure!(mode(&container)? == "2", "a profile of the host");
    let reply = scene.sh(&container, script)?;
    ensure!(reply.out.ends_with("Operation not supported\n"), "{reply:?}");
    PASSED
}

fn paths(scene: &Scene<'_>) -> Result<Outcome> {
    let pod = scene.pod("paths", json!({}))?;
    let script = "wc -c < /proc/timer_list; ls /sys/firmware | wc -l; echo 1 2>&1 > /proc/sys/kernel/panic | grep -o 'Read-only.*'; echo end";
    let reply = pod.plays("usual", &script.replace("2>&1 > ", "2>&1 >"), json!({}))?;
    ensure!(reply.lines().starts_with(&["0", "0"]), "{reply:?}");
    let context = secured(json!({ "masked_paths": ["/etc/plain"], "readonly_paths": ["/root"] }));
    let script = "cat /etc/plain; touch /root/x 2>/dev/null || echo refused; touch /tmp/x && echo written";
    let reply = pod.plays("own", script, context)?.exits(0)?;
    ensure!(reply.out == "refused\nwritten\n", "{reply:?}");
    PASSED
}
