//! One client's TLS, between its socket and plaintext.
//!
//! rustls' unbuffered connection works on bytes that lie in the thread's scratch memory, so that a session owns a buffer
//! only while a record has come in part, or while the client does not take what was sent. An idle session owns none.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use rustls::{
    HandshakeKind, ProtocolVersion, ServerConfig,
    server::UnbufferedServerConnection,
    unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::tcp::{ReadHalf, WriteHalf},
};

/// Bytes of one read: two records, so that a full read from the upstream makes full records.
const READ: usize = 32 * 1024;
/// Of what has come only in part a session keeps no more: the length of the longest handshake message that rustls takes,
/// since the unbuffered connection leaves this bound to its caller.
const PARTIAL: usize = 64 * 1024;
/// Bytes of a record, at most.
const RECORD: usize = 16 * 1024;
/// Bytes that TLS adds to a record, at most (RFC 8446, section 5.2).
const OVERHEAD: usize = 5 + 256;

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch {
        input: vec![0; PARTIAL + READ].into_boxed_slice(),
        plaintext: Vec::new(),
        ciphertext: Ciphertext::default(),
    });
}

/// Memory that the sessions of a thread share. Nothing in it outlives a poll.
struct Scratch {
    input: Box<[u8]>,
    plaintext: Vec<u8>,
    ciphertext: Ciphertext,
}

/// Records to be sent. It keeps its memory, because rustls writes into initialised bytes.
#[derive(Default)]
struct Ciphertext {
    bytes: Vec<u8>,
    filled: usize,
}

/// What a read brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Received {
    /// Bytes; not always plaintext.
    Some,
    /// The client's last plaintext.
    Last(End),
}

/// How a client finishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// By the alert `close_notify`.
    Notified,
    /// By FIN alone: what it sent may have been cut off.
    Truncated,
}

/// Why a session cannot go on.
#[derive(Debug)]
pub(crate) enum SessionError {
    /// The socket broke.
    Socket(io::Error),
    /// What came is not the TLS that it should be. The alert is on its way.
    Protocol(rustls::Error),
}

/// See the module.
pub(crate) struct Session {
    connection: UnbufferedServerConnection,
    /// The beginning of what has come in part.
    partial: Vec<u8>,
    /// Records that the client has not taken yet.
    outgoing: Vec<u8>,
    /// `close_notify` is sent: nothing may follow it.
    closed: bool,
}

impl Session {
    /// A session of which nothing has come.
    pub(crate) fn new(config: Arc<ServerConfig>) -> Result<Self, rustls::Error> {
        let connection = UnbufferedServerConnection::new(config)?;
        Ok(Self { connection, partial: Vec::new(), outgoing: Vec::new(), closed: false })
    }

    /// Whether plaintext cannot be sent yet.
    pub(crate) fn is_handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    /// The version that was agreed on.
    pub(crate) fn version(&self) -> Option<ProtocolVersion> {
        self.connection.protocol_version()
    }

    /// Which kind of handshake it was.
    pub(crate) fn kind(&self) -> Option<HandshakeKind> {
        self.connection.handshake_kind()
    }

    /// Memory that it holds for records in part, and for those that wait for the client, bytes.
    pub(crate) fn held(&self) -> u64 {
        (self.partial.capacity() + self.outgoing.capacity()) as u64
    }

