//! The start gate: where init waits, all done, until `start` lets it run the program.
//!
//! Init holds a listening socket whose name is in the container's state directory. Whoever can connect knows that init
//! waits (the status `created`); the message [`FromStarter::Start`] opens the gate. The descriptor is close-on-exec, so
//! the kernel itself ends the waiting state when the program runs, even if the starter is killed half-way, and the
//! starter sees the end of file on its connection at that very moment.
//!
//! Until then the kernel hides init, and with it `/proc/PID/ns`, from an ordinary user. Init of a container with a user namespace
//! hands its namespaces out itself, for `exec`; below a filter with a listener it does not.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, connect as connect_socket, listen,
    socket,
};
use nix::sys::stat::Mode;
use nix::unistd::read;

use crate::channel::{Channel, FromInit, FromStarter};
use crate::error::{errno, hinted};
use crate::namespaces::Kind;
use crate::state::Directory;
use crate::sys::descriptors::received;

/// How long a connection may stay without a word (milliseconds). A starter speaks at once.
const LOOK_TIMEOUT: u16 = 1000;
/// How long init may take for its namespaces (milliseconds). It has them at hand, but it may be stopped.
const ANSWER_TIMEOUT: u16 = 5000;
/// The socket's name in the state directory.
pub const SOCKET: &str = "start.sock";
/// [`FromStarter::Start`] as it is sent.
pub const START: &[u8] = b"\"Start\"";
/// [`FromStarter::Namespaces`] as it is sent: the longest word that is said here.
const NAMESPACES: &[u8] = b"\"Namespaces\"";

fn address(directory: &Directory) -> nix::Result<UnixAddr> {
    // through the descriptor: a socket's path may have 107 bytes only
    UnixAddr::new(format!("/proc/self/fd/{}/{SOCKET}", directory.fd().as_raw_fd()).as_str())
}

/// Makes the gate. Init inherits the answer.
pub fn make(directory: &Directory) -> Result<OwnedFd> {
    let make = || -> nix::Result<OwnedFd> {
        let listener = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
        // whatever the caller's umask is: the name gets this mode
        nix::sys::stat::fchmod(&listener, Mode::S_IRUSR | Mode::S_IWUSR)?;
        bind(listener.as_raw_fd(), &address(directory)?)?;
        listen(&listener, Backlog::new(8)?)?;
        Ok(listener)
    };
    make().with_context(|| format!("make {:?}", directory.path().join(SOCKET)))
}

fn try_connect(directory: &Directory, flags: SockFlag) -> nix::Result<OwnedFd> {
    let ours = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC | flags, None)?;
    connect_socket(ours.as_raw_fd(), &address(directory)?)?;
    Ok(ours)
}

/// True when init waits at the gate. Never blocks: with a full queue somebody waits too.
pub fn is_waiting(directory: &Directory) -> bool {
    directory.has(SOCKET)
        && matches!(try_connect(directory, SockFlag::SOCK_NONBLOCK), Ok(_) | Err(Errno::EAGAIN))
}

fn connect(directory: &Directory, flags: SockFlag) -> Result<Channel> {
    let connection = try_connect(directory, flags)
        .with_context(|| format!("connect to {:?}", directory.path().join(SOCKET)))?;
    Ok(Channel::from_fd(connection))
}

/// Says `word` to init, on a new connection when this process stood still for so long that init took it for one that only looks.
fn say(directory: &Directory, flags: SockFlag, mut channel: Channel, word: &FromStarter) -> Result<Channel> {
    loop {
        match channel.send(word, None) {
            Err(error) if errno(&error) == Some(Errno::EPIPE) => channel = connect(directory, flags)?,
            result => return result.map(|()| channel),
        }
    }
}

/// Opens the gate. The answer's end of file says that the program runs; a failure to run it comes before that.
pub fn start(directory: &Directory) -> Result<Channel> {
    let flags = SockFlag::empty();
    say(directory, flags, connect(directory, flags)?, &FromStarter::Start)
}

