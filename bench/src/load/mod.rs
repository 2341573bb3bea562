//! The load: clients and servers as processes of their own, one in each namespace, that check every byte.
//!
//! The runner ([`agent`]) starts them from this same binary and speaks to them in lines of JSON over pipes. Both are one
//! thread with an event loop, because they share the machine's cores with what is measured. What a connection wants of
//! the server is told by its first byte, so that every peer forwards one port to one address:
//!
//! | first byte | the server |
//! | --- | --- |
//! | `D`, then a time in milliseconds (4 bytes, big-endian) | sends the pattern for that long, then FIN |
//! | `U` | checks the pattern to the FIN, then answers with how many bytes there were (8 bytes, big-endian) |
//! | any other | sends back all that comes, this byte too |

pub(crate) mod agent;
mod bulk;
pub(crate) mod client;
mod connection;
mod echo;
mod hold;
mod pattern;
pub(crate) mod server;

use std::{net::SocketAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

/// Where the server listens, in its namespace.
pub(crate) const SERVER_PORT: u16 = 7000;
/// The name that clients ask for by SNI, one of WhatsApp's.
pub(crate) const SERVER_NAME: &str = "mmg.whatsapp.net";
/// A name that no proxy is to forward.
const OTHER_NAME: &str = "example.org";

/// What a client process is to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Order {
    /// The proxy, or the server itself.
    pub(crate) to: SocketAddr,
    /// For how long.
    pub(crate) milliseconds: u64,
    /// For how long the same connections carry the same messages before, unmeasured; [`Load::Echo`] and
    /// [`Load::TlsEcho`] only.
    pub(crate) settling_milliseconds: u64,
    /// The certificate (DER) to trust, where the load speaks TLS.
    pub(crate) trust: Option<PathBuf>,
    /// What.
    pub(crate) load: Load,
}

/// Kinds of load.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Load {
    /// As many bytes as go through.
    Bulk {
        /// At once.
        streams: usize,
        /// From the client to the server, or the other way.
        up: bool,
    },
    /// Messages that come back; each connection has one on its way at most.
    Echo(Vec<Flows>),
    /// As [`Load::Echo`], through TLS that the proxy terminates.
    TlsEcho(Flows),
    /// New connections: open, send, have it back, close and see the other side close.
    Churn {
        /// At once.
        workers: usize,
        /// What is sent.
        first: First,
    },
    /// A ClientHello with a name that the proxy is to refuse: who lets it through does not route by SNI.
    Refusal,
    /// Connections that are open, and nothing more.
    Hold {
        /// How many.
        connections: usize,
        /// How much they read of what the server sends.
        reading: Reading,
    },
}

/// What becomes of what the server sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Reading {
    /// It sends nothing.
    Nothing,
    /// Nobody reads it.
    Never,
    /// It is read as fast as it comes for so long, milliseconds, and then not any more.
    AtFirst(u64),
}

/// Connections that behave alike.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Flows {
    /// How many.
    pub(crate) connections: usize,
    /// Bytes of a message.
    pub(crate) message: usize,
    /// From message to message; without it the next one follows the answer.
    pub(crate) interval_milliseconds: Option<u64>,
}

/// What a new connection carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum First {
    /// One message.
    Message,
    /// A ClientHello; the server sends it back, because only the proxy is to read it.
    ClientHello,
    /// A full TLS 1.3 handshake with the proxy (X25519, no resumption), then one message.
    Handshake,
}

/// What came of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// From the start to the last byte.
    pub(crate) seconds: f64,
    /// Bytes of bulk, or messages, or connections.
    pub(crate) work: u64,
    /// Round trips (of a new connection: its life): 50th, 99th and 99.9th percentile, microseconds.
    pub(crate) latency: Option<[f64; 3]>,
}

/// What a process tells the runner.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// It runs.
    Up,
    /// Its connections are there, and have carried a message.
    Ready,
    /// It is done. Connections stay open until its input ends.
    Done(Outcome),
    /// It could not do it.
    Failed(String),
}

impl Reply {
    /// Tells the runner.
    ///
    /// # Errors
    /// When the runner is gone.
    fn tell(&self) -> anyhow::Result<()> {
        use std::io::Write as _;
        let mut line = serde_json::to_string(self)?;
        line.push('\n');
        Ok(std::io::stdout().lock().write_all(line.as_bytes())?)
    }
}
