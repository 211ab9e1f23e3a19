//! Every command with its options and its help: one table. Parsing reads it as it stands, because building clap's
//! commands from it costs more than all the rest of a `state`; help, completion and suggestions are clap's.

use clap::{Arg, ArgAction, Command, ValueHint};

/// Where options end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Options {
    /// Anywhere: `run web --detach`.
    Mixed,
    /// At the first positional argument; the rest is somebody else's: `exec web ls -l`.
    First,
}

/// One command.
#[derive(Debug)]
pub(super) struct Entry {
    /// As it is typed.
    pub name: &'static str,
    /// One line for the list of commands.
    pub about: &'static str,
    /// Where its options end.
    pub order: Options,
    /// What it takes, in order.
    pub arguments: &'static [Argument],
    /// The options, in groups that commands share.
    groups: &'static [&'static [Opt]],
    /// Lines below the options.
    examples: &'static str,
}

/// A positional argument.
#[derive(Debug, Clone, Copy)]
pub(super) struct Argument {
    /// As the help shows it.
    pub name: &'static str,
    help: &'static str,
    /// How often it stands.
    pub count: Count,
    /// What a shell completes.
    pub complete: Complete,
}

/// How often an argument stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Count {
    One,
    AtMostOne,
    /// Whatever is left.
    Rest,
}

/// What a shell completes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Complete {
    Nothing,
    /// The IDs of the containers that are there.
    Container,
    Words(&'static [&'static str]),
    Path,
    Directory,
}

/// An option.
#[derive(Debug, Clone, Copy)]
pub(super) struct Opt {
    /// The long name.
    pub long: &'static str,
    /// The short one.
    pub short: Option<char>,
    /// The value's name in the help; a flag has none.
    pub value: Option<&'static str>,
    help: &'static str,
    complete: Complete,
    repeated: bool,
    hidden: bool,
}

impl Opt {
    const fn flag(long: &'static str, help: &'static str) -> Self {
        let complete = Complete::Nothing;
        Self { long, short: None, value: None, help, complete, repeated: false, hidden: false }
    }

    const fn value(long: &'static str, value: &'static str, help: &'static str) -> Self {
        Self { value: Some(value), ..Self::flag(long, help) }
    }

    const fn path(long: &'static str, value: &'static str, help: &'static str) -> Self {
        Self { complete: Complete::Path, ..Self::value(long, value, help) }
    }

    const fn list(long: &'static str, value: &'static str, help: &'static str) -> Self {
        Self { repeated: true, ..Self::value(long, value, help) }
    }

    const fn words(self, words: &'static [&'static str]) -> Self {
        Self { complete: Complete::Words(words), ..self }
    }

    const fn short(self, letter: char) -> Self {
        Self { short: Some(letter), ..self }
    }

    const fn hidden(self) -> Self {
        Self { hidden: true, ..self }
    }

    fn arg(&self) -> Arg {
        let arg = Arg::new(self.long).long(self.long).help(self.help).hide(self.hidden);
        let arg = match self.short {
            Some(letter) => arg.short(letter),
            None => arg,
        };
        match self.value {
            None => arg.action(ArgAction::SetTrue),
            Some(name) => {
                let action = if self.repeated { ArgAction::Append } else { ArgAction::Set };
                completed(arg.value_name(name).action(action), self.complete)
            }
        }
    }
}

impl Argument {
    fn arg(&self) -> Arg {
        let arg = Arg::new(self.name).value_name(self.name).help(self.help);
        let arg = match self.count {
            Count::One => arg.required(true),
            Count::AtMostOne => arg,
            Count::Rest => arg.num_args(0..),
        };
        completed(arg, self.complete)
    }
}

fn completed(arg: Arg, complete: Complete) -> Arg {
    match complete {
        Complete::Nothing | Complete::Container => arg.value_hint(ValueHint::Other),
        Complete::Words(words) => arg.value_parser(words.to_vec()).hide_possible_values(true),
        Complete::Path => arg.value_hint(ValueHint::AnyPath),
        Complete::Directory => arg.value_hint(ValueHint::DirPath),
    }
}

