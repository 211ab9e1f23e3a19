//! What the program finds: arguments, environment, user, limits, capabilities, seccomp, descriptors.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::let_underscore_must_use)]

mod support;

use std::fs;

use serde_json::{Value, json};
use support::{Bundle, bundle, only_berth, shell, status_field};

#[test]
fn arguments_arrive_as_they_are() {
    let Some(b) = bundle("") else { return };
    let b = b.with(|c| c["process"]["args"] = json!(["printf", "%s|", "a b", "", "$x", "é\n"]));
    assert_eq!(b.run().ok().out, "a b||$x|é\n|");
}

#[test]
fn the_environment_is_the_configurations_and_the_last_of_a_name_wins() {
    let Some(b) = bundle("env | sort") else { return };
    let b = b.with(|c| c["process"]["env"] = json!(["PATH=/bin", "A=1", "A=2", "E=", "HOME=/h"]));
    let said = b.run().ok();
    let shells = ["PWD=", "SHLVL="];
    let lines: Vec<_> =
        said.lines().into_iter().filter(|l| !shells.iter().any(|s| l.starts_with(s))).collect();
    assert_eq!(lines, ["A=2", "E=", "HOME=/h", "PATH=/bin"]);
}

#[test]
fn home_comes_from_the_images_passwd() {
    for (uid, home) in [(0, "/root"), (1000, "/home/bob"), (4242, "/")] {
        let Some(b) = bundle("echo $HOME") else { return };
        let b = b.with(|c| c["process"]["user"]["uid"] = json!(uid));
        assert_eq!(b.run().ok().out.trim(), home);
    }
}

#[test]
fn a_passwd_that_is_a_pipe_does_not_hang() {
    let Some(b) = bundle("echo $HOME") else { return };
    if !only_berth("runc 1.1 hangs") {
        return;
    }
    fs::remove_file(b.root("etc/passwd")).unwrap();
    let _gate = support::Gate::make(&b.root("etc/passwd"));
    assert_eq!(b.run().ok().out, "/\n");
}

#[test]
fn the_working_directory_is_made_when_it_is_missing() {
    let Some(b) = bundle("pwd") else { return };
    let b = b.with(|c| c["process"]["cwd"] = json!("/made/here"));
    assert_eq!(b.run().ok().out, "/made/here\n");
}

#[test]
fn a_relative_working_directory_is_refused() {
    let Some(b) = bundle("pwd") else { return };
    let b = b.with(|c| c["process"]["cwd"] = json!("data"));
    b.try_create(&[]).fails(1, "absolute");
}

#[test]
fn the_working_directory_can_not_be_a_leaked_descriptor() {
    for number in 3..20 {
        let Some(b) = bundle("cat etc/hostname ../../../etc/hostname ../../../../etc/hostname; ls ../bundle")
        else {
            return;
        };
        let b = b.with(|c| c["process"]["cwd"] = json!(format!("/proc/self/fd/{number}")));
        let mut command = shell("exec 9< .; exec \"$@\"", &b.launch_command("run", &[], &b.id));
        let said = b.say_command(&mut command);
        assert!(said.code != 0 && !said.out.contains("rootfs"), "{number}: {said:?}");
    }
}

#[test]
fn the_user_its_groups_and_its_umask_are_set() {
    let Some(b) = bundle("id -u; id -g; id -G; umask") else { return };
    let b = b.with(|c| {
        c["process"]["user"] = json!({ "uid": 1000, "gid": 1001, "additionalGids": [5, 6], "umask": 0o027 });
    });
    assert_eq!(b.run().ok().out, "1000\n1001\n1001 5 6\n0027\n");
}

#[test]
fn the_umask_is_0022_when_nothing_is_said() {
    let Some(b) = bundle("umask") else { return };
    let mut command = shell("umask 077; exec \"$@\"", &b.launch_command("run", &[], &b.id));
    assert_eq!(b.say_command(&mut command).ok().out, "0022\n");
}

