//! Terminals of containers: handing the pty's master to an engine, or being the terminal in the foreground.

use std::io::{IoSlice, Stdin, Stdout};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, sendmsg, socket,
};
use nix::sys::stat::Mode;
use nix::sys::termios::SpecialCharacterIndices::VEOF;
use nix::sys::termios::{self, OutputFlags, SetArg, Termios};
use nix::unistd::{getpgrp, isatty, read, tcgetpgrp, write};

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

/// Does something to our terminal as a job of a shell does: in the background that stops this process until it is brought to the
/// foreground (termios(3), "tcsetattr" and tty_ioctl(4); SIGTTIN and SIGTTOU are blocked otherwise).
fn as_a_job<T>(act: impl FnOnce() -> T) -> T {
    let signals = SigSet::from_iter([Signal::SIGTTIN, Signal::SIGTTOU]);
    // a mask that cannot be changed leaves the terminal to whoever has it
    let _stoppable = signals.thread_unblock();
    let result = act();
    let _blocked = signals.thread_block();
    result
}

/// False when a shell has given the terminal to another of its jobs.
fn in_foreground() -> bool {
    tcgetpgrp(std::io::stdin()).map_or(true, |group| group == getpgrp())
}

/// The caller's terminal in raw mode; as it was when this is dropped.
#[derive(Debug)]
struct Raw {
    /// How it was and how it is, when standard input is a terminal.
    settings: Option<(Termios, Termios)>,
}

impl Raw {
    fn enter() -> Self {
        let stdin = std::io::stdin();
        let Ok(before) = termios::tcgetattr(stdin.as_fd()) else { return Self { settings: None } };
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        // the container's terminal gives bare line feeds, and this one makes whole line ends of them
        raw.output_flags.insert(OutputFlags::OPOST);
        match as_a_job(|| termios::tcsetattr(stdin.as_fd(), SetArg::TCSADRAIN, &raw)) {
            Ok(()) => Self { settings: Some((before, raw)) },
            Err(_) => Self { settings: None },
        }
    }

    /// After a shell has let us go on: it may have changed the terminal meanwhile.
    fn again(&self) {
        if let Some((_, raw)) = self.settings.as_ref().filter(|_| in_foreground()) {
            // the terminal may have gone
            let _set = termios::tcsetattr(std::io::stdin().as_fd(), SetArg::TCSADRAIN, raw);
        }
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // in the background it is another job's, and the shell has put it right for that one
        if let Some((before, _)) = self.settings.as_ref().filter(|_| in_foreground()) {
            // the terminal may have gone
            let _restored = termios::tcsetattr(std::io::stdin().as_fd(), SetArg::TCSADRAIN, before);
        }
    }
}

/// One of our standard streams. Where it is a terminal that is opened once more: whether it blocks is a property of the open
/// file, which others share.
#[derive(Debug)]
struct Stream<S> {
    standard: S,
    own: Option<OwnedFd>,
}

impl<S: AsFd> Stream<S> {
    fn new(standard: S, mode: OFlag) -> Self {
        let path = format!("/proc/self/fd/{}", standard.as_fd().as_raw_fd());
        let flags = mode | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        // a pty's master opened once more is another pty's
        let is_terminal =
            isatty(&standard).is_ok_and(|yes| yes) && terminal::number(standard.as_fd()).is_err();
        // a terminal of another user's may be used, and not be opened
        let own = is_terminal.then(|| open(path.as_str(), flags, Mode::empty()).ok()).flatten();
        Self { standard, own }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.own.as_ref().map_or(self.standard.as_fd(), AsFd::as_fd)
    }
}

/// What fits into a pipe or a socket that poll(2) calls writable, in bytes: `PIPE_BUF` of pipe(7).
const FITS: usize = 4096;

/// Our standard output. A write that had to wait for a reader would keep signals waiting too.
#[derive(Debug)]
struct Output {
    stream: Stream<Stdout>,
    /// What has not been taken yet. More is read once it is empty: whoever reads slowly slows the container down.
    pending: Vec<u8>,
    /// Nobody reads, or not any more: what comes is thrown away, so that the program is not stuck for ever.
    discard: bool,
}

impl Output {
    fn new(standard: Stdout) -> Self {
        // one that was not opened for writing would never be ready for it
        let flags = fcntl(&standard, FcntlArg::F_GETFL).unwrap_or_default();
        Self {
            discard: flags & libc::O_ACCMODE == libc::O_RDONLY,
            stream: Stream::new(standard, OFlag::O_WRONLY),
            pending: Vec::new(),
        }
    }