    /// Whether records wait for the client.
    pub(crate) fn is_blocked(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Reads once and gives `take` the plaintext, if any came; it must not use a session. What TLS itself answers is sent.
    pub(crate) fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut ReadHalf<'_>,
        destination: &mut WriteHalf<'_>,
        take: impl FnOnce(&mut Context<'_>, &[u8]),
    ) -> Poll<Result<Received, SessionError>> {
        SCRATCH.with_borrow_mut(|scratch| {
            let kept = self.partial.len();
            scratch.input[..kept].copy_from_slice(&self.partial);
            let mut buffer = ReadBuf::new(&mut scratch.input[kept..kept + READ]);
            ready!(Pin::new(source).poll_read(cx, &mut buffer)).map_err(SessionError::Socket)?;
            let came = buffer.filled().len();
            if came == 0 {
                return Poll::Ready(Ok(Received::Last(End::Truncated)));
            }
            scratch.plaintext.clear();
            let processed = self.process(kept + came, scratch);
            self.send(cx, destination, &mut scratch.ciphertext).map_err(SessionError::Socket)?;
            let received = processed.map_err(SessionError::Protocol)?;
            if !scratch.plaintext.is_empty() {
                take(cx, &scratch.plaintext);
            }
            Poll::Ready(Ok(received))
        })
    }

    /// Decrypts the first `len` bytes of the input, and keeps what is incomplete.
    fn process(&mut self, len: usize, scratch: &mut Scratch) -> Result<Received, rustls::Error> {
        let Scratch { input, plaintext, ciphertext } = scratch;
        let mut rest = &mut input[..len];
        let received = loop {
            let UnbufferedStatus { mut discard, state, .. } = self.connection.process_tls_records(rest);
            match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record?;
                        discard += record.discard;
                        plaintext.extend_from_slice(record.payload);
                    }
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    ciphertext.write(0, |room| data.encode(room))?
                }
                // It is in `ciphertext`, which is sent in any case.
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                Ok(ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_)) => {
                    rest = &mut rest[discard..];
                    break Received::Some;
                }
                // Whatever follows must be ignored (RFC 8446, section 6.1).
                Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => {
                    rest = &mut [];
                    break Received::Last(End::Notified);
                }
                // Early data is not accepted, and there are no other states.
                Ok(_) => return Err(rustls::Error::General("a state that cannot be".into())),
                Err(error) => {
                    rest = &mut rest[discard..];
                    // The alert, after what was to be sent before it. Only while there is something to encode does this
                    // call not look at the input again.
                    while self.connection.wants_write() {
                        match self.connection.process_tls_records(rest).state {
                            Ok(ConnectionState::EncodeTlsData(mut data)) => {
                                ciphertext.write(0, |room| data.encode(room))?;
                            }
                            _ => break,
                        }
                    }
                    return Err(error);
                }
            }
            rest = &mut rest[discard..];
        };
        // An idle session holds no memory.
        self.partial = Vec::new();
        if rest.len() > PARTIAL {
            return Err(rustls::Error::General("a message is too long".into()));
        }
        self.partial.extend_from_slice(rest);
        Ok(received)
    }

    /// Reads once from the upstream, encrypts and sends. 0 is the upstream's FIN. Only for a session that is not
    /// handshaking and not blocked.
    pub(crate) fn poll_forward(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut ReadHalf<'_>,
        destination: &mut WriteHalf<'_>,
    ) -> Poll<Result<usize, ForwardError>> {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut buffer = ReadBuf::new(&mut scratch.input[..READ]);
            ready!(Pin::new(source).poll_read(cx, &mut buffer)).map_err(ForwardError::Upstream)?;
            let bytes = buffer.filled();
            if !bytes.is_empty() {
                let client = |error| ForwardError::Client(error);
                self.encrypt(Some(bytes), &mut scratch.ciphertext)
                    .map_err(|error| client(SessionError::Protocol(error)))?;
                self.send(cx, destination, &mut scratch.ciphertext)
                    .map_err(|error| client(SessionError::Socket(error)))?;
            }
            Poll::Ready(Ok(bytes.len()))
        })
    }

    /// Sends plaintext of setu's own. Only for a session that is not handshaking and not blocked.
    pub(crate) fn say(
        &mut self,
        cx: &mut Context<'_>,
        destination: &mut WriteHalf<'_>,
        bytes: &[u8],
    ) -> Result<(), SessionError> {
        SCRATCH.with_borrow_mut(|scratch| {
            self.encrypt(Some(bytes), &mut scratch.ciphertext).map_err(SessionError::Protocol)?;
            self.send(cx, destination, &mut scratch.ciphertext).map_err(SessionError::Socket)
        })
    }

    /// Sends `close_notify`; after it nothing is sent any more.
    pub(crate) fn close(
        &mut self,
        cx: &mut Context<'_>,
        destination: &mut WriteHalf<'_>,
    ) -> Result<(), SessionError> {
        SCRATCH.with_borrow_mut(|scratch| {
            self.encrypt(None, &mut scratch.ciphertext).map_err(SessionError::Protocol)?;
            self.send(cx, destination, &mut scratch.ciphertext).map_err(SessionError::Socket)
        })?;
        self.closed = true;
        Ok(())
    }

    /// Writes what waits for the client.
    pub(crate) fn poll_flush(
        &mut self,
        cx: &mut Context<'_>,
        destination: &mut WriteHalf<'_>,
    ) -> Poll<io::Result<()>> {
        while !self.outgoing.is_empty() {
            let count = ready!(Pin::new(&mut *destination).poll_write(cx, &self.outgoing))?;
            self.outgoing.drain(..count);
        }
        self.outgoing = Vec::new();
        Poll::Ready(Ok(()))
    }

    /// Makes records of these bytes, or the alert `close_notify` of none.
    fn encrypt(&mut self, bytes: Option<&[u8]>, ciphertext: &mut Ciphertext) -> Result<(), rustls::Error> {
        loop {
            // The bytes in part are shown again because rustls knows how far into them it is.
            let status = self.connection.process_tls_records(&mut self.partial);
            if status.discard > 0 {
                return Err(rustls::Error::General("a record was complete before its last byte".into()));
            }
            match status.state? {
                ConnectionState::WriteTraffic(mut traffic) => {
                    return match bytes {
                        Some(bytes) => {
                            let records = bytes.len().div_ceil(RECORD);
                            // One more record may announce new keys.
                            let room = bytes.len() + (records + 1) * OVERHEAD;
                            ciphertext.write(room, |room| traffic.encrypt(bytes, room))
                        }
                        None => ciphertext.write(2 * OVERHEAD, |room| traffic.queue_close_notify(room)),
                    };
                }
                ConnectionState::EncodeTlsData(mut data) => ciphertext.write(0, |room| data.encode(room))?,
                ConnectionState::TransmitTlsData(data) => data.done(),
                _ => return Err(rustls::Error::General("plaintext cannot be sent now".into())),
            }
        }
    }

    /// Writes what the client takes; the rest waits.
    fn send(
        &mut self,
        cx: &mut Context<'_>,
        destination: &mut WriteHalf<'_>,
        ciphertext: &mut Ciphertext,
    ) -> io::Result<()> {
        let bytes = &ciphertext.bytes[..std::mem::take(&mut ciphertext.filled)];
        if bytes.is_empty() || self.closed {
            return Ok(());
        }
        let mut taken = 0;
        if self.outgoing.is_empty()
            && let Poll::Ready(count) = Pin::new(destination).poll_write(cx, bytes)
        {
            taken = count?;
        }
        self.outgoing.extend_from_slice(&bytes[taken..]);
        Ok(())
    }
}

