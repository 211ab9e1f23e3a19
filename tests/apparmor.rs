//! AppArmor: the profile of a container's process, and berth inside of a container that is confined as LXC confines its own.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::let_underscore_must_use)]
#![allow(clippy::disallowed_methods, reason = "the tests play the host, with paths")]

mod support;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::json;
use support::{as_root, bundle, only_berth, skip, unique};

/// A profile in the kernel, which goes with this value.
struct Profile {
    name: String,
    file: PathBuf,
}

impl Profile {
    /// `None`, and told, where there is no AppArmor to load it into.
    fn load(rules: &str) -> Option<Self> {
        if !as_root() {
            return None;
        }
        let enabled = fs::read_to_string("/sys/module/apparmor/parameters/enabled").unwrap_or_default();
        if enabled.trim() != "Y" || Command::new("apparmor_parser").arg("--version").output().is_err() {
            skip("needs AppArmor and apparmor_parser");
            return None;
        }
        let name = unique("berth-test");
        let file = std::env::temp_dir().join(&name);
        fs::write(
            &file,
            format!("profile {name} flags=(attach_disconnected,mediate_deleted) {{\n{rules}}}\n"),
        )
        .unwrap();
        let profile = Self { name, file };
        profile.parser("--replace");
        Some(profile)
    }

    fn parser(&self, operation: &str) {
        let output = Command::new("apparmor_parser")
            .arg(operation)
            .arg("--skip-cache")
            .arg(&self.file)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    }
}

impl Drop for Profile {
    fn drop(&mut self) {
        self.parser("--remove");
        fs::remove_file(&self.file).unwrap();
    }
}

const ALL: &str = "  file,\n  mount,\n  umount,\n  pivot_root,\n  remount,\n  capability,\n  network,\n  signal,\n  ptrace,\n  unix,\n";

#[test]
fn the_process_and_what_is_executed_later_have_the_profile() {
    let Some(profile) = Profile::load(&format!("{ALL}  deny /etc/forbidden r,\n")) else { return };
    let own = "cat /proc/self/attr/apparmor/current 2>/dev/null || cat /proc/self/attr/current";
    let Some(b) = bundle(&format!("{own}; cat /etc/forbidden 2>/dev/null || echo refused")) else { return };
    let forbidden = b.root("etc/forbidden");
    fs::create_dir_all(forbidden.parent().unwrap()).unwrap();
    fs::write(&forbidden, "read\n").unwrap();
    let b = b.with(|c| c["process"]["apparmorProfile"] = json!(profile.name));
    let enforced = format!("{} (enforce)\n", profile.name);
    assert_eq!(b.run().ok().out, format!("{enforced}refused\n"));
    let b = b.with(|c| c["process"]["args"] = json!(["sleep", "1000"]));
    let c = b.start();
    assert_eq!(c.exec(&[], &["sh", "-c", own]).ok().out, enforced);
    // an option of exec stands before what the configuration says
    assert_eq!(c.exec(&["--apparmor", "unconfined"], &["sh", "-c", own]).ok().out, "unconfined\n");
}

#[test]
fn a_profile_that_is_not_loaded_is_named_with_its_field() {
    let Some(_any) = Profile::load(ALL) else { return };
    let Some(b) = bundle("true") else { return };
    let b = b.with(|c| c["process"]["apparmorProfile"] = json!("no-such-profile"));
    let said = b.try_create(&[]);
    assert!(said.code == 1 && said.err.contains("process.apparmorProfile"), "{said:?}");
    assert!(said.err.contains("no-such-profile"), "{said:?}");
    b.assert_nothing_left();
}

/// Rules of LXC for containers that may nest others: whatever of `/proc/sys` and `/sys` is not listed cannot be written to.
/// A file of a detached procfs has a path without `/proc` before it, which the rules for `/sys` then hit.
const LXC: &str = "  audit deny /sys/[^fdck]*{,/**} wklx,\n  audit deny /sys/f[^s]*{,/**} wklx,\n  audit deny /sys/k[^e]*{,/**} wklx,\n  deny /proc/sysrq-trigger rwklx,\n  change_profile -> *,\n";

#[test]
fn a_runtime_that_is_confined_as_in_a_container_of_lxc_makes_containers() {
    let Some(outer) = Profile::load(&format!("{ALL}{LXC}")) else { return };
    let Some(inner) = Profile::load(ALL) else { return };
    if !only_berth("runc has its own ways") {
        return;
    }
    let script = "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/msgmax; hostname; cat /proc/self/attr/current";
    let Some(b) = bundle(script) else { return };
    let b = b.namespace("network", None).with(|c| {
        c["linux"]["sysctl"] =
            json!({ "net.ipv4.ip_unprivileged_port_start": "79", "kernel.msgmax": "5000" });
        c["linux"]["maskedPaths"] = json!(["/proc/kcore", "/proc/timer_list"]);
        c["linux"]["readonlyPaths"] = json!(["/proc/irq", "/proc/sysrq-trigger"]);
        c["process"]["apparmorProfile"] = json!(inner.name);
        c["hostname"] = json!("nested");
        // from a profile to another one; from no profile the kernel lets a process pass that cannot gain privileges
        c["process"]["noNewPrivileges"] = json!(false);
    });
    let run = b.launch_command("run", &[], &b.id);
    let mut command = Command::new("aa-exec");
    command.args(["-p", &outer.name, "--"]).arg(run.get_program()).args(run.get_args()).stdin(Stdio::null());
    let said = b.say_command(&mut command).ok();
    assert_eq!(said.out, format!("79\n5000\nnested\n{} (enforce)\n", inner.name), "{said:?}");
}
