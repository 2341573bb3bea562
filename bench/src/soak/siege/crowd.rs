//! A crowd that is in: thousands of slow openings and of readers without a window, all at once, with no limits for a
//! source, since one address stands for all those readers.

use std::{
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow, ensure};
use setu_tests::{
    Path, Setu,
    level::Level,
    network::{Network, PROXY, SERVERS},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    runtime,
    sync::watch as signal,
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{
    super::{
        clients::{Targets, ask, open},
        servers::Endpoints,
        settle, watch,
    },
    RATIO,
    healthy::{measure, open_from},
};
use crate::interrupt;

const SLOWLORIS: usize = 5_000;
const ZERO_WINDOW: usize = 2_000;
/// A byte of a slowloris each while.
const TRICKLE: Duration = Duration::from_secs(2);
/// What a zero-window reader asks for, pieces of 64 KiB. All of them together must not press the memory that the kernel
/// gives to TCP, which is the whole machine's.
const PIECES: u32 = 4;
/// How long the siege may take to be laid.
const PATIENCE: Duration = Duration::from_secs(60);
/// Resident memory for each hostile client, KiB; a reader without a window may cost what it asked for besides, because
/// what was passed to its flow in the kernel is taken into memory when the flow leaves.
const GROWTH: u64 = 32;
const ASKED: u64 = PIECES as u64 * 64;

pub(super) const HEAD: &str = "\
| path | healthy p99, ms: alone, besieged, alone | ratio | messages/s: alone, besieged | resident, KiB: before, \
besieged | reserved in the kernel, KiB |\n| --- | ---: | ---: | ---: | ---: | ---: |";

/// Prints a row.
pub(super) fn besiege(path: Path) -> Result<Vec<String>> {
    let network = &Network::new();
    network.populate();
    // Who does not read has no room for more than this.
    network.clients.set("net/ipv4/tcp_rmem", "4096 8192 8192");
    let endpoints = Endpoints::start(network, &SERVERS[..1])?;
    let more = format!(
        "[[listener]]\nname = \"media\"\nbind = [\"{PROXY}:0\"]\nmode = \"media\"\nupstream = \"test\"\n\
         [limits]\nper_source = 0\nper_source_rate = 0\npending = 6000\n"
    );
    let setu = network.setu_with_log(path, &endpoints.addresses(), &more, "info");
    let before = Level::of(&setu, network);
    let targets = Targets { chat: setu.address("chat"), media: setu.address("media") };
    let resident = setu.status("VmRSS");
    let alone = measure(network, targets.chat)?;
    let crowd = Crowd::default();
    let (stop, stopped) = signal::channel(false);
    let (besieged, grown, reserved) = thread::scope(|scope| -> Result<_> {
        let attackers = scope.spawn(|| attack(network, targets, &crowd, stopped));
        let measured = crowd.wait().and_then(|()| measure(network, targets.chat));
        let (grown, reserved) = (setu.status("VmRSS"), watch::reserved(&setu));
        // An error means that the attackers have ended.
        let _ = stop.send(true);
        attackers.join().map_err(|_| anyhow!("the attackers panicked"))??;
        Ok((measured?, grown, reserved))
    })?;
    let after = measure(network, targets.chat)?;
    drop(endpoints);
    let left = settle(&setu, network, before);
    let ratio = besieged.p99 / ((alone.p99 + after.p99) / 2.0);
    println!(
        "| {} | {:.2}, {:.2}, {:.2} | {ratio:.2} | {:.0}, {:.0} | {resident}, {grown} | {} |",
        path.name(),
        alone.p99,
        besieged.p99,
        after.p99,
        alone.rate,
        besieged.rate,
        reserved / 1024
    );
    let (status, reasons) = Setu::stop(setu);
    println!("\nclosed: {reasons:?}\n");
    let mut findings = Vec::new();
    if ratio > RATIO {
        findings.push(format!("{}: healthy p99 is {ratio:.2} times that alone", path.name()));
    }
    if grown.saturating_sub(resident) > GROWTH * (SLOWLORIS + ZERO_WINDOW) as u64 + ASKED * ZERO_WINDOW as u64
    {
        findings.push(format!("{}: resident memory grew from {resident} to {grown} KiB", path.name()));
    }
    if let Some(left) = left {
        findings.push(format!("{}: held at the end: {left:?}; at the start: {before:?}", path.name()));
    }
    ensure!(status.success(), "setu ended with {status}");
    Ok(findings)
}

/// How many attackers are in place.
#[derive(Default)]
struct Crowd {
    slowloris: Arc<AtomicUsize>,
    stalled: Arc<AtomicUsize>,
}

impl Crowd {
    /// Waits until nearly all are: those that setu turned away are on their way back.
    fn wait(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            interrupt::check()?;
            let now = [&self.slowloris, &self.stalled].map(|count| count.load(Ordering::Relaxed));
            if now[0] >= SLOWLORIS * 9 / 10 && now[1] == ZERO_WINDOW {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "only {now:?} attackers are in place");
            thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Counted as in place while it lives.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count.clone())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Runs all attackers until told to stop.
fn attack(
    network: &Network,
    targets: Targets,
    crowd: &Crowd,
    mut stopped: signal::Receiver<bool>,
) -> Result<()> {
    network.clients.enter();
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut attackers: JoinSet<std::io::Result<()>> = JoinSet::new();
        for _ in 0..ZERO_WINDOW {
            let count = crowd.stalled.clone();
            attackers.spawn(async move {
                let mut stream = open(targets.chat).await?;
                ask(&mut stream, b'D', 1, PIECES).await?;
                let _place = Place::take(&count);
                std::future::pending().await
            });
        }
        for number in 0..SLOWLORIS {
            let count = crowd.slowloris.clone();
            // One source has no more places in inspection than it leaves to others.
            let ip = Ipv4Addr::new(10, 86, (number / 250) as u8, (number % 250) as u8 + 1);
            attackers.spawn(async move {
                // Not all at once, so that they do not return all at once either.
                sleep(TRICKLE * number as u32 / SLOWLORIS as u32).await;
                loop {
                    let Ok(mut stream) = open_from(ip.into(), targets.media).await else {
                        sleep(Duration::from_millis(100)).await;
                        continue;
                    };
                    let _place = Place::take(&count);
                    for byte in [0x16, 3, 1, 2, 0, 1, 0, 1] {
                        if stream.write_all(&[byte]).await.is_err() {
                            break;
                        }
                        // An end comes when the deadline is over; then it is back at once.
                        if timeout(TRICKLE, stream.read(&mut [0; 64])).await.is_ok() {
                            break;
                        }
                    }
                }
            });
        }
        tokio::select! {
            _ = stopped.wait_for(|stopped| *stopped) => Ok(()),
            // None ends by itself.
            ended = async {
                loop {
                    match attackers.join_next().await {
                        Some(Ok(Err(error))) => return anyhow::Error::from(error),
                        Some(Ok(Ok(()))) => {}
                        Some(Err(error)) => return error.into(),
                        None => return anyhow!("no attackers"),
                    }
                }
            } => Err(ended),
        }
    })
}
