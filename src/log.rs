//! The log: `--log`, `--log-format`, `--log-level`. Engines read the file while others append to it, so a line is one
//! write(2), and in JSON only what is fatal is written unless more is asked for (podman takes the file for one object).

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::error;
use crate::options::{GlobalOptions, Level, LogFormat, LogTarget};

/// Where syslogd(8) listens.
const SYSLOG: &str = "/dev/log";
/// Where systemd-journald(8) listens.
const JOURNAL: &str = "/run/systemd/journal/socket";

/// An open log. Failures to write are swallowed: there is nowhere left to tell them.
#[derive(Debug)]
pub struct Log {
    sink: Sink,
    format: LogFormat,
    threshold: Level,
}

#[derive(Debug)]
enum Sink {
    Stderr,
    File(File),
    Journald { socket: UnixDatagram, name: String },
    Syslog { socket: UnixDatagram, name: String },
}

impl Log {
    /// Opens what `--log` names; a file is made with mode 0644 and appended to. Fails when that cannot be opened.
    pub fn open(global: &GlobalOptions) -> Result<Self> {
        let sink = match &global.log {
            None => Sink::Stderr,
            Some(LogTarget::File(path)) => Sink::File(
                OpenOptions::new()
                    .append(true)
                    .create(true)
                    .open(path)
                    .with_context(|| format!("--log: open {path:?}"))?,
            ),
            Some(LogTarget::Journald(name)) => {
                Sink::Journald { socket: connect(JOURNAL)?, name: name.clone() }
            }
            Some(LogTarget::Syslog(name)) => Sink::Syslog { socket: connect(SYSLOG)?, name: name.clone() },
        };
        let usual = match global.log_format {
            LogFormat::Text => Level::Warning,
            LogFormat::Json => Level::Error,
        };
        let threshold = global.log_level.unwrap_or(usual);
        Ok(Self { sink, format: global.log_format, threshold })
    }

    /// A log on standard error with the usual level, for when there is no other.
    pub fn stderr() -> Self {
        Self { sink: Sink::Stderr, format: LogFormat::Text, threshold: Level::Warning }
    }

    /// Whether lines of that level are written: saves making texts that nobody reads.
    pub fn wants(&self, level: Level) -> bool {
        level >= self.threshold
    }

    /// Notes what is being done.
    pub fn debug(&self, message: &str) {
        self.line(Level::Debug, message);
    }

    /// Notes what has been done.
    pub fn info(&self, message: &str) {
        self.line(Level::Info, message);
    }

    /// Notes what is not quite as asked.
    pub fn warn(&self, message: &str) {
        self.line(Level::Warning, message);
    }

    /// Notes a failure that does not end the operation, or that is told on standard error by somebody else.
    pub fn error(&self, message: &str) {
        self.line(Level::Error, message);
    }

    /// Tells the error that ends the operation: in the log, and for people, with its hint, on standard error. A log
    /// that is itself on standard error gets it once.
    pub fn fatal(&self, error: &anyhow::Error) {
        let message = error::text(error);
        let on_stderr = matches!(self.sink, Sink::Stderr);
        if !on_stderr || self.format == LogFormat::Json {
            self.error(&message);
        }
        if !on_stderr || self.format == LogFormat::Text {
            stderr(&for_people(&message, error::hint(error).as_deref()));
        }
    }

    fn line(&self, level: Level, message: &str) {
        if !self.wants(level) {
            return;
        }
        match &self.sink {
            Sink::Stderr if self.format == LogFormat::Text => {
                stderr(&format!("{}: {}\n", level_name(level), printable(message)));
            }
            Sink::Stderr => stderr(&line(self.format, level, message, SystemTime::now())),
            Sink::File(file) => {
                let mut file = file;
                drop(file.write_all(line(self.format, level, message, SystemTime::now()).as_bytes()));
            }
            Sink::Journald { socket, name } => drop(socket.send(&journal_datagram(level, name, message))),
            Sink::Syslog { socket, name } => drop(socket.send(&syslog_datagram(level, name, message))),
        }
    }
}

fn connect(path: &str) -> Result<UnixDatagram> {
    let socket = UnixDatagram::unbound().context("--log: socket")?;
    socket.connect(Path::new(path)).with_context(|| format!("--log: connect to {path:?}"))?;
    Ok(socket)
}

fn stderr(text: &str) {
    drop(std::io::stderr().lock().write_all(text.as_bytes()));
}

/// `error: ...` and `hint: ...`, each on its own line.
fn for_people(message: &str, hint: Option<&str>) -> String {
    let hint = hint.map(|hint| format!("hint: {}\n", printable(hint))).unwrap_or_default();
    format!("error: {}\n{hint}", printable(message))
}

/// A line of the log file, with its end.
fn line(format: LogFormat, level: Level, message: &str, time: SystemTime) -> String {
    #[derive(Serialize)]
    struct Object<'a> {
        level: &'static str,
        msg: &'a str,
        time: String,
    }
    let time = humantime::format_rfc3339_seconds(time).to_string();
    let level = level_name(level);
    let text = match format {
        LogFormat::Json => serde_json::to_string(&Object { level, msg: message, time }),
        LogFormat::Text => {
            serde_json::to_string(message).map(|quoted| format!("time=\"{time}\" level={level} msg={quoted}"))
        }
    };
    let mut text = escaped(&text.unwrap_or_default());
    text.push('\n');
    text
}

