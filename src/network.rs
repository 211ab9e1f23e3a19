//! What a network namespace gets before a program runs in it: the loopback interface, and the host's devices that are
//! moved there (`linux.netDevices`, runtime-spec, config-linux.md, "Network Devices").

use std::collections::BTreeSet;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use anyhow::{Context, Result};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use oci_spec::runtime::Linux;

use crate::error::{hinted, reason, text};
use crate::findings::Findings;
use crate::netlink::Netlink;
use crate::sys;

/// A device to move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its name on the host.
    pub name: String,
    /// Its name in the container; `%d` in it is the kernel's to fill in.
    pub new_name: String,
}

/// The devices of the configuration, in the order of their names.
pub fn plan(linux: Option<&Linux>, network_namespace: bool, findings: &mut Findings) -> Vec<Device> {
    let given = linux.and_then(|linux| linux.net_devices().as_ref());
    let mut devices: Vec<Device> = Vec::new();
    for (name, device) in given.into_iter().flatten() {
        let new_name = device.name().clone().filter(|name| !name.is_empty()).unwrap_or_else(|| name.clone());
        check_name("linux.netDevices", name, false, findings);
        check_name(&format!("linux.netDevices.{name}.name"), &new_name, true, findings);
        devices.push(Device { name: name.clone(), new_name });
    }
    devices.sort_by(|one, other| one.name.cmp(&other.name));
    let mut taken = BTreeSet::new();
    for Device { name, new_name } in &devices {
        if !new_name.contains('%') && !taken.insert(new_name) {
            findings.problem(
                format!("linux.netDevices.{name}.name"),
                format!("{new_name:?} is another device's too"),
            );
        }
    }
    if !devices.is_empty() && !network_namespace {
        findings.problem_hint(
            "linux.netDevices",
            "devices cannot be moved without a network namespace",
            "add {\"type\": \"network\"} to linux.namespaces",
        );
    }
    devices
}

/// The kernel's rule for names (`dev_valid_name`), and that of its templates: one `%d`.
fn check_name(field: &str, name: &str, template: bool, findings: &mut Findings) {
    let longest = libc::IFNAMSIZ - 1;
    let bad = name.is_empty()
        || name.len() > longest
        || matches!(name, "." | "..")
        || name.chars().any(|c| c.is_whitespace() || matches!(c, '/' | ':' | '\0'));
    if bad {
        findings.problem(
            field,
            format!(
                "{name:?} is not the name of a network device: 1 to {longest} bytes without space, '/' and ':'"
            ),
        );
    } else if name.contains('%') && !(template && name.matches('%').count() == 1 && name.contains("%d")) {
        findings.problem(field, format!("{name:?}: only one %d can stand in a name in the container"));
    }
}

/// Brings `lo` up in this process's network namespace, which must be new: the kernel makes it with the interface down.
/// The addresses 127.0.0.1 and ::1 come by themselves.
pub fn bring_loopback_up() -> Result<()> {
    sys::network::bring_up(c"lo").context("bring up the loopback interface \"lo\"")
}

/// Devices that have been moved. Whoever owns the network namespace cares for them from now on.
#[derive(Debug)]
pub struct Moved {
    host: Netlink,
    host_namespace: OwnedFd,
    container: Netlink,
    devices: Vec<MovedDevice>,
}

#[derive(Debug)]
struct MovedDevice {
    /// Its name on the host.
    name: String,
    /// Its index and its name in the container.
    index: u32,
    new_name: String,
    was_up: bool,
    addresses: Vec<AddressMessage>,
}