    fn give(&mut self) {
        while !self.pending.is_empty() {
            let mut wanted = [PollFd::new(self.stream.fd(), PollFlags::POLLOUT)];
            if poll(&mut wanted, PollTimeout::ZERO).is_ok_and(|ready| ready == 0) {
                return;
            }
            let fits = self.pending.get(..FITS).unwrap_or(&self.pending);
            match write(self.stream.fd(), fits) {
                Ok(length) => {
                    self.pending.drain(..length);
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return,
                Err(_) => {
                    self.discard = true;
                    self.pending.clear();
                }
            }
        }
    }
}

/// A container's terminal between the pty's master and our standard streams.
#[derive(Debug)]
pub struct Relay {
    /// `None` once our terminal has hung up, which hangs the container's up as well.
    master: Option<OwnedFd>,
    /// Input that the master has not taken yet. More is read once it is empty.
    pending: Vec<u8>,
    /// Nothing has been typed since the last line end.
    at_line_start: bool,
    input: Stream<Stdin>,
    input_open: bool,
    output: Output,
    output_open: bool,
    raw: Raw,
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
            master: Some(master),
            pending: Vec::new(),
            at_line_start: true,
            input: Stream::new(std::io::stdin(), OFlag::O_RDONLY),
            input_open: true,
            output: Output::new(std::io::stdout()),
            output_open: true,
            raw: Raw::enter(),
        };
        relay.resize();
        Ok(relay)
    }

    /// Gives the container's terminal the size of ours, where ours has one.
    pub fn resize(&self) {
        let Some(master) = &self.master else { return };
        let size = terminal::size(std::io::stdin().as_fd())
            .or_else(|_| terminal::size(std::io::stdout().as_fd()))
            .or_else(|_| terminal::size(std::io::stderr().as_fd()));
        if let Some(size) = size.ok().filter(|size| *size != (Size { height: 0, width: 0 })) {
            // the container may have ended
            let _resized = terminal::set_size(master.as_fd(), size);
        }
    }

    /// We were stopped and go on: our terminal may be another one's by now, and of another size.
    pub fn go_on(&self) {
        self.raw.again();
        self.resize();
    }

    /// Our standard input and what to wait for there; `None` when it has ended. An end of the connection is told in any case.
    pub fn input_interest(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let events = match self.pending.is_empty() {
            _ if !self.input_open || !self.output_open => None,
            true => Some(PollFlags::POLLIN),
            // only to hear that the terminal has hung up: a pipe's end would be told again and again
            false => self.is_on_a_terminal().then_some(PollFlags::empty()),
        };
        events.map(|events| (self.input.fd(), events))
    }

    /// Our standard output, while it has to take something before more is read.
    pub fn output_interest(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        (!self.output.pending.is_empty()).then(|| (self.output.stream.fd(), PollFlags::POLLOUT))
    }

    /// The master and what to wait for there, until the container's side is closed; nothing while output waits for its reader, or
    /// an end of the container's would be told again and again.
    pub fn master_interest(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let master = self.master.as_ref().filter(|_| self.output_open && self.output.pending.is_empty())?;
        let input = if self.pending.is_empty() { PollFlags::empty() } else { PollFlags::POLLOUT };
        Some((master.as_fd(), PollFlags::POLLIN | input))
    }

    /// There is output that nobody has got yet.
    pub fn has_output(&self) -> bool {
        let Some((master, _)) = self.master_interest() else { return !self.output.pending.is_empty() };
        let mut wanted = [PollFd::new(master, PollFlags::POLLIN)];
        poll(&mut wanted, PollTimeout::ZERO).is_ok()
            && wanted.iter().any(|fd| fd.revents().is_some_and(|events| events.contains(PollFlags::POLLIN)))
    }

    fn is_on_a_terminal(&self) -> bool {
        self.raw.settings.is_some()
    }

    /// Something has happened at our standard input.
    pub fn take_input(&mut self, events: PollFlags) {
        if events.contains(PollFlags::POLLHUP) && self.is_on_a_terminal() {
            // the last descriptor of the master: the kernel hangs the container's terminal up
            (self.master, self.input_open, self.output_open) = (None, false, false);
            return;
        }
        let mut buffer = [0_u8; 8192];
        let mut reading = || read(self.input.fd(), &mut buffer);
        match if self.is_on_a_terminal() { as_a_job(reading) } else { reading() } {
            Ok(0) => self.end_input(),
            Ok(length) => {
                let typed = buffer.get(..length).unwrap_or_default();
                self.at_line_start = typed.ends_with(b"\n");
                self.pending.extend_from_slice(typed);
                self.give_input();
            }
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            Err(_) => self.input_open = false,
        }
    }

    /// What came from a file or a pipe is at its end: whoever reads from the container's terminal hears it as people tell it, with
    /// Ctrl-D; in the middle of a line the first one only ends that.
    fn end_input(&mut self) {
        self.input_open = false;
        let settings = self.master.as_ref().and_then(|master| termios::tcgetattr(master).ok());
        let end = settings.and_then(|settings| settings.control_chars.get(VEOF as usize).copied());
        if let Some(end) = end.filter(|end| *end != 0 && !self.is_on_a_terminal()) {
            self.pending.extend(std::iter::repeat_n(end, if self.at_line_start { 1 } else { 2 }));
            self.give_input();
        }
    }

    /// The master takes input.
    pub fn give_input(&mut self) {
        let Some(master) = &self.master else { return };
        match write(master, &self.pending) {
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

    /// The master has output, or its other side has been closed.
    pub fn take_output(&mut self) {
        let Some(master) = &self.master else { return };
        let mut buffer = [0_u8; 32 * 1024];
        match read(master, &mut buffer) {
            // EIO: nobody has the other side open
            Ok(0) | Err(Errno::EIO) => self.output_open = false,
            Ok(length) if !self.output.discard => {
                self.output.pending.extend_from_slice(buffer.get(..length).unwrap_or_default());
                self.output.give();
            }
            Ok(_) | Err(Errno::EINTR | Errno::EAGAIN) => {}
            Err(_) => self.output_open = false,
        }
    }

    /// Our standard output takes something again, or has gone.
    pub fn give_output(&mut self) {
        self.output.give();
    }
}
