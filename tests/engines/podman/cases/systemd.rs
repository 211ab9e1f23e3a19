//! systemd on both sides: as the program of a container, and as the one who starts containers.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{Cases, Outcome, PASSED, skipped};
use crate::calls::{SOON, call, until};
use crate::host::{Cgroups, has_systemd, host};
use crate::podman::home::User;
use crate::podman::scene::Scene;

pub const CASES: Cases = &[("--systemd=always: systemd itself", in_a_container), ("a quadlet unit", quadlet)];

/// Where distributions have systemd, and what it needs to come up, to run one service, and to end.
const SYSTEMD: &str = "/usr/lib/systemd";
const FILES: [&str; 6] = [
    "/usr/lib/systemd/systemd",
    "/usr/lib/systemd/systemd-executor",
    "/usr/lib/systemd/systemd-shutdown",
    "/usr/bin/systemctl",
    "/usr/lib/os-release",
    "/usr/lib/systemd/system/basic.target",
];
const UNITS: [&str; 8] = [
    "exit.target",
    "final.target",
    "halt.target",
    "poweroff.target",
    "shutdown.target",
    "systemd-exit.service",
    "systemd-halt.service",
    "umount.target",
];
const SERVICE: &str = "[Unit]\nDefaultDependencies=no\n[Service]\nType=oneshot\nRemainAfterExit=yes\n\
                       ExecStart=/bin/sh -c 'cat /proc/self/cgroup > /ran'\n";
const TARGET: &str =
    "[Unit]\nDefaultDependencies=no\nAllowIsolate=yes\nRequires=once.service\nAfter=once.service\n";

fn in_a_container(scene: &Scene<'_>) -> Result<Outcome> {
    if !Path::new(FILES[0]).exists() || Cgroups::here() != Cgroups::V2 {
        return skipped("needs a systemd to copy, and pure cgroup v2");
    }
    let image = scene.home.path().join("systemd.tar");
    if !image.exists() {
        make_image(scene.home.path(), &image)?;
    }
    let mut import = scene.home.command("podman")?;
    call(import.args(["import", "-q"]).arg(&image).arg("localhost/systemd"))?.exits(0)?;
    let flags =
        ["run", "-d", "--network", "none", "--systemd=always", "--name", "box", "--stop-timeout", "300"];
    scene.podman(&[&flags[..], &["localhost/systemd", FILES[0]]].concat())?.exits(0)?;
    let inside = |words: &[&str]| scene.podman(&[&["exec", "box"], words].concat());
    let up = until(SOON, || inside(&["systemctl", "is-active", "once.service"])?.prints("active").map(drop));
    if up.is_err() {
        let logs = scene.podman(&["logs", "box"])?;
        return up.map(|()| Outcome::Passed).with_context(|| format!("{logs:?}"));
    }
    inside(&["cat", "/ran"])?.prints("0::/system.slice/once.service")?;
    inside(&["head", "-n1", "/proc/1/cgroup"])?.prints("0::/init.scope")?;
    // ends by itself on podman's signal
    scene.podman(&["stop", "box"])?.exits(0)?;
    let state =
        scene.podman(&["inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", "box"])?.exits(0)?;
    ensure!(["exited 0", "exited 130"].contains(&state.out.trim()), "{state:?}");
    PASSED
}

