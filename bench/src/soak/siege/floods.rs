//! Floods that want in, under the limits that setu has by default. Those who are healthy come from elsewhere, and all of
//! them must be served.
//!
//! | flood | from | what each does |
//! | --- | --- | --- |
//! | one address | one IPv4 address, 2,500 connects a second | its hello shortly before the deadline, then nothing |
//! | one site | an IPv6 /48, the next /64 for each connect | the same |
//! | silent | tens of thousands of IPv4 addresses | nothing |
//! | trickle | 1,000 clients at once, each with an address of its own | its hello, a byte five times a second |
//!
//! Who was turned away, and who was ended by the deadline, is what setu itself has counted.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow, ensure};
use setu_tests::{
    Path,
    level::Level,
    network::{Network, PROXY, PROXY_V6, SERVERS},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    runtime,
    sync::watch as signal,
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};

use super::{
    super::{servers::Endpoints, settle},
    RATIO,
    healthy::{measure, open_from, processors, visit},
};
use crate::interrupt;

pub(super) const HEAD: &str = "\
| flood | path | healthy p99, ms: alone, besieged, alone | ratio | honest clients: served of asked | \
attackers' connects: made, each second | turned away, ended by the deadline | cores that others had |\n\
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |";

/// As clients sent it: for chat inside TLS, which ends at setu, and for a media server.
const CHAT_HELLO: &[u8] = include_bytes!("../../../../fuzz/corpus/client_hello/openssl-no-name");
const MEDIA_HELLO: &[u8] = include_bytes!("../../../../fuzz/corpus/client_hello/openssl-tls13");
/// Before what is healthy is measured the flood lasts for longer than `timeouts.inspect`: by then as many are in as will
/// be.
const LAID: Duration = Duration::from_secs(7);
/// When to speak at last, of `timeouts.inspect`, which is 5 s.
const LATE: Duration = Duration::from_secs(4);
const TRICKLE: Duration = Duration::from_millis(200);
/// How often it is looked who is to come. Who is late by more than [`MOST_AT_A_TIME`] of these does not come.
const TICK: Duration = Duration::from_millis(10);
const MOST_AT_A_TIME: u32 = 4;
/// Rounds at most, of which the least disturbed counts.
const ATTEMPTS: u32 = 3;
/// Of the connects that a flood is to make, at least so many must be made: else it was none.
const MADE: f64 = 0.8;

/// A kind of flood.
pub(super) struct Flood {
    pub(super) name: &'static str,
    /// Where they connect.
    listener: &'static str,
    /// Where each comes from.
    from: fn(u32) -> IpAddr,
    manner: Manner,
    /// Connects each second, at most.
    rate: u32,
    /// Connections at once, at most.
    at_once: usize,
}

#[derive(Clone, Copy)]
enum Manner {
    Late,
    Silent,
    Trickle,
}

/// More than 2,500 a second, and setu's cores would be the generator's.
const RATE: u32 = 2_500;
/// As many as may be in within the deadline, and some.
const AT_ONCE: usize = 8_000;

pub(super) const ALL: [Flood; 4] = [
    Flood {
        name: "one address",
        listener: "auto",
        from: |_| Ipv4Addr::new(10, 83, 0, 66).into(),
        manner: Manner::Late,
        rate: RATE,
        at_once: AT_ONCE,
    },
    Flood {
        name: "one site",
        listener: "auto-v6",
        from: |number| Ipv6Addr::new(0x2001, 0xdb8, 0xbad, number as u16, 0, 0, 0, 1).into(),
        manner: Manner::Late,
        rate: RATE,
        at_once: AT_ONCE,
    },
    Flood {
        name: "silent",
        listener: "chat",
        from: |number| Ipv4Addr::new(10, 84, (number / 250) as u8, (number % 250) as u8 + 1).into(),
        manner: Manner::Silent,
        rate: RATE,
        at_once: AT_ONCE,
    },
    Flood {
        name: "trickle",
        listener: "media",
        from: |number| Ipv4Addr::new(10, 85, (number / 250) as u8, (number % 250) as u8 + 1).into(),
        manner: Manner::Trickle,
        rate: 500,
        at_once: 1_000,
    },
];

