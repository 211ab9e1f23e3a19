//! Cgroups and limits, and what a container is allowed to do.

use anyhow::{Result, ensure};

use super::{Cases, Outcome, PASSED, skipped};
use crate::host::Cgroups;
use crate::podman::scene::Scene;

pub const CASES: Cases = &[
    ("--cgroups=disabled", no_cgroups),
    ("--pids-limit", pids_limit),
    ("--pids-limit 0", no_pids_limit),
    ("--memory", memory),
    ("--cpus, --cpuset-cpus", cpu),
    ("--ulimit", ulimit),
    ("--sysctl", sysctl),
    ("--cap-drop all --cap-add", capabilities),
    ("--security-opt no-new-privileges", no_new_privileges),
    ("--security-opt seccomp=unconfined", unconfined),
    ("default seccomp profile", seccomp),
    ("--security-opt unmask, mask", masks),
    ("--privileged", privileged),
    ("--device", device),
    ("--systemd=always", systemd),
    ("--pid, --ipc, --uts, --network, --cgroupns host", host_namespaces),
];

/// podman drops limits of an ordinary user on cgroup v1.
fn without_limits(scene: &Scene<'_>) -> bool {
    !scene.is_root() && Cgroups::here() != Cgroups::V2
}

fn no_cgroups(scene: &Scene<'_>) -> Result<Outcome> {
    if scene.runtime == "runc" {
        return skipped("runc always makes a cgroup");
    }
    let reply = scene.run(&["--rm", "--cgroups=disabled"], &["cat", "/proc/self/cgroup"])?.exits(0)?;
    ensure!(!reply.out.contains("libpod"), "in a cgroup of its own: {}", reply.out);
    PASSED
}

fn pids_limit(scene: &Scene<'_>) -> Result<Outcome> {
    if without_limits(scene) {
        return skipped("podman has no limits for an ordinary user on cgroup v1");
    }
    let reply = scene.sh(&["--pids-limit", "3"], "for i in 1 2 3 4 5 6; do sleep 1000 & done; wait")?;
    ensure!(reply.err.contains("fork"), "six processes in a limit of 3: {reply:?}");
    PASSED
}

fn no_pids_limit(scene: &Scene<'_>) -> Result<Outcome> {
    // podman until 5.4 writes 0 for both
    for none in ["0", "-1"] {
        scene.sh(&["--pids-limit", none], "true | true; echo ran")?.prints("ran")?;
    }
    PASSED
}

fn memory(scene: &Scene<'_>) -> Result<Outcome> {
    if without_limits(scene) {
        return skipped("podman has no limits for an ordinary user on cgroup v1");
    }
    let script =
        "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max";
    scene.sh(&["--memory", "64m"], script)?.prints("67108864")?;
    scene.run(&["--rm", "--memory", "16m", "--memory-swap", "16m"], &["tail", "/dev/zero"])?.exits(137)?;
    PASSED
}

fn cpu(scene: &Scene<'_>) -> Result<Outcome> {
    if without_limits(scene) {
        return skipped("podman has no limits for an ordinary user on cgroup v1");
    }
    let script = "cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us 2>/dev/null || cut -d' ' -f1 /sys/fs/cgroup/cpu.max; \
                  grep Cpus_allowed_list /proc/self/status | cut -f2";
    scene.sh(&["--cpus", "0.5", "--cpuset-cpus", "0"], script)?.prints("50000\n0")?;
    PASSED
}

fn ulimit(scene: &Scene<'_>) -> Result<Outcome> {
    scene.sh(&["--ulimit", "nofile=100:200"], "ulimit -n; ulimit -Hn").map(|reply| {
        // podman raises RLIMIT_NPROC to its own when it is given a --ulimit: not everybody may
        if reply.err.to_lowercase().contains("nproc") || reply.err.contains("rlimit type 6") {
            return skipped("podman asks for more processes than this machine gives");
        }
        reply.prints("100\n200")?;
        PASSED
    })?
}

fn sysctl(scene: &Scene<'_>) -> Result<Outcome> {
    let flags = ["--sysctl", "net.ipv4.ip_unprivileged_port_start=79"];
    scene.sh(&flags, "cat /proc/sys/net/ipv4/ip_unprivileged_port_start")?.prints("79")?;
    PASSED
}

