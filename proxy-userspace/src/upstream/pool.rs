//! The endpoints of one upstream: which of them the next client gets, and which are left alone for a while.
//!
//! An endpoint that fails again and again would cost every client a failed attempt, so it is ejected; the wait before
//! it is tried again grows with each failure. This module decides and does no I/O; time and chance are passed in.
//!
//! ```text
//!        EJECT_AFTER failures in a row             back-off over, and picked
//!   Up ────────────────────────────────► Ejected ────────────────────────────► Probing
//!   ▲                                     ▲  ▲   given up without a verdict     │ │ │
//!   │                                     │  └──────────────────────────────────┘ │ │
//!   │                                     └── failed: a back-off twice as long ───┘ │
//!   └──────────────── connected (from any state, by whomever) ──────────────────────┘
//! ```
//!
//! A client gets the least used of the endpoints that are up. When none is left, a back-off says little: what was ejected
//! long ago may be well by now. So one client at a time probes one that nobody has tried for [`CHECK_PAUSE`], and those
//! that come meanwhile wait a moment for what it finds. The checks of [`super::health`] probe as well.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    sync::Notify,
    time::{Instant as Deadline, timeout_at},
};
use tracing::{info, warn};

use super::status::{EndpointStatus, Standing};
use crate::{account::CloseReason, config::Endpoint};

/// Failures in a row before an endpoint is ejected: one lost SYN must not do it.
const EJECT_AFTER: u32 = 3;
/// The first back-off, and the longest, before jitter.
const BACK_OFF: Duration = Duration::from_secs(1);
const BACK_OFF_MAX: Duration = Duration::from_secs(60);
/// An endpoint that was up for so long starts again with the first back-off; one that flaps does not.
const STEADY: Duration = Duration::from_secs(60);
/// An endpoint with failures behind it is checked after this, not after the whole interval.
const SOON: Duration = Duration::from_secs(2);
/// While no endpoint is up, every one is checked at least this often: clients are being turned away.
const ALL_DOWN: Duration = Duration::from_secs(5);
/// No endpoint that is down is tried more often than this.
const CHECK_PAUSE: Duration = Duration::from_secs(1);
/// How long a client waits for what another one's probe finds: a round trip around the world, and half as much again.
const PROBE_PATIENCE: Duration = Duration::from_millis(500);

/// The endpoints of one upstream, shared by all workers.
#[derive(Debug)]
pub(crate) struct Pool {
    /// The upstream's name.
    name: String,
    /// In the order of the configuration.
    endpoints: Vec<Endpoint>,
    /// One for each endpoint, told when its health has changed.
    changed: Vec<Notify>,
    /// Told of every verdict on an endpoint that was down.
    probed: Notify,
    shared: Mutex<Shared>,
}

#[derive(Debug)]
struct Shared {
    members: Vec<Member>,
    /// Where the next search begins, so that equals take turns.
    turn: usize,
}

/// What is known of one endpoint.
#[derive(Debug, Clone)]
struct Member {
    state: State,
    /// When it last went up or down.
    since: Instant,
    back_off: Duration,
    /// When an attempt last failed.
    failed: Option<Instant>,
    /// Whether it ever answered.
    answered: bool,
    last_error: Option<CloseReason>,
    /// Leases that are out.
    live: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Up { failures: u32 },
    Ejected { until: Instant },
    Probing,
}

/// What a report did to an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    None,
    /// A first failure, or another back-off: the next check is due at another time.
    Worse,
    Down,
    Up,
}

impl Member {
    fn new(now: Instant) -> Self {
        let state = State::Up { failures: 0 };
        Self {
            state,
            since: now,
            back_off: BACK_OFF,
            failed: None,
            answered: false,
            last_error: None,
            live: 0,
        }
    }

    fn is_up(&self) -> bool {
        matches!(self.state, State::Up { .. })
    }

