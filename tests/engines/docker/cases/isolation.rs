//! Rights: capabilities, seccomp, no_new_privs, devices, sysctls, masked paths, privileged.

use anyhow::{Context, Result, ensure};

use super::{Cases, Outcome, PASSED, capability_mask, where_all_capabilities_are};
use crate::docker::scene::Scene;

pub const CASES: Cases = &[
    ("default capabilities", default_capabilities),
    ("--cap-drop ALL --cap-add", capabilities),
    ("default seccomp profile", default_seccomp),
    ("--security-opt no-new-privileges", no_new_privileges),
    ("--security-opt seccomp=FILE", seccomp_file),
    ("--security-opt seccomp=unconfined", seccomp_unconfined),
    ("--privileged", privileged),
    ("--device", device),
    ("default devices", default_devices),
    ("--sysctl", sysctl),
    ("masked and read-only paths", masked_paths),
    ("no descriptor of the host is open", descriptors),
];

const ALL_SETS: &str = "grep '^Cap' /proc/self/status | tr -d '\\t'";

fn default_capabilities(scene: &Scene) -> Result<Outcome> {
    let reply = scene.sh(&[], ALL_SETS)?.exits(0)?;
    for set in ["CapPrm:", "CapEff:", "CapBnd:"] {
        let wanted = format!("{set}00000000a80425fb");
        ensure!(reply.lines().contains(&wanted.as_str()), "no {wanted} in {:?}", reply.out);
    }
    ensure!(reply.lines().contains(&"CapAmb:0000000000000000"), "{:?}", reply.out);
    PASSED
}

fn capabilities(scene: &Scene) -> Result<Outcome> {
    let reply = scene
        .sh(&["--cap-drop", "ALL", "--cap-add", "NET_ADMIN", "--cap-add", "CHOWN"], ALL_SETS)?
        .exits(0)?;
    for set in ["CapPrm:", "CapEff:", "CapBnd:"] {
        let wanted = format!("{set}0000000000001001");
        ensure!(reply.lines().contains(&wanted.as_str()), "no {wanted} in {:?}", reply.out);
    }
    scene
        .sh(&["--cap-drop", "ALL"], "grep CapBnd /proc/self/status | tr -d '\\t'")?
        .prints("CapBnd:0000000000000000")?;
    scene
        .sh(&["--cap-drop", "CHOWN"], "chown 1 /etc/plain 2>/dev/null || echo refused")?
        .prints("refused")?;
    PASSED
}

const SECCOMP: &str = "grep '^Seccomp:' /proc/self/status | tr -d '\\t'";

fn default_seccomp(scene: &Scene) -> Result<Outcome> {
    scene.sh(&[], SECCOMP)?.prints("Seccomp:2")?;
    scene.sh(&[], "unshare -U true 2>/dev/null || echo refused")?.prints("refused")?;
    PASSED
}

fn no_new_privileges(scene: &Scene) -> Result<Outcome> {
    let script = "grep NoNewPrivs /proc/self/status | tr -d '\\t'";
    scene.sh(&[], script)?.prints("NoNewPrivs:0")?;
    scene.sh(&["--security-opt", "no-new-privileges"], script)?.prints("NoNewPrivs:1")?;
    PASSED
}

fn seccomp_file(scene: &Scene) -> Result<Outcome> {
    let profile = r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_AARCH64"],
        "syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":28},
                    {"names":["kill"],"action":"SCMP_ACT_ERRNO","args":[{"index":1,"value":10,"op":"SCMP_CMP_EQ"}]}]}"#;
    let file = scene.directory("seccomp")?.join("profile.json");
    std::fs::write(&file, profile)?;
    let option = format!("seccomp={}", file.display());
    let script =
        "mkdir /tmp/new 2>&1; sleep 1000 & kill -USR1 $! 2>&1 || echo kept; kill -KILL $! && echo killed";
    let reply = scene.sh(&["--security-opt", &option], script)?.exits(0)?;
    ensure!(reply.out.contains("No space left on device"), "the filter's errno is not seen: {:?}", reply.out);
    ensure!(reply.lines().contains(&"kept") && reply.lines().contains(&"killed"), "{:?}", reply.out);
    PASSED
}

fn seccomp_unconfined(scene: &Scene) -> Result<Outcome> {
    scene.sh(&["--security-opt", "seccomp=unconfined"], SECCOMP)?.prints("Seccomp:0")?;
    PASSED
}

fn privileged(scene: &Scene) -> Result<Outcome> {
    where_all_capabilities_are(|| full_rights(scene))
}