fn level_name(level: Level) -> &'static str {
    match level {
        Level::Debug => "debug",
        Level::Info => "info",
        Level::Warning => "warning",
        Level::Error => "error",
    }
}

/// The control characters that JSON lets pass (DEL and C1) in JSON's own spelling.
fn escaped(json: &str) -> String {
    spell(json, char::is_control)
}

/// Without what a terminal would obey.
fn printable(text: &str) -> String {
    spell(text, |c| c.is_control() && c != '\n' && c != '\t')
}

fn spell(text: &str, unwanted: impl Fn(char) -> bool) -> String {
    let mut spelled = String::with_capacity(text.len());
    for c in text.chars() {
        if unwanted(c) {
            spelled.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            spelled.push(c);
        }
    }
    spelled
}

/// The severity of syslog(3).
fn severity(level: Level) -> i32 {
    match level {
        Level::Debug => libc::LOG_DEBUG,
        Level::Info => libc::LOG_INFO,
        Level::Warning => libc::LOG_WARNING,
        Level::Error => libc::LOG_ERR,
    }
}

/// RFC 3164 as local daemons read it: `<PRIORITY>NAME[PID]: MESSAGE`.
fn syslog_datagram(level: Level, name: &str, message: &str) -> Vec<u8> {
    let priority = libc::LOG_DAEMON | severity(level);
    format!("<{priority}>{name}[{}]: {}", std::process::id(), one_line(message)).into_bytes()
}

/// systemd's native journal protocol: `FIELD=value` lines.
fn journal_datagram(level: Level, name: &str, message: &str) -> Vec<u8> {
    let (severity, name, message) = (severity(level), one_line(name), one_line(message));
    format!("MESSAGE={message}\nPRIORITY={severity}\nSYSLOG_IDENTIFIER={name}\n").into_bytes()
}

fn one_line(text: &str) -> String {
    spell(text, char::is_control)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_line_is_one_object_or_one_text() {
        assert_eq!(
            line(LogFormat::Json, Level::Error, "open \"/x\": no\nsuch", at(0)),
            "{\"level\":\"error\",\"msg\":\"open \\\"/x\\\": no\\nsuch\",\"time\":\"1970-01-01T00:00:00Z\"}\n"
        );
        assert_eq!(
            line(LogFormat::Text, Level::Warning, "a \"b\"\n", at(86_400)),
            "time=\"1970-01-02T00:00:00Z\" level=warning msg=\"a \\\"b\\\"\\n\"\n"
        );
    }

    #[test]
    fn nothing_that_a_terminal_obeys_comes_through() {
        let evil = "\x1b[2J\u{9b}x\u{7f}\r";
        let text = line(LogFormat::Json, Level::Error, evil, at(0));
        assert!(!text.trim_end().chars().any(char::is_control), "{text:?}");
        let back: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(back["msg"], evil);
        assert_eq!(for_people("a\x1bb", Some("c\td")), "error: a\\u001bb\nhint: c\td\n");
        assert_eq!(for_people("a", None), "error: a\n");
    }

    #[test]
    fn a_file_is_appended_to_and_json_holds_only_errors_unless_asked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.json");
        std::fs::write(&path, "{}\n").unwrap();
        let mut global = GlobalOptions {
            log: Some(LogTarget::File(path.clone())),
            log_format: LogFormat::Json,
            ..GlobalOptions::default()
        };
        let log = Log::open(&global).unwrap();
        log.debug("d");
        log.warn("w");
        log.error("e");
        global.log_level = Some(Level::Debug);
        Log::open(&global).unwrap().debug("later");
        let text = std::fs::read_to_string(&path).unwrap();
        let levels: Vec<_> = text
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["msg"].clone())
            .collect();
        assert_eq!(levels, [serde_json::Value::Null, "e".into(), "later".into()]);
    }

    #[test]
    fn the_text_log_holds_warnings() {
        let log = Log::stderr();
        assert!(log.wants(Level::Warning) && !log.wants(Level::Info));
    }

    #[test]
    fn a_log_that_cannot_be_opened_is_named() {
        let log = Some(LogTarget::File("/nonexistent/dir/log".into()));
        let error = Log::open(&GlobalOptions { log, ..GlobalOptions::default() }).unwrap_err();
        assert_eq!(error::text(&error), "--log: open \"/nonexistent/dir/log\": no such file or directory");
    }

    #[test]
    fn datagrams_hold_one_line() {
        let text = String::from_utf8(syslog_datagram(Level::Error, "berth", "a\nb")).unwrap();
        assert!(text.starts_with("<27>berth[") && text.ends_with("]: a\\u000ab"), "{text}");
        assert_eq!(
            journal_datagram(Level::Warning, "be\nrth", "a\nPRIORITY=0"),
            b"MESSAGE=a\\u000aPRIORITY=0\nPRIORITY=4\nSYSLOG_IDENTIFIER=be\\u000arth\n"
        );
    }
}
