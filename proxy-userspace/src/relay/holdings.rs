//! What the flows in userspace hold of the memory, and who goes when that is too much.
//!
//! A flow may hold a megabyte while its reader stalls, and a machine has not so many as it may have connections. So a
//! flow that moves more than messages is accounted: at what its buffers may come to while it moves, at what the kernel
//! says that it holds once it moves no more. That is looked at once a second; what grows is added at once.
//!
//! ```text
//!            16 KiB moved                        a look: next to nothing is held
//!  not accounted ──▶ accounted, until a look finds that it holds next to nothing ──▶ not accounted
//!                        │ all flows together hold more than there is for them, and this one stalls
//!                        ▼ and would take the longest to get rid of the most
//!                     reset
//! ```
//! Beyond the first bound ([`Bounds::soft`]) no flow gets larger buffers, and flows go that have stalled for a while:
//! [`STALLED`]. Beyond the second one goes at once, however short its stall. A flow that only exchanges messages is never
//! accounted, and never goes.

use std::{
    collections::HashMap,
    sync::{
        Arc, LazyLock, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Waker},
    time::Instant,
};

/// Bytes that a flow moves before it is accounted: what it holds until then is reckoned with the connection itself
/// (`serve/capacity.rs`).
const MESSAGES: u64 = 16 * 1024;
/// A flow that moves less than [`MESSAGES`] from one look to the next and holds no more than this is not accounted any
/// more, bytes.
const LITTLE: u64 = 64 * 1024;
/// A flow moves as long as it moves one part in so many of what it holds from one look to the next.
const PART: u64 = 4;
/// A flow stalls that has not moved so much for so long, and at the rate at which it moved meanwhile would hold what it
/// holds for longer than that, milliseconds.
const STALLED: u64 = 1_000;
const SLOW: u128 = 10_000;
/// At which rate who has shown none yet is taken to read, bytes a second; and who was accounted before, and held nothing
/// when he was looked at.
const UNKNOWN: u64 = 16 * 1024;
const KNOWN: u64 = 256 * 1024;

static HOLDINGS: LazyLock<Holdings> = LazyLock::new(Holdings::default);
/// From when on time is counted.
static BEGIN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// What all flows in userspace together may hold, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Beyond it flows go that stall.
    pub(crate) soft: u64,
    /// Beyond it one goes at once.
    pub(crate) hard: u64,
}

/// Sets the bounds of the process; before that there are none.
pub(crate) fn allow(bounds: Bounds) {
    HOLDINGS.lock().bounds = bounds;
}

/// Whether a flow may have larger buffers than it had to begin with.
pub(super) fn may_widen() -> bool {
    let accounts = HOLDINGS.lock();
    accounts.total <= accounts.bounds.soft
}

#[derive(Debug, Default)]
struct Holdings(Mutex<Accounts>);

#[derive(Debug)]
struct Accounts {
    bounds: Bounds,
    /// What all of `entries` hold together, bytes.
    total: u64,
    /// By number.
    entries: HashMap<u64, Entry>,
    next: u64,
}

/// A flow that is accounted.
#[derive(Debug)]
struct Entry {
    bytes: u64,
    /// When it was seen to move last, and how much it had moved by then; at the beginning, how much it will have moved once
    /// its buffers are full, which is no reading.
    since: u64,
    seen: u64,
    /// At which rate it moved before that, bytes a second.
    rate: u64,
    flow: Arc<Flow>,
}

/// What its task and the others know of it.
#[derive(Debug)]
struct Flow {
    /// Bytes that it has moved in all.
    moved: AtomicU64,
    /// It must go.
    condemned: AtomicBool,
    waker: Waker,
}

/// A flow's account. Dropping it closes it.
#[derive(Debug, Default)]
pub(super) struct Holding {
    open: Option<Opened>,
    /// Bytes that the flow had moved when it was closed last.
    settled: u64,
}

#[derive(Debug)]
struct Opened {
    number: u64,
    flow: Arc<Flow>,
    /// As of the last change.
    bytes: u64,
}

impl Holding {
    /// Opens the account of a flow that holds so many bytes already.
    pub(super) fn open(&mut self, cx: &Context<'_>, moved: u64, bytes: u64) {
        if self.open.is_none() {
            let waker = cx.waker().clone();
            let flow = Arc::new(Flow { moved: moved.into(), condemned: false.into(), waker });
            let is_known = self.settled > 0;
            let number = HOLDINGS.lock().open(flow.clone(), bytes, is_known, now());
            self.open = Some(Opened { number, flow, bytes });
        }
    }

