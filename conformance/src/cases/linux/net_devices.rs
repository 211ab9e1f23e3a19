//! "Network Devices": each case's own network namespace, in which the suite makes dummies and pairs with ip(8).

use std::process::Command;

use serde_json::{Value, json};

use crate::bundle::{Bundle, Container};
use crate::case::{Case, Outcome, equal, failed, holds, skipped};
use crate::trial::Trial;

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    vec![
        Case::new("config-linux/net-devices/moved", &["net-devices-available"], moved),
        Case::new("config-linux/net-devices/renamed", &["net-devices-available"], renamed),
        Case::new("config-linux/net-devices/missing", &["net-device-checked"], |t| {
            with(t, &json!({ "cf-nobody": {} }))?.refused()
        }),
        Case::new("config-linux/net-devices/without-namespace", &["net-device-checked"], without_namespace),
        Case::new("config-linux/net-devices/name-taken", &["net-device-name-taken"], name_taken),
        Case::new("config-linux/net-devices/template", &["net-device-template"], template),
        Case::new("config-linux/net-devices/addresses", &["net-device-attributes"], addresses),
        Case::new("config-linux/net-devices/attributes", &["net-device-attributes"], attributes),
        Case::new("config-linux/net-devices/up", &["net-device-up"], up),
        Case::new("config-linux/net-devices/not-moved-back", &["net-device-not-moved-back"], not_moved_back),
    ]
}

/// ip(8) in this thread's network namespace, which is the runtime's.
fn ip(arguments: &str) -> Outcome<String> {
    let said = Command::new("/sbin/ip").args(arguments.split_whitespace()).output();
    match said {
        Ok(said) if said.status.success() => Ok(String::from_utf8_lossy(&said.stdout).into_owned()),
        Ok(said) => failed(format!("ip {arguments}: {}", String::from_utf8_lossy(&said.stderr).trim())),
        Err(_) => skipped("no ip(8)"),
    }
}

/// ip(8) in the container's network namespace.
fn ip_in(container: &Container<'_>, arguments: &str) -> Outcome<String> {
    let net = format!("--net=/proc/{}/ns/net", container.pid);
    let said = Command::new("nsenter").arg(net).arg("/sbin/ip").args(arguments.split_whitespace()).output();
    match said {
        Ok(said) if said.status.success() => Ok(String::from_utf8_lossy(&said.stdout).into_owned()),
        Ok(said) => failed(format!("ip {arguments}: {}", String::from_utf8_lossy(&said.stderr).trim())),
        Err(_) => skipped("no nsenter(1)"),
    }
}

/// Makes a pair of devices: a dummy is not in every kernel.
fn make(name: &str) -> Outcome {
    match ip(&format!("link add {name} type veth peer name {name}-p")) {
        Ok(_) => Ok(()),
        Err(_) => skipped("no veth devices in this kernel, or no ip(8)"),
    }
}

/// Takes away what a case has left; a device that the container has is gone with it.
fn unmake(name: &str) {
    ip(&format!("link del {name}")).ok();
    ip(&format!("link del {name}-p")).ok();
}

fn with<'t>(t: &'t Trial<'t>, devices: &Value) -> Outcome<Bundle<'t>> {
    Ok(t.bundle()?.does(&["wait"]).namespace("network", None).set("/linux/netDevices", devices.clone()))
}

/// A device `name` prepared by `before`, a container that has it as `config` says, and what is looked at.
fn tried(
    t: &Trial,
    name: &str,
    before: &[&str],
    config: Value,
    look: impl Fn(&Container<'_>) -> Outcome,
) -> Outcome {
    make(name)?;
    let outcome = (|| {
        for arguments in before {
            ip(arguments)?;
        }
        let container = with(t, &json!({ name: config }))?.create()?;
        look(&container)
    })();
    unmake(name);
    outcome
}

fn moved(t: &Trial) -> Outcome {
    tried(t, "cf-move", &[], json!({}), |container| {
        ip_in(container, "link show cf-move")?;
        holds("the device is no longer on the host", ip("link show cf-move").is_err())
    })
}

fn renamed(t: &Trial) -> Outcome {
    tried(t, "cf-name", &[], json!({ "name": "inside0" }), |container| {
        ip_in(container, "link show inside0").map(drop)
    })
}

fn without_namespace(t: &Trial) -> Outcome {
    make("cf-host")?;
    let b = t
        .bundle()?
        .without_namespace("network")
        .set("/linux/netDevices", json!({ "cf-host": { "name": "cf-other" } }));
    let outcome = b.refused();
    unmake("cf-host");
    unmake("cf-other");
    outcome
}

fn name_taken(t: &Trial) -> Outcome {
    make("cf-taken")?;
    let outcome = with(t, &json!({ "cf-taken": { "name": "lo" } }))?.refused();
    unmake("cf-taken");
    outcome
}

fn template(t: &Trial) -> Outcome {
    tried(t, "cf-temp", &[], json!({ "name": "many%d" }), |container| {
        ip_in(container, "link show many0").map(drop)
    })
}

fn addresses(t: &Trial) -> Outcome {
    let before = [
        "addr add 192.0.2.5/24 dev cf-addr",
        "-6 addr add 2001:db8::5/64 dev cf-addr nodad",
        "addr add 169.254.7.7/16 scope link dev cf-addr",
    ];
    tried(t, "cf-addr", &before, json!({}), |container| {
        let said = ip_in(container, "-o addr show dev cf-addr")?;
        for address in ["192.0.2.5/24", "2001:db8::5/64"] {
            holds(&format!("{address} is in {said:?}"), said.contains(address))?;
        }
        Ok(())
    })
}

fn attributes(t: &Trial) -> Outcome {
    let before = ["link set cf-attr mtu 1333", "link set cf-attr address 02:00:00:00:00:77"];
    tried(t, "cf-attr", &before, json!({}), |container| {
        let said = ip_in(container, "-o link show cf-attr")?;
        holds(&format!("mtu 1333 is in {said:?}"), said.contains("mtu 1333"))?;
        holds(&format!("the hardware address is in {said:?}"), said.contains("02:00:00:00:00:77"))
    })
}

fn up(t: &Trial) -> Outcome {
    tried(t, "cf-up", &[], json!({}), |container| {
        let said = ip_in(container, "-o link show cf-up")?;
        holds(&format!("UP is in {said:?}"), said.contains(",UP") || said.contains("<UP"))
    })
}

/// A virtual device ends with its namespace; one that came back would be on the host.
fn not_moved_back(t: &Trial) -> Outcome {
    tried(t, "cf-back", &[], json!({}), |container| {
        container.stop()?;
        container.delete()?;
        equal("the device is on the host again", ip("link show cf-back").is_ok(), false)
    })
}
