//! Runs that were never made, for tests of what is made of them.

use super::{Failure, Round, Run};
use crate::{
    environment::Environment,
    load::Outcome,
    measure::{Cost, Memory},
    peers::Kind,
};

/// A run without rounds.
pub(super) fn run() -> Run {
    Run::new(Environment {
        command: "cargo xtask bench".into(),
        quick: false,
        date: "2026-01-01".into(),
        commit: "0123456789ab".into(),
        kernel: "6.1.0".into(),
        processor: "none".into(),
        processors: 2,
        memory: 1 << 20,
        versions: [].into(),
        settings: [].into(),
    })
}

/// Adds rounds with so many Gbit/s.
pub(super) fn rates(run: &mut Run, scenario: &str, peer: Kind, rates: &[f64]) {
    for rate in rates {
        let outcome = Outcome { seconds: 1.0, work: (rate * 1e9 / 8.0) as u64, latency: None };
        add(run, scenario, peer, outcome, None);
    }
}

/// Adds rounds in which the proxy holds so many KiB for a connection, half of it in its sockets.
pub(super) fn held(run: &mut Run, scenario: &str, peer: Kind, held: &[i64]) {
    for kib in held {
        let outcome = Outcome { seconds: 5.0, work: 100, latency: None };
        let half = kib * 1024 * 100 / 2;
        let memory = Memory { resident: half, buffers: half, slab: 0, unavailable: 0 };
        add(run, scenario, peer, outcome, Some(memory));
    }
}

/// A round that was not got through.
pub(super) fn failure(scenario: &str, peer: Kind) -> Failure {
    Failure { scenario: scenario.into(), peer, number: 0, reason: "it does not come up".into() }
}

fn add(run: &mut Run, scenario: &str, peer: Kind, outcome: Outcome, memory: Option<Memory>) {
    let cost = Cost { seconds: outcome.seconds, busy: 1.0, own: 1.0, switches: 1, foreign: 0.0, steal: 0.0 };
    run.rounds.push(Round {
        scenario: scenario.into(),
        peer,
        number: 0,
        attempts: 1,
        disturbed: false,
        outcome,
        cost,
        memory,
    });
}
