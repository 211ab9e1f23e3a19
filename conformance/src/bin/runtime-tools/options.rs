//! The command line.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

/// What `--help` prints.
pub const HELP: &str = "\
Runs the validation tests of opencontainers/runtime-tools on a runtime and prints what became of each.

usage: conformance/runtime-tools --tree DIR [OPTIONS] [FILTER]

  --tree DIR             the tree, in which `make runtimetest validation-executables` has been run
  --runtime PATH         the runtime (default: build/berth)
  --cgroup-view VIEW     the cgroups that the tests see: host (default), v1 or v2 alone
  --timeout SECONDS      the time limit of one test (default: 120)
  --expected FILE        the known failures (default: conformance/expected/runtime-tools)
  --format FORMAT        table (default), tap or json
  FILTER                 run only the tests with this in their name

Root only. Exit status: 0 if all ended as expected, 1 if not, 2 if the tests could not be run.
";

/// The default time limit. The tests wait up to ten seconds for a status, some of them several times.
const LIMIT: Duration = Duration::from_secs(120);

/// Which cgroup hierarchies the tests see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// Those of the host.
    Host,
    /// v1 alone.
    V1,
    /// v2 alone.
    V2,
}

/// How the result is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// For people, a line a test.
    Table,
    /// Test Anything Protocol.
    Tap,
    /// One object.
    Json,
}

/// What was asked for.
#[derive(Debug, PartialEq, Eq)]
pub struct Options {
    /// The built tree, absolute.
    pub tree: PathBuf,
    /// The runtime, absolute.
    pub runtime: PathBuf,
    /// The cgroups that the tests see.
    pub view: View,
    /// The time limit of one test.
    pub limit: Duration,
    /// The file of known failures.
    pub expected: PathBuf,
    /// How the result is printed.
    pub format: Format,
    /// Only tests with this in their name; empty for all.
    pub filter: String,
}

/// A run, or the help.
#[derive(Debug, PartialEq, Eq)]
pub enum Asked {
    /// Print [`HELP`].
    Help,
    /// Run the tests.
    Run(Options),
}

/// Reads the arguments. Paths become absolute, for the tests run in the tree.
pub fn read(args: impl IntoIterator<Item = OsString>) -> Result<Asked> {
    let mut args = args.into_iter();
    let mut tree = None;
    let mut runtime = None;
    let mut expected = None;
    let (mut view, mut limit, mut format, mut filter) = (View::Host, LIMIT, Format::Table, None);
    while let Some(arg) = args.next() {
        let arg = text(arg)?;
        let (name, mut given) = match arg.split_once('=') {
            Some((name, value)) if name.starts_with("--") => (name.to_owned(), Some(OsString::from(value))),
            _ => (arg, None),
        };
        let mut value =
            || given.take().or_else(|| args.next()).with_context(|| format!("{name} needs a value"));
        match name.as_str() {
            "-h" | "--help" => return Ok(Asked::Help),
            "--tree" => tree = Some(PathBuf::from(value()?)),
            "--runtime" => runtime = Some(PathBuf::from(value()?)),
            "--expected" => expected = Some(PathBuf::from(value()?)),
            "--cgroup-view" => view = view_of(&text(value()?)?)?,
            "--timeout" => limit = limit_of(&text(value()?)?)?,
            "--format" => format = format_of(&text(value()?)?)?,
            option if option.starts_with('-') => bail!("unknown option {option:?} (--help lists them)"),
            _ if filter.is_some() => bail!("more than one FILTER (--help)"),
            _ => filter = Some(name.clone()),
        }
        if given.is_some() {
            bail!("{name} takes no value");
        }
    }
    let tree =
        tree.context("--tree DIR is missing: a built tree of opencontainers/runtime-tools (--help)")?;
    let repository = repository()?;
    Ok(Asked::Run(Options {
        tree: absolute(&tree)?,
        runtime: runtime.map_or_else(|| built(repository), |path| absolute(&path))?,
        view,
        limit,
        expected: expected.map_or_else(
            || Ok(repository.join("conformance/expected/runtime-tools")),
            |path| absolute(&path),
        )?,
        format,
        filter: filter.unwrap_or_default(),
    }))
}

fn text(arg: OsString) -> Result<String> {
    arg.into_string().map_err(|arg| anyhow!("{arg:?} is not UTF-8"))
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("{path:?}"))
}

fn repository() -> Result<&'static Path> {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the package stands in no repository")
}

/// The release binary of the repository.
fn built(repository: &Path) -> Result<PathBuf> {
    let target = format!("target/{}-unknown-linux-musl/release/berth", std::env::consts::ARCH);
    let places = ["build/berth", target.as_str()];
    let found = places.iter().map(|place| repository.join(place)).find(|path| path.exists());
    found.context("no runtime: run `make build`, or give --runtime PATH")
}

fn view_of(word: &str) -> Result<View> {
    match word {
        "host" => Ok(View::Host),
        "v1" => Ok(View::V1),
        "v2" => Ok(View::V2),
        other => bail!("--cgroup-view: {other:?} is none of host, v1, v2"),
    }
}

fn format_of(word: &str) -> Result<Format> {
    match word {
        "table" => Ok(Format::Table),
        "tap" => Ok(Format::Tap),
        "json" => Ok(Format::Json),
        other => bail!("--format: {other:?} is none of table, tap, json"),
    }
}

fn limit_of(word: &str) -> Result<Duration> {
    match word.parse() {
        Ok(seconds @ 1..) => Ok(Duration::from_secs(seconds)),
        Ok(0) | Err(_) => bail!("--timeout: {word:?} is not a number of seconds above 0"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(line: &str) -> Result<Asked> {
        read(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn options_and_a_filter_are_read_in_any_order() {
        let line = "cgroups --tree /t --format=json --runtime /r --timeout 7 --cgroup-view v2 --expected=/e";
        let Asked::Run(read) = options(line).unwrap() else { panic!("help") };
        assert_eq!(
            read,
            Options {
                tree: "/t".into(),
                runtime: "/r".into(),
                view: View::V2,
                limit: Duration::from_secs(7),
                expected: "/e".into(),
                format: Format::Json,
                filter: "cgroups".to_owned(),
            }
        );
    }

    #[test]
    fn what_is_left_out_has_a_default() {
        let Asked::Run(read) = options("--runtime /r --tree t").unwrap() else { panic!("help") };
        assert!(read.tree.is_absolute());
        assert_eq!((read.view, read.format, read.filter.as_str()), (View::Host, Format::Table, ""));
        assert!(read.expected.is_file(), "{:?}", read.expected);
    }

    #[test]
    fn a_wrong_command_line_says_what_is_wrong() {
        for (line, words) in [
            ("--runtime /r", "--tree"),
            ("--tree", "needs a value"),
            ("--tree /t --moon", "--moon"),
            ("--tree /t --format xml", "xml"),
            ("--tree /t --cgroup-view v3", "v3"),
            ("--tree /t --timeout 0", "--timeout"),
            ("--tree /t a b", "more than one"),
        ] {
            let error = options(line).unwrap_err().to_string();
            assert!(error.contains(words), "{line}: {error}");
        }
        assert_eq!(options("--tree /t --help").unwrap(), Asked::Help);
    }
}
