//! An argument vector that was taken apart, as the data of [`crate::options`].

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::Duration;

use super::argv::{Argv, truth};
use crate::options::{
    CgroupDriver, CgroupsMode, CheckFormat, CheckOptions, CheckpointOptions, CreateOptions, CriuOptions,
    DeleteOptions, EventsOptions, ExecOptions, FeaturesOptions, Format, GlobalOptions, KillOptions, Level,
    Limit, LimitValue, ListOptions, LogFormat, LogTarget, NetworkLock, Operation, PsOptions, RestoreOptions,
    Rootless, RunOptions, Shell, SpecOptions, StatsOptions, UpdateOptions, signal_number,
};

/// Why an option's value is refused, for people.
type Refused<T> = Result<T, String>;

/// The operation of a command whose arguments were counted.
pub(super) fn operation(name: &str, mut argv: Argv) -> Refused<Operation> {
    let argv = &mut argv;
    Ok(match name {
        "create" => Operation::Create(argv.create()?),
        "run" => Operation::Run(argv.run()?),
        "start" => Operation::Start(argv.id()?),
        "state" => Operation::State(argv.id()?),
        "pause" => Operation::Pause(argv.id()?),
        "resume" => Operation::Resume(argv.id()?),
        "update" => Operation::Update(argv.update()?),
        "kill" => Operation::Kill(argv.kill()?),
        "delete" => Operation::Delete(DeleteOptions { force: argv.on("force"), id: argv.id()? }),
        "exec" => Operation::Exec(argv.exec()?),
        "list" => Operation::List(ListOptions { format: argv.format()?, quiet: argv.on("quiet") }),
        "ps" => Operation::Ps(argv.ps()?),
        "events" => Operation::Events(argv.events()?),
        "stats" => Operation::Stats(argv.stats()?),
        "spec" => Operation::Spec(SpecOptions { bundle: argv.bundle(), rootless: argv.on("rootless") }),
        "features" => Operation::Features(FeaturesOptions { host: argv.on("host") }),
        "check" => Operation::Check(argv.check()?),
        "checkpoint" => Operation::Checkpoint(argv.checkpoint()?),
        "restore" => Operation::Restore(argv.restore()?),
        "completion" => Operation::Completion(argv.shell()?),
        other => return Err(format!("unknown command {other:?}")),
    })
}

/// The options before the command.
pub(super) fn globals(argv: &mut Argv) -> Refused<GlobalOptions> {
    let debug = argv.on("debug").then_some(Level::Debug);
    let systemd = if argv.on("systemd-cgroup") { CgroupDriver::Systemd } else { CgroupDriver::Cgroupfs };
    Ok(GlobalOptions {
        // an empty one is refused later: what stands for it may be somebody else's
        root: argv.os("root").map(PathBuf::from),
        log: argv.given("log").map(log_target).transpose()?,
        log_format: argv.choice("log-format", LOG_FORMATS)?.unwrap_or_default(),
        log_level: debug.or(argv.choice("log-level", LEVELS)?),
        cgroup_driver: match argv.choice("cgroup-manager", CGROUP_DRIVERS)? {
            None | Some(CgroupDriver::Cgroupfs) => systemd,
            Some(driver) => driver,
        },
        rootless: argv.os("rootless").map_or(Ok(Rootless::Auto), |when| rootless(&when))?,
    })
}

const CGROUP_DRIVERS: &[(&str, CgroupDriver)] = &[
    ("cgroupfs", CgroupDriver::Cgroupfs),
    ("systemd", CgroupDriver::Systemd),
    ("disabled", CgroupDriver::Disabled),
];
const CHECK_FORMATS: &[(&str, CheckFormat)] = &[("text", CheckFormat::Text), ("json", CheckFormat::Json)];
const FORMATS: &[(&str, Format)] = &[("table", Format::Table), ("json", Format::Json)];
const LEVELS: &[(&str, Level)] = &[
    ("error", Level::Error),
    ("warning", Level::Warning),
    ("warn", Level::Warning),
    ("info", Level::Info),
    ("debug", Level::Debug),
];
const LOG_FORMATS: &[(&str, LogFormat)] = &[("text", LogFormat::Text), ("json", LogFormat::Json)];
/// What an option's value is.
#[derive(Clone, Copy)]
enum Kind {
    Size,
    Number,
    List,
}