/// Which leg kept bytes from being forwarded to the client.
#[derive(Debug)]
pub(crate) enum ForwardError {
    /// The upstream's.
    Upstream(io::Error),
    /// The client's.
    Client(SessionError),
}

impl Ciphertext {
    /// Appends what `encode` writes, into at least `room` bytes. It is called again with more room if it asks for it.
    fn write<E: Into<WriteError>>(
        &mut self,
        room: usize,
        mut encode: impl FnMut(&mut [u8]) -> Result<usize, E>,
    ) -> Result<(), rustls::Error> {
        let mut needed = self.filled + room;
        loop {
            if self.bytes.len() < needed {
                self.bytes.resize(needed, 0);
            }
            match encode(&mut self.bytes[self.filled..]).map_err(Into::into) {
                Ok(count) => {
                    self.filled += count;
                    return Ok(());
                }
                Err(WriteError::Needs(bytes)) if self.filled + bytes > needed => needed = self.filled + bytes,
                Err(WriteError::Needs(_) | WriteError::Exhausted) => {
                    return Err(rustls::Error::EncryptError);
                }
            }
        }
    }
}

/// What rustls' two errors of writing have in common.
enum WriteError {
    Needs(usize),
    /// So many records were made with these keys that no more are safe.
    Exhausted,
}

impl From<EncodeError> for WriteError {
    fn from(error: EncodeError) -> Self {
        match error {
            EncodeError::InsufficientSize(size) => Self::Needs(size.required_size),
            EncodeError::AlreadyEncoded => Self::Exhausted,
        }
    }
}

impl From<EncryptError> for WriteError {
    fn from(error: EncryptError) -> Self {
        match error {
            EncryptError::InsufficientSize(size) => Self::Needs(size.required_size),
            EncryptError::EncryptExhausted => Self::Exhausted,
        }
    }
}
