//! Passes the listening sockets to a successor, so that an upgrade refuses no client where there is no systemd to hold
//! them.
//!
//! The successor (`setu run --replace`) connects to a socket in the state directory, which only setu's user and root can
//! reach, and says the secret of this instance, which is in a file beside it. It receives the listening sockets themselves:
//! connections wait in their queues whoever accepts them. Once it serves it says so, and its predecessor drains. If it fails
//! before, the predecessor goes on as if nothing had been. With that it says where its keeper has connections on the wire
//! pinned: those that the predecessor has at the same place are left to it, and all others are the predecessor's to the end.
//!
//! ```text
//! successor                       predecessor
//!   sockets? secret ──────────────►  (same user, or root, and the secret?)
//!           ◄──────────────────────  address, sockets   (for each address)
//!           ◄──────────────────────  end
//!   binds what else it needs, starts, accepts
//!   ready, pins ──────────────────►  drains
//! ```

use std::{
    fs,
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    net::{SocketAddr, TcpListener},
    os::fd::{AsFd as _, OwnedFd},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::mpsc as blocking,
    thread,
    time::Duration,
};

use rustix::{
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect,
        listen, recv, recvmsg, send, sendmsg, socket_with,
        sockopt::{Timeout, set_socket_timeout, socket_peercred},
    },
    process::geteuid,
};
use tokio::sync::mpsc;
use tracing::{info, warn};
use zeroize::Zeroizing;

use crate::{
    front::listener::Bound,
    sys::{
        self,
        state_dir::{HANDOVER, HANDOVER_SECRET, StateDir},
    },
};

/// How long each side waits for the other. Starting takes a second or two, with the kernel path's self-test.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long for what is answered at once.
const PROMPT: Duration = Duration::from_secs(5);
/// How long a successor may take to say the secret: others wait behind it.
const BRIEF: Duration = Duration::from_secs(1);
/// Descriptors in one message; the kernel takes 253 (`SCM_MAX_FD`).
const AT_ONCE: usize = 64;
const ASK: &[u8] = b"sockets?";
/// Bytes of a secret.
const SECRET: usize = 32;
const END: &[u8] = b"end";
const READY: &[u8] = b"ready";
/// The longest message of a successor, bytes; a path is no longer.
const LONGEST: usize = READY.len() + 4096;

/// What a successor asks for.
#[derive(Debug)]
pub(super) enum Request {
    /// Duplicates of the listening sockets.
    Sockets(blocking::Sender<Vec<Bound>>),
    /// To drain: it serves. The folder of its pins; nothing where it has none.
    Drain(String),
}

/// A setu that runs, and has passed its sockets.
#[derive(Debug)]
pub(crate) struct Predecessor(OwnedFd);

impl Predecessor {
    /// Asks the setu with this state directory for its sockets.
    ///
    /// # Errors
    /// There is none, or it does not answer.
    pub(crate) fn find(state_dir: &Path) -> io::Result<(Self, Vec<Bound>)> {
        let socket = socket()?;
        connect(&socket, &SocketAddrUnix::new(state_dir.join(HANDOVER))?)?;
        // Whoever may write there might have put a socket of his own there; whose directory it is may.
        let user = socket_peercred(&socket)?.uid;
        if !user.is_root() && user != geteuid() && user.as_raw() != fs::metadata(state_dir)?.uid() {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        set_socket_timeout(&socket, Timeout::Recv, Some(PROMPT))?;
        // One of a version that had no secrets wants none.
        let secret = match StateDir::there(state_dir)?.read(HANDOVER_SECRET) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            secret => secret?,
        };
        send(&socket, &Zeroizing::new([ASK, &secret].concat()), SendFlags::NOSIGNAL)?;
        let mut all: Vec<Bound> = Vec::new();
        while let Some(bound) = receive(&socket)? {
            match all.last_mut() {
                Some(last) if last.address == bound.address => last.sockets.extend(bound.sockets),
                _ => all.push(bound),
            }
        }
        Ok((Self(socket), all))
    }