/// The options of `update`, and the fields of `linux.resources` that they stand for.
const LIMITS: &[(&str, &str, Kind)] = &[
    ("memory", "memory.limit", Kind::Size),
    ("memory-swap", "memory.swap", Kind::Size),
    ("memory-reservation", "memory.reservation", Kind::Size),
    ("kernel-memory", "memory.kernel", Kind::Size),
    ("kernel-memory-tcp", "memory.kernelTCP", Kind::Size),
    ("cpu-quota", "cpu.quota", Kind::Number),
    ("cpu-period", "cpu.period", Kind::Number),
    ("cpu-burst", "cpu.burst", Kind::Number),
    ("cpu-share", "cpu.shares", Kind::Number),
    ("cpu-idle", "cpu.idle", Kind::Number),
    ("cpu-rt-period", "cpu.realtimePeriod", Kind::Number),
    ("cpu-rt-runtime", "cpu.realtimeRuntime", Kind::Number),
    ("cpuset-cpus", "cpu.cpus", Kind::List),
    ("cpuset-mems", "cpu.mems", Kind::List),
    ("blkio-weight", "blockIO.weight", Kind::Number),
    ("pids-limit", "pids.limit", Kind::Number),
];
const CGROUPS_MODES: &[(&str, CgroupsMode)] = &[
    ("soft", CgroupsMode::Soft),
    ("full", CgroupsMode::Full),
    ("strict", CgroupsMode::Strict),
    ("ignore", CgroupsMode::Ignore),
];
const EMPTY_NAMESPACES: &[(&str, bool)] = &[("network", true)];
const NETWORK_LOCKS: &[(&str, NetworkLock)] =
    &[("iptables", NetworkLock::Iptables), ("nftables", NetworkLock::Nftables), ("skip", NetworkLock::Skip)];
const USERNS: &[(&str, bool)] = &[("auto", true)];
const SHELLS: &[(&str, Shell)] = &[("bash", Shell::Bash), ("zsh", Shell::Zsh), ("fish", Shell::Fish)];

impl Argv {
    fn create(&mut self) -> Refused<CreateOptions> {
        Ok(CreateOptions {
            id: self.id()?,
            bundle: self.bundle(),
            config: self.path("config"),
            console_socket: self.path("console-socket"),
            pidfd_socket: self.path("pidfd-socket"),
            pid_file: self.path("pid-file"),
            auto_userns: self.choice("userns", USERNS)?.unwrap_or_default(),
            no_pivot: self.on("no-pivot"),
            no_new_keyring: self.on("no-new-keyring"),
            preserve_fds: self.preserve_fds()?,
        })
    }

    fn run(&mut self) -> Refused<RunOptions> {
        Ok(RunOptions {
            create: self.create()?,
            detach: self.on("detach"),
            keep: self.on("keep"),
            no_subreaper: self.on("no-subreaper"),
        })
    }

    fn criu(&mut self) -> Refused<CriuOptions> {
        Ok(CriuOptions {
            image_path: self.given("image-path").map_or_else(|| "checkpoint".into(), PathBuf::from),
            work_path: self.path("work-path"),
            tcp_established: self.on("tcp-established"),
            ext_unix_sk: self.on("ext-unix-sk"),
            shell_job: self.on("shell-job"),
            file_locks: self.on("file-locks"),
            lazy_pages: self.on("lazy-pages"),
            auto_dedup: self.on("auto-dedup"),
            empty_network: self.given_choice("empty-ns", EMPTY_NAMESPACES)?.unwrap_or_default(),
            cgroups_mode: self.given_choice("manage-cgroups-mode", CGROUPS_MODES)?,
            network_lock: self.given_choice("network-lock", NETWORK_LOCKS)?,
        })
    }

    fn checkpoint(&mut self) -> Refused<CheckpointOptions> {
        let page_server = self.given_text("page-server")?;
        // what others have as the default value
        let status_fd = self.given_text("status-fd")?.filter(|text| text != "-1");
        Ok(CheckpointOptions {
            id: self.id()?,
            criu: self.criu()?,
            parent_path: self.path("parent-path"),
            leave_running: self.on("leave-running"),
            pre_dump: self.on("pre-dump"),
            tcp_skip_in_flight: self.on("tcp-skip-in-flight"),
            link_remap: self.on("link-remap"),
            page_server: page_server.map(|text| address_and_port(&text)).transpose()?,
            status_fd: status_fd
                .map(|text| {
                    text.parse().ok().filter(|number| *number >= 0).ok_or_else(|| {
                        format!("invalid value {text:?} for status-fd: give the number of a descriptor")
                    })
                })
                .transpose()?,
        })
    }

