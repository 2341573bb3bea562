//! The soak: everything at once for as long as one likes, and nothing may be left behind.
//!
//! Between three hosts of their own run chats, churn, media with hashes, readers that stall and clients that mean harm,
//! while upstreams die and come back. It fails on a wrong byte, on a connection that broke without a fault, and when setu
//! holds more at the end than at the start: descriptors, entries of maps, connections, memory.

mod clients;
mod ledger;
mod pattern;
mod servers;
pub(crate) mod siege;
mod watch;

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use setu_tests::{
    NOT_PLACED, ONE_SOURCE, Path, Setu,
    level::Level,
    machine,
    network::{Network, PROXY, SERVERS},
};
use tokio::{runtime, sync::watch as signal};

use crate::interrupt;
use ledger::Ledger;
use servers::Endpoints;
use watch::Watch;

/// Faults come so often.
const FAULT_EVERY: Duration = Duration::from_secs(12);
/// An endpoint that was killed comes back after this.
const DEAD_FOR: Duration = Duration::from_secs(3);
/// What setu may still hold is looked for so long.
const SETTLE: Duration = Duration::from_secs(60);

/// Runs both paths in turn, each for half of the time.
///
/// # Errors
/// Anything that a soak must not find.
pub(crate) fn run(minutes: f64) -> Result<()> {
    ensure!(machine::is_root(), "network namespaces need root: run it as root, or by sudo");
    machine::raise_file_limit();
    interrupt::watch()?;
    let time = Duration::from_secs_f64(minutes * 60.0 / 2.0);
    let mut findings = Vec::new();
    for path in [Path::Sockmap, Path::Userspace] {
        let network = Network::new();
        findings.extend(one(path, &network, time)?);
    }
    for finding in &findings {
        println!("FAILED {finding}");
    }
    ensure!(findings.is_empty(), "{} findings", findings.len());
    println!("clean");
    Ok(())
}

/// Soaks one path, prints its table, and returns what was found.
fn one(path: Path, network: &Network, time: Duration) -> Result<Vec<String>> {
    let mut endpoints = Endpoints::start(network, &SERVERS)?;
    // One source stands for all clients, as behind the NAT of a carrier.
    let media = format!(
        "[[listener]]\nname = \"media\"\nbind = [\"{}:0\"]\nmode = \"media\"\nupstream = \"test\"\n{ONE_SOURCE}",
        PROXY
    );
    let setu = network.setu_with_log(path, &endpoints.addresses(), &media, "info");
    let before = Level::of(&setu, network);
    let ledger = Arc::new(Ledger::default());
    let (stop, stopped) = signal::channel(false);
    let mut watch = Watch::new(&setu);
    let targets = clients::Targets { chat: setu.address("chat"), media: setu.address("media") };
    let begun = Instant::now();
    thread::scope(|scope| -> Result<()> {
        let clients = scope.spawn(|| -> Result<()> {
            network.clients.enter();
            let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(clients::run(targets, &ledger, stopped));
            Ok(())
        });
        let driven = drive(&setu, &mut endpoints, &ledger, &mut watch, time);
        // An error means that the clients have ended.
        let _ = stop.send(true);
        clients.join().map_err(|_| anyhow!("the clients panicked"))??;
        driven
    })?;
    drop(endpoints);
    let left = settle(&setu, network, before);
    let resident_at_the_end = setu.status("VmRSS");
    let reserved_at_the_end = watch::reserved(&setu);
    let (status, reasons) = setu.stop();

    println!(
        "\n**{}**, {:.0} s\n\n| what | count |\n| --- | ---: |",
        path.name(),
        begun.elapsed().as_secs_f64()
    );
    for (name, count) in ledger.rows() {
        println!("| {name} | {count} |");
    }
    println!(
        "| resident, KiB: after warm-up, at most, at the end | {}, {resident_at_the_end} |",
        watch.resident()
    );
    println!(
        "| reserved in the kernel, KiB: at most, at the end | {}, {} |",
        watch.most_reserved / 1024,
        reserved_at_the_end / 1024
    );
    println!("| closed | {reasons:?} |");

    let mut findings = ledger.findings();
    let mut find = |wrong: bool, text: String| {
        if wrong {
            findings.push(text);
        }
    };
    if let Some(left) = left {
        find(true, format!("held at the end: {left:?}; at the start: {before:?}"));
    }
    find(
        reserved_at_the_end > 0,
        format!("{reserved_at_the_end} bytes are reserved in the kernel at the end"),
    );
    if let Some(grown) = watch.growth() {
        find(true, grown);
    }
    // Two of the endpoints are always well.
    for reason in NOT_PLACED {
        let count = reasons.get(reason).copied().unwrap_or(0);
        find(count > 0, format!("{count} connections ended for {reason}"));
    }
    find(!status.success(), format!("setu ended with {status}"));
    Ok(findings.into_iter().map(|finding| format!("{}: {finding}", path.name())).collect())
}

/// Injects faults and watches memory until the time is over.
fn drive(
    setu: &Setu,
    endpoints: &mut Endpoints<'_>,
    ledger: &Ledger,
    watch: &mut Watch,
    time: Duration,
) -> Result<()> {
    let begun = Instant::now();
    let (mut next_fault, mut number, mut dead) = (begun + FAULT_EVERY / 2, 0, None);
    while begun.elapsed() < time {
        interrupt::check()?;
        thread::sleep(Duration::from_millis(250));
        watch.look(setu, begun.elapsed().as_secs_f64() / time.as_secs_f64());
        let now = Instant::now();
        if let Some((back, endpoint)) = dead
            && now >= back
        {
            endpoints.revive(endpoint).context("an endpoint cannot come back")?;
            dead = None;
        }
        if now >= next_fault && dead.is_none() && begun.elapsed() + DEAD_FOR * 2 < time {
            ledger.fault();
            endpoints.kill(number % endpoints.len());
            dead = Some((now + DEAD_FOR, number % endpoints.len()));
            number += 1;
            next_fault = now + FAULT_EVERY;
        }
    }
    Ok(())
}

/// Waits until setu holds no more than before; what it holds when it does not come to that.
fn settle(setu: &Setu, network: &Network, before: Level) -> Option<Level> {
    let deadline = Instant::now() + SETTLE;
    loop {
        let now = Level::of(setu, network);
        if now.is_back_at(before) {
            return None;
        }
        if Instant::now() > deadline {
            return Some(now);
        }
        thread::sleep(Duration::from_millis(200));
    }
}