    /// Makes it drain. `pins`: the folder of this one's, if it has some.
    pub(super) fn drain(self, pins: Option<&str>) {
        let message = [READY, pins.unwrap_or_default().as_bytes()].concat();
        if let Err(error) = send(&self.0, &message, SendFlags::NOSIGNAL) {
            warn!(%error, "the setu that is replaced cannot be told; stop it");
        }
    }
}

/// Where successors come. Dropping it takes the file away, unless a successor has put its own there.
#[derive(Debug)]
pub(super) struct Door {
    path: PathBuf,
    passed_on: bool,
}

impl Door {
    /// Waits for successors on a thread of its own, and passes on what they ask for. With `replace` the door of the
    /// predecessor is taken away; otherwise it stays.
    ///
    /// # Errors
    /// Nothing can be made in the state directory, or another setu has its door there.
    pub(super) fn open(
        state_dir: &Path,
        replace: bool,
        requests: mpsc::UnboundedSender<Request>,
    ) -> io::Result<Self> {
        let path = state_dir.join(HANDOVER);
        let address = SocketAddrUnix::new(&path)?;
        if !replace && connect(&socket()?, &address).is_ok() {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "another setu uses this state directory"));
        }
        let secret: Zeroizing<[u8; SECRET]> = sys::random();
        StateDir::open(state_dir)?.write(HANDOVER_SECRET, &*secret)?;
        // An error shows when it is made anew.
        let _ = fs::remove_file(&path);
        let door = socket()?;
        bind(&door, &address)?;
        listen(&door, 1)?;
        thread::Builder::new().name("setu-handover".into()).spawn(move || {
            while let Ok(successor) = accept_with(&door, SocketFlags::CLOEXEC) {
                match pass(&successor, &secret, &requests) {
                    Ok(true) => break,
                    Ok(false) => {}
                    Err(error) => warn!(%error, "a successor did not take over; this setu goes on"),
                }
            }
        })?;
        Ok(Self { path, passed_on: false })
    }

    /// The successor has a door of its own.
    pub(super) fn pass_on(&mut self) {
        self.passed_on = true;
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        if !self.passed_on {
            // Whoever finds it finds nobody behind it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Serves one successor. Returns whether it has taken over.
fn pass(
    successor: &OwnedFd,
    secret: &[u8; SECRET],
    requests: &mpsc::UnboundedSender<Request>,
) -> io::Result<bool> {
    let user = socket_peercred(successor)?.uid;
    if !user.is_root() && user != geteuid() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    set_socket_timeout(successor, Timeout::Recv, Some(BRIEF))?;
    let message = hear(successor)?;
    set_socket_timeout(successor, Timeout::Recv, Some(PATIENCE))?;
    if message.is_empty() {
        // It only wanted to know whether somebody is here.
        return Ok(false);
    }
    if message.strip_prefix(ASK) != Some(secret) {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "it does not know the secret"));
    }
    let (reply, sockets) = blocking::channel();
    let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
    requests.send(Request::Sockets(reply)).map_err(|_| io::ErrorKind::BrokenPipe)?;
    let all = sockets.recv_timeout(PROMPT).map_err(gone)?;
    info!("a successor takes over");
    for bound in &all {
        for part in bound.sockets.chunks(AT_ONCE) {
            let text = format!("{} {}", bound.wanted, bound.address);
            let descriptors: Vec<_> = part.iter().map(|socket| socket.as_fd()).collect();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(AT_ONCE))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            control.push(SendAncillaryMessage::ScmRights(&descriptors));
            sendmsg(successor, &[IoSlice::new(text.as_bytes())], &mut control, SendFlags::NOSIGNAL)?;
        }
    }
    send(successor, END, SendFlags::NOSIGNAL)?;
    let message = hear(successor)?;
    let pins = message.strip_prefix(READY).ok_or(io::ErrorKind::UnexpectedEof)?;
    let pins = String::from_utf8_lossy(pins).into_owned();
    requests.send(Request::Drain(pins)).map_err(|_| io::ErrorKind::BrokenPipe)?;
    Ok(true)
}

/// The next message; nothing if there is none.
fn hear(successor: &OwnedFd) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut buffer = Zeroizing::new(vec![0; LONGEST]);
    let (count, _) = recv(successor, &mut buffer[..], RecvFlags::empty())?;
    buffer.truncate(count);
    Ok(buffer)
}