#[test]
fn resource_limits_are_set() {
    let Some(b) = bundle("cat /proc/self/limits") else { return };
    let b = b.with(|c| {
        c["process"]["rlimits"] = json!([
            { "type": "RLIMIT_NOFILE", "soft": 512, "hard": 1024 },
            { "type": "RLIMIT_CORE", "soft": 0, "hard": 0 },
        ]);
    });
    let said = b.run().ok();
    let limit = |name: &str| {
        let line = said.out.lines().find(|l| l.starts_with(name)).unwrap();
        line.strip_prefix(name).unwrap().split_whitespace().take(2).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(limit("Max open files"), ["512", "1024"]);
    assert_eq!(limit("Max core file size"), ["0", "0"]);
}

/// They are the program's: none of init's own steps needs more than they allow.
#[test]
fn low_resource_limits_do_not_hinder_the_way_to_the_program() {
    for (name, title, value) in [
        ("RLIMIT_AS", "Max address space", 4 << 20),
        ("RLIMIT_DATA", "Max data size", 1 << 20),
        ("RLIMIT_STACK", "Max stack size", 64 << 10),
        ("RLIMIT_NOFILE", "Max open files", 3),
        ("RLIMIT_FSIZE", "Max file size", 0),
        ("RLIMIT_SIGPENDING", "Max pending signals", 0),
    ] {
        let Some(b) = bundle("true") else { return };
        if !only_berth("runc's init needs more") {
            return;
        }
        let b = b.with(|c| {
            c["process"]["args"] = json!(["sleep", "1000"]);
            c["process"]["rlimits"] = json!([{ "type": name, "soft": value, "hard": value }]);
        });
        let c = b.start();
        c.exec(&[], &["true"]).ok();
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", c.pid)).unwrap();
        let line = limits.lines().find_map(|line| line.strip_prefix(title)).unwrap();
        let found: Vec<&str> = line.split_whitespace().take(2).collect();
        assert_eq!(found, [value.to_string(), value.to_string()], "{name}");
        c.kill("KILL").ok();
        support::wait_exit(c.pid);
    }
}

#[test]
fn a_limit_that_is_unknown_or_given_twice_is_refused() {
    let twice = json!([{ "type": "RLIMIT_CORE", "soft": 0, "hard": 0 }, { "type": "RLIMIT_CORE", "soft": 0, "hard": 0 }]);
    for limits in [json!([{ "type": "RLIMIT_MOON", "soft": 0, "hard": 0 }]), twice] {
        let Some(b) = bundle("true") else { return };
        let b = b.with(|c| c["process"]["rlimits"] = limits);
        if b.config["process"]["rlimits"].as_array().unwrap().len() == 2 && !only_berth("runc 1.1 takes both")
        {
            return;
        }
        b.try_create(&[]).fails(1, "RLIMIT_");
        b.assert_nothing_left();
    }
}

fn capability_lines(b: Bundle) -> Vec<String> {
    let said = b.with(|c| c["process"]["args"] = json!(["cat", "/proc/self/status"])).run().ok();
    ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"].map(|name| status_field(&said.out, name)).to_vec()
}

const CHOWN: &str = "0000000000000001";
const KILL: &str = "0000000000000020";
const BOTH: &str = "0000000000000021";
const NONE: &str = "0000000000000000";

#[test]
fn the_five_capability_sets_are_what_the_configuration_says() {
    let Some(b) = bundle("") else { return };
    let b = b.with(|c| {
        let both = json!(["CAP_CHOWN", "CAP_KILL"]);
        let kill = json!(["CAP_KILL"]);
        c["process"]["user"]["uid"] = json!(1000);
        c["process"]["capabilities"] =
            json!({ "bounding": both, "permitted": both, "effective": both, "inheritable": kill, "ambient": kill });
    });
    assert_eq!(capability_lines(b), [KILL, KILL, KILL, BOTH, KILL]);
}

#[test]
fn root_has_the_bounding_set_and_no_inheritable_one() {
    let Some(b) = bundle("") else { return };
    let b = b.with(|c| {
        let chown = json!(["CAP_CHOWN"]);
        c["process"]["capabilities"] = json!({ "bounding": chown, "permitted": chown, "effective": chown });
    });
    assert_eq!(capability_lines(b), [NONE, CHOWN, CHOWN, CHOWN, NONE]);
}

#[test]
fn without_capabilities_there_are_none() {
    let Some(b) = bundle("") else { return };
    let b = b.with(|c| c["process"]["capabilities"] = json!({}));
    assert_eq!(capability_lines(b), [NONE; 5]);
}

#[test]
fn a_capability_that_linux_does_not_have_is_refused() {
    if !only_berth("runc goes on without it") {
        return;
    }
    let Some(b) = bundle("echo ran") else { return };
    let b = b.with(|c| c["process"]["capabilities"]["bounding"] = json!(["CAP_CHOWN", "CAP_MOON"]));
    b.run().fails(1, "process.capabilities.bounding: \"CAP_MOON\"");
    b.assert_nothing_left();
}

#[test]
fn no_new_privileges_is_set_only_when_asked() {
    for (asked, want) in [(true, "1"), (false, "0")] {
        let Some(b) = bundle("cat /proc/self/status") else { return };
        let b = b.with(|c| c["process"]["noNewPrivileges"] = json!(asked));
        assert_eq!(status_field(&b.run().ok().out, "NoNewPrivs"), want);
    }
}

#[test]
fn the_oom_score_is_set() {
    let Some(b) = bundle("cat /proc/self/oom_score_adj") else { return };
    assert_eq!(b.with(|c| c["process"]["oomScoreAdj"] = json!(321)).run().ok().out, "321\n");
}

fn with_rule(b: Bundle, rule: Value) -> Bundle {
    b.with(|c| {
        c["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_AARCH64"],
            "syscalls": [rule],
        });
    })
}

