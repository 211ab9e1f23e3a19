//! The command line: an argument vector becomes one operation, or a [`Stop`] that says what to print.
//!
//! It is runc's command line, with crun's extras and a few commands of our own. [`commands`] is the table, [`argv`]
//! takes the vector apart by it as Go programs do, [`read`] turns the parts into [`crate::options`].

mod argv;
mod commands;
mod completion;
#[cfg(test)]
mod engines;
mod read;

use std::ffi::{OsStr, OsString};

use anyhow::anyhow;
use clap::error::ContextKind;

pub use completion::completion;

use crate::error::hinted;
use crate::options::{GlobalOptions, Invocation, Operation, check_root};
use argv::Argv;
use commands::{Entry, GLOBAL};

/// The exit code for a command that does not exist, as runc has it.
const UNKNOWN_COMMAND: u8 = 3;

/// The process ends without an operation: help, the version, or a command line that is wrong.
#[derive(Debug)]
pub struct Stop {
    /// For standard output; may be empty.
    pub output: String,
    /// For the log and standard error: the usage error.
    pub error: Option<anyhow::Error>,
    /// The exit code.
    pub code: u8,
    /// The options before the command as far as they were understood: where to log the error.
    pub global: GlobalOptions,
}

impl Stop {
    fn answer(output: String) -> Self {
        Self { output, error: None, code: 0, global: GlobalOptions::default() }
    }

    fn usage(why: &str, help: &str) -> Self {
        let output = format!("Incorrect Usage. {why}\n\n{help}");
        Self { output, error: Some(anyhow!("{why}")), code: 1, global: GlobalOptions::default() }
    }

    fn error(error: anyhow::Error, code: u8) -> Self {
        Self { output: String::new(), error: Some(error), code, global: GlobalOptions::default() }
    }

    fn with(self, global: GlobalOptions) -> Self {
        Self { global, ..self }
    }
}

/// Understands an argument vector, whose first element is the program's name. Reads nothing else: no environment, no
/// files.
pub fn parse(args: impl Iterator<Item = OsString>) -> Result<Invocation, Box<Stop>> {
    let usage = |why: String| Box::new(Stop::usage(&why, &commands::overview()));
    let mut argv = argv::split(&GLOBAL, args.skip(1)).map_err(usage)?;
    if argv.flag("help") == Some(true) {
        return Err(Box::new(Stop::answer(commands::overview())));
    }
    check_options(&GLOBAL, &argv).map_err(usage)?;
    if argv.flag("version") == Some(true) {
        return Err(Box::new(Stop::answer(version())));
    }
    let global = read::globals(&mut argv).map_err(usage)?;
    if let Some(root) = &global.root {
        check_root(root).map_err(|error| Box::new(Stop::error(error, 1).with(global.clone())))?;
    }
    let mut rest = argv.arguments.into_iter();
    let Some(name) = rest.next() else { return Err(Box::new(Stop::answer(commands::overview()))) };
    match operation(&name, rest) {
        Ok(operation) => Ok(Invocation { global, operation }),
        Err(stop) => Err(Box::new(stop.with(global))),
    }
}

/// The text of `--version`. Engines take its first line apart, and no other line may hold the word "version".
pub fn version() -> String {
    let seccomp = libseccomp::ScmpVersion::current()
        .map_or_else(|_| "unknown".to_owned(), |v| format!("{}.{}.{}", v.major, v.minor, v.micro));
    format!(
        "berth version {}\ncommit: {}\nspec: {}\nlibseccomp: {seccomp}\n",
        env!("CARGO_PKG_VERSION"),
        option_env!("BERTH_COMMIT").unwrap_or("unknown"),
        crate::spec::VERSION,
    )
}

/// Understands the arguments of one command.
fn operation(name: &OsStr, args: impl Iterator<Item = OsString>) -> Result<Operation, Stop> {
    let mut args = args;
    if name == "help" {
        return Err(help_of(args.next()));
    }
    let entry = entry(name)?;
    let usage = |why: String| Stop::usage(&why, &help(entry));
    let argv = argv::split(entry, args).map_err(usage)?;
    if argv.flag("help") == Some(true) {
        return Err(Stop::answer(help(entry)));
    }
    check_options(entry, &argv).map_err(usage)?;
    argv.check_arguments(entry).map_err(usage)?;
    read::operation(entry.name, argv).map_err(usage)
}

