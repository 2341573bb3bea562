//! One round: three hosts, a setu, flows under the round's conditions, and a verdict.

use std::{
    collections::BTreeMap,
    fs,
    process::Command,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow, ensure};
use setu_tests::{
    ONE_SOURCE, Path, Setu,
    level::Level,
    network::{Network, SERVERS},
};

use super::{
    clients,
    conditions::Conditions,
    judge::{self, BySide, Evidence, Finding, Kind},
    plan::Role,
    report, servers,
    stage::Stage,
    weather::{self, Weather},
};
use crate::interrupt;

/// After so long conditions become fair.
const BAD: Duration = Duration::from_secs(12);
/// Who reads nothing for so long afterwards will not: TCP waits as long again as it waited last, which is at most about as
/// long as conditions were bad.
const FAIR: Duration = Duration::from_secs(45);
/// A machine that is too slow for what was drawn is no finding of setu's, and not one to wait for for ever.
const LONGEST: Duration = Duration::from_secs(600);
/// How long setu, told to stop, lets flows go on.
const DRAIN: Duration = Duration::from_millis(1_500);
/// What setu may still hold is looked for so long.
const SETTLE: Duration = Duration::from_secs(40);
/// Where the logs of rounds that failed are left.
const LOGS: &str = "target/torture";
/// Findings that are printed of a round.
const SHOWN: usize = 12;

/// No time limit of setu's may end a flow here, but that of the drain.
pub(super) const TIMEOUTS: &str = "[timeouts]\nconnect = \"60s\"\ninspect = \"60s\"\nidle = \"600s\"\nhalf_close = \"600s\"\n\
                        vanished = \"600s\"\ndrain = \"1500ms\"\n";

/// Whether setu can be made to hand flows over again and again: older ones do not know the option.
pub(crate) fn can_force_handover() -> bool {
    let mut setu = Command::new(Setu::binary());
    setu.args(["run", "--force-handover", "20", "--config", "/nonexistent"]);
    // 2 is wrong usage; a configuration that is missing is another error.
    setu.output().is_ok_and(|output| output.status.code() != Some(2))
}

/// Plays a round and judges it.
///
/// # Errors
/// When it cannot be played.
pub(crate) fn play(path: Path, conditions: &Conditions, forced: Option<u64>) -> Result<report::Round> {
    let network = Network::new();
    weather::prepare(&network, conditions);
    let listeners = servers::listen(&network, &SERVERS)?;
    let endpoints: Vec<_> =
        listeners.iter().map(|listener| Ok(listener.local_addr()?.to_string())).collect::<Result<_>>()?;
    let config = network.config(path, &endpoints, &format!("{ONE_SOURCE}{TIMEOUTS}"));
    let milliseconds = forced.map(|time| time.to_string());
    let force = milliseconds.as_ref().map_or_else(Vec::new, |time| vec!["--force-handover", time]);
    let setu = network.start(&config, "debug", &force);
    let before = Level::of(&setu, &network);
    let address = setu.address("chat");
    let mut weather = Weather::new(&network, conditions)?;
    let stage = Arc::new(Stage::new(conditions));
    let drain = thread::scope(|scope| -> Result<Option<Duration>> {
        let servers = scope.spawn(|| servers::run(&network, &stage, listeners));
        let clients = scope.spawn(|| clients::run(&network, &stage, address));
        let drain = direct(&setu, &stage, conditions, &mut weather);
        clients.join().map_err(|_| anyhow!("the clients panicked"))??;
        servers.join().map_err(|_| anyhow!("the servers panicked"))??;
        drain
    })?;
    let mut round = report::Round::default();
    weather.mend()?;
    if drain.is_none()
        && let Some(left) = settle(&setu, &network, before)
    {
        round.findings.push(Finding {
            kind: Kind::Leak,
            text: format!("held at the end: {left:?}; at the start: {before:?}"),
        });
    }
    let log = setu.transcript();
    let (status, reasons) = if drain.is_some() { setu.ended() } else { setu.stop() };
    if !status.success() {
        round.findings.push(Finding { kind: Kind::Said, text: format!("setu ended with {status}") });
    }
    let log = log.lock().map(|log| log.clone()).unwrap_or_default();
    hear(&log, &mut round);
    if drain.is_some() && !eventually(|| network.connections() == 0) {
        let text = format!("{} connections after setu's end", network.connections());
        round.findings.push(Finding { kind: Kind::Leak, text });
    }
    verdict(&stage, conditions, drain, &reasons, &mut round);
    round.reasons = reasons;
    tell(path, conditions, &log, &round.findings)?;
    Ok(round)
}

