//! Messages that come back, on connections that stay or on new ones.

use std::{io, net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, bail};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time::{self, Instant},
};
use tokio_rustls::TlsConnector;

use super::{
    First, Flows, OTHER_NAME, Outcome, SERVER_NAME,
    connection::{self, Connection},
    pattern,
};

/// Opens what a kind of flow needs.
pub(super) async fn open(to: SocketAddr, flows: &Flows) -> Result<Vec<TcpStream>> {
    connection::open_many(flows.connections, || connection::open(to)).await
}

/// Connections that behave alike, and how.
type Kinds<C> = Vec<(Flows, Vec<C>)>;

/// Keeps the connections of each kind busy, and looks at nothing: until code and tables are there, and a proxy that
/// moves a flow elsewhere once it has seen how it behaves has done so.
pub(super) async fn settle<C: Connection>(kinds: Kinds<C>, time: Duration) -> Result<Kinds<C>> {
    let mut settled = Vec::new();
    for (flows, tasks) in start(kinds, Instant::now(), time) {
        let connections = connection::results(tasks).await?.into_iter();
        settled.push((flows, connections.map(|(connection, _)| connection).collect()));
    }
    Ok(settled)
}

/// Keeps the connections of each kind busy.
pub(super) async fn run<C: Connection>(kinds: Kinds<C>, time: Duration) -> Result<Outcome> {
    let begun = Instant::now();
    let mut trips = Vec::new();
    for (_, tasks) in start(kinds, begun, time) {
        trips.extend(connection::results(tasks).await?.into_iter().map(|(_, trips)| trips));
    }
    outcome(begun, trips)
}

/// What becomes of each connection, by kind.
type Kept<C> = JoinSet<Result<(C, Vec<u32>)>>;

fn start<C: Connection>(kinds: Kinds<C>, begun: Instant, time: Duration) -> Vec<(Flows, Kept<C>)> {
    let start = |(flows, connections): (Flows, Vec<C>)| {
        let interval = flows.interval_milliseconds.map(Duration::from_millis);
        let mut tasks = JoinSet::new();
        for (number, connection) in connections.into_iter().enumerate() {
            // Paced flows begin one after the other, so that they do not all send in the same instant.
            let share = number as f64 / flows.connections as f64;
            let pace = interval.map(|interval| (begun + interval.mul_f64(share), interval));
            tasks.spawn(keep(connection, number, flows.message, pace, begun + time));
        }
        (flows, tasks)
    };
    kinds.into_iter().map(start).collect()
}

/// One connection: message after message until the time is over. Returns it, and its round trips, nanoseconds.
async fn keep<C: Connection>(
    mut connection: C,
    number: usize,
    len: usize,
    mut pace: Option<(Instant, Duration)>,
    until: Instant,
) -> Result<(C, Vec<u32>)> {
    let (mut trips, mut buffer) = (Vec::new(), Vec::new());
    loop {
        if let Some((next, interval)) = &mut pace {
            time::sleep_until((*next).min(until)).await;
            *next += *interval;
        }
        let sent = Instant::now();
        if sent >= until && (pace.is_some() || !trips.is_empty()) {
            return Ok((connection, trips));
        }
        connection::echo(&mut connection, pattern::message(number, trips.len(), len), &mut buffer).await?;
        trips.push(nanoseconds(sent));
    }
}

/// Opens and closes connections, `workers` at a time.
pub(super) async fn churn(
    to: SocketAddr,
    workers: usize,
    first: First,
    tls: Option<TlsConnector>,
    time: Duration,
) -> Result<Outcome> {
    let hello: &'static [u8] = connection::client_hello(SERVER_NAME)?.leak();
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for worker in 0..workers {
        let tls = tls.clone();
        tasks.spawn(async move {
            let (mut lives, mut buffer) = (Vec::new(), Vec::new());
            // Each has one at least, however long that takes.
            while lives.is_empty() || begun.elapsed() < time {
                let opened = Instant::now();
                let message = pattern::message(worker, lives.len(), 256);
                match (first, &tls) {
                    (First::Message, _) => live(connection::open(to).await?, message, &mut buffer).await?,
                    (First::ClientHello, _) => live(connection::open(to).await?, hello, &mut buffer).await?,
                    (First::Handshake, Some(tls)) => {
                        live(connection::open_tls(to, tls).await?, message, &mut buffer).await?;
                    }
                    (First::Handshake, None) => bail!("no certificate to trust"),
                }
                lives.push(nanoseconds(opened));
            }
            Ok(lives)
        });
    }
    outcome(begun, connection::results(tasks).await?)
}

/// One connection from its first message to its orderly end.
async fn live(mut connection: impl Connection, message: &[u8], buffer: &mut Vec<u8>) -> Result<()> {
    connection::echo(&mut connection, message, buffer).await?;
    connection.shutdown().await?;
    match time::timeout(connection::PATIENCE, connection.read(&mut [0])).await {
        Ok(Ok(0)) => Ok(()),
        // HAProxy and nginx answer the end of TLS by FIN alone.
        Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
        Ok(Ok(_)) => bail!("more came than was sent"),
        Ok(Err(error)) => bail!("the end of the connection was no orderly one: {error}"),
        Err(_) => bail!("the other side does not close"),
    }
}

/// Sees to it that a name which is not allowed does not reach the server, which would send it back.
pub(super) async fn refusal(to: SocketAddr) -> Result<Outcome> {
    let begun = Instant::now();
    let hello = connection::client_hello(OTHER_NAME)?;
    let mut stream = connection::open(to).await?;
    stream.write_all(&hello).await?;
    let mut first = [0];
    let read = time::timeout(connection::PATIENCE, stream.read(&mut first)).await;
    match read.context("the proxy neither refuses nor answers")? {
        Ok(1) if first[0] == hello[0] => bail!("{OTHER_NAME} goes through, so it does not route by SNI"),
        // An alert, the end, or a reset.
        _ => Ok(Outcome { seconds: begun.elapsed().as_secs_f64(), work: 1, latency: None }),
    }
}

fn outcome(begun: Instant, trips: Vec<Vec<u32>>) -> Result<Outcome> {
    let seconds = begun.elapsed().as_secs_f64();
    let mut trips = trips.concat();
    trips.sort_unstable();
    let at = |share: f64| Some(f64::from(*trips.get((trips.len() as f64 * share) as usize)?) / 1e3);
    let latency = at(0.5).zip(at(0.99)).zip(at(0.999)).map(|((p50, p99), p999)| [p50, p99, p999]);
    if latency.is_none() {
        bail!("no message came back");
    }
    Ok(Outcome { seconds, work: trips.len() as u64, latency })
}

fn nanoseconds(since: Instant) -> u32 {
    since.elapsed().as_nanos().try_into().unwrap_or(u32::MAX)
}
