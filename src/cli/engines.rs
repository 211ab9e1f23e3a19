//! The command lines that engines write, and what they mean. A line here that fails is an engine that breaks.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::options::{
    CgroupDriver, CgroupsMode, CheckFormat, CheckOptions, CheckpointOptions, CreateOptions, CriuOptions,
    DeleteOptions, ExecOptions, FeaturesOptions, Format, GlobalOptions, Invocation, KillOptions, Level,
    Limit, LimitValue, ListOptions, LogFormat, LogTarget, NetworkLock, Operation, PsOptions, RestoreOptions,
    Rootless, RunOptions, Shell, SpecOptions, UpdateOptions,
};

/// Parses words that are parted by blanks; `~` stands for a blank within a word.
fn parsed(line: &str) -> Invocation {
    let args = std::iter::once("berth").chain(line.split_whitespace()).map(|word| word.replace('~', " "));
    super::parse(args.map(OsString::from)).unwrap_or_else(|stop| panic!("{line}: {:?}", stop.error))
}

fn path(path: &str) -> Option<PathBuf> {
    Some(path.into())
}

fn words(line: &str) -> Vec<OsString> {
    line.split_whitespace().map(OsString::from).collect()
}

fn create(bundle: &str, id: &str) -> CreateOptions {
    CreateOptions { id: id.into(), bundle: bundle.into(), ..CreateOptions::default() }
}

fn exec(id: &str, command: &str) -> ExecOptions {
    ExecOptions { id: id.into(), command: words(command), ..ExecOptions::default() }
}

fn kill(id: &str, signal: i32, all: bool) -> Operation {
    Operation::Kill(KillOptions { id: id.into(), signal, all })
}

fn delete(id: &str, force: bool) -> Operation {
    Operation::Delete(DeleteOptions { id: id.into(), force })
}

fn update(resources: &str) -> Operation {
    let resources = path(resources);
    Operation::Update(UpdateOptions { id: "web".into(), resources, ..UpdateOptions::default() })
}

fn check(table: Vec<(&str, Operation)>) {
    for (line, operation) in table {
        assert_eq!(parsed(line).operation, operation, "{line}");
    }
}

#[test]
fn options_before_the_command() {
    let file = |path: &str| Some(LogTarget::File(path.into()));
    let plain = GlobalOptions::default();
    let root: GlobalOptions = GlobalOptions { root: path("/r"), ..plain.clone() };
    let json = GlobalOptions { log: file("/b/log.json"), log_format: LogFormat::Json, ..plain.clone() };
    let systemd = GlobalOptions { cgroup_driver: CgroupDriver::Systemd, ..plain.clone() };
    let debug = GlobalOptions { log_level: Some(Level::Debug), ..plain.clone() };
    let table = vec![
        ("--log= --log-format text", plain.clone()),
        // containerd
        (
            "--root /r --debug --log /b/log.json --log-format json --systemd-cgroup --rootless=true",
            GlobalOptions {
                log_level: Some(Level::Debug),
                cgroup_driver: CgroupDriver::Systemd,
                rootless: Rootless::Yes,
                root: path("/r"),
                ..json.clone()
            },
        ),
        ("--rootless=false", GlobalOptions { rootless: Rootless::No, ..plain.clone() }),
        ("--rootless auto", plain.clone()),
        // conmon and podman
        ("--systemd-cgroup --log-format=json --log /b/log.json", {
            GlobalOptions { cgroup_driver: CgroupDriver::Systemd, ..json.clone() }
        }),
        (
            "--cgroup-manager disabled",
            GlobalOptions { cgroup_driver: CgroupDriver::Disabled, ..plain.clone() },
        ),
        ("--cgroup-manager=systemd", systemd.clone()),
        ("--cgroup-manager cgroupfs", plain.clone()),
        ("--systemd-cgroup=false", plain.clone()),
        // CRI-O
        ("--root=/r", root.clone()),
        ("-root /r", root.clone()),
        ("-root=/r", root.clone()),
        ("--root /x --root /r", root),
        // by hand
        ("--debug", debug.clone()),
        ("-debug=1", debug.clone()),
        ("--debug --log-level error", debug),
        ("--debug --debug=false", plain.clone()),
        ("--log-level=warn", GlobalOptions { log_level: Some(Level::Warning), ..plain.clone() }),
        ("--log file:/b/log.json --log-format json", json),
        (
            "--log journald:",
            GlobalOptions { log: Some(LogTarget::Journald("berth".into())), ..plain.clone() },
        ),
        ("--log syslog:me", GlobalOptions { log: Some(LogTarget::Syslog("me".into())), ..plain.clone() }),
        ("", plain),
    ];
    for (line, global) in table {
        let parsed = parsed(&format!("{line} state web"));
        assert_eq!(parsed.global, global, "{line}");
        assert_eq!(parsed.operation, Operation::State("web".into()), "{line}");
    }
}

