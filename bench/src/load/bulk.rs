//! As many bytes as go through, one way.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    task::JoinSet,
    time::Instant,
};

use super::{Outcome, connection, pattern};

/// Streams that run side by side. The time is from opening to the last byte: slow start and what is left in
/// buffers count with it.
pub(super) async fn run(to: SocketAddr, streams: usize, up: bool, time: Duration) -> Result<Outcome> {
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..streams {
        tasks.spawn(async move { if up { upload(to, time).await } else { download(to, time).await } });
    }
    let work = connection::results(tasks).await?.into_iter().sum();
    Ok(Outcome { seconds: begun.elapsed().as_secs_f64(), work, latency: None })
}

async fn download(to: SocketAddr, time: Duration) -> Result<u64> {
    let mut stream = connection::open(to).await?;
    stream.write_all(&wish(time.as_millis() as u32)).await?;
    let (mut total, mut buffer) = (0, vec![0; 256 << 10]);
    loop {
        let count = stream.read(&mut buffer).await.context("the download broke off")?;
        if count == 0 {
            break;
        }
        pattern::check(&buffer[..count], total)?;
        total += count as u64;
    }
    let whole = total > 0 && total.is_multiple_of(pattern::BLOCK as u64);
    ensure!(whole, "{total} bytes arrived, which is no whole number of blocks");
    Ok(total)
}

async fn upload(to: SocketAddr, time: Duration) -> Result<u64> {
    let mut stream = connection::open(to).await?;
    stream.write_all(b"U").await?;
    let (begun, mut total) = (Instant::now(), 0);
    while begun.elapsed() < time {
        stream.write_all(pattern::block()).await.context("the upload broke off")?;
        total += pattern::BLOCK as u64;
    }
    stream.shutdown().await?;
    let arrived = stream.read_u64().await.context("the upload has no answer")?;
    ensure!(arrived == total, "{arrived} bytes of {total} arrived");
    Ok(total)
}

/// What asks the server to send for so long.
pub(super) fn wish(milliseconds: u32) -> [u8; 5] {
    let [first, second, third, fourth] = milliseconds.to_be_bytes();
    [b'D', first, second, third, fourth]
}