    fn restore(&mut self) -> Refused<RestoreOptions> {
        Ok(RestoreOptions {
            run: self.run()?,
            criu: self.criu()?,
            tcp_close: self.on("tcp-close"),
            lsm_profile: self.given_text("lsm-profile")?,
            lsm_mount_context: self.given_text("lsm-mount-context")?,
        })
    }

    fn kill(&mut self) -> Refused<KillOptions> {
        let id = self.id()?;
        // an empty one is what a script gives that names none
        let signal = self.next().filter(|signal| !signal.is_empty()).unwrap_or_else(|| "TERM".into());
        let signal = text("SIGNAL", signal)?;
        let number = signal_number(&signal).ok_or_else(|| format!("unknown signal {signal:?}"))?;
        Ok(KillOptions { id, signal: number, all: self.on("all") })
    }

    fn update(&mut self) -> Refused<UpdateOptions> {
        let mut limits = Vec::new();
        for (option, field, kind) in LIMITS {
            let Some(text) = self.given_text(option)? else { continue };
            let value = match kind {
                Kind::Size => size(&text).map(LimitValue::Number),
                Kind::Number => text.parse().ok().map(LimitValue::Number),
                Kind::List => Some(LimitValue::List(text.clone())),
            };
            let wanted = if matches!(kind, Kind::Size) {
                "a number of bytes such as 512M or 1GiB, or -1"
            } else {
                "a whole number"
            };
            let value = value.ok_or_else(|| format!("invalid value {text:?} for {option}: give {wanted}"))?;
            limits.push(Limit { option, field, value });
        }
        let mut rdt = Vec::new();
        for (name, start) in [("l3-cache-schema", "L3:"), ("mem-bw-schema", "MB:")] {
            let Some(line) = self.given_text(name)? else { continue };
            if !line.starts_with(start) || line.contains('\n') {
                return Err(format!("invalid value {line:?} for --{name}: give a line {start}..."));
            }
            rdt.push(line);
        }
        Ok(UpdateOptions { rdt, resources: self.path("resources"), id: self.id()?, limits })
    }

    fn exec(&mut self) -> Refused<ExecOptions> {
        let id = self.id()?;
        let command = std::mem::take(&mut self.arguments);
        let process = self.path("process");
        match (&process, command.is_empty()) {
            (None, true) => return Err("exec needs a command, or --process FILE".to_owned()),
            (Some(_), false) => return Err("exec takes a command or --process FILE, not both".to_owned()),
            _ => {}
        }
        Ok(ExecOptions {
            id,
            command,
            process,
            console_socket: self.path("console-socket"),
            pidfd_socket: self.path("pidfd-socket"),
            pid_file: self.path("pid-file"),
            cwd: self.path("cwd"),
            env: self.list("env"),
            tty: self.on("tty"),
            user: self.text("user")?,
            additional_gids: self.numbers("additional-gids")?,
            detach: self.on("detach"),
            process_label: self.text("process-label")?,
            apparmor: self.text("apparmor")?,
            no_new_privs: self.flag("no-new-privs"),
            capabilities: self.texts("cap")?,
            preserve_fds: self.preserve_fds()?,
            cgroups: self.texts("cgroup")?,
            ignore_paused: self.on("ignore-paused"),
            no_subreaper: self.on("no-subreaper"),
        })
    }

    /// containerd gives all options of ps(1) as one argument.
    fn ps(&mut self) -> Refused<PsOptions> {
        let id = self.id()?;
        let mut args = std::mem::take(&mut self.arguments);
        if let [one] = args.as_slice() {
            let words = one.as_bytes().split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
            args = words.map(|word| OsStr::from_bytes(word).to_owned()).collect();
        }
        if args.is_empty() {
            args.push("-ef".into());
        }
        Ok(PsOptions { id, format: self.format()?, args })
    }

    fn events(&mut self) -> Refused<EventsOptions> {
        Ok(EventsOptions {
            id: self.id()?,
            stats: self.on("stats"),
            interval: self.interval(Duration::from_secs(5))?,
        })
    }