/// One message of a predecessor: `None` is the end.
fn receive(socket: &OwnedFd) -> io::Result<Option<Bound>> {
    let mut text = [0; 256];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(AT_ONCE))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(socket, &mut [IoSliceMut::new(&mut text)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let text = &text[..received.bytes];
    if text == END {
        return Ok(None);
    }
    let (wanted, address) = parse(text).ok_or(io::ErrorKind::InvalidData)?;
    let mut sockets = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            sockets.extend(descriptors.map(TcpListener::from));
        }
    }
    if sockets.is_empty() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(Some(Bound { listener: 0, wanted, address, sockets }))
}

fn parse(text: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let (wanted, address) = std::str::from_utf8(text).ok()?.split_once(' ')?;
    Some((wanted.parse().ok()?, address.parse().ok()?))
}

/// Keeps messages apart, and is reliable.
fn socket() -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_passed_and_the_predecessor_told() {
        let folder = tempfile::tempdir().unwrap();
        let (requests, mut received) = mpsc::unbounded_channel();
        let door = Door::open(folder.path(), false, requests.clone()).unwrap();
        assert!(Door::open(folder.path(), false, requests).is_err(), "it is taken");
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::scope(|scope| {
            let successor = scope.spawn(|| Predecessor::find(folder.path()).unwrap());
            let Some(Request::Sockets(reply)) = received.blocking_recv() else { panic!("no request") };
            let sockets = (0..AT_ONCE + 3).map(|_| listener.try_clone().unwrap()).collect();
            let wanted = "127.0.0.1:0".parse().unwrap();
            reply.send(vec![Bound { listener: 0, wanted, address, sockets }]).unwrap();
            let (predecessor, all) = successor.join().unwrap();
            assert_eq!((all.len(), all[0].wanted, all[0].address), (1, wanted, address));
            assert_eq!(all[0].sockets.len(), AT_ONCE + 3);
            assert!(all[0].sockets.iter().all(|socket| socket.local_addr().unwrap() == address));
            predecessor.drain(Some("/pins"));
            assert!(matches!(received.blocking_recv(), Some(Request::Drain(pins)) if pins == "/pins"));
        });
        drop(door);
        assert!(!folder.path().join(HANDOVER).exists());
    }

    #[test]
    fn a_successor_that_fails_leaves_all_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let (requests, mut received) = mpsc::unbounded_channel();
        let _door = Door::open(folder.path(), false, requests).unwrap();
        for _ in 0..2 {
            thread::scope(|scope| {
                let successor = scope.spawn(|| Predecessor::find(folder.path()).map(drop));
                let Some(Request::Sockets(reply)) = received.blocking_recv() else { panic!("no request") };
                reply.send(Vec::new()).unwrap();
                assert!(successor.join().unwrap().is_ok());
            });
        }
        assert!(Predecessor::find(Path::new("/nowhere")).is_err());
    }

    #[test]
    fn who_does_not_know_the_secret_gets_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (requests, mut received) = mpsc::unbounded_channel();
        let _door = Door::open(folder.path(), false, requests).unwrap();
        let secret = folder.path().join(HANDOVER_SECRET);
        assert_eq!(fs::metadata(&secret).unwrap().mode() & 0o777, 0o600);
        let right = fs::read(&secret).unwrap();
        assert_eq!(right.len(), SECRET);
        let longer = [&right[..], b"!"].concat();
        for wrong in [&[][..], &right[1..], &[7; SECRET], &longer] {
            fs::write(&secret, wrong).unwrap();
            let error = Predecessor::find(folder.path()).unwrap_err();
            assert!(!matches!(error.kind(), io::ErrorKind::NotFound), "{error}");
            assert!(received.try_recv().is_err());
        }
        // Another instance has another.
        let other = tempfile::tempdir().unwrap();
        let _other = Door::open(other.path(), false, mpsc::unbounded_channel().0).unwrap();
        assert_ne!(fs::read(other.path().join(HANDOVER_SECRET)).unwrap(), right);
    }
}
