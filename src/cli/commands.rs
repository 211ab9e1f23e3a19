//! Every command with its options and its help. One table, read by the parser, the help and the completion scripts.

use std::ffi::OsString;

use clap::builder::OsStringValueParser;
use clap::{Arg, ArgAction, Command, ValueHint, value_parser};

use super::argv::Options;

/// One command.
pub(super) struct Entry {
    /// As it is typed.
    pub name: &'static str,
    /// One line for the list of commands.
    pub about: &'static str,
    /// Where its options end.
    pub options: Options,
    /// Adds the options.
    define: fn(Command) -> Command,
    /// Lines below the options.
    examples: &'static str,
}

impl Entry {
    const fn new(name: &'static str, about: &'static str, define: fn(Command) -> Command) -> Self {
        Self { name, about, options: Options::Mixed, define, examples: "" }
    }

    const fn options_first(self) -> Self {
        Self { options: Options::First, ..self }
    }

    const fn examples(self, examples: &'static str) -> Self {
        Self { examples, ..self }
    }

    /// Whether it takes the ID of a container that exists.
    pub fn takes_id(&self) -> bool {
        let known =
            |arg: &Arg| arg.get_id() == "id" && arg.get_help().is_some_and(|help| help.to_string() == ID);
        self.command().get_arguments().any(known)
    }

    /// The clap command, without any other one.
    pub fn command(&self) -> Command {
        let command = Command::new(self.name)
            .bin_name(["berth ", self.name].concat())
            .about(self.about)
            .no_binary_name(true)
            .disable_help_flag(true)
            .args_override_self(true)
            .arg(help_flag());
        let command = (self.define)(command);
        if self.examples.is_empty() { command } else { command.after_help(self.examples) }
    }
}

/// The help of the argument that names a container.
pub(super) const ID: &str = "The container's ID";

/// The commands in the order and the groups of the help.
pub(super) const GROUPS: &[(&str, &[Entry])] = &[
    (
        "Containers",
        &[
            Entry::new("run", "Create and start a container, and wait for its end", run).examples(
                "Examples:\n  berth run web                      the bundle is the current directory\n  \
                 berth run --bundle /srv/web web\n  \
                 berth run --detach --pid-file web.pid web",
            ),
            Entry::new("create", "Create a container from a bundle, without starting it", create)
                .examples("Examples:\n  berth create --bundle /srv/web web && berth start web"),
            Entry::new("start", "Start a created container", only_id),
            Entry::new("exec", "Run a further command in a container", exec).options_first().examples(
                "Examples:\n  berth exec web ls -l /\n  berth exec --tty web sh\n  \
                 berth exec --user 1000:1000 --env LANG=C web id",
            ),
            Entry::new("kill", "Send a signal to a container", kill).examples(
                "Examples:\n  berth kill web\n  berth kill web KILL               or 9, SIGKILL, kill",
            ),
            Entry::new("pause", "Freeze every process of a container", only_id),
            Entry::new("resume", "Let a paused container go on", only_id),
            Entry::new("delete", "Remove a container that has ended", delete).examples(
                "Examples:\n  berth delete web\n  berth delete --force web           kill it first",
            ),
        ],
    ),
    (
        "What is there",
        &[
            Entry::new("list", "List the containers", list)
                .examples("Examples:\n  berth list\n  berth list --quiet | xargs -rn1 berth delete --force"),
            Entry::new("state", "Print a container's state as JSON", only_id),
            Entry::new("ps", "List a container's processes", ps).options_first().examples(
                "Examples:\n  berth ps web\n  berth ps web -o pid,ppid,args      any options of ps(1)",
            ),
        ],
    ),
    (
        "Bundles",
        &[
            Entry::new("spec", "Write a config.json to begin with", spec)
                .examples("Examples:\n  mkdir -p web/rootfs && berth spec --bundle web"),
            Entry::new("check", "Say everything that is wrong with a bundle", check).examples(
                "Examples:\n  berth check --bundle /srv/web\n  \
                 berth check --plan                 what create would do here, step by step",
            ),
        ],
    ),
    (
        "About berth",
        &[
            Entry::new(
                "features",
                "Print what berth supports, as the runtime-spec's JSON",
                std::convert::identity,
            ),
            Entry::new("completion", "Print a shell's completion script", completion)
                .examples("Examples:\n  berth completion bash > /etc/bash_completion.d/berth"),
        ],
    ),
];

/// Every command, in the order of the help.
pub(super) fn entries() -> impl Iterator<Item = &'static Entry> {
    GROUPS.iter().flat_map(|(_, entries)| entries.iter())
}