/// What came of one flood on one path.
pub(super) struct Found {
    pub(super) row: String,
    pub(super) reasons: String,
    pub(super) findings: Vec<String>,
    /// Cores that had nothing to do with it.
    others: f64,
    disturbed: bool,
}

/// Measures a flood; anew, when others on this machine disturbed it, until they do not or patience ends.
pub(super) fn besiege(flood: &Flood, path: Path) -> Result<Found> {
    let mut best = round(flood, path)?;
    for _ in 1..ATTEMPTS {
        if best.disturbed {
            let again = round(flood, path)?;
            if again.others < best.others {
                best = again;
            }
        }
    }
    Ok(best)
}

fn round(flood: &Flood, path: Path) -> Result<Found> {
    let network = Network::new();
    network.populate();
    let endpoints = Endpoints::start(&network, &SERVERS[..1])?;
    let state = tempfile::tempdir()?;
    let setu = network.setu_with_log(path, &endpoints.addresses(), &doors(state.path()), "info");
    let before = Level::of(&setu, &network);
    let (chat, chat_v6, target) =
        (setu.address("chat"), setu.address("chat-v6"), setu.address(flood.listener));
    let alone = measure(&network, chat)?;
    let (stop, stopped) = signal::channel(false);
    let begun = Instant::now();
    let (besieged, visits, made) = thread::scope(|scope| -> Result<_> {
        let visitors = scope.spawn(|| visit(&network, &[chat, chat_v6], &stopped));
        let attackers = scope.spawn(|| flood.run(&network, target, &stopped));
        let measured = lay().and_then(|()| measure(&network, chat));
        // An error means that all have ended.
        let _ = stop.send(true);
        let made = attackers.join().map_err(|_| anyhow!("the attackers panicked"))??;
        let visits = visitors.join().map_err(|_| anyhow!("the visitors panicked"))??;
        Ok((measured?, visits, made))
    })?;
    let lasted = begun.elapsed().as_secs_f64();
    let after = measure(&network, chat)?;
    drop(endpoints);
    let left = settle(&setu, &network, before);
    let (status, reasons) = setu.stop();
    ensure!(status.success(), "setu ended with {status}");

    let costs = [&alone.cost, &besieged.cost, &after.cost];
    let others = costs.iter().map(|cost| cost.others()).fold(0.0, f64::max);
    let disturbed = costs.iter().any(|cost| cost.is_disturbed(processors()));
    let ratio = besieged.p99 / ((alone.p99 + after.p99) / 2.0);
    let row = format!(
        "| {} | {} | {:.2}, {:.2}, {:.2} | {ratio:.2} | {} of {} | {}, {:.0} | {}, {} | {others:.2}{} |",
        flood.name,
        path.name(),
        alone.p99,
        besieged.p99,
        after.p99,
        visits.served,
        visits.asked,
        made.connects,
        made.connects as f64 / lasted,
        sum(
            &reasons,
            &["limit_connections", "limit_pending", "limit_per_source", "limit_rate", "crowded_out"]
        ),
        sum(&reasons, &["inspect_timeout", "handshake_timeout"]),
        if disturbed { ", disturbed" } else { "" },
    );
    let mut findings = Vec::new();
    let mut find = |wrong: bool, text: String| {
        if wrong {
            findings.push(format!("{}, {}: {text}", flood.name, path.name()));
        }
    };
    let but = if disturbed { ", but others disturbed it: this machine must do nothing else" } else { "" };
    find(ratio > RATIO, format!("healthy p99 is {ratio:.2} times that alone{but}"));
    let refused = visits.asked - visits.served;
    find(refused > 0, format!("{refused} of {} honest clients were not served", visits.asked));
    find(visits.asked == 0, "no honest client came".into());
    let due = f64::from(flood.rate) * lasted * MADE;
    find(
        (made.connects as f64) < due && made.most < flood.at_once,
        format!("no flood: {} connects in {lasted:.0} s, {} at once", made.connects, made.most),
    );
    if let Some(left) = left {
        find(true, format!("held at the end: {left:?}; at the start: {before:?}"));
    }
    let reasons = format!("{}, {}: closed {reasons:?}", flood.name, path.name());
    Ok(Found { row, reasons, findings, others, disturbed })
}