    /// Takes note of what a flow has moved in all, and of what its buffers may come to while it moves. Returns whether it
    /// must go.
    pub(super) fn note(&mut self, cx: &Context<'_>, moved: u64, allowance: u64) -> bool {
        let Some(opened) = &mut self.open else {
            if moved - self.settled >= MESSAGES {
                self.open(cx, moved, allowance);
            }
            return false;
        };
        let before = opened.flow.moved.swap(moved, Ordering::Relaxed);
        if moved > before && opened.bytes < allowance {
            opened.bytes = allowance;
            HOLDINGS.lock().set(opened.number, allowance, now());
        }
        opened.flow.condemned.load(Ordering::Relaxed)
    }

    /// Whether the flow is to be looked at once a second.
    pub(super) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// The look: what the flow holds indeed, and what it may come to hold if it moves.
    pub(super) fn look(&mut self, held: u64, allowance: u64) {
        let Some(opened) = &mut self.open else { return };
        let moved = opened.flow.moved.load(Ordering::Relaxed);
        match HOLDINGS.lock().look(opened.number, held, allowance, now()) {
            Some(bytes) => opened.bytes = bytes,
            None => {
                self.settled = moved;
                self.open = None;
            }
        }
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        if let Some(opened) = self.open.take() {
            HOLDINGS.lock().close(opened.number);
        }
    }
}

impl Holdings {
    fn lock(&self) -> MutexGuard<'_, Accounts> {
        // Nothing in here panics half-way through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Accounts {
    fn default() -> Self {
        let bounds = Bounds { soft: u64::MAX, hard: u64::MAX };
        Self { bounds, total: 0, entries: HashMap::new(), next: 0 }
    }
}

impl Accounts {
    fn open(&mut self, flow: Arc<Flow>, bytes: u64, is_known: bool, now: u64) -> u64 {
        let number = self.next;
        self.next += 1;
        let moved = flow.moved.load(Ordering::Relaxed);
        let (seen, rate) = if is_known { (moved, KNOWN) } else { (moved + bytes, UNKNOWN) };
        self.total += bytes;
        self.entries.insert(number, Entry { bytes, since: now, seen, rate, flow });
        self.relieve(now);
        number
    }

    fn close(&mut self, number: u64) {
        if let Some(entry) = self.entries.remove(&number) {
            self.total -= entry.bytes;
        }
    }

    fn set(&mut self, number: u64, bytes: u64, now: u64) {
        // One that must go has no entry any more.
        let Some(entry) = self.entries.get_mut(&number) else { return };
        self.total = self.total - entry.bytes + bytes;
        entry.bytes = bytes;
        self.relieve(now);
    }

    /// What the flow is accounted at from now on; `None`: not at all.
    fn look(&mut self, number: u64, held: u64, allowance: u64, now: u64) -> Option<u64> {
        let Some(entry) = self.entries.get_mut(&number) else { return Some(held) };
        let moved = entry.flow.moved.load(Ordering::Relaxed);
        let progress = moved.saturating_sub(entry.seen);
        let moves = progress > 0 && progress >= held / PART;
        if moves {
            entry.rate = progress * 1_000 / now.saturating_sub(entry.since).max(1);
            (entry.seen, entry.since) = (moved, now);
        }
        if held <= LITTLE && progress < MESSAGES {
            self.close(number);
            return None;
        }
        let bytes = if moves { held.max(allowance) } else { held };
        self.set(number, bytes, now);
        Some(bytes)
    }

    /// Has flows go until there is room again, or none is left that should.
    fn relieve(&mut self, now: u64) {
        while self.total > self.bounds.soft {
            let urgent = self.total > self.bounds.hard;
            let candidates = self.entries.iter().filter(|(_, entry)| urgent || entry.stalls(now));
            let worst =
                candidates.filter(|(_, entry)| entry.bytes > 0).max_by_key(|(_, entry)| entry.lasts(now));
            let Some((number, entry)) = worst else { return };
            let (number, flow) = (*number, entry.flow.clone());
            self.close(number);
            flow.condemned.store(true, Ordering::Relaxed);
            flow.waker.wake_by_ref();
        }
    }
}

impl Entry {
    fn progress(&self) -> u64 {
        self.flow.moved.load(Ordering::Relaxed).saturating_sub(self.seen)
    }

