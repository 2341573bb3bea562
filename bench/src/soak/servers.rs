//! Three endpoints, each of which can die with all its connections and come back.
//!
//! | first byte | the server |
//! | --- | --- |
//! | `E` | sends back all that comes after it |
//! | `D`, seed (8 bytes), pieces (4 bytes) | sends so many pieces of the pattern, then FIN |
//! | `U`, seed, pieces | takes so many, then answers with their SHA-256 |

use std::{
    io,
    net::{SocketAddr, TcpListener},
    thread::{self, JoinHandle},
};

use anyhow::Result;
use setu_tests::network::Network;
use sha2::{Digest as _, Sha256};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    runtime,
    sync::oneshot,
};

use super::pattern::{PIECE, Pattern};

/// The endpoints of the upstream.
pub(crate) struct Endpoints<'a> {
    network: &'a Network,
    all: Vec<Endpoint>,
}

struct Endpoint {
    address: SocketAddr,
    running: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl<'a> Endpoints<'a> {
    /// Starts them.
    pub(crate) fn start(network: &'a Network, hosts: &[&str]) -> Result<Self> {
        let mut all = Vec::new();
        for host in hosts {
            let address = SocketAddr::new(host.parse()?, 0);
            let (address, running) = serve_on(network, address)?;
            all.push(Endpoint { address, running: Some(running) });
        }
        Ok(Self { network, all })
    }

    /// For the configuration.
    pub(crate) fn addresses(&self) -> Vec<String> {
        self.all.iter().map(|endpoint| endpoint.address.to_string()).collect()
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    /// Ends one with all its connections, as a crash would.
    pub(crate) fn kill(&mut self, number: usize) {
        if let Some((stop, thread)) = self.all[number].running.take() {
            // Errors mean that it has ended.
            let _ = stop.send(());
            let _ = thread.join();
        }
    }

    /// Starts one again.
    pub(crate) fn revive(&mut self, number: usize) -> Result<()> {
        let (_, running) = serve_on(self.network, self.all[number].address)?;
        self.all[number].running = Some(running);
        Ok(())
    }
}

impl Drop for Endpoints<'_> {
    fn drop(&mut self) {
        (0..self.all.len()).for_each(|number| self.kill(number));
    }
}

type Running = (oneshot::Sender<()>, JoinHandle<()>);

fn serve_on(network: &Network, address: SocketAddr) -> Result<(SocketAddr, Running)> {
    let listener = network.servers.within(|| TcpListener::bind(address))?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let (stop, stopped) = oneshot::channel();
    let thread = thread::spawn(move || {
        runtime.block_on(async {
            let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
            let accept = async {
                loop {
                    if let Ok((stream, _)) = listener.accept().await {
                        tokio::spawn(serve(stream));
                    }
                }
            };
            tokio::select! {
                () = accept => {}
                _ = stopped => {}
            }
        });
        // With the runtime go its tasks, and with them their sockets.
        drop(runtime);
    });
    Ok((address, (stop, thread)))
}

async fn serve(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    match stream.read_u8().await? {
        b'E' => {
            let mut buffer = vec![0; 1024];
            loop {
                match stream.read(&mut buffer).await? {
                    0 => return Ok(()),
                    count => stream.write_all(&buffer[..count]).await?,
                }
            }
        }
        b'D' => {
            let (mut pattern, pieces) = (Pattern::new(stream.read_u64().await?), stream.read_u32().await?);
            let mut buffer = vec![0; PIECE];
            for _ in 0..pieces {
                pattern.fill(&mut buffer);
                stream.write_all(&buffer).await?;
            }
            stream.shutdown().await?;
            // The other side's end; else unread bytes would make the close a reset.
            while stream.read(&mut buffer).await? > 0 {}
        }
        b'U' => {
            let (_seed, pieces) = (stream.read_u64().await?, stream.read_u32().await?);
            let (mut hash, mut buffer) = (Sha256::new(), vec![0; PIECE]);
            for _ in 0..pieces {
                stream.read_exact(&mut buffer).await?;
                hash.update(&buffer);
            }
            stream.write_all(&hash.finalize()).await?;
        }
        _ => {}
    }
    Ok(())
}
