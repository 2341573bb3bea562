//! Checks every endpoint now and then by connecting to it, so that clients need not find out which are dead and which
//! have come back.

use std::{sync::Arc, time::Duration};

use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::upstreams::Upstreams;
use crate::{
    account::CloseReason,
    config::{Host, UpstreamId},
};

/// Within this endpoints are checked of which nothing is known, after a start or a reload.
const AT_ONCE: Duration = Duration::from_millis(500);

/// Checks the endpoints of these for ever.
pub(crate) async fn run(upstreams: &Arc<Upstreams>, used: &[UpstreamId]) {
    let mut checks = JoinSet::new();
    for id in used {
        for member in 0..upstreams.get(*id).pool.endpoints().len() {
            checks.spawn(check(upstreams.clone(), *id, member));
        }
    }
    while let Some(ended) = checks.join_next().await {
        if let Err(error) = ended {
            tracing::error!(%error, "a check of an endpoint ended");
        }
    }
    std::future::pending().await
}

/// Checks one endpoint for ever.
async fn check(upstreams: Arc<Upstreams>, upstream: UpstreamId, member: usize) {
    let pool = &upstreams.get(upstream).pool;
    let mut checked = Instant::now();
    let mut at_once = upstreams.checks_at_once && pool.is_untried(member);
    loop {
        // setus that started together must not check together.
        let interval = match at_once {
            true => AT_ONCE.mul_f64(fastrand::f64()),
            false => upstreams.check_interval.mul_f64(0.9 + 0.2 * fastrand::f64()),
        };
        at_once = false;
        loop {
            let due = pool.next_check(member, checked.into_std(), interval);
            tokio::select! {
                () = sleep_until(due.into()) => break,
                () = pool.changed(member) => {}
            }
        }
        upstreams.destinations.refresh();
        if !pool.is_well(member)
            && let Host::Name(name) = &pool.endpoints()[member].host
        {
            upstreams.names.renew(name).await;
        }
        match upstreams.connect(upstream, &pool.endpoints()[member]).await {
            Ok(_connected) => pool.report(member, Ok(()), Instant::now().into_std()),
            // Says nothing of the endpoint.
            Err(CloseReason::OutOfResources) => {}
            Err(reason) => pool.report(member, Err(reason), Instant::now().into_std()),
        }
        checked = Instant::now();
    }
}