#[test]
fn containerd_and_its_shim() {
    let full = CreateOptions {
        pid_file: path("/b/init.pid"),
        console_socket: path("/s"),
        pidfd_socket: path("/p"),
        no_pivot: true,
        no_new_keyring: true,
        preserve_fds: 3,
        ..create("/b", "web")
    };
    check(vec![
        (
            "create --bundle /b --pid-file /b/init.pid --console-socket /s --pidfd-socket /p --no-pivot \
             --no-new-keyring --preserve-fds 3 web",
            Operation::Create(full),
        ),
        ("start web", Operation::Start("web".into())),
        (
            "exec --process /tmp/runc-process1 --console-socket /s --detach --pid-file /b/1.pid web",
            Operation::Exec(ExecOptions {
                process: path("/tmp/runc-process1"),
                console_socket: path("/s"),
                detach: true,
                pid_file: path("/b/1.pid"),
                ..exec("web", "")
            }),
        ),
        ("kill web 15", kill("web", 15, false)),
        ("kill --all web 9", kill("web", 9, true)),
        ("delete web", delete("web", false)),
        ("delete --force web", delete("web", true)),
        ("list --format=json", Operation::List(ListOptions { format: Format::Json, quiet: false })),
        (
            "ps --format json web",
            Operation::Ps(PsOptions { id: "web".into(), format: Format::Json, args: words("-ef") }),
        ),
        (
            "ps --format table web -o~pid,args",
            Operation::Ps(PsOptions { id: "web".into(), format: Format::Table, args: words("-o pid,args") }),
        ),
        ("pause web", Operation::Pause("web".into())),
        ("resume web", Operation::Resume("web".into())),
        ("update --resources=- web", update("-")),
        ("features", Operation::Features(FeaturesOptions { host: false })),
        ("features --host", Operation::Features(FeaturesOptions { host: true })),
    ]);
}

#[test]
fn conmon_and_podman() {
    let created = CreateOptions {
        pid_file: path("/b/pidfile"),
        no_pivot: true,
        no_new_keyring: true,
        preserve_fds: 2,
        console_socket: path("/s"),
        ..create("/b", "web")
    };
    check(vec![
        (
            "create --bundle /b --pid-file /b/pidfile --no-pivot --no-new-keyring --preserve-fds 2 \
             --console-socket /s web",
            Operation::Create(created),
        ),
        (
            "exec --pid-file /b/p --process /b/proc --detach --preserve-fds 1 --console-socket /s web",
            Operation::Exec(ExecOptions {
                pid_file: path("/b/p"),
                process: path("/b/proc"),
                detach: true,
                preserve_fds: 1,
                console_socket: path("/s"),
                ..exec("web", "")
            }),
        ),
        ("kill --all web 15", kill("web", 15, true)),
        ("delete --force web", delete("web", true)),
        ("update --resources=/tmp/podman1 web", update("/tmp/podman1")),
    ]);
}

#[test]
fn cri_o() {
    check(vec![
        ("kill web SIGTERM", kill("web", 15, false)),
        ("kill web TERM", kill("web", 15, false)),
        ("kill -a web 9", kill("web", 9, true)),
        ("update --resources - web", update("-")),
        ("exec --process /p web", Operation::Exec(ExecOptions { process: path("/p"), ..exec("web", "") })),
        ("state web", Operation::State("web".into())),
    ]);
}

#[test]
fn buildah_and_buildkit() {
    check(vec![
        (
            "create --bundle /b --pid-file /b/pid --no-pivot web",
            Operation::Create(CreateOptions {
                pid_file: path("/b/pid"),
                no_pivot: true,
                ..create("/b", "web")
            }),
        ),
        ("kill web", kill("web", 15, false)),
        ("kill web SIGKILL", kill("web", 9, false)),
        (
            "--log /r/runc-log.json --log-format json run --bundle /b --keep web",
            Operation::Run(RunOptions { create: create("/b", "web"), keep: true, ..RunOptions::default() }),
        ),
        (
            "exec --process /p --pid-file /f web",
            Operation::Exec(ExecOptions { process: path("/p"), pid_file: path("/f"), ..exec("web", "") }),
        ),
    ]);
}

