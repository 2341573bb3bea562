//! Clients that do not speak TLS, and how a connection that came to nothing is let go.

use std::{future::poll_fn, os::fd::AsFd as _, pin::Pin, time::SystemTime};

use tokio::{
    io::{AsyncWrite as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, timeout_at},
};

use crate::{
    front::{
        http::{self, Answer, Door},
        inspect::peek::{Bounds, peek},
    },
    sys,
};

/// What a record of a handshake begins with (`ContentType`, RFC 8446, section 5.1).
pub(super) const HANDSHAKE: u8 = 22;
/// Bytes of a request that are looked at; it is answered before.
pub(super) const REQUEST: usize = 48 * 1024;

/// What a failed client has sent and nobody read is thrown away, up to so many bytes.
const DISCARDED: usize = 256 * 1024;

/// Answers a client that has sent something else than TLS, by `deadline`. Its bytes were only looked at.
pub(crate) async fn refuse_plain(client: &mut TcpStream, deadline: Instant) {
    let bounds = Bounds { bytes: REQUEST, deadline };
    let answer = peek(client, bounds, |bytes| match bytes {
        // nginx takes this for the hello of an SSL 2 client, which it then does not understand.
        [HANDSHAKE | 0x80.., ..] => Some(None),
        _ => http::answer(bytes, Door::Plain, true, SystemTime::now()).map(Some),
    });
    if let Ok(Some(Answer { bytes, .. })) = answer.await {
        // A client that takes nothing gets nothing.
        let _ = timeout_at(deadline, client.write_all(&bytes)).await;
    }
    let_go(client).await;
}

/// Sends FIN to a client that was sent an alert. Unread bytes would turn the close into RST, and RST would destroy the
/// alert on its way.
pub(crate) async fn let_go(stream: &mut TcpStream) {
    // The client may be gone already.
    let _ = poll_fn(|cx| Pin::new(&mut *stream).poll_shutdown(cx)).await;
    sys::discard(stream.as_fd(), DISCARDED);
}
