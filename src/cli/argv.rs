//! Argument vectors as Go programs read them, because engines write them for runc: `-bundle DIR` as well as
//! `--bundle=DIR`, flags with a value (`--debug=false`), options behind the container's ID. Letters that stand
//! together (`-it`) are read as getopt(3) does, which Go's parser refuses.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use super::commands::{Count, Entry, Opt, Options};

/// An argument vector that was taken apart.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Argv {
    /// Options with a value, by their long names.
    pub values: Vec<(&'static str, OsString)>,
    /// Flags, by their long names, and whether they are on.
    pub flags: Vec<(&'static str, bool)>,
    /// What is not an option, in order.
    pub arguments: Vec<OsString>,
    /// The first option that does not exist, as `--name`.
    pub unknown: Option<OsString>,
}

/// Takes an argument vector apart. Fails, with a text for people, on an option whose value is missing and on a flag
/// whose value is not a truth value.
pub(super) fn split(entry: &Entry, args: impl Iterator<Item = OsString>) -> Result<Argv, String> {
    let mut argv = Argv::default();
    let mut args = args;
    while let Some(arg) = args.next() {
        let bytes = arg.as_bytes();
        if bytes == b"--" {
            break;
        }
        let Some(body) = bytes.strip_prefix(b"-").filter(|body| !body.is_empty()) else {
            argv.arguments.push(arg);
            if entry.order == Options::First {
                break;
            }
            continue;
        };
        let long = body.strip_prefix(b"-");
        let (name, value) = name_and_value(long.unwrap_or(body));
        if let Some(option) = option(entry, name) {
            argv.take(option, value.map(OsStr::from_bytes), &mut args)?;
        } else if long.is_some() || !argv.take_letters(entry, body, &mut args)? {
            argv.unknown.get_or_insert(OsString::from_vec([b"--", name].concat()));
        }
    }
    argv.arguments.extend(args);
    Ok(argv)
}

impl Argv {
    /// Whether a flag is on, if it was given.
    pub fn flag(&self, name: &str) -> Option<bool> {
        self.flags.iter().rfind(|(flag, _)| *flag == name).map(|(_, on)| *on)
    }

    /// Fails, with a text for people, when there are fewer or more arguments than the command takes.
    pub fn check_arguments(&self, entry: &Entry) -> Result<(), String> {
        let mut given = self.arguments.iter();
        for argument in entry.arguments {
            match argument.count {
                Count::Rest => return Ok(()),
                Count::AtMostOne => drop(given.next()),
                Count::One if given.next().is_none() => {
                    return Err(format!("{} needs <{}>", entry.name, argument.name));
                }
                Count::One => {}
            }
        }
        match given.next() {
            Some(extra) => Err(format!("unexpected argument {:?}", extra.to_string_lossy())),
            None => Ok(()),
        }
    }

    /// Takes one option, and its value from the next argument where it needs one.
    fn take(
        &mut self,
        option: &'static Opt,
        value: Option<&OsStr>,
        rest: &mut impl Iterator<Item = OsString>,
    ) -> Result<(), String> {
        let name = option.long;
        if option.value.is_some() {
            let value = value.map(OsStr::to_owned).or_else(|| rest.next());
            self.values.push((name, value.ok_or_else(|| format!("flag needs an argument: --{name}"))?));
        } else {
            self.flags.push((name, is_on(name, value)?));
        }
        Ok(())
    }

    /// Takes letters that stand together, the last one with its value: `-it`, `-qf json`, `-u1000`. Says no, having
    /// taken nothing, when they are not that.
    fn take_letters(
        &mut self,
        entry: &Entry,
        letters: &[u8],
        rest: &mut impl Iterator<Item = OsString>,
    ) -> Result<bool, String> {
        let mut found: Vec<(&'static Opt, Option<&OsStr>)> = Vec::new();
        let mut left = letters;
        while let Some((letter, after)) = left.split_first() {
            let Some(option) = option(entry, &[*letter]) else { return Ok(false) };
            if option.value.is_some() {
                found.push((option, Some(after).filter(|after| !after.is_empty()).map(OsStr::from_bytes)));
                break;
            }
            found.push((option, None));
            left = after;
        }
        for (option, value) in found {
            self.take(option, value, rest)?;
        }
        Ok(true)
    }
}

/// Whether a flag is on: true without a value, else what the value says.
fn is_on(flag: &str, value: Option<&OsStr>) -> Result<bool, String> {
    let Some(value) = value else { return Ok(true) };
    truth(value).ok_or_else(|| {
        format!("invalid boolean value {:?} for --{flag}: give true or false", value.to_string_lossy())
    })
}

/// The truth values of Go's parser.
pub(super) fn truth(value: &OsStr) -> Option<bool> {
    match value.as_bytes() {
        b"1" | b"t" | b"T" | b"true" | b"TRUE" | b"True" => Some(true),
        b"0" | b"f" | b"F" | b"false" | b"FALSE" | b"False" => Some(false),
        _ => None,
    }
}

fn name_and_value(text: &[u8]) -> (&[u8], Option<&[u8]>) {
    let mut parts = text.splitn(2, |byte| *byte == b'=');
    (parts.next().unwrap_or_default(), parts.next())
}

/// The option of that long name or letter.
fn option(entry: &Entry, name: &[u8]) -> Option<&'static Opt> {
    entry.option(std::str::from_utf8(name).ok()?)
}