#[test]
fn seccomp_gives_the_errno_that_is_asked() {
    for privileges in [true, false] {
        let Some(b) = bundle("mkdir /data/x; cat /proc/self/status") else { return };
        let names = json!(["mkdir", "mkdirat"]);
        let b = with_rule(b, json!({ "names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": 28 }));
        let said = b.with(|c| c["process"]["noNewPrivileges"] = json!(privileges)).run().ok();
        assert!(said.err.contains("No space left"), "{said:?}");
        assert_eq!(status_field(&said.out, "Seccomp"), "2");
    }
}

#[test]
fn seccomp_kills_the_process() {
    let Some(b) = bundle("mkdir /data/x; echo $?") else { return };
    let names = json!(["mkdir", "mkdirat"]);
    let said = with_rule(b, json!({ "names": names, "action": "SCMP_ACT_KILL_PROCESS" })).run();
    assert_eq!(said.out.trim(), (128 + 31).to_string(), "{said:?}");
}

#[test]
fn seccomp_that_logs_lets_the_call_through() {
    let Some(b) = bundle("mkdir /data/x && echo made") else { return };
    let said = with_rule(b, json!({ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_LOG" })).run();
    assert_eq!(said.out, "made\n", "{said:?}");
}

#[test]
fn seccomp_looks_at_arguments() {
    let Some(b) = bundle("kill -0 $$ && echo zero; kill -WINCH $$ || echo refused") else { return };
    let b = with_rule(
        b,
        json!({ "names": ["kill"], "action": "SCMP_ACT_ERRNO", "args": [{ "index": 1, "value": 28, "op": "SCMP_CMP_EQ" }] }),
    );
    assert_eq!(b.run().out, "zero\nrefused\n");
}

#[test]
fn an_unknown_system_call_is_skipped_and_an_unknown_action_refused() {
    let Some(b) = bundle("echo ran") else { return };
    let b = with_rule(b, json!({ "names": ["moon_landing"], "action": "SCMP_ACT_ERRNO" }));
    assert_eq!(b.run().ok().out, "ran\n");
    let b = with_rule(b, json!({ "names": ["mkdir"], "action": "SCMP_ACT_MOON" }));
    assert_eq!(b.try_create(&[]).code, 1);
    b.assert_nothing_left();
}

#[test]
fn a_namespaced_sysctl_is_set() {
    let Some(b) = bundle("cat /proc/sys/kernel/msgmax /proc/sys/net/ipv4/ip_unprivileged_port_start") else {
        return;
    };
    let sysctl = json!({ "kernel.msgmax": "4096", "net.ipv4.ip_unprivileged_port_start": "99" });
    let b = b.namespace("network", None).with(|c| c["linux"]["sysctl"] = sysctl);
    assert_eq!(b.run().ok().out, "4096\n99\n");
}

#[test]
fn a_sysctl_of_the_whole_machine_is_refused() {
    for name in ["kernel.panic", "vm.swappiness", "net.ipv4.ip_forward", "kernel/panic", "fs.file-max"] {
        let Some(b) = bundle("true") else { return };
        let b = b.with(|c| c["linux"]["sysctl"] = json!({ name: "1" }));
        let said = b.try_create(&[]);
        assert!(
            said.code == 1 && (said.err.contains(name) || said.err.contains(&name.replace('/', "."))),
            "{said:?}"
        );
        b.assert_nothing_left();
    }
}

#[test]
fn only_the_standard_streams_are_open() {
    for operation in ["run", "exec"] {
        let Some(b) = bundle("ls /proc/self/fd; [ -z $1 ] || exec sleep 1000") else { return };
        let mut command = if operation == "run" {
            b.launch_command("run", &[], &b.id)
        } else {
            let b2 = &b;
            b2.save();
            let c = b.create();
            b.command(&["exec", &c.id, "ls", "/proc/self/fd"])
        };
        command = shell("exec 7</etc/passwd 9<.; exec \"$@\"", &command);
        let said = b.say_command(&mut command).ok();
        // The fourth is ls's own, on the directory that it lists.
        assert_eq!(said.lines(), ["0", "1", "2", "3"], "{operation}");
    }
}

#[test]
fn preserved_descriptors_arrive_at_their_numbers() {
    let Some(b) = bundle("cat <&3; cat <&4; ls /proc/self/fd") else { return };
    fs::write(b.scratch().join("three"), "three\n").unwrap();
    fs::write(b.scratch().join("four"), "four\n").unwrap();
    let run = b.launch_command("run", &["--preserve-fds", "2"], &b.id);
    let mut command = shell("exec 3<three 4<four 5</etc/passwd; exec \"$@\"", &run);
    let said = b.say_command(&mut command).ok();
    assert_eq!(said.lines(), ["three", "four", "0", "1", "2", "3", "4", "5"]);
}

#[test]
fn a_preserved_descriptor_that_is_missing_is_an_error() {
    let Some(b) = bundle("true") else { return };
    if !only_berth("runc 1.1 takes its own descriptors for the caller's") {
        return;
    }
    let create = b.launch_command("create", &["--preserve-fds", "3"], &b.id);
    let said = b.say_command(&mut shell("exec 3</etc/passwd 4>&- 5>&-; exec \"$@\"", &create));
    assert_eq!(said.code, 1, "{said:?}");
    b.assert_nothing_left();
}

#[test]
fn socket_activation_is_passed_on() {
    let Some(b) = bundle("echo $LISTEN_FDS $LISTEN_PID; cat <&3") else { return };
    fs::write(b.scratch().join("three"), "three\n").unwrap();
    let run = b.launch_command("run", &[], &b.id);
    let mut command = shell("export LISTEN_FDS=1 LISTEN_PID=$$; exec 3<three; exec \"$@\"", &run);
    assert_eq!(b.say_command(&mut command).ok().out, "1 1\nthree\n");
}

/// The command, and what dockerd and podman look for in the error.
#[test]
fn a_program_that_can_not_run_is_refused_at_create() {
    let table = [
        ("nothing-such", "exec: \"nothing-such\": executable file not found in $PATH"),
        ("/no/such", "no such file or directory"),
        ("/etc/passwd", "permission denied"),
        ("/etc", "is a directory"),
        ("./etc/passwd/x", "not a directory"),
    ];
    for (program, text) in table {
        let Some(b) = bundle("true") else { return };
        let b = b.with(|c| c["process"]["args"] = json!([program]));
        if program == "/etc" && !only_berth("runc 1.1 says permission denied") {
            continue;
        }
        b.try_create(&[]).fails(1, text);
        b.assert_nothing_left();
    }
}

#[test]
fn users_are_numbers_only_and_in_range() {
    for (field, value) in [("uid", json!(-1)), ("gid", json!(4_294_967_296_u64)), ("uid", json!("root"))] {
        let Some(b) = bundle("true") else { return };
        let b = b.with(|c| c["process"]["user"][field] = value);
        let said = b.try_create(&[]);
        assert_eq!(said.code, 1, "{said:?}");
        assert!(!support::is_berth() || said.err.contains(&format!("process.user.{field}")), "{said:?}");
        b.assert_nothing_left();
    }
}

#[test]
fn the_environment_of_the_runtime_stays_outside() {
    let Some(b) = bundle("env; cat /proc/1/environ") else { return };
    let mut command = b.launch_command("run", &[], &b.id);
    let said = b.say_command(command.env("BERTH_SECRET", "x")).ok();
    assert!(!said.out.contains("BERTH_SECRET"), "{said:?}");
}

#[test]
fn a_notify_socket_of_the_caller_has_its_place_inside() {
    let Some(b) = bundle("exec sleep 1000") else { return };
    let path = b.scratch().join("notify");
    let _listener = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    let mut command = b.launch_command("create", &[], &b.id);
    let mut create = support::Running::start(command.env("NOTIFY_SOCKET", &path), b.scratch());
    create.end().ok();
    let said = b.say(&["exec", &b.id, "ls", "-d", "/run/notify"]);
    assert_eq!(said.ok().out, "/run/notify\n");
}

#[test]
fn a_detached_run_passes_readiness_on_and_nobody_waits_for_it_to_delete() {
    let Some(b) = bundle("exec sleep 1000") else { return };
    if !only_berth("runc waits in another way") {
        return;
    }
    let path = b.scratch().join("notify");
    let manager = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    let mut command = b.launch_command("run", &["--detach"], &b.id);
    let mut run = support::Running::start(command.env("NOTIFY_SOCKET", &path), b.scratch());
    let inside = b.state_root().join(&b.id).join("notify/notify.sock");
    let program = std::os::unix::net::UnixDatagram::unbound().unwrap();
    support::until("a socket for notes", || program.send_to(b"READY=1", &inside).is_ok());
    let mut buffer = [0; 64];
    let length = manager.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"READY=1");
    // the rest, with the pipe that the runtime waits for
    for _ in 0..2 {
        manager.recv(&mut buffer).unwrap();
    }
    run.end().ok();

    let mut silent = b.launch_command("run", &["--detach"], "silent");
    let mut silent = support::Running::start(silent.env("NOTIFY_SOCKET", &path), b.scratch());
    support::until("running", || b.say(&["state", "silent"]).out.contains("\"running\""));
    b.say(&["delete", "--force", "silent"]).ok();
    silent.end();
}

#[test]
fn an_init_that_dies_before_the_program_is_told() {
    let Some(b) = bundle("true") else { return };
    if !only_berth("runc runs what the filter leaves of it") {
        return;
    }
    let b = b.with(|c| {
        c["process"]["noNewPrivileges"] = json!(false);
        c["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{ "names": ["capset"], "action": "SCMP_ACT_KILL_PROCESS" }] });
    });
    let text = "init has ended before it could run the program";
    b.say_command(&mut b.launch_command("run", &["--detach"], &b.id)).fails(1, text);
    b.assert_nothing_left();
    let c = b.create();
    let said = c.say(&["start"]);
    // when whoever inherited init has collected it already, nobody can tell
    assert!(said.code == 0 && said.err.is_empty() || said.code == 1 && said.err.contains(text), "{said:?}");
}

#[test]
fn a_filter_that_pretends_to_change_the_user_is_found_out() {
    let Some(b) = bundle("id") else { return };
    if !only_berth("runc believes the filter") {
        return;
    }
    let b = b.with(|c| {
        c["process"]["noNewPrivileges"] = json!(false);
        c["process"]["user"] = json!({"uid": 77, "gid": 78});
        c["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            { "names": ["setuid", "setresuid", "setgid", "setresgid", "setgroups"], "action": "SCMP_ACT_ERRNO", "errnoRet": 0 }] });
    });
    b.run().fails(1, "process.user: the ids cannot be set");
}

#[test]
fn a_program_that_only_a_supplementary_group_may_run_is_found() {
    let Some(b) = bundle("") else { return };
    let program = b.root("data/busybox");
    support::copy_program(std::path::Path::new("/bin/busybox"), &program);
    std::os::unix::fs::chown(&program, Some(0), Some(2000)).unwrap();
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o750)).unwrap();
    let b = b.with(|c| {
        c["process"]["user"] = json!({"uid": 1000, "gid": 1000, "additionalGids": [2000]});
        c["process"]["args"] = json!(["/data/busybox", "id", "-G"]);
        // whoever has CAP_DAC_OVERRIDE may run it anyway
        c["process"]["capabilities"] = json!({});
    });
    assert_eq!(b.run().ok().out, "1000 2000\n");
    let b = b.with(|c| c["process"]["user"] = json!({"uid": 1000, "gid": 1000}));
    assert_ne!(b.try_create(&[]).code, 0);
}

#[test]
fn a_filter_that_forbids_even_the_end_does_not_keep_the_process_spinning() {
    let Some(b) = bundle("true") else { return };
    let b = b.with(|c| c["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_ERRNO" }));
    assert_ne!(b.run().code, 0);
    b.assert_nothing_left();
}
