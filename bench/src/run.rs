//! A run: rounds that alternate among the peers, one peer at a time, each started anew.

use std::{thread, time::Duration};

use anyhow::{Result, ensure};

use crate::{
    environment::Environment,
    interrupt,
    load::{Flows, Load, Order, agent::Agent},
    measure::{Counters, Memory},
    peers::{Certificates, Kind, Peer, Service, Start},
    report::{Failure, Round, Run, Skip},
    scenarios::{self, Scenario, Unit},
    topology::Topology,
};

/// What is asked for.
pub(crate) struct Wish {
    /// Fewer and shorter rounds.
    pub(crate) quick: bool,
    /// Beginnings of names; all when there is none.
    pub(crate) scenarios: Vec<String>,
    /// Beginnings of names; all when there is none.
    pub(crate) peers: Vec<String>,
    /// As typed.
    pub(crate) command: String,
}

/// Rounds, their length, and how often a disturbed one is repeated.
struct Plan {
    rounds: u32,
    shorter: u32,
    repeats: u32,
}

/// Until the kernel has freed what a round before it held.
const SETTLE: Duration = Duration::from_millis(300);

/// Runs all that is asked for. `save` gets the run after each scenario.
///
/// # Errors
/// What keeps the run from being made; what goes wrong in a round is in the run.
pub(crate) fn run(wish: &Wish, mut save: impl FnMut(&Run) -> Result<()>) -> Result<Run> {
    setu_tests::machine::raise_file_limit();
    let plan = if wish.quick {
        Plan { rounds: 3, shorter: 3, repeats: 1 }
    } else {
        Plan { rounds: 5, shorter: 1, repeats: 4 }
    };
    let chosen = |name: &str, wished: &[String]| {
        wished.is_empty() || wished.iter().any(|start| name.starts_with(start.as_str()))
    };
    let scenarios = scenarios::all().into_iter().filter(|one| chosen(one.name, &wish.scenarios));
    let scenarios: Vec<_> = scenarios.collect();
    let all: &[Kind] = clap::ValueEnum::value_variants();
    let peers: Vec<_> = all.iter().copied().filter(|kind| chosen(kind.name(), &wish.peers)).collect();
    ensure!(!scenarios.is_empty(), "no scenario is called like that; there are: {}", scenario_names());
    ensure!(!peers.is_empty(), "no peer is called like that; there are: {}", peer_names());

    interrupt::watch()?;
    let topology = Topology::new()?;
    let _server = Agent::server(&topology.servers)?;
    let encrypted = scenarios.iter().any(|scenario| scenario.service == Service::Tls);
    let certificates = if encrypted { Some(Certificates::make()?) } else { None };
    let mut run = Run::new(Environment::read(&wish.command, wish.quick)?);
    let bench = Bench {
        topology: &topology,
        certificates: certificates.as_ref(),
        plan,
        processors: run.environment.processors,
    };
    for scenario in &scenarios {
        println!("{}: {}", scenario.name, scenario.title);
        bench.scenario(scenario, &peers, &mut run)?;
        save(&run)?;
    }
    Ok(run)
}

/// For messages.
pub(crate) fn scenario_names() -> String {
    scenarios::all().iter().map(|scenario| scenario.name).collect::<Vec<_>>().join(", ")
}

/// For messages.
pub(crate) fn peer_names() -> String {
    let all: &[Kind] = clap::ValueEnum::value_variants();
    all.iter().map(|kind| kind.name()).collect::<Vec<_>>().join(", ")
}

struct Bench<'a> {
    topology: &'a Topology,
    certificates: Option<&'a Certificates>,
    plan: Plan,
    processors: usize,
}