impl Entry {
    const fn new(name: &'static str, about: &'static str) -> Self {
        Self { name, about, order: Options::Mixed, arguments: &[], groups: &[], examples: "" }
    }

    const fn options(self, groups: &'static [&'static [Opt]]) -> Self {
        Self { groups, ..self }
    }

    const fn arguments(self, arguments: &'static [Argument]) -> Self {
        Self { arguments, ..self }
    }

    /// Its options end at the first argument.
    const fn options_first(self) -> Self {
        Self { order: Options::First, ..self }
    }

    const fn examples(self, examples: &'static str) -> Self {
        Self { examples, ..self }
    }

    /// The option of that long name or letter.
    pub fn option(&self, name: &str) -> Option<&'static Opt> {
        let letter = name.chars().next().filter(|letter| letter.len_utf8() == name.len());
        let known = |opt: &&Opt| opt.long == name || (letter.is_some() && opt.short == letter);
        self.groups.iter().flat_map(|group| group.iter()).find(known).or(Some(&HELP).filter(known))
    }

    /// Whether it takes the ID of a container that exists.
    pub fn takes_container(&self) -> bool {
        self.arguments.iter().any(|argument| argument.complete == Complete::Container)
    }

    /// The options whose values are a few words, and the words.
    #[cfg(test)]
    pub fn words(&self) -> Vec<(String, &'static [&'static str])> {
        let options = self.groups.iter().flat_map(|group| group.iter());
        let words = options.filter_map(|option| match option.complete {
            Complete::Words(words) => Some((format!("--{}", option.long), words)),
            _ => None,
        });
        words.collect()
    }

    /// The clap command, without any other one.
    pub fn command(&self) -> Command {
        let options = self.groups.iter().flat_map(|group| group.iter()).chain([&HELP]).map(Opt::arg);
        let bin_name = if self.name == GLOBAL.name { String::new() } else { format!(" {}", self.name) };
        let command = Command::new(self.name)
            .bin_name(format!("{}{bin_name}", GLOBAL.name))
            .about(self.about)
            .disable_help_flag(true)
            .disable_version_flag(true)
            .disable_help_subcommand(true)
            .args(options)
            .args(self.arguments.iter().map(Argument::arg));
        if self.examples.is_empty() { command } else { command.after_help(self.examples) }
    }
}

/// The options before the command.
pub(super) static GLOBAL: Entry =
    Entry::new("berth", "An OCI container runtime").options_first().options(&[&[
        Opt::path("root", "DIR", "Where the containers' state is kept [default: /run/berth]"),
        Opt::path("log", "FILE", "Log to FILE, journald: or syslog: [default: stderr]"),
        Opt::value("log-format", "text|json", "How log lines are written [default: text]")
            .words(&["text", "json"]),
        Opt::value("log-level", "LEVEL", "Log this and what is graver: error, warning, info, debug")
            .words(&["error", "warning", "warn", "info", "debug"]),
        Opt::flag("debug", "Log everything"),
        Opt::flag("systemd-cgroup", "Let systemd make the cgroup; cgroupsPath is slice:prefix:name"),
        Opt::value("cgroup-manager", "WHO", "Who makes the cgroup: cgroupfs (default), systemd, disabled")
            .words(&["cgroupfs", "systemd", "disabled"]),
        Opt::value(
            "rootless",
            "WHEN",
            "Go on without rights over cgroups: true, false, auto [default: auto]",
        )
        .words(&["true", "false", "auto"]),
        Opt::flag("version", "Print the version").short('v'),
    ]]);

const HELP: Opt = Opt::flag("help", "Print this help").short('h');

const CONTAINER: Argument =
    Argument { name: "ID", help: "The container's ID", count: Count::One, complete: Complete::Container };

const CONTAINERS: Argument = Argument {
    name: "ID",
    help: "The containers' IDs [default: all]",
    count: Count::Rest,
    complete: Complete::Container,
};

const NEW_CONTAINER: Argument = Argument {
    name: "ID",
    help: "A name for the new container",
    count: Count::One,
    complete: Complete::Nothing,
};

