//! The server of all peers. What it does for a connection is told by the first byte: see the parent module.

use std::{
    io::Read as _,
    net::{Ipv4Addr, SocketAddr},
    process, thread,
    time::Duration,
};

use anyhow::{Result, ensure};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    runtime,
    time::Instant,
};

use super::{Reply, SERVER_PORT, pattern};

/// Serves until its input ends.
///
/// # Errors
/// When it cannot listen.
pub(crate) fn run() -> Result<()> {
    thread::spawn(|| {
        // Whatever comes, the end of the input is the end of the runner.
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        process::exit(0);
    });
    runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, SERVER_PORT)))?;
        let listener = socket.listen(4096)?;
        pattern::block();
        Reply::Up.tell()?;
        loop {
            let (stream, _) = listener.accept().await?;
            // Peers and clients that vanish, or are stopped, are no fault of the server; clients check what they get.
            tokio::spawn(async { serve(stream).await.ok() });
        }
    })
}

async fn serve(mut stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    // As much as a chat message wants: thousands of these are held at once.
    let mut buffer = vec![0; 4096];
    let count = stream.read(&mut buffer).await?;
    match buffer[..count] {
        [] => Ok(()),
        [b'D', ref time @ ..] => {
            let mut all = time.to_vec();
            while all.len() < 4 {
                all.push(stream.read_u8().await?);
            }
            let time = all.iter().fold(0, |time, byte| time << 8 | u64::from(*byte));
            send(stream, Duration::from_millis(time)).await
        }
        [b'U', ref first @ ..] => receive(&mut stream, first).await,
        _ => send_back(stream, buffer, count).await,
    }
}

async fn send(mut stream: TcpStream, time: Duration) -> Result<()> {
    let until = Instant::now() + time;
    while Instant::now() < until {
        stream.write_all(pattern::block()).await?;
    }
    Ok(stream.shutdown().await?)
}

async fn receive(stream: &mut TcpStream, first: &[u8]) -> Result<()> {
    pattern::check(first, 0)?;
    let mut total = first.len() as u64;
    let mut buffer = vec![0; 256 << 10];
    loop {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            break;
        }
        pattern::check(&buffer[..count], total)?;
        total += count as u64;
    }
    ensure!(total > 0, "an upload of nothing");
    Ok(stream.write_all(&total.to_be_bytes()).await?)
}

async fn send_back(mut stream: TcpStream, mut buffer: Vec<u8>, mut count: usize) -> Result<()> {
    while count > 0 {
        stream.write_all(&buffer[..count]).await?;
        count = stream.read(&mut buffer).await?;
    }
    Ok(())
}
