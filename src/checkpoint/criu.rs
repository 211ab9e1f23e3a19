//! CRIU's process and the conversation with it: `criu swrk 3` takes requests of `images/rpc.proto` over a socket at its
//! descriptor 3, asks back at some points ("notify"), and answers once.
//!
//! The program is found at fixed places and not by the caller's `PATH`: it runs as the host's root and does what it likes.
//! For the same reason it gets an environment of our own.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::cmsg_space;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, send, socketpair,
};
use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;

use super::protobuf::{Message, Value, fields};
use crate::channel::{Channel, Failure, FromInit, FromRuntime};
use crate::error::{Hinted, hinted};
use crate::process::{fate, fate_of, reap};
use crate::sys::descriptors::{cloexec_from, place, received};
use crate::sys::tasks::{self, CStrings, Clone, Cloned, exit_now};

/// Where distributions and `make install` put the program.
const PROGRAMS: &[&str] = &[
    "/usr/sbin/criu",
    "/usr/bin/criu",
    "/sbin/criu",
    "/bin/criu",
    "/usr/local/sbin/criu",
    "/usr/local/bin/criu",
];
/// It runs tar(1), iptables-restore(8) and the like.
const ENVIRONMENT: &str = "PATH=/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin";
/// Where it expects the socket.
const SOCKET: RawFd = 3;
/// The number of the first descriptor that it is handed besides.
pub const FIRST_PASSED: RawFd = SOCKET + 1;
/// The oldest one that does all that is asked for: label options and mounts of their own file system came with it.
const OLDEST: (u64, u64) = (3, 16);
/// The longest answer, in bytes.
const MAX_ANSWER: usize = 64 * 1024;

/// Numbers of `criu_req_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Save all.
    Dump = 1,
    /// Restore all.
    Restore = 2,
    /// Save memory.
    PreDump = 4,
    Notify = 6,
    FeatureCheck = 9,
    Version = 10,
}

impl Kind {
    /// As it stands in error messages, which are runc's.
    fn name(self) -> &'static str {
        match self {
            Self::Dump => "dump",
            Self::Restore => "restore",
            Self::PreDump => "pre-dump",
            Self::Notify => "notify",
            Self::FeatureCheck => "feature check",
            Self::Version => "version",
        }
    }
}

/// What CRIU asks or tells on its way.
#[derive(Debug)]
pub struct Notice {
    /// The name of the point: `post-restore`.
    pub point: String,
    /// The root task of what is restored.
    pub pid: Option<Pid>,
    /// A descriptor that came along.
    pub fd: Option<OwnedFd>,
}

/// The program, when it is installed.
pub fn program() -> Option<&'static str> {
    PROGRAMS.iter().copied().find(|path| Path::new(path).is_file())
}

/// The program's path.
pub fn find() -> Result<CString> {
    let Some(path) = program() else {
        return Err(hinted(
            format!("criu is not installed: looked for {}", PROGRAMS.join(", ")),
            "install CRIU (package criu), 3.16 or newer",
        ));
    };
    Ok(CString::new(path)?)
}

/// A running CRIU. When it is dropped the conversation ends, which makes it take back what it has begun.
#[derive(Debug)]
pub struct Criu {
    /// Its pid.
    pub pid: Pid,
    pidfd: OwnedFd,
    socket: Option<OwnedFd>,
    ended: bool,
}

/// What the new process does before it becomes CRIU. The answer are descriptors for it, from [`FIRST_PASSED`] on.
pub type Prepare<'a> = dyn FnOnce(&Channel) -> Result<Vec<OwnedFd>> + 'a;

impl Criu {
    /// Starts it. `born_in` is a cgroup v2 directory, `prepare` runs in the new process, `enter` in this one when the new one asks
    /// to be taken into its cgroup.
    pub fn start(
        born_in: Option<BorrowedFd<'_>>,
        prepare: Box<Prepare<'_>>,
        enter: &mut dyn FnMut(Pid) -> Result<()>,
    ) -> Result<Self> {
        let program = find()?;
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .context("make the socket to criu")?;
        let (channel, their_channel) = Channel::pair()?;
        let clone = Clone { cgroup: born_in, ..Clone::default() };
        let (pid, pidfd) = match clone.run().context("clone criu's process")? {
            Cloned::New => {
                drop((ours, channel));
                become_criu(&program, &theirs, their_channel, prepare)
            }
            Cloned::Caller(pid, pidfd) => (pid, pidfd),
        };
        drop((theirs, their_channel));
        let criu = Self { pid, pidfd, socket: Some(ours), ended: false };
        let served = serve(&channel, pid, enter);
        // before it is waited for: it may be waiting for us
        drop(channel);
        served.map(|()| criu)
    }