/// The namespaces (`CLONE_NEW*`) of an init that waits, which it hands out itself.
pub fn namespaces(directory: &Directory, flags: u64) -> Result<Vec<(Kind, OwnedFd)>> {
    let at_once = SockFlag::SOCK_NONBLOCK;
    let channel = say(directory, at_once, connect(directory, at_once)?, &FromStarter::Namespaces)?;
    let receive = |kind| {
        let mut answer = [PollFd::new(channel.fd().as_fd(), PollFlags::POLLIN)];
        if poll(&mut answer, ANSWER_TIMEOUT)? == 0 {
            bail!("the container is only created, and its process does not answer");
        }
        match channel.receive()? {
            Some((FromInit::Namespace, Some(fd))) => Ok((kind, fd)),
            _ => Err(hinted(
                "the container is only created",
                "its process is hidden from an ordinary user until it is started, and below a seccomp filter with an agent it cannot help",
            )),
        }
    };
    Kind::among(flags).map(receive).collect()
}

/// Waits at the gate, in init, which may be under its filter already: accept4, poll, read and close. Connections that only
/// look are let go, and those that ask for its namespaces when they have them: `own`, which is empty below a filter. Allocates
/// nothing unless it fails or is asked.
pub fn wait(listener: &OwnedFd, own: &[OwnedFd]) -> Result<Channel> {
    loop {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let connection = match accept4(listener.as_raw_fd(), flags) {
            Ok(raw) => Channel::from_fd(received(raw)),
            Err(Errno::EINTR | Errno::ECONNABORTED) => continue,
            Err(errno) => return Err(errno).context("wait for start"),
        };
        // whoever only looks may have been frozen between connecting and closing
        let mut spoken = [PollFd::new(connection.fd().as_fd(), PollFlags::POLLIN)];
        let _waited = poll(&mut spoken, PollTimeout::from(LOOK_TIMEOUT));
        let mut said = [0_u8; NAMESPACES.len() + 1];
        // it may have spoken at the last moment
        let length = read(connection.fd(), &mut said).unwrap_or_default();
        match said.get(..length) {
            Some(START) => return Ok(connection),
            Some(NAMESPACES) => {
                // whoever asked may have gone
                let _sent =
                    own.iter().try_for_each(|fd| connection.send(&FromInit::Namespace, Some(fd.as_fd())));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Root;

    #[test]
    fn the_gate_is_seen_from_outside_until_it_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        let claim = Root::make(dir.path(), false).unwrap().claim("web").unwrap();
        assert!(!is_waiting(&claim));
        let listener = make(&claim).unwrap();
        for _ in 0..20 {
            assert!(is_waiting(&claim));
        }
        // another test may just have copied this process with all its descriptors
        nix::sys::socket::shutdown(listener.as_raw_fd(), nix::sys::socket::Shutdown::Both).unwrap();
        assert!(!is_waiting(&claim));
    }

    #[test]
    fn it_is_the_owner_s_whatever_the_umask() {
        let dir = tempfile::tempdir().unwrap();
        let claim = Root::make(dir.path(), false).unwrap().claim("web").unwrap();
        let _listener = make(&claim).unwrap();
        let mode = nix::sys::stat::fstatat(claim.fd(), SOCKET, nix::fcntl::AtFlags::empty()).unwrap().st_mode;
        assert_eq!(mode & 0o077, 0, "{mode:o}");
    }

    #[test]
    fn only_a_start_opens_it() {
        let dir = tempfile::tempdir().unwrap();
        let claim = Root::make(dir.path(), false).unwrap().claim("web").unwrap();
        let listener = make(&claim).unwrap();
        assert!(is_waiting(&claim));
        let starter = start(&claim).unwrap();
        let connection = wait(&listener, &[]).unwrap();
        drop(connection);
        assert!(starter.receive::<FromInit>().unwrap().is_none());
    }

    #[test]
    fn a_starter_that_was_let_go_comes_again() {
        let dir = tempfile::tempdir().unwrap();
        let claim = Root::make(dir.path(), false).unwrap().claim("web").unwrap();
        let listener = make(&claim).unwrap();
        let flags = SockFlag::empty();
        let slow = connect(&claim, flags).unwrap();
        drop(received(accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC).unwrap()));
        let starter = say(&claim, flags, slow, &FromStarter::Start).unwrap();
        drop(wait(&listener, &[]).unwrap());
        assert!(starter.receive::<FromInit>().unwrap().is_none());
    }

    #[test]
    fn the_words_are_what_the_messages_are_sent_as() {
        for (word, message) in [(START, FromStarter::Start), (NAMESPACES, FromStarter::Namespaces)] {
            assert_eq!(crate::channel::encode(&message).unwrap(), word);
        }
    }
}
