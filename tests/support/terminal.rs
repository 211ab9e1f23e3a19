//! A terminal for the runtime to be run on, and bundles that want one.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, Command};

use berth::sys::terminal::{Size, number, peer, set_size, unlock};
use serde_json::json;

use super::{Bundle, DEADLINE, bundle, child_ended, readable};

/// A bundle whose process has a terminal, of 33 lines and 99 columns.
pub fn terminal(script: &str) -> Option<Bundle> {
    Some(bundle(script)?.with(|c| {
        c["process"]["terminal"] = json!(true);
        c["process"]["consoleSize"] = json!({ "height": 33, "width": 99 });
    }))
}

/// Reads from a master until `done` says so or all slaves are closed.
pub fn read_until(master: &mut File, done: impl Fn(&str) -> bool) -> String {
    let mut text = Vec::new();
    loop {
        let so_far = String::from_utf8_lossy(&text).into_owned();
        if done(&so_far) {
            return so_far;
        }
        assert!(readable(master.as_fd(), DEADLINE), "only {so_far:?} arrived");
        let mut part = [0; 1024];
        match master.read(&mut part) {
            Ok(count) => text.extend(&part[..count]),
            Err(e) if e.raw_os_error() == Some(libc::EIO) => {
                return String::from_utf8_lossy(&text).into_owned();
            }
            Err(e) => panic!("{e}"),
        }
    }
}

/// The master of a new terminal that nobody has changed.
pub fn new_master() -> File {
    let master =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open("/dev/ptmx").unwrap();
    unlock(master.as_fd()).unwrap();
    assert!(number(master.as_fd()).is_ok());
    set_size(master.as_fd(), Size { height: 41, width: 123 }).unwrap();
    master
}

/// The runtime on a terminal of its own.
#[derive(Debug)]
pub struct Session {
    pub master: File,
    pub child: Child,
}

impl Session {
    pub fn start(runtime: &Command) -> Self {
        let mut words = vec![runtime.get_program()];
        words.extend(runtime.get_args());
        let mut command = Command::new("busybox");
        command.args(["setsid", "-c"]).args(words).current_dir(runtime.get_current_dir().unwrap());
        Self::start_alone(command)
    }

    /// Starts the command as it is, with a new terminal as its standard streams.
    pub fn start_alone(mut command: Command) -> Self {
        let master = new_master();
        let slave = File::from(peer(master.as_fd()).unwrap());
        command.stdin(slave.try_clone().unwrap()).stdout(slave.try_clone().unwrap()).stderr(slave);
        let child = command.spawn().unwrap();
        Self { master, child }
    }

    pub fn end(&mut self) -> (String, i32) {
        let text = read_until(&mut self.master, |_| false);
        assert!(child_ended(&self.child, DEADLINE));
        (text, self.child.wait().unwrap().code().unwrap())
    }
}

/// `run` on a terminal of its own, without a size of the configuration.
pub fn foreground(script: &str) -> Option<(Bundle, Session)> {
    let b = terminal(script)?.with(|c| {
        c["process"].as_object_mut().unwrap().remove("consoleSize");
    });
    let session = Session::start(&b.launch_command("run", &[], &b.id));
    Some((b, session))
}
