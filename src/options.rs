//! What was asked for: one operation with its options, as plain data. `cli` fills it, `container` reads it.

use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use anyhow::Context;

use crate::error::hinted;

/// The whole command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invocation {
    /// The options before the command.
    pub global: GlobalOptions,
    /// The command.
    pub operation: Operation,
}

/// Options that stand before the command and hold for every operation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GlobalOptions {
    /// `--root`; see [`state_root`] for the rule when it is not given.
    pub root: Option<PathBuf>,
    /// `--log`; standard error when not given.
    pub log: Option<LogTarget>,
    /// `--log-format`
    pub log_format: LogFormat,
    /// `--log-level`, or [`Level::Debug`] by `--debug`; the log's own default when neither was given.
    pub log_level: Option<Level>,
    /// `--systemd-cgroup`, `--cgroup-manager`
    pub cgroup_driver: CgroupDriver,
    /// `--rootless`
    pub rootless: Rootless,
}

/// Where log lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogTarget {
    /// `PATH` or `file:PATH`: appended to, never truncated.
    File(PathBuf),
    /// `journald:[IDENTIFIER]`
    Journald(String),
    /// `syslog:[IDENTIFIER]`
    Syslog(String),
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// `time="..." level=error msg="..."`
    #[default]
    Text,
    /// One JSON object a line with `level`, `msg`, `time`.
    Json,
}

/// How grave a log line is; a greater one is graver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// What is being done.
    Debug,
    /// What has been done.
    Info,
    /// The container runs, but not quite as asked.
    Warning,
    /// The operation failed.
    Error,
}

/// Who makes the container's cgroup.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CgroupDriver {
    /// The runtime, by mkdir(2).
    #[default]
    Cgroupfs,
    /// systemd, as a transient scope; `cgroupsPath` is `slice:prefix:name`.
    Systemd,
    /// Nobody: the container stays in the caller's cgroup.
    Disabled,
}

/// Whether missing privileges over cgroups are an error.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Rootless {
    /// The host's facts decide.
    #[default]
    Auto,
    /// They are not.
    Yes,
    /// They are.
    No,
}

/// One command with its options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// Makes a container from a bundle; its process waits for `start`.
    Create(CreateOptions),
    /// Lets a created container's process run. Holds the container's ID.
    Start(String),
    /// Prints a container's state as JSON. Holds the container's ID.
    State(String),
    /// Signals a container.
    Kill(KillOptions),
    /// Removes a container.
    Delete(DeleteOptions),
    /// `create` and `start`, and unless detached the wait for the end and `delete`.
    Run(RunOptions),
    /// A further process in a container.
    Exec(ExecOptions),
    /// Prints the containers below the root directory.
    List(ListOptions),
    /// Prints a container's processes.
    Ps(PsOptions),
    /// `events`
    Events(EventsOptions),
    /// `stats`
    Stats(StatsOptions),
    /// Freezes a container. Holds its ID.
    Pause(String),
    /// Thaws a container. Holds its ID.
    Resume(String),
    /// Gives a container other limits.
    Update(UpdateOptions),
    /// Writes a `config.json` to begin with.
    Spec(SpecOptions),
    /// Prints the runtime-spec's features object.
    Features(FeaturesOptions),
    /// Says what is wrong with a bundle, and what `create` would do.
    Check(CheckOptions),
    /// Saves a container's processes to files.
    Checkpoint(CheckpointOptions),
    /// Makes a container of such files.
    Restore(RestoreOptions),
    /// Prints a shell's completion script.
    Completion(Shell),
}

/// `create`, and the part of `run` that is the same. Relative paths are relative to the caller's working directory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CreateOptions {
    /// The container's ID, not yet checked.
    pub id: String,
    /// `--bundle`; `.` when not given.
    pub bundle: PathBuf,
    /// `--config`: read instead of the bundle's `config.json`.
    pub config: Option<PathBuf>,
    /// `--console-socket`: receives the terminal's master side.
    pub console_socket: Option<PathBuf>,
    /// `--pidfd-socket`: receives a pidfd of the container's process.
    pub pidfd_socket: Option<PathBuf>,
    /// `--pid-file`: gets the process id in decimal digits.
    pub pid_file: Option<PathBuf>,
    /// `--userns auto`: an ordinary user's container without a user namespace gets one.
    pub auto_userns: bool,
    /// `--no-pivot`: move the root instead of pivot_root(2).
    pub no_pivot: bool,
    /// `--no-new-keyring`: keep the caller's session keyring.
    pub no_new_keyring: bool,
    /// `--preserve-fds`: how many descriptors after standard error and `LISTEN_FDS` go to the container.
    pub preserve_fds: u32,
}

