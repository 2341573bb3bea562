//! Connections that are open, and nothing more.

use std::{net::SocketAddr, time::Duration};

use anyhow::Result;
use tokio::{
    io::AsyncWriteExt as _,
    net::TcpStream,
    time::{self, Instant},
};

use super::{Outcome, bulk::wish, connection};

/// Holds connections for a time. They are returned, so that they stay open while the memory is looked at.
pub(super) async fn run(
    to: SocketAddr,
    connections: usize,
    stalled: bool,
    time: Duration,
) -> Result<(Outcome, Vec<TcpStream>)> {
    let begun = Instant::now();
    let mut held = Vec::new();
    if stalled {
        for _ in 0..connections {
            let mut stream = connection::open(to).await?;
            // Longer than anybody waits.
            stream.write_all(&wish(u32::MAX)).await?;
            held.push(stream);
        }
    } else {
        held = connection::open_many(connections, || connection::open(to)).await?;
    }
    time::sleep(time).await;
    Ok((Outcome { seconds: begun.elapsed().as_secs_f64(), work: connections as u64, latency: None }, held))
}