const SIGNAL: Argument = Argument {
    name: "SIGNAL",
    help: "Number or name [default: TERM]",
    count: Count::AtMostOne,
    complete: Complete::Nothing,
};

const COMMAND: Argument = Argument {
    name: "COMMAND",
    help: "The command and its arguments",
    count: Count::Rest,
    complete: Complete::Nothing,
};

const PS_ARGS: Argument = Argument {
    name: "ARGS",
    help: "Options of ps(1) [default: -ef]",
    count: Count::Rest,
    complete: Complete::Nothing,
};

const SHELL: Argument = Argument {
    name: "SHELL",
    help: "bash, zsh or fish",
    count: Count::One,
    complete: Complete::Words(&["bash", "zsh", "fish"]),
};

const BUNDLE: &[Opt] = &[Opt {
    complete: Complete::Directory,
    ..Opt::value("bundle", "DIR", "The bundle's directory [default: .]").short('b')
}];

const CONFIG: Opt = Opt::path("config", "FILE", "Read FILE instead of the bundle's config.json");
const CONSOLE_SOCKET: Opt =
    Opt::path("console-socket", "SOCKET", "Send the terminal's master side to this socket");
const DETACH: Opt = Opt::flag("detach", "Return once the process runs").short('d');
const NO_SUBREAPER: Opt = Opt::flag("no-subreaper", "Do not adopt the orphans of the container");
const PIDFD_SOCKET: Opt = Opt::path("pidfd-socket", "SOCKET", "Send a pidfd of the process to this socket");
const PID_FILE: Opt = Opt::path("pid-file", "FILE", "Write the process id to FILE");

const USERNS: Opt =
    Opt::value("userns", "auto", "Give an ordinary user's bundle a user namespace if it has none")
        .words(&["auto"]);

const CREATE: &[Opt] = &[
    CONFIG.short('f'),
    PID_FILE,
    CONSOLE_SOCKET,
    PIDFD_SOCKET,
    Opt::value("preserve-fds", "N", "Pass N more descriptors, after those of LISTEN_FDS"),
    USERNS,
    Opt::flag("no-pivot", "Move the root instead of pivot_root(2), for a root in RAM"),
    Opt::flag("no-new-keyring", "Keep the caller's session keyring"),
];

const RUN: &[Opt] =
    &[DETACH, Opt::flag("keep", "Keep the container after its end, until delete"), NO_SUBREAPER];

const EXEC: &[Opt] = &[
    Opt::flag("tty", "Give the process a terminal").short('t'),
    DETACH,
    Opt::value("user", "UID[:GID]", "Run as this user").short('u'),
    Opt::list("additional-gids", "GID", "A further group; may be repeated").short('g'),
    Opt::value("cwd", "DIR", "The working directory in the container"),
    Opt::list("env", "NAME=VALUE", "Set an environment variable; may be repeated").short('e'),
    Opt::list("cap", "CAP", "Add a capability; may be repeated").short('c'),
    Opt::flag("no-new-privs", "The process cannot gain privileges"),
    Opt::value("process-label", "LABEL", "The SELinux label"),
    Opt::value("apparmor", "PROFILE", "The AppArmor profile"),
    Opt::list("cgroup", "[CTRL:]PATH", "Run in an existing cgroup below the container's; may be repeated"),
    Opt::path("process", "FILE", "Read the process from a JSON file instead of these options").short('p'),
    PID_FILE,
    CONSOLE_SOCKET,
    PIDFD_SOCKET,
    Opt::value("preserve-fds", "N", "Pass N more descriptors, after standard error"),
    Opt::flag("ignore-paused", "Do not refuse a paused container"),
    NO_SUBREAPER.hidden(),
];

