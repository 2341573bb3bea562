//! All servers of a round: one thread in their namespace, with several endpoints, of which one can die.

use std::{net::TcpListener, sync::Arc};

use anyhow::Result;
use setu_tests::network::Network;
use tokio::{io::AsyncReadExt as _, net::TcpStream, runtime, task::LocalSet};

use super::{clients::MAGIC, peer, plan::Role, stage::Stage};

/// Listens on endpoints at these addresses.
///
/// # Errors
/// When an address cannot be had.
pub(crate) fn listen(network: &Network, hosts: &[&str]) -> Result<Vec<TcpListener>> {
    network.servers.within(|| {
        let listen = |host: &&str| -> Result<TcpListener> {
            let listener = TcpListener::bind((*host, 0))?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        hosts.iter().map(listen).collect()
    })
}

/// Serves until the stage gives up.
///
/// # Errors
/// When there can be no event loop.
pub(crate) fn run(network: &Network, stage: &Arc<Stage>, listeners: Vec<TcpListener>) -> Result<()> {
    network.servers.enter();
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async {
        for (endpoint, listener) in listeners.into_iter().enumerate() {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            let stage = stage.clone();
            tokio::task::spawn_local(async move {
                let accept = async {
                    loop {
                        if let Ok((stream, _)) = listener.accept().await {
                            let stage = stage.clone();
                            tokio::task::spawn_local(async move { serve(&stage, stream, endpoint).await });
                        }
                    }
                };
                tokio::select! {
                    () = accept => {}
                    () = stage.died(endpoint) => {}
                }
            });
        }
        stage.given_up().await;
        // Ends that are still there say so.
        for _ in 0..100 {
            if stage.is_over() {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        Ok(())
    })
}

async fn serve(stage: &Stage, mut stream: TcpStream, endpoint: usize) {
    let mut head = [0; 8];
    let whole = tokio::select! {
        read = stream.read_exact(&mut head) => read.is_ok(),
        () = stage.died(endpoint) => {
            let _ = stream.set_zero_linger();
            false
        }
        () = stage.given_up() => false,
    };
    // The client judges what became of a flow that came to no server.
    if !whole {
        return;
    }
    let (magic, number) = head.split_at(4);
    let number = number.iter().fold(0, |number, byte| number << 8 | usize::from(*byte));
    let flow = stage.flows.get(number).filter(|_| magic == MAGIC.to_be_bytes());
    let Some(flow) = flow.filter(|flow| flow.serve()) else {
        stage.stray(format!("a server got a stream that begins with {head:02x?}"));
        return;
    };
    let outcome = peer::play(stream, flow, Role::Server, stage, stage.died(endpoint)).await;
    flow.ended(Role::Server, outcome);
}
