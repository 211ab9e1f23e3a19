//! The listener of a filter with `SCMP_ACT_NOTIFY`: from init to the runtime, and from there to the agent.
//!
//! From the moment in which the filter is loaded, a call that it notifies of waits for the agent, who has no listener yet. So
//! init makes exactly one call in between, which the filter lets through: [`Way`] says which. Then it waits for the
//! runtime's word, and whatever it does from there on the agent hears.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::unistd::{read, write};
use oci_spec::runtime::LinuxSeccomp;
use serde::Serialize;
use serde_json::Value;

use crate::channel::{Channel, FromInit};
use crate::error::hinted;
use crate::seccomp;
use crate::sys::bpf::{FLAG_NEW_LISTENER, Instruction};
use crate::sys::descriptors;
use crate::terminal::Receiver;

/// How init gives the listener to the runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// sendmsg(2), with the descriptor.
    Passed {
        /// The filter lets close(2) through, so init gives its own up before it makes a call that the agent may be asked for. If
        /// that has left, nobody holds the listener, and the call is answered with `ENOSYS`.
        gone_at_once: bool,
    },
    /// write(2) of its number: the runtime takes it by pidfd_getfd(2), for which it needs the right to trace init.
    Fetched,
}

/// The way that a filter leaves open; `None` for a filter without a listener. An error when it leaves none.
pub fn way(program: &[Instruction], flags: u64) -> Result<Option<Way>> {
    if flags & FLAG_NEW_LISTENER == 0 {
        return Ok(None);
    }
    let free = |number: libc::c_long| -> Result<bool> {
        let answers: BTreeSet<u32> = seccomp::answers(program, number)?;
        Ok(answers.iter().all(|answer| seccomp::lets_through(*answer)))
    };
    if free(libc::SYS_sendmsg)? {
        return Ok(Some(Way::Passed { gone_at_once: free(libc::SYS_close)? }));
    }
    if free(libc::SYS_write)? {
        return Ok(Some(Way::Fetched));
    }
    Err(hinted(
        "linux.seccomp: the profile stops both sendmsg and write, and with SCMP_ACT_NOTIFY init hands its listener over with one of them",
        "allow one of the two, whatever its arguments are",
    ))
}

/// All that init needs to hand the listener over, made while memory can still be had.
#[derive(Debug)]
pub struct Offer<'c> {
    channel: &'c Channel,
    way: Way,
    message: Vec<u8>,
}

impl<'c> Offer<'c> {
    /// To be made last of all before the filter is loaded: the listener gets the number that is free now.
    pub fn prepare(channel: &'c Channel, way: Way) -> Result<Self> {
        let number = descriptors::next_number().context("look for a free descriptor")?;
        let message = serde_json::to_vec(&FromInit::Listening { number })?;
        Ok(Self { channel, way, message })
    }

    /// Hands the listener over and waits for the runtime's word; false when the runtime has ended. From here on it is the agent's
    /// alone. Allocates nothing.
    pub fn make(&self, listener: OwnedFd) -> nix::Result<bool> {
        let kept = match self.way {
            Way::Passed { gone_at_once } => {
                descriptors::send_with(self.channel.fd().as_fd(), &self.message, listener.as_fd())?;
                Some(listener).filter(|_| !gone_at_once)
            }
            Way::Fetched => {
                write(self.channel.fd(), &self.message)?;
                Some(listener)
            }
        };
        let mut answer = [0_u8; 64];
        let heard = read(self.channel.fd(), &mut answer)? > 0;
        drop(kept);
        Ok(heard)
    }
}

/// Who answers for the calls that the filter notifies of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agent {
    socket: PathBuf,
    metadata: Option<String>,
}

/// runtime-spec, config-linux.md, "The Container Process State".
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ContainerProcessState<'a> {
    oci_version: &'a str,
    fds: [&'a str; 1],
    pid: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<&'a str>,
    state: Value,
}

impl Agent {
    /// The profile's, which may be named from the bundle. `None` for a profile that notifies nobody.
    pub fn of(profile: &LinuxSeccomp, bundle: &Path) -> Option<Self> {
        let path = profile.listener_path().as_ref().filter(|_| seccomp::notifies(profile))?;
        Some(Self { socket: bundle.join(path), metadata: profile.listener_metadata().clone() })
    }

    /// Sends the listener of the process `pid`, with the container's state as hooks get it, over a connection of its own.
    pub fn send(&self, listener: &OwnedFd, oci_version: &str, pid: i32, state: &[u8]) -> Result<()> {
        let state = serde_json::from_slice(state).context("linux.seccomp.listenerPath: the state")?;
        let metadata = self.metadata.as_deref();
        let message = ContainerProcessState { oci_version, fds: ["seccompFd"], pid, metadata, state };
        let receiver = Receiver::connect("linux.seccomp.listenerPath", &self.socket)?;
        receiver.send(listener.as_fd(), &serde_json::to_string(&message)?)
    }
}
