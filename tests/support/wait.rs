//! Waiting for processes and texts by poll(2) with a deadline, never by time.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;

/// How long anything may take before its test fails.
pub const DEADLINE: Duration = Duration::from_secs(40);

/// Waits until `fd` can be read; false at the deadline.
pub fn readable(fd: BorrowedFd<'_>, within: Duration) -> bool {
    let end = Instant::now() + within;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap();
        let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(0) => return false,
            Ok(_) => return true,
            Err(nix::errno::Errno::EINTR) => {}
            Err(e) => panic!("poll: {e}"),
        }
    }
}

/// Asks again and again, where nothing tells when it has come to that.
#[track_caller]
pub fn until(what: &str, mut so: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !so() {
        assert!(Instant::now() < end, "still not: {what}");
        std::thread::yield_now();
    }
}

/// Waits until our child has ended, without reaping it; false at the deadline.
pub fn child_ended(child: &Child, within: Duration) -> bool {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    let pidfd = berth::sys::tasks::pidfd_open(pid).unwrap();
    readable(pidfd.as_fd(), within)
}

/// The exit status of our child; killed at the deadline, it has none.
pub fn exit_code(mut child: Child) -> Option<i32> {
    if !child_ended(&child, DEADLINE) {
        child.kill().unwrap();
    }
    child.wait().unwrap().code()
}

/// Waits until the process has ended (one that is gone has).
#[track_caller]
pub fn wait_exit(pid: i32) {
    match berth::sys::tasks::pidfd_open(Pid::from_raw(pid)) {
        Ok(pidfd) => assert!(readable(pidfd.as_fd(), DEADLINE), "process {pid} does not end"),
        Err(nix::errno::Errno::ESRCH) => {}
        Err(e) => panic!("pidfd_open {pid}: {e}"),
    }
}

/// A named pipe between a test and what it runs.
#[derive(Debug)]
pub struct Fifo {
    file: File,
    pub path: PathBuf,
}

impl Fifo {
    /// Makes the pipe at `path`. Our end is open for both directions: nobody's open blocks.
    pub fn make(path: &Path) -> Self {
        nix::unistd::mkfifo(path, nix::sys::stat::Mode::from_bits_truncate(0o622)).unwrap();
        // The mode of mkfifo(3) goes through the umask.
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
        let file =
            OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path).unwrap();
        Self { file, path: path.to_owned() }
    }

    /// The next line that somebody writes.
    #[track_caller]
    pub fn line(&mut self) -> String {
        let mut text = Vec::new();
        loop {
            assert!(readable(self.file.as_fd(), DEADLINE), "nothing arrives at {:?}", self.path);
            let mut byte = [0];
            match self.file.read(&mut byte) {
                Ok(0) => panic!("end of file"),
                Ok(_) if byte == *b"\n" => return String::from_utf8(text).unwrap(),
                Ok(_) => text.extend(byte),
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(e) => panic!("{e}"),
            }
        }
    }
}

/// A named pipe that somebody blocks on, opened for reading, until the test lets go.
#[derive(Debug)]
pub struct Gate(PathBuf);

impl Gate {
    /// Makes the pipe at `path`.
    pub fn make(path: &Path) -> Self {
        nix::unistd::mkfifo(path, nix::sys::stat::Mode::from_bits_truncate(0o644)).unwrap();
        Self(path.to_owned())
    }

    /// Lets the reader go on, once there is one: what is written before is lost with the last descriptor.
    pub fn open(&self) {
        let deadline = Instant::now() + DEADLINE;
        let mut options = OpenOptions::new();
        options.write(true).custom_flags(libc::O_NONBLOCK);
        let mut file = loop {
            match options.open(&self.0) {
                Err(error) if error.raw_os_error() == Some(libc::ENXIO) && Instant::now() < deadline => {
                    std::thread::yield_now();
                }
                result => break result.unwrap(),
            }
        };
        file.write_all(b"go\n").unwrap();
    }

    /// Has a line for a reader that may come now, later or never, as long as the answer is kept.
    pub fn stay_open(&self) -> File {
        let mut file = OpenOptions::new().read(true).write(true).open(&self.0).unwrap();
        file.write_all(b"go\n").unwrap();
        file
    }
}