/// Moves devices from this process's network namespace to another, with their lasting addresses, and sets them up.
/// All are moved or none.
pub fn move_devices(devices: &[Device], namespace: OwnedFd) -> Result<Moved> {
    let ours = open("/proc/self/ns/net", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
        .context("open our network namespace")?;
    let host = Netlink::open()?;
    let container = Netlink::open_in(&namespace, &ours).context("linux.netDevices")?;
    let mut moved = Moved { host, host_namespace: ours, container, devices: Vec::new() };
    for device in devices {
        let taken = moved.take(device, &namespace);
        let Err(error) = taken.with_context(|| format!("linux.netDevices.{}", device.name)) else { continue };
        return Err(match moved.bring_back() {
            Ok(()) => error,
            Err(second) => anyhow::anyhow!("{}; bringing devices back: {}", text(&error), text(&second)),
        });
    }
    Ok(moved)
}

impl Moved {
    fn take(&mut self, device: &Device, namespace: &OwnedFd) -> Result<()> {
        let link = find(self.host.links()?, &device.name).context("there is no such device on the host")?;
        let index = link.header.index;
        let addresses = self.host.addresses()?.into_iter().filter(|address| address.header.index == index);
        let addresses: Vec<AddressMessage> = addresses.filter(is_lasting).map(portable).collect();
        let before = indexes(&self.container.links()?);
        let asked = self.host.set_link(moving(index, namespace, &device.new_name));
        // the kernel moves first and renames then: with an error the device may be there all the same, under its old name
        let expected = |name: &str| {
            device.new_name.contains('%')
                || name == if asked.is_ok() { &device.new_name } else { &device.name }
        };
        let arrived = self.container.links()?.into_iter().find(|found| {
            !before.contains(&found.header.index)
                && hardware_address(found) == hardware_address(&link)
                && expected(name_of(found))
        });
        if let Some(arrived) = &arrived {
            self.devices.push(MovedDevice {
                name: device.name.clone(),
                index: arrived.header.index,
                new_name: name_of(arrived).to_owned(),
                was_up: link.header.flags.contains(LinkFlags::Up),
                addresses,
            });
        }
        asked.map_err(|error| refused(&error, device))?;
        arrived.context("it is not to be seen in the container's network namespace")?;
        // noted before, so that it can go back
        let Some(moved) = self.devices.last() else { return Ok(()) };
        furnish(&self.container, moved.index, &moved.addresses, (&moved.name, &moved.new_name))?;
        self.container.set_link(going_up(moved.index)).context("set it up")
    }
}

impl Moved {
    /// Brings all of them back to the host, in reverse order. The answer is the first error; the others are tried all the same.
    pub fn bring_back(&mut self) -> Result<()> {
        let mut result = Ok(());
        for device in std::mem::take(&mut self.devices).iter().rev() {
            let back = self.bring_one_back(device);
            result = result.and(back.with_context(|| format!("linux.netDevices.{}", device.name)));
        }
        result
    }

    fn bring_one_back(&self, device: &MovedDevice) -> Result<()> {
        self.container.set_link(moving(device.index, &self.host_namespace, &device.name))?;
        let link = find(self.host.links()?, &device.name).context("it has not arrived")?;
        let index = link.header.index;
        furnish(&self.host, index, &device.addresses, (&device.new_name, &device.name))?;
        if device.was_up { self.host.set_link(going_up(index)) } else { Ok(()) }
    }
}

fn find(links: Vec<LinkMessage>, name: &str) -> Option<LinkMessage> {
    links.into_iter().find(|link| name_of(link) == name)
}

fn name_of(link: &LinkMessage) -> &str {
    let name = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    });
    name.unwrap_or_default()
}

fn hardware_address(link: &LinkMessage) -> Option<&[u8]> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(address) => Some(address.as_slice()),
        _ => None,
    })
}

fn indexes(links: &[LinkMessage]) -> BTreeSet<u32> {
    links.iter().map(|link| link.header.index).collect()
}

fn moving(index: u32, namespace: &OwnedFd, name: &str) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes =
        vec![LinkAttribute::NetNsFd(namespace.as_fd().as_raw_fd()), LinkAttribute::IfName(name.to_owned())];
    message
}

fn going_up(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message
}

fn refused(error: &anyhow::Error, device: &Device) -> anyhow::Error {
    let name = &device.new_name;
    match crate::error::errno(error) {
        Some(Errno::EEXIST) => hinted(
            format!("the container has a device {name:?} already"),
            "give another name, or one with %d in it for a number of the kernel's choice",
        ),
        Some(Errno::EINVAL) => {
            anyhow::anyhow!("the kernel does not let this kind of device leave its network namespace")
        }
        Some(errno @ Errno::EPERM) => hinted(
            format!("move it to the container: {}", reason(errno)),
            "moving a device needs CAP_NET_ADMIN over the network namespace that it is in",
        ),
        _ => anyhow::anyhow!("move it to the container as {name:?}: {}", text(error)),
    }
}