/// `run`
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RunOptions {
    /// What `create` is asked for.
    pub create: CreateOptions,
    /// `--detach`: return once the process runs.
    pub detach: bool,
    /// `--keep`: leave the container after its end.
    pub keep: bool,
    /// `--no-subreaper`: do not adopt the container's orphans.
    pub no_subreaper: bool,
}

/// How CRIU restores cgroups (criu(8), `--manage-cgroups`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupsMode {
    /// Those that are there keep their properties.
    Soft,
    /// They get the saved ones.
    Full,
    /// None may be there.
    Strict,
    /// They are left alone.
    Ignore,
}

/// How CRIU keeps the network still meanwhile (criu(8), `--network-lock`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkLock {
    /// By iptables-restore(8).
    Iptables,
    /// By nft(8)'s library.
    Nftables,
    /// Not at all.
    Skip,
}

/// What `checkpoint` and `restore` both tell CRIU.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CriuOptions {
    /// `--image-path`: the directory of the images.
    pub image_path: PathBuf,
    /// `--work-path`: the directory of CRIU's log and sockets; the images' when not given.
    pub work_path: Option<PathBuf>,
    /// `--tcp-established`
    pub tcp_established: bool,
    /// `--ext-unix-sk`
    pub ext_unix_sk: bool,
    /// `--shell-job`
    pub shell_job: bool,
    /// `--file-locks`
    pub file_locks: bool,
    /// `--lazy-pages`
    pub lazy_pages: bool,
    /// `--auto-dedup`
    pub auto_dedup: bool,
    /// `--empty-ns network`
    pub empty_network: bool,
    /// `--manage-cgroups-mode`
    pub cgroups_mode: Option<CgroupsMode>,
    /// `--network-lock`
    pub network_lock: Option<NetworkLock>,
}

/// `checkpoint`
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckpointOptions {
    /// The container's ID, not yet checked.
    pub id: String,
    /// What `restore` has too.
    pub criu: CriuOptions,
    /// `--parent-path`: the images before these, relative to them.
    pub parent_path: Option<PathBuf>,
    /// `--leave-running`: the container goes on.
    pub leave_running: bool,
    /// `--pre-dump`: memory alone, and the container goes on.
    pub pre_dump: bool,
    /// `--tcp-skip-in-flight`
    pub tcp_skip_in_flight: bool,
    /// `--link-remap`
    pub link_remap: bool,
    /// `--page-server`: address and port.
    pub page_server: Option<(String, u16)>,
    /// `--status-fd`: gets a zero byte once the server for `--lazy-pages` is ready.
    pub status_fd: Option<i32>,
}

/// `restore`
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RestoreOptions {
    /// What `run` is asked for.
    pub run: RunOptions,
    /// What `checkpoint` has too.
    pub criu: CriuOptions,
    /// `--tcp-close`
    pub tcp_close: bool,
    /// `--lsm-profile`: in place of the saved label.
    pub lsm_profile: Option<String>,
    /// `--lsm-mount-context`: in place of the saved `context` of mounts.
    pub lsm_mount_context: Option<String>,
}

/// `features`
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FeaturesOptions {
    /// `--host`: also what this host can do.
    pub host: bool,
}

/// `kill`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KillOptions {
    /// The container's ID, not yet checked.
    pub id: String,
    /// The signal's number, 0 to 64.
    pub signal: i32,
    /// `--all`: every process, and a container that is not running is no error.
    pub all: bool,
}

/// `delete`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeleteOptions {
    /// The container's ID, not yet checked.
    pub id: String,
    /// `--force`: kill it first; a container that does not exist is no error.
    pub force: bool,
}