/// Lets happen what is due, until all flows have ended or their time is over; when setu was told to stop.
fn direct(
    setu: &Setu,
    stage: &Stage,
    conditions: &Conditions,
    weather: &mut Weather<'_>,
) -> Result<Option<Duration>> {
    let _curtain = Curtain(stage);
    let due = |at: &mut Option<u64>| at.take_if(|at| stage.time() >= Duration::from_millis(*at)).is_some();
    let (mut reload, mut death, mut drain) = (conditions.reload, conditions.death, conditions.drain);
    let mut mend = Some(BAD.as_millis() as u64);
    let mut told = None;
    while !stage.is_over() {
        interrupt::check()?;
        thread::sleep(Duration::from_millis(10));
        // A setu that stops reloads no more.
        if told.is_none() && due(&mut reload) {
            setu.signal("HUP");
        }
        if due(&mut death) {
            stage.kill(conditions.seed as usize % SERVERS.len());
        }
        if due(&mut drain) {
            told = Some(stage.time());
            setu.signal("TERM");
        }
        if due(&mut mend) {
            weather.mend()?;
        }
        if stage.time() > BAD && stage.still() > FAIR {
            break;
        }
        ensure!(stage.time() < LONGEST, "this machine is too slow: flows still move after {LONGEST:?}");
    }
    Ok(told)
}

/// Ends the play however this side of it ends, so that nothing waits for what will not come.
pub(super) struct Curtain<'a>(pub(super) &'a Stage);

impl Drop for Curtain<'_> {
    fn drop(&mut self) {
        self.0.give_up();
    }
}

/// Waits until setu holds no more than before; what it holds when it does not come to that.
pub(super) fn settle(setu: &Setu, network: &Network, before: Level) -> Option<Level> {
    let mut now = before;
    let settled = eventually(|| {
        now = Level::of(setu, network);
        now.is_back_at(before)
    });
    (!settled).then_some(now)
}