    fn standing(&self) -> Standing {
        match (self.is_up(), self.answered, self.failed) {
            (false, ..) => Standing::Down,
            (true, true, _) => Standing::Up,
            (true, false, None) => Standing::Untried,
            // Nothing speaks for it: it is not ejected yet, but nobody should be told that it answers.
            (true, false, Some(_)) => Standing::Down,
        }
    }

    fn connected(&mut self, now: Instant) -> Change {
        self.answered = true;
        let was_up = self.is_up();
        self.state = State::Up { failures: 0 };
        if was_up {
            return Change::None;
        }
        self.since = now;
        Change::Up
    }

    /// `jitter` is between 0 and 1.
    fn failed(&mut self, reason: CloseReason, now: Instant, jitter: f64) -> Change {
        self.failed = Some(now);
        self.last_error = Some(reason);
        match self.state {
            State::Up { failures } if failures + 1 < EJECT_AFTER => {
                self.state = State::Up { failures: failures + 1 };
                Change::Worse
            }
            State::Up { .. } => {
                let steady = now.saturating_duration_since(self.since) >= STEADY;
                self.back_off = if steady { BACK_OFF } else { self.back_off };
                self.since = now;
                self.eject(now, jitter);
                Change::Down
            }
            // Attempts that began before it was ejected say nothing new.
            State::Ejected { until } if now < until => Change::None,
            State::Ejected { .. } | State::Probing => {
                self.eject(now, jitter);
                Change::Worse
            }
        }
    }

    /// Whether it is down, and was left alone for long enough to be tried when nobody better is left.
    fn may_be_probed(&self, now: Instant) -> bool {
        let rested = self.failed.is_none_or(|failed| failed + CHECK_PAUSE <= now);
        matches!(self.state, State::Ejected { until } if until <= now || rested)
    }

    fn eject(&mut self, now: Instant, jitter: f64) {
        // Endpoints that fell together must not be probed together.
        self.state = State::Ejected { until: now + self.back_off.mul_f64(0.75 + 0.5 * jitter) };
        self.back_off = (self.back_off * 2).min(BACK_OFF_MAX);
    }
}

impl Shared {
    fn pick(&mut self, tried: &[usize], now: Instant) -> Option<(usize, bool)> {
        let count = self.members.len();
        self.turn = self.turn.wrapping_add(1);
        let turn = self.turn;
        let order = || (0..count).map(|step| (turn % count + step) % count).filter(|at| !tried.contains(at));
        let least = order().filter(|at| self.members[*at].is_up()).min_by_key(|at| self.members[*at].live);
        let (at, probe) = match least {
            Some(at) => (at, false),
            None => (order().find(|at| self.members[*at].may_be_probed(now))?, true),
        };
        let member = &mut self.members[at];
        member.live += 1;
        if probe {
            member.state = State::Probing;
        }
        Some((at, probe))
    }

    fn release(&mut self, at: usize, probe: bool, now: Instant) {
        let member = &mut self.members[at];
        member.live -= 1;
        if probe && member.state == State::Probing {
            member.state = State::Ejected { until: now };
        }
    }

    /// When an endpoint that was last checked at `checked` is to be checked again; `interval` has its jitter.
    fn next_check(&self, at: usize, checked: Instant, interval: Duration) -> Instant {
        let due = match self.members[at].state {
            State::Up { failures: 0 } => return checked + interval,
            State::Up { .. } | State::Probing => checked + SOON,
            State::Ejected { until } if self.members.iter().any(Member::is_up) => until,
            State::Ejected { until } => until.min(checked + ALL_DOWN),
        };
        due.max(checked + CHECK_PAUSE).min(checked + interval)
    }
}