/// `exec`. What is `None` comes from the bundle's process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecOptions {
    /// The container's ID, not yet checked.
    pub id: String,
    /// The command and its arguments; empty if and only if `process` is given.
    pub command: Vec<OsString>,
    /// `--process`: a file with the runtime-spec's process object, used instead of everything else here that
    /// describes the process.
    pub process: Option<PathBuf>,
    /// `--console-socket`: receives the terminal's master side.
    pub console_socket: Option<PathBuf>,
    /// `--pidfd-socket`: receives a pidfd of the process.
    pub pidfd_socket: Option<PathBuf>,
    /// `--pid-file`: gets the process id in decimal digits.
    pub pid_file: Option<PathBuf>,
    /// `--cwd`: the working directory, a path in the container.
    pub cwd: Option<PathBuf>,
    /// `--env NAME=VALUE`, after the bundle's own.
    pub env: Vec<OsString>,
    /// `--tty`; without it the process has no terminal, whatever the bundle says.
    pub tty: bool,
    /// `--user UID[:GID]`, not yet parsed.
    pub user: Option<String>,
    /// `--additional-gids`, after the bundle's own.
    pub additional_gids: Vec<u32>,
    /// `--detach`: return once the process runs.
    pub detach: bool,
    /// `--process-label`: SELinux
    pub process_label: Option<String>,
    /// `--apparmor`: the profile
    pub apparmor: Option<String>,
    /// `--no-new-privs`
    pub no_new_privs: Option<bool>,
    /// `--cap`: names that are added to the bundle's sets.
    pub capabilities: Vec<String>,
    /// `--preserve-fds`: how many descriptors after standard error go to the process.
    pub preserve_fds: u32,
    /// `--cgroup [CONTROLLERS:]PATH`: below the container's cgroup, which must exist.
    pub cgroups: Vec<String>,
    /// `--ignore-paused`: a paused container is no error.
    pub ignore_paused: bool,
    /// `--no-subreaper`: do not adopt the process's orphans.
    pub no_subreaper: bool,
}

/// `update`
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UpdateOptions {
    /// The container's ID, not yet checked.
    pub id: String,
    /// `--resources`: a file with the runtime-spec's `linux.resources`, `-` for standard input; used instead of `limits`.
    pub resources: Option<PathBuf>,
    /// The options that name a limit, in the order of the table: the option, the field below `linux.resources` and its value.
    pub limits: Vec<Limit>,
    /// `--l3-cache-schema` and then `--mem-bw-schema`: lines for the container's resctrl group.
    pub rdt: Vec<String>,
}

/// An option of `update` that names a limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    /// Without the dashes.
    pub option: &'static str,
    /// `memory.limit`
    pub field: &'static str,
    /// What it is to be.
    pub value: LimitValue,
}

/// The value of a limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LimitValue {
    /// Bytes, microseconds, shares, processes.
    Number(i64),
    /// A list of CPUs or memory nodes.
    List(String),
}

/// How `list` and `ps` print.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Format {
    /// Columns under headings.
    #[default]
    Table,
    /// One JSON array.
    Json,
}

/// `list`
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListOptions {
    /// `--format`
    pub format: Format,
    /// `--quiet`: only the IDs, one a line; goes before the format.
    pub quiet: bool,
}

/// `ps`
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PsOptions {
    /// The container's ID, not yet checked.
    pub id: String,
    /// `--format`
    pub format: Format,
    /// The arguments of ps(1), `-ef` when none were given.
    pub args: Vec<OsString>,
}

/// `events`
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EventsOptions {
    /// The container's ID, not yet checked.
    pub id: String,
    /// `--stats`: one reading, then the end.
    pub stats: bool,
    /// `--interval`: between two readings; not zero.
    pub interval: Duration,
}

/// `stats`
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StatsOptions {
    /// Whose; all when there is none.
    pub ids: Vec<String>,
    /// `--format`
    pub format: Format,
    /// `--no-stream`: once, on a terminal too.
    pub no_stream: bool,
    /// `--interval`: between two readings; not zero.
    pub interval: Duration,
}

/// `spec`
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecOptions {
    /// `--bundle`: where `config.json` is written; `.` when not given.
    pub bundle: PathBuf,
    /// `--rootless`: for a user without privileges.
    pub rootless: bool,
}

/// How `check` prints.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CheckFormat {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON object.
    Json,
}

/// `check`
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckOptions {
    /// `--bundle`; `.` when not given.
    pub bundle: PathBuf,
    /// `--config`: read instead of the bundle's `config.json`.
    pub config: Option<PathBuf>,
    /// `--userns auto`, as `create` takes it.
    pub auto_userns: bool,
    /// `--plan`: print the steps of `create` as well.
    pub plan: bool,
    /// `--format`
    pub format: CheckFormat,
}