fn eventually(mut holds: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + SETTLE;
    loop {
        if holds() {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// What setu's log says of ends, of the kernel path, and of defects.
pub(super) fn hear(log: &[String], round: &mut report::Round) {
    let mut errors: BTreeMap<&str, u64> = BTreeMap::new();
    for line in log {
        // Not the flows of setu's test of itself.
        if let Some((_, rest)) = line.split_once("closed reason=")
            && value(rest, "listener") == Some("chat")
            && let Some(path) = value(rest, "path")
        {
            *round.ends.entry(path.to_owned()).or_default() += 1;
        }
        if line.contains("flows that left the kernel") {
            for (key, what) in
                [("congested", "left the kernel for a slow reader"), ("resumed", "came back to it")]
            {
                let count = value(line, key).and_then(|count| count.parse().ok()).unwrap_or(0);
                *round.counts.entry(what.to_owned()).or_default() += count;
            }
        }
        if let Some((_, error)) = line.split_once("ERROR ") {
            *errors.entry(error).or_default() += 1;
        }
    }
    round.findings.extend(errors.into_iter().map(|(error, count)| Finding {
        kind: Kind::Said,
        text: format!("{count} times in setu's log: {error}"),
    }));
}

/// A field of a line of the log.
fn value<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    line.split_whitespace().find_map(|field| field.strip_prefix(key)?.strip_prefix('='))
}

/// Judges all flows, and the reasons that setu names.
pub(super) fn verdict(
    stage: &Stage,
    conditions: &Conditions,
    drain: Option<Duration>,
    reasons: &BTreeMap<String, u64>,
    round: &mut report::Round,
) {
    let mut judged = Vec::new();
    for (number, flow) in stage.flows.iter().enumerate() {
        let planned = |role| flow.plan.script(role).total();
        let outcomes = BySide { client: flow.outcome(Role::Client), server: flow.outcome(Role::Server) };
        round.bytes +=
            [&outcomes.client, &outcomes.server].into_iter().flatten().map(|end| end.received).sum::<u64>();
        judged.extend(judge::flow(&Evidence {
            flow: number as u32,
            planned: BySide { client: planned(Role::Client), server: planned(Role::Server) },
            outcomes,
            reset: flow.reset(),
            death: conditions.death.map(Duration::from_millis),
            drain: drain.map(|told| (told, told + DRAIN * 9 / 10)),
        }));
    }
    let strays = stage.strays().into_iter().map(|text| Finding { kind: Kind::Wrong, text });
    judged.extend(strays);
    let mut allowed = vec!["client_closed", "upstream_closed"];
    if stage.flows.iter().any(|flow| flow.reset().is_some()) {
        allowed.extend(["client_reset", "upstream_reset", "client_left"]);
    }
    if conditions.death.is_some() {
        // A connection may have come to the one that died before its flow was known there.
        allowed.extend(["connect_refused", "upstream_reset"]);
    }
    if drain.is_some() {
        allowed.extend(["shutdown", "client_left"]);
    }
    judged.extend(judge::reasons(reasons, &allowed));
    judged.append(&mut round.findings);
    judged.sort_by_key(|finding| finding.kind);
    round.findings = judged;
}

/// Prints what was found, with the lines of setu's log that may say why, and leaves all of them in a file.
pub(super) fn tell(path: Path, conditions: &Conditions, log: &[String], findings: &[Finding]) -> Result<()> {
    if findings.is_empty() {
        return Ok(());
    }
    for finding in findings.iter().take(SHOWN) {
        println!("  FOUND {}: {}", finding.kind.name(), finding.text);
    }
    if findings.len() > SHOWN {
        println!("  … and {} more", findings.len() - SHOWN);
    }
    let notable = |line: &&String| line.contains("ERROR ") || line.contains(" WARN ");
    log.iter().filter(notable).take(SHOWN).for_each(|line| println!("  setu: {line}"));
    fs::create_dir_all(LOGS)?;
    let file = format!("{LOGS}/{}-{}.log", path.name(), conditions.seed);
    let found: String =
        findings.iter().map(|finding| format!("{}: {}\n", finding.kind.name(), finding.text)).collect();
    fs::write(&file, format!("{conditions}\n\n{found}\n{}\n", log.join("\n")))?;
    println!("  all of it: {file}");
    println!(
        "FAILED; again by: cargo xtask torture --path {}{} --minutes 0.1 --seed {}",
        path.name(),
        if conditions.forwarded.is_some() && path != Path::Wire { " --forwarders" } else { "" },
        conditions.seed
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn setu_s_words_are_heard() {
        let log = [
            "T DEBUG setu: closed reason=client_closed path=sockmap listener=chat client=\"\"",
            "T ERROR setu::x: a connection was reset error=y",
            "T ERROR setu::x: a connection was reset error=y",
            "T INFO p: flows that left the kernel for a slow reader, and came back congested=5 resumed=3",
        ]
        .map(str::to_owned);
        let mut round = report::Round::default();
        hear(&log, &mut round);
        assert_eq!(round.ends, BTreeMap::from([("sockmap".to_owned(), 1)]));
        assert_eq!(round.counts.values().copied().collect::<Vec<_>>(), [3, 5]);
        assert_eq!(round.findings.len(), 1);
        assert!(round.findings[0].text.starts_with("2 times"));
    }
}
