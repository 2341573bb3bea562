//! Whoever does not speak what is spoken at a port of TLS meets a dull web server there.

use std::{
    future::poll_fn,
    io,
    time::{Duration, SystemTime},
};

use tokio::time::{Instant, timeout};

use super::{
    handshake::{Terminated, TlsFailure},
    plain::{REQUEST, let_go},
};
use crate::front::http::{self, Door};

/// Between two requests (`keepalive_timeout 75s`).
const KEEP: Duration = Duration::from_secs(75);
/// Requests on a connection (`keepalive_requests 1000`), and how long it may last (`keepalive_time 1h`).
const REQUESTS: u32 = 1000;
const LONGEST: Duration = Duration::from_secs(3600);
impl Terminated {
    /// Answers the requests of a client that speaks nothing else. The first, of which some may have come, is to be
    /// there after `patience`.
    ///
    /// # Errors
    /// The client broke the connection, or the protocol.
    pub(crate) async fn show_nothing(&mut self, patience: Duration) -> Result<(), TlsFailure> {
        let end = Instant::now() + LONGEST;
        for number in 1..=REQUESTS {
            let wait = if number > 1 && self.first.is_empty() { KEEP } else { patience };
            let last = number == REQUESTS || Instant::now() >= end;
            let parse = |bytes: &[u8]| http::answer(bytes, Door::Tls, last, SystemTime::now());
            // Who has said nothing until now, when it was to be chat, has had its time.
            let late = number == 1 && self.first.is_empty();
            let deadline = Instant::now() + if late { Duration::ZERO } else { wait };
            let Some(answer) = self.first_bytes(deadline, REQUEST, parse).await? else { break };
            self.first.drain(..answer.head);
            self.say(&answer.bytes, patience).await?;
            if !answer.keep || !self.skip(answer.body, patience).await? {
                break;
            }
        }
        self.finish(patience).await
    }

    /// Leaves out a body. Returns whether it came.
    async fn skip(&mut self, mut bytes: u64, patience: Duration) -> Result<bool, TlsFailure> {
        while bytes > 0 {
            let some = usize::try_from(bytes).unwrap_or(usize::MAX).min(self.first.len());
            self.first.drain(..some);
            bytes -= some as u64;
            let more = |all: &[u8]| (bytes == 0 || !all.is_empty()).then_some(());
            if self.first_bytes(Instant::now() + patience, REQUEST, more).await?.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Sends.
    async fn say(&mut self, bytes: &[u8], patience: Duration) -> Result<(), TlsFailure> {
        let (_, mut write) = self.stream.split();
        let session = &mut self.session;
        let sent = poll_fn(|cx| std::task::Poll::Ready(session.say(cx, &mut write, bytes))).await;
        sent?;
        let flushed = timeout(patience, poll_fn(|cx| session.poll_flush(cx, &mut write))).await;
        flushed.map_err(|_| TlsFailure::TimedOut)?.map_err(TlsFailure::ClientGone)
    }

    /// Sends `close_notify` and FIN.
    async fn finish(&mut self, patience: Duration) -> Result<(), TlsFailure> {
        let (_, mut write) = self.stream.split();
        let session = &mut self.session;
        poll_fn(|cx| std::task::Poll::Ready(session.close(cx, &mut write))).await?;
        let flushed = timeout(patience, poll_fn(|cx| session.poll_flush(cx, &mut write))).await;
        let_go(&mut self.stream).await;
        flushed.unwrap_or(Err(io::ErrorKind::TimedOut.into())).map_err(TlsFailure::ClientGone)
    }
}
