//! Terminals of containers: handing the pty's master to an engine, or being the terminal in the foreground.

use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::poll::PollFlags;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, sendmsg, socket,
};
use nix::sys::stat::Mode;
use nix::sys::termios::{self, OutputFlags, SetArg, Termios};
use nix::unistd::{read, write};

use crate::sys::terminal::{self, Size};

/// A socket that somebody waits at for one descriptor (`--console-socket`, `--pidfd-socket`, `listenerPath`).
#[derive(Debug)]
pub struct Receiver {
    socket: OwnedFd,
    option: &'static str,
    path: PathBuf,
}

impl Receiver {
    /// Connects. The path may be longer than a socket's address can be: the directory goes by descriptor.
    pub fn connect(option: &'static str, path: &Path) -> Result<Self> {
        let directory =
            path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let name = path.file_name().unwrap_or_default();
        let connected = || -> nix::Result<OwnedFd> {
            let directory =
                open(directory, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
            let mut address = format!("/proc/self/fd/{}/", directory.as_raw_fd()).into_bytes();
            address.extend_from_slice(name.as_bytes());
            let ours = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
            connect(ours.as_raw_fd(), &UnixAddr::new(std::ffi::OsStr::from_bytes(&address))?)?;
            Ok(ours)
        };
        let socket = connected().with_context(|| format!("{option}: connect to {path:?}"))?;
        Ok(Self { socket, option, path: path.to_owned() })
    }

    /// The same when there is a path.
    pub fn connect_if(option: &'static str, path: Option<&Path>) -> Result<Option<Self>> {
        path.map(|path| Self::connect(option, path)).transpose()
    }

    /// Gives the master of `/dev/pts/NUMBER` to whoever waits for it, or else to us for the foreground.
    pub fn hand_over(console: Option<&Self>, master: OwnedFd, number: u32) -> Result<Option<Relay>> {
        match console {
            Some(socket) => socket.send(master.as_fd(), &format!("/dev/pts/{number}")).map(|()| None),
            None => Relay::new(master).map(Some),
        }
    }

    /// Sends one message with one descriptor, which goes with its first bytes. The text must not be empty: a stream would
    /// drop the descriptor.
    pub fn send(&self, fd: BorrowedFd<'_>, text: &str) -> Result<()> {
        let fds = [fd.as_raw_fd()];
        let control = [ControlMessage::ScmRights(&fds)];
        let (mut rest, mut control) = (text.as_bytes(), control.as_slice());
        while !rest.is_empty() {
            let slices = [IoSlice::new(rest)];
            match sendmsg::<()>(self.socket.as_raw_fd(), &slices, control, MsgFlags::MSG_NOSIGNAL, None) {
                Err(Errno::EINTR) => {}
                result => {
                    let sent = result.with_context(|| format!("{}: send to {:?}", self.option, self.path))?;
                    rest = rest.get(sent..).unwrap_or_default();
                    control = &[];
                }
            }
        }
        Ok(())
    }
}

/// The caller's terminal in raw mode; as it was when this is dropped.
#[derive(Debug)]
struct Raw {
    before: Option<Termios>,
}

impl Raw {
    fn enter() -> Self {
        let stdin = std::io::stdin();
        let before = termios::tcgetattr(stdin.as_fd()).ok();
        if let Some(before) = &before {
            let mut raw = before.clone();
            termios::cfmakeraw(&mut raw);
            // the container's terminal gives bare line feeds, and this one makes whole line ends of them
            raw.output_flags.insert(OutputFlags::OPOST);
            if termios::tcsetattr(stdin.as_fd(), SetArg::TCSADRAIN, &raw).is_err() {
                return Self { before: None };
            }
        }
        Self { before }
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // the terminal may have gone
            let _restored = termios::tcsetattr(std::io::stdin().as_fd(), SetArg::TCSADRAIN, before);
        }
    }
}

