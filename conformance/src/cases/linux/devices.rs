//! "Devices", "Default Devices", "Default Filesystems" and "Allowed Device list".

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use crate::case::{Case, Outcome, equal, failed, skipped};
use crate::seen::{Did, Seen};
use crate::trial::Trial;

const DEVICES: &[&str] = &["devices-available"];
/// A number for experiments (the kernel's admin-guide/devices.txt), which no driver takes.
const NOBODY: (u32, u32) = (240, 77);
const READ: &str = "read-byte:/dev/nobody";
const WRITE: &str = "write:/dev/nobody";
const EPERM: i64 = 1;
const DEFAULTS: [(&str, (u32, u32)); 6] = [
    ("null", (1, 3)),
    ("zero", (1, 5)),
    ("full", (1, 7)),
    ("random", (1, 8)),
    ("urandom", (1, 9)),
    ("tty", (5, 0)),
];

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    let mut cases = vec![
        Case::new("config-linux/default-file-systems", &["default-file-systems"], default_file_systems),
        Case::new("config-linux/devices/character", DEVICES, |t| device(t, "c", 'c', (10, 200))),
        Case::new("config-linux/devices/unbuffered", DEVICES, |t| device(t, "u", 'c', (10, 201))),
        Case::new("config-linux/devices/block", DEVICES, |t| device(t, "b", 'b', (7, 200))),
        Case::new("config-linux/devices/fifo", DEVICES, fifo),
        Case::new("config-linux/devices/mode-and-owner", DEVICES, mode_and_owner),
        Case::new("config-linux/devices/outside-of-dev", DEVICES, outside_of_dev),
        Case::new("config-linux/devices/works", DEVICES, |t| {
            let device = json!({ "path": "/dev/other-zero", "type": "c", "major": 1, "minor": 5 });
            let seen = t
                .bundle()?
                .set("/linux/devices", json!([device]))
                .does(&["read-byte:/dev/other-zero"])
                .report()?;
            equal("bytes read", seen.said("read-byte:/dev/other-zero")?.as_str(), "1")
        }),
        Case::new("config-linux/devices/file-exists", &["device-exists"], file_exists),
        Case::new("config-linux/devices/other-device-exists", &["device-exists"], other_device_exists),
        Case::new("config-linux/devices/numbers-missing", &["value-invalid"], |t| {
            t.bundle()?
                .set("/linux/devices", json!([{ "path": "/dev/x", "type": "q" }]))
                .refused_until_start()
        }),
        Case::new("config-linux/default-devices/ptmx", &["default-devices"], ptmx),
        Case::new("config-linux/default-devices/console", &["default-devices"], super::terminal::console),
        Case::new("config-linux/default-devices/beside-others", &["default-devices"], |t| {
            let device = json!({ "path": "/dev/extra", "type": "c", "major": 10, "minor": 200 });
            let seen = t
                .bundle()?
                .set("/linux/devices", json!([device]))
                .does(&["stat:/dev/null", "stat:/dev/extra"])
                .report()?;
            equal("/dev/null", seen.stat("stat:/dev/null")?.device, (1, 3))?;
            equal("/dev/extra", seen.stat("stat:/dev/extra")?.device, (10, 200))
        }),
        Case::new("config-linux/device-rules/deny", &["device-rules-order"], |t| {
            rules(t, &json!([all(false), one(true)]), true)?;
            rules(t, &json!([all(false)]), false)
        }),
        Case::new("config-linux/device-rules/deny-after-allow", &["device-rules-order"], |t| {
            rules(t, &json!([all(false), one(true), one(false)]), false)
        }),
        Case::new("config-linux/device-rules/allow-after-deny", &["device-rules-order"], |t| {
            rules(t, &json!([all(true), one(false), one(true)]), true)
        }),
        Case::new("config-linux/device-rules/deny-one-of-all", &["device-rules-order"], |t| {
            rules(t, &json!([all(true), one(false)]), false)
        }),
        Case::new("config-linux/device-rules/access", &["device-rules-order"], |t| {
            let read =
                json!({ "allow": true, "type": "c", "major": NOBODY.0, "minor": NOBODY.1, "access": "r" });
            let seen = with_rules(t, &json!([all(false), read]))?;
            equal("reading is denied", seen.did(READ)? == Did::Errno(EPERM), false)?;
            equal("writing", seen.did(WRITE)?, Did::Errno(EPERM))
        }),
    ];
    for (name, numbers) in DEFAULTS {
        cases.push(Case::new(
            format!("config-linux/default-devices/{name}"),
            &["default-devices"],
            move |t| {
                let action = format!("follow:/dev/{name}");
                let stat = t.bundle()?.does(&[&action]).report()?.stat(&action)?;
                equal("type and numbers", (stat.kind(), stat.device), ('c', numbers))?;
                equal("permissions", stat.mode & 0o777, 0o666)
            },
        ));
    }
    cases
}