/// What listens beside `chat`.
fn doors(state: &std::path::Path) -> String {
    let door = |name: &str, ip: &str, keys: &str| {
        format!("[[listener]]\nname = \"{name}\"\nbind = [\"{ip}:0\"]\n{keys}\n")
    };
    let (one, all) =
        ("mode = \"chat\"\nupstream = \"test\"", "mode = \"auto\"\nchat = \"test\"\nmedia = \"test\"");
    let v6 = format!("[{PROXY_V6}]");
    [
        door("chat-v6", &v6, one),
        door("auto", PROXY, all),
        door("auto-v6", &v6, all),
        door("media", PROXY, "mode = \"media\"\nupstream = \"test\""),
        format!("[tls]\nstate_dir = \"{}\"\n", state.display()),
    ]
    .concat()
}

/// Waits until the siege is laid.
fn lay() -> Result<()> {
    let until = Instant::now() + LAID;
    while Instant::now() < until {
        interrupt::check()?;
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn sum(reasons: &BTreeMap<String, u64>, of: &[&str]) -> u64 {
    of.iter().filter_map(|reason| reasons.get(*reason)).sum()
}

/// What the generator did.
struct Made {
    connects: usize,
    /// At once.
    most: usize,
}

impl Flood {
    /// Sends attackers until told to stop.
    fn run(&self, network: &Network, to: SocketAddr, stopped: &signal::Receiver<bool>) -> Result<Made> {
        network.clients.enter();
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let connects = Arc::new(AtomicUsize::new(0));
            let mut attackers = JoinSet::new();
            let (mut number, mut most) = (0, 0);
            let mut ticks = interval(TICK);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
            let (begun, mut sent_for) = (Instant::now(), Duration::ZERO);
            while !*stopped.borrow() {
                ticks.tick().await;
                while attackers.try_join_next().is_some() {}
                let now = begun.elapsed();
                sent_for = sent_for.max(now.saturating_sub(TICK * MOST_AT_A_TIME));
                let each = Duration::from_secs(1) / self.rate;
                while sent_for + each <= now && attackers.len() < self.at_once {
                    sent_for += each;
                    let (from, manner, connects) = ((self.from)(number), self.manner, connects.clone());
                    attackers.spawn(async move {
                        let opened = open_from(from, to).await;
                        // The reset of who is turned away at once may be there before the connect is told of.
                        let reset = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionReset;
                        if opened.is_ok() || opened.as_ref().is_err_and(reset) {
                            connects.fetch_add(1, Ordering::Relaxed);
                        }
                        if let Ok(stream) = opened {
                            manner.behave(stream).await;
                        }
                    });
                    number += 1;
                }
                most = most.max(attackers.len());
            }
            Ok(Made { connects: connects.load(Ordering::Relaxed), most })
        })
    }
}

impl Manner {
    /// Stays until setu ends it.
    async fn behave(self, mut stream: TcpStream) {
        let ended = match self {
            Self::Silent => false,
            Self::Late => {
                let turned_away = timeout(LATE, stream.read(&mut [0; 64])).await.is_ok();
                turned_away || stream.write_all(CHAT_HELLO).await.is_err()
            }
            Self::Trickle => trickle(&mut stream).await,
        };
        if !ended {
            // Whatever setu answers to a hello.
            while matches!(stream.read(&mut [0; 4096]).await, Ok(1..)) {}
        }
    }
}

/// Whether it was ended before the hello was.
async fn trickle(stream: &mut TcpStream) -> bool {
    for byte in MEDIA_HELLO {
        if stream.write_all(&[*byte]).await.is_err()
            || timeout(TRICKLE, stream.read(&mut [0; 64])).await.is_ok()
        {
            return true;
        }
    }
    false
}