    fn stats(&mut self) -> Refused<StatsOptions> {
        let ids = std::mem::take(&mut self.arguments);
        Ok(StatsOptions {
            ids: ids.into_iter().map(|id| text("ID", id)).collect::<Refused<_>>()?,
            format: self.format()?,
            no_stream: self.on("no-stream"),
            interval: self.interval(Duration::from_secs(1))?,
        })
    }

    fn interval(&mut self, default: Duration) -> Refused<Duration> {
        let Some(value) = self.text("interval")? else { return Ok(default) };
        match duration(&value) {
            Some(interval) if !interval.is_zero() => Ok(interval),
            Some(_) => Err("duration interval must be greater than 0".to_owned()),
            None => {
                Err(format!("invalid value {value:?} for interval: give a time such as 500ms, 5s or 1m30s"))
            }
        }
    }

    fn check(&mut self) -> Refused<CheckOptions> {
        Ok(CheckOptions {
            bundle: self.bundle(),
            config: self.path("config"),
            auto_userns: self.choice("userns", USERNS)?.unwrap_or_default(),
            plan: self.on("plan"),
            format: self.choice("format", CHECK_FORMATS)?.unwrap_or_default(),
        })
    }

    fn shell(&mut self) -> Refused<Shell> {
        one_of("SHELL", self.next().unwrap_or_default(), SHELLS)
    }

    fn format(&mut self) -> Refused<Format> {
        Ok(self.choice("format", FORMATS)?.unwrap_or_default())
    }

    fn bundle(&mut self) -> PathBuf {
        self.path("bundle").unwrap_or_else(|| ".".into())
    }

    fn preserve_fds(&mut self) -> Refused<u32> {
        Ok(self.numbers("preserve-fds")?.last().copied().unwrap_or_default())
    }

    fn id(&mut self) -> Refused<String> {
        text("ID", self.next().unwrap_or_default())
    }

    /// The next argument.
    fn next(&mut self) -> Option<OsString> {
        (!self.arguments.is_empty()).then(|| self.arguments.remove(0))
    }

    fn on(&self, name: &str) -> bool {
        self.flag(name).unwrap_or_default()
    }

    /// The last value of an option.
    fn os(&mut self, name: &str) -> Option<OsString> {
        self.list(name).pop()
    }

    fn path(&mut self, name: &str) -> Option<PathBuf> {
        self.given(name).map(PathBuf::from)
    }

    fn text(&mut self, name: &str) -> Refused<Option<String>> {
        self.os(name).map(|value| text(name, value)).transpose()
    }

    fn choice<T: Copy>(&mut self, name: &str, words: &[(&str, T)]) -> Refused<Option<T>> {
        self.os(name).map(|value| one_of(name, value, words)).transpose()
    }

    /// An empty value is none: what a script gives that sets nothing.
    fn given(&mut self, name: &str) -> Option<OsString> {
        self.os(name).filter(|value| !value.is_empty())
    }

    fn given_text(&mut self, name: &str) -> Refused<Option<String>> {
        self.given(name).map(|value| text(name, value)).transpose()
    }

    fn given_choice<T: Copy>(&mut self, name: &str, words: &[(&str, T)]) -> Refused<Option<T>> {
        self.given(name).map(|value| one_of(name, value, words)).transpose()
    }

    /// Every value of an option.
    fn list(&mut self, name: &str) -> Vec<OsString> {
        self.values.extract_if(.., |(option, _)| *option == name).map(|(_, value)| value).collect()
    }

    fn texts(&mut self, name: &str) -> Refused<Vec<String>> {
        self.list(name).into_iter().map(|value| text(name, value)).collect()
    }

    fn numbers(&mut self, name: &str) -> Refused<Vec<u32>> {
        let number = |value: String| {
            value
                .parse()
                .map_err(|_| format!("invalid value {value:?} for {name}: give a whole number from 0 on"))
        };
        self.texts(name)?.into_iter().map(number).collect()
    }
}