    fn stalls(&self, now: u64) -> bool {
        let time = now.saturating_sub(self.since);
        time >= STALLED && lasts(self.bytes, time, self.progress()) >= SLOW
    }

    /// How long it would take to get rid of what it holds, milliseconds: at the rate of lately, which for who has just been
    /// looked at is that of before, and for who stalls is not.
    fn lasts(&self, now: u64) -> u128 {
        let before = if self.stalls(now) { 0 } else { STALLED };
        let time = now.saturating_sub(self.since) + before;
        let moved = self.progress() + self.rate * before / 1_000;
        lasts(self.bytes, time, moved)
    }
}

/// How long bytes last for who moved so many in so many milliseconds.
fn lasts(bytes: u64, time: u64, moved: u64) -> u128 {
    u128::from(bytes) * u128::from(time.max(1)) / u128::from(moved + 1)
}

/// Milliseconds since [`BEGIN`].
fn now() -> u64 {
    u64::try_from(BEGIN.elapsed().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KIB: u64 = 1024;

    fn accounts(soft: u64, hard: u64) -> Accounts {
        Accounts { bounds: Bounds { soft, hard }, ..Accounts::default() }
    }

    fn flow() -> Arc<Flow> {
        Arc::new(Flow { moved: 0.into(), condemned: false.into(), waker: Waker::noop().clone() })
    }

    fn must_go(flow: &Flow) -> bool {
        flow.condemned.load(Ordering::Relaxed)
    }

    fn moves(flow: &Flow, bytes: u64) {
        flow.moved.fetch_add(bytes, Ordering::Relaxed);
    }

    #[test]
    fn the_one_that_stalls_with_the_most_goes_first() {
        let mut accounts = accounts(1000 * KIB, 10_000 * KIB);
        let flows = [(); 4].map(|()| flow());
        let mut numbers = [0; 4];
        for (at, kib) in [300, 500, 100, 50].into_iter().enumerate() {
            numbers[at] = accounts.open(flows[at].clone(), kib * KIB, true, 0);
        }
        // The largest reads on.
        moves(&flows[1], 200 * KIB);
        accounts.look(numbers[1], 500 * KIB, 500 * KIB, 1_500);
        let late = flow();
        accounts.open(late.clone(), 200 * KIB, true, 2_000);
        assert_eq!(flows.each_ref().map(|flow| must_go(flow)), [true, false, false, false]);
        assert_eq!(accounts.total, 850 * KIB);
        // Nothing comes of it that it is told to go twice, or speaks of itself meanwhile.
        accounts.set(numbers[0], 5_000 * KIB, 2_000);
        assert_eq!(accounts.look(numbers[0], 1, 1, 2_000), Some(1));
        accounts.close(numbers[0]);
        assert_eq!(accounts.total, 850 * KIB);
    }

    #[test]
    fn short_stalls_are_spared_until_it_is_urgent() {
        let mut accounts = accounts(1000 * KIB, 1500 * KIB);
        let flows: Vec<_> = (0..16).map(|_| flow()).collect();
        for flow in &flows[..14] {
            accounts.open(flow.clone(), 100 * KIB, true, 0);
        }
        // All of them are young, one has moved on.
        moves(&flows[0], 300 * KIB);
        assert!(!flows.iter().any(|flow| must_go(flow)));
        accounts.open(flows[14].clone(), 100 * KIB, true, 20);
        assert!(!flows.iter().any(|flow| must_go(flow)));
        accounts.open(flows[15].clone(), 100 * KIB, true, 20);
        assert_eq!(flows.iter().filter(|flow| must_go(flow)).count(), 1);
        assert!(!must_go(&flows[0]) && !must_go(&flows[15]));
        assert_eq!(accounts.total, 1500 * KIB);
    }

    #[test]
    fn who_holds_little_and_moves_nothing_is_not_accounted() {
        let mut accounts = accounts(1000 * KIB, 1500 * KIB);
        let flow = flow();
        let number = accounts.open(flow.clone(), 384 * KIB, true, 0);
        moves(&flow, MESSAGES);
        assert_eq!(accounts.look(number, 0, 384 * KIB, 1_000), Some(384 * KIB), "it moves");
        moves(&flow, KIB);
        assert_eq!(accounts.look(number, 100 * KIB, 384 * KIB, 2_000), Some(100 * KIB));
        assert_eq!(accounts.look(number, LITTLE, 384 * KIB, 3_000), None);
        assert_eq!((accounts.total, accounts.entries.len()), (0, 0));
    }

    /// To fill buffers is no reading: who came last, and many of them, do not have those go who read all the time.
    #[test]
    fn readers_stay_when_many_come_who_read_little() {
        let mut accounts = accounts(42 * 1024 * KIB, 64 * 1024 * KIB);
        let readers: Vec<_> = (0..10).map(|_| flow()).collect();
        let trickles: Vec<_> = (0..400).map(|_| flow()).collect();
        let numbers: Vec<_> =
            readers.iter().map(|flow| accounts.open(flow.clone(), 384 * KIB, false, 0)).collect();
        let mut open: Vec<Option<u64>> = vec![None; trickles.len()];
        for tick in 1..240_u64 {
            let now = tick * 100;
            for (at, reader) in readers.iter().enumerate() {
                moves(reader, 25 * KIB);
                if tick % 10 == at as u64 {
                    accounts.look(numbers[at], 300 * KIB, 384 * KIB, now);
                }
            }
            if tick < 40 {
                continue;
            }
            for (at, trickle) in trickles.iter().enumerate() {
                match open[at] {
                    // It has filled its buffers by the time of the next tick.
                    None if !must_go(trickle) => {
                        open[at] = Some(accounts.open(trickle.clone(), 384 * KIB, false, now));
                        moves(trickle, 384 * KIB);
                    }
                    Some(number) => {
                        moves(trickle, KIB + KIB / 2);
                        if tick % 10 == at as u64 % 10 {
                            accounts.look(number, 300 * KIB, 384 * KIB, now);
                        }
                    }
                    None => {}
                }
            }
        }
        assert_eq!(readers.iter().filter(|flow| must_go(flow)).count(), 0);
        assert!(trickles.iter().filter(|flow| must_go(flow)).count() > 200);
        assert!(accounts.total <= 64 * 1024 * KIB);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Open(u64),
        Close(usize),
        Set(usize, u64),
        Look(usize, u64),
        Move(usize, u64),
        Wait(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let bytes = || 0..3000 * KIB;
        prop_oneof![
            bytes().prop_map(Step::Open),
            (0usize..64).prop_map(Step::Close),
            (0usize..64, bytes()).prop_map(|(at, bytes)| Step::Set(at, bytes)),
            (0usize..64, bytes()).prop_map(|(at, bytes)| Step::Look(at, bytes)),
            (0usize..64, bytes()).prop_map(|(at, bytes)| Step::Move(at, bytes)),
            (1u64..3_000).prop_map(Step::Wait),
        ]
    }

    proptest! {
        /// The sum is that of the entries, nobody is lost, and what grows beyond the bound makes somebody go who can.
        #[test]
        fn the_sum_is_kept(steps in prop::collection::vec(step(), 1..200)) {
            let mut accounts = accounts(4000 * KIB, 6000 * KIB);
            let mut open: Vec<(u64, Arc<Flow>)> = Vec::new();
            let mut now = 0;
            for step in steps {
                let grows = matches!(step, Step::Open(_));
                let at = |at: usize| open.get(at % open.len().max(1)).cloned();
                match step {
                    Step::Wait(time) => now += time,
                    Step::Open(bytes) => {
                        let flow = flow();
                        open.push((accounts.open(flow.clone(), bytes, true, now), flow));
                    }
                    Step::Close(index) => if let Some((number, _)) = at(index) {
                        accounts.close(number);
                        open.retain(|(other, _)| *other != number);
                    },
                    Step::Set(index, bytes) => if let Some((number, _)) = at(index) {
                        accounts.set(number, bytes, now);
                    },
                    Step::Look(index, bytes) => if let Some((number, _)) = at(index)
                        && accounts.look(number, bytes, bytes, now).is_none() {
                        open.retain(|(other, _)| *other != number);
                    },
                    Step::Move(index, bytes) => if let Some((_, flow)) = at(index) {
                        moves(&flow, bytes);
                    },
                }
                prop_assert_eq!(accounts.total, accounts.entries.values().map(|entry| entry.bytes).sum::<u64>());
                for (number, flow) in &open {
                    prop_assert_eq!(must_go(flow), !accounts.entries.contains_key(number));
                }
                if grows && accounts.total > 6000 * KIB {
                    prop_assert!(accounts.entries.values().all(|entry| entry.bytes == 0));
                }
            }
        }
    }
}