/// The options before the command.
pub(super) fn globals() -> Command {
    Command::new("berth")
        .bin_name("berth")
        .no_binary_name(true)
        .disable_help_flag(true)
        .disable_version_flag(true)
        .args_override_self(true)
        .arg(path("root", "DIR", "Where the containers' state is kept [default: /run/berth]"))
        .arg(path("log", "FILE", "Log to FILE, journald: or syslog: [default: stderr]"))
        .arg(choice("log-format", "text|json", "text|json", "How log lines are written [default: text]"))
        .arg(choice(
            "log-level",
            "LEVEL",
            "error|warn|warning|info|debug",
            "Log this and what is graver: error, warning, info, debug",
        ))
        .arg(flag("debug", "Log everything"))
        .arg(flag("systemd-cgroup", "Let systemd make the cgroup; cgroupsPath is slice:prefix:name"))
        .arg(choice(
            "cgroup-manager",
            "WHO",
            "cgroupfs|systemd|disabled",
            "Who makes the cgroup: cgroupfs (default), systemd, disabled",
        ))
        .arg(
            value("rootless", "WHEN", "Go on without rights over cgroups: true, false, auto [default: auto]")
                .value_parser(value_parser!(OsString)),
        )
        .arg(help_flag())
        .arg(flag("version", "Print the version").short('v'))
}

/// Everything at once, for the completion scripts.
pub(super) fn tree() -> Command {
    globals().no_binary_name(false).subcommands(entries().map(|entry| entry.command().no_binary_name(false)))
}

/// The help of `berth` itself.
pub(super) fn overview() -> String {
    let mut text = String::from(
        "berth runs containers from OCI bundles: a directory with a config.json and a root file system.\n\n\
         Usage: berth [OPTIONS] COMMAND [ARGS]...\n",
    );
    for (title, entries) in GROUPS {
        text.push_str(&format!("\n{title}:\n"));
        for entry in *entries {
            text.push_str(&format!("  {:<11} {}\n", entry.name, entry.about));
        }
    }
    text.push_str("\nOptions:\n");
    let options = globals().help_template("{options}").render_help().to_string();
    text.push_str(options.trim_end());
    text.push_str(
        "\n\nExamples:\n  mkdir -p web/rootfs && berth spec --bundle web\n  \
         berth check --bundle web --plan\n  sudo berth run --bundle web web\n\n\
         \"berth COMMAND --help\" tells more about a command.\n",
    );
    text
}

fn only_id(command: Command) -> Command {
    command.arg(id())
}

fn run(command: Command) -> Command {
    common_create(command)
        .arg(flag("detach", "Return once the process runs").short('d'))
        .arg(flag("keep", "Keep the container after its end, until delete"))
        .arg(flag("no-subreaper", "Do not adopt the orphans of the container"))
}

fn create(command: Command) -> Command {
    // crun knows the flag here too; create leaves nothing behind that could be adopted.
    common_create(command).arg(flag("no-subreaper", "Without effect").hide(true))
}

fn common_create(command: Command) -> Command {
    command
        .arg(id().help("A name for the new container"))
        .arg(bundle())
        .arg(config().short('f'))
        .arg(pid_file())
        .arg(console_socket())
        .arg(pidfd_socket())
        .arg(preserve_fds("Pass N more descriptors, after those of LISTEN_FDS"))
        .arg(flag("no-pivot", "Move the root instead of pivot_root(2), for a ramdisk host"))
        .arg(flag("no-new-keyring", "Keep the caller's session keyring"))
}

fn exec(command: Command) -> Command {
    command
        .arg(id())
        .arg(
            Arg::new("command")
                .value_name("COMMAND")
                .num_args(0..)
                .value_parser(value_parser!(OsString))
                .value_hint(ValueHint::Other)
                .help("The command and its arguments"),
        )
        .arg(flag("tty", "Give the process a terminal").short('t'))
        .arg(flag("detach", "Return once the process runs").short('d'))
        .arg(value("user", "UID[:GID]", "Run as this user").short('u'))
        .arg(
            list_of("additional-gids", "GID", "A further group; may be repeated")
                .short('g')
                .value_parser(value_parser!(u32)),
        )
        .arg(path("cwd", "DIR", "The working directory in the container"))
        .arg(
            list_of("env", "NAME=VALUE", "Set an environment variable; may be repeated")
                .short('e')
                .value_parser(value_parser!(OsString)),
        )
        .arg(list_of("cap", "CAP", "Add a capability; may be repeated").short('c'))
        .arg(flag("no-new-privs", "The process cannot gain privileges"))
        .arg(value("process-label", "LABEL", "The SELinux label"))
        .arg(value("apparmor", "PROFILE", "The AppArmor profile"))
        .arg(list_of(
            "cgroup",
            "[CTRL:]PATH",
            "Run in an existing cgroup below the container's; may be repeated",
        ))
        .arg(
            path("process", "FILE", "Read the process from a JSON file instead of these options")
                .short('p')
                .value_hint(ValueHint::FilePath),
        )
        .arg(pid_file())
        .arg(console_socket())
        .arg(pidfd_socket())
        .arg(preserve_fds("Pass N more descriptors, after standard error"))
        .arg(flag("ignore-paused", "Do not refuse a paused container"))
        .arg(flag("no-subreaper", "Do not adopt the orphans of the process").hide(true))
}

