//! Connections that are open, and of which nobody reads any more.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time::{self, Instant},
};

use super::{Outcome, Reading, bulk::wish, connection, pattern};

/// Holds connections for a time after the last was opened or read. They are returned, so that they stay open while the
/// memory is looked at.
pub(super) async fn run(
    to: SocketAddr,
    connections: usize,
    reading: Reading,
    time: Duration,
) -> Result<(Outcome, Vec<TcpStream>)> {
    let begun = Instant::now();
    let held = match reading {
        Reading::Nothing => connection::open_many(connections, || speak(to)).await?,
        Reading::Never => ask(to, connections).await?,
        Reading::AtFirst(milliseconds) => {
            let held = ask(to, connections).await?;
            let until = Instant::now() + Duration::from_millis(milliseconds);
            let mut tasks = JoinSet::new();
            for stream in held {
                tasks.spawn(read(stream, until));
            }
            connection::results(tasks).await?
        }
    };
    time::sleep(time).await;
    Ok((Outcome { seconds: begun.elapsed().as_secs_f64(), work: connections as u64, latency: None }, held))
}

/// Opens a connection on which a message was exchanged: nobody dials for a client that has said nothing.
async fn speak(to: SocketAddr) -> Result<TcpStream> {
    let mut stream = connection::open(to).await?;
    connection::echo(&mut stream, b"hello", &mut Vec::new()).await?;
    Ok(stream)
}

/// Opens connections on which the server sends.
async fn ask(to: SocketAddr, connections: usize) -> Result<Vec<TcpStream>> {
    let mut asked = Vec::new();
    for _ in 0..connections {
        let mut stream = connection::open(to).await?;
        // Longer than anybody waits.
        stream.write_all(&wish(u32::MAX)).await?;
        asked.push(stream);
    }
    Ok(asked)
}

/// Reads all that comes, until then. A reader that got next to nothing would be one that never reads.
async fn read(mut stream: TcpStream, until: Instant) -> Result<TcpStream> {
    let (mut total, mut buffer) = (0, vec![0; 256 << 10]);
    while let Ok(count) = time::timeout_at(until, stream.read(&mut buffer)).await {
        let count = count.context("the stream broke off")?;
        ensure!(count > 0, "the stream ended after {total} bytes");
        pattern::check(&buffer[..count], total)?;
        total += count as u64;
    }
    ensure!(total >= pattern::BLOCK as u64, "only {total} bytes came while they were read");
    Ok(stream)
}