/// A shell that completes commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shell {
    /// bash(1)
    Bash,
    /// zsh(1)
    Zsh,
    /// fish(1)
    Fish,
}

/// What the root directory's default depends on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Caller {
    /// The effective user id.
    pub euid: u32,
    /// Whether the caller is in a user namespace other than the first.
    pub in_user_namespace: bool,
    /// `$USER`
    pub user: Option<OsString>,
    /// `$XDG_RUNTIME_DIR`
    pub xdg_runtime_dir: Option<OsString>,
}

/// The directory that holds every container's state directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateRoot {
    /// As given, or by the rule.
    pub path: PathBuf,
    /// Whether `--root` was given: `list` of a missing directory is an error then.
    pub explicit: bool,
    /// Whether it is made with the sticky bit, which keeps cleaners of the user's runtime directory away from it
    /// (XDG Base Directory Specification).
    pub sticky: bool,
}

/// The root directory: `--root`; else `$XDG_RUNTIME_DIR/berth` for other users than root (of the host or by name);
/// else `/run/berth`. Fails when `--root` is empty or `/`.
pub fn state_root(given: Option<&Path>, caller: &Caller) -> anyhow::Result<StateRoot> {
    if let Some(path) = given {
        check_root(path)?;
        // the bundle becomes the working directory later
        let path = std::path::absolute(path).context("--root")?;
        return Ok(StateRoot { path, explicit: true, sticky: false });
    }
    let named_root = caller.user.as_deref().is_some_and(|user| user == "root");
    let unprivileged = caller.euid != 0 || (caller.in_user_namespace && !named_root);
    match caller.xdg_runtime_dir.as_deref().filter(|dir| unprivileged && !dir.is_empty()) {
        Some(dir) => Ok(StateRoot { path: Path::new(dir).join("berth"), explicit: false, sticky: true }),
        None => Ok(StateRoot { path: "/run/berth".into(), explicit: false, sticky: false }),
    }
}