fn capabilities(scene: &Scene<'_>) -> Result<Outcome> {
    let script = "grep -E '^Cap(Prm|Eff|Bnd)' /proc/self/status | cut -f2 | sort -u";
    let flags = ["--cap-drop", "all", "--cap-add", "NET_ADMIN,CHOWN"];
    scene.sh(&flags, script)?.prints("0000000000001001")?;
    PASSED
}

fn no_new_privileges(scene: &Scene<'_>) -> Result<Outcome> {
    let script = "grep NoNewPrivs /proc/self/status | cut -f2";
    scene.sh(&[], script)?.prints("0")?;
    scene.sh(&["--security-opt", "no-new-privileges"], script)?.prints("1")?;
    PASSED
}

const SECCOMP: &str = "grep '^Seccomp:' /proc/self/status | cut -f2";

fn unconfined(scene: &Scene<'_>) -> Result<Outcome> {
    scene.sh(&["--security-opt", "seccomp=unconfined"], SECCOMP)?.prints("0")?;
    PASSED
}

fn seccomp(scene: &Scene<'_>) -> Result<Outcome> {
    scene.sh(&[], SECCOMP)?.prints("2")?;
    scene.sh(&[], "mount -t tmpfs tmpfs /mnt 2>/dev/null || echo refused")?.prints("refused")?;
    PASSED
}

fn masks(scene: &Scene<'_>) -> Result<Outcome> {
    let script = "test -s /proc/timer_list && echo read; ls /sys/firmware | wc -l; \
                  (: > /proc/sys/kernel/hostname) 2>/dev/null || echo read-only";
    scene.sh(&[], script)?.prints("0\nread-only")?;
    let script = "grep -c -E ' /proc/(kcore|timer_list|sys) ' /proc/self/mountinfo || true";
    scene.sh(&["--security-opt", "unmask=ALL"], script)?.prints("0")?;
    scene.sh(&["--security-opt", "mask=/etc/plain"], "wc -c < /etc/plain")?.prints("0")?;
    PASSED
}

fn privileged(scene: &Scene<'_>) -> Result<Outcome> {
    let script = "grep '^Seccomp:' /proc/self/status | cut -f2; mount -t tmpfs tmpfs /mnt && echo mounted; \
                  test -e /dev/full && echo devices";
    scene.sh(&["--privileged"], script)?.prints("0\nmounted\ndevices")?;
    PASSED
}

fn device(scene: &Scene<'_>) -> Result<Outcome> {
    let script = "head -c 3 /dev/mine | od -An -tx1 | tr -d ' '";
    scene.sh(&["--device", "/dev/zero:/dev/mine"], script)?.prints("000000")?;
    PASSED
}

fn systemd(scene: &Scene<'_>) -> Result<Outcome> {
    let script = "for d in /run /run/lock /tmp /var/log/journal; do \
                  grep -q \" $d .* tmpfs \" /proc/self/mountinfo || echo no $d; done; \
                  d=/sys/fs/cgroup; [ -e $d/cgroup.procs ] || d=$d/systemd; \
                  [ -e $d/cgroup.procs ] && grep -q \" $d rw\" /proc/self/mountinfo && echo writable; echo $container";
    scene.sh(&["--systemd=always"], script)?.prints("writable\npodman")?;
    PASSED
}

fn host_namespaces(scene: &Scene<'_>) -> Result<Outcome> {
    let kinds = ["pid", "uts", "net", "cgroup"];
    let script = kinds.map(|kind| format!("readlink /proc/self/ns/{kind}")).join("; ");
    let flags = ["run", "--rm", "--pid", "host", "--uts", "host", "--network", "host", "--cgroupns", "host"];
    let words = [flags.as_slice(), &["localhost/busybox", "sh", "-c", &script]].concat();
    let reply = scene.podman(&words)?.exits(0)?;
    for (kind, have) in kinds.iter().zip(reply.lines()) {
        let want = std::fs::read_link(format!("/proc/thread-self/ns/{kind}"))?;
        ensure!(want.to_string_lossy() == have, "{kind} is {have}, on the host {want:?}");
    }
    PASSED
}
