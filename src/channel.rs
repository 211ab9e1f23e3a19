//! The protocol between the runtime and init: one message enum per direction over a `SOCK_SEQPACKET` pair.
//!
//! ```text
//!  runtime                                        init
//!     | clone3 ------------------------------------>|
//!     |<------------------------- Joined + pidfd ---|  from a joiner, which then ends
//!     |<----------------------------------- Enter ---|  into a cgroup that only somebody else can make
//!     | Proceed ------------------------------------>|
//!     |<---------------------------------- MapIds ---|  new user namespace only
//!     | Proceed ------------------------------------>|
//!     |<------------------------- Mount { index } ---|  a source that only the runtime may reach
//!     | Proceed + fd ------------------------------->|
//!     |<----------------------------------- Hooks ---|  prestart, createRuntime
//!     | Proceed ------------------------------------>|
//!     |<---------------------------- Console + fd ---|  the pty's master
//!     |<---------------------------------- Limits ---|  before Listening only
//!     | Proceed ------------------------------------>|
//!     |<----------------------------------- Ready ---|  or Listening + fd: the seccomp listener
//!     | Proceed ------------------------------------>|  state is saved; init goes to the start gate
//!     |<---------------------------- end of file ----|  execve, or Failed before it
//! ```
//!
//! Init says only which planned item it needs, never what to do, so a compromised init can ask for nothing else.
//! `Warn` may come at any time and `Failed` ends the conversation. The end of file before `Ready` means that init was
//! killed. The start gate speaks the same messages over a connection of its own.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use anyhow::{Context, Result, bail};
use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg,
    socketpair,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{self, Hinted, HookFailed};
use crate::sys::descriptors::received;

/// The longest message in bytes. Longer error texts are cut.
const MAX_MESSAGE: usize = 32 * 1024;

/// What init tells the runtime.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromInit {
    /// A joiner has made the container's process (pid as the runtime sees it); its pidfd comes along.
    Joined {
        /// The pid in the runtime's PID namespace.
        pid: i32,
    },
    /// It wants to be taken into its cgroup, which it could not be born in or enter by itself.
    Enter,
    /// The new user namespace waits for its id mappings.
    MapIds,
    /// The source of the planned mount with this index is wanted as a detached mount.
    Mount {
        /// Place in the plan's list of mounts.
        index: usize,
    },
    /// The root is mounted and not yet entered: time for the hooks of the runtime's namespace.
    Hooks,
    /// The terminal is made; the pty's master comes along.
    Console {
        /// N of `/dev/pts/N` in the container.
        number: u32,
    },
    /// Something the user should know.
    Warn(String),
    /// It is about to set its resource limits, for which the runtime has to make room first. Without a listener `Ready` says so too.
    Limits,
    /// All is done but to start.
    Ready,
    /// One of init's namespaces comes along, for [`FromStarter::Namespaces`].
    Namespace,
    /// The same as `Ready` of an init whose filter is loaded and has a listener. It comes along, or is to be fetched.
    Listening {
        /// Its number in init.
        number: RawFd,
    },
    /// It cannot be done.
    Failed(Failure),
}

/// What the runtime tells init.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromRuntime {
    /// Done; go on. May carry the descriptor that was asked for.
    Proceed,
}

/// What is told to an init that waits at its gate.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromStarter {
    /// Run the program.
    Start,
    /// Hand your namespaces out, one a message, in the order of [`Kind::ALL`](crate::namespaces::Kind::ALL).
    Namespaces,
}

/// An error on its way from one process to the other.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Failure {
    /// The whole chain, outermost first.
    pub text: String,
    /// Advice for the reader.
    pub hint: Option<String>,
    /// The kernel's error number at the chain's end.
    pub errno: Option<i32>,
    /// It is a hook that has failed.
    #[serde(default)]
    pub hook: bool,
}

impl From<&anyhow::Error> for Failure {
    fn from(failure: &anyhow::Error) -> Self {
        // a control character is six bytes in JSON, and both together have to fit
        Self {
            text: cut(error::text(failure), MAX_MESSAGE / 8),
            hint: error::hint(failure).map(|hint| cut(hint, MAX_MESSAGE / 32)),
            errno: error::errno(failure).map(|errno| errno as i32),
            hook: failure.is::<HookFailed>(),
        }
    }
}

fn cut(mut text: String, length: usize) -> String {
    let mut end = text.len().min(length);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}

/// The bytes of a message. One that a reader could not take whole is an error.
pub fn encode<M: Serialize>(message: &M) -> Result<Vec<u8>> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() > MAX_MESSAGE {
        bail!("a message of {} bytes is too long for the channel", bytes.len());
    }
    Ok(bytes)
}

/// The message that the bytes are.
pub fn decode<M: DeserializeOwned>(bytes: &[u8]) -> Result<M> {
    serde_json::from_slice(bytes).context("a message on the channel is not of the protocol")
}

