//! What a client wants, by what its listener expects and by its first bytes: the parsers of [`crate::front::inspect`] put to use.
//!
//! Nothing is taken from a client whose bytes are passed through: its bytes are only looked at. Where TLS ends here, the
//! first plaintext waits in [`Terminated`].

use tokio::{net::TcpStream, time::Instant};

use crate::{
    account::{CloseReason, Purpose, Side},
    config::{AllowList, Dial, Mode},
    front::{
        inspect::{
            LIMIT,
            client_hello::{self, ClientHello, ServerName},
            first_bytes::{self, Chat, Protocol},
            peek::{Bounds, More, Undecided, discard, or_leave, peek, peek_message},
        },
        limits::Voice,
        tls::{self, Acceptor, Terminated},
    },
};

/// A client's connection, from where its bytes count.
pub(crate) enum Stream {
    /// As it came.
    Plain(TcpStream),
    /// Inside its TLS, which ends here.
    Terminated(Box<Terminated>),
}

impl Stream {
    /// The socket.
    pub(crate) fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Terminated(terminated) => &terminated.stream,
        }
    }
}

/// What a client wants.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// The chat servers.
    Chat,
    /// The same, for there is no gate, without their protocol: the servers answer for themselves.
    Ungated,
    /// The media servers, and which of them.
    Media(Name),
    /// Nothing that WhatsApp's clients want.
    Other,
    /// The same, in the clear at a port where TLS is spoken: no web server is to be seen there but for the refusal.
    Clear,
}

impl Wish {
    /// What a connection to that is for, if it is a client of WhatsApp's by what is known.
    pub(crate) fn purpose(&self) -> Option<Purpose> {
        match self {
            Self::Chat => Some(Purpose::Chat),
            Self::Media(_) => Some(Purpose::Media),
            Self::Ungated | Self::Other | Self::Clear => None,
        }
    }
}

/// The server's name in a hello.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Name {
    /// This one.
    Known(ServerName),
    /// There is none.
    Absent,
    /// An address, which is never dialed.
    Address,
}

/// What inspection goes by.
pub(crate) struct Rules<'a> {
    pub(crate) mode: Mode,
    /// Without a gate: whether the client must have spoken.
    pub(crate) dial: Dial,
    /// When TLS, and what is to come first inside it, must be there.
    pub(crate) handshake: Instant,
    /// Told of the first byte.
    pub(crate) voice: &'a Voice,
    /// The names by which [`Mode::Auto`] knows media clients.
    pub(crate) media: &'a AllowList,
    /// Present where a listener ends TLS.
    pub(crate) acceptor: Option<&'a Acceptor>,
}

