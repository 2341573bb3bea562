//! All clients of a round: one thread in their namespace.

use std::{io, net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use anyhow::Result;
use setu_tests::network::Network;
use tokio::{
    io::AsyncWriteExt as _,
    net::TcpStream,
    runtime,
    task::{JoinSet, LocalSet},
    time::sleep,
};

use super::{
    judge::{Outcome, Read},
    peer,
    plan::Role,
    stage::Stage,
};

/// What begins each stream to a server, before the number of its flow.
pub(crate) const MAGIC: u32 = 0x7e57_f10e;

/// Plays all clients to their ends.
///
/// # Errors
/// When there can be no event loop.
pub(crate) fn run(network: &Network, stage: &Arc<Stage>, setu: SocketAddr) -> Result<()> {
    network.clients.enter();
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async {
        let mut clients = JoinSet::new();
        for number in 0..stage.flows.len() {
            let stage = Rc::new(stage.clone());
            clients.spawn_local(async move { client(&stage, number, setu).await });
        }
        while let Some(ended) = clients.join_next().await {
            ended?;
        }
        Ok(())
    })
}

async fn client(stage: &Stage, number: usize, setu: SocketAddr) {
    let flow = &stage.flows[number];
    sleep(Duration::from_millis(flow.plan.start)).await;
    let opened = tokio::select! {
        opened = open(setu, number as u32) => opened.map_err(|error| Read::Broken(error.to_string())),
        () = stage.given_up() => Err(Read::Hanging),
    };
    let outcome = match opened {
        Ok(stream) => peer::play(stream, flow, Role::Client, stage, std::future::pending()).await,
        Err(read) => Outcome { received: 0, sent: 0, wrong: None, read, write_error: None, at: stage.time() },
    };
    flow.ended(Role::Client, outcome);
}

async fn open(setu: SocketAddr, number: u32) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(setu).await?;
    let head = [MAGIC.to_be_bytes(), number.to_be_bytes()].concat();
    stream.write_all(&head).await?;
    Ok(stream)
}
