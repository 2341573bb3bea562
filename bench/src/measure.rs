//! Loads, and what they cost. Every byte is checked against a known block.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use procfs::{CurrentSI as _, KernelStats};
use serde::Serialize;

use crate::peers::Peer;

/// Connections of the ping-pong.
const PAIRS: usize = 32;
/// Bytes of a message.
const MESSAGE: usize = 256;
/// Bytes of the block that a bulk stream repeats.
const BLOCK: usize = 1 << 20;

/// One round of one peer.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Round {
    pub(crate) peer: &'static str,
    pub(crate) scenario: &'static str,
    /// Gbit/s, or messages (round trips) a second.
    pub(crate) rate: f64,
    /// Whole-machine busy core-seconds per GB, or per million messages.
    pub(crate) busy: f64,
    /// CPU seconds of the peer's processes in user and kernel mode, in the same unit; softirqs are not in it.
    pub(crate) own: f64,
    /// 99th percentile of the round trip, microseconds; 0 for bulk.
    pub(crate) p99: f64,
}

/// Units of work: GB, or millions of messages.
struct Work {
    units: f64,
    rate: f64,
    p99: f64,
}

/// Runs a scenario once.
pub(crate) fn round(
    scenario: &'static str,
    peer: &Peer,
    upstream: &TcpListener,
    time: Duration,
) -> Result<Round> {
    let (busy, own) = (busy_seconds()?, own_seconds(peer)?);
    let work =
        if scenario == "bulk" { bulk(peer, upstream, time)? } else { ping_pong(peer, upstream, time)? };
    let (busy, own) = (busy_seconds()? - busy, own_seconds(peer)? - own);
    let Work { units, rate, p99 } = work;
    Ok(Round { peer: peer.name, scenario, rate, busy: busy / units, own: own / units, p99 })
}

fn open(peer: &Peer, upstream: &TcpListener) -> Result<(TcpStream, TcpStream)> {
    let client = TcpStream::connect(peer.address)?;
    let (server, _) = upstream.accept()?;
    for stream in [&client, &server] {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        stream.set_write_timeout(Some(Duration::from_secs(20)))?;
    }
    Ok((client, server))
}

/// One stream from the server to the client.
fn bulk(peer: &Peer, upstream: &TcpListener, time: Duration) -> Result<Work> {
    let (mut client, mut server) = open(peer, upstream)?;
    let block: Vec<u8> = (0..BLOCK).map(|at| (at * 31 % 251) as u8).collect();
    let begun = Instant::now();
    let total = thread::scope(|scope| {
        let block = &block;
        let sending = scope.spawn(move || -> Result<()> {
            while begun.elapsed() < time {
                server.write_all(block)?;
            }
            Ok(server.shutdown(Shutdown::Write)?)
        });
        let (mut total, mut buffer) = (0, vec![0; 256 * 1024]);
        loop {
            let at = total % BLOCK;
            let len = buffer.len().min(BLOCK - at);
            let count = client.read(&mut buffer[..len])?;
            if count == 0 {
                break;
            }
            ensure!(buffer[..count] == block[at..at + count], "wrong bytes after {total}");
            total += count;
        }
        sending.join().map_err(|_| anyhow!("the sender panicked"))??;
        Ok(total)
    })?;
    ensure!(total.is_multiple_of(BLOCK), "{total} bytes arrived, which is no whole number of blocks");
    let gigabytes = total as f64 / 1e9;
    Ok(Work { units: gigabytes, rate: gigabytes * 8.0 / begun.elapsed().as_secs_f64(), p99: 0.0 })
}

fn ping_pong(peer: &Peer, upstream: &TcpListener, time: Duration) -> Result<Work> {
    let pairs: Vec<_> = (0..PAIRS).map(|_| open(peer, upstream)).collect::<Result<_>>()?;
    let begun = Instant::now();
    let mut trips = thread::scope(|scope| {
        let mut clients = Vec::new();
        for (client, server) in pairs {
            scope.spawn(move || {
                let (mut server, mut buffer) = (server, [0; MESSAGE]);
                while server.read_exact(&mut buffer).is_ok() && server.write_all(&buffer).is_ok() {}
            });
            clients.push(scope.spawn(move || -> Result<Vec<u32>> {
                let (mut client, mut buffer, mut trips) = (client, [0; MESSAGE], Vec::new());
                while begun.elapsed() < time {
                    let message = [trips.len() as u8; MESSAGE];
                    let sent = Instant::now();
                    client.write_all(&message)?;
                    client.read_exact(&mut buffer)?;
                    trips.push(sent.elapsed().as_nanos() as u32);
                    ensure!(buffer == message, "another message came back");
                }
                Ok(trips)
            }));
        }
        let mut all = Vec::new();
        for client in clients {
            all.extend(client.join().map_err(|_| anyhow!("a client panicked"))??);
        }
        Ok::<_, anyhow::Error>(all)
    })?;
    let seconds = begun.elapsed().as_secs_f64();
    trips.sort_unstable();
    let p99 = trips.get(trips.len() * 99 / 100).context("no message came back")?;
    let messages = trips.len() as f64;
    Ok(Work { units: messages / 1e6, rate: messages / seconds, p99: f64::from(*p99) / 1e3 })
}

/// Time that the machine's cores were not idle, seconds.
fn busy_seconds() -> Result<f64> {
    let total = KernelStats::current()?.total;
    let ticks = total.user + total.nice + total.system + total.irq.unwrap_or(0) + total.softirq.unwrap_or(0);
    Ok(ticks as f64 / procfs::ticks_per_second() as f64)
}

/// CPU time of a peer's processes, seconds.
fn own_seconds(peer: &Peer) -> Result<f64> {
    let Some(pid) = peer.pid() else { return Ok(0.0) };
    let mut ticks = 0;
    for process in procfs::process::all_processes()?.flatten() {
        let Ok(stat) = process.stat() else { continue };
        if process.pid == pid as i32 || stat.ppid == pid as i32 {
            ticks += stat.utime + stat.stime;
        }
    }
    Ok(ticks as f64 / procfs::ticks_per_second() as f64)
}
