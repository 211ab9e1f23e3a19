//! What clap found, as the data of [`crate::options`].

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use clap::ArgMatches;

use super::argv::truth;
use crate::options::{
    CgroupDriver, CheckFormat, CheckOptions, CreateOptions, DeleteOptions, ExecOptions, Format,
    GlobalOptions, KillOptions, Level, ListOptions, LogFormat, LogTarget, Operation, PsOptions, Rootless,
    RunOptions, Shell, SpecOptions, signal_number,
};

/// What clap found, and the flags that were last given as false.
pub(super) struct Found {
    pub matches: ArgMatches,
    pub turned_off: Vec<String>,
}

/// The operation of a command. Fails, with a text for people, on what only several options together show.
pub(super) fn operation(name: &str, mut found: Found) -> Result<Operation, String> {
    Ok(match name {
        "create" => Operation::Create(found.create()),
        "run" => Operation::Run(found.run()),
        "start" => Operation::Start(found.text("id")),
        "state" => Operation::State(found.text("id")),
        "pause" => Operation::Pause(found.text("id")),
        "resume" => Operation::Resume(found.text("id")),
        "kill" => Operation::Kill(found.kill()?),
        "delete" => Operation::Delete(DeleteOptions { id: found.text("id"), force: found.flag("force") }),
        "exec" => Operation::Exec(found.exec()?),
        "list" => Operation::List(ListOptions { format: found.format(), quiet: found.flag("quiet") }),
        "ps" => Operation::Ps(found.ps()),
        "spec" => Operation::Spec(SpecOptions { bundle: found.bundle(), rootless: found.flag("rootless") }),
        "features" => Operation::Features,
        "check" => Operation::Check(found.check()),
        "completion" => Operation::Completion(found.shell()),
        other => return Err(format!("unknown command {other:?}")),
    })
}

/// The options before the command. Fails, with a text for people, on a value that is none of the known ones.
pub(super) fn globals(mut found: Found) -> Result<GlobalOptions, String> {
    let debug = found.flag("debug");
    let level = found.optional_text("log-level").map(|level| level_of(&level));
    let systemd = found.flag("systemd-cgroup");
    Ok(GlobalOptions {
        root: found.path("root"),
        log: found.os("log").map(log_target).transpose()?,
        log_format: match found.optional_text("log-format").as_deref() {
            Some("json") => LogFormat::Json,
            _ => LogFormat::Text,
        },
        log_level: if debug { Some(Level::Debug) } else { level },
        cgroup_driver: match found.optional_text("cgroup-manager").as_deref() {
            Some("disabled") => CgroupDriver::Disabled,
            Some("systemd") => CgroupDriver::Systemd,
            Some(_) | None if systemd => CgroupDriver::Systemd,
            Some(_) | None => CgroupDriver::Cgroupfs,
        },
        rootless: found.os("rootless").map_or(Ok(Rootless::Auto), |when| rootless(&when))?,
    })
}

impl Found {
    fn create(&mut self) -> CreateOptions {
        CreateOptions {
            id: self.text("id"),
            bundle: self.bundle(),
            config: self.path("config"),
            console_socket: self.path("console-socket"),
            pidfd_socket: self.path("pidfd-socket"),
            pid_file: self.path("pid-file"),
            no_pivot: self.flag("no-pivot"),
            no_new_keyring: self.flag("no-new-keyring"),
            preserve_fds: self.preserve_fds(),
        }
    }

    fn run(&mut self) -> RunOptions {
        RunOptions {
            create: self.create(),
            detach: self.flag("detach"),
            keep: self.flag("keep"),
            no_subreaper: self.flag("no-subreaper"),
        }
    }

    fn kill(&mut self) -> Result<KillOptions, String> {
        let signal = self.optional_text("signal").unwrap_or_else(|| "TERM".to_owned());
        Ok(KillOptions {
            id: self.text("id"),
            signal: signal_number(&signal).ok_or_else(|| format!("unknown signal {signal:?}"))?,
            all: self.flag("all"),
        })
    }

