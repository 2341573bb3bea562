//! Looks at a client's first bytes without taking them.
//!
//! Only `MSG_PEEK`: every byte stays in the socket, and whoever gets the connection next, the kernel's path included,
//! reads each exactly once. A connection that waits holds no buffer: a thread has one, used between two awaits, and wiped
//! after each use, for what is in it may be a client's address.

use std::{cell::RefCell, io, os::fd::AsFd as _, time::Duration};

use tokio::{
    io::Interest,
    net::TcpStream,
    time::{Instant, sleep, timeout_at},
};

use super::client_hello::LIMIT;
use crate::sys;

/// A look copies and parses all the bytes so far, so that a client that sends byte by byte would cost their square. It
/// has this many looks, each as soon as something comes that may matter: a hello takes one or two.
const PROMPT_LOOKS: u32 = 8;
/// After them there is a pause before each look, twice as long as the one before, up to a bound: within a deadline of 5 s
/// that makes some twelve looks.
const PAUSE: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_millis(640);

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; LIMIT].into_boxed_slice());
}

/// How far looking goes.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Bytes; [`LIMIT`] at most. The kernel takes in about 64 KiB for a socket that nobody reads, less in small
    /// segments: then it is the deadline that ends the wait.
    pub bytes: usize,
    /// When the wait ends. Looks in a row, at a PROXY header and what follows it, have one deadline.
    pub deadline: Instant,
}

/// Why there is no decision.
#[derive(Debug, thiserror::Error)]
pub enum Undecided {
    /// The deadline passed.
    #[error("the client's first bytes did not come in time")]
    TimedOut,
    /// The client finished before.
    #[error("the client finished before its first bytes were complete")]
    Ended {
        /// Whether it sent anything.
        silent: bool,
    },
    /// As many bytes as are looked at did not decide.
    #[error("the client's first bytes are too many")]
    TooLong,
    /// The socket's error: a reset, say.
    #[error("the client's connection broke: {0}")]
    Io(#[from] io::Error),
}

/// Looks at the bytes whenever new ones have come, until `decide` has an answer. It is called with all the bytes so
/// far, and never twice with the same.
///
/// # Errors
/// Why there is no answer. What has come is still in the socket.
pub async fn peek<T>(
    stream: &TcpStream,
    bounds: Bounds,
    mut decide: impl FnMut(&[u8]) -> Option<T>,
) -> Result<T, Undecided> {
    peek_message(stream, bounds, |bytes| decide(bytes).ok_or(More { least: bytes.len() + 1 })).await
}

/// There is no answer yet.
#[derive(Debug, Clone, Copy)]
pub struct More {
    /// Nor will there be before so many bytes are there, from the first on.
    pub least: usize,
}

/// As [`peek`], for what says how long it is.
///
/// # Errors
/// As [`peek`]'s. What would be longer than is looked at is not waited for.
pub async fn peek_message<T>(
    stream: &TcpStream,
    bounds: Bounds,
    decide: impl FnMut(&[u8]) -> Result<T, More>,
) -> Result<T, Undecided> {
    timeout_at(bounds.deadline, watch(stream, bounds.bytes.min(LIMIT), decide))
        .await
        .unwrap_or(Err(Undecided::TimedOut))
}

async fn watch<T>(
    stream: &TcpStream,
    limit: usize,
    mut decide: impl FnMut(&[u8]) -> Result<T, More>,
) -> Result<T, Undecided> {
    let (mut seen, mut looks, mut least) = (0, 0_u32, 1);
    let mut threshold = Threshold { stream, bytes: 1 };
    loop {
        let ready = stream.ready(Interest::READABLE).await?;
        // tokio keeps this once it is set, so that waiting for more would spin. The client's bytes are all here.
        let ended = ready.is_read_closed();
        let look = stream.try_io(Interest::READABLE, || {
            BUFFER.with_borrow_mut(|buffer| {
                let count = sys::peek(stream.as_fd(), &mut buffer[..limit])?;
                let decision = (count > seen).then(|| decide(&buffer[..count]));
                buffer[..count].fill(0);
                match decision {
                    Some(Ok(decision)) => return Ok((count, Some(decision))),
                    Some(Err(more)) => least = more.least,
                    // Makes tokio wait for the next edge: epoll reports each arrival once.
                    None if !ended && count > 0 => return Err(io::ErrorKind::WouldBlock.into()),
                    None => {}
                }
                Ok((count, None))
            })
        });
        match look {
            Ok((_, Some(decision))) => return Ok(decision),
            Ok((count, None)) if count >= limit || least > limit => return Err(Undecided::TooLong),
            Ok((count, None)) if ended || count == 0 => {
                // A reset leaves the bytes before it readable; its error comes after them.
                return Err(match stream.take_error()? {
                    Some(error) => error.into(),
                    None => Undecided::Ended { silent: count == 0 },
                });
            }
            Ok((count, None)) => seen = count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
        looks += 1;
        if looks > PROMPT_LOOKS {
            threshold.set(limit);
            let doubled = PAUSE.saturating_mul(2_u32.saturating_pow(looks - PROMPT_LOOKS - 1));
            sleep(doubled.min(PAUSE_MAX)).await;
        }
        // One more byte wakes by itself.
        threshold.set(if least > seen + 1 { least } else { 1 });
    }
}

/// How many bytes must be there before a socket wakes anybody (`SO_RCVLOWAT`), its end aside: for each byte of a trickle the
/// wake-up would cost more than the byte is worth. When it is lowered the kernel tells at once of what is there
/// (`tcp_set_rcvlowat`, net/ipv4/tcp.c).
struct Threshold<'a> {
    stream: &'a TcpStream,
    bytes: usize,
}

impl Threshold<'_> {
    fn set(&mut self, bytes: usize) {
        if self.bytes != bytes {
            self.bytes = bytes;
            // An error means that the connection is gone, which wakes.
            let _ = sys::set_receive_low_water(self.stream.as_fd(), i32::try_from(bytes).unwrap_or(i32::MAX));
        }
    }
}

