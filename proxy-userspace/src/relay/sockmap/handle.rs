//! The way to the controller: from loading it to its end.

use std::{
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::Duration,
};

use tokio::sync::{mpsc::UnboundedSender, oneshot};

use super::{
    command::{Command, Legs, Returned},
    controller::Controller,
    counts::Counts,
    limits::Limits,
    loader::{Kernel, StartError},
};
use crate::{account::Ticket, sys::EventFd};

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
    pub(super) controller: Controller,
    pub(super) handle: Handle,
}

impl Loaded {
    /// Loads the program.
    ///
    /// # Errors
    /// What the kernel refused.
    pub(crate) fn new(limits: Limits) -> Result<Self, StartError> {
        let (commands, receiver) = mpsc::channel();
        let wake = Arc::new(EventFd::new()?);
        let kernel = Kernel::load(&limits)?;
        let counts = Arc::<Counts>::default();
        let controller = Controller::new(kernel, limits, receiver, counts.clone(), &wake)?;
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
