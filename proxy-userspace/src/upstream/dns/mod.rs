//! Names into addresses, without glibc: a static build resolves as any other.
//!
//! Connections must not wait for a resolver, nor fall with it. So the names of the configuration are looked up before
//! they expire, and an answer stays in use when no better one comes (RFC 8767): not after a silence, and not after a
//! "no such name" either, because that is what censors answer. Names that clients ask for are looked up when they are
//! asked for; there is room for a bounded number of them.
//!
//! One task ([`run`]) asks; workers read what it knows, and wait for it only when nothing is known.

mod answer;
mod entry;
mod resolver;
mod servers;
mod system;

use std::{
    collections::{HashMap, hash_map},
    mem,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    sync::{mpsc, oneshot},
    task::{Id, JoinSet},
    time::{interval, sleep_until, timeout},
};
use tracing::{debug, info, warn};

pub(crate) use answer::NameFailure;

use super::{destinations::Destinations, happy_eyeballs::alternate};
use answer::{Addresses, Answer, Found};
use entry::{Entry, Known, TTL_MAX};
use resolver::Resolver;
use system::Files;

/// How long a client waits for a fresh answer when there is a stale one (RFC 8767, section 5).
const STALE_WAIT: Duration = Duration::from_millis(1_800);
/// Names that are remembered, and lookups for clients at the same time.
const NAMES_MAX: usize = 4_096;
const LOOKUPS_MAX: usize = 256;
/// How often it is looked whether the system's files have changed.
const LOOK: Duration = Duration::from_secs(2);
/// Addresses of a name that are of use, of both families alike.
const ADDRESSES_MAX: usize = 16;

/// What is known of names, shared by all workers.
#[derive(Debug)]
pub(crate) struct Names {
    table: Mutex<HashMap<Arc<str>, Entry>>,
    requests: mpsc::UnboundedSender<Request>,
    failures: [AtomicU64; NameFailure::ALL.len()],
    stale: AtomicU64,
}

/// A name to look up now. As many can wait as there are connections.
#[derive(Debug)]
pub(crate) struct Request {
    name: Arc<str>,
    answer: oneshot::Sender<Answer>,
}

impl Names {
    /// Nothing is known yet, and nothing will be until [`run`] gets the receiver.
    pub(crate) fn new(
        configured: impl Iterator<Item = String>,
        now: Instant,
    ) -> (Self, mpsc::UnboundedReceiver<Request>) {
        let (requests, receiver) = mpsc::unbounded_channel();
        let table = configured.map(|name| (key(&name), Entry::new(true, now))).collect();
        let names = Self {
            table: Mutex::new(table),
            requests,
            failures: Default::default(),
            stale: AtomicU64::new(0),
        };
        (names, receiver)
    }