fn kill(command: Command) -> Command {
    command
        .arg(id())
        .arg(
            Arg::new("signal")
                .value_name("SIGNAL")
                .value_hint(ValueHint::Other)
                .help("Number or name [default: TERM]"),
        )
        .arg(flag("all", "Signal every process; a container that has ended is no error").short('a'))
}

fn delete(command: Command) -> Command {
    command
        .arg(id())
        .arg(flag("force", "Kill it if it runs; a container that does not exist is no error").short('f'))
}

fn list(command: Command) -> Command {
    command
        .arg(choice("format", "table|json", "table|json", "How to print [default: table]").short('f'))
        .arg(flag("quiet", "Only the IDs").short('q'))
}

fn ps(command: Command) -> Command {
    command
        .arg(choice("format", "table|json", "table|json", "How to print [default: table]").short('f'))
        .arg(id())
        .arg(
            Arg::new("args")
                .value_name("ARGS")
                .num_args(0..)
                .value_parser(value_parser!(OsString))
                .value_hint(ValueHint::Other)
                .help("Options of ps(1) [default: -ef]"),
        )
}

fn spec(command: Command) -> Command {
    command.arg(bundle()).arg(flag("rootless", "For a user without root's rights"))
}

fn check(command: Command) -> Command {
    command
        .arg(bundle())
        .arg(config())
        .arg(flag("plan", "Also print what create would do on this host, without doing it"))
        .arg(choice("format", "text|json", "text|json", "How to print [default: text]").short('f'))
}

fn completion(command: Command) -> Command {
    command.arg(
        Arg::new("shell")
            .value_name("SHELL")
            .required(true)
            .value_parser(["bash", "zsh", "fish"])
            .hide_possible_values(true)
            .help("bash, zsh or fish"),
    )
}

fn id() -> Arg {
    Arg::new("id").value_name("ID").required(true).value_hint(ValueHint::Other).help(ID)
}

fn bundle() -> Arg {
    path("bundle", "DIR", "The bundle's directory [default: .]").short('b').value_hint(ValueHint::DirPath)
}

fn config() -> Arg {
    path("config", "FILE", "Read FILE instead of the bundle's config.json")
}

fn pid_file() -> Arg {
    path("pid-file", "FILE", "Write the process id to FILE")
}

fn console_socket() -> Arg {
    path("console-socket", "SOCKET", "Send the terminal's master side to this socket")
}

fn pidfd_socket() -> Arg {
    path("pidfd-socket", "SOCKET", "Send a pidfd of the process to this socket")
}

fn preserve_fds(help: &'static str) -> Arg {
    value("preserve-fds", "N", help).value_parser(value_parser!(u32))
}

fn help_flag() -> Arg {
    flag("help", "Print this help").short('h').display_order(1000)
}

fn flag(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).help(help).action(ArgAction::SetTrue)
}

fn value(name: &'static str, value_name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).value_name(value_name).help(help).action(ArgAction::Set)
}

fn path(name: &'static str, value_name: &'static str, help: &'static str) -> Arg {
    value(name, value_name, help).value_parser(OsStringValueParser::new()).value_hint(ValueHint::AnyPath)
}

fn list_of(name: &'static str, value_name: &'static str, help: &'static str) -> Arg {
    value(name, value_name, help).action(ArgAction::Append)
}

/// One of a few words, parted by `|`. They are in the help's text, or they are the value's name.
fn choice(name: &'static str, value_name: &'static str, choices: &'static str, help: &'static str) -> Arg {
    let choices = choices.split('|').collect::<Vec<_>>();
    value(name, value_name, help).value_parser(choices).hide_possible_values(true)
}
