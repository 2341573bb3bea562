//! What goes on without a client: names are kept fresh, endpoints checked.

use std::time::Duration;

use tokio::time::{Instant as Deadline, timeout_at};

use super::{dns, health, upstreams::Background};

/// How long names are looked up after a configuration has retired: for connections that were being inspected then.
const LAST_QUESTIONS: Duration = Duration::from_secs(60);

impl Background {
    /// Works until `retired` is over, when another configuration has taken its place, and then for as long as a
    /// connection that came before may still ask for a name.
    pub(crate) async fn run(self, retired: impl Future<Output = ()>) {
        let Self { upstreams, requests, servers, used } = self;
        let names = dns::run(&upstreams.names, requests, &servers, &upstreams.destinations);
        tokio::pin!(names);
        tokio::select! {
            () = &mut names => {}
            () = health::run(&upstreams, &used) => {}
            () = retired => {}
        }
        // An error is the end that is meant.
        let _ = timeout_at(Deadline::now() + LAST_QUESTIONS, names).await;
    }
}