    /// Takes over what `before` knows and has counted, so that another configuration serves at once, and needs no resolver
    /// for names that both have. They are looked up again all the same: that is what operators reload for. Failures are not
    /// among that: the configuration may have changed what was their cause.
    pub(crate) fn inherit(&self, before: &Self) {
        let mut table = self.lock();
        let known = before.lock();
        for (name, entry) in table.iter_mut() {
            if let Some(known) = known.get(name) {
                *entry =
                    Entry { configured: entry.configured, doubted: true, failure: None, ..known.clone() };
            }
        }
        for (failures, before) in self.failures.iter().zip(&before.failures) {
            failures.store(before.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        self.stale.store(before.stale(), Ordering::Relaxed);
    }

    /// The addresses of a name; at least one.
    ///
    /// # Errors
    /// Why there is none. It waits as long as lookups do: bound it by a timeout.
    pub(crate) async fn addresses(&self, name: &str) -> Answer {
        let name = key(name);
        match self.known(&name, Instant::now()) {
            Known::Fresh(addresses) => Ok(addresses),
            Known::Failed(failure) => Err(failure),
            Known::Nothing => self.ask(name).await,
            Known::Stale { addresses, ask } => {
                if ask && let Ok(Ok(fresh)) = timeout(STALE_WAIT, self.ask(name)).await {
                    return Ok(fresh);
                }
                self.stale.fetch_add(1, Ordering::Relaxed);
                Ok(addresses)
            }
        }
    }

    /// Looks a name up again whose servers do not answer: they may have moved. Not at once again after the last time.
    pub(crate) async fn renew(&self, name: &str) {
        let name = key(name);
        let now = Instant::now();
        let due = self.lock().get(&name).is_none_or(|entry| entry.may_renew(now));
        if due {
            // Without a better answer the old one serves on.
            let _ = self.ask(name).await;
        }
    }

    fn is_configured(&self, name: &str) -> bool {
        self.lock().get(name).is_some_and(|entry| entry.configured)
    }

    /// Has all names looked up again: whom to ask, or what the hosts file says, has changed.
    fn doubt(&self) {
        for entry in self.lock().values_mut() {
            entry.doubted = true;
            if let Some((_, until, _)) = &mut entry.failure {
                *until = (*until).min(Instant::now());
            }
        }
    }

    /// Lookups that failed for this reason.
    pub(crate) fn failures(&self, failure: NameFailure) -> u64 {
        self.failures[failure as usize].load(Ordering::Relaxed)
    }

    /// Connections that got an answer past its time.
    pub(crate) fn stale(&self) -> u64 {
        self.stale.load(Ordering::Relaxed)
    }

    fn known(&self, name: &Arc<str>, now: Instant) -> Known {
        self.lock().get_mut(name).map_or(Known::Nothing, |entry| {
            entry.used = now;
            entry.known(now)
        })
    }

    async fn ask(&self, name: Arc<str>) -> Answer {
        let (answer, answered) = oneshot::channel();
        // Both fail only when setu stops.
        self.requests.send(Request { name, answer }).map_err(|_| NameFailure::Unanswered)?;
        answered.await.unwrap_or(Err(NameFailure::Unanswered))
    }

    /// Writes down how a lookup ended.
    fn learn(&self, name: &Arc<str>, found: Result<Found, NameFailure>, to: &Destinations) -> Answer {
        let now = Instant::now();
        let allowed = found.and_then(|found| -> Result<(Addresses, Duration), NameFailure> {
            let all = found.addresses.iter().map(IpAddr::to_canonical);
            let mut allowed: Vec<_> = all.filter(|ip| to.allow_ip(*ip)).collect();
            // Before the cut, so that a family of which there are many leaves room for the other.
            allowed = alternate(&allowed, IpAddr::is_ipv6);
            allowed.truncate(ADDRESSES_MAX);
            if allowed.is_empty() { Err(NameFailure::Refused) } else { Ok((allowed.into(), found.ttl)) }
        });
        let mut table = self.lock();
        make_room(&mut table, name);
        let entry = match table.entry(name.clone()) {
            hash_map::Entry::Occupied(known) => known.into_mut(),
            hash_map::Entry::Vacant(place) => place.insert(Entry::new(false, now)),
        };
        // One line when it begins to fail and one when that is over, not one for each attempt; and none for the names
        // that clients choose.
        match allowed {
            Ok((addresses, ttl)) => {
                if entry.configured && entry.failure.is_some() {
                    info!(%name, "the name resolves again");
                }
                entry.learn(addresses.clone(), ttl, now);
                Ok(addresses)
            }
            Err(failure) => {
                self.failures[failure as usize].fetch_add(1, Ordering::Relaxed);
                if entry.configured && entry.failure.is_none_or(|(before, ..)| before != failure) {
                    let stale = !entry.addresses.is_empty();
                    warn!(%name, reason = failure.name(), stale, "the name does not resolve");
                }
                entry.fail(failure, now);
                Err(failure)
            }
        }
    }

    fn due(&self, now: Instant) -> Vec<Arc<str>> {
        let table = self.lock();
        let due = table.iter().filter(|(_, entry)| entry.configured && entry.refresh_at() <= now);
        due.map(|(name, _)| name.clone()).collect()
    }

    fn next_due(&self, except: impl Fn(&str) -> bool) -> Option<Instant> {
        let table = self.lock();
        let waiting = table.iter().filter(|(name, entry)| entry.configured && !except(name));
        waiting.map(|(_, entry)| entry.refresh_at()).min()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Entry>> {
        // Nothing in here panics half-way through a change.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Names are compared without regard to case (RFC 4343).
fn key(name: &str) -> Arc<str> {
    name.to_ascii_lowercase().into()
}

/// Forgets the name that was asked for least recently when there is no room for `new`.
fn make_room(table: &mut HashMap<Arc<str>, Entry>, new: &str) {
    if table.len() < NAMES_MAX || table.contains_key(new) {
        return;
    }
    let clients = table.iter().filter(|(_, entry)| !entry.configured);
    if let Some(name) = clients.min_by_key(|(_, entry)| entry.used).map(|(name, _)| name.clone()) {
        table.remove(&name);
    }
}

/// The addresses of a name as this system has them, public or not: for an operator who asks, not for a client.
///
/// # Errors
/// Why there is none. It waits as long as lookups do: bound it by a timeout.
pub(crate) async fn look_up(name: &str) -> Result<Vec<IpAddr>, NameFailure> {
    let resolver = Resolver::new(&[], Files::system());
    resolver.lookup(name, |_| {}).await.map(|found| found.addresses)
}

/// Looks up what is due and what is asked for, for ever. `servers`: whom to ask; none for those of the system.
pub(crate) async fn run(
    names: &Names,
    mut requests: mpsc::UnboundedReceiver<Request>,
    servers: &[SocketAddr],
    destinations: &Destinations,
) {
    let mut resolver = Resolver::new(servers, Files::system());
    let mut look = interval(LOOK);
    let mut lookups = Lookups::default();
    let (tell, mut early) = mpsc::unbounded_channel();
    loop {
        for name in names.due(Instant::now()) {
            lookups.begin(&resolver, &tell, name);
        }
        let due = names.next_due(|name| lookups.waiting.contains_key(name));
        let due = due.unwrap_or_else(|| Instant::now() + TTL_MAX);
        tokio::select! {
            Some(Request { name, answer }) = requests.recv() => {
                if !lookups.waiting.contains_key(&name) && lookups.waiting.len() >= LOOKUPS_MAX {
                    names.failures[NameFailure::Busy as usize].fetch_add(1, Ordering::Relaxed);
                    // An error means that the client is gone.
                    let _ = answer.send(Err(NameFailure::Busy));
                } else {
                    lookups.begin(&resolver, &tell, name).push(answer);
                }
            }
            Some((name, found)) = early.recv() => {
                // One that has ended meanwhile knows more.
                if let Some(waiting) = lookups.waiting.get_mut(&name) {
                    answer(mem::take(waiting), &names.learn(&name, Ok(found), destinations));
                }
            }
            Some(done) = lookups.tasks.join_next_with_id() => {
                let (id, found) = match done {
                    Ok((id, found)) => (id, found),
                    Err(error) => (error.id(), Err(NameFailure::Unanswered)),
                };
                if found == Err(NameFailure::Unanswered) && resolver.refresh() {
                    names.doubt();
                }
                let Some(name) = lookups.ids.remove(&id) else { continue };
                let learned = names.learn(&name, found, destinations);
                if names.is_configured(&name) {
                    debug!(%name, answer = ?learned, "looked up");
                } else {
                    // What a client asked for tells of the client.
                    debug!(found = learned.is_ok(), "a name of a client's choice was looked up");
                }
                answer(lookups.waiting.remove(&name).unwrap_or_default(), &learned);
            }
            _ = look.tick() => {
                if resolver.refresh() {
                    names.doubt();
                }
            }
            () = sleep_until(due.into()) => {}
        }
    }
}

/// Those under way.
#[derive(Default)]
struct Lookups {
    tasks: JoinSet<Result<Found, NameFailure>>,
    /// A lookup that panics still has its id.
    ids: HashMap<Id, Arc<str>>,
    waiting: HashMap<Arc<str>, Vec<oneshot::Sender<Answer>>>,
}

impl Lookups {
    /// Begins one unless it is under way, and returns who waits for it.
    fn begin(
        &mut self,
        resolver: &Resolver<'_>,
        early: &mpsc::UnboundedSender<(Arc<str>, Found)>,
        name: Arc<str>,
    ) -> &mut Vec<oneshot::Sender<Answer>> {
        match self.waiting.entry(name) {
            hash_map::Entry::Occupied(under_way) => under_way.into_mut(),
            hash_map::Entry::Vacant(place) => {
                let name = place.key().clone();
                let tell = early.clone();
                let lookup = resolver.lookup(&name, {
                    let name = name.clone();
                    // An error means that setu stops.
                    move |found| drop(tell.send((name.clone(), found)))
                });
                self.ids.insert(self.tasks.spawn(lookup).id(), name);
                place.insert(Vec::new())
            }
        }
    }
}

fn answer(waiting: Vec<oneshot::Sender<Answer>>, answer: &Answer) {
    for waiter in waiting {
        // An error means that the client is gone.
        let _ = waiter.send(answer.clone());
    }
}

#[cfg(test)]
mod tests;