impl Drop for Threshold<'_> {
    fn drop(&mut self) {
        self.set(1);
    }
}

/// What comes of a look that was the last. If that is nothing, what is unread is thrown away: a close would be an RST
/// instead of the FIN that the silent get, and tell that setu waited for more.
///
/// # Errors
/// As the look's.
pub async fn or_leave<T>(
    stream: &TcpStream,
    look: impl Future<Output = Result<T, Undecided>>,
) -> Result<T, Undecided> {
    let outcome = look.await;
    if outcome.is_err() {
        discard(stream);
    }
    outcome
}

/// Throws away what a client has sent, so that the close is a FIN.
pub(crate) fn discard(stream: &TcpStream) {
    sys::discard(stream.as_fd(), LIMIT);
}

/// Takes out bytes that were looked at: a PROXY header, which is not the client's.
///
/// A segment that held more is left partly read, and a socket must not enter a sockhash so: the kernel would send the
/// whole segment. What follows must then be read until the socket is empty, and sent first.
///
/// # Errors
/// The socket's; `UnexpectedEof` when the bytes are not there.
pub fn consume(stream: &TcpStream, mut len: usize) -> io::Result<()> {
    BUFFER.with_borrow_mut(|buffer| {
        while len > 0 {
            let wanted = len.min(buffer.len());
            // Not through tokio: what is there does not depend on what epoll has told.
            let received = sys::receive(stream.as_fd(), &mut buffer[..wanted]);
            buffer[..wanted].fill(0);
            match received? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => len -= count,
            }
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use socket2::SockRef;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
        runtime,
    };

    use super::*;

    /// Generous: no test waits for it.
    const LONG: Duration = Duration::from_secs(60);

    fn bounds(bytes: usize, wait: Duration) -> Bounds {
        Bounds { bytes, deadline: Instant::now() + wait }
    }

    /// A client and setu's end of its connection.
    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        client.set_nodelay(true).unwrap();
        (client, listener.accept().await.unwrap().0)
    }

    /// Decides when so many bytes are there, and says what they are.
    fn at_least(count: usize) -> impl FnMut(&[u8]) -> Option<Vec<u8>> {
        move |bytes| (bytes.len() >= count).then(|| bytes.to_vec())
    }

    #[tokio::test]
    async fn nothing_is_taken_out() {
        let (mut client, mut server) = pair().await;
        client.write_all(b"hello").await.unwrap();
        for _ in 0..2 {
            assert_eq!(peek(&server, bounds(LIMIT, LONG), at_least(5)).await.unwrap(), b"hello");
        }
        client.shutdown().await.unwrap();
        let mut read = Vec::new();
        server.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, b"hello");
    }

    #[tokio::test]
    async fn byte_by_byte_each_count_once() {
        let (mut client, server) = pair().await;
        let bytes: Vec<u8> = (0..200).collect();
        let sent = bytes.clone();
        let sender = tokio::spawn(async move {
            for byte in sent {
                client.write_all(&[byte]).await.unwrap();
                tokio::task::yield_now().await;
            }
            client
        });
        let mut counts = Vec::new();
        let decide = |bytes: &[u8]| {
            counts.push(bytes.len());
            (bytes.len() == 200).then(|| bytes.to_vec())
        };
        assert_eq!(peek(&server, bounds(LIMIT, LONG), decide).await.unwrap(), bytes);
        assert!(counts.is_sorted_by(|one, next| one < next), "{counts:?}");
        drop(sender.await.unwrap());
    }

    /// A client that sends very many small segments gets no more looks than there are pauses.
    #[test]
    fn looks_are_bounded() {
        const SEGMENTS: usize = 5_000;
        // Asks epoll after each step, so that every segment is an event of its own.
        let runtime = runtime::Builder::new_current_thread().enable_all().event_interval(1).build().unwrap();
        let (looks, elapsed) = runtime.block_on(async {
            let (mut client, server) = pair().await;
            let sender = tokio::spawn(async move {
                for _ in 0..SEGMENTS {
                    client.write_all(b".").await.unwrap();
                    tokio::task::yield_now().await;
                }
                client
            });
            let begin = Instant::now();
            let mut looks = 0_u64;
            let decide = |bytes: &[u8]| {
                looks += 1;
                (bytes.len() == SEGMENTS).then_some(())
            };
            peek(&server, bounds(LIMIT, LONG), decide).await.unwrap();
            drop(sender.await.unwrap());
            (looks, begin.elapsed())
        });
        // Each pause is twice as long: their sum is what went by.
        let pauses = (0..20).scan(0, |sum, n| {
            *sum += (PAUSE * 2_u32.pow(n)).min(PAUSE_MAX).as_millis();
            (*sum <= elapsed.as_millis()).then_some(())
        });
        let most = u64::from(PROMPT_LOOKS) + 2 + pauses.count() as u64;
        assert!(looks <= most, "{looks} looks, {most} at most");
    }

    /// What says how long it is gets no look before so much of it is there, however it comes, and the socket is left as
    /// it was.
    #[test]
    fn a_trickled_message_is_looked_at_when_it_is_there() {
        const WHOLE: usize = 300;
        let runtime = runtime::Builder::new_current_thread().enable_all().event_interval(1).build().unwrap();
        runtime.block_on(async {
            let (mut client, server) = pair().await;
            let sender = tokio::spawn(async move {
                for _ in 0..WHOLE {
                    client.write_all(b".").await.unwrap();
                    tokio::task::yield_now().await;
                }
                client
            });
            let mut looks = Vec::new();
            let decide = |bytes: &[u8]| {
                looks.push(bytes.len());
                if bytes.len() < WHOLE { Err(More { least: WHOLE }) } else { Ok(()) }
            };
            peek_message(&server, bounds(LIMIT, LONG), decide).await.unwrap();
            assert!(matches!(looks[..], [1..WHOLE, WHOLE] | [WHOLE]), "{looks:?}");
            let mut client = sender.await.unwrap();
            consume(&server, WHOLE).unwrap();
            client.write_all(b"!").await.unwrap();
            assert_eq!(peek(&server, bounds(LIMIT, LONG), at_least(1)).await.unwrap(), b"!");
            // Its end is told, however little there is.
            drop(client);
            let never = |_: &[u8]| Err::<(), _>(More { least: WHOLE });
            let outcome = peek_message(&server, bounds(LIMIT, LONG), never).await;
            assert!(matches!(outcome, Err(Undecided::Ended { silent: false })), "{outcome:?}");
        });
    }

    #[tokio::test]
    async fn what_says_that_it_is_too_long_is_not_waited_for() {
        let (mut client, server) = pair().await;
        client.write_all(b"hello").await.unwrap();
        let long = |_: &[u8]| Err::<(), _>(More { least: LIMIT + 1 });
        let outcome = peek_message(&server, bounds(LIMIT, LONG), long).await;
        assert!(matches!(outcome, Err(Undecided::TooLong)), "{outcome:?}");
    }

    #[tokio::test]
    async fn the_end_before_a_decision() {
        let (mut client, server) = pair().await;
        client.write_all(b"hel").await.unwrap();
        let finish = async {
            tokio::task::yield_now().await;
            client.shutdown().await.unwrap();
        };
        let (outcome, ()) = tokio::join!(peek(&server, bounds(LIMIT, LONG), at_least(5)), finish);
        assert!(matches!(outcome, Err(Undecided::Ended { silent: false })), "{outcome:?}");
        // The end was known before this look.
        let outcome = peek(&server, bounds(LIMIT, LONG), at_least(5)).await;
        assert!(matches!(outcome, Err(Undecided::Ended { silent: false })), "{outcome:?}");
        assert_eq!(peek(&server, bounds(LIMIT, LONG), at_least(3)).await.unwrap(), b"hel");
    }

    #[tokio::test]
    async fn the_end_without_a_byte() {
        let (client, server) = pair().await;
        drop(client);
        let outcome = peek(&server, bounds(LIMIT, LONG), at_least(5)).await;
        assert!(matches!(outcome, Err(Undecided::Ended { silent: true })), "{outcome:?}");
    }

    #[tokio::test]
    async fn a_reset_with_and_without_bytes() {
        for bytes in [&b""[..], b"hel"] {
            let (mut client, server) = pair().await;
            client.write_all(bytes).await.unwrap();
            SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
            let reset = async {
                tokio::task::yield_now().await;
                drop(client);
            };
            let (outcome, ()) = tokio::join!(peek(&server, bounds(LIMIT, LONG), at_least(5)), reset);
            let Err(Undecided::Io(error)) = outcome else { panic!("{outcome:?}") };
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        }
    }

    #[tokio::test]
    async fn the_deadline() {
        let (mut client, server) = pair().await;
        let outcome = peek(&server, bounds(LIMIT, Duration::from_millis(20)), at_least(1)).await;
        assert!(matches!(outcome, Err(Undecided::TimedOut)), "{outcome:?}");
        client.write_all(b"hel").await.unwrap();
        let outcome = peek(&server, bounds(LIMIT, Duration::from_millis(20)), at_least(5)).await;
        assert!(matches!(outcome, Err(Undecided::TimedOut)), "{outcome:?}");
        // A look that was given up takes nothing from the next.
        client.write_all(b"lo").await.unwrap();
        assert_eq!(peek(&server, bounds(LIMIT, LONG), at_least(5)).await.unwrap(), b"hello");
    }

    #[tokio::test]
    async fn too_many_bytes() {
        let (mut client, server) = pair().await;
        client.write_all(&[b'.'; 2_000]).await.unwrap();
        let outcome = peek(&server, bounds(1_000, LONG), at_least(1_001)).await;
        assert!(matches!(outcome, Err(Undecided::TooLong)), "{outcome:?}");
    }

    #[tokio::test]
    async fn a_header_is_consumed_and_what_follows_is_not() {
        let (mut client, mut server) = pair().await;
        client.write_all(b"header").await.unwrap();
        peek(&server, bounds(LIMIT, LONG), at_least(6)).await.unwrap();
        consume(&server, 6).unwrap();
        assert_eq!(consume(&server, 1).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        // Nothing is there: this waits for more.
        let (outcome, sent) =
            tokio::join!(peek(&server, bounds(LIMIT, LONG), at_least(9)), client.write_all(b"head bytes"));
        sent.unwrap();
        assert_eq!(outcome.unwrap(), b"head bytes");
        consume(&server, 5).unwrap();
        assert_eq!(peek(&server, bounds(LIMIT, LONG), at_least(5)).await.unwrap(), b"bytes");
        drop(client);
        let mut read = String::new();
        server.read_to_string(&mut read).await.unwrap();
        assert_eq!(read, "bytes");
        assert_eq!(consume(&server, 1).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
