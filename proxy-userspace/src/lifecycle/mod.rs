//! What happens to setu as a whole: its start, reloads, the watchdog, its end.
//!
//! ```text
//!                SIGHUP: reload, all or nothing
//!                  ┌───┐
//!   start ──► serving ─┘
//!                │ SIGTERM, SIGINT, a successor serves, or a defect; a signal has it serve for timeouts.lame_duck first
//!                ▼
//!             draining ──► stopped
//!                no connection left; timeouts.drain is over; another signal
//! ```

mod handover;
mod keeper;
mod kernel;
pub mod privilege;
mod reload;
mod server;
mod service;
mod serving;
mod strangers;

use std::{io, iter, net::SocketAddr, num::NonZero, sync::Arc, thread, time::Duration};

use anyhow::Context as _;
use clap::Args;
use tokio::{
    runtime,
    sync::{mpsc, watch},
};
use tracing::{debug, info, warn};

use crate::{
    account::{Counters, Path},
    config::{Config, PathChoice, RunArgs},
    front::{
        limits::Limits,
        listener::{self, Bound},
        segments::Segments,
        tls::Acceptor,
    },
    log,
    operator::admin,
    relay::{
        holdings,
        sockmap::{Loaded, Running},
        userspace,
    },
    serve::{capacity::Machine, reserved::Reservation, shared::Shared, worker},
    sys::{self, user::User},
    upstream::Upstreams,
};
use handover::{Door, Predecessor};
use keeper::Kept;
use server::{Server, allowed, listener_counts, log_limits, share, start_tls, watch_certificate};
use serving::{Signals, Told};
use strangers::Strangers;

/// Arguments of `setu run`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// What to serve.
    #[command(flatten)]
    pub run: RunArgs,
    /// Take over the listening sockets of the setu that runs with the same state directory: no client is refused, and
    /// its connections go on in the old process until timeouts.drain is over, those on the wire without an end
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
    let mut prepared = Prepared::new(args)?;
    let kernel = kernel::load(&prepared.config, &prepared.machine, prepared.recall)?;
    privilege::drop_all(&prepared.config, prepared.args.file().path(), prepared.user.as_ref())?;
    if prepared.config.tls.files.is_none() {
        // Its own certificate is its user's to read and write: root may lack the right, as in a container.
        prepared.acceptor = start_tls(&prepared.config)?;
    }
    let _queue = log::Queue::begin();
    prepared.serve(kernel)
}

/// Has the kernel leave the wire's ports to setu, where that may be told.
fn reserve(config: &Config) -> Option<Reservation> {
    let ports = config.wire.is_on().then_some(&config.wire.ports)?;
    Reservation::make(ports).unwrap_or_else(|error| {
        let (first, last) = (ports.start(), ports.end());
        warn!(%error, first, last, "wire.ports cannot be reserved for setu; `setu check` says what that means");
        None
    })
}

/// What is there before privileges are dropped.
struct Prepared {
    args: RunArgs,
    config: Config,
    machine: Machine,
    recall: Option<Duration>,
    workers: usize,
    /// The keeper of the wire, where there is one.
    kept: Option<Kept>,
    /// Whom setu becomes.
    user: Option<User>,
    acceptor: Option<Arc<Acceptor>>,
    bound: Vec<Bound>,
    admin: admin::Sockets,
    /// Of the wire's ports.
    reservation: Option<Reservation>,
    predecessor: Option<Predecessor>,
}

impl Prepared {
    /// Does what needs privileges, save for the kernel path: reads, and binds or takes over what is open.
    ///
    /// # Errors
    /// What is in the way.
    fn new(args: ServeArgs) -> anyhow::Result<Self> {
        let ServeArgs { run: mut args, replace, force_handover } = args;
        let recall = force_handover.map(|millis| Duration::from_millis(millis.get().into()));
        let configuration = args.file().origin();
        args.settle();
        let mut config = args.config()?;
        info!("the configuration is {configuration}");
        let machine = Machine::look().context("the limit of open files cannot be read")?;
        let workers = thread::available_parallelism().map_or(1, NonZero::get);
        let room = machine.room_on_wire(&config);
        let kept = keeper::start(&config, room, workers)?;
        config.wire.room = if kept.is_some() { room.get() } else { 0 };
        let user = privilege::user(&config)?;
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
        // The predecessor may have been another user, whose secret is taken away.
        privilege::give_state(&config, user.as_ref());
        service::both_families(&mut open, &config)?;
        let acceptor = if config.tls.files.is_some() { start_tls(&config)? } else { None };
        let bound = listener::bind_all(&config, workers, &open)?;
        for unused in open.iter().filter(|open| !bound.iter().any(|bound| bound.address == open.address)) {
            warn!(address = %unused.address, "a socket that was passed to setu is in no listener's bind, it is closed");
        }
        listener::guard(&config, &bound, None);
        let admin = admin::Sockets::bind(&config, predecessor.is_some())?;
        let reservation = reserve(&config);
        Ok(Self {
            args,
            config,
            machine,
            recall,
            workers,
            kept,
            user,
            acceptor,
            bound,
            admin,
            reservation,
            predecessor,
        })
    }