/// An address that was set to stay and is valid everywhere.
fn is_lasting(address: &AddressMessage) -> bool {
    address.header.scope == AddressScope::Universe && flags_of(address).contains(AddressFlags::Permanent)
}

fn flags_of(address: &AddressMessage) -> AddressFlags {
    let all = address.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Flags(flags) => Some(*flags),
        _ => None,
    });
    all.unwrap_or_else(|| AddressFlags::from_bits_retain(u32::from(address.header.flags.bits())))
}

/// The address without what the kernel says of its life so far.
fn portable(mut address: AddressMessage) -> AddressMessage {
    let settable = AddressFlags::Nodad
        | AddressFlags::Homeaddress
        | AddressFlags::Managetempaddr
        | AddressFlags::Noprefixroute
        | AddressFlags::Mcautojoin;
    let flags = flags_of(&address) & settable;
    address.header.flags = Default::default();
    address.attributes.retain(|attribute| {
        !matches!(attribute, AddressAttribute::CacheInfo(_) | AddressAttribute::Flags(_))
    });
    address.attributes.push(AddressAttribute::Flags(flags));
    address
}

/// Gives a device its addresses. A label begins with the device's name, so it changes with it.
fn furnish(there: &Netlink, index: u32, addresses: &[AddressMessage], names: (&str, &str)) -> Result<()> {
    let (old, new) = names;
    for address in addresses {
        let mut address = address.clone();
        address.header.index = index;
        for attribute in &mut address.attributes {
            if let AddressAttribute::Label(label) = attribute
                && let Some(rest) = label.strip_prefix(old)
            {
                *label = format!("{new}{rest}");
            }
        }
        there.add_address(address).context("give it its address again")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn planned(devices: Value, namespace: bool) -> (Vec<Device>, Vec<String>) {
        let linux: Linux = serde_json::from_value(json!({ "netDevices": devices })).unwrap();
        let mut findings = Findings::default();
        let devices = plan(Some(&linux), namespace, &mut findings);
        let problems = findings.problems.iter();
        (devices, problems.map(|finding| format!("{}: {}", finding.field, finding.why)).collect())
    }

    #[test]
    fn a_device_keeps_its_name_or_gets_another() {
        let (devices, problems) =
            planned(json!({"eth1": {"name": "lan%d"}, "eth0": {}, "eth2": {"name": ""}}), true);
        assert!(problems.is_empty(), "{problems:?}");
        let names: Vec<_> = devices.iter().map(|d| (d.name.as_str(), d.new_name.as_str())).collect();
        assert_eq!(names, [("eth0", "eth0"), ("eth1", "lan%d"), ("eth2", "eth2")]);
    }

    #[test]
    fn names_that_no_kernel_takes_are_refused() {
        for name in ["", "a/b", "a b", "a:b", "..", "sixteen-letters-", "%s", "%d%d", "a%"] {
            let device = if name.is_empty() { json!({"": {}}) } else { json!({"eth0": {"name": name}}) };
            let (_, problems) = planned(device, true);
            assert!(
                !problems.is_empty() && problems[0].starts_with("linux.netDevices"),
                "{name:?}: {problems:?}"
            );
        }
        let (_, problems) = planned(json!({"eth%d": {"name": "a"}}), true);
        assert_eq!(problems.len(), 1, "{problems:?}");
    }

    #[test]
    fn two_devices_cannot_have_one_name_and_a_namespace_is_needed() {
        let (_, problems) = planned(
            json!({"a": {"name": "x"}, "b": {"name": "x"}, "c": {"name": "y%d"}, "d": {"name": "y%d"}}),
            true,
        );
        assert_eq!(problems, ["linux.netDevices.b.name: \"x\" is another device's too"]);
        let (_, problems) = planned(json!({"a": {}}), false);
        assert_eq!(problems, ["linux.netDevices: devices cannot be moved without a network namespace"]);
    }
}