/// A duration as Go writes it: `1m30s`, `1.5h`, `500ms`. One below zero is zero.
fn duration(text: &str) -> Option<Duration> {
    const UNITS: &[(&str, f64)] =
        &[("ns", 1e-9), ("us", 1e-6), ("µs", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    let mut seconds = 0.0;
    loop {
        let (number, after) = rest.split_at_checked(rest.find(|c: char| !c.is_ascii_digit() && c != '.')?)?;
        let end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at_checked(end)?;
        seconds += number.parse::<f64>().ok()? * UNITS.iter().find(|(name, _)| *name == unit)?.1;
        if after.is_empty() {
            break;
        }
        rest = after;
    }
    if negative { Some(Duration::ZERO) } else { Duration::try_from_secs_f64(seconds).ok() }
}

/// A number of bytes as people write it: with or without a fraction, a unit of 1024, `i` and `B`. -1 is no limit.
fn size(text: &str) -> Option<i64> {
    if text == "-1" {
        return Some(-1);
    }
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = lower.strip_prefix(digits)?.trim_start();
    let unit = unit.strip_suffix('b').unwrap_or(unit);
    let shift = match unit.strip_suffix('i').unwrap_or(unit) {
        "" if !unit.is_empty() => return None,
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        _ => return None,
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
    let digits_only = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !digits_only(whole) || !digits_only(fraction) {
        return None;
    }
    let whole = whole.parse::<i64>().ok()?.checked_mul(1 << shift)?;
    let fraction = format!("0.{fraction}").parse::<f64>().ok()? * (1_u64 << shift) as f64;
    whole.checked_add(fraction as i64)
}

/// `ADDRESS:PORT`, where the address of IPv6 may stand in brackets.
fn address_and_port(text: &str) -> Refused<(String, u16)> {
    let (address, port) = text.rsplit_once(':').unwrap_or_default();
    let address = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address);
    match port.parse() {
        Ok(port) if port > 0 && !address.is_empty() => Ok((address.to_owned(), port)),
        _ => Err(format!("invalid value {text:?} for page-server: give ADDRESS:PORT")),
    }
}

fn text(name: &str, value: OsString) -> Refused<String> {
    value.into_string().map_err(|value| format!("invalid value {value:?} for {name}: not UTF-8"))
}

fn one_of<T: Copy>(name: &str, value: OsString, words: &[(&str, T)]) -> Refused<T> {
    words.iter().find(|(word, _)| value == *word).map(|(_, meaning)| *meaning).ok_or_else(|| {
        let known = words.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(", ");
        format!("invalid value {value:?} for {name}: give one of {known}")
    })
}

fn rootless(when: &OsStr) -> Refused<Rootless> {
    match truth(when) {
        Some(true) => Ok(Rootless::Yes),
        Some(false) => Ok(Rootless::No),
        None if when == "auto" => Ok(Rootless::Auto),
        None => Err(format!(
            "invalid value {:?} for --rootless: give true, false or auto",
            when.to_string_lossy()
        )),
    }
}

/// `file:PATH`, `journald:[NAME]`, `syslog:[NAME]`, or a path.
fn log_target(target: OsString) -> Refused<LogTarget> {
    let bytes = target.as_bytes();
    let named = |name: &[u8]| match String::from_utf8_lossy(name) {
        name if name.is_empty() => "berth".to_owned(),
        name => name.into_owned(),
    };
    if let Some(name) = bytes.strip_prefix(b"journald:") {
        return Ok(LogTarget::Journald(named(name)));
    }
    if let Some(name) = bytes.strip_prefix(b"syslog:") {
        return Ok(LogTarget::Syslog(named(name)));
    }
    let path = bytes.strip_prefix(b"file:").unwrap_or(bytes);
    if path.is_empty() {
        return Err("--log: the path is empty".to_owned());
    }
    Ok(LogTarget::File(OsString::from_vec(path.to_vec()).into()))
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("-1", Some(-1)),
            ("0", Some(0)),
            ("4096", Some(4096)),
            ("512M", Some(512 << 20)),
            ("512m", Some(512 << 20)),
            ("1GiB", Some(1 << 30)),
            ("1 gib", Some(1 << 30)),
            ("32kb", Some(32 << 10)),
            ("1.5G", Some(3 << 29)),
            ("2T", Some(2 << 40)),
            ("1P", Some(1 << 50)),
            ("7b", Some(7)),
            ("7iB", None),
            ("-2", None),
            ("-1M", None),
            ("", None),
            ("M", None),
            ("1X", None),
            ("1.G", None),
            (".5G", None),
            ("1.2.3", None),
            ("1e3", None),
            ("0x10", None),
            ("9999999999999999999", None),
            ("9999999P", None),
        ] {
            assert_eq!(size(text), bytes, "{text:?}");
        }
    }
}
