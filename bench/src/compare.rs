//! Setu beside its peers: rounds that alternate, medians, ratios within the run.

use std::{fmt::Write as _, fs, net::TcpListener, path::Path, time::Duration};

use anyhow::Result;
use serde::Serialize;

use crate::{
    measure::{Round, round},
    peers::{NAMES, Peer},
};

const SCENARIOS: [&str; 2] = ["bulk", "ping-pong"];

#[derive(Serialize)]
struct Raw {
    command: String,
    kernel: String,
    processors: usize,
    round: Vec<Round>,
}

pub(crate) fn run(quick: bool, out: Option<&Path>) -> Result<()> {
    let upstream = TcpListener::bind("127.0.0.1:0")?;
    let address = upstream.local_addr()?;
    let peers = NAMES.map(|name| Peer::start(name, address)).into_iter().collect::<Result<Vec<_>>>()?;
    // HAProxy and nginx were asked whether they listen, and asked the upstream in turn.
    upstream.set_nonblocking(true)?;
    std::thread::sleep(Duration::from_millis(300));
    while upstream.accept().is_ok() {}
    upstream.set_nonblocking(false)?;

    let (rounds, time) = if quick { (3, Duration::from_secs(1)) } else { (5, Duration::from_secs(3)) };
    let mut results = Vec::new();
    for scenario in SCENARIOS {
        // The first is the warm-up. Every other one goes backwards, so that nobody is always after the same one.
        for number in 0..=rounds {
            let order: Vec<_> =
                if number % 2 == 0 { peers.iter().collect() } else { peers.iter().rev().collect() };
            for peer in order {
                let result = round(scenario, peer, &upstream, time)?;
                if number > 0 {
                    results.push(result);
                }
            }
        }
    }
    let summary = summarise(&results);
    println!("{summary}");
    if let Some(out) = out {
        fs::create_dir_all(out)?;
        let raw = Raw {
            command: format!("cargo xtask bench{}", if quick { " --quick" } else { "" }),
            kernel: fs::read_to_string("/proc/version")?.trim().into(),
            processors: std::thread::available_parallelism()?.get(),
            round: results,
        };
        fs::write(out.join("raw.toml"), toml::to_string(&raw)?)?;
        fs::write(out.join("README.md"), format!("# `{}`\n\n{}\n\n{summary}", raw.command, raw.kernel))?;
    }
    Ok(())
}

fn summarise(results: &[Round]) -> String {
    let mut text = String::from(
        "Loopback, load and servers on the same cores as the proxy. Medians (least to most); compare within a \
         table only.\n",
    );
    for scenario in SCENARIOS {
        let (rate, per) =
            if scenario == "bulk" { ("Gbit/s", "GB") } else { ("round trips/s", "million round trips") };
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "\n**{scenario}**\n\n| peer | {rate} | busy core-s per {per} | own CPU-s per {per} | p99, µs |\n\
             | --- | ---: | ---: | ---: | ---: |"
        );
        for name in NAMES {
            let of = |value: fn(&Round) -> f64| spread(results, scenario, name, value);
            let (low, rate, high) = of(|round| round.rate);
            let digits = if scenario == "bulk" { 2 } else { 0 };
            let _ = writeln!(
                text,
                "| {name} | {rate:.digits$} ({low:.digits$} to {high:.digits$}) | {:.3} | {:.3} | {:.0} |",
                of(|round| round.busy).1,
                of(|round| round.own).1,
                of(|round| round.p99).1
            );
        }
    }
    text.push_str("\n**ratios**\n\n| what | measured | wanted |\n| --- | ---: | ---: |\n");
    let median = |scenario, name, value: fn(&Round) -> f64| spread(results, scenario, name, value).1;
    let rate = |round: &Round| round.rate;
    let busy = |round: &Round| round.busy;
    let rows = [
        (
            "bulk: throughput, sockmap to HAProxy",
            "bulk",
            "setu-sockmap",
            "haproxy-reference",
            rate as fn(&Round) -> f64,
            "at least 2.5",
        ),
        (
            "bulk: busy time per GB, sockmap to HAProxy",
            "bulk",
            "setu-sockmap",
            "haproxy-reference",
            busy,
            "at most 0.4",
        ),
        (
            "ping-pong: rate, sockmap to HAProxy",
            "ping-pong",
            "setu-sockmap",
            "haproxy-reference",
            rate,
            "at least 0.9",
        ),
        ("ping-pong: rate, userspace to nginx", "ping-pong", "setu-userspace", "nginx", rate, "at least 0.9"),
    ];
    for (what, scenario, ours, theirs, value, wanted) in rows {
        let ratio = median(scenario, ours, value) / median(scenario, theirs, value);
        let _ = writeln!(text, "| {what} | {ratio:.2} | {wanted} |");
    }
    text
}

/// Least, median and most.
fn spread(results: &[Round], scenario: &str, peer: &str, value: fn(&Round) -> f64) -> (f64, f64, f64) {
    let of = results.iter().filter(|round| round.scenario == scenario && round.peer == peer);
    let mut values: Vec<f64> = of.map(value).collect();
    values.sort_by(f64::total_cmp);
    let pick = |at: usize| values.get(at).copied().unwrap_or(f64::NAN);
    (pick(0), pick(values.len() / 2), pick(values.len().saturating_sub(1)))
}
