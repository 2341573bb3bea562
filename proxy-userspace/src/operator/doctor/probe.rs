//! A client without TLS.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use thiserror::Error;

/// For connecting, and for each answer. Longer than setu's own timeouts, whose reason is then in its log.
const PATIENCE: Duration = Duration::from_secs(12);

/// The header of a sender that speaks for itself (PROXY protocol, version 1).
const PROXY_HEADER: &[u8] = b"PROXY UNKNOWN\r\n";

/// Why a client got nowhere.
#[derive(Debug, Error)]
pub(super) enum Failure {
    /// The connection was finished.
    #[error("the connection was closed")]
    Closed,
    /// Nothing came.
    #[error("nothing came within {} seconds", PATIENCE.as_secs())]
    Silence,
    /// The socket's, or TLS's.
    #[error("{0}")]
    Io(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Closed,
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Self::Silence,
            _ => Self::Io(error),
        }
    }
}

/// Connects, and sends a PROXY header where one is expected.
///
/// # Errors
/// The system's.
pub(super) fn connect(to: SocketAddr, proxy_header: bool) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    if proxy_header {
        stream.write_all(PROXY_HEADER)?;
    }
    Ok(stream)
}

/// Says what a web client says first, and returns how many bytes came back at once.
///
/// # Errors
/// Why none came.
pub(super) fn chat(mut stream: impl Read + Write) -> Result<usize, Failure> {
    stream.write_all(&hello())?;
    stream.flush()?;
    match stream.read(&mut [0; 4096])? {
        0 => Err(Failure::Closed),
        bytes => Ok(bytes),
    }
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
}