const UPDATE: &[Opt] = &[
    Opt::path("resources", "FILE", "Read linux.resources from JSON, - for stdin, and no other option")
        .short('r'),
    Opt::value("memory", "BYTES", "Limit of memory: 512M, 1GiB, -1 for none"),
    Opt::value("memory-swap", "BYTES", "Limit of memory and swap together, -1 for none"),
    Opt::value("memory-reservation", "BYTES", "Memory that is left to it when memory is short"),
    Opt::value("cpu-quota", "USEC", "CPU time in each period, -1 for no limit"),
    Opt::value("cpu-period", "USEC", "Length of a period"),
    Opt::value("cpu-burst", "USEC", "CPU time that may be saved up for later periods"),
    Opt::value("cpu-share", "SHARES", "Share of the CPU against others: 2 to 262144"),
    Opt::value("cpu-idle", "0|1", "1: run only when nobody else wants to").words(&["0", "1"]),
    Opt::value("cpu-rt-period", "USEC", "Length of a period for realtime processes (cgroup v1)"),
    Opt::value("cpu-rt-runtime", "USEC", "CPU time of realtime processes in each (cgroup v1)"),
    Opt::value("cpuset-cpus", "LIST", "The CPUs to run on: 0-3,7"),
    Opt::value("cpuset-mems", "LIST", "The memory nodes to use"),
    Opt::value("blkio-weight", "WEIGHT", "Share of block devices against others, 10 to 1000"),
    Opt::value("pids-limit", "COUNT", "Limit of processes and threads, -1 for none"),
    Opt::value("l3-cache-schema", "TEXT", "Intel RDT: schema of the L3 cache, L3:0=f"),
    Opt::value("mem-bw-schema", "TEXT", "Intel RDT: schema of the memory bandwidth, MB:0=20"),
    Opt::value("kernel-memory", "BYTES", "Not applied; kernels have dropped it").hidden(),
    Opt::value("kernel-memory-tcp", "BYTES", "Limit of the buffers of TCP (cgroup v1)").hidden(),
];

/// What `checkpoint` and `restore` have in common.
const CRIU: &[Opt] = &[
    Opt {
        complete: Complete::Directory,
        ..Opt::value("image-path", "DIR", "The images' directory [default: ./checkpoint]")
    },
    Opt {
        complete: Complete::Directory,
        ..Opt::value("work-path", "DIR", "For CRIU's log and sockets [default: the images' directory]")
    },
    Opt::flag("tcp-established", "Allow established TCP connections"),
    Opt::flag("ext-unix-sk", "Allow Unix sockets that are connected to the outside"),
    Opt::flag("shell-job", "Allow a container on the caller's own terminal"),
    Opt::flag("file-locks", "Allow file locks"),
    Opt::flag("lazy-pages", "Leave memory to a page server until it is needed"),
    Opt::flag("auto-dedup", "Free the memory in earlier images that is in later ones"),
    Opt::value("manage-cgroups-mode", "MODE", "How cgroups are kept: soft (default), full, strict, ignore")
        .words(&["soft", "full", "strict", "ignore"]),
    Opt::value("empty-ns", "network", "Leave what is in the network namespace alone").words(&["network"]),
    Opt::value("network-lock", "HOW", "Keep packets back meanwhile: iptables (default), nftables, skip")
        .words(&["iptables", "nftables", "skip"]),
];

const CHECKPOINT: &[Opt] = &[
    Opt::flag("leave-running", "Let the container go on; without it, it ends and is deleted"),
    Opt::flag("pre-dump", "Save memory alone, and let the container go on"),
    Opt::value("parent-path", "DIR", "Earlier images, relative to these: save what has changed since"),
    Opt::flag("tcp-skip-in-flight", "Leave out TCP connections that are being made"),
    Opt::flag("link-remap", "Allow files that are open and have no name any more"),
    Opt::value("page-server", "ADDRESS:PORT", "Send memory to the page server that is there"),
    Opt::value("status-fd", "FD", "With --lazy-pages: write a zero byte once it can be fetched"),
];