impl From<Failure> for anyhow::Error {
    fn from(failure: Failure) -> Self {
        match failure.hint {
            _ if failure.hook => HookFailed(failure.text).into(),
            Some(hint) => Hinted { message: failure.text, hint }.into(),
            None => anyhow::anyhow!("{}", failure.text),
        }
    }
}

/// One end of the conversation.
#[derive(Debug)]
pub struct Channel(OwnedFd);

impl Channel {
    /// Two connected ends, both close-on-exec.
    pub fn pair() -> Result<(Self, Self)> {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .context("make the channel to init")?;
        Ok((Self(ours), Self(theirs)))
    }

    /// For a connection that was accepted or made elsewhere.
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// The descriptor, to keep it open or to wait on it.
    pub fn fd(&self) -> &OwnedFd {
        &self.0
    }

    /// Sends one message, and a descriptor with it.
    pub fn send<M: Serialize>(&self, message: &M, fd: Option<BorrowedFd<'_>>) -> Result<()> {
        let bytes = encode(message)?;
        let fds: Vec<RawFd> = fd.iter().map(AsRawFd::as_raw_fd).collect();
        let control = [ControlMessage::ScmRights(&fds)];
        let control = if fds.is_empty() { &[][..] } else { &control[..] };
        loop {
            match sendmsg::<()>(
                self.0.as_raw_fd(),
                &[IoSlice::new(&bytes)],
                control,
                MsgFlags::MSG_NOSIGNAL,
                None,
            ) {
                Err(Errno::EINTR) => {}
                result => return result.map(drop).context("send over the channel"),
            }
        }
    }

    /// The next message and the descriptor that came with it. `None` at the end of file.
    pub fn receive<M: DeserializeOwned>(&self) -> Result<Option<(M, Option<OwnedFd>)>> {
        let mut buffer = vec![0_u8; MAX_MESSAGE];
        let mut space = cmsg_space!([RawFd; 1]);
        let (length, fd) = loop {
            let mut slices = [IoSliceMut::new(&mut buffer)];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            match recvmsg::<()>(self.0.as_raw_fd(), &mut slices, Some(&mut space), flags) {
                Err(Errno::EINTR) => {}
                Err(Errno::ECONNRESET) => return Ok(None),
                Err(errno) => return Err(errno).context("receive over the channel"),
                Ok(message) => {
                    let mut fd = None;
                    for control in message.cmsgs().context("receive over the channel")? {
                        if let ControlMessageOwned::ScmRights(fds) = control {
                            fd = fds.first().map(|raw| received(*raw));
                        }
                    }
                    break (message.bytes, fd);
                }
            }
        };
        if length == 0 {
            return Ok(None);
        }
        Ok(Some((decode(buffer.get(..length).unwrap_or_default())?, fd)))
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_message_and_its_descriptor_arrive() {
        let (ours, theirs) = Channel::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        theirs.send(&FromInit::Console { number: 3 }, Some(file.as_fd())).unwrap();
        let (message, fd) = ours.receive::<FromInit>().unwrap().unwrap();
        assert!(matches!(message, FromInit::Console { number: 3 }));
        assert!(fd.is_some());
        drop(theirs);
        assert!(ours.receive::<FromInit>().unwrap().is_none());
    }

    #[test]
    fn a_failure_travels_whole() {
        use anyhow::Context;
        let cause = Err::<(), _>(Errno::ENOENT).context("mounts[2]: bind \"/srv\"").unwrap_err();
        let (ours, theirs) = Channel::pair().unwrap();
        theirs.send(&FromInit::Failed(Failure::from(&cause)), None).unwrap();
        let Some((FromInit::Failed(failure), None)) = ours.receive::<FromInit>().unwrap() else { panic!() };
        assert_eq!(failure.errno, Some(libc::ENOENT));
        assert_eq!(error::text(&failure.into()), "mounts[2]: bind \"/srv\": no such file or directory");
    }

    #[test]
    fn a_hooks_failure_is_known_as_one_on_the_other_side() {
        let failure = Failure::from(&HookFailed("hooks.startContainer[0]: x".to_owned()).into());
        let arrived: anyhow::Error = failure.into();
        assert!(arrived.is::<HookFailed>());
        assert_eq!(error::text(&arrived), "hooks.startContainer[0]: x");
        assert!(!anyhow::Error::from(Failure::from(&anyhow::anyhow!("x"))).is::<HookFailed>());
    }

    #[test]
    fn an_endless_error_is_cut_to_fit() {
        for letter in ["ä", "\u{1}"] {
            let long = letter.repeat(MAX_MESSAGE);
            let failure = Failure::from(&error::hinted(long.clone(), long));
            let (ours, theirs) = Channel::pair().unwrap();
            theirs.send(&FromInit::Failed(failure), None).unwrap();
            assert!(ours.receive::<FromInit>().unwrap().is_some());
        }
    }

    #[test]
    fn a_message_that_would_arrive_cut_is_not_sent() {
        let (_ours, theirs) = Channel::pair().unwrap();
        assert!(theirs.send(&FromInit::Warn("a".repeat(MAX_MESSAGE)), None).is_err());
    }
}