impl Rules<'_> {
    /// Looks at the first bytes, until `deadline` where they are in the clear, and ends TLS where that is due.
    ///
    /// # Errors
    /// The reason for which the connection ends.
    pub(crate) async fn inspect(
        &self,
        mut client: TcpStream,
        deadline: Instant,
    ) -> Result<(Stream, Wish), CloseReason> {
        let bounds = Bounds { bytes: LIMIT, deadline };
        match self.mode {
            Mode::Chat { gate: false, .. } => {
                let mut wish = Wish::Chat;
                if self.dial == Dial::FirstByte {
                    wish = or_leave(&client, peek(&client, bounds, self.hearing(ungated))).await?;
                }
                Ok((Stream::Plain(client), wish))
            }
            Mode::Chat { gate: true, .. } => {
                let is_chat = or_leave(&client, peek(&client, bounds, self.hearing(is_chat))).await?;
                Ok((Stream::Plain(client), if is_chat { Wish::Chat } else { Wish::Other }))
            }
            Mode::ChatTls { gate, .. } => self.terminate(client, gate).await,
            Mode::Media { .. } => {
                match or_leave(&client, peek_message(&client, bounds, self.hearing(hello))).await? {
                    ClientHello::NotTls { at } => {
                        tracing::debug!(at, "not TLS");
                        tls::refuse_plain(&mut client, deadline).await;
                        Err(CloseReason::NotTls)
                    }
                    ClientHello::Malformed { at, what } => {
                        tracing::debug!(at, what, "malformed ClientHello");
                        discard(&client);
                        Err(CloseReason::MalformedHello)
                    }
                    ClientHello::Found(name) => Ok((Stream::Plain(client), Wish::Media(Name::Known(name)))),
                    ClientHello::IpLiteral => Ok((Stream::Plain(client), Wish::Media(Name::Address))),
                    ClientHello::Absent | ClientHello::Incomplete { .. } => {
                        Ok((Stream::Plain(client), Wish::Media(Name::Absent)))
                    }
                }
            }
            Mode::Auto { gate, .. } => self.tell_apart(client, bounds, gate).await,
        }
    }

    /// [`Mode::Auto`].
    async fn tell_apart(
        &self,
        client: TcpStream,
        bounds: Bounds,
        gate: bool,
    ) -> Result<(Stream, Wish), CloseReason> {
        let other = if gate { Wish::Clear } else { Wish::Ungated };
        match or_leave(&client, peek(&client, bounds, self.hearing(protocol))).await {
            Ok(Protocol::Tls) => match or_leave(&client, peek_message(&client, bounds, hello)).await {
                Ok(ClientHello::Found(name)) if self.media.allows(name.as_str()) => {
                    Ok((Stream::Plain(client), Wish::Media(Name::Known(name))))
                }
                // A hello that is wrong, too, is answered as a server of TLS answers it.
                Ok(_) => self.terminate(client, gate).await,
                Err(undecided) => Err(undecided.into()),
            },
            Ok(Protocol::Chat) => Ok((Stream::Plain(client), Wish::Chat)),
            Ok(Protocol::Proxy | Protocol::Other { .. } | Protocol::Incomplete) => {
                Ok((Stream::Plain(client), other))
            }
            Err(undecided) => Err(undecided.into()),
        }
    }

    /// As `decide`, which is never called without a byte; the first time the client has spoken.
    fn hearing<T>(&self, decide: impl Fn(&[u8]) -> T) -> impl FnMut(&[u8]) -> T {
        let mut is_heard = false;
        move |bytes| {
            if !std::mem::replace(&mut is_heard, true) {
                self.voice.heard();
            }
            decide(bytes)
        }
    }

    /// Ends the client's TLS; behind a gate, looks at what is inside.
    async fn terminate(&self, client: TcpStream, gate: bool) -> Result<(Stream, Wish), CloseReason> {
        let acceptor = self.acceptor.ok_or(CloseReason::InternalError)?;
        let heard = || self.voice.heard();
        let accepted = tls::accept(client, acceptor.config(), self.handshake, heard).await;
        let mut terminated = accepted.map_err(|failure| {
            tracing::debug!(%failure, "no TLS session");
            failure.close_reason()
        })?;
        let mut wish = Wish::Chat;
        if gate {
            let inside = terminated.first_bytes(self.handshake, LIMIT, is_chat).await;
            if inside.map_err(|failure| failure.close_reason())? != Some(true) {
                wish = Wish::Other;
            }
        } else if self.dial == Dial::FirstByte {
            let spoken = terminated.first_bytes(self.handshake, LIMIT, ungated).await;
            wish = match spoken.map_err(|failure| failure.close_reason())? {
                Some(wish) => wish,
                None if terminated.end.is_some() => return Err(CloseReason::ClientLeft),
                None => return Err(CloseReason::InspectTimeout),
            };
        }
        Ok((Stream::Terminated(Box::new(terminated)), wish))
    }
}

/// Without a gate the first byte decides. What it is not goes by what has come with it, which is all of a hello as a rule.
fn ungated(bytes: &[u8]) -> Option<Wish> {
    match first_bytes::chat(bytes) {
        _ if bytes.is_empty() => None,
        Chat::Other { .. } => Some(Wish::Ungated),
        Chat::Chat | Chat::Incomplete => Some(Wish::Chat),
    }
}

fn is_chat(bytes: &[u8]) -> Option<bool> {
    match first_bytes::chat(bytes) {
        Chat::Incomplete => None,
        Chat::Chat => Some(true),
        Chat::Other { .. } => Some(false),
    }
}

fn hello(bytes: &[u8]) -> Result<ClientHello, More> {
    match client_hello::parse(bytes) {
        ClientHello::Incomplete { least } => Err(More { least }),
        hello => Ok(hello),
    }
}

fn protocol(bytes: &[u8]) -> Option<Protocol> {
    match first_bytes::protocol(bytes) {
        Protocol::Incomplete => None,
        protocol => Some(protocol),
    }
}

impl From<Undecided> for CloseReason {
    fn from(undecided: Undecided) -> Self {
        match undecided {
            Undecided::TimedOut => Self::InspectTimeout,
            Undecided::Ended { .. } => Self::ClientLeft,
            Undecided::TooLong => Self::MalformedHello,
            Undecided::Io(error) => Self::broken(Side::Client, &error),
        }
    }
}
