//! One thread for each core, each with its own runtime and its own listening sockets. A connection stays on the thread
//! that accepted it, or that it was dealt out to right then: where there are fewer sockets than threads, as when a
//! service manager passes one for each address, one thread accepts from it for all. (If all waited for the one socket,
//! each client would wake all of them: tokio does not ask for `EPOLLEXCLUSIVE`.)

use std::{
    fs::File,
    future::poll_fn,
    io, net,
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    thread::JoinHandle,
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpStream},
    runtime,
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::sleep,
};
use tracing::{error, warn};

use super::{
    connection::{self, Admitted},
    shared::{Shared, Worker},
};
use crate::{
    account::{ClientAddr, CloseReason, forget_copies, out_of_resources},
    front::segments::announce,
    relay::{
        self,
        sockmap::Handle,
        wire::{Adopt, Counts, Wire},
    },
};

/// How long accepting pauses when the machine has no descriptor or memory left.
const PAUSE: Duration = Duration::from_millis(100);

/// Polls of tasks between two looks at the network. Each may move a turn of bulk both ways.
const EVENT_INTERVAL: u32 = 16;

/// A listening socket from which a worker accepts.
#[derive(Debug)]
pub(crate) struct Listening {
    /// Index of the listener.
    pub(crate) listener: usize,
    pub(crate) socket: net::TcpListener,
    /// Whether its clients are for all workers in turn.
    pub(crate) deals: bool,
}

/// All workers, by way of one of them. Weak, since a worker ends when its orders are dropped.
type Workers = Arc<[mpsc::WeakUnboundedSender<Order>]>;

/// What a worker is told.
#[derive(Debug)]
pub(crate) enum Order {
    /// Accept from these sockets and no others, for this configuration. Connections that are in keep theirs.
    Serve {
        shared: Arc<Shared>,
        sockets: Vec<Listening>,
        /// To whom clients are dealt out.
        workers: Workers,
        /// Told when those of before are closed here.
        done: oneshot::Sender<()>,
    },
    /// Serve a client that another worker let in, under this configuration.
    Take(Admitted<net::TcpStream>, Arc<Shared>),
    /// Answer: the worker is alive.
    Ping(oneshot::Sender<()>),
}

/// A running worker. It ends, and with it its connections, when `orders` is dropped.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) orders: mpsc::UnboundedSender<Order>,
    pub(crate) thread: JoinHandle<()>,
}

/// Starts a worker, which accepts nothing yet.
///
/// # Errors
/// Out of descriptors or threads.
pub(crate) fn start(
    number: usize,
    shared: Arc<Shared>,
    kernel: Option<Handle>,
    wire: Option<(OwnedFd, Arc<Counts>)>,
) -> io::Result<Running> {
    let runtime =
        runtime::Builder::new_current_thread().enable_all().event_interval(EVENT_INTERVAL).build()?;
    let (orders, received) = mpsc::unbounded_channel();
    let run = move || runtime.block_on(run(number, shared, kernel, wire, received));
    let thread = std::thread::Builder::new().name(format!("setu-worker-{number}")).spawn(run)?;
    Ok(Running { orders, thread })
}

async fn run(
    number: usize,
    shared: Arc<Shared>,
    kernel: Option<Handle>,
    wire: Option<(OwnedFd, Arc<Counts>)>,
    mut orders: mpsc::UnboundedReceiver<Order>,
) {
    let (returns, mut returned) = mpsc::unbounded_channel();
    let wire = wire.and_then(|(socket, counts)| {
        let adopt = Adopt(Box::new({
            let shared = shared.clone();
            move |listener, names| shared.adopt(listener, names)
        }));
        let wire =
            Wire::new(socket, counts, adopt).inspect_err(|error| error!(%error, "the wire cannot be used"));
        wire.ok().inspect(|wire| drop(wire.listen()))
    });
    let under = |shared| {
        Arc::new(Worker { shared, kernel: kernel.clone(), wire: wire.clone(), returns: returns.clone() })
    };
    let mut worker = under(shared);
    let mut accepting = JoinSet::new();
    loop {
        tokio::select! {
            order = orders.recv() => match order {
                Some(Order::Serve { shared, sockets, workers, done }) => {
                    // They wait for a client, or for descriptors: none that was accepted is lost.
                    accepting.shutdown().await;
                    worker = under(shared);
                    for Listening { listener, socket, deals } in sockets {
                        connection::prepare(&socket);
                        let dealer = deals.then(|| Dealer { workers: workers.clone(), own: number, next: number });
                        match TcpListener::from_std(socket) {
                            Ok(socket) => {
                                accepting.spawn(accept(listener, socket, dealer, worker.clone()));
                            }
                            Err(error) => error!(%error, "a listening socket cannot be used"),
                        }
                    }
                    // An error means that nobody waits any more.
                    let _ = done.send(());
                }
                Some(Order::Take(client, shared)) => {
                    // Another configuration comes to one worker before the other.
                    let same = Arc::ptr_eq(&shared, &worker.shared);
                    let worker = if same { worker.clone() } else { under(shared) };
                    if let Some(client) = client.enter() {
                        client.begin(worker);
                    }
                }
                Some(Order::Ping(answer)) => {
                    let _ = answer.send(());
                }
                None => break,
            },
            Some(flow) = returned.recv() => {
                let worker = worker.clone();
                tokio::spawn(async move { relay::carry_on(flow, worker.means()).await });
            }
        }
    }
}