impl Bench<'_> {
    fn scenario(&self, scenario: &Scenario, peers: &[Kind], run: &mut Run) -> Result<()> {
        let mut peers: Vec<_> = peers.iter().copied().filter(|kind| kind.offers(scenario.service)).collect();
        for number in 0..self.plan.rounds {
            // Every other round goes backwards, so that nobody is always after the same one.
            let mut order = peers.clone();
            if number % 2 == 1 {
                order.reverse();
            }
            for kind in order {
                interrupt::check()?;
                match self.repeated(scenario, kind, number) {
                    Ok(Ok(round)) => {
                        println!("  {}", round.line(scenario.unit));
                        run.rounds.push(round);
                    }
                    Ok(Err(reason)) => {
                        println!("  {}: skipped: {reason}", kind.name());
                        run.skipped.push(Skip { scenario: scenario.name.into(), peer: kind, reason });
                        peers.retain(|other| *other != kind);
                    }
                    Err(error) => {
                        interrupt::check()?;
                        let reason = format!("{error:#}");
                        println!("  {}: failed: {reason}", kind.name());
                        run.failed.push(Failure {
                            scenario: scenario.name.into(),
                            peer: kind,
                            number,
                            reason,
                        });
                    }
                }
            }
        }
        Ok(())
    }

    /// A round that others disturb is made again, not for ever; the least disturbed one counts.
    fn repeated(&self, scenario: &Scenario, kind: Kind, number: u32) -> Result<Result<Round, String>> {
        let mut best = match self.round(scenario, kind, number)? {
            Ok(round) => round,
            refused => return Ok(refused),
        };
        while best.disturbed && best.attempts <= self.plan.repeats {
            let attempts = best.attempts + 1;
            let again = self.round(scenario, kind, number)?;
            if let Ok(again) = again
                && again.cost.others() < best.cost.others()
            {
                best = again;
            }
            best.attempts = attempts;
        }
        Ok(Ok(best))
    }

    /// One round of one peer, or why the peer has none.
    fn round(&self, scenario: &Scenario, kind: Kind, number: u32) -> Result<Result<Round, String>> {
        let start = Peer::start(kind, scenario.service, &self.topology.proxy, self.certificates)?;
        let peer = match start {
            Start::Running(peer) => peer,
            Start::Refused(reason) => return Ok(Err(reason)),
        };
        // Memory takes its time, in a quick run too.
        let shorter = if scenario.unit == Unit::Memory { 1 } else { self.plan.shorter };
        let time = scenario.time / shorter;
        let order = |load: &Load, time: Duration, settling: Duration| Order {
            to: peer.address,
            milliseconds: time.as_millis() as u64,
            settling_milliseconds: settling.as_millis() as u64,
            trust: self.certificates.map(|certificates| certificates.of(kind).trust),
            load: load.clone(),
        };
        let mut unmeasured: Vec<_> = warm_up_of(scenario, time).into_iter().collect();
        if scenario.service == Service::Sni && !kind.is_ceiling() {
            unmeasured.push((Load::Refusal, time));
        }
        for (load, time) in unmeasured {
            let mut client = Agent::client(&self.topology.clients)?;
            client.prepare(&order(&load, time, Duration::ZERO))?;
            client.go(time)?;
        }
        thread::sleep(SETTLE);

        let mut client = Agent::client(&self.topology.clients)?;
        let memory = Memory::read(peer.pid(), &self.topology.proxy)?;
        client.prepare(&order(&scenario.load, time, scenario.settling))?;
        let before = Counters::read(peer.pid())?;
        let outcome = client.go(time)?;
        let cost = before.until(&Counters::read(peer.pid())?, self.processors);
        let memory = memory.until(&Memory::read(peer.pid(), &self.topology.proxy)?);
        Ok(Ok(Round {
            scenario: scenario.name.into(),
            peer: kind,
            number,
            disturbed: cost.is_disturbed(self.processors),
            attempts: 1,
            outcome,
            cost,
            memory: (scenario.unit == Unit::Memory).then_some(memory),
        }))
    }
}

/// The load that comes before a round on connections of its own, for how long; connections that settle need none. Where
/// memory is measured, it leaves nothing behind that could be used again: one connection for a moment is enough for code
/// and tables to be there.
fn warm_up_of(scenario: &Scenario, time: Duration) -> Option<(Load, Duration)> {
    if scenario.unit == Unit::Memory {
        let one = Flows { connections: 1, message: 256, interval_milliseconds: None };
        return Some((Load::Echo(vec![one]), Duration::from_millis(200)));
    }
    scenario.settling.is_zero().then(|| (scenario.load.clone(), time / 5))
}
