//! Rounds in which every frame between the hosts goes through a forwarder of ours, which loses, repeats, delays and
//! reorders: for flows that setu hands over to the wire, where the two ends' own packets carry them.
//!
//! No peer resets and setu is not told to end, so that every flow must end in an orderly way, and within a minute.

mod forwarder;
mod links;
pub(crate) mod way;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use setu_tests::{ONE_SOURCE, Path, level::Level, network::SERVERS};

use super::{
    clients,
    conditions::Conditions,
    judge::{Finding, Kind, Read},
    plan::Role,
    report,
    round::{Curtain, TIMEOUTS, hear, settle, tell, verdict},
    servers,
    stage::Stage,
    weather::Hogs,
};
use crate::interrupt;
use links::Links;

/// Flows that went on the wire, in a round's counts.
pub(crate) const HANDED_OVER: &str = "went on the wire";
/// No flow takes longer.
const LONGEST: Duration = Duration::from_secs(60);
/// A FIN is repeated so often within it that one of them comes through.
const LAST_WORDS: Duration = Duration::from_secs(20);
/// The servers' addresses of IPv6.
const SERVERS_V6: [&str; 3] = ["fd79:2::2", "fd79:2::3", "fd79:2::4"];

/// Plays a round and judges it.
///
/// # Errors
/// When it cannot be played.
pub(crate) fn play(path: Path, conditions: &Conditions) -> Result<report::Round> {
    let way = conditions.forwarded.context("these are conditions without forwarders")?;
    let mut links = Links::new(way, conditions.seed)?;
    let network = &links.network;
    let listeners = servers::listen(network, if way.ipv6 { &SERVERS_V6 } else { &SERVERS })?;
    let endpoints: Vec<_> =
        listeners.iter().map(|listener| Ok(listener.local_addr()?.to_string())).collect::<Result<_>>()?;
    let setu = links.start(path, way, &endpoints, &format!("{ONE_SOURCE}{TIMEOUTS}"));
    let (before, tcp) = (Level::of(&setu, network), links.tcp());
    let (address, admin) = (setu.address("chat"), setu.admin());
    let hogs = Hogs::new(conditions.hogs)?;
    let stage = Arc::new(Stage::new(conditions));
    let hanging = thread::scope(|scope| -> Result<Vec<String>> {
        let servers = scope.spawn(|| servers::run(network, &stage, listeners));
        let clients = scope.spawn(|| clients::run(network, &stage, address));
        let hanging = wait(&links, &stage, conditions);
        clients.join().map_err(|_| anyhow!("the clients panicked"))??;
        servers.join().map_err(|_| anyhow!("the servers panicked"))??;
        hanging
    })?;
    drop(hogs);
    let mut round = report::Round::default();
    match counters(&links, admin) {
        Ok(counters) => hand_overs(path, &counters, &mut round)?,
        Err(error) => round.findings.push(said(format!("{error:#}"))),
    }
    for (what, count) in links.tcp() {
        let earlier = tcp.get(&what).copied().unwrap_or(0);
        round.facts.insert(what, count.saturating_sub(earlier));
    }
    if let Some(left) = settle(&setu, network, before) {
        let text = format!("held at the end: {left:?}; at the start: {before:?}");
        round.findings.push(Finding { kind: Kind::Leak, text });
    }
    let log = setu.transcript();
    let (status, reasons) = setu.stop();
    if !status.success() {
        round.findings.push(said(format!("setu ended with {status}")));
    }
    let mut log = log.lock().map(|log| log.clone()).unwrap_or_default();
    hear(&log, &mut round);
    verdict(&stage, conditions, None, &reasons, &mut round);
    round.reasons = reasons;
    time(&stage, &mut round);
    let carried = links.end()?;
    for (what, count) in [
        ("frames that came to forwarders", carried.frames),
        ("frames that they lost", carried.lost),
        ("frames that they repeated", carried.repeated),
        ("frames for which they had no room", carried.overflowed),
    ] {
        round.facts.insert(what.to_owned(), count);
    }
    log.extend(hanging);
    tell(path, conditions, &log, &round.findings)?;
    Ok(round)
}

/// Waits until all flows have ended, or the last one has had its time; the hosts' connections when one has not ended.
fn wait(links: &Links, stage: &Stage, conditions: &Conditions) -> Result<Vec<String>> {
    let _curtain = Curtain(stage);
    let time = Duration::from_millis(conditions.spread) + LONGEST;
    while !stage.is_over() {
        interrupt::check()?;
        thread::sleep(Duration::from_millis(10));
        if stage.time() > time {
            return Ok(links.state());
        }
    }
    Ok(Vec::new())
}