const RESTORE: &[Opt] = &[
    DETACH,
    PID_FILE,
    CONSOLE_SOCKET,
    PIDFD_SOCKET,
    NO_SUBREAPER,
    Opt::flag("no-new-keyring", "Keep the caller's session keyring"),
    Opt::flag("tcp-close", "Close TCP connections that were established"),
    Opt::value("lsm-profile", "TYPE:LABEL", "Label in place of the saved one, as selinux:LABEL"),
    Opt::value("lsm-mount-context", "CONTEXT", "SELinux context of mounts in place of the saved one"),
    Opt::flag("no-pivot", "Not applied: CRIU has its own way").hidden(),
    Opt::value("preserve-fds", "N", "Not applied: open files are in the images").hidden(),
];

const LISTING_FORMAT: Opt =
    Opt::value("format", "table|json", "How to print [default: table]").short('f').words(&["table", "json"]);

const CHECK: &[Opt] = &[
    CONFIG,
    USERNS,
    Opt::flag("plan", "Also print what create would do on this host, without doing it"),
    Opt::value("format", "text|json", "How to print [default: text]").short('f').words(&["text", "json"]),
];

/// The commands in the order and the groups of the help.
pub(super) static COMMANDS: &[(&str, &[Entry])] = &[
    (
        "Containers",
        &[
            Entry::new("run", "Create and start a container, and wait for its end")
                .arguments(&[NEW_CONTAINER])
                .options(&[BUNDLE, CREATE, RUN])
                .examples(
                    "Examples:\n  berth run web                      the bundle is the current directory\n  \
                     berth run --bundle /srv/web web\n  berth run --detach --pid-file web.pid web",
                ),
            // crun knows --no-subreaper for create too, which leaves nothing behind that could be adopted.
            Entry::new("create", "Create a container from a bundle, without starting it")
                .arguments(&[NEW_CONTAINER])
                .options(&[BUNDLE, CREATE, &[NO_SUBREAPER.hidden()]])
                .examples("Examples:\n  berth create --bundle /srv/web web && berth start web"),
            Entry::new("start", "Start a created container").arguments(&[CONTAINER]),
            Entry::new("exec", "Run a further command in a container")
                .arguments(&[CONTAINER, COMMAND])
                .options(&[EXEC])
                .options_first()
                .examples(
                    "Examples:\n  berth exec web ls -l /\n  berth exec --tty web sh\n  \
                     berth exec --user 1000:1000 --env LANG=C web id",
                ),
            Entry::new("kill", "Send a signal to a container")
                .arguments(&[CONTAINER, SIGNAL])
                .options(&[&[
                    Opt::flag("all", "Signal every process; one that has ended is no error").short('a')
                ]])
                .examples(
                    "Examples:\n  berth kill web\n  berth kill web KILL                or 9, SIGKILL, kill",
                ),
            Entry::new("pause", "Freeze every process of a container").arguments(&[CONTAINER]),
            Entry::new("resume", "Let a paused container go on").arguments(&[CONTAINER]),
            Entry::new("update", "Change a container's limits; what is not named stays")
                .arguments(&[CONTAINER])
                .options(&[UPDATE])
                .examples(
                    "Examples:\n  berth update --memory 512M web\n  \
                     berth update --cpu-quota 50000 --pids-limit 100 web\n  \
                     echo '{\"pids\":{\"limit\":-1}}' | berth update -r - web",
                ),
            Entry::new("checkpoint", "Save a container's processes to files, by CRIU, and end it")
                .arguments(&[CONTAINER])
                .options(&[CRIU, CHECKPOINT])
                .examples(
                    "Examples:\n  berth checkpoint --image-path /srv/web-1 web\n  \
                     berth checkpoint --leave-running web       saved in ./checkpoint, and it goes on",
                ),
            Entry::new("restore", "Let a saved container go on from where it was")
                .arguments(&[NEW_CONTAINER])
                .options(&[BUNDLE, CRIU, RESTORE])
                .examples(
                    "Examples:\n  berth restore --image-path /srv/web-1 --bundle /srv/web --detach web",
                ),
            Entry::new("delete", "Remove a container that has ended")
                .arguments(&[CONTAINER])
                .options(&[&[
                    Opt::flag("force", "Kill it if it runs; one that does not exist is no error").short('f')
                ]])
                .examples(
                    "Examples:\n  berth delete web\n  berth delete --force web           kill it first",
                ),
        ],
    ),
    (
        "What is there",
        &[
            Entry::new("list", "List the containers")
                .options(&[&[LISTING_FORMAT, Opt::flag("quiet", "Only the IDs").short('q')]])
                .examples("Examples:\n  berth list\n  berth list --quiet | xargs -rn1 berth delete --force"),
            Entry::new("state", "Print a container's state as JSON").arguments(&[CONTAINER]),
            Entry::new("ps", "List a container's processes")
                .arguments(&[CONTAINER, PS_ARGS])
                .options(&[&[LISTING_FORMAT]])
                .options_first()
                .examples(
                    "Examples:\n  berth ps web\n  berth ps web -o pid,ppid,args      any options of ps(1)",
                ),
            Entry::new("stats", "Show what containers use")
                .arguments(&[CONTAINERS])
                .options(&[&[
                    LISTING_FORMAT,
                    Opt::flag("no-stream", "Print once; so it does when the output is no terminal"),
                    Opt::value("interval", "TIME", "Between two readings, as 500ms or 2s [default: 1s]"),
                ]])
                .examples("Examples:\n  berth stats\n  berth stats --format json web | jq .memory"),
            Entry::new("events", "Print what a container uses as JSON lines, and kills for lack of memory")
                .arguments(&[CONTAINER])
                .options(&[&[
                    Opt::value("interval", "TIME", "Between two readings, as 500ms or 1m [default: 5s]"),
                    Opt::flag("stats", "Print one reading and end"),
                ]])
                .examples("Examples:\n  berth events --interval 1s web\n  berth events --stats web | jq .data.memory"),
        ],
    ),
    (
        "Bundles",
        &[
            Entry::new("spec", "Write a config.json to begin with")
                .options(&[BUNDLE, &[Opt::flag("rootless", "For a user without root's rights")]])
                .examples("Examples:\n  mkdir -p web/rootfs && berth spec --bundle web"),
            Entry::new("check", "Say everything that is wrong with a bundle")
                .options(&[BUNDLE, CHECK])
                .examples(
                    "Examples:\n  berth check --bundle /srv/web\n  \
                     berth check --plan                 what create would do here, step by step",
                ),
        ],
    ),
    (
        "About berth",
        &[
            Entry::new("features", "Print what berth supports, as the runtime-spec's JSON")
                .options(&[&[Opt::flag("host", "Also what this host can do, as the property \"host\"")]])
                .examples("Examples:\n  berth features --host | jq .host.cgroup"),
            Entry::new("completion", "Print a shell's completion script")
                .arguments(&[SHELL])
                .examples("Examples:\n  berth completion bash > /etc/bash_completion.d/berth"),
        ],
    ),
];

