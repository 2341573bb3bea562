//! Those who are besieged: flows that are there, and clients that come. Each has an address of its own.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    num::NonZero,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use setu_tests::network::Network;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    runtime,
    sync::watch as signal,
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};

use crate::measure::{Cost, Counters};

const FLOWS: usize = 500;
/// Bytes of a message.
const MESSAGE: usize = 256;
/// How long each part is measured, and how long flows begin before that.
const MEASURE: Duration = Duration::from_secs(6);
const BEGINNING: Duration = Duration::from_secs(1);
/// A new client each while; it is served when its message came back by then.
const VISIT_EACH: Duration = Duration::from_millis(50);
const PATIENCE: Duration = Duration::from_secs(10);

/// What healthy flows felt.
pub(super) struct Felt {
    /// Milliseconds.
    pub(super) p99: f64,
    /// Messages each second.
    pub(super) rate: f64,
    /// What it cost, others' doings on this machine among it.
    pub(super) cost: Cost,
}

/// What came of clients that came while it was measured.
#[derive(Default)]
pub(super) struct Visits {
    pub(super) asked: usize,
    pub(super) served: usize,
}

/// Of this machine.
pub(super) fn processors() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

/// Connects from one of the addresses of [`Network::populate`].
pub(super) async fn open_from(ip: IpAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = if ip.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.bind((ip, 0).into())?;
    let connect = timeout(PATIENCE, socket.connect(to)).await;
    let stream = connect.map_err(|_| io::ErrorKind::TimedOut)??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Lets healthy flows play ping-pong for a while.
pub(super) fn measure(network: &Network, to: SocketAddr) -> Result<Felt> {
    let before = Counters::read(None)?;
    let mut trips = network.clients.within(|| -> Result<Vec<f64>> {
        runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
            let mut flows = JoinSet::new();
            for number in 0..FLOWS {
                let ip = Ipv4Addr::new(10, 81, (number / 250) as u8, (number % 250) as u8 + 1);
                let mut stream = open_from(ip.into(), to).await.context("a healthy client is not let in")?;
                stream.write_all(b"E").await?;
                flows.spawn(async move {
                    let (message, mut echo, mut trips) = ([number as u8; MESSAGE], [0; MESSAGE], Vec::new());
                    // The first second is that of all others' beginning.
                    let begun = Instant::now();
                    while begun.elapsed() < BEGINNING + MEASURE {
                        let sent = Instant::now();
                        stream.write_all(&message).await?;
                        stream.read_exact(&mut echo).await.context("a healthy flow broke")?;
                        ensure!(echo == message, "another message came back");
                        if begun.elapsed() > BEGINNING {
                            trips.push(sent.elapsed().as_secs_f64() * 1e3);
                        }
                    }
                    Ok(trips)
                });
            }
            let mut all = Vec::new();
            while let Some(flow) = flows.join_next().await {
                all.extend(flow??);
            }
            Ok(all)
        })
    })?;
    trips.sort_by(f64::total_cmp);
    let p99 = *trips.get(trips.len() * 99 / 100).context("no message came back")?;
    let cost = before.until(&Counters::read(None)?, processors());
    Ok(Felt { p99, rate: trips.len() as f64 / MEASURE.as_secs_f64(), cost })
}

/// Lets new clients come until told to stop, to each of `doors` in turn, one message each.
pub(super) fn visit(
    network: &Network,
    doors: &[SocketAddr],
    stopped: &signal::Receiver<bool>,
) -> Result<Visits> {
    network.clients.within(|| {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(runtime.block_on(async {
            let (mut visits, mut visitors) = (Visits::default(), JoinSet::new());
            let mut pace = interval(VISIT_EACH);
            // A busy machine is not made busier by those who are late.
            pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
            while !*stopped.borrow() {
                pace.tick().await;
                visitors.spawn(call(visitor(visits.asked, doors), doors[visits.asked % doors.len()]));
                visits.asked += 1;
            }
            while let Some(served) = visitors.join_next().await {
                visits.served += usize::from(matches!(served, Ok(Ok(()))));
            }
            visits
        }))
    })
}

/// Where a visitor comes from: hundreds of homes.
fn visitor(number: usize, doors: &[SocketAddr]) -> IpAddr {
    if doors[number % doors.len()].is_ipv4() {
        return Ipv4Addr::new(10, 82, (number / 200) as u8, (number % 200) as u8 + 1).into();
    }
    let home = number as u16;
    Ipv6Addr::new(0x2001, 0xdb8, home, 1, 0, 0, 0, 1).into()
}

async fn call(from: IpAddr, to: SocketAddr) -> io::Result<()> {
    let exchange = async {
        let mut stream = open_from(from, to).await?;
        let (message, mut echo) = ([7; MESSAGE], [0; MESSAGE]);
        stream.write_all(b"E").await?;
        stream.write_all(&message).await?;
        stream.read_exact(&mut echo).await?;
        if echo == message { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
    };
    timeout(PATIENCE, exchange).await?
}
