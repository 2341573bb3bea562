//! What happens to setu as a whole: its start, reloads, the watchdog, its end.
//!
//! ```text
//!                SIGHUP: reload, all or nothing
//!                  ┌───┐
//!   start ──► serving ─┘
//!                │ SIGTERM, SIGINT, a successor serves, or a defect
//!                ▼
//!             draining ──► stopped
//!                no connection left; timeouts.drain is over; another signal
//! ```

mod handover;
mod kernel;
pub mod privilege;
mod reload;
mod server;
mod service;
mod strangers;

use std::{
    io, mem,
    net::SocketAddr,
    num::NonZero,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::Args;
use tokio::{
    runtime,
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, watch},
    time::{interval, sleep},
};
use tracing::{error, info, warn};

use crate::{
    account::{CloseReason, Counters, Path},
    config::{Config, PathChoice, RunArgs},
    front::{
        limits::Limits,
        listener::{self, Bound},
        tls::Acceptor,
    },
    log,
    operator::admin,
    relay::{
        Refusal, holdings,
        sockmap::{self, Loaded, Running},
        userspace,
    },
    serve::{capacity::Machine, shared::Shared, worker},
    sys,
    upstream::Upstreams,
};
use handover::{Door, Predecessor, Request};
use server::{Server, allowed, listener_counts, log_limits, share, start_tls, watch_certificate};
use strangers::Strangers;

/// How often sources of connections are looked over.
const FORGET: Duration = Duration::from_secs(5);
/// How often it is looked whether a crowd is over, and how many clients are one.
const LOOK: Duration = Duration::from_secs(1);
const CROWD: u64 = 500;
/// While draining: how often connections are counted, and the rest is told.
const COUNT: Duration = Duration::from_millis(50);
const PROGRESS: Duration = Duration::from_secs(5);

/// Arguments of `setu run`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// What to serve.
    #[command(flatten)]
    pub run: RunArgs,
    /// Take over the listening sockets of the setu that runs with the same state directory: no client is refused, and
    /// its connections go on in the old process until timeouts.drain is over
    #[arg(long)]
    pub replace: bool,
    /// Only to test: hand flows over to the kernel at every safe moment, and take them out again after up to twice this
    #[arg(long = "force-handover", value_name = "MILLISECONDS", hide = true)]
    pub force_handover: Option<NonZero<u32>>,
}

/// Runs setu until it is told to stop.
///
/// # Errors
/// What kept it from starting: a port, a forced path that is not available.
pub fn run(args: ServeArgs) -> anyhow::Result<()> {
    let prepared = Prepared::new(args)?;
    let kernel = kernel::load(&prepared.config, &prepared.machine, prepared.recall)?;
    privilege::drop_all(&prepared.config, prepared.args.file())?;
    let _queue = log::Queue::begin();
    prepared.serve(kernel)
}

/// What is there before privileges are dropped.
struct Prepared {
    args: RunArgs,
    config: Config,
    machine: Machine,
    recall: Option<Duration>,
    workers: usize,
    acceptor: Option<Arc<Acceptor>>,
    bound: Vec<Bound>,
    admin: admin::Sockets,
    predecessor: Option<Predecessor>,
}

impl Prepared {
    /// Does what needs privileges, save for the kernel path: reads, and binds or takes over what is open.
    ///
    /// # Errors
    /// What is in the way.
    fn new(args: ServeArgs) -> anyhow::Result<Self> {
        let ServeArgs { run: args, replace, force_handover } = args;
        let recall = force_handover.map(|millis| Duration::from_millis(millis.get().into()));
        let config = args.config()?;
        let machine = Machine::look().context("the limit of open files cannot be read")?;
        let workers = thread::available_parallelism().map_or(1, NonZero::get);
        let mut open = service::sockets().context("the sockets that setu was started with")?;
        let mut predecessor = None;
        if replace {
            match Predecessor::find(&config.tls.state_dir) {
                Ok((found, sockets)) => {
                    open.extend(sockets);
                    predecessor = Some(found);
                }
                Err(error) => {
                    let state_dir = config.tls.state_dir.display();
                    warn!(%state_dir, %error, "there is no setu to replace, starting without");
                }
            }
        }
        service::both_families(&mut open, &config)?;
        let acceptor = start_tls(&config)?;
        let bound = listener::bind_all(&config, workers, &open)?;
        for unused in open.iter().filter(|open| !bound.iter().any(|bound| bound.address == open.address)) {
            warn!(address = %unused.address, "a socket that was passed to setu is in no listener's bind, it is closed");
        }
        listener::guard(&config, &bound, None);
        let admin = admin::Sockets::bind(&config, predecessor.is_some())?;
        Ok(Self { args, config, machine, recall, workers, acceptor, bound, admin, predecessor })
    }

    /// Serves until the end.
    ///
    /// # Errors
    /// Out of threads, or signals cannot be awaited.
    fn serve(self, kernel: Option<Loaded>) -> anyhow::Result<()> {
        let kernel = match kernel.map(Loaded::start).transpose() {
            Err(error) if self.config.path == PathChoice::Auto => {
                warn!(%error, "the kernel path is not available, bytes go through userspace");
                None
            }
            kernel => kernel?,
        };
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(self.run(kernel))
    }

