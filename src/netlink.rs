//! Requests to the kernel's network configuration (rtnetlink(7)): send one, wait for its answer.

use std::io::Error;
use std::os::fd::AsFd;

use anyhow::{Context, Result, anyhow};
use netlink_packet_core::{
    DecodeError, Emitable, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST,
    NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable, Parseable,
};
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::LinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::errno::Errno;

use crate::sys::tasks;

/// What is asked and answered here. The library's own type of all messages of rtnetlink would be a twentieth of berth.
#[derive(Debug)]
enum Body {
    Link(LinkMessage),
    Address(AddressMessage),
}

#[derive(Debug)]
struct Message {
    /// `RTM_NEWLINK` and the like.
    kind: u16,
    body: Body,
}

impl NetlinkSerializable for Message {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        match &self.body {
            Body::Link(link) => link.buffer_len(),
            Body::Address(address) => address.buffer_len(),
        }
    }

    fn serialize(&self, buffer: &mut [u8]) {
        match &self.body {
            Body::Link(link) => link.emit(buffer),
            Body::Address(address) => address.emit(buffer),
        }
    }
}

impl NetlinkDeserializable for Message {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        let body = match header.message_type {
            libc::RTM_NEWLINK => Body::Link(LinkMessage::parse(payload)?),
            libc::RTM_NEWADDR => Body::Address(AddressMessage::parse(payload)?),
            other => return Err(format!("message type {other} was not asked for").into()),
        };
        Ok(Self { kind: header.message_type, body })
    }
}

/// A conversation with one network namespace, the one that the thread was in when it began.
pub struct Netlink(Socket);

impl std::fmt::Debug for Netlink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Netlink")
    }
}

impl Netlink {
    /// With this process's own network namespace.
    pub fn open() -> Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE).context("netlink socket")?;
        socket.bind_auto().context("netlink socket")?;
        Ok(Self(socket))
    }

    /// With the network namespace `there`; this process is back in its own, `ours`, when it returns.
    pub fn open_in(there: impl AsFd, ours: impl AsFd) -> Result<Self> {
        const NETWORK: u64 = libc::CLONE_NEWNET as u64;
        tasks::setns(there.as_fd(), NETWORK).context("enter the network namespace")?;
        let opened = Self::open();
        tasks::setns(ours.as_fd(), NETWORK).context("come back from the network namespace")?;
        opened
    }

    /// All interfaces.
    pub fn links(&self) -> Result<Vec<LinkMessage>> {
        let answers = self.dump(libc::RTM_GETLINK, Body::Link(LinkMessage::default()))?;
        Ok(answers
            .into_iter()
            .filter_map(|answer| match answer.body {
                Body::Link(link) => Some(link),
                Body::Address(_) => None,
            })
            .collect())
    }

    /// The addresses of all interfaces.
    pub fn addresses(&self) -> Result<Vec<AddressMessage>> {
        let answers = self.dump(libc::RTM_GETADDR, Body::Address(AddressMessage::default()))?;
        Ok(answers
            .into_iter()
            .filter_map(|answer| match answer.body {
                Body::Address(address) => Some(address),
                Body::Link(_) => None,
            })
            .collect())
    }

    /// Changes an interface. The kernel's errno is in the error's chain.
    pub fn set_link(&self, link: LinkMessage) -> Result<()> {
        self.ask(Message { kind: libc::RTM_SETLINK, body: Body::Link(link) }, 0)
    }

    /// Gives an interface an address that it does not have.
    pub fn add_address(&self, address: AddressMessage) -> Result<()> {
        let message = Message { kind: libc::RTM_NEWADDR, body: Body::Address(address) };
        self.ask(message, NLM_F_CREATE | NLM_F_EXCL)
    }

    fn ask(&self, message: Message, flags: u16) -> Result<()> {
        self.send(message, NLM_F_REQUEST | NLM_F_ACK | flags)?;
        self.receive().map(drop)
    }

    fn dump(&self, kind: u16, body: Body) -> Result<Vec<Message>> {
        self.send(Message { kind, body }, NLM_F_REQUEST | NLM_F_DUMP)?;
        self.receive()
    }

    fn send(&self, message: Message, flags: u16) -> Result<()> {
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        self.0.send_to(&bytes, &SocketAddr::new(0, 0), 0).context("ask the kernel by netlink")?;
        Ok(())
    }

    /// What comes up to the end of the answer or its acknowledgement.
    fn receive(&self) -> Result<Vec<Message>> {
        let mut answers = Vec::new();
        loop {
            let (bytes, _) = self.0.recv_from_full().context("the kernel's answer by netlink")?;
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let packet = NetlinkMessage::<Message>::deserialize(rest)
                    .map_err(|error| anyhow!("the kernel's answer by netlink: {error}"))?;
                let length = usize::try_from(packet.header.length)?.next_multiple_of(4);
                match packet.payload {
                    NetlinkPayload::InnerMessage(message) => answers.push(message),
                    NetlinkPayload::Error(error) => match error.code {
                        Some(code) => return Err(Errno::from_raw(code.get().saturating_neg()).into()),
                        None => return Ok(answers),
                    },
                    NetlinkPayload::Done(_) => return Ok(answers),
                    NetlinkPayload::Overrun(_) => return Err(Error::from_raw_os_error(libc::ENOBUFS).into()),
                    _ => {}
                }
                rest = rest.get(length.max(16)..).unwrap_or_default();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::link::{LinkAttribute, LinkFlags};

    use super::*;

    #[test]
    fn the_loopback_interface_is_there_and_what_is_not_there_is_an_errno() {
        let netlink = Netlink::open().unwrap();
        let links = netlink.links().unwrap();
        let name = LinkAttribute::IfName("lo".to_owned());
        let lo = links.iter().find(|link| link.attributes.contains(&name)).unwrap();
        assert!(lo.header.flags.contains(LinkFlags::Loopback));
        let mut nothing = LinkMessage::default();
        nothing.header.index = 0x7fff_fff0;
        let error = netlink.set_link(nothing).unwrap_err();
        assert!(
            [Some(Errno::ENODEV), Some(Errno::EPERM)].contains(&crate::error::errno(&error)),
            "{error:#}"
        );
    }
}