/// Fails on an option that does not exist, and asks clap which one may have been meant.
fn check_options(entry: &Entry, argv: &Argv) -> Result<(), String> {
    let Some(unknown) = &argv.unknown else { return Ok(()) };
    let error = entry.command().no_binary_name(true).try_get_matches_from([unknown]).err();
    let tip = error.as_ref().and_then(|error| error.get(ContextKind::SuggestedArg));
    let tip = tip.map(|meant| format!("; was {meant} meant?")).unwrap_or_default();
    Err(format!("unknown option {}{tip}", unknown.to_string_lossy()))
}

/// The table's line of a command.
fn entry(name: &OsStr) -> Result<&'static Entry, Stop> {
    commands::entries().find(|entry| name == entry.name).ok_or_else(|| {
        let why = format!("unknown command {:?}", name.to_string_lossy());
        Stop::error(hinted(why, "\"berth help\" lists the commands"), UNKNOWN_COMMAND)
    })
}

fn help(entry: &Entry) -> String {
    entry.command().render_help().to_string()
}

fn help_of(name: Option<OsString>) -> Stop {
    match name.as_deref().map(entry) {
        None => Stop::answer(commands::overview()),
        Some(Ok(entry)) => Stop::answer(help(entry)),
        Some(Err(stop)) => stop,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stop(line: &str) -> Stop {
        let args = std::iter::once("berth").chain(line.split_whitespace()).map(OsString::from);
        *parse(args).expect_err(line)
    }

    #[test]
    fn help_and_the_absence_of_a_command_are_answers() {
        for line in ["", "--help", "-h", "-help", "help", "--debug", "--help state", "--root /x help"] {
            let stop = stop(line);
            assert_eq!(stop.code, 0, "{line}");
            assert!(stop.output.contains("Usage: berth [OPTIONS] COMMAND"), "{line}: {}", stop.output);
            assert!(stop.error.is_none(), "{line}");
        }
        for line in ["exec --help", "exec -h", "help exec"] {
            assert!(stop(line).output.contains("Usage: berth exec [OPTIONS] <ID> [COMMAND]"), "{line}");
        }
        assert!(stop("state web -h").output.contains("Usage: berth state"));
    }

    #[test]
    fn the_first_line_of_the_version_alone_says_version() {
        for line in ["--version", "-v", "--debug --version list"] {
            let output = stop(line).output;
            assert_eq!(output.lines().next(), Some(concat!("berth version ", env!("CARGO_PKG_VERSION"))));
            assert_eq!(output.lines().filter(|line| line.contains("version")).count(), 1, "{output}");
            assert!(output.lines().any(|line| line == "spec: 1.3.0"), "{output}");
            assert!(output.lines().any(|line| line.starts_with("commit: ")), "{output}");
        }
    }

    #[test]
    fn usage_errors_say_why_and_show_the_help() {
        let table = [
            ("--nosuch", "--nosuch"),
            ("-bundle", "--bundle"),
            ("--root", "flag needs an argument: --root"),
            ("--debug=maybe list", "\"maybe\""),
            ("--log-format xml list", "\"xml\""),
            ("--log-level loud list", "\"loud\""),
            ("--rootless=perhaps list", "\"perhaps\""),
            ("state", "<ID>"),
            ("state a b", "\"b\""),
            ("state --nosuch a", "--nosuch"),
            ("state a --nosuch", "--nosuch"),
            ("create --bundle", "flag needs an argument: --bundle"),
            ("create a --pid-file", "flag needs an argument: --pid-file"),
            ("run --preserve-fds x a", "\"x\""),
            ("run --preserve-fds -1 a", "\"-1\""),
            ("run --bundel x a", "was --bundle meant"),
            ("list -f xml", "\"xml\""),
            ("features x", "\"x\""),
            ("kill", "<ID>"),
            ("kill web BOGUS", "\"BOGUS\""),
            ("exec web", "needs a command"),
            ("exec --process f web ls", "not both"),
            ("exec -g -3 web ls", "\"-3\""),
            ("completion tcsh", "\"tcsh\""),
            ("delete --force", "<ID>"),
            ("update --memory lots web", "\"lots\""),
            ("update --cpu-quota 1.5 web", "\"1.5\""),
            ("update --pids-limit", "flag needs an argument"),
        ];
        for (line, why) in table {
            let stop = stop(line);
            let error = crate::error::text(stop.error.as_ref().expect(line));
            assert_eq!(stop.code, 1, "{line}");
            assert!(error.contains(why), "{line}: {error}");
            assert!(!error.contains('\n'), "{line}: {error}");
            assert!(stop.output.starts_with("Incorrect Usage. "), "{line}");
            assert!(stop.output.contains("Usage: berth"), "{line}");
        }
    }

    #[test]
    fn an_unknown_command_is_told_by_its_own_exit_code() {
        for line in ["nosuch", "--debug migrate", "help nosuch"] {
            let stop = stop(line);
            assert_eq!((stop.code, stop.output.as_str()), (3, ""), "{line}");
            let error = stop.error.expect(line);
            assert!(crate::error::text(&error).starts_with("unknown command"));
            assert!(crate::error::hint(&error).is_some());
        }
    }

    #[test]
    fn the_file_system_s_root_is_refused_and_the_error_can_be_logged() {
        let args = ["berth", "--log", "/l", "--root", "", "list"].map(OsString::from);
        let stop = parse(args.into_iter()).expect_err("empty root");
        assert_eq!((stop.code, stop.output.as_str()), (1, ""));
        assert!(stop.global.log.is_some());
        assert_eq!(self::stop("--root / list").code, 1);
        assert!(self::stop("--log /l state").global.log.is_some());
    }

    #[test]
    fn help_fits_a_terminal() {
        let texts = commands::entries().map(help).chain([commands::overview()]);
        for text in texts {
            for line in text.lines() {
                assert!(line.chars().count() <= 100, "{line}");
            }
        }
    }

    #[test]
    fn every_command_is_read() {
        for entry in commands::entries() {
            entry.command().debug_assert();
            let args: &[&str] = match entry.name {
                "list" | "spec" | "features" | "check" => &[],
                "exec" => &["web", "true"],
                "completion" => &["bash"],
                _ => &["web"],
            };
            let args = args.iter().map(OsString::from);
            assert!(operation(OsStr::new(entry.name), args).is_ok(), "{}", entry.name);
        }
    }

    #[test]
    fn every_word_that_shells_complete_is_understood() {
        let understood = |line: &[&str]| parse(line.iter().map(OsString::from)).is_ok();
        for (option, words) in &GLOBAL.words() {
            for word in *words {
                assert!(understood(&["berth", option, word, "list"]), "{option} {word}");
            }
        }
        for entry in commands::entries() {
            for (option, words) in &entry.words() {
                for word in *words {
                    let line = ["berth", entry.name, option, word, "web"];
                    let arguments = line.len() - usize::from(entry.arguments.is_empty());
                    assert!(understood(&line[..arguments]), "{line:?}");
                }
            }
        }
        commands::tree().debug_assert();
    }

    #[test]
    fn bytes_that_are_not_utf8_pass_in_paths_and_commands() {
        use std::os::unix::ffi::OsStringExt;
        let odd = OsString::from_vec(b"/b\xff".to_vec());
        let mut joined = OsString::from("--bundle=");
        joined.push(&odd);
        let parsed = parse(["berth".into(), "run".into(), joined, "web".into()].into_iter()).unwrap();
        assert!(matches!(parsed.operation, Operation::Run(run) if run.create.bundle == *odd));
        let parsed = parse(["berth".into(), "exec".into(), "web".into(), odd.clone()].into_iter()).unwrap();
        assert!(matches!(parsed.operation, Operation::Exec(exec) if exec.command == [odd.clone()]));
        assert!(parse(["berth".into(), "state".into(), odd].into_iter()).is_err());
    }
}
