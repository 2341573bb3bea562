//! While setu serves: what it is told, and how it ends.

use std::{
    io, mem,
    time::{Duration, Instant},
};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    time::{Instant as Deadline, interval, sleep, sleep_until},
};
use tracing::{error, info, warn};

use super::{
    handover::{Door, Request},
    server::Server,
    service,
    strangers::Strangers,
};
use crate::{
    account::CloseReason,
    front::listener::Bound,
    operator::admin,
    relay::{Refusal, sockmap},
    sys,
};

/// How often sources of connections are looked over.
const FORGET: Duration = Duration::from_secs(5);
/// How often it is looked whether a crowd is over, and how many that come or go on the wire are one.
const LOOK: Duration = Duration::from_secs(1);
const CROWD: u64 = 500;
/// While draining: how often connections are counted, and the rest is told.
const COUNT: Duration = Duration::from_millis(50);
const PROGRESS: Duration = Duration::from_secs(5);

impl Server {
    /// Serves until it is time to go: for `timeouts.lame_duck` after it was told to, so that by then new clients are sent
    /// elsewhere.
    pub(super) async fn until_told(
        &mut self,
        signals: &mut Signals,
        mut requests: mpsc::UnboundedReceiver<Request>,
        mut door: Option<Door>,
        mut strangers: Strangers,
    ) -> Told {
        let mut forget = interval(FORGET);
        let (mut look, mut crowd) = (interval(LOOK), Crowd::default());
        let mut leaves = None;
        loop {
            tokio::select! {
                () = signals.end.recv() => {
                    let lame_duck = self.shared.config.timeouts.lame_duck;
                    if leaves.is_some() {
                        return Told::Twice;
                    }
                    if lame_duck.is_zero() {
                        info!("stopping");
                        return Told::Stop;
                    }
                    self.shared.counters.drain();
                    info!(seconds = lame_duck.as_secs_f64(), "stopping: new clients are still taken, for so long");
                    service::stopping("stopping, new clients are still taken", lame_duck + PROGRESS);
                    leaves = Some(Deadline::now() + lame_duck);
                }
                () = sleep_until(leaves.unwrap_or_else(Deadline::now)), if leaves.is_some() => return Told::Stop,
                _ = signals.hangup.recv(), if leaves.is_none() => {
                    service::reloading();
                    match self.reload().await {
                        Ok(()) => {
                            self.reloads.send_modify(admin::Reload::take);
                            strangers = Strangers::new(&self.shared, &self.bound);
                            info!("reloaded");
                            service::ready("serving");
                        }
                        Err(error) => {
                            let error = format!("{error:#}");
                            self.reloads.send_modify(|reload| reload.refuse(&error));
                            error!(error, "not reloaded, nothing has changed");
                            service::ready(&format!("serving as before; not reloaded: {error}"));
                        }
                    }
                }
                Some(request) = requests.recv() => match request {
                    Request::Sockets(reply) => {
                        let sockets = self.bound.iter().map(Bound::duplicate).collect::<io::Result<_>>();
                        match sockets {
                            // An error means that the successor is gone.
                            Ok(sockets) => drop(reply.send(sockets)),
                            Err(error) => warn!(%error, "the sockets cannot be passed to a successor"),
                        }
                    }
                    Request::Drain(pins) => {
                        if let Some(door) = &mut door {
                            door.pass_on();
                        }
                        info!("stopping: a successor serves");
                        let takes_wire = self.kept.as_ref().is_some_and(|kept| kept.is_at(&pins));
                        return Told::Succeeded { takes_wire };
                    }
                },
                () = self.broken.notified() => {
                    error!("a defect: names are resolved no more. Stopping, to be started anew");
                    return Told::Broken;
                }
                _ = forget.tick() => self.shared.limits.sweep(Instant::now()),
                _ = look.tick() => {
                    let listeners = self.shared.counters.listeners();
                    let accepted = listeners.iter().map(|listener| listener.accepted());
                    // Who goes on the wire leaves memory behind as well.
                    let handed_over = self.kept.iter().map(|kept| kept.counts.handed_over());
                    if crowd.is_over(accepted.chain(handed_over).sum()) {
                        sys::trim_heap();
                    }
                    strangers.look(&self.shared, &self.bound, Instant::now());
                    self.notes.send_replace(strangers.notes());
                }
            }
        }
    }