/// The host's systemd with what it is linked to, in the image that all cases have.
fn make_image(home: &Path, archive: &Path) -> Result<()> {
    let root = home.join("systemd-image");
    host("cp", &["-a", &home.join("image").to_string_lossy(), &root.to_string_lossy()])?;
    for (link, target) in [("lib", "usr/lib"), ("lib64", "usr/lib64"), ("sbin", "bin")] {
        std::os::unix::fs::symlink(target, root.join(link))?;
    }
    for directory in ["usr/lib", "usr/lib64", "usr/bin", "run", "var", "etc/systemd/system"] {
        std::fs::create_dir_all(root.join(directory))?;
    }
    let copy = |file: &Path| -> Result<()> {
        let place = root.join(file.strip_prefix("/")?);
        std::fs::create_dir_all(place.parent().context("no directory")?)?;
        std::fs::copy(file, place).with_context(|| file.display().to_string()).map(drop)
    };
    for file in FILES {
        copy(Path::new(file))?;
    }
    for unit in UNITS {
        copy(&Path::new(SYSTEMD).join("system").join(unit))?;
    }
    for program in &FILES[..4] {
        for library in libraries(program)? {
            copy(&library)?;
        }
    }
    std::fs::write(root.join("etc/systemd/system/once.service"), SERVICE)?;
    std::fs::write(root.join("etc/systemd/system/default.target"), TARGET)?;
    host("tar", &["-C", &root.to_string_lossy(), "-cf", &archive.to_string_lossy(), "."]).map(drop)
}

/// As ldd(1) tells them.
fn libraries(program: &str) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output()?.stdout;
    let text = String::from_utf8(output)?;
    Ok(text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect())
}

/// A unit that podman's generator makes of a `.container` file, for the machine's systemd or the user's.
fn quadlet(scene: &Scene<'_>) -> Result<Outcome> {
    let generator = match scene.home.user {
        User::Root => "/usr/lib/systemd/system-generators/podman-system-generator",
        User::Ordinary(_) => "/usr/lib/systemd/user-generators/podman-user-generator",
    };
    let Some(units) = scene.home.quadlet_units().filter(|_| has_systemd() && Path::new(generator).exists())
    else {
        return skipped("needs systemd, which knows the user, and podman's generator");
    };
    // the service is the manager's: it has the machine's store, and not ours
    let image = "localhost/busybox:latest";
    let podman = |args: &[&str]| scene.home.outside("podman", args);
    if podman(&["image", "exists", image])?.code != 0 {
        return skipped("the user has no image busybox");
    }
    let systemctl = |args: &[&str]| {
        let whose: &[&str] = if scene.is_root() { &[] } else { &["--user"] };
        scene.home.outside("systemctl", &[whose, args].concat())
    };
    let runtime = scene.home.runtime(scene.runtime);
    std::fs::create_dir_all(&units)?;
    let unit = units.join("berthquadlet.container");
    let text = format!(
        "[Container]\nImage={image}\nExec=sh -c 'cat /proc/self/cgroup; exec sleep 1000'\nNotify=false\n\
         ContainerName=berthquadlet\nNetwork=none\nGlobalArgs=--runtime={}\n[Service]\nTimeoutStopSec=120\n",
        runtime.display()
    );
    std::fs::write(&unit, text)?;
    let run = || -> Result<()> {
        systemctl(&["daemon-reload"])?.exits(0)?;
        systemctl(&["start", "berthquadlet"])?.exits(0)?;
        systemctl(&["is-active", "berthquadlet"])?.prints("active")?;
        let format = "{{.OCIRuntime}} {{.State.Pid}}";
        let told = podman(&["inspect", "--format", format, "berthquadlet"])?.exits(0)?;
        let (name, pid) = told.out.trim().rsplit_once(' ').context("no pid")?;
        ensure!(name.ends_with(&*runtime.to_string_lossy()) || name == scene.runtime, "run by {name}");
        let cgroup = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        ensure!(cgroup.contains("berthquadlet.service"), "not in the unit's cgroup but in {cgroup}");
        systemctl(&["stop", "berthquadlet"])?.exits(0)?;
        let state = systemctl(&["show", "-P", "Result", "berthquadlet"])?.exits(0)?;
        ensure!(["success", "exit-code"].contains(&state.out.trim()), "{state:?}");
        let gone = podman(&["container", "exists", "berthquadlet"])?;
        ensure!(gone.code == 1, "the container is still there");
        Ok(())
    };
    let outcome = run();
    std::fs::remove_file(&unit)?;
    systemctl(&["stop", "berthquadlet"])?;
    systemctl(&["daemon-reload"])?.exits(0)?;
    outcome.map(|()| Outcome::Passed)
}