/// A container's terminal between the pty's master and our standard streams.
#[derive(Debug)]
pub struct Relay {
    master: OwnedFd,
    /// Input that the master has not taken yet. More is read once it is empty.
    pending: Vec<u8>,
    input_open: bool,
    output_open: bool,
    /// Nobody reads our standard output any more: what comes is thrown away, so that the program is not stuck for ever.
    discard: bool,
    _raw: Raw,
}

impl Relay {
    /// Takes over: our terminal becomes raw and the container's gets its size.
    pub fn new(master: OwnedFd) -> Result<Self> {
        let flags = fcntl(&master, FcntlArg::F_GETFL).context("look at the terminal")?;
        let flags = OFlag::from_bits_truncate(flags) | OFlag::O_NONBLOCK;
        fcntl(&master, FcntlArg::F_SETFL(flags)).context("set the terminal up")?;
        // our terminal makes line ends of line feeds, which must not happen twice
        let mut settings = termios::tcgetattr(&master).context("look at the terminal")?;
        settings.output_flags.remove(OutputFlags::ONLCR);
        termios::tcsetattr(&master, SetArg::TCSANOW, &settings).context("set the terminal up")?;
        let relay = Self {
            master,
            pending: Vec::new(),
            input_open: true,
            output_open: true,
            discard: false,
            _raw: Raw::enter(),
        };
        relay.resize();
        Ok(relay)
    }

    /// Gives the container's terminal the size of ours, where ours has one.
    pub fn resize(&self) {
        let size =
            terminal::size(std::io::stdin().as_fd()).or_else(|_| terminal::size(std::io::stdout().as_fd()));
        if let Some(size) = size.ok().filter(|size| *size != (Size { height: 0, width: 0 })) {
            // the container may have ended
            let _resized = terminal::set_size(self.master.as_fd(), size);
        }
    }

    /// What to wait for: (our standard input, the master).
    pub fn interest(&self) -> (PollFlags, PollFlags) {
        let mut input = PollFlags::empty();
        let mut master = PollFlags::empty();
        if self.input_open && self.pending.is_empty() {
            input |= PollFlags::POLLIN;
        }
        if !self.pending.is_empty() {
            master |= PollFlags::POLLOUT;
        }
        if self.output_open {
            master |= PollFlags::POLLIN;
        }
        (input, master)
    }

    /// True until the container's side is closed and all its output has been passed on.
    pub fn is_open(&self) -> bool {
        self.output_open
    }

    /// The master.
    pub fn master(&self) -> BorrowedFd<'_> {
        self.master.as_fd()
    }

    /// Our standard input can be read.
    pub fn take_input(&mut self) {
        let mut buffer = [0_u8; 8192];
        match read(std::io::stdin().as_fd(), &mut buffer) {
            Ok(0) => self.input_open = false,
            Ok(length) => {
                self.pending.extend_from_slice(buffer.get(..length).unwrap_or_default());
                self.give_input();
            }
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            Err(_) => self.input_open = false,
        }
    }

    /// The master takes input.
    pub fn give_input(&mut self) {
        match write(&self.master, &self.pending) {
            Ok(length) => {
                self.pending.drain(..length);
            }
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            Err(_) => {
                self.pending.clear();
                self.input_open = false;
            }
        }
    }

    /// The master has output. Passed on before more is read: whoever reads slowly slows the container down.
    pub fn take_output(&mut self) {
        let mut buffer = [0_u8; 32 * 1024];
        match read(&self.master, &mut buffer) {
            // EIO: nobody has the other side open
            Ok(0) | Err(Errno::EIO) => self.output_open = false,
            Ok(length) => {
                let output = buffer.get(..length).unwrap_or_default();
                self.discard = self.discard || write_all(std::io::stdout().as_fd(), output).is_err();
            }
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            Err(_) => self.output_open = false,
        }
    }
}

fn write_all(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> nix::Result<()> {
    while !bytes.is_empty() {
        match write(fd, bytes) {
            Ok(length) => bytes = bytes.get(length..).unwrap_or_default(),
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => {
                let mut wanted = [nix::poll::PollFd::new(fd, PollFlags::POLLOUT)];
                nix::poll::poll(&mut wanted, nix::poll::PollTimeout::NONE)?;
            }
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
