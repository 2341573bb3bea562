//! Those who use setu, and those who mean harm: one thread with an event loop for all of them.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use sha2::{Digest as _, Sha256};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::watch::Receiver,
    time::{sleep, timeout},
};

use super::{
    ledger::{Failure, Ledger},
    pattern::{PIECE, Pattern, digest},
};

/// Chats at once.
const CHATS: u64 = 2_000;
/// From message to message of a chat, milliseconds: from and to.
const THINK: (u64, u64) = (1_000, 5_000);
/// Clients that come and go, at once, and their rest, milliseconds.
const CHURN: u64 = 8;
const CHURN_REST: u64 = 40;
/// Pieces of media at once, and how large: in pieces of 64 KiB.
const MEDIA: u64 = 3;
const MEDIA_PIECES: (u64, u64) = (16, 256);
const MEDIA_REST: u64 = 300;
/// Readers that stall, at once, and for how long, milliseconds.
const STALLED: u64 = 40;
const STALLED_READER: &str = "stalled reader";
const STALL: (u64, u64) = (3_000, 15_000);
/// Clients that mean harm, at once, and their rest, milliseconds.
const PROBES: u64 = 8;
const PROBE_REST: u64 = 100;
/// No answer takes longer.
const PATIENCE: Duration = Duration::from_secs(40);

/// Where clients connect.
#[derive(Clone, Copy)]
pub(crate) struct Targets {
    pub(crate) chat: SocketAddr,
    pub(crate) media: SocketAddr,
}

/// Runs all of them until told to stop.
pub(crate) async fn run(targets: Targets, ledger: &Arc<Ledger>, mut stopped: Receiver<bool>) {
    let mut tasks = tokio::task::JoinSet::new();
    let each = |count: u64| (0..count).map(move |number| Pattern::new(number * 7 + count));
    for mut random in each(CHATS) {
        let ledger = ledger.clone();
        tasks.spawn(async move {
            // Not all at once.
            sleep(Duration::from_millis(random.between(0, 4_000))).await;
            loop {
                let ended = chat(targets.chat, &mut random, &ledger).await;
                retry("chat", ended, &ledger).await;
            }
        });
    }
    for mut random in each(CHURN) {
        let ledger = ledger.clone();
        tasks.spawn(async move {
            loop {
                let ended = come_and_go(targets.chat, &mut random, &ledger).await;
                retry("churn", ended, &ledger).await;
                sleep(Duration::from_millis(CHURN_REST)).await;
            }
        });
    }
    for mut random in each(MEDIA) {
        let ledger = ledger.clone();
        tasks.spawn(async move {
            loop {
                let ended = media(targets.chat, &mut random, &ledger).await;
                retry("media", ended, &ledger).await;
                sleep(Duration::from_millis(MEDIA_REST)).await;
            }
        });
    }
    for mut random in each(STALLED) {
        let ledger = ledger.clone();
        tasks.spawn(async move {
            loop {
                let ended = stall(targets.chat, &mut random, &ledger).await;
                retry(STALLED_READER, ended, &ledger).await;
            }
        });
    }
    for mut random in each(PROBES) {
        let ledger = ledger.clone();
        tasks.spawn(async move {
            loop {
                let ended = probe(targets, &mut random, &ledger).await;
                retry("probe", ended, &ledger).await;
                sleep(Duration::from_millis(PROBE_REST)).await;
            }
        });
    }
    tokio::select! {
        _ = stopped.wait_for(|stopped| *stopped) => {}
        // None ends by itself, unless it panicked.
        Some(Err(error)) = tasks.join_next() => {
            ledger.failed("client", Failure::Wrong(error.to_string()), Duration::ZERO);
        }
    }
}

/// Notes a failure, and waits a little, so that a dead upstream is not hammered.
async fn retry(kind: &str, ended: Result<(), Failure>, ledger: &Ledger) {
    if let Err(failure) = ended {
        let late = if kind == STALLED_READER { Duration::from_millis(STALL.1) } else { Duration::ZERO };
        ledger.failed(kind, failure, late);
        sleep(Duration::from_millis(500)).await;
    }
}

