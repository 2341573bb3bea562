//! A client without TLS, with patience that ends.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use rustls::AlertDescription;
use thiserror::Error;

use super::{
    answer::{Answer, parse},
    way::Outcome,
};
use crate::account::rank;

/// For connecting, and for all that is then said. Longer than setu's own timeouts, whose reason is then in its log.
const PATIENCE: Duration = Duration::from_secs(12);

/// The header of a sender that speaks for itself (PROXY protocol, version 1).
const PROXY_HEADER: &[u8] = b"PROXY UNKNOWN\r\n";

/// Why a client got nowhere.
#[derive(Debug, Error)]
pub(super) enum Failure {
    /// The connection was finished.
    #[error("the connection was closed")]
    Closed,
    /// Nothing came, or not all.
    #[error("no whole answer came within {} seconds", PATIENCE.as_secs())]
    Silence,
    /// setu allows no such name.
    #[error("the name is refused")]
    NameRefused,
    /// What came is not of the protocol.
    #[error("what answers is something else ({0})")]
    Foreign(String),
    /// The socket's.
    #[error("{0}")]
    Io(io::Error),
}

impl Failure {
    /// What it means for the way.
    pub(super) fn outcome(&self) -> Outcome {
        match self {
            Self::Foreign(_) => Outcome::Foreign,
            Self::Closed | Self::Silence | Self::NameRefused | Self::Io(_) => Outcome::Unanswered,
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref()) {
            Some(rustls::Error::AlertReceived(AlertDescription::UnrecognisedName)) => {
                return Self::NameRefused;
            }
            Some(tls) => return Self::Foreign(tls.to_string()),
            None => {}
        }
        match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                Self::Closed
            }
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Self::Silence,
            _ => Self::Io(error),
        }
    }
}

/// A connection on which no peer can hold a client for longer than its patience, also not byte by byte.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    until: Instant,
}

impl Connection {
    /// Who is at the other end.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.stream.peer_addr()
    }

    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(Some(left)) }
    }
}

impl Read for Connection {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        self.stream.read(buffer)
    }
}

impl Write for Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// Connects to the first address that takes it, and sends a PROXY header where one is expected.
///
/// # Errors
/// The system's; of several addresses that which tells most of the peer.
pub(super) fn connect(to: &[SocketAddr], proxy_header: bool) -> io::Result<Connection> {
    let mut failure = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for (number, address) in to.iter().enumerate() {
        match TcpStream::connect_timeout(address, PATIENCE) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                let mut connection = Connection { stream, until: Instant::now() + PATIENCE };
                if proxy_header {
                    connection.write_all(PROXY_HEADER)?;
                }
                return Ok(connection);
            }
            Err(error) if number == 0 || rank(&error) > rank(&failure) => failure = error,
            Err(_) => {}
        }
    }
    Err(failure)
}

/// Says what a web client says first, and sees that what comes back is a chat server's answer.
///
/// # Errors
/// Why that did not come.
pub(super) fn chat(mut stream: impl Read + Write) -> Result<(), Failure> {
    stream.write_all(&hello())?;
    stream.flush()?;
    let mut received = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match parse(&received) {
            Answer::ServerHello => return Ok(()),
            Answer::Foreign => return Err(Failure::Foreign(beginning(&received))),
            // There is an end to it: a frame that is too long is foreign.
            Answer::Incomplete => match stream.read(&mut buffer)? {
                0 => return Err(Failure::Closed),
                count => received.extend_from_slice(&buffer[..count]),
            },
        }
    }
}

/// The first bytes of what came, so that an operator sees who it is.
fn beginning(received: &[u8]) -> String {
    let first = &received[..received.len().min(24)];
    format!("it begins with \"{}\"", first.escape_ascii())
}

/// `WA`, version 6, dictionary 3; then a frame: its length in 3 bytes, and a protobuf message whose field 2 (the client's
/// hello) has field 1, the client's ephemeral public key for Noise_XX_25519. Any 32 bytes are one.
fn hello() -> Vec<u8> {
    let mut hello = b"WA\x06\x03\x00\x00\x24\x12\x22\x0a\x20".to_vec();
    hello.extend((0..32).map(|_| fastrand::u8(..)));
    hello
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::front::inspect::first_bytes::{Protocol, protocol};

    #[test]
    fn the_hello_is_of_the_chat_protocol() {
        let hello = hello();
        assert_eq!(hello.len(), 4 + 3 + 0x24);
        assert_eq!(protocol(&hello), Protocol::Chat);
    }

    /// A peer that gives what is to be read in pieces of one byte.
    struct Peer<'a>(&'a [u8]);

    impl Read for Peer<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let len = buffer.len().min(1);
            self.0.read(&mut buffer[..len])
        }
    }

    impl Write for Peer<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_answer_may_come_in_pieces_and_must_be_whole() {
        let answer = setu_tests::chat::server_hello();
        assert!(chat(Peer(&answer)).is_ok());
        assert!(matches!(chat(Peer(&answer[..answer.len() - 1])), Err(Failure::Closed)));
        let refused = chat(Peer(b"HTTP/1.1 400 Bad Request\r\n\r\n"));
        assert!(matches!(&refused, Err(Failure::Foreign(what)) if what.contains('H')), "{refused:?}");
    }
}