    /// Serves until the end.
    ///
    /// # Errors
    /// Out of threads, or signals cannot be awaited.
    fn serve(self, kernel: Option<Loaded>) -> anyhow::Result<()> {
        let kernel = match kernel.map(Loaded::start).transpose() {
            Err(error) if self.config.path != PathChoice::Sockmap => {
                warn!(%error, "the kernel path is not available, bytes go through userspace");
                None
            }
            kernel => kernel?,
        };
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(self.run(kernel))
    }

    async fn run(self, kernel: Option<Running>) -> anyhow::Result<()> {
        let Self {
            args,
            config,
            machine,
            workers,
            mut kept,
            acceptor,
            bound,
            admin,
            reservation,
            predecessor,
            ..
        } = self;
        // They must be awaited before anyone is told that setu is ready.
        let mut signals = Signals::new().context("signals cannot be awaited")?;
        let addresses: Vec<SocketAddr> = admin.addresses().collect();
        let own = bound.iter().map(|bound| bound.address).chain(addresses.iter().copied()).collect();
        let (upstreams, background) = Upstreams::new(&config, own, None);
        let allowed = allowed(&machine, &config, &bound);
        let limits = Arc::new(Limits::new(&config.limits, allowed.room(&config)));
        let files = machine.files;
        log_limits(&limits, &machine, &config, allowed);
        userspace::allow_pipes(machine.pipes());
        holdings::allow(machine.holdings());
        let counters = Arc::<Counters>::default();
        let listeners = listener_counts(&config, &counters);
        let segments = Segments::new(&config);
        let shared = Arc::new(Shared { config, upstreams, limits, acceptor, counters, listeners, segments });
        let (current, shown) = watch::channel(shared.clone());
        let (reloads, reloaded) = watch::channel(admin::Reload::start());
        let (notes, noted) = watch::channel(Vec::new());
        let wires = kept.as_mut().map_or_else(Default::default, Kept::workers);
        let wires = wires.into_iter().map(Some).chain(iter::repeat_with(|| None));
        let workers = (0..workers)
            .zip(wires)
            .map(|(number, wire)| {
                worker::start(number, shared.clone(), kernel.as_ref().map(Running::handle), wire)
            })
            .collect::<io::Result<Vec<_>>>()
            .context("a worker could not start")?;
        let path = if kept.is_some() {
            Path::Wire
        } else if kernel.is_some() {
            Path::Sockmap
        } else {
            Path::Userspace
        };
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
            kept,
            background: None,
            broken: Arc::default(),
        };
        let shares = share(&server.bound, server.workers.len())?;
        server.run_background(background);
        if let Some(acceptor) = &server.shared.acceptor {
            watch_certificate(acceptor.clone());
        }
        // Before anybody is let in, so that all who come are seen.
        let strangers = Strangers::new(&server.shared, &server.bound);
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
            server.kept.as_ref().map(|kept| kept.counts.clone()),
            files,
            predecessor.is_some(),
        )));
        // What starting took and nobody needs again, the self-test's above all.
        sys::trim_heap();

        let (requests, received) = mpsc::unbounded_channel();
        let state_dir = &server.shared.config.tls.state_dir;
        let door = Door::open(state_dir, predecessor.is_some(), requests).inspect_err(|error| {
            info!(state_dir = %state_dir.display(), %error, "no successor can take over from this setu");
        });
        // Whoever waits for this may want to replace it.
        info!(%path, "ready");
        if let Some(predecessor) = predecessor {
            predecessor.drain(server.kept.as_ref().and_then(Kept::pins));
        }
        let orders = server.workers.iter().map(|worker| worker.orders.downgrade()).collect();
        tokio::spawn(service::watchdog(orders, server.kernel.as_ref().map(Running::handle)));
        service::ready(&format!("serving, {path} path"));
        let told = server.until_told(&mut signals, received, door.ok(), strangers).await;
        if let Told::Succeeded { takes_wire } = told {
            // The successor has an admin endpoint of its own, on the same address.
            admin.abort();
            // And a keeper that waits for this one's end, or none: then this one's is needed to the end.
            if takes_wire && let Some(kept) = server.kept.take() {
                kept.hand_on();
            }
        }
        server.drain(&mut signals, told).await;
        server.stop();
        // A successor has found them reserved, and relies on it.
        if let Some(reservation) = reservation.filter(|_| !matches!(told, Told::Succeeded { .. }))
            && let Err(error) = reservation.give_back()
        {
            debug!(%error, "wire.ports stay reserved");
        }
        anyhow::ensure!(told != Told::Broken, "what resolves names and checks upstreams had panicked");
        Ok(())
    }
}