#[test]
fn checkpoint_and_restore_of_engines() {
    let images = |image: &str, work: &str| CriuOptions {
        image_path: image.into(),
        work_path: (!work.is_empty()).then(|| work.into()),
        ..CriuOptions::default()
    };
    let checkpoint = |criu| CheckpointOptions { id: "web".into(), criu, ..CheckpointOptions::default() };
    let restored = |pid_file: &str| RunOptions {
        create: CreateOptions { pid_file: path(pid_file), ..create("/b", "web") },
        detach: true,
        ..RunOptions::default()
    };
    let all = CriuOptions {
        tcp_established: true,
        ext_unix_sk: true,
        shell_job: true,
        file_locks: true,
        cgroups_mode: Some(CgroupsMode::Soft),
        empty_network: true,
        lazy_pages: true,
        ..images("/i", "/w")
    };
    check(vec![
        // containerd
        (
            "checkpoint --image-path /i --work-path /w --parent-path ../p --tcp-established --ext-unix-sk --shell-job \
             --page-server 10.0.0.1:27 --file-locks --manage-cgroups-mode soft --empty-ns network --lazy-pages \
             --status-fd 3 --leave-running web",
            Operation::Checkpoint(CheckpointOptions {
                parent_path: path("../p"),
                leave_running: true,
                page_server: Some(("10.0.0.1".into(), 27)),
                status_fd: Some(3),
                ..checkpoint(all.clone())
            }),
        ),
        (
            "restore --image-path /i --work-path /w --tcp-established --ext-unix-sk --shell-job --file-locks \
             --manage-cgroups-mode soft --empty-ns network --lazy-pages --detach --pid-file /b/init.pid \
             --no-pivot -no-subreaper --bundle /b web",
            Operation::Restore(RestoreOptions {
                run: RunOptions {
                    create: CreateOptions { no_pivot: true, ..restored("/b/init.pid").create },
                    no_subreaper: true,
                    ..restored("/b/init.pid")
                },
                criu: all,
                ..RestoreOptions::default()
            }),
        ),
        // podman and conmon
        (
            "checkpoint --image-path /i --work-path /b --leave-running --leave-running --pre-dump \
             --parent-path ../pre-checkpoint --tcp-established web",
            Operation::Checkpoint(CheckpointOptions {
                leave_running: true,
                pre_dump: true,
                parent_path: path("../pre-checkpoint"),
                ..checkpoint(CriuOptions { tcp_established: true, ..images("/i", "/b") })
            }),
        ),
        (
            "restore --bundle /b --pid-file /b/pidfile --no-new-keyring --detach --image-path /i --work-path /b \
             --tcp-close --lsm-mount-context=c:d --lsm-profile=selinux:x web",
            Operation::Restore(RestoreOptions {
                run: RunOptions {
                    create: CreateOptions { no_new_keyring: true, ..restored("/b/pidfile").create },
                    ..restored("/b/pidfile")
                },
                criu: images("/i", "/b"),
                tcp_close: true,
                lsm_profile: Some("selinux:x".into()),
                lsm_mount_context: Some("c:d".into()),
            }),
        ),
        // CRI-O
        (
            "checkpoint --file-locks --image-path /i --work-path /w --leave-running web",
            Operation::Checkpoint(CheckpointOptions {
                leave_running: true,
                ..checkpoint(CriuOptions { file_locks: true, ..images("/i", "/w") })
            }),
        ),
        // by hand
        (
            "checkpoint --network-lock nftables --auto-dedup --link-remap --tcp-skip-in-flight \
             --page-server [::1]:27 --manage-cgroups-mode=ignore web",
            Operation::Checkpoint(CheckpointOptions {
                link_remap: true,
                tcp_skip_in_flight: true,
                page_server: Some(("::1".into(), 27)),
                ..checkpoint(CriuOptions {
                    auto_dedup: true,
                    network_lock: Some(NetworkLock::Nftables),
                    cgroups_mode: Some(CgroupsMode::Ignore),
                    ..images("checkpoint", "")
                })
            }),
        ),
    ]);
}

#[test]
fn options_in_any_spelling_and_place() {
    let detached = RunOptions { create: create("/b", "web"), detach: true, ..RunOptions::default() };
    let alone = RunOptions { no_subreaper: true, ..detached.clone() };
    check(vec![
        ("run -b /b -d web", Operation::Run(detached.clone())),
        // what a script gives that has set nothing
        ("run -b /b -d --pid-file= --console-socket= --config= web", Operation::Run(detached.clone())),
        ("spec -b=", Operation::Spec(SpecOptions { bundle: ".".into(), rootless: false })),
        ("run -bundle /b -detach web", Operation::Run(detached.clone())),
        ("run web --bundle=/b --detach=true", Operation::Run(detached.clone())),
        ("run -b=/b web -d", Operation::Run(detached.clone())),
        ("run --b /b --d web", Operation::Run(detached.clone())),
        ("run -db /b -- web", Operation::Run(detached.clone())),
        ("run -db/b web", Operation::Run(detached)),
        ("run -d -no-subreaper --bundle /b web", Operation::Run(alone)),
        ("run web", Operation::Run(RunOptions { create: create(".", "web"), ..RunOptions::default() })),
        (
            "create -f /c.json --no-subreaper web",
            Operation::Create(CreateOptions { config: path("/c.json"), ..create(".", "web") }),
        ),
        ("delete web --force --force=false", delete("web", false)),
        ("state -- -odd", Operation::State("-odd".into())),
        ("kill web -a rtmin+3", kill("web", 37, true)),
        ("list -qf json", Operation::List(ListOptions { format: Format::Json, quiet: true })),
    ]);
}

