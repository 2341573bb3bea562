//! A host between two others that carries frames from one to the other, and is a bad network.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    io,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use setu_tests::{
    netns::Netns,
    packets::{PacketSocket, without_offloads},
};

use super::{
    super::pattern::mix,
    way::{Fate, Way},
};

/// Its devices: away from setu's host, and toward it.
pub(crate) const DEVICES: [&str; 2] = ["far", "near"];
/// That toward setu's host.
const NEAR: usize = 1;
/// Frames that may be on their way in one direction; more are lost.
const QUEUE: usize = 8_192;
/// Frames to take from one device before the other is looked at.
const BATCH: usize = 64;
/// A frame of the largest packet that hosts send, and more.
const FRAME: usize = 2_048;
/// How often it looks whether it is to stop.
const NAP: Duration = Duration::from_millis(50);

/// What a forwarder did to frames of TCP.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Carried {
    pub(crate) frames: u64,
    pub(crate) lost: u64,
    pub(crate) repeated: u64,
    /// Lost because the queue was full, of all frames.
    pub(crate) overflowed: u64,
}

/// A forwarder's thread. Dropping it ends it.
pub(crate) struct Forwarder {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Carried>>>,
}

impl Forwarder {
    /// Begins to forward in a namespace with both devices.
    ///
    /// # Errors
    /// When the devices are not there.
    pub(crate) fn new(host: &Netns, way: Way, seed: u64) -> Result<Self> {
        let sockets = host.within(|| -> io::Result<_> {
            DEVICES.iter().try_for_each(|device| without_offloads(device))?;
            Ok([PacketSocket::open(DEVICES[0])?, PacketSocket::open(DEVICES[1])?])
        });
        let sockets = sockets.context("a forwarder cannot have its devices")?;
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let thread = thread::spawn(move || forward(&sockets, way, seed, &told));
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Ends it; what it did.
    ///
    /// # Errors
    /// When it could not go on.
    pub(crate) fn end(mut self) -> Result<Carried> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("it has ended")?;
        thread.join().map_err(|_| anyhow!("a forwarder panicked"))?
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Frames on their way in one direction, of which the one is first that is due first, and came first.
type Queue = BinaryHeap<Reverse<(Instant, u64, Rc<[u8]>)>>;

/// Until told to stop.
fn forward(sockets: &[PacketSocket; 2], way: Way, seed: u64, stop: &AtomicBool) -> Result<Carried> {
    let mut carried = Carried::default();
    let mut fates = [mix(seed), mix(!seed)].map(|seed| Fate::new(way, seed));
    let mut queues: [Queue; 2] = Default::default();
    let mut buffer = [0; FRAME];
    let mut serial = 0;
    while !stop.load(Ordering::Relaxed) {
        let next = queues.iter().filter_map(|queue| queue.peek()).map(|Reverse((at, ..))| *at).min();
        let wait = next.map_or(NAP, |at| at.saturating_duration_since(Instant::now()));
        PacketSocket::wait(sockets, wait.min(NAP));
        for from in [0, 1] {
            let queue = &mut queues[from];
            for _ in 0..BATCH {
                let len = match sockets[from].receive(&mut buffer) {
                    Ok(len) => len,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error).context("a forwarder cannot receive"),
                };
                let (frame, now) = (Rc::<[u8]>::from(&buffer[..len]), Instant::now());
                let mut queue_up = |after: Duration| {
                    serial += 1;
                    if queue.len() < QUEUE {
                        queue.push(Reverse((now + after, serial, frame.clone())));
                    } else {
                        carried.overflowed += 1;
                    }
                };
                // Hosts that do not find each other are another matter than what TCP does.
                if !is_tcp(&frame) {
                    queue_up(way.delay);
                    continue;
                }
                let copies = fates[from].next(from == NEAR && is_own(&frame)).map(queue_up).count() as u64;
                carried.frames += 1;
                carried.lost += u64::from(copies == 0);
                carried.repeated += copies.saturating_sub(1);
            }
            let now = Instant::now();
            while queue.peek().is_some_and(|Reverse((at, ..))| *at <= now) {
                if let Some(Reverse((.., frame))) = queue.pop() {
                    // A device that has no room loses it.
                    let _ = sockets[1 - from].send(&frame);
                }
            }
        }
    }
    Ok(carried)
}

/// Whether it is TCP, in IPv4 or directly in IPv6.
fn is_tcp(frame: &[u8]) -> bool {
    const TCP: u8 = 6;
    let protocol = match frame.get(12..14) {
        Some([0x08, 0x00]) => frame.get(14 + 9),
        Some([0x86, 0xdd]) => frame.get(14 + 6),
        _ => None,
    };
    protocol == Some(&TCP)
}

/// Whether a frame of TCP has made no hop: what comes from setu's host and was translated has made one.
fn is_own(frame: &[u8]) -> bool {
    const FIRST: u8 = 64;
    let life = if frame.get(12) == Some(&0x08) { frame.get(14 + 8) } else { frame.get(14 + 7) };
    life == Some(&FIRST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_setu_itself_sent_has_made_no_hop() {
        for (kind, at) in [([0x08, 0x00], 14 + 8), ([0x86, 0xdd], 14 + 7)] {
            let mut frame = vec![0; 60];
            frame[12..14].copy_from_slice(&kind);
            frame[at] = 64;
            assert!(is_own(&frame));
            frame[at] = 63;
            assert!(!is_own(&frame));
        }
        assert!(!is_own(&[0; 14]));
    }

    #[test]
    fn only_tcp_suffers() {
        let frame = |kind: [u8; 2], at: usize, protocol: u8| {
            let mut frame = vec![0; 60];
            frame[12..14].copy_from_slice(&kind);
            frame[at] = protocol;
            frame
        };
        assert!(is_tcp(&frame([0x08, 0x00], 23, 6)));
        assert!(is_tcp(&frame([0x86, 0xdd], 20, 6)));
        // UDP, neighbour discovery, ARP, and what is too short.
        assert!(!is_tcp(&frame([0x08, 0x00], 23, 17)));
        assert!(!is_tcp(&frame([0x86, 0xdd], 20, 58)));
        assert!(!is_tcp(&frame([0x08, 0x06], 23, 6)));
        let short = frame([0x08, 0x00], 23, 6);
        assert!((0..=23).all(|len| !is_tcp(&short[..len])));
    }
}
