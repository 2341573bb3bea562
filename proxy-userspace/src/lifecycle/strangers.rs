//! Whether `proxy_protocol.trusted` refuses everyone. Where a port is hidden from whoever is not in it, the kernel drops
//! what they send in silence (`front/source_filter.rs`), so that a list without the load balancer looks like a network
//! that is broken.
//!
//! Only an operator who has said something of proxies is told: to the default listeners for them scanners come, every
//! day, and no list is wrong for it.

use std::{
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use tracing::info;

use crate::{
    front::listener::{self, Bound},
    serve::shared::Shared,
    sys,
};

/// Between two lines of the log about one listener.
const PAUSE: Duration = Duration::from_secs(60);

/// What is known of the listeners that take PROXY headers alone, since the start or the last reload.
#[derive(Debug)]
pub(super) struct Strangers(Vec<Gate>);

/// One of them.
#[derive(Debug)]
struct Gate {
    /// Its index.
    listener: usize,
    name: String,
    before: Totals,
    since: Totals,
    /// How many refused were told of, and when that was last.
    told: u64,
    last: Option<Instant>,
}

/// Attempts to connect.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Totals {
    refused: u64,
    let_in: u64,
}

impl Strangers {
    /// Nobody came yet.
    pub(super) fn new(shared: &Shared, bound: &[Bound]) -> Self {
        let listeners = shared.config.listeners.iter().enumerate();
        let gates = listeners
            .filter(|(_, listener)| listener::is_hidden(listener) && shared.config.expects_proxies());
        let gate = |(index, listener): (usize, &crate::config::Listener)| Gate {
            listener: index,
            name: listener.name.clone(),
            before: totals(index, shared, bound),
            since: Totals::default(),
            told: 0,
            last: None,
        };
        Self(gates.map(gate).collect())
    }

    /// Looks who came, and tells when that was nobody who is let in.
    pub(super) fn look(&mut self, shared: &Shared, bound: &[Bound], now: Instant) {
        for gate in &mut self.0 {
            if let Some(count) = gate.saw(totals(gate.listener, shared, bound), now) {
                info!(
                    listener = %gate.name, count,
                    "refused: none of those who tried is in proxy_protocol.trusted, and nobody who is has come; it must \
                     name the load balancer"
                );
            }
        }
    }

    /// What there is to look at.
    pub(super) fn notes(&self) -> Vec<String> {
        let wrong = self.0.iter().filter(|gate| gate.refuses_everyone());
        let note = |Gate { name, since, .. }: &Gate| {
            format!(
                "listener \"{name}\": {} attempts were refused, for proxy_protocol.trusted has not who tried, and nobody \
                 has come whom it has; it must name the load balancer",
                since.refused
            )
        };
        wrong.map(note).collect()
    }
}

impl Gate {
    /// There were so many by now. Returns how many refused there is to tell of.
    fn saw(&mut self, now: Totals, at: Instant) -> Option<u64> {
        self.since = Totals {
            refused: now.refused.saturating_sub(self.before.refused),
            let_in: now.let_in.saturating_sub(self.before.let_in),
        };
        let count = self.since.refused.saturating_sub(self.told);
        let rests = self.last.is_some_and(|last| at.saturating_duration_since(last) < PAUSE);
        if !self.refuses_everyone() || count == 0 || rests {
            return None;
        }
        (self.told, self.last) = (self.since.refused, Some(at));
        Some(count)
    }

    fn refuses_everyone(&self) -> bool {
        self.since.refused > 0 && self.since.let_in == 0
    }
}

/// All that ever came to a listener: those whom setu refused, and whom the kernel did.
fn totals(listener: usize, shared: &Shared, bound: &[Bound]) -> Totals {
    let counts = &shared.listeners[listener];
    let sockets = bound.iter().filter(|bound| bound.listener == listener).flat_map(|bound| &bound.sockets);
    // What cannot be asked has refused nobody.
    let dropped: u64 = sockets.map(|socket| sys::dropped(socket.as_fd()).unwrap_or(0)).sum();
    Totals { refused: counts.strangers() + dropped, let_in: counts.vouched() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_once_a_minute_and_only_while_nobody_is_let_in() {
        let begun = Instant::now();
        let before = Totals { refused: 100, let_in: 7 };
        let mut gate =
            Gate { listener: 0, name: "lb".into(), before, since: Totals::default(), told: 0, last: None };
        let mut saw = |refused: u64, let_in: u64, seconds| {
            let now = Totals { refused: 100 + refused, let_in: 7 + let_in };
            let told = gate.saw(now, begun + Duration::from_secs(seconds));
            (told, gate.refuses_everyone())
        };
        assert_eq!(saw(0, 0, 0), (None, false));
        assert_eq!(saw(3, 0, 1), (Some(3), true));
        assert_eq!(saw(9, 0, 60), (None, true));
        assert_eq!(saw(9, 0, 61), (Some(6), true));
        assert_eq!(saw(9, 0, 200), (None, true), "nobody came");
        assert_eq!(saw(10, 1, 300), (None, false), "the list has someone who is there");
    }
}
