//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// What `--help` says.
pub const USAGE: &str = "\
conformance --runtime PATH... [--compare] [--format tap|table|json] [FILTER...]
Checks the requirements of the OCI runtime-spec 1.3 on runtimes, from outside. Needs root.

  --runtime PATH       a runtime with runc's command line; several run one after the other
  --compare            also the runtimes of conformance/expected that are installed
  --format FORMAT      table (default), tap or json
  --expected FILE      known failures, in place of conformance/expected/NAME
  --limit SECONDS      for one operation of a runtime (60)
  --jobs N             cases at once (the number of processors)
  --readme FILE        put the counts into FILE, between its markers
  --check-readme FILE  hold the counts against those in FILE
  --list               the cases
  --requirements       the requirements, each with its cases or the reason why it has none
  FILTER               only cases whose name contains one of the filters

The exit status is 0 only if every case ended as conformance/expected says.
";

/// How results are printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// Test Anything Protocol.
    Tap,
    /// For programs.
    Json,
}

/// What was asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Args {
    /// `--runtime`
    pub runtimes: Vec<PathBuf>,
    /// `--compare`
    pub compare: bool,
    /// `--format`
    pub format: Format,
    /// `--expected`
    pub expected: Option<PathBuf>,
    /// `--limit`
    pub limit: Option<Duration>,
    /// `--jobs`
    pub jobs: Option<usize>,
    /// `--readme`
    pub readme: Option<PathBuf>,
    /// `--check-readme`
    pub check_readme: Option<PathBuf>,
    /// `--list`
    pub list: bool,
    /// `--requirements`
    pub requirements: bool,
    /// `--help`
    pub help: bool,
    /// FILTER
    pub filters: Vec<String>,
}

impl Args {
    /// Reads the arguments after the program's name.
    pub fn read(arguments: impl Iterator<Item = String>) -> Result<Self> {
        let mut args = Self::default();
        let mut rest = arguments;
        while let Some(argument) = rest.next() {
            let (name, attached) = match argument.split_once('=') {
                Some((name, value)) if name.starts_with("--") => (name.to_owned(), Some(value.to_owned())),
                _ => (argument, None),
            };
            let mut value =
                || attached.clone().or_else(|| rest.next()).with_context(|| format!("{name} needs a value"));
            match name.as_str() {
                "--runtime" => args.runtimes.push(value()?.into()),
                "--compare" => args.compare = true,
                "--format" => args.format = format(&value()?)?,
                "--expected" => args.expected = Some(value()?.into()),
                "--limit" => args.limit = Some(Duration::from_secs(value()?.parse().context("--limit")?)),
                "--jobs" => args.jobs = Some(value()?.parse().context("--jobs")?),
                "--readme" => args.readme = Some(value()?.into()),
                "--check-readme" => args.check_readme = Some(value()?.into()),
                "--list" => args.list = true,
                "--requirements" => args.requirements = true,
                "--help" | "-h" => args.help = true,
                unknown if unknown.starts_with('-') => bail!("no option {unknown}; --help lists them"),
                _ => args.filters.push(name),
            }
        }
        ensure!(args.jobs != Some(0), "--jobs: 0 runs nothing");
        Ok(args)
    }
}

fn format(name: &str) -> Result<Format> {
    Ok(match name {
        "table" => Format::Table,
        "tap" => Format::Tap,
        "json" => Format::Json,
        other => bail!("--format {other}: tap, table or json"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Args> {
        Args::read(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn options_and_filters() {
        let args = read("--runtime a --runtime=b --format tap hooks mounts").unwrap();
        assert_eq!(args.runtimes, [PathBuf::from("a"), PathBuf::from("b")]);
        assert_eq!((args.format, args.filters), (Format::Tap, vec!["hooks".to_owned(), "mounts".to_owned()]));
    }

    #[test]
    fn what_is_wrong_is_an_error() {
        for line in ["--runtime", "--format xml", "--nope", "--jobs 0", "--limit soon"] {
            assert!(read(line).is_err(), "{line}");
        }
    }
}
