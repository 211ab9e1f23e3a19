//! `NOTIFY_SOCKET` (sd_notify(3)): a service manager hears from the container when it is ready.
//!
//! The container gets a socket of ours in a directory that is mounted read-only at `/run/notify`; what its program says
//! there is passed on, with the pid that the manager knows it by.

use std::io::{IoSlice, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, bind, connect, recv, sendmsg,
    socket,
};
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat, mkdirat};
use nix::unistd::{Pid, pipe2};
use oci_spec::runtime::{MountBuilder, Spec};

use crate::error::text;
use crate::log::Log;
use crate::state::{Directory, State};

/// The directory's name in the state directory.
pub const DIRECTORY: &str = "notify";
const SOCKET: &str = "notify/notify.sock";
/// How long the manager may take to work through what it was sent (milliseconds).
const BARRIER_TIMEOUT: u16 = 30_000;

/// Adds the mount and the variable to what the bundle asks for.
pub fn add_to(spec: &mut Spec, directory: &Path) {
    let options = ["bind", "ro", "nosuid", "nodev", "noexec"].map(str::to_owned).to_vec();
    let mount = MountBuilder::default()
        .destination("/run/notify")
        .typ("bind")
        .source(directory)
        .options(options)
        .build();
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    mounts.extend(mount);
    spec.set_mounts(Some(mounts));
    if let Some(process) = spec.process_mut() {
        let mut env = process.env().clone().unwrap_or_default();
        env.push("NOTIFY_SOCKET=/run/notify/notify.sock".to_owned());
        process.set_env(Some(env));
    }
}

/// Makes the directory that is mounted.
pub fn make_directory(directory: &Directory) -> Result<()> {
    mkdirat(directory.fd(), DIRECTORY, Mode::from_bits_truncate(0o755))
        .with_context(|| format!("make {:?}", directory.path().join(DIRECTORY)))
}

/// A path, or an abstract name behind an `@`.
fn address_of(manager: &Path) -> nix::Result<UnixAddr> {
    match manager.as_os_str().as_bytes().strip_prefix(b"@") {
        Some(name) => UnixAddr::new_abstract(name),
        None => UnixAddr::new(manager),
    }
}

/// Our end of the container's socket.
#[derive(Debug)]
pub struct Relay {
    socket: OwnedFd,
    manager: PathBuf,
}

impl Relay {
    /// Makes the socket, before the program starts. Where no manager listens nobody waits for the program: a variable that
    /// was left over is worth a warning.
    pub fn make(directory: &Directory, state: &State, log: &Log) -> Result<Option<Self>> {
        let Some(manager) = state.notify_socket.clone() else { return Ok(None) };
        let listens = || -> Result<()> {
            let ours = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
            Ok(connect(ours.as_raw_fd(), &address_of(&manager)?)?)
        };
        if let Err(error) = listens() {
            log.warn(&format!(
                "NOTIFY_SOCKET: {manager:?}: {}: nobody is told when the container is ready",
                text(&error)
            ));
            return Ok(None);
        }
        let make = || -> nix::Result<OwnedFd> {
            let ours = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
            directory.remove_file(SOCKET)?;
            let path = format!("/proc/self/fd/{}/{SOCKET}", directory.fd().as_raw_fd());
            bind(ours.as_raw_fd(), &UnixAddr::new(path.as_str())?)?;
            fchmodat(directory.fd(), SOCKET, Mode::from_bits_truncate(0o777), FchmodatFlags::FollowSymlink)?;
            Ok(ours)
        };
        let socket = make().with_context(|| format!("make {:?}", directory.path().join(SOCKET)))?;
        Ok(Some(Self { socket, manager }))
    }

    /// Readable when the program has said something.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Takes what the program has said. True when that was that it is ready, which the manager now knows.
    pub fn pass_on(&self, pid: Pid) -> Result<bool> {
        let mut buffer = [0_u8; 4096];
        let length = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty())
            .context("NOTIFY_SOCKET: receive from the container")?;
        let text = buffer.get(..length).unwrap_or_default();
        match text.split(|byte| *byte == b'\n').find(|line| line.starts_with(b"READY=")) {
            Some(line) => self.tell(line, pid).map(|()| true),
            None => Ok(false),
        }
    }

    /// Waits until the program says that it is ready, or has ended, and tells the manager.
    pub fn run(&self, pid: Pid, pidfd: BorrowedFd<'_>) -> Result<()> {
        loop {
            let mut wanted =
                [PollFd::new(self.fd(), PollFlags::POLLIN), PollFd::new(pidfd, PollFlags::POLLIN)];
            match poll(&mut wanted, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno).context("NOTIFY_SOCKET: wait for the container"),
            }
            let [message, end] = wanted.map(|fd| fd.any().unwrap_or(false));
            if message {
                if self.pass_on(pid)? {
                    return Ok(());
                }
            } else if end {
                return Ok(());
            }
        }
    }

    /// Says in the container's name that it is ready.
    pub fn tell(&self, ready: &[u8], pid: Pid) -> Result<()> {
        let context = || format!("NOTIFY_SOCKET: send to {:?}", self.manager);
        let ours = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
            .with_context(context)?;
        let address = address_of(&self.manager).with_context(context)?;
        let send = |bytes: &[u8], control: &[ControlMessage<'_>]| {
            sendmsg(ours.as_raw_fd(), &[IoSlice::new(bytes)], control, MsgFlags::MSG_NOSIGNAL, Some(&address))
                .with_context(context)
        };
        send(ready, &[])?;
        send(format!("MAINPID={pid}").as_bytes(), &[])?;
        // the manager closes the pipe once it has seen all that came before
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC).with_context(context)?;
        send(b"BARRIER=1", &[ControlMessage::ScmRights(&[writer.as_raw_fd()])])?;
        drop(writer);
        let mut wanted = [PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
        if poll(&mut wanted, PollTimeout::from(BARRIER_TIMEOUT)).with_context(context)? > 0 {
            let mut rest = Vec::new();
            std::fs::File::from(reader).read_to_end(&mut rest).with_context(context)?;
        }
        Ok(())
    }
}