    async fn run(self, kernel: Option<Running>) -> anyhow::Result<()> {
        let Self { args, config, machine, workers, acceptor, bound, admin, predecessor, .. } = self;
        // They must be awaited before anyone is told that setu is ready.
        let mut signals = Signals::new().context("signals cannot be awaited")?;
        let addresses: Vec<SocketAddr> = admin.addresses().collect();
        let own = bound.iter().map(|bound| bound.address).chain(addresses.iter().copied()).collect();
        let (upstreams, background) = Upstreams::new(&config, own, None);
        let allowed = allowed(&machine, &config, &bound);
        let limits = Arc::new(Limits::new(&config.limits, allowed.connections(&config)));
        let files = machine.files;
        log_limits(&limits, &machine, &config, allowed);
        userspace::allow_pipes(machine.pipes());
        holdings::allow(machine.holdings());
        let counters = Arc::<Counters>::default();
        let listeners = listener_counts(&config, &counters);
        let shared = Arc::new(Shared { config, upstreams, limits, acceptor, counters, listeners });
        let (current, shown) = watch::channel(shared.clone());
        let (reloads, reloaded) = watch::channel(admin::Reload::start());
        let (notes, noted) = watch::channel(Vec::new());
        let workers = (0..workers)
            .map(|number| worker::start(number, shared.clone(), kernel.as_ref().map(Running::handle)))
            .collect::<io::Result<Vec<_>>>()
            .context("a worker could not start")?;
        let path = if kernel.is_some() { Path::Sockmap } else { Path::Userspace };
        let mut server = Server {
            args,
            machine,
            shared,
            bound,
            admin: addresses,
            current,
            reloads,
            notes,
            workers,
            kernel,
            background: None,
            broken: Arc::default(),
        };
        let shares = share(&server.bound, server.workers.len())?;
        server.run_background(background);
        if let Some(acceptor) = &server.shared.acceptor {
            watch_certificate(acceptor.clone());
        }
        server.serve(shares).await;
        for bound in &server.bound {
            let listener = &server.shared.listeners[bound.listener].name;
            info!(%listener, address = %bound.address, "listening");
        }
        admin.announce();
        let admin = tokio::spawn(admin.serve(admin::Instance::new(
            shown,
            reloaded,
            noted,
            server.kernel.as_ref().map(Running::handle),
            files,
        )));
        info!(%path, "ready");
        // What starting took and nobody needs again, the self-test's above all.
        sys::trim_heap();

        let (requests, received) = mpsc::unbounded_channel();
        let state_dir = &server.shared.config.tls.state_dir;
        let door = Door::open(state_dir, predecessor.is_some(), requests).inspect_err(|error| {
            info!(state_dir = %state_dir.display(), %error, "no successor can take over from this setu");
        });
        if let Some(predecessor) = predecessor {
            predecessor.drain();
        }
        let orders = server.workers.iter().map(|worker| worker.orders.downgrade()).collect();
        tokio::spawn(service::watchdog(orders, server.kernel.as_ref().map(Running::handle)));
        service::ready(&format!("serving, {path} path"));
        let told = server.until_told(&mut signals, received, door.ok()).await;
        if told == Told::Succeeded {
            // The successor has an admin endpoint of its own, on the same address.
            admin.abort();
        }
        server.drain(&mut signals).await;
        server.stop();
        anyhow::ensure!(told != Told::Broken, "what resolves names and checks upstreams had panicked");
        Ok(())
    }
}

impl Server {
    /// Serves until it is time to go.
    async fn until_told(
        &mut self,
        signals: &mut Signals,
        mut requests: mpsc::UnboundedReceiver<Request>,
        mut door: Option<Door>,
    ) -> Told {
        let mut forget = interval(FORGET);
        let (mut look, mut crowd) = (interval(LOOK), Crowd::default());
        let mut strangers = Strangers::new(&self.shared, &self.bound);
        loop {
            tokio::select! {
                () = signals.end.recv() => {
                    info!("stopping");
                    return Told::Stop;
                }
                _ = signals.hangup.recv() => {
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
                    Request::Drain => {
                        if let Some(door) = &mut door {
                            door.pass_on();
                        }
                        info!("stopping: a successor serves");
                        return Told::Succeeded;
                    }
                },
                () = self.broken.notified() => {
                    error!("a defect: names are resolved no more. Stopping, to be started anew");
                    return Told::Broken;
                }
                _ = forget.tick() => self.shared.limits.sweep(Instant::now()),
                _ = look.tick() => {
                    let listeners = self.shared.counters.listeners();
                    if crowd.is_over(listeners.iter().map(|listener| listener.accepted()).sum()) {
                        sys::trim_heap();
                    }
                    strangers.look(&self.shared, &self.bound, Instant::now());
                    self.notes.send_replace(strangers.notes());
                }
            }
        }
    }

    /// Stops to listen, and waits for the connections to end.
    async fn drain(&mut self, signals: &mut Signals) {
        self.shared.counters.drain();
        self.serve(self.workers.iter().map(|_| Vec::new()).collect()).await;
        self.bound.clear();
        let limits = self.shared.limits.clone();
        let patience = self.shared.config.timeouts.drain;
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
    fn stop(self) {
        let Self { shared, workers, kernel, .. } = self;
        shared.counters.stop();
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
    accepted: u64,
    /// Who came since the last one was over.
    came: u64,
}

impl Crowd {
    /// Whether it is over, asked now and then with the number of clients that ever came.
    fn is_over(&mut self, accepted: u64) -> bool {
        let lately = accepted.saturating_sub(mem::replace(&mut self.accepted, accepted));
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
enum Told {
    /// By a signal.
    Stop,
    /// Another setu serves.
    Succeeded,
    /// By a panic.
    Broken,
}

/// The signals that setu follows.
struct Signals {
    end: End,
    hangup: Signal,
}

/// Those that end setu.
struct End {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
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