#[test]
fn the_rest_of_exec_and_ps_belongs_to_the_program() {
    let full = ExecOptions {
        cwd: path("/w"),
        env: words("A=1 B="),
        tty: true,
        user: Some("1:2".into()),
        additional_gids: vec![3, 4],
        process_label: Some("l".into()),
        apparmor: Some("p".into()),
        no_new_privs: Some(true),
        capabilities: vec!["CAP_KILL".into(), "CAP_CHOWN".into()],
        cgroups: vec!["cpu,memory:/a".into(), "b".into()],
        ignore_paused: true,
        pidfd_socket: path("/p"),
        no_subreaper: true,
        ..exec("web", "id")
    };
    let terminal = ExecOptions { tty: true, detach: true, ..exec("web", "sh") };
    check(vec![
        ("exec web ls -l --help", Operation::Exec(exec("web", "ls -l --help"))),
        ("exec web -- ls", Operation::Exec(exec("web", "-- ls"))),
        ("exec -- web ls", Operation::Exec(exec("web", "ls"))),
        ("exec web ls -- x", Operation::Exec(exec("web", "ls -- x"))),
        ("exec -td web sh", Operation::Exec(terminal.clone())),
        ("exec -t -d=true web sh", Operation::Exec(terminal)),
        (
            "exec --cwd /w -e A=1 --env B= -t -u 1:2 -g 3 --additional-gids=4 --process-label l --apparmor p \
             --no-new-privs -c CAP_KILL --cap CAP_CHOWN --cgroup cpu,memory:/a --cgroup=b --ignore-paused \
             --pidfd-socket /p --no-subreaper web id",
            Operation::Exec(full),
        ),
        (
            "exec --no-new-privs=false web id",
            Operation::Exec(ExecOptions { no_new_privs: Some(false), ..exec("web", "id") }),
        ),
        (
            "ps -f json web -o pid --format x",
            Operation::Ps(PsOptions {
                id: "web".into(),
                format: Format::Json,
                args: words("-o pid --format x"),
            }),
        ),
    ]);
}

#[test]
fn limits_by_hand() {
    let limit = |option, field, number| Limit { option, field, value: LimitValue::Number(number) };
    let limits = vec![
        limit("memory", "memory.limit", 512 << 20),
        limit("memory-swap", "memory.swap", -1),
        limit("cpu-quota", "cpu.quota", -1),
        limit("cpu-share", "cpu.shares", 512),
        Limit { option: "cpuset-cpus", field: "cpu.cpus", value: LimitValue::List("0-1".into()) },
        limit("pids-limit", "pids.limit", 0),
    ];
    let options = UpdateOptions { id: "web".into(), limits, ..UpdateOptions::default() };
    let rdt = UpdateOptions { id: "web".into(), rdt: vec!["MB:0=20".into()], ..UpdateOptions::default() };
    check(vec![
        (
            "update --memory 512M --memory-swap -1 --cpu-quota=-1 --cpu-share 512 --cpuset-cpus 0-1 --pids-limit 0 \
             --cpu-period= web",
            Operation::Update(options),
        ),
        ("update web --mem-bw-schema MB:0=20 --l3-cache-schema=", Operation::Update(rdt)),
        ("update -r /f web", update("/f")),
    ]);
}

#[test]
fn our_own_commands() {
    let bundle = |bundle: &str| CheckOptions { bundle: bundle.into(), ..CheckOptions::default() };
    check(vec![
        ("check", Operation::Check(bundle("."))),
        (
            "check --bundle /b --plan --format json",
            Operation::Check(CheckOptions { plan: true, format: CheckFormat::Json, ..bundle("/b") }),
        ),
        ("spec -b /b --rootless", Operation::Spec(SpecOptions { bundle: "/b".into(), rootless: true })),
        ("completion zsh", Operation::Completion(Shell::Zsh)),
    ]);
}
