//! `linux.netDevices`: the host's devices come to the container with their addresses, and go back when it is not made.
//! The "host" is a network namespace of the test's own.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::let_underscore_must_use)]

mod support;

use serde_json::{Value, json};
use support::{Bundle, Said, bundle, only_berth, shell, skip};

/// busybox has a smaller ip(8), so it is called by its path. A pair of devices on the "host": `bt0` with addresses of all sorts, and `peer0`, up as well.
const DEVICES: &str = "/sbin/ip link add bt0 type veth peer name peer0 &&
    /sbin/ip link set peer0 up && /sbin/ip link set bt0 up &&
    /sbin/ip addr add 192.0.2.5/24 dev bt0 && /sbin/ip addr add 192.0.2.6/32 peer 198.51.100.1 dev bt0 &&
    /sbin/ip addr add 169.254.7.7/16 scope link dev bt0 && /sbin/ip -6 addr add 2001:db8::5/64 dev bt0 nodad";

/// A bundle with a network namespace and these devices, or a skip.
fn with_devices(script: &str, devices: &Value) -> Option<Bundle> {
    let b = bundle(script)?;
    if !only_berth("runc 1.1 and crun have no netDevices")
        || !std::process::Command::new("unshare")
            .args(["--net", "sh", "-c", DEVICES])
            .output()
            .is_ok_and(|said| said.status.success())
    {
        skip("no veth devices, or no ip(8)");
        return None;
    }
    Some(b.namespace("network", None).with(|c| c["linux"]["netDevices"] = devices.clone()))
}

/// The runtime's operation on a "host" with the devices; what `after` prints there follows.
fn on_host(b: &Bundle, operation: &str, before: &str, after: &str) -> Said {
    let script = format!("{DEVICES} && {before}\n\"$@\"; code=$?; {after}\nexit $code");
    let inner = shell(&script, &b.launch_command(operation, &[], &b.id));
    let mut command = std::process::Command::new("unshare");
    command.arg("--net").arg(inner.get_program()).args(inner.get_args());
    if let Some(dir) = inner.get_current_dir() {
        command.current_dir(dir);
    }
    b.say_command(&mut command)
}

/// What `ip -o addr` says of a device: family and address with prefix, and scope.
fn addresses(said: &str, name: &str) -> Vec<String> {
    let lines = said.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let mut found: Vec<String> = lines
        .filter(|words| words.get(1).is_some_and(|word| word.split('@').next() == Some(name)))
        .map(|words| {
            let peer = words.iter().position(|word| *word == "peer").map(|at| words[at + 1]);
            format!("{} {}", words[3], peer.unwrap_or_default()).trim().to_owned()
        })
        .filter(|address| !address.starts_with("fe80"))
        .collect();
    found.sort();
    found
}

const KEPT: [&str; 3] = ["192.0.2.5/24", "192.0.2.6 198.51.100.1/32", "2001:db8::5/64"];

#[test]
fn a_device_comes_with_its_lasting_addresses_and_is_up() {
    let Some(b) = with_devices("ip -o addr; echo LINK; ip -o link show bt0", &json!({"bt0": {}})) else {
        return;
    };
    let said = on_host(&b, "run", "true", "echo HOST; ip -o link show bt0 2>&1").ok();
    let (inside, host) = said.out.split_once("HOST\n").unwrap();
    let (inside, link) = inside.split_once("LINK\n").unwrap();
    assert_eq!(addresses(inside, "bt0"), KEPT, "{inside}");
    // the flag; the operational state follows when the kernel gets round to it
    assert!(link.contains(" bt0") && link.contains(",UP"), "{link}");
    assert!(!host.contains(" bt0:") && !host.contains(" bt0@"), "{host}");
}

#[test]
fn a_device_gets_another_name_or_a_number_of_the_kernels() {
    for (name, expected) in [("lan0", "lan0"), ("lan%d", "lan0")] {
        let Some(b) = with_devices("ip -o addr", &json!({"bt0": {"name": name}})) else { return };
        let said = on_host(&b, "run", "true", "true").ok();
        assert_eq!(addresses(&said.out, expected), KEPT, "{}", said.out);
        assert_eq!(addresses(&said.out, "bt0"), [] as [&str; 0]);
    }
}

#[test]
fn a_device_works_with_a_user_namespace() {
    let Some(b) = with_devices("ip -o addr", &json!({"bt0": {}})) else { return };
    let b = b.namespace("user", None).with(|c| {
        let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
        c["linux"]["uidMappings"] = map.clone();
        c["linux"]["gidMappings"] = map;
    });
    assert_eq!(addresses(&on_host(&b, "run", "true", "true").ok().out, "bt0"), KEPT);
}

#[test]
fn a_name_that_is_taken_is_an_error_and_the_other_devices_go_back() {
    let devices = json!({"bt0": {"name": "first"}, "peer0": {"name": "lo"}});
    let Some(b) = with_devices("true", &devices) else { return };
    let said = on_host(&b, "create", "true", "ip -o addr; ip -o link");
    let text = "linux.netDevices.peer0: the container has a device \"lo\" already";
    assert!(said.code == 1 && said.err.contains(text), "{said:?}");
    assert_eq!(
        addresses(&said.out, "bt0").iter().filter(|a| KEPT.contains(&a.as_str())).count(),
        3,
        "{said:?}"
    );
    let bt0 = said.out.lines().find(|line| line.contains(" bt0@") && line.contains("mtu")).unwrap();
    assert!(bt0.contains("UP"), "{bt0}");
    // the one whose name was taken is back too
    assert!(said.out.contains(" peer0@"), "{said:?}");
    b.assert_nothing_left();
}

#[test]
fn devices_go_back_when_a_later_step_fails() {
    let Some(b) = with_devices("true", &json!({"bt0": {"name": "eth0"}})) else { return };
    let b = b.with(|c| c["hooks"] = json!({"createRuntime": [{"path": "/bin/false"}]}));
    let said = on_host(&b, "create", "true", "ip -o addr");
    assert!(said.code == 1 && said.err.contains("createRuntime[0]"), "{said:?}");
    assert_eq!(addresses(&said.out, "bt0"), KEPT, "{said:?}");
}

#[test]
fn a_device_that_is_not_there_or_cannot_leave_is_told() {
    for (name, text) in [
        ("nothing", "linux.netDevices.nothing: there is no such device on the host"),
        ("lo", "linux.netDevices.lo: the kernel does not let this kind of device leave"),
        ("br0", "linux.netDevices.br0: the kernel does not let this kind of device leave"),
    ] {
        let Some(b) = with_devices("true", &json!({ name: {} })) else { return };
        let said = on_host(&b, "create", "/sbin/ip link add br0 type bridge", "true");
        assert!(said.code == 1 && said.err.contains(text), "{said:?}");
        b.assert_nothing_left();
    }
}

#[test]
fn a_network_namespace_is_needed() {
    let Some(b) = bundle("true") else { return };
    if !only_berth("the message is ours") {
        return;
    }
    let b = b.with(|c| c["linux"]["netDevices"] = json!({"eth0": {}}));
    b.try_create(&[]).fails(1, "linux.netDevices: devices cannot be moved without a network namespace");
}
