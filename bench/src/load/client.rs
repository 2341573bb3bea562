//! A client process: one order, one outcome.

use std::{
    io::{self, BufRead as _},
    time::Duration,
};

use anyhow::{Context as _, Result};
use tokio::{runtime, time::timeout};

use super::{Load, Order, Outcome, Reply, bulk, connection, echo, hold, pattern};

/// How long an order may take beyond its time.
const PATIENCE: Duration = Duration::from_secs(60);

/// Carries out the order that comes on the input.
///
/// # Errors
/// When the runner is gone; what else is wrong, the runner is told.
pub(crate) fn run() -> Result<()> {
    setu_tests::machine::raise_file_limit();
    pattern::block();
    Reply::Up.tell()?;
    let order: Order = serde_json::from_str(&line()?)?;
    let patience = PATIENCE + Duration::from_millis(order.milliseconds + order.settling_milliseconds);
    let result = runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(async { timeout(patience, carry_out(&order)).await.context("it takes too long")? });
    if let Err(error) = result {
        Reply::Failed(format!("{error:#}")).tell()?;
    }
    Ok(())
}

async fn carry_out(order: &Order) -> Result<()> {
    let Order { to, milliseconds, settling_milliseconds, trust, load } = order;
    let (to, time) = (*to, Duration::from_millis(*milliseconds));
    let settling = Duration::from_millis(*settling_milliseconds);
    let tls = trust.as_deref().map(|trust| connection::tls(Some(trust))).transpose()?;
    match load {
        Load::Bulk { streams, up } => {
            start()?;
            done(bulk::run(to, *streams, *up, time).await?)
        }
        Load::Echo(kinds) => {
            let mut opened = Vec::new();
            for flows in kinds {
                opened.push((flows.clone(), echo::open(to, flows).await?));
            }
            let opened = echo::settle(opened, settling).await?;
            start()?;
            done(echo::run(opened, time).await?)
        }
        Load::TlsEcho(flows) => {
            let tls = tls.context("no certificate to trust")?;
            let open = || {
                let tls = tls.clone();
                async move { connection::open_tls(to, &tls).await }
            };
            let opened = connection::open_many(flows.connections, open).await?;
            let opened = echo::settle(vec![(flows.clone(), opened)], settling).await?;
            start()?;
            done(echo::run(opened, time).await?)
        }
        Load::Churn { workers, first } => {
            start()?;
            done(echo::churn(to, *workers, *first, tls, time).await?)
        }
        Load::Refusal => {
            start()?;
            done(echo::refusal(to).await?)
        }
        Load::Hold { connections, reading } => {
            start()?;
            let (outcome, _held) = hold::run(to, *connections, *reading, time).await?;
            done(outcome)
        }
    }
}

/// Tells that all is ready, and waits for the word.
fn start() -> Result<()> {
    Reply::Ready.tell()?;
    line().map(drop)
}

/// Tells the outcome, and waits for the end of the input.
fn done(outcome: Outcome) -> Result<()> {
    Reply::Done(outcome).tell()?;
    line().map(drop)
}

fn line() -> Result<String> {
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    Ok(line)
}