/// Refuses a root directory in which every file would be taken for a container.
pub fn check_root(path: &Path) -> anyhow::Result<()> {
    let hint = "give a directory of its own, such as --root /run/berth, or leave --root away";
    if path.as_os_str().is_empty() {
        return Err(hinted("--root: the path is empty", hint));
    }
    let mut depth = 0_usize;
    for part in path.components() {
        match part {
            Component::Normal(_) => depth = depth.saturating_add(1),
            Component::ParentDir => depth = depth.saturating_sub(1),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    if path.is_absolute() && depth == 0 {
        return Err(hinted("--root: \"/\" cannot hold the containers' state", hint));
    }
    Ok(())
}

/// Signal names of signal(7) with their numbers on this architecture.
const SIGNALS: &[(&str, i32)] = &[
    ("ABRT", libc::SIGABRT),
    ("ALRM", libc::SIGALRM),
    ("BUS", libc::SIGBUS),
    ("CHLD", libc::SIGCHLD),
    ("CLD", libc::SIGCHLD),
    ("CONT", libc::SIGCONT),
    ("FPE", libc::SIGFPE),
    ("HUP", libc::SIGHUP),
    ("ILL", libc::SIGILL),
    ("INT", libc::SIGINT),
    ("IO", libc::SIGIO),
    ("IOT", libc::SIGIOT),
    ("KILL", libc::SIGKILL),
    ("PIPE", libc::SIGPIPE),
    ("POLL", libc::SIGPOLL),
    ("PROF", libc::SIGPROF),
    ("PWR", libc::SIGPWR),
    ("QUIT", libc::SIGQUIT),
    ("SEGV", libc::SIGSEGV),
    ("STKFLT", libc::SIGSTKFLT),
    ("STOP", libc::SIGSTOP),
    ("SYS", libc::SIGSYS),
    ("TERM", libc::SIGTERM),
    ("TRAP", libc::SIGTRAP),
    ("TSTP", libc::SIGTSTP),
    ("TTIN", libc::SIGTTIN),
    ("TTOU", libc::SIGTTOU),
    ("URG", libc::SIGURG),
    ("USR1", libc::SIGUSR1),
    ("USR2", libc::SIGUSR2),
    ("VTALRM", libc::SIGVTALRM),
    ("WINCH", libc::SIGWINCH),
    ("XCPU", libc::SIGXCPU),
    ("XFSZ", libc::SIGXFSZ),
];

/// The first and the last real-time signal as people and engines count them (the C library keeps some of the
/// kernel's for itself, and glibc's choice is the one that everybody means).
const REAL_TIME: (i32, i32) = (34, 64);

/// The number of a signal that is given as number, `NAME`, `SIGNAME`, `RTMIN+n` or `RTMAX-n`, in any case.
pub fn signal_number(text: &str) -> Option<i32> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().ok().filter(|number| (0..=REAL_TIME.1).contains(number));
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some((_, number)) = SIGNALS.iter().find(|(known, _)| *known == name) {
        return Some(*number);
    }
    let number = if let Some(offset) = name.strip_prefix("RTMIN") {
        REAL_TIME.0.checked_add(real_time_offset(offset, '+')?)?
    } else {
        REAL_TIME.1.checked_sub(real_time_offset(name.strip_prefix("RTMAX")?, '-')?)?
    };
    (REAL_TIME.0..=REAL_TIME.1).contains(&number).then_some(number)
}

/// `""` is 0, `"+3"` is 3.
fn real_time_offset(text: &str, sign: char) -> Option<i32> {
    if text.is_empty() {
        return Some(0);
    }
    let digits = text.strip_prefix(sign)?;
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_root_follows_the_caller() {
        let xdg = Some("/run/user/1000");
        let table = [
            (0, false, Some("root"), Some("/run/user/0"), "/run/berth", false),
            (0, false, None, Some("/run"), "/run/berth", false),
            (0, false, Some("ann"), xdg, "/run/berth", false),
            (0, true, Some("root"), xdg, "/run/berth", false),
            (0, true, Some("ann"), xdg, "/run/user/1000/berth", true),
            (0, true, None, xdg, "/run/user/1000/berth", true),
            (1000, false, Some("ann"), xdg, "/run/user/1000/berth", true),
            (1000, false, Some("root"), xdg, "/run/user/1000/berth", true),
            (1000, false, Some("ann"), None, "/run/berth", false),
            (1000, false, Some("ann"), Some(""), "/run/berth", false),
        ];
        for (euid, in_user_namespace, user, xdg, path, sticky) in table {
            let caller = Caller {
                euid,
                in_user_namespace,
                user: user.map(OsString::from),
                xdg_runtime_dir: xdg.map(OsString::from),
            };
            let expected = StateRoot { path: path.into(), explicit: false, sticky };
            assert_eq!(state_root(None, &caller).unwrap(), expected, "{caller:?}");
        }
    }

    #[test]
    fn a_given_root_is_taken_unless_it_is_the_file_system_s() {
        let root = state_root(Some(Path::new("/x/y")), &Caller::default()).unwrap();
        assert_eq!(root, StateRoot { path: "/x/y".into(), explicit: true, sticky: false });
        for bad in ["", "/", "//", "/.", "/x/..", "/.."] {
            assert!(state_root(Some(Path::new(bad)), &Caller::default()).is_err(), "{bad:?}");
        }
        for good in ["x", "./x", "/x/../y", "."] {
            assert!(state_root(Some(Path::new(good)), &Caller::default()).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn signals_are_known_by_number_and_by_name_in_any_case() {
        let table = [
            ("9", Some(9)),
            ("0", Some(0)),
            ("64", Some(64)),
            ("65", None),
            ("-9", None),
            ("+9", None),
            ("99999999999999", None),
            ("KILL", Some(9)),
            ("SIGKILL", Some(9)),
            ("sigkill", Some(9)),
            ("Term", Some(15)),
            ("winch", Some(28)),
            ("IOT", Some(6)),
            ("RTMIN", Some(34)),
            ("SIGRTMIN+3", Some(37)),
            ("rtmin+30", Some(64)),
            ("RTMIN+31", None),
            ("RTMIN3", None),
            ("RTMIN+", None),
            ("RTMIN++3", None),
            ("RTMAX", Some(64)),
            ("RTMAX-2", Some(62)),
            ("RTMAX-31", None),
            ("BOGUS", None),
            ("SIG", None),
            ("", None),
        ];
        for (text, number) in table {
            assert_eq!(signal_number(text), number, "{text:?}");
        }
    }
}