impl Pool {
    /// A pool in which nothing is known against anyone.
    pub(crate) fn new(name: String, endpoints: Vec<Endpoint>, now: Instant) -> Arc<Self> {
        let members = vec![Member::new(now); endpoints.len()];
        let changed = endpoints.iter().map(|_| Notify::new()).collect();
        let shared = Mutex::new(Shared { members, turn: 0 });
        Arc::new(Self { name, endpoints, changed, probed: Notify::new(), shared })
    }

    /// The upstream's name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// An endpoint for a client that was not lucky with those in `tried`; `None` when nobody else is left. Where one is
    /// just being probed it waits for that, but not beyond `deadline`.
    pub(crate) async fn lease(self: &Arc<Self>, tried: &[usize], deadline: Deadline) -> Option<Lease> {
        let patience = deadline.min(Deadline::now() + PROBE_PATIENCE);
        loop {
            // It hears of verdicts from now on, so that none between the look and the wait is missed.
            let probed = self.probed.notified();
            if let Some(lease) = self.pick(tried, Instant::now()) {
                return Some(lease);
            }
            if !self.is_probing(tried) || timeout_at(patience, probed).await.is_err() {
                return None;
            }
        }
    }

    /// Whether somebody probes an endpoint that is not in `tried`.
    fn is_probing(&self, tried: &[usize]) -> bool {
        let shared = self.lock();
        let mut members = shared.members.iter().enumerate();
        members.any(|(at, member)| member.state == State::Probing && !tried.contains(&at))
    }

    fn pick(self: &Arc<Self>, tried: &[usize], now: Instant) -> Option<Lease> {
        let (member, probe) = self.lock().pick(tried, now)?;
        Some(Lease { pool: self.clone(), member, probe })
    }

    /// Takes a report about an endpoint: `Err` has the reason for which it could not be reached.
    pub(crate) fn report(&self, member: usize, result: Result<(), CloseReason>, now: Instant) {
        let change = {
            let mut shared = self.lock();
            match result {
                Ok(()) => shared.members[member].connected(now),
                Err(reason) => shared.members[member].failed(reason, now, fastrand::f64()),
            }
        };
        let endpoint = &self.endpoints[member];
        match (change, result) {
            (Change::Down, Err(reason)) => {
                warn!(upstream = self.name, %endpoint, %reason, "endpoint is down")
            }
            (Change::Up, _) => info!(upstream = self.name, %endpoint, "endpoint is up again"),
            _ => {}
        }
        match change {
            Change::None => return,
            Change::Worse | Change::Up => self.changed[member].notify_one(),
            // It may have been the last: then the others are due.
            Change::Down => self.changed.iter().for_each(Notify::notify_one),
        }
        self.probed.notify_waiters();
    }

    /// Ends when the health of an endpoint has changed since the last call.
    pub(crate) async fn changed(&self, member: usize) {
        self.changed[member].notified().await;
    }

    /// See [`Shared::next_check`].
    pub(crate) fn next_check(&self, member: usize, checked: Instant, interval: Duration) -> Instant {
        self.lock().next_check(member, checked, interval)
    }

    /// Whether nobody has heard of an endpoint yet.
    pub(crate) fn is_untried(&self, member: usize) -> bool {
        self.lock().members[member].standing() == Standing::Untried
    }

    /// Whether nothing is known against an endpoint.
    pub(crate) fn is_well(&self, member: usize) -> bool {
        self.lock().members[member].state == State::Up { failures: 0 }
    }

