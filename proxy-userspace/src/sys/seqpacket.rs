//! A pair of `SOCK_SEQPACKET` sockets, by which two processes send each other messages with descriptors: whole, or not.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

/// The most descriptors that a message brings.
const MOST_DESCRIPTORS: usize = 2;

/// A message that came.
#[derive(Debug)]
pub(crate) struct Received {
    /// How many bytes of the buffer it takes.
    pub(crate) len: usize,
    /// What came with it, in the sender's order.
    pub(crate) descriptors: [Option<OwnedFd>; MOST_DESCRIPTORS],
}

/// Two sockets that are each other's peers; neither waits.
///
/// # Errors
/// Out of descriptors.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// Sends a message and copies of up to two descriptors. An empty message would be taken for the end, so none is sent.
///
/// # Errors
/// `WouldBlock` when the peer's queue is full; `ETOOMANYREFS` when too many descriptors are on their way; the peer is gone.
pub(crate) fn send(socket: impl AsFd, message: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    if message.is_empty() || descriptors.len() > MOST_DESCRIPTORS {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    sendmsg(socket, &[IoSlice::new(message)], &mut control, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?;
    Ok(())
}

/// Takes a message; `None` means that the peer is gone.
///
/// # Errors
/// `WouldBlock` when there is none; `InvalidData` for one that is longer than `buffer` or brings more descriptors than two,
/// of which none stays open; the socket's.
pub(crate) fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<Option<Received>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let came = recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, flags)?;
    let mut all = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let mut all = all.by_ref().flatten();
    let descriptors = [(); MOST_DESCRIPTORS].map(|()| all.next());
    // What has no room the kernel closes and tells of (`scm_detach_fds`, net/core/scm.c); the room is aligned, and may be
    // enough for one more.
    if came.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) || all.next().is_some() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok((came.bytes > 0).then_some(Received { len: came.bytes, descriptors }))
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Read as _};

    use rustix::{
        io::{FdFlags, fcntl_getfd},
        pipe::{PipeFlags, pipe_with},
    };

    use super::*;

    /// Whether all that was sent with the writing end has been closed.
    fn is_closed(read: &OwnedFd) -> bool {
        File::from(read.try_clone().unwrap()).read(&mut [0; 1]).is_ok_and(|len| len == 0)
    }

    #[test]
    fn messages_come_whole_with_their_descriptors() {
        let (here, there) = pair().unwrap();
        let mut buffer = [0; 8];
        assert_eq!(receive(&there, &mut buffer).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap();
        send(&here, b"one", &[]).unwrap();
        send(&here, b"two", &[read.as_fd(), write.as_fd()]).unwrap();
        let one = receive(&there, &mut buffer).unwrap().unwrap();
        assert_eq!(&buffer[..one.len], b"one");
        assert!(one.descriptors.iter().all(Option::is_none));
        let two = receive(&there, &mut buffer).unwrap().unwrap();
        assert_eq!(&buffer[..two.len], b"two");
        let [Some(their_read), Some(their_write)] = two.descriptors else { panic!("both came") };
        assert!(fcntl_getfd(&their_write).unwrap().contains(FdFlags::CLOEXEC));
        rustix::io::write(&their_write, b"x").unwrap();
        File::from(read).read_exact(&mut [0; 1]).unwrap();
        drop((write, their_write));
        assert!(is_closed(&their_read));
        drop(here);
        assert!(receive(&there, &mut buffer).unwrap().is_none(), "the peer is gone");
    }

    #[test]
    fn what_is_too_long_or_brings_too_much_leaves_nothing_open() {
        let (here, there) = pair().unwrap();
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap();
        assert!(send(&here, b"", &[]).is_err(), "it would say that the peer is gone");
        assert!(send(&here, b"x", &[write.as_fd(); 3]).is_err());
        send(&here, b"longer than the buffer", &[write.as_fd()]).unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let three = [write.as_fd(); 3];
        assert!(control.push(SendAncillaryMessage::ScmRights(&three)));
        sendmsg(&here, &[IoSlice::new(b"three")], &mut control, SendFlags::NOSIGNAL).unwrap();
        drop(write);
        for _ in 0..2 {
            assert_eq!(receive(&there, &mut [0; 8]).unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
        assert!(is_closed(&read));
    }
}