/// Every command, in the order of the help.
pub(super) fn entries() -> impl Iterator<Item = &'static Entry> {
    COMMANDS.iter().flat_map(|(_, entries)| entries.iter())
}

/// Everything at once, for the completion scripts.
pub(super) fn tree() -> Command {
    GLOBAL.command().subcommands(entries().map(Entry::command))
}

/// The help of `berth` itself.
pub(super) fn overview() -> String {
    let mut text = String::from(
        "berth runs containers from OCI bundles: a directory with a config.json and a root file system.\n\n\
         Usage: berth [OPTIONS] COMMAND [ARGS]...\n",
    );
    for (title, entries) in COMMANDS {
        text.push_str(&format!("\n{title}:\n"));
        for entry in *entries {
            text.push_str(&format!("  {:<11} {}\n", entry.name, entry.about));
        }
    }
    text.push_str("\nOptions:\n");
    let options = GLOBAL.command().help_template("{options}").render_help().to_string();
    text.push_str(options.trim_end());
    text.push_str(
        "\n\nExamples:\n  mkdir -p web/rootfs && berth spec --bundle web\n  \
         berth check --bundle web --plan\n  sudo berth run --bundle web web\n\n\
         \"berth COMMAND --help\" tells more about a command.\n",
    );
    text
}
