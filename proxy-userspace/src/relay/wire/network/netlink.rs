//! Questions to the kernel by netlink. It answers a question while it is sent, so that nothing here ever waits.

use std::{
    io,
    marker::PhantomData,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    NetlinkSerializable,
};
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, bind, connect,
    netlink::SocketAddrNetlink, recv, send, socket_with,
};

/// The longest answer: the kernel makes none that is longer, whatever room there is (`netlink_recvmsg`,
/// net/netlink/af_netlink.c).
const LONGEST: usize = 64 * 1024;

/// The kernel's end of one netlink protocol.
#[derive(Debug)]
pub(crate) struct Netlink<T> {
    socket: OwnedFd,
    sequence: u32,
    buffer: Box<[u8]>,
    messages: PhantomData<fn() -> T>,
}

impl<T: NetlinkSerializable + NetlinkDeserializable> Netlink<T> {
    /// Opens a socket that hears of changes in `groups` (netlink(7)), or, without any, is for questions.
    ///
    /// # Errors
    /// The kernel has no such protocol.
    pub(crate) fn open(protocol: Option<Protocol>, groups: u32) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
        bind(&socket, &SocketAddrNetlink::new(0, groups))?;
        // A connected socket takes nothing from other processes (`netlink_getsockbyportid`, net/netlink/af_netlink.c).
        connect(&socket, &SocketAddrNetlink::new(0, 0))?;
        let buffer = vec![0; LONGEST].into_boxed_slice();
        Ok(Self { socket, sequence: 0, buffer, messages: PhantomData })
    }

    /// Asks, and returns all that is answered.
    ///
    /// # Errors
    /// What the kernel answers.
    pub(crate) fn ask(&mut self, question: T, flags: u16) -> io::Result<Vec<T>> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        header.sequence_number = self.sequence;
        let mut question = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(question));
        question.finalize();
        let mut bytes = vec![0; question.buffer_len()];
        question.serialize(&mut bytes);
        send(&self.socket, &bytes, SendFlags::DONTWAIT)?;
        let mut answers = Vec::new();
        loop {
            let len = recv(&self.socket, &mut *self.buffer, RecvFlags::DONTWAIT)?.0;
            for message in messages(self.buffer.get(..len).unwrap_or_default()) {
                if message.header.sequence_number != self.sequence {
                    // Left over from a question that ended in an error.
                    continue;
                }
                match message.payload {
                    NetlinkPayload::InnerMessage(answer) => answers.push(answer),
                    NetlinkPayload::Done(_) => return Ok(answers),
                    NetlinkPayload::Error(error) if error.code.is_none() => return Ok(answers),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    _ => {}
                }
            }
        }
    }

    /// Takes what changed, in one piece.
    ///
    /// # Errors
    /// `WouldBlock` when nothing did; `ENOBUFS` when more did than there was room for.
    pub(super) fn hear(&mut self) -> io::Result<Vec<T>> {
        let len = recv(&self.socket, &mut *self.buffer, RecvFlags::DONTWAIT)?.0;
        let heard = messages(self.buffer.get(..len).unwrap_or_default());
        Ok(heard
            .filter_map(|message| match message.payload {
                NetlinkPayload::InnerMessage(change) => Some(change),
                _ => None,
            })
            .collect())
    }
}

impl<T> AsFd for Netlink<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The messages in what was received. One that the crate does not understand is left out.
fn messages<T: NetlinkDeserializable>(mut bytes: &[u8]) -> impl Iterator<Item = NetlinkMessage<T>> {
    std::iter::from_fn(move || {
        while let Some(len) = bytes.first_chunk().map(|len| u32::from_ne_bytes(*len) as usize) {
            let message = bytes.get(..len).map(NetlinkMessage::deserialize);
            // Each begins at a multiple of 4 bytes (`NLMSG_ALIGN`). A length of 0 is none.
            bytes = bytes.get(len.next_multiple_of(4).max(4)..).unwrap_or_default();
            if let Some(Ok(message)) = message {
                return Some(message);
            }
        }
        None
    })
}
