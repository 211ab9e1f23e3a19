//! Containers in containers: the runtime and a bundle inside of another container, of root and of an ordinary user.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::let_underscore_must_use)]
#![allow(clippy::disallowed_methods, reason = "the tests play the host, with paths")]

mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use support::user::{FIRST, USER, users, with_ranges};
use support::{Bundle, bundle, only_berth, shell};

/// The life of a container inside: run, and then step by step.
const LIFE: &str = "cd /inner && runtime --root /tmp/state run first && runtime --root /tmp/state create second > /tmp/out && \
                    runtime --root /tmp/state exec second cat /etc/name && runtime --root /tmp/state start second && \
                    runtime --root /tmp/state delete --force second; echo end $?";

/// Puts the runtime and a bundle of its own into the bundle, whose program then is the one inside.
fn nested(b: Bundle, inner: &Value) -> Bundle {
    let place = b.root("inner");
    fs::create_dir_all(place.join("rootfs")).unwrap();
    support::copy_program(&support::runtime(), &b.root("bin/runtime"));
    for part in ["bin", "dev", "etc", "proc", "sys"] {
        fs::create_dir(place.join("rootfs").join(part)).unwrap();
    }
    support::copy_program(Path::new("/bin/busybox"), &place.join("rootfs/bin/busybox"));
    for applet in ["sh", "cat", "tr"] {
        symlink("busybox", place.join("rootfs/bin").join(applet)).unwrap();
    }
    fs::write(place.join("rootfs/etc/name"), "inside\n").unwrap();
    fs::write(place.join("config.json"), serde_json::to_vec(inner).unwrap()).unwrap();
    let b = b.mount("/tmp", "tmpfs", "tmpfs", &["mode=1777"]);
    let b = b.with(|c| {
        let more = [
            "CAP_SYS_ADMIN",
            "CAP_SYS_CHROOT",
            "CAP_SETPCAP",
            "CAP_NET_ADMIN",
            "CAP_SETFCAP",
            "CAP_SYS_PTRACE",
        ];
        for set in ["bounding", "effective", "permitted"] {
            c["process"]["capabilities"][set].as_array_mut().unwrap().extend(more.map(Value::from));
        }
        c["process"]["args"] = json!(["sh", "-c", LIFE]);
        c["process"]["noNewPrivileges"] = json!(false);
    });
    b.save();
    b
}

/// The configuration inside: that of outside with another program and a kernel parameter of its own.
fn inner(b: &Bundle) -> Value {
    let mut inner = b.config.clone();
    inner["hostname"] = json!("inner");
    inner["process"]["args"] =
        json!(["sh", "-c", "cat /proc/sys/kernel/msgmax; tr -s ' ' < /proc/self/uid_map"]);
    inner["linux"]["sysctl"] = json!({ "kernel.msgmax": "5000" });
    inner
}

#[test]
fn root_has_containers_in_a_container_whose_kernel_parameters_are_read_only() {
    let Some(b) = bundle("") else { return };
    if !only_berth("runc wants more of its host") {
        return;
    }
    let b = b.namespace("cgroup", None).mount("/sys", "sysfs", "sysfs", &[]);
    let b = b.mount("/sys/fs/cgroup", "cgroup", "cgroup", &[]).with(|c| {
        c["linux"]["resources"] = json!({ "devices": [{ "allow": true, "access": "rwm" }] });
        c["linux"]["readonlyPaths"] = json!(["/proc/sys"]);
    });
    let config = inner(&b);
    let ours = fs::read_to_string("/proc/self/uid_map").unwrap();
    let ours = ours.split_whitespace().collect::<Vec<_>>().join(" ");
    let said = nested(b, &config).run();
    assert_eq!(said.out, format!("5000\n {ours}\ninside\nend 0\n"), "{said:?}");
}

/// An ordinary user's container with ranges.
fn users_with_ranges() -> Option<Bundle> {
    Some(users("")?.with(|c| {
        let map = json!([{ "containerID": 0, "hostID": USER, "size": 1 },
            { "containerID": 1, "hostID": FIRST, "size": 1000 }]);
        c["linux"]["uidMappings"] = map.clone();
        c["linux"]["gidMappings"] = map;
    }))
}

#[test]
fn an_ordinary_user_has_containers_in_a_container() {
    let Some(b) = users_with_ranges() else { return };
    let mut config = inner(&b);
    config["linux"].as_object_mut().unwrap().retain(|name, _| !name.ends_with("Mappings"));
    config["linux"]["namespaces"].as_array_mut().unwrap().retain(|namespace| namespace["type"] != "user");
    let b = nested(b, &config);
    let Some(said) = with_ranges(&b, 1000, "", &["run", &b.id]) else { return };
    assert_eq!(said.out, format!("5000\n 0 {USER} 1\n 1 {FIRST} 1000\ninside\nend 0\n"), "{said:?}");
}

#[test]
fn an_ordinary_user_has_user_namespaces_in_a_user_namespace() {
    let Some(b) = users_with_ranges() else { return };
    let mut config = inner(&b);
    let map = json!([{ "containerID": 0, "hostID": 0, "size": 1 }, { "containerID": 1, "hostID": 100, "size": 10 }]);
    config["linux"]["uidMappings"] = map.clone();
    config["linux"]["gidMappings"] = map;
    let b = nested(b, &config);
    let Some(said) = with_ranges(&b, 1000, "", &["run", &b.id]) else { return };
    assert_eq!(said.out, "5000\n 0 0 1\n 1 100 10\ninside\nend 0\n", "{said:?}");
}

#[test]
fn a_container_that_covers_parts_of_proc_says_why_a_user_namespace_gets_no_new_one() {
    let Some(b) = users_with_ranges() else { return };
    let mut config = inner(&b);
    let map = json!([{ "containerID": 0, "hostID": 0, "size": 1 }]);
    config["linux"]["uidMappings"] = map.clone();
    config["linux"]["gidMappings"] = map;
    let b = nested(b.with(|c| c["linux"]["readonlyPaths"] = json!(["/proc/sys"])), &config);
    let Some(said) = with_ranges(&b, 1000, "", &["run", &b.id]) else { return };
    assert!(said.err.contains("hint: in a user namespace this needs one around berth"), "{said:?}");
}

/// As AppArmor refuses it in a container of LXC: what the runtime has of `/proc` cannot be written to, the container's own can.
#[test]
fn a_kernel_parameter_that_the_first_proc_refuses_is_written_through_the_container_s() {
    let Some(b) = bundle("cat /proc/sys/kernel/msgmax") else { return };
    if !only_berth("runc 1.1 has another way") {
        return;
    }
    let b = b.with(|c| c["linux"]["sysctl"] = json!({ "kernel.msgmax": "5000" }));
    let run = b.launch_command("run", &[], &b.id);
    for script in ["mount -o remount,bind,ro /proc", "mount -o bind /proc/sys /proc/sys"] {
        let inner = shell(&format!("mount --make-rprivate / && {script} && exec \"$@\""), &run);
        let mut command = Command::new("busybox");
        command.args(["unshare", "-m"]).arg(inner.get_program()).args(inner.get_args()).stdin(Stdio::null());
        assert_eq!(b.say_command(&mut command).ok().out, "5000\n", "{script}");
    }
}