    /// In the order of the configuration.
    pub(crate) fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// What is known of every endpoint.
    pub(crate) fn status(&self) -> Vec<EndpointStatus> {
        let members = self.lock().members.clone();
        let status = |(endpoint, member): (&Endpoint, Member)| EndpointStatus {
            upstream: self.name.clone(),
            endpoint: endpoint.to_string(),
            standing: member.standing(),
            since: member.since,
            last_error: member.last_error,
            connections: member.live,
        };
        self.endpoints.iter().zip(members).map(status).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        // Nothing in here panics half-way through a change.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to connect to one endpoint. It counts as a connection there until it is dropped, so it travels with the
/// connection.
#[derive(Debug)]
pub(crate) struct Lease {
    pool: Arc<Pool>,
    member: usize,
    /// Whether this is the one attempt that an ejected endpoint gets.
    probe: bool,
}

impl Lease {
    /// The endpoint's place in the pool.
    pub(crate) fn member(&self) -> usize {
        self.member
    }

    /// The endpoint.
    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.pool.endpoints[self.member]
    }

    /// The endpoint answered.
    pub(crate) fn connected(&mut self, now: Instant) {
        self.probe = false;
        self.pool.report(self.member, Ok(()), now);
    }

    /// The endpoint could not be reached.
    pub(crate) fn failed(mut self, reason: CloseReason, now: Instant) {
        self.probe = false;
        self.pool.report(self.member, Err(reason), now);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.pool.lock().release(self.member, self.probe, Instant::now());
        if self.probe {
            self.pool.probed.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;
    use crate::config::Host;

    const DOWN: Result<(), CloseReason> = Err(CloseReason::ConnectRefused);

    fn pool(count: u16, now: Instant) -> Arc<Pool> {
        let endpoint = |number| Endpoint { host: Host::Ip(Ipv4Addr::LOCALHOST.into()), port: number + 1 };
        Pool::new("test".into(), (0..count).map(endpoint).collect(), now)
    }

    fn fail(pool: &Pool, member: usize, times: u32, now: Instant) {
        for _ in 0..times {
            pool.report(member, DOWN, now);
        }
    }

    fn until(pool: &Pool, member: usize) -> Option<Instant> {
        match pool.lock().members[member].state {
            State::Ejected { until } => Some(until),
            _ => None,
        }
    }

    #[test]
    fn connections_spread_evenly_and_follow_who_leaves() {
        let now = Instant::now();
        let pool = pool(3, now);
        let mut leases: Vec<_> = (0..30).map(|_| pool.pick(&[], now).unwrap()).collect();
        let live = || pool.status().iter().map(|status| status.connections).collect::<Vec<_>>();
        assert_eq!(live(), [10, 10, 10]);
        leases.retain(|lease| lease.member() != 1);
        assert_eq!(live(), [10, 0, 10]);
        assert!((0..10).map(|_| pool.pick(&[], now).unwrap()).all(|lease| lease.member() == 1));
    }

    #[test]
    fn who_fails_repeatedly_is_left_alone_and_comes_back() {
        let now = Instant::now();
        let pool = pool(2, now);
        fail(&pool, 0, EJECT_AFTER - 1, now);
        pool.report(0, Ok(()), now);
        fail(&pool, 0, EJECT_AFTER - 1, now);
        assert_eq!(until(&pool, 0), None, "not in a row");
        fail(&pool, 0, 1, now);
        let back = until(&pool, 0).unwrap();
        assert!(pool.pick(&[1], now).is_none());
        // Another one is up: nobody is sent there even when the back-off is over.
        assert_eq!(pool.pick(&[], back).unwrap().member(), 1);
        let mut probe = pool.pick(&[1], back).unwrap();
        assert!(pool.pick(&[1], back).is_none(), "one probes at a time");
        probe.connected(back);
        assert!(pool.pick(&[1], back).is_some());
        assert_eq!(pool.status()[0].standing, Standing::Up);
        assert_eq!(pool.status()[0].since, back);
    }

    #[test]
    fn when_the_last_one_falls_a_back_off_holds_nobody_up() {
        let now = Instant::now();
        let pool = pool(2, now);
        fail(&pool, 0, EJECT_AFTER, now);
        for _ in 0..8 {
            let back = until(&pool, 0).unwrap();
            fail(&pool, 0, 1, back);
        }
        let now = until(&pool, 0).unwrap() - BACK_OFF_MAX / 2;
        assert_eq!(pool.pick(&[], now).unwrap().member(), 1);
        fail(&pool, 1, EJECT_AFTER, now);
        assert!(pool.pick(&[0], now).is_none(), "it has just failed");
        let mut probe = pool.pick(&[], now).unwrap();
        assert_eq!(probe.member(), 0);
        assert!(pool.pick(&[], now).is_none(), "one probes at a time");
        probe.connected(now);
        assert_eq!(pool.pick(&[], now).unwrap().member(), 0);
    }

    #[tokio::test]
    async fn clients_wait_for_what_a_probe_finds() {
        let pool = pool(1, Instant::now());
        fail(&pool, 0, EJECT_AFTER, Instant::now() - CHECK_PAUSE);
        let deadline = Deadline::now() + Duration::from_secs(5);
        for well in [false, true] {
            let mut probe = pool.lease(&[], deadline).await.unwrap();
            let (lease, ()) = tokio::join!(pool.lease(&[], deadline), async {
                tokio::time::sleep(PROBE_PATIENCE / 20).await;
                if well {
                    probe.connected(Instant::now());
                } else {
                    // Given up: its turn is the next one's.
                    drop(probe);
                }
            });
            assert_eq!(lease.unwrap().probe, !well);
        }
        fail(&pool, 0, EJECT_AFTER, Instant::now() - CHECK_PAUSE);
        let _silent = pool.lease(&[], deadline).await.unwrap();
        let before = Instant::now();
        assert!(pool.lease(&[0], deadline).await.is_none(), "there is nothing to wait for");
        assert!(pool.lease(&[], deadline).await.is_none());
        assert!(before.elapsed() >= PROBE_PATIENCE);
    }

    #[test]
    fn a_probe_that_is_given_up_can_be_had_again() {
        let now = Instant::now();
        let pool = pool(1, now);
        fail(&pool, 0, EJECT_AFTER, now);
        drop(pool.pick(&[], until(&pool, 0).unwrap()).unwrap());
        let probe = pool.pick(&[], Instant::now()).unwrap();
        probe.failed(CloseReason::ConnectTimeout, now);
        assert!(pool.pick(&[], now).is_none());
        assert_eq!(pool.status()[0].last_error, Some(CloseReason::ConnectTimeout));
        assert_eq!(pool.status()[0].connections, 0);
    }

    #[test]
    fn the_back_off_grows_through_flapping_and_is_forgiven_by_steadiness() {
        let mut now = Instant::now();
        let pool = pool(1, now);
        let mut longest = Duration::ZERO;
        for _ in 0..12 {
            fail(&pool, 0, EJECT_AFTER, now);
            let pause = until(&pool, 0).unwrap() - now;
            assert!(pause >= longest.min(BACK_OFF_MAX.mul_f64(0.75)).mul_f64(0.9), "{pause:?} {longest:?}");
            assert!(pause <= BACK_OFF_MAX.mul_f64(1.25));
            longest = longest.max(pause);
            now += pause;
            pool.report(0, Ok(()), now);
        }
        assert!(longest >= BACK_OFF_MAX.mul_f64(0.75), "{longest:?}");
        now += STEADY;
        fail(&pool, 0, EJECT_AFTER, now);
        assert!(until(&pool, 0).unwrap() <= now + BACK_OFF.mul_f64(1.25));
    }

    #[test]
    fn who_has_only_failed_is_not_said_to_answer() {
        let now = Instant::now();
        let pool = pool(1, now);
        let standing = || pool.status()[0].standing;
        assert_eq!(standing(), Standing::Untried);
        fail(&pool, 0, 1, now);
        assert_eq!(standing(), Standing::Down);
        assert!(pool.pick(&[], now).is_some_and(|lease| !lease.probe), "clients are still sent there");
        pool.report(0, Ok(()), now);
        fail(&pool, 0, EJECT_AFTER - 1, now);
        assert_eq!(standing(), Standing::Up);
    }

    #[test]
    fn late_failures_of_old_attempts_do_not_prolong_the_back_off() {
        let now = Instant::now();
        let pool = pool(1, now);
        fail(&pool, 0, EJECT_AFTER, now);
        let before = until(&pool, 0);
        fail(&pool, 0, 100, now);
        assert_eq!(until(&pool, 0), before);
    }

    #[test]
    fn checks_come_sooner_for_the_sick() {
        let now = Instant::now();
        let pool = pool(2, now);
        let interval = Duration::from_secs(60);
        assert_eq!(pool.next_check(0, now, interval), now + interval);
        fail(&pool, 0, 1, now);
        assert_eq!(pool.next_check(0, now, interval), now + SOON);
        fail(&pool, 0, EJECT_AFTER, now);
        let back = until(&pool, 0).unwrap();
        assert_eq!(pool.next_check(0, now, interval), back.max(now + CHECK_PAUSE));
        for _ in 0..8 {
            let back = until(&pool, 0).unwrap();
            fail(&pool, 0, 1, back);
        }
        let checked = until(&pool, 0).unwrap() - Duration::from_secs(30);
        assert_eq!(pool.next_check(0, checked, interval), checked + Duration::from_secs(30));
        fail(&pool, 1, EJECT_AFTER, checked);
        assert_eq!(pool.next_check(0, checked, interval), checked + ALL_DOWN);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Pick,
        Connect(usize),
        Fail(usize),
        Drop(usize),
        Check(usize, bool),
        Wait(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => Just(Step::Pick),
            2 => any::<usize>().prop_map(Step::Connect),
            2 => any::<usize>().prop_map(Step::Fail),
            2 => any::<usize>().prop_map(Step::Drop),
            2 => (0..3_usize, any::<bool>()).prop_map(|(member, well)| Step::Check(member, well)),
            1 => (0..40_000_u64).prop_map(Step::Wait),
        ];
        prop::collection::vec(step, 1..200)
    }

    proptest! {
        /// Whatever happens: leases are counted, a healthy endpoint is always found, and so is one after the longest
        /// back-off.
        #[test]
        fn nobody_is_lost(steps in steps()) {
            let mut now = Instant::now();
            let pool = pool(3, now);
            let mut leases: Vec<Lease> = Vec::new();
            for step in steps {
                let some = |at: usize, leases: &mut Vec<Lease>| {
                    (!leases.is_empty()).then(|| leases.swap_remove(at % leases.len()))
                };
                match step {
                    Step::Pick => leases.extend(pool.pick(&[], now)),
                    Step::Connect(at) => {
                        if let Some(mut lease) = some(at, &mut leases) {
                            lease.connected(now);
                            leases.push(lease);
                        }
                    }
                    Step::Fail(at) => {
                        if let Some(lease) = some(at, &mut leases) {
                            lease.failed(CloseReason::ConnectTimeout, now);
                        }
                    }
                    Step::Drop(at) => drop(some(at, &mut leases)),
                    Step::Check(member, well) => pool.report(member, if well { Ok(()) } else { DOWN }, now),
                    Step::Wait(milliseconds) => now += Duration::from_millis(milliseconds),
                }
                let status = pool.status();
                prop_assert_eq!(status.iter().map(|status| status.connections).sum::<usize>(), leases.len());
                let up: Vec<_> = (0..3).filter(|at| pool.lock().members[*at].is_up()).collect();
                match pool.pick(&[], now) {
                    Some(lease) => prop_assert!(up.is_empty() || up.contains(&lease.member())),
                    None => prop_assert!(up.is_empty(), "an endpoint is up and nobody gets it"),
                }
            }
            drop(leases);
            // Leases given up are probed again at once by the clock of the machine, which may be behind `now`.
            let later = now.max(Instant::now()) + BACK_OFF_MAX * 2;
            prop_assert!(pool.pick(&[], later).is_some());
        }
    }
}
