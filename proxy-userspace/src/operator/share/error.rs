//! Why there is no link, and what to do about it.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use thiserror::Error;

use crate::operator::languages::LanguageError;

/// What an operator may say of a link: the names of a form's fields and, with hyphens, of options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// The name or address of the server.
    Host,
    /// The port for chat.
    ChatPort,
    /// The port for media.
    MediaPort,
    /// Whether chat is inside TLS.
    ChatTls,
}

/// Why there is no link, or nothing that holds it.
#[derive(Debug, Error)]
pub enum ShareError {
    /// The machine cannot know by which name or address phones reach it.
    #[error("under which name or address do phones reach this server? Name it with --host, or in tls.names")]
    NoHost,
    /// WhatsApp takes no IPv6 address here.
    #[error(
        "{0} is an IPv6 address, which WhatsApp's link does not take; name a host that has an AAAA record instead"
    )]
    Ipv6(Ipv6Addr),
    /// An address that is nobody's.
    #[error("{0} is the address of no server; name the server's public address, or its host name")]
    NoServer(Ipv4Addr),
    /// Neither a name nor an address.
    #[error("\"{host}\" is no host name: {problem}")]
    Host {
        /// As it was given.
        host: String,
        /// What is wrong, and what to do.
        problem: &'static str,
    },
    /// No number of a port.
    #[error("\"{given}\" is no port; write a number from 1 to 65535, or nothing")]
    Port {
        /// As it was given.
        given: String,
        /// Where.
        field: Field,
    },
    /// Neither yes nor no.
    #[error("\"{0}\" does not say whether chat is inside TLS; write true or false, or nothing")]
    ChatTls(String),
    /// The configuration has nothing to connect to.
    #[error(
        "no listener takes {what} from phones; add one to the configuration (a listener that expects PROXY protocol \
         does not count: phones do not speak it), or name the port of what stands before setu (--{option})",
        option = field.name().replace('_', "-")
    )]
    NoListener {
        /// What is to be taken.
        what: &'static str,
        /// What can be said instead.
        field: Field,
    },
    /// The code cannot be made.
    #[error("the link does not fit into a QR code: {0}")]
    Code(#[from] qrcode::types::QrError),
    /// The code cannot be painted.
    #[error("the code cannot be painted: {0}")]
    Png(#[from] png::EncodingError),
    /// The words are broken.
    #[error(transparent)]
    Language(#[from] &'static LanguageError),
    /// The words cannot be laid out.
    #[error("a card cannot be laid out: {0}")]
    Card(#[from] serde_json::Error),
    /// A file cannot be written.
    #[error("{} cannot be written: {error}; name a writable directory with --out", path.display())]
    Write {
        /// The file or directory.
        path: PathBuf,
        /// The system's words.
        error: io::Error,
    },
}

impl Field {
    /// As a form names it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::ChatPort => "chat_port",
            Self::MediaPort => "media_port",
            Self::ChatTls => "chat_tls",
        }
    }
}

impl ShareError {
    /// What has to be said otherwise.
    #[must_use]
    pub fn field(&self) -> Field {
        match self {
            Self::Port { field, .. } | Self::NoListener { field, .. } => *field,
            Self::ChatTls(_) => Field::ChatTls,
            _ => Field::Host,
        }
    }
}
