//! The kernel path: bytes go from socket to socket by an eBPF program, and userspace only watches for the end.
//!
//! One thread, the [`controller`], owns the maps and every flow in them. Workers hand flows over and get them back
//! when something is to be done that the kernel cannot do: forward a FIN, make a sender wait for a slower reader, or
//! carry a flow that it did not take.

mod btf;
mod budget;
mod controller;
mod counts;
mod flow;
mod loader;
mod probe;
mod teardown;

use std::{
    io,
    os::fd::OwnedFd,
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::Duration,
};

use tokio::sync::{mpsc::UnboundedSender, oneshot};

use crate::{
    close_reason::{Side, Ticket},
    sys::EventFd,
};
pub use btf::VMLINUX;
pub(crate) use counts::Counts;
pub use counts::Refusal;
pub use loader::LoadError;
pub use probe::{Check, probe};

/// Both legs of a flow, nonblocking, with nothing of their streams in userspace, and no segment of which a part was read:
/// the kernel forwards segments whole.
#[derive(Debug)]
pub(crate) struct Legs {
    pub(crate) client: OwnedFd,
    pub(crate) upstream: OwnedFd,
    /// How often the kernel turned out to be no place for the flow.
    pub(crate) left: u32,
}

/// Bytes that a leg of a flow in the kernel holds for its reader at most. What the kernel forwards counts as read, so
/// that the buffer would be tuned for a quick reader, up to `net.ipv4.tcp_rmem`, and be full of a slow one's bytes. At a
/// round trip of 100 ms a sender still fills 100 Mbit/s; with 416 KiB, all that the `net.core.rmem_max` of older kernels
/// lets setu have without privileges, 20 Mbit/s.
const RECEIVE_BUFFER: i32 = 2 << 20;

/// Why a flow comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    /// The leg has sent its FIN.
    Finished(Side),
    /// A leg's peer reads slower than the other sends.
    Congested,
    /// It moves more than messages.
    Streams,
    /// To test the way out.
    Recalled,
    /// The kernel did not take it.
    NotTaken(Refusal),
}

impl Why {
    /// Its name in logs.
    const fn name(self) -> &'static str {
        match self {
            Self::Finished(_) => "finished",
            Self::Congested => "congested",
            Self::Streams => "streams",
            Self::Recalled => "recalled",
            Self::NotTaken(refusal) => refusal.name(),
        }
    }
}

/// A flow that userspace must carry on.
#[derive(Debug)]
pub(crate) struct Returned {
    pub(crate) legs: Legs,
    pub(crate) ticket: Ticket,
    pub(crate) why: Why,
    /// Bytes that userspace must send before all others, by the leg that they came from.
    pub(crate) collected: [Vec<u8>; 2],
}

/// Limits of the kernel path.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Flows at once.
    pub(crate) flows: u32,
    /// Bytes that all flows together may have on their way to clients and upstreams.
    pub(crate) budget: u64,
    /// Bytes that one direction may have on its way, whatever its destination's send buffer takes.
    pub(crate) most: u64,
    /// Bytes that a leg holds for its reader at most.
    pub(crate) receive_buffer: i32,
    /// Flows that turn out to stream leave.
    pub(crate) only_quiet: bool,
    /// Flows leave after up to twice this, whatever they do: only to test the way out.
    pub(crate) recall: Option<Duration>,
    /// Close a flow when nothing moved for so long.
    pub(crate) idle: Duration,
    /// Let the program report congestion.
    pub(crate) log_transitions: bool,
}

enum Command {
    Adopt(Legs, Ticket, UnboundedSender<Returned>),
    /// Another idle timeout for flows that come from now on.
    Idle(Duration),
    /// Answer: the controller is alive.
    Ping(oneshot::Sender<()>),
    Stop,
}

impl Limits {
    /// For flows of every kind.
    pub(crate) fn new(flows: u32, budget: u64, idle: Duration) -> Self {
        Self {
            flows,
            budget,
            most: u64::MAX,
            receive_buffer: RECEIVE_BUFFER,
            only_quiet: false,
            recall: None,
            idle,
            log_transitions: false,
        }
    }

    /// The same for flows that leave when they stream: a reader that stalls then costs a fraction of a stream's buffers.
    pub(crate) fn only_quiet(self) -> Self {
        Self { most: 128 << 10, receive_buffer: 128 << 10, only_quiet: true, ..self }
    }
}

/// A way to the controller.
#[derive(Debug, Clone)]
pub(crate) struct Handle {
    commands: mpsc::Sender<Command>,
    wake: Arc<EventFd>,
    counts: Arc<Counts>,
    budget: u64,
    recalls: bool,
}