/// Deals clients out to all workers in turn.
struct Dealer {
    workers: Workers,
    own: usize,
    next: usize,
}

impl Dealer {
    fn deal(&mut self, client: Admitted<TcpStream>, worker: &Arc<Worker>) {
        let to = self.next;
        self.next = (to + 1) % self.workers.len();
        if to == self.own {
            return client.begin(worker.clone());
        }
        // Where it cannot be sent setu stops, or the other has panicked: the client's ticket counts that.
        if let (Some(orders), Some(client)) = (self.workers[to].upgrade(), client.leave()) {
            let _ = orders.send(Order::Take(client, worker.shared.clone()));
        }
    }
}

async fn accept(listener: usize, socket: TcpListener, mut dealer: Option<Dealer>, worker: Arc<Worker>) {
    // One warning for each shortage, not one for each attempt.
    static SHORT: AtomicBool = AtomicBool::new(false);
    let mut reserve = Reserve::new();
    let mut announced = worker.shared.segments.of(listener);
    // A setu of before may have left it otherwise.
    announce(&socket, announced);
    loop {
        // Its result, which waits in this future, holds no address but in a box of its own.
        let accepted = poll_fn(|cx| {
            let accepted = socket.poll_accept(cx);
            accepted.map_ok(|(client, peer)| (client, ClientAddr::new(peer)))
        });
        match accepted.await {
            Ok((client, peer)) => {
                SHORT.store(false, Ordering::Relaxed);
                reserve.restore();
                let client = connection::admit(client, peer, listener, &worker);
                forget_copies();
                match (client, &mut dealer) {
                    (Some(client), None) => client.begin(worker.clone()),
                    (Some(client), Some(dealer)) => dealer.deal(client, &worker),
                    (None, _) => {}
                }
                let segment = worker.shared.segments.of(listener);
                if segment != announced {
                    announce(&socket, segment);
                    announced = segment;
                }
            }
            Err(error) if out_of_resources(&error) => {
                if !SHORT.swap(true, Ordering::Relaxed) {
                    warn!(%error, "clients are turned away; raise the limit of open files (ulimit -n, LimitNOFILE=)");
                }
                if reserve.turn_away(&socket).await {
                    worker.ticket(listener).close(CloseReason::OutOfResources);
                } else {
                    sleep(PAUSE).await;
                }
            }
            // The client was gone before it was accepted.
            Err(_) => {}
        }
    }
}

/// A descriptor kept for the moment in which there is no other: in its place a client can be accepted, and told no.
struct Reserve(Option<File>);

impl Reserve {
    fn new() -> Self {
        Self(File::open("/dev/null").ok())
    }

    /// Takes a descriptor again, where there was none left for it.
    fn restore(&mut self) {
        if self.0.is_none() {
            *self = Self::new();
        }
    }

    /// Accepts a client in place of the descriptor and resets it. Returns whether there was one.
    async fn turn_away(&mut self, socket: &TcpListener) -> bool {
        let had = self.0.take().is_some();
        let client = poll_fn(|cx| Poll::Ready(if had { Some(socket.poll_accept(cx)) } else { None })).await;
        let turned_away = match client {
            Some(Poll::Ready(Ok((client, _)))) => {
                connection::reset(&client);
                true
            }
            _ => false,
        };
        *self = Self::new();
        turned_away
    }
}