fn full_rights(scene: &Scene) -> Result<Outcome> {
    let script = "grep CapEff /proc/self/status | tr -d '\\t'; grep '^Seccomp:' /proc/self/status | tr -d '\\t'; \
                  mount -t tmpfs tmpfs /mnt && touch /mnt/x && echo mounted; test -c /dev/kmsg && echo kmsg; \
                  grep -c -E ' /proc/| /sys sysfs ro' /proc/mounts";
    let reply = scene.run(&["--rm", "--privileged", "busybox", "sh", "-c", script])?;
    let reply = reply.exits(1)?;
    let lines = reply.lines();
    // All that this process has itself to give, as far as an old dockerd knows it: up to CAP_AUDIT_READ, number 37.
    let known = (1 << 38) - 1;
    let effective = lines.first().and_then(|line| line.strip_prefix("CapEff:")).context("no CapEff")?;
    let effective = u64::from_str_radix(effective, 16)?;
    let expected = capability_mask()? & known;
    ensure!(effective & known == expected, "{lines:?}, not {expected:x}");
    ensure!(lines[1..] == ["Seccomp:0", "mounted", "kmsg", "0"], "{lines:?}");
    PASSED
}

fn device(scene: &Scene) -> Result<Outcome> {
    scene.sh(&[], "test -e /dev/mine || echo absent")?.prints("absent")?;
    // Opening writes nothing into the kernel's log.
    let script = "ls -l /dev/mine | tr -s ' ' | cut -d' ' -f1,5,6; : > /dev/mine && echo writable; \
                  (: < /dev/mine) 2>/dev/null || echo unreadable";
    let reply = scene.sh(&["--device", "/dev/kmsg:/dev/mine:w", "--cap-add", "SYSLOG"], script)?.exits(0)?;
    let lines = reply.lines();
    ensure!(lines.len() == 3 && lines[0].starts_with('c') && lines[0].ends_with("1, 11"), "{lines:?}");
    ensure!(lines[1..] == ["writable", "unreadable"], "{lines:?}");
    let script = ": > /dev/mine && : < /dev/mine && echo both";
    scene.sh(&["--device", "/dev/kmsg:/dev/mine", "--cap-add", "SYSLOG"], script)?.prints("both")?;
    PASSED
}

fn default_devices(scene: &Scene) -> Result<Outcome> {
    let script = "cd /dev; for d in null zero full tty random urandom; do test -c $d || echo no $d; done; \
                  for l in fd stdin stdout stderr ptmx; do test -L $l || echo no $l; done; \
                  for m in pts shm mqueue; do grep -q \" /dev/$m \" /proc/mounts || echo no mount $m; done; \
                  mknod /tmp/disk b 8 0 && (: < /tmp/disk) 2>&1 | grep -q 'not permitted' && echo denied";
    scene.sh(&[], script)?.prints("denied")?;
    PASSED
}

fn sysctl(scene: &Scene) -> Result<Outcome> {
    let flags =
        ["--sysctl", "net.ipv4.ip_unprivileged_port_start=79", "--sysctl", "kernel.shm_rmid_forced=1"];
    let script = "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced";
    scene.sh(&flags, script)?.prints("79\n1")?;
    scene.sh(&["--sysctl", "kernel.dmesg_restrict=1"], "true")?.exits(125).or_else(|_| {
        // Some dockerd leave the refusal to the runtime.
        scene.sh(&["--sysctl", "kernel.dmesg_restrict=1"], "true")?.exits(128)
    })?;
    PASSED
}

fn masked_paths(scene: &Scene) -> Result<Outcome> {
    let script = "for f in kcore keys timer_list sched_debug; do \
                      test -e /proc/$f && test -n \"$(head -c 1 /proc/$f)\" && echo /proc/$f is seen; done; \
                  for d in acpi scsi; do test -e /proc/$d && ls -A /proc/$d; done; ls -A /sys/firmware; \
                  for p in bus fs irq sys sysrq-trigger; do test -e /proc/$p || continue; \
                      grep -q \"^proc /proc/$p proc ro,\" /proc/mounts || echo /proc/$p is writable; done; \
                  (echo 1 > /proc/sys/kernel/panic) 2>&1; touch /sys/x 2>&1";
    let reply = scene.sh(&[], script)?.exits(1)?;
    let lines = reply.lines();
    let refused = lines.iter().filter(|line| line.contains("Read-only file system")).count();
    ensure!(lines.len() == 2 && refused == 2, "{lines:?}");
    PASSED
}

fn descriptors(scene: &Scene) -> Result<Outcome> {
    // The fourth is that of the directory which ls reads.
    scene.run(&["--rm", "busybox", "ls", "/proc/self/fd"])?.prints("0\n1\n2\n3")?;
    scene.idle("box", &[])?;
    scene.docker(&["exec", "box", "ls", "/proc/self/fd"])?.prints("0\n1\n2\n3")?;
    scene.docker(&["exec", "box", "ls", "/proc/1/fd"])?.prints("0\n1\n2")?;
    PASSED
}