    /// Stops to listen, and waits for the connections to end, unless there was no more time than until then.
    pub(super) async fn drain(&mut self, signals: &mut Signals, told: Told) {
        self.shared.counters.drain();
        self.serve(self.workers.iter().map(|_| Vec::new()).collect()).await;
        self.bound.clear();
        let limits = self.shared.limits.clone();
        let patience = if told == Told::Twice { Duration::ZERO } else { self.shared.config.timeouts.drain };
        let begun = Instant::now();
        let progress = async {
            let mut ticks = interval(PROGRESS);
            loop {
                ticks.tick().await;
                let (connections, seconds) =
                    (limits.open_now(), patience.saturating_sub(begun.elapsed()).as_secs());
                if connections > 0 {
                    info!(connections, seconds, "draining");
                }
                service::stopping(&format!("draining, {connections} connections left"), PROGRESS * 3);
            }
        };
        let all_gone = async {
            while limits.open_now() > 0 {
                sleep(COUNT).await;
            }
        };
        tokio::select! {
            biased;
            () = all_gone => {}
            () = progress => {}
            () = sleep(patience) => warn!(connections = limits.open_now(), "connections are closed"),
            () = signals.end.recv() => warn!(connections = limits.open_now(), "connections are closed: told again"),
        }
    }

    /// Closes what is left, and says how all connections ended.
    pub(super) fn stop(self) {
        let Self { shared, workers, kernel, kept, .. } = self;
        shared.counters.stop();
        if let Some(kept) = kept {
            kept.stop();
        }
        let threads: Vec<_> = workers.into_iter().map(|worker| worker.thread).collect();
        for thread in threads {
            if thread.join().is_err() {
                warn!("a worker had panicked");
            }
        }
        if let Some(kernel) = kernel {
            let handle = kernel.handle();
            drop(kernel);
            tell_kernel_counts(handle.counts());
        }
        for reason in CloseReason::ALL {
            let count = shared.counters.closed(*reason);
            if count > 0 {
                info!(%reason, count, "closed connections");
            }
        }
        let connections = shared.counters.handed_on();
        if connections > 0 {
            info!(connections, "left on the wire to the successor");
        }
        for (failure, count) in shared.upstreams.name_failures() {
            if count > 0 {
                info!(reason = failure.name(), count, "failed lookups");
            }
        }
        let stale = shared.upstreams.stale_answers();
        if stale > 0 {
            info!(stale, "connections by addresses past their time");
        }
        info!("stopped");
    }
}

/// Clients that came together. Until they are quiet enough for the kernel each takes memory here, which nobody needs
/// afterwards, and which is given back once no more come.
#[derive(Debug, Default)]
struct Crowd {
    all: u64,
    /// Who came since the last one was over.
    came: u64,
}

impl Crowd {
    /// Whether it is over, asked now and then with the number of all that ever came or went on the wire.
    fn is_over(&mut self, all: u64) -> bool {
        let lately = all.saturating_sub(mem::replace(&mut self.all, all));
        self.came += lately;
        let is_over = self.came >= CROWD && lately < self.came / 10;
        if is_over {
            self.came = 0;
        }
        is_over
    }
}

/// Why it is time to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    /// By a signal.
    Stop,
    /// By a second one, before there was nobody to be sent elsewhere any more.
    Twice,
    /// Another setu serves, and keeps what is on the wire, or does not.
    Succeeded { takes_wire: bool },
    /// By a panic.
    Broken,
}

/// The signals that setu follows.
pub(super) struct Signals {
    end: End,
    hangup: Signal,
}

/// Those that end setu.
struct End {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub(super) fn new() -> io::Result<Self> {
        let end =
            End { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? };
        Ok(Self { end, hangup: signal(SignalKind::hangup())? })
    }
}

impl End {
    /// Waits for one.
    async fn recv(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Logs what became of flows in the kernel.
fn tell_kernel_counts(counts: &sockmap::Counts) {
    for refusal in Refusal::ALL {
        let count = counts.refused(refusal);
        if count > 0 {
            info!(reason = refusal.name(), count, "flows that the kernel did not take");
        }
    }
    let (congested, streams, resumed) = (counts.congested(), counts.streams(), counts.resumed());
    if congested + streams > 0 {
        info!(
            congested,
            streams, resumed, "flows that left the kernel, for a slow reader or to stream, and came back"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_is_over_when_few_follow_it() {
        let mut crowd = Crowd::default();
        let mut accepted = 0;
        let mut over = |came: u64| {
            accepted += came;
            crowd.is_over(accepted)
        };
        assert!(!over(4_000), "they come");
        assert!(!over(500));
        assert!(over(300));
        assert!(!over(0), "once");
        assert!(!(0..10).any(|_| over(40)), "too few to matter");
        // As many as ever, all the time: now and then.
        assert_eq!((0..110).filter(|_| over(50)).count(), 10);
    }
}