/// Setu's counters once it has seen the end of all flows on the wire, or has had time for it: the last acknowledgement of a
/// FIN may be lost, and the end that waits for it asks again.
fn counters(links: &Links, admin: SocketAddr) -> Result<BTreeMap<String, u64>> {
    let deadline = Instant::now() + LAST_WORDS;
    loop {
        let counters = links.counters(admin)?;
        if counters.get("setu_wire_flows").is_none_or(|flows| *flows == 0) || Instant::now() > deadline {
            return Ok(counters);
        }
        interrupt::check()?;
        thread::sleep(Duration::from_millis(50));
    }
}

/// What setu says of flows that went on the wire.
fn hand_overs(path: Path, counters: &BTreeMap<String, u64>, round: &mut report::Round) -> Result<()> {
    const TORN: &str = "setu_wire_torn_total";
    const REFUSED: &str = "setu_wire_refused_total{reason=\"";
    let count = |name: &str| counters.get(name).copied();
    let handed_over = count("setu_wire_handed_over_total");
    ensure!(
        path != Path::Wire || handed_over.is_some(),
        "setu has no metric setu_wire_handed_over_total: it is one without the wire"
    );
    if let Some(handed_over) = handed_over {
        round.counts.insert(HANDED_OVER.to_owned(), handed_over);
    }
    let torn = count(TORN).unwrap_or(0);
    if torn > 0 {
        round.findings.push(said(format!("{torn} flows were torn when they went on the wire")));
    }
    for (name, count) in counters.iter().filter(|(_, count)| **count > 0) {
        if let Some(reason) = name.strip_prefix(REFUSED).and_then(|rest| rest.strip_suffix("\"}")) {
            round.counts.insert(format!("were kept from the wire for {reason}"), *count);
        }
    }
    Ok(())
}

/// Which flow took longest, and which took too long although they ended: of those that have not, the judge knows.
fn time(stage: &Stage, round: &mut report::Round) {
    for (number, flow) in stage.flows.iter().enumerate() {
        let ends: Vec<_> = Role::BOTH.into_iter().filter_map(|role| flow.outcome(role)).collect();
        let Some(end) = ends.iter().map(|outcome| outcome.at).max() else { continue };
        let time = end.saturating_sub(Duration::from_millis(flow.plan.start));
        round.slowest = round.slowest.max(Some((time, number as u32)));
        if time > LONGEST && ends.iter().all(|outcome| outcome.read != Read::Hanging) {
            let text = format!("flow {number} took {:.1} s", time.as_secs_f64());
            round.findings.push(Finding { kind: Kind::Hang, text });
        }
    }
}

fn said(text: String) -> Finding {
    Finding { kind: Kind::Said, text }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hear(path: Path, counters: &[(&str, u64)]) -> Result<report::Round> {
        let counters = counters.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
        let mut round = report::Round::default();
        hand_overs(path, &counters, &mut round).map(|()| round)
    }

    #[test]
    fn hand_overs_are_counted_as_setu_counts_them() {
        let counters = [
            ("setu_wire_handed_over_total", 7),
            ("setu_wire_refused_total{reason=\"options\"}", 3),
            ("setu_wire_refused_total{reason=\"local\"}", 0),
            ("setu_wire_torn_total", 0),
        ];
        let round = hear(Path::Wire, &counters).unwrap();
        let expected = [(HANDED_OVER, 7), ("were kept from the wire for options", 3)];
        assert_eq!(round.counts, expected.map(|(what, count)| (what.to_owned(), count)).into());
        assert_eq!(round.findings, []);
    }

    #[test]
    fn a_torn_flow_is_a_finding() {
        let round =
            hear(Path::Wire, &[("setu_wire_handed_over_total", 7), ("setu_wire_torn_total", 1)]).unwrap();
        assert_eq!(round.findings.len(), 1);
        assert!(round.findings[0].text.contains("1 flows were torn"));
    }

    #[test]
    fn a_setu_without_the_wire_is_told_from_one_that_hands_nothing_over() {
        assert!(hear(Path::Wire, &[]).is_err());
        assert_eq!(hear(Path::Userspace, &[]).unwrap().counts, BTreeMap::new());
        assert_eq!(hear(Path::Wire, &[("setu_wire_handed_over_total", 0)]).unwrap().counts[HANDED_OVER], 0);
    }
}