    /// Refuses a CRIU that is too old.
    pub fn check_version(&self) -> Result<()> {
        let mut request = Message::default();
        request.number(1, Kind::Version as i64);
        request.flag(4, true);
        let answer = self.ask(Kind::Version, &request, &mut |_| Ok(()))?;
        let version = answer.message(10);
        let found = (version.number(1).unwrap_or(0), version.number(2).unwrap_or(0));
        if found < OLDEST {
            return Err(hinted(
                format!("criu {}.{} is too old", found.0, found.1),
                format!("{}.{} or newer is needed", OLDEST.0, OLDEST.1),
            ));
        }
        Ok(())
    }

    /// Refuses what this kernel or CRIU cannot do: a field of `criu_features`, and what it is for.
    pub fn check_feature(&self, field: u32, option: &str) -> Result<()> {
        let mut features = Message::default();
        features.flag(field, true);
        let mut request = Message::default();
        request.number(1, Kind::FeatureCheck as i64);
        request.flag(4, true);
        request.message(5, &features);
        let answer =
            self.ask(Kind::FeatureCheck, &request, &mut |_| Ok(())).with_context(|| option.to_owned())?;
        if answer.message(8).number(field) == Some(1) {
            return Ok(());
        }
        Err(hinted(format!("{option}: this kernel or criu cannot do it"), "`criu check --all` tells more"))
    }

    /// Sends `options` as the one request that matters, serves what is asked back, and waits for the answer and the end. What is
    /// odd about an end after the answer that all is done is told and changes nothing.
    pub fn run(
        mut self,
        kind: Kind,
        options: &Message,
        notify: &mut dyn FnMut(Notice) -> Result<()>,
    ) -> Result<Option<String>> {
        let mut request = Message::default();
        request.number(1, kind as i64);
        request.message(2, options);
        self.ask(kind, &request, notify)?;
        Ok(match self.end()? {
            WaitStatus::Exited(_, 0) => None,
            // it waits for the next one, and is not content when the conversation ends
            _ if kind == Kind::PreDump => None,
            status => Some(format!("criu has done all, and {}", fate_of(status))),
        })
    }

    fn ask(
        &self,
        kind: Kind,
        request: &Message,
        notify: &mut dyn FnMut(Notice) -> Result<()>,
    ) -> Result<Answer> {
        self.send(request)?;
        let mut refusal = None;
        loop {
            let Some((answer, fd)) = self.receive()? else {
                let how = fate(self.pidfd.as_fd());
                return Err(
                    refusal.unwrap_or_else(|| anyhow::anyhow!("criu failed: it {how} without an answer"))
                );
            };
            if answer.number(2) != Some(1) {
                if let Some(refusal) = refusal {
                    return Err(refusal);
                }
                let errno = answer.number(7).unwrap_or(0);
                let message = format!("criu failed: type {} errno {errno}", kind.name());
                return Err(match answer.text(9) {
                    Some(hint) => Hinted { message, hint }.into(),
                    None => anyhow::anyhow!(message),
                });
            }
            match answer.number(1) {
                Some(number) if number == Kind::Notify as u64 => {
                    let notice = answer.message(5);
                    let result = notify(Notice {
                        point: notice.text(1).unwrap_or_default(),
                        pid: notice.number(2).and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw),
                        fd,
                    });
                    let mut reply = Message::default();
                    reply.number(1, Kind::Notify as i64);
                    reply.flag(3, result.is_ok());
                    refusal = refusal.or(result.err());
                    self.send(&reply)?;
                }
                Some(number) if number == kind as u64 => return Ok(answer),
                other => bail!("criu failed: it answers with type {other:?}"),
            }
        }
    }

    fn socket(&self) -> Result<&OwnedFd> {
        self.socket.as_ref().context("the conversation with criu is over")
    }

    fn send(&self, message: &Message) -> Result<()> {
        let socket = self.socket()?;
        match send(socket.as_raw_fd(), message.as_bytes(), MsgFlags::MSG_NOSIGNAL) {
            // what it has said before it ended is still there to be read
            Ok(_) | Err(Errno::EPIPE | Errno::ECONNRESET) => Ok(()),
            Err(errno) => Err(errno).context("send to criu"),
        }
    }

    /// The next message. `None` when it has ended and said all: a task of the container may keep the socket open.
    fn receive(&self) -> Result<Option<(Answer, Option<OwnedFd>)>> {
        let socket = self.socket()?;
        let mut wanted = [
            PollFd::new(socket.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN),
        ];
        while let Err(errno) = poll(&mut wanted, PollTimeout::NONE) {
            if errno != Errno::EINTR {
                return Err(errno).context("wait for criu");
            }
        }
        if !wanted.first().and_then(PollFd::any).unwrap_or(false) {
            return Ok(None);
        }
        let mut buffer = vec![0_u8; MAX_ANSWER];
        let mut space = cmsg_space!([RawFd; 1]);
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = match recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut space), flags) {
            Err(Errno::ECONNRESET) => return Ok(None),
            result => result.context("receive from criu")?,
        };
        let mut fd = None;
        for control in message.cmsgs().context("receive from criu")? {
            if let ControlMessageOwned::ScmRights(fds) = control {
                fd = fds.first().map(|raw| received(*raw));
            }
        }
        let length = message.bytes;
        if length == 0 {
            return Ok(None);
        }
        let answer = Answer::parse(buffer.get(..length).unwrap_or_default());
        Ok(Some((answer.context("criu failed: its answer is not of the protocol")?, fd)))
    }

    fn end(&mut self) -> Result<WaitStatus> {
        self.socket = None;
        self.ended = true;
        reap(self.pidfd.as_fd()).context("wait for criu")
    }
}