/// What the runtime's own template makes available.
fn default_file_systems(t: &Trial) -> Outcome {
    let b = t.bundle()?;
    let said = t.run(Command::new(t.command(&["spec"]).get_program()).arg("spec").current_dir(b.dir()))?;
    if !said.ok {
        return skipped("the runtime has no `spec` that writes a configuration");
    }
    let Ok(config) = serde_json::from_slice::<Value>(&fs::read(b.dir().join("config.json"))?) else {
        return failed("spec writes no JSON");
    };
    let mounts = config.get("mounts").cloned().unwrap_or_default();
    let seen = b.set("/mounts", mounts).namespace("network", None).namespace("cgroup", None).report()?;
    for (point, kind) in [("/proc", "proc"), ("/sys", "sysfs"), ("/dev/pts", "devpts"), ("/dev/shm", "tmpfs")]
    {
        equal(point, seen.mount(point)?.kind.as_str(), kind)?;
    }
    Ok(())
}

fn device(t: &Trial, kind: &str, expected: char, numbers: (u32, u32)) -> Outcome {
    let device = json!({ "path": "/dev/extra", "type": kind, "major": numbers.0, "minor": numbers.1 });
    let stat = t
        .bundle()?
        .set("/linux/devices", json!([device]))
        .does(&["stat:/dev/extra"])
        .report()?
        .stat("stat:/dev/extra")?;
    equal("type and numbers", (stat.kind(), stat.device), (expected, numbers))
}

fn fifo(t: &Trial) -> Outcome {
    let device = json!({ "path": "/dev/pipe", "type": "p" });
    let stat = t
        .bundle()?
        .set("/linux/devices", json!([device]))
        .does(&["stat:/dev/pipe"])
        .report()?
        .stat("stat:/dev/pipe")?;
    equal("the type", stat.kind(), 'p')
}

fn mode_and_owner(t: &Trial) -> Outcome {
    let device = json!({ "path": "/dev/extra", "type": "c", "major": 10, "minor": 200, "fileMode": 0o640, "uid": 5, "gid": 6 });
    let stat = t
        .bundle()?
        .set("/linux/devices", json!([device]))
        .does(&["stat:/dev/extra"])
        .report()?
        .stat("stat:/dev/extra")?;
    equal("mode, owner and group", (stat.mode & 0o7777, stat.uid, stat.gid), (0o640, 5, 6))
}

fn outside_of_dev(t: &Trial) -> Outcome {
    let device = json!({ "path": "/etc/deep/extra", "type": "c", "major": 10, "minor": 200 });
    let stat = t
        .bundle()?
        .set("/linux/devices", json!([device]))
        .does(&["stat:/etc/deep/extra"])
        .report()?
        .stat("stat:/etc/deep/extra")?;
    equal("type and numbers", (stat.kind(), stat.device), ('c', (10, 200)))
}

fn file_exists(t: &Trial) -> Outcome {
    let b = t.bundle()?;
    fs::write(b.root("etc/extra"), "a file")?;
    b.set("/linux/devices", json!([{ "path": "/etc/extra", "type": "c", "major": 10, "minor": 200 }]))
        .refused()
}

fn other_device_exists(t: &Trial) -> Outcome {
    let b = t.bundle()?;
    let mode = nix::sys::stat::Mode::from_bits_truncate(0o600);
    if nix::sys::stat::mknod(
        &b.root("etc/extra"),
        nix::sys::stat::SFlag::S_IFCHR,
        mode,
        nix::sys::stat::makedev(1, 3),
    )
    .is_err()
    {
        return skipped("mknod is not allowed here");
    }
    b.set("/linux/devices", json!([{ "path": "/etc/extra", "type": "c", "major": 10, "minor": 200 }]))
        .refused()
}

fn ptmx(t: &Trial) -> Outcome {
    let seen = t.bundle()?.does(&["follow:/dev/ptmx", "stat:/dev/pts/ptmx"]).report()?;
    let (is, own) = (seen.stat("follow:/dev/ptmx")?, seen.stat("stat:/dev/pts/ptmx")?);
    equal("/dev/ptmx", (is.kind(), is.device), (own.kind(), (5, 2)))
}

/// A rule for every device.
fn all(allow: bool) -> Value {
    json!({ "allow": allow, "access": "rwm" })
}

/// A rule for the device that cases look at.
fn one(allow: bool) -> Value {
    json!({ "allow": allow, "type": "c", "major": NOBODY.0, "minor": NOBODY.1, "access": "rw" })
}

/// A container with device rules, and a device that no driver has: what is allowed ends with ENXIO, and what is not with EPERM before that.
fn with_rules(t: &Trial, rules: &Value) -> Outcome<Seen> {
    let device = json!({ "path": "/dev/nobody", "type": "c", "major": NOBODY.0, "minor": NOBODY.1 });
    let b = t.bundle()?.set("/linux/devices", json!([device]));
    b.set("/linux/resources", json!({ "devices": rules })).does(&[READ, WRITE]).report()
}

fn rules(t: &Trial, rules: &Value, allowed: bool) -> Outcome {
    let seen = with_rules(t, rules)?;
    for action in [READ, WRITE] {
        let did = seen.did(action)?;
        equal(&format!("{did:?} of {action} is a denial"), did == Did::Errno(EPERM), !allowed)?;
    }
    Ok(())
}
