//! A run in words and tables.

use std::{fmt::Write as _, path::Path};

use super::{
    Again, Run, auto, bars,
    metric::{Metric, Spread, digits},
    plots,
};
use crate::{
    environment::Environment,
    peers::Kind,
    scenarios::{Scenario, Unit},
};

/// What each number cannot show.
const LIMITS: &str = "\
- Clients, proxy and servers share the machine's cores, so a rate says how fast all three are together: a proxy that \
costs little leaves more for the others. Real links are slower than a veth pair, and have latency and loss.
- *busy* is the whole machine's time that was not idle: the load's and the server's work is in it. The *cost of the \
proxy* is what is left when direct's is taken off, for the same work; packets are batched otherwise at another \
speed, so it is a comparison and not an account.
- *own CPU* is the time of the proxy's processes. What the kernel does for them in softirqs, kernel threads, or in \
the context of whoever sent, is not in it: for setu's kernel path nearly all.
- Percentiles are of a closed loop: each connection has one message on its way. They grow with the number of \
connections, and do not say what a lightly loaded proxy adds (but for one connection).
- *resident* is the proxy's processes alone; *buffers* is what the kernel charges to the sockets of their \
connections, which leaves out what is on its way between the sockets of setu's kernel path; *slab* and *all memory* \
are of the whole machine, less direct's, with the buffers of clients and servers, and as rough as anything else that \
runs makes them.
- New connections that end at a proxy without TLS carry one message; names are not resolved.
- TLS handshakes are full ones; clients of one machine share its cores with the proxy, so the proxy's own CPU time for \
each is the number to compare, not their rate.
- Hardware counters (perf) are not in it: virtual machines often have none.
- A ceiling (direct, nft-dnat) is no proxy: it forwards packets, keeps no connection, checks nothing.
";

/// The README of a run's folder.
pub(super) fn page(run: &Run) -> String {
    let Environment {
        command,
        quick,
        date,
        commit,
        kernel,
        processor,
        processors,
        memory,
        versions,
        settings,
    } = &run.environment;
    let gib = digits(*memory as f64 / f64::from(1 << 20));
    let mut text = format!(
        "# setu beside its peers, {date}\n\n`{command}`, commit {commit}. {processors} cores ({processor}), \
         {gib} GiB, Linux {kernel}.\n\n"
    );
    if *quick {
        text.push_str("A quick run: few and short rounds, to look at and not to cite.\n\n");
    }
    text.push_str(
        "Three network namespaces joined by veth pairs: clients, proxy, server. One peer runs at a time, started anew \
         for each round; a warm-up that is not measured comes first. Rounds alternate among the peers, every other one \
         backwards. Numbers are medians (least to most). Every byte was checked.\n\n",
    );
    // Writing to a string cannot fail.
    for (name, version) in versions {
        let _ = writeln!(text, "- {name}: {version}");
    }
    for (name, value) in settings {
        let _ = writeln!(text, "- {name} = {value}");
    }
    for Again { scenario, date, commit } in &run.again {
        let _ = writeln!(text, "- {scenario} was measured again on {date}, commit {commit}");
    }
    let _ = writeln!(text, "\nThe peers' configurations are `bench/src/peers/config.rs` of that commit.\n");
    let _ = writeln!(text, "## Bars\n\n{}", bars::table(run));
    text.push_str(&auto::section(run));
    let _ = write!(text, "## Plots\n\n{}", plots::shown(run, Path::new("")));
    let _ = writeln!(text, "## Numbers\n\n{}", tables(run));
    let _ = writeln!(text, "{}", irregular(run));
    let _ = write!(text, "## What these numbers cannot show\n\n{LIMITS}");
    text
}

/// What goes into `docs/performance.md`.
pub(super) fn block(run: &Run, folder: &Path) -> String {
    let folder = Path::new("..").join(folder);
    format!(
        "\n{}; three network namespaces, medians, every byte checked; [all of it]({}).\n\n{}\n{}{}\
         ### What these numbers cannot show\n\n{LIMITS}\n",
        run.environment.occasion(),
        folder.join("README.md").display(),
        bars::table(run),
        auto::sentence(run),
        plots::shown(run, &folder)
    )
}

/// All numbers, scenario by scenario.
pub(super) fn tables(run: &Run) -> String {
    let mut text = String::new();
    for scenario in run.scenarios() {
        let _ = write!(text, "**{}**: {}\n\n", scenario.name, scenario.title);
        text.push_str(&table(run, &scenario));
        text.push('\n');
    }
    text
}

fn table(run: &Run, scenario: &Scenario) -> String {
    let unit = scenario.unit;
    let mut columns = match unit {
        Unit::Memory => vec![Metric::Resident, Metric::Buffers, Metric::Slab, Metric::Memory],
        _ => vec![Metric::Rate, Metric::Busy, Metric::Added, Metric::Own, Metric::Switches],
    };
    if matches!(unit, Unit::Count(_) | Unit::Paced) {
        columns.extend([Metric::P50, Metric::P99, Metric::P999]);
    }
    let mut text = String::from("| peer |");
    for metric in &columns {
        let _ = write!(text, " {} |", metric.name(unit));
    }
    text.push_str("\n| --- |");
    text.push_str(&" ---: |".repeat(columns.len()));
    text.push('\n');
    for peer in run.peers(scenario) {
        let _ = write!(text, "| {} |", peer.name());
        for metric in &columns {
            let _ = write!(text, " {} |", cell(run, scenario, peer, *metric));
        }
        text.push('\n');
    }
    text
}

fn cell(run: &Run, scenario: &Scenario, peer: Kind, metric: Metric) -> String {
    let beside_direct = matches!(metric, Metric::Added | Metric::Memory | Metric::Slab);
    let own = matches!(metric, Metric::Own | Metric::Switches | Metric::Resident | Metric::Buffers);
    // Direct beside itself, and the processes of what has none.
    if beside_direct && peer == Kind::Direct || own && peer.is_ceiling() {
        return "–".into();
    }
    run.spread(scenario, peer, metric).map_or_else(|| "–".into(), Spread::text)
}

/// What did not go as it should.
fn irregular(run: &Run) -> String {
    let mut text = String::from("## Skipped, failed, disturbed\n\n");
    for skip in &run.skipped {
        let _ = writeln!(text, "- {}, {}: skipped: {}", skip.scenario, skip.peer.name(), skip.reason);
    }
    for failure in &run.failed {
        let (peer, number) = (failure.peer.name(), failure.number);
        let _ = writeln!(text, "- {}, {peer}, round {number}: failed: {}", failure.scenario, failure.reason);
    }
    let repeated = run.rounds.iter().filter(|round| round.attempts > 1).count();
    let disturbed: Vec<_> = run.rounds.iter().filter(|round| round.disturbed).collect();
    let _ = writeln!(
        text,
        "- Rounds: {}; made again because other processes or the hypervisor took time: {repeated}; disturbed even so: {}.",
        run.rounds.len(),
        disturbed.len()
    );
    for round in disturbed {
        let _ = writeln!(
            text,
            "- {}, {}, round {}: others had {:.2} cores",
            round.scenario,
            round.peer.name(),
            round.number,
            round.cost.others()
        );
    }
    text
}