pub(super) async fn open(to: SocketAddr) -> io::Result<TcpStream> {
    let stream = within(TcpStream::connect(to)).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Bounds a wait.
async fn within<T>(wait: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(PATIENCE, wait).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Sends a message that comes back.
async fn exchange(stream: &mut TcpStream, random: &mut Pattern) -> Result<(), Failure> {
    let mut message = vec![0; random.between(2, 60) as usize * 8];
    random.fill(&mut message);
    let mut echo = vec![0; message.len()];
    within(stream.write_all(&message)).await?;
    within(stream.read_exact(&mut echo)).await?;
    if echo == message { Ok(()) } else { Err(Failure::Wrong("another message came back".into())) }
}

/// Talks for some minutes.
async fn chat(to: SocketAddr, random: &mut Pattern, ledger: &Ledger) -> Result<(), Failure> {
    let mut stream = open(to).await?;
    within(stream.write_all(b"E")).await?;
    for _ in 0..random.between(20, 200) {
        exchange(&mut stream, random).await?;
        Ledger::count(&ledger.messages, 1);
        // An end is noticed when it comes, so that the fault behind it is the last one.
        let think = Duration::from_millis(random.between(THINK.0, THINK.1));
        match timeout(think, stream.read(&mut [0; 64])).await {
            Err(_elapsed) => {}
            Ok(Ok(0)) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok(Ok(count)) => return Err(Failure::Wrong(format!("{count} bytes that nobody sent"))),
            Ok(Err(error)) => return Err(error.into()),
        }
    }
    end(stream).await
}

/// Finishes, and sees the other side finish.
async fn end(mut stream: TcpStream) -> Result<(), Failure> {
    within(stream.shutdown()).await?;
    match within(stream.read(&mut [0; 64])).await? {
        0 => Ok(()),
        count => Err(Failure::Wrong(format!("{count} bytes too many"))),
    }
}

/// One message, and an end of each kind.
async fn come_and_go(to: SocketAddr, random: &mut Pattern, ledger: &Ledger) -> Result<(), Failure> {
    let mut stream = open(to).await?;
    within(stream.write_all(b"E")).await?;
    exchange(&mut stream, random).await?;
    Ledger::count(&ledger.connections, 1);
    match random.number() % 4 {
        0 => {
            // The bytes after the client's FIN must come through as well.
            let mut message = vec![0; 4096];
            random.fill(&mut message);
            within(stream.write_all(&message)).await?;
            within(stream.shutdown()).await?;
            let mut echo = Vec::new();
            within(stream.read_to_end(&mut echo)).await?;
            if echo != message {
                return Err(Failure::Wrong(format!("{} of 4096 bytes after the FIN", echo.len())));
            }
            Ok(())
        }
        1 => {
            stream.set_zero_linger()?;
            Ok(())
        }
        2 => Ok(()),
        _ => end(stream).await,
    }
}

/// A download or an upload, compared by SHA-256.
async fn media(to: SocketAddr, random: &mut Pattern, ledger: &Ledger) -> Result<(), Failure> {
    let (seed, pieces) = (random.number(), random.between(MEDIA_PIECES.0, MEDIA_PIECES.1) as u32);
    let mut stream = open(to).await?;
    let upload = seed % 2 == 0;
    ask(&mut stream, if upload { b'U' } else { b'D' }, seed, pieces).await?;
    if upload {
        let (mut pattern, mut buffer, mut answer) = (Pattern::new(seed), vec![0; PIECE], [0; 32]);
        let mut hash = Sha256::new();
        for _ in 0..pieces {
            pattern.fill(&mut buffer);
            hash.update(&buffer);
            within(stream.write_all(&buffer)).await?;
        }
        within(stream.read_exact(&mut answer)).await?;
        if answer[..] != hash.finalize()[..] {
            return Err(Failure::Wrong("an upload arrived with another SHA-256".into()));
        }
    } else {
        receive(&mut stream, seed, pieces).await?;
    }
    Ledger::count(&ledger.media, 1);
    Ledger::count(&ledger.media_bytes, u64::from(pieces) * PIECE as u64);
    Ok(())
}

pub(super) async fn ask(stream: &mut TcpStream, what: u8, seed: u64, pieces: u32) -> io::Result<()> {
    let wish = [&[what][..], &seed.to_be_bytes(), &pieces.to_be_bytes()].concat();
    within(stream.write_all(&wish)).await
}

/// Reads a download to its end.
async fn receive(stream: &mut TcpStream, seed: u64, pieces: u32) -> Result<(), Failure> {
    let (mut hash, mut buffer, mut total) = (Sha256::new(), vec![0; PIECE], 0);
    loop {
        match within(stream.read(&mut buffer)).await? {
            0 => break,
            count => {
                hash.update(&buffer[..count]);
                total += count;
            }
        }
    }
    // An end that is orderly and too early, after which a client would take half a file for a whole one. When a server
    // dies its kernel may end the stream like that.
    if total < pieces as usize * PIECE {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    if hash.finalize()[..] != digest(seed, pieces)[..] {
        return Err(Failure::Wrong("a download has another SHA-256".into()));
    }
    Ok(())
}

/// A download whose reader sleeps, and then reads on or leaves.
async fn stall(to: SocketAddr, random: &mut Pattern, ledger: &Ledger) -> Result<(), Failure> {
    let (seed, pieces) = (random.number(), random.between(8, 96) as u32);
    let mut stream = open(to).await?;
    ask(&mut stream, b'D', seed, pieces).await?;
    sleep(Duration::from_millis(random.between(STALL.0, STALL.1))).await;
    if seed % 4 == 0 {
        stream.set_zero_linger()?;
        return Ok(());
    }
    receive(&mut stream, seed, pieces).await?;
    Ledger::count(&ledger.stalls, 1);
    Ok(())
}

/// Openings that must not be served on a media port.
const OPENINGS: [&[u8]; 5] = [
    b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n",
    b"CONNECT example.org:443 HTTP/1.1\r\n\r\n",
    b"\x05\x01\x00",
    b"\x16\x03\x01\xff\xff\xff\xff\xff\xff",
    b"SSH-2.0-scanner\r\n",
];

/// Harm of several kinds; none gets a byte of an upstream.
async fn probe(targets: Targets, random: &mut Pattern, ledger: &Ledger) -> Result<(), Failure> {
    let opening = OPENINGS[random.number() as usize % OPENINGS.len()];
    match random.number() % 4 {
        // Comes and vanishes.
        0 => {
            let stream = open(targets.chat).await?;
            stream.set_zero_linger()?;
        }
        // One byte each while, until setu has enough.
        1 => {
            let mut stream = open(targets.media).await?;
            for byte in [0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3, 0] {
                if stream.write_all(&[byte]).await.is_err() {
                    break;
                }
                sleep(Duration::from_millis(random.between(50, 600))).await;
            }
            refused(stream).await?;
        }
        // Never says anything.
        2 => refused(open(targets.media).await?).await?,
        _ => {
            let mut stream = open(targets.media).await?;
            // It may be refused before all is written.
            let _ = stream.write_all(opening).await;
            refused(stream).await?;
        }
    }
    Ledger::count(&ledger.probes, 1);
    Ok(())
}

/// An end, with at most an alert of TLS before it.
async fn refused(mut stream: TcpStream) -> Result<(), Failure> {
    const ALERT: u8 = 21;
    let mut answer = Vec::new();
    match within(stream.read_to_end(&mut answer)).await {
        Err(error) if error.kind() == io::ErrorKind::TimedOut => return Err(error.into()),
        _ => {}
    }
    match answer.first() {
        None | Some(&ALERT) => Ok(()),
        Some(_) => Err(Failure::Wrong(format!("{} bytes for a probe", answer.len()))),
    }
}
