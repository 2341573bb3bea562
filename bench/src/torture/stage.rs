//! What the threads of a round share: its flows, what became of them, and when they must end.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::watch;

use super::{
    conditions::Conditions,
    judge::{BySide, Outcome},
    plan::{Plan, Role},
};

/// No time.
const NEVER: u64 = u64::MAX;

/// A flow, and what its ends saw.
pub(crate) struct Flow {
    pub(crate) plan: Plan,
    outcomes: BySide<Mutex<Option<Outcome>>>,
    /// Whether a server has it.
    served: AtomicBool,
    /// When a peer reset it, microseconds from the beginning.
    reset: AtomicU64,
}

/// All of a round's flows.
pub(crate) struct Stage {
    begun: Instant,
    pub(crate) flows: Vec<Flow>,
    /// When an end of any flow last read something, microseconds from the beginning.
    moved: AtomicU64,
    /// Connections at a server that are no flow's.
    strays: Mutex<Vec<String>>,
    over: watch::Sender<bool>,
    /// The endpoint that died.
    dead: watch::Sender<Option<usize>>,
}

impl Stage {
    pub(crate) fn new(conditions: &Conditions) -> Self {
        let flow = |number| Flow {
            plan: Plan::draw(conditions, number),
            outcomes: BySide::default(),
            served: AtomicBool::new(false),
            reset: AtomicU64::new(NEVER),
        };
        Self {
            begun: Instant::now(),
            flows: (0..conditions.flows).map(flow).collect(),
            moved: AtomicU64::new(0),
            strays: Mutex::default(),
            over: watch::Sender::new(false),
            dead: watch::Sender::new(None),
        }
    }

    /// Since the beginning.
    pub(crate) fn time(&self) -> Duration {
        self.begun.elapsed()
    }

    /// An end has read something.
    pub(crate) fn moves(&self) {
        self.moved.store(self.time().as_micros() as u64, Ordering::Relaxed);
    }

    /// Since when no end of any flow has read anything.
    pub(crate) fn still(&self) -> Duration {
        self.time().saturating_sub(Duration::from_micros(self.moved.load(Ordering::Relaxed)))
    }

    /// A peer is about to reset a flow.
    pub(crate) fn resets(&self, flow: &Flow) {
        flow.reset.fetch_min(self.time().as_micros() as u64, Ordering::Relaxed);
    }

    /// A connection came to a server that is no flow's, or that of one which has its server.
    pub(crate) fn stray(&self, what: String) {
        locked(&self.strays).push(what);
    }

    pub(crate) fn strays(&self) -> Vec<String> {
        locked(&self.strays).clone()
    }

    /// Whether both ends of all flows have ended.
    pub(crate) fn is_over(&self) -> bool {
        self.flows.iter().all(|flow| {
            let ended = |role| flow.outcome(role).is_some();
            ended(Role::Client) && (ended(Role::Server) || !flow.served.load(Ordering::Acquire))
        })
    }

    /// All ends that are still there give up.
    pub(crate) fn give_up(&self) {
        self.over.send_replace(true);
    }

    /// Waits until it is time to give up.
    pub(crate) async fn given_up(&self) {
        // The sender is this stage's own.
        let _ = self.over.subscribe().wait_for(|over| *over).await;
    }

    /// An endpoint dies.
    pub(crate) fn kill(&self, endpoint: usize) {
        self.dead.send_replace(Some(endpoint));
    }

    /// Waits until an endpoint has died.
    pub(crate) async fn died(&self, endpoint: usize) {
        let _ = self.dead.subscribe().wait_for(|dead| *dead == Some(endpoint)).await;
    }
}

impl Flow {
    /// Takes its server's place; it has only one.
    pub(crate) fn serve(&self) -> bool {
        !self.served.swap(true, Ordering::AcqRel)
    }

    pub(crate) fn ended(&self, role: Role, outcome: Outcome) {
        *locked(self.outcomes.of(role)) = Some(outcome);
    }

    pub(crate) fn outcome(&self, role: Role) -> Option<Outcome> {
        locked(self.outcomes.of(role)).clone()
    }

    /// When a peer reset it.
    pub(crate) fn reset(&self) -> Option<Duration> {
        Some(self.reset.load(Ordering::Relaxed)).filter(|at| *at != NEVER).map(Duration::from_micros)
    }
}

/// What is behind stays whole when a thread panics: each change is one assignment.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
