//! Argument vectors as Go programs read them, because engines write them for runc: `-bundle DIR` as well as
//! `--bundle=DIR`, flags with a value (`--debug=false`), options behind the container's ID.
//!
//! What comes out is plain enough for any parser: `--name=value` and `--name`, and the positional arguments apart. Which
//! options there are and which of them take a value is read from the clap command, so there is one table.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use clap::{Arg, Command};

/// Where options end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Options {
    /// Anywhere: `run web --detach`.
    Mixed,
    /// At the first positional argument; the rest is somebody else's: `exec web ls -l`.
    First,
}

/// An argument vector that was taken apart.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Argv {
    /// `--name=value` and `--name`; an option that does not exist stands here too.
    pub options: Vec<OsString>,
    /// Flags that were last given as `--name=false`.
    pub turned_off: Vec<String>,
    /// What is not an option, in order.
    pub positional: Vec<OsString>,
    /// Whether help was asked for.
    pub help: bool,
}

/// Takes an argument vector apart. Fails, with a text for people, on an option whose value is missing and on a flag
/// whose value is not a truth value.
pub(super) fn split(
    command: &Command,
    options: Options,
    args: impl Iterator<Item = OsString>,
) -> Result<Argv, String> {
    let mut argv = Argv::default();
    let mut args = args;
    while let Some(arg) = args.next() {
        let bytes = arg.as_bytes();
        if bytes == b"--" {
            break;
        }
        let Some(body) = bytes.strip_prefix(b"-").filter(|body| !body.is_empty()) else {
            argv.positional.push(arg);
            if options == Options::First {
                break;
            }
            continue;
        };
        let long = body.strip_prefix(b"-");
        let (name, value) = name_and_value(long.unwrap_or(body));
        if let Some(option) = option(command, name) {
            argv.take(option, value.map(OsString::from), &mut args)?;
        } else if long.is_some() || !argv.take_cluster(command, body, &mut args)? {
            argv.options.push(os_string(&[b"--", long.unwrap_or(body)]));
        }
    }
    argv.positional.extend(args);
    Ok(argv)
}

impl Argv {
    /// Takes one option, and its value from the next argument where it needs one.
    fn take(
        &mut self,
        option: &Arg,
        value: Option<OsString>,
        rest: &mut impl Iterator<Item = OsString>,
    ) -> Result<(), String> {
        let name = option.get_long().unwrap_or_default();
        if option.get_action().takes_values() {
            let value =
                value.or_else(|| rest.next()).ok_or_else(|| format!("flag needs an argument: --{name}"))?;
            self.options.push(os_string(&[b"--", name.as_bytes(), b"=", value.as_bytes()]));
            return Ok(());
        }
        let on = is_on(name, value.as_deref())?;
        if name == "help" {
            self.help = on;
            return Ok(());
        }
        let given = os_string(&[b"--", name.as_bytes()]);
        self.options.retain(|other| *other != given);
        self.turned_off.retain(|other| other != name);
        if on {
            self.options.push(given);
        } else {
            self.turned_off.push(name.to_owned());
        }
        Ok(())
    }

    /// Takes short options that stand together, the last one with its value: `-it`, `-qf json`, `-u1000`. Says no,
    /// having taken nothing, when they are not that.
    fn take_cluster(
        &mut self,
        command: &Command,
        letters: &[u8],
        rest: &mut impl Iterator<Item = OsString>,
    ) -> Result<bool, String> {
        let mut found: Vec<(&Arg, Option<OsString>)> = Vec::new();
        let mut left = letters;
        while let Some((letter, after)) = left.split_first() {
            let Some(option) = option(command, &[*letter]) else { return Ok(false) };
            if option.get_action().takes_values() {
                let value = (!after.is_empty()).then(|| OsString::from_vec(after.to_vec()));
                found.push((option, value));
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

fn name_and_value(text: &[u8]) -> (&[u8], Option<&OsStr>) {
    let mut parts = text.splitn(2, |byte| *byte == b'=');
    (parts.next().unwrap_or_default(), parts.next().map(OsStr::from_bytes))
}

/// The option of that long name or letter.
fn option<'a>(command: &'a Command, name: &[u8]) -> Option<&'a Arg> {
    let name = std::str::from_utf8(name).ok()?;
    let letter = name.chars().next().filter(|letter| letter.len_utf8() == name.len());
    command
        .get_arguments()
        .find(|arg| arg.get_long() == Some(name) || (letter.is_some() && arg.get_short() == letter))
}

fn os_string(parts: &[&[u8]]) -> OsString {
    OsString::from_vec(parts.concat())
}
