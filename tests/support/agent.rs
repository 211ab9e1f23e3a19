//! A seccomp agent: takes listeners at a socket and answers for the calls (runtime-spec, "The Container Process State").

// the agent of a test is a thread beside it, and asks the kernel by ioctl
#![allow(unsafe_code, clippy::disallowed_methods)]

use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use serde_json::Value;

use super::DEADLINE;

/// The errno that the agent gives to whoever makes a directory.
pub const MKDIR: &str = "No medium found";
/// The umask that the agent tells of.
pub const UMASK: i64 = 0o123;

/// struct seccomp_notif of linux/seccomp.h
#[repr(C)]
#[derive(Default, Debug)]
struct Notification {
    id: u64,
    pid: u32,
    flags: u32,
    number: i32,
    arch: u32,
    instruction: u64,
    args: [u64; 6],
}

/// struct seccomp_notif_resp
#[repr(C)]
#[derive(Default, Debug)]
struct Response {
    id: u64,
    value: i64,
    error: i32,
    flags: u32,
}

const RECEIVE: u32 = 0xc050_2100;
const SEND: u32 = 0xc018_2101;
const CONTINUE: u32 = 1;

/// What came over one connection.
#[derive(Debug)]
pub struct Arrival {
    /// The container process state.
    pub state: Value,
    /// Descriptors with the first bytes, and after them.
    pub descriptors: (usize, usize),
}

/// The agent, which serves every listener that comes until the test is over.
#[derive(Debug)]
pub struct Agent {
    pub path: PathBuf,
    arrivals: Receiver<Arrival>,
    calls: Arc<Mutex<Vec<i64>>>,
}

impl Agent {
    /// Listens at `path`.
    pub fn listen(path: &Path) -> Self {
        Self::make(path, serve)
    }

    /// Listens at `path` and closes each listener when it has it.
    pub fn leave_at_once(path: &Path) -> Self {
        Self::make(path, |listener, _| drop(listener))
    }

    fn make(path: &Path, serve: fn(OwnedFd, &Mutex<Vec<i64>>)) -> Self {
        let socket = UnixListener::bind(path).unwrap();
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        let calls = Arc::new(Mutex::new(Vec::new()));
        let (sender, arrivals) = channel();
        let heard = calls.clone();
        std::thread::spawn(move || {
            for connection in socket.incoming() {
                let (connection, sender, heard) = (connection.unwrap(), sender.clone(), heard.clone());
                std::thread::spawn(move || {
                    if let Some(listener) = take(&connection, &sender) {
                        serve(listener, &heard);
                    }
                });
            }
        });
        Self { path: path.to_owned(), arrivals, calls }
    }

    /// The next state that a runtime sends.
    #[track_caller]
    pub fn arrival(&self) -> Arrival {
        self.arrivals.recv_timeout(DEADLINE).expect("no state arrives at the agent")
    }

    /// True when nothing has come that was not asked for.
    pub fn has_nothing_more(&self) -> bool {
        self.arrivals.try_recv().is_err()
    }

    /// The numbers of the calls that it was asked for.
    pub fn calls(&self) -> Vec<i64> {
        self.calls.lock().unwrap().clone()
    }
}

/// Reads a connection to its end, and answers with the listener.
fn take(connection: &UnixStream, arrivals: &Sender<Arrival>) -> Option<OwnedFd> {
    // little at first, so that what belongs to the first bytes is seen
    let mut text = vec![0; 3];
    let (length, mut first) = receive(connection, &mut text);
    text.truncate(length);
    let mut rest = vec![0; 1 << 16];
    let mut later = 0;
    loop {
        let (length, descriptors) = receive(connection, &mut rest);
        if length == 0 {
            break;
        }
        later += descriptors.len();
        text.extend(&rest[..length]);
    }
    let state = serde_json::from_slice(&text).unwrap();
    let descriptors = (first.len(), later);
    let listener = first.pop();
    // a test that is over does not hear it
    let _ = arrivals.send(Arrival { state, descriptors });
    listener
}

fn receive(connection: &UnixStream, buffer: &mut [u8]) -> (usize, Vec<OwnedFd>) {
    let mut space = nix::cmsg_space!([i32; 4]);
    let mut slices = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(connection.as_raw_fd(), &mut slices, Some(&mut space), flags).unwrap();
    let mut descriptors = Vec::new();
    for control in message.cmsgs().unwrap() {
        if let ControlMessageOwned::ScmRights(numbers) = control {
            // SAFETY: recvmsg has just installed them and nobody else knows them.
            descriptors.extend(numbers.into_iter().map(|number| unsafe { OwnedFd::from_raw_fd(number) }));
        }
    }
    (message.bytes, descriptors)
}

/// Answers until no process is left under the filter.
fn serve(listener: OwnedFd, heard: &Mutex<Vec<i64>>) {
    loop {
        let mut wanted = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        if poll(&mut wanted, PollTimeout::NONE) == Err(Errno::EINTR) {
            continue;
        }
        if !wanted[0].revents().unwrap().contains(PollFlags::POLLIN) {
            return;
        }
        let mut call = Notification::default();
        // SAFETY: the structure is the kernel's, zeroed as it wants it, and lives across the call.
        if unsafe { libc::ioctl(listener.as_raw_fd(), RECEIVE as _, &raw mut call) } < 0 {
            // the caller was killed meanwhile
            continue;
        }
        let number = i64::from(call.number);
        heard.lock().unwrap().push(number);
        let mut answer = Response { id: call.id, ..Response::default() };
        match number {
            libc::SYS_umask => answer.value = UMASK,
            libc::SYS_mkdirat => answer.error = -libc::ENOMEDIUM,
            #[cfg(target_arch = "x86_64")]
            libc::SYS_mkdir => answer.error = -libc::ENOMEDIUM,
            _ => answer.flags = CONTINUE,
        }
        // SAFETY: the structure is the kernel's and lives across the call. A caller that has gone is nothing to care for.
        unsafe { libc::ioctl(listener.as_raw_fd(), SEND as _, &raw mut answer) };
    }
}