    fn exec(&mut self) -> Result<ExecOptions, String> {
        let command: Vec<OsString> = self.list("command");
        let process = self.path("process");
        match (&process, command.is_empty()) {
            (None, true) => return Err("exec needs a command, or --process FILE".to_owned()),
            (Some(_), false) => return Err("exec takes a command or --process FILE, not both".to_owned()),
            _ => {}
        }
        let privileges_kept = self.turned_off.iter().any(|flag| flag == "no-new-privs");
        Ok(ExecOptions {
            id: self.text("id"),
            command,
            process,
            console_socket: self.path("console-socket"),
            pidfd_socket: self.path("pidfd-socket"),
            pid_file: self.path("pid-file"),
            cwd: self.path("cwd"),
            env: self.list("env"),
            tty: self.flag("tty"),
            user: self.optional_text("user"),
            additional_gids: self.list("additional-gids"),
            detach: self.flag("detach"),
            process_label: self.optional_text("process-label"),
            apparmor: self.optional_text("apparmor"),
            no_new_privs: if privileges_kept {
                Some(false)
            } else {
                self.flag("no-new-privs").then_some(true)
            },
            capabilities: self.list("cap"),
            preserve_fds: self.preserve_fds(),
            cgroups: self.list("cgroup"),
            ignore_paused: self.flag("ignore-paused"),
            no_subreaper: self.flag("no-subreaper"),
        })
    }

    /// containerd gives all options of ps(1) as one argument.
    fn ps(&mut self) -> PsOptions {
        let mut args: Vec<OsString> = self.list("args");
        if let [one] = args.as_slice() {
            let words = one.as_bytes().split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
            args = words.map(|word| OsStr::from_bytes(word).to_owned()).collect();
        }
        if args.is_empty() {
            args.push("-ef".into());
        }
        PsOptions { id: self.text("id"), format: self.format(), args }
    }

    fn check(&mut self) -> CheckOptions {
        CheckOptions {
            bundle: self.bundle(),
            config: self.path("config"),
            plan: self.flag("plan"),
            format: match self.optional_text("format").as_deref() {
                Some("json") => CheckFormat::Json,
                _ => CheckFormat::Text,
            },
        }
    }

    fn shell(&mut self) -> Shell {
        match self.text("shell").as_str() {
            "zsh" => Shell::Zsh,
            "fish" => Shell::Fish,
            _ => Shell::Bash,
        }
    }

    fn format(&mut self) -> Format {
        match self.optional_text("format").as_deref() {
            Some("json") => Format::Json,
            _ => Format::Table,
        }
    }

    fn bundle(&mut self) -> PathBuf {
        self.path("bundle").unwrap_or_else(|| ".".into())
    }

    fn preserve_fds(&mut self) -> u32 {
        self.matches.remove_one("preserve-fds").unwrap_or_default()
    }

    fn flag(&self, name: &str) -> bool {
        self.matches.get_flag(name)
    }

    /// A required text, or one with a default.
    fn text(&mut self, name: &str) -> String {
        self.optional_text(name).unwrap_or_default()
    }

    fn optional_text(&mut self, name: &str) -> Option<String> {
        self.matches.remove_one(name)
    }

    fn os(&mut self, name: &str) -> Option<OsString> {
        self.matches.remove_one(name)
    }

    fn path(&mut self, name: &str) -> Option<PathBuf> {
        self.os(name).map(PathBuf::from)
    }

    fn list<T: Clone + Send + Sync + 'static>(&mut self, name: &str) -> Vec<T> {
        self.matches.remove_many(name).map(Iterator::collect).unwrap_or_default()
    }
}

fn level_of(name: &str) -> Level {
    match name {
        "debug" => Level::Debug,
        "info" => Level::Info,
        "warning" | "warn" => Level::Warning,
        _ => Level::Error,
    }
}

fn rootless(when: &OsStr) -> Result<Rootless, String> {
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
fn log_target(target: OsString) -> Result<LogTarget, String> {
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