impl Drop for Criu {
    fn drop(&mut self) {
        if !self.ended {
            // without us to answer it fails at the next point where it asks, which is before it lets anything run
            let _status = self.end();
        }
    }
}

/// Until the end of file, which is execve.
fn serve(channel: &Channel, pid: Pid, enter: &mut dyn FnMut(Pid) -> Result<()>) -> Result<()> {
    while let Some((message, _)) = channel.receive::<FromInit>()? {
        match message {
            FromInit::Enter => {
                enter(pid)?;
                channel.send(&FromRuntime::Proceed, None)?;
            }
            FromInit::Failed(failure) => return Err(failure.into()),
            _ => bail!("criu's process broke the protocol"),
        }
    }
    Ok(())
}

fn become_criu(program: &CString, socket: &OwnedFd, mut channel: Channel, prepare: Box<Prepare<'_>>) -> ! {
    let failure = match try_to_become(program, socket, &mut channel, prepare) {
        Ok(errno) => anyhow::Error::new(errno).context(format!("run {program:?}")),
        Err(failure) => failure,
    };
    // nobody is left to tell when this fails
    let _told = channel.send(&FromInit::Failed(Failure::from(&failure)), None);
    exit_now(1)
}

fn try_to_become(
    program: &CString,
    socket: &OwnedFd,
    channel: &mut Channel,
    prepare: Box<Prepare<'_>>,
) -> Result<Errno> {
    let passed = prepare(channel)?;
    *channel = arrange(socket, channel, &passed).context("arrange criu's descriptors")?;
    tasks::reset_signals().context("reset signals")?;
    let args = CStrings::new(vec![c"criu".to_owned(), c"swrk".to_owned(), c"3".to_owned()]);
    let env = CStrings::new(vec![CString::new(ENVIRONMENT)?]);
    Ok(tasks::execve(program, &args, &env))
}

/// The socket to 3, the others to 4 and on, and nothing else but the streams and, until execve, the channel.
fn arrange(socket: &OwnedFd, channel: &Channel, passed: &[OwnedFd]) -> nix::Result<Channel> {
    let free = FIRST_PASSED + RawFd::try_from(passed.len()).unwrap_or(RawFd::MAX / 2);
    // out of the way first, so that none lies where another one goes
    let above = |fd: BorrowedFd<'_>| fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(free)).map(received);
    let socket = above(socket.as_fd())?;
    let channel = above(channel.fd().as_fd())?;
    let passed = passed.iter().map(|fd| above(fd.as_fd())).collect::<nix::Result<Vec<_>>>()?;
    place(socket.as_fd(), SOCKET)?;
    for (number, fd) in (FIRST_PASSED..).zip(&passed) {
        place(fd.as_fd(), number)?;
    }
    cloexec_from(free)?;
    Ok(Channel::from_fd(channel))
}

/// A message of CRIU's.
#[derive(Debug, Default)]
struct Answer {
    numbers: BTreeMap<u32, u64>,
    bytes: BTreeMap<u32, Vec<u8>>,
}

impl Answer {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let mut answer = Self::default();
        for (field, value) in fields(bytes)? {
            match value {
                Value::Number(number) => drop(answer.numbers.insert(field, number)),
                Value::Bytes(bytes) => drop(answer.bytes.insert(field, bytes.to_vec())),
            }
        }
        Some(answer)
    }

    fn number(&self, field: u32) -> Option<u64> {
        self.numbers.get(&field).copied()
    }

    fn text(&self, field: u32) -> Option<String> {
        self.bytes.get(&field).map(|bytes| String::from_utf8_lossy(bytes).trim().to_owned())
    }

    /// A message in it; without fields when it is not there.
    fn message(&self, field: u32) -> Self {
        self.bytes.get(&field).and_then(|bytes| Self::parse(bytes)).unwrap_or_default()
    }
}