impl Handle {
    /// Hands a flow over. It ends in the kernel, or comes back through `returns`. The close of its sockets must be an RST,
    /// also that of a killed setu: what was passed on one is not in its own queue, so that `tcp_close` (net/ipv4/tcp.c)
    /// would send a FIN, which the peer would take for the end.
    ///
    /// # Errors
    /// The controller is gone: the flow, untouched.
    pub(crate) fn adopt(
        &self,
        legs: Legs,
        ticket: Ticket,
        returns: UnboundedSender<Returned>,
    ) -> Result<(), (Legs, Ticket)> {
        match self.commands.send(Command::Adopt(legs, ticket, returns)) {
            Ok(()) => {
                self.wake.wake();
                Ok(())
            }
            Err(mpsc::SendError(Command::Adopt(legs, ticket, _))) => Err((legs, ticket)),
            // Nothing else was sent.
            Err(mpsc::SendError(_)) => Ok(()),
        }
    }

    /// A way to a controller that is gone.
    #[cfg(test)]
    pub(crate) fn of_nobody() -> Self {
        let wake = Arc::new(EventFd::new().unwrap());
        Self { commands: mpsc::channel().0, wake, counts: Arc::default(), budget: 0, recalls: false }
    }

    /// What became of flows.
    pub(crate) fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Bytes that all flows together may have on their way.
    pub(crate) fn budget(&self) -> u64 {
        self.budget
    }

    /// Whether flows go to the kernel and back at every chance: only to test that.
    pub(crate) fn recalls(&self) -> bool {
        self.recalls
    }

    /// Flows that come from now on have another idle timeout.
    pub(crate) fn change_idle(&self, idle: Duration) {
        self.tell(Command::Idle(idle));
    }

    /// Ends without an error when the controller is alive.
    pub(crate) async fn ping(&self) -> Result<(), oneshot::error::RecvError> {
        let (answer, answered) = oneshot::channel();
        self.tell(Command::Ping(answer));
        answered.await
    }

    fn tell(&self, command: Command) {
        // An error means that it has ended.
        let _ = self.commands.send(command);
        self.wake.wake();
    }
}

/// The kernel path, ready to go: what needs privileges is done.
pub(crate) struct Loaded {
    controller: controller::Controller,
    handle: Handle,
}

impl Loaded {
    /// Loads the program.
    ///
    /// # Errors
    /// What the kernel refused.
    pub(crate) fn new(limits: Limits) -> Result<Self, StartError> {
        let (commands, receiver) = mpsc::channel();
        let wake = Arc::new(EventFd::new()?);
        let kernel = loader::Kernel::load(&limits)?;
        let counts = Arc::<Counts>::default();
        let controller = controller::Controller::new(kernel, limits, receiver, counts.clone(), &wake)?;
        let Limits { budget, recall, .. } = limits;
        let handle = Handle { commands, wake, counts, budget, recalls: recall.is_some() };
        Ok(Self { controller, handle })
    }

    /// Starts the controller's thread.
    ///
    /// # Errors
    /// Out of threads, or the kernel lets only the privileged change a map: all before Linux 5.19 where
    /// `kernel.unprivileged_bpf_disabled` is set.
    pub(crate) fn start(self) -> Result<Running, StartError> {
        let Self { controller, handle } = self;
        controller.check_access()?;
        let thread = std::thread::Builder::new().name("setu-kernel".into()).spawn(|| controller.run())?;
        Ok(Running { handle, thread: Some(thread) })
    }
}

/// The running controller. Dropping it closes every flow and unloads the program.
#[derive(Debug)]
pub(crate) struct Running {
    handle: Handle,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    /// A way to the controller.
    pub(crate) fn handle(&self) -> Handle {
        self.handle.clone()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.handle.tell(Command::Stop);
        if let Some(thread) = self.thread.take() {
            // A panic of the controller was reported by its thread.
            let _ = thread.join();
        }
    }
}

/// Why the kernel path did not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// The kernel refused a part.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Without privileges maps cannot be changed.
    #[error(
        "this kernel lets only the privileged use eBPF maps, which setu is no longer: {0}; take Linux 5.19 or newer, or \
         sysctl kernel.unprivileged_bpf_disabled=0"
    )]
    Access(#[source] aya::maps::MapError),
    /// Out of descriptors or threads.
    #[error("the controller could not start: {0}")]
    Io(#[from] io::Error),
}
