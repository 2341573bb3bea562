//! Drives traffic through setu and through what people use instead.
#![expect(clippy::print_stdout, reason = "tools for the terminal")]

mod demo;
mod environment;
mod idlers;
mod interrupt;
mod load;
mod measure;
mod peers;
mod report;
mod run;
mod scenarios;
mod soak;
mod stand_in;
mod topology;
mod torture;

use std::{net::SocketAddr, path::PathBuf};

use anyhow::{Result, ensure};
use clap::{Args, Parser, Subcommand};

/// Drives traffic through setu and its peers
#[derive(Parser)]
#[command(name = "setu-bench")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Chat and media through setu on loopback; fails on any byte that is wrong
    Demo,
    /// Setu beside its peers, in one run
    Bench(BenchArgs),
    /// Mixed traffic, harm and faults, for as long as one likes; fails on anything that is left behind
    Soak {
        /// In all; each path gets half
        #[arg(long, default_value_t = 20.0)]
        minutes: f64,
    },
    /// Thousands of clients that mean harm around 500 healthy flows; fails when those feel it, or a new one is not served
    Siege {
        /// Only those whose names begin like this: crowd, one address, one site, silent, trickle
        #[arg(long, value_name = "S")]
        only: Vec<String>,
    },
    /// Flows under conditions that are drawn anew each round; fails on a byte that is lost, repeated or moved
    Torture(torture::TortureArgs),
    /// Idle flows on the wire, both ends of which are played; fails unless each answers when it is spoken to
    Idlers {
        /// How many
        #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1..=4_000_000))]
        flows: u32,
    },
    /// Busy loops beside a round
    #[command(hide = true)]
    Hogs { count: u32 },
    /// Clients of a run
    #[command(hide = true)]
    LoadClient,
    /// The server of a run
    #[command(hide = true)]
    LoadServer,
    /// Servers that play WhatsApp's, for the test of the package
    #[command(hide = true)]
    StandInServers { dns: SocketAddr, authority: PathBuf },
    /// Users of a setu on this machine, for the test of the package
    #[command(hide = true)]
    StandInUsers { authority: PathBuf },
}

#[derive(Args)]
struct BenchArgs {
    /// Three short rounds instead of five long ones
    #[arg(long)]
    quick: bool,
    /// Only scenarios whose names begin like this
    #[arg(long, value_name = "S")]
    scenario: Vec<String>,
    /// Only peers whose names begin like this
    #[arg(long, value_name = "P")]
    peer: Vec<String>,
    /// Write the report there. Without it a whole run goes to bench/runs, any other to target/bench
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Put the rounds of these scenarios in the place of those in the run in DIR, which then says so
    #[arg(long, value_name = "DIR", requires = "scenario", conflicts_with_all = ["quick", "peer", "out"])]
    again: Option<PathBuf>,
    /// Run nothing: make summary, plots, and what README.md and docs/performance.md say of it, from the run in DIR
    #[arg(long, value_name = "DIR", conflicts_with_all = ["quick", "scenario", "peer", "out", "again"])]
    render: Option<PathBuf>,
    /// Write nothing: fail when what --render makes differs
    #[arg(long, requires = "render")]
    check: bool,
}

fn main() -> Result<()> {
    match Cli::parse().task {
        Task::Demo => demo::run(),
        Task::Bench(BenchArgs { render: Some(folder), check, .. }) => report::render(&folder, check),
        Task::Bench(arguments) => bench(arguments),
        Task::Soak { minutes } => soak::run(minutes),
        Task::Siege { only } => soak::siege::run(&only),
        Task::Torture(arguments) => torture::run(&arguments),
        Task::Idlers { flows } => idlers::run(flows),
        Task::Hogs { count } => {
            torture::be_hogs(count);
            Ok(())
        }
        Task::LoadClient => load::client::run(),
        Task::LoadServer => load::server::run(),
        Task::StandInServers { dns, authority } => stand_in::servers(dns, &authority),
        Task::StandInUsers { authority } => stand_in::users(&authority),
    }
}

fn bench(BenchArgs { quick, scenario, peer, out, again, .. }: BenchArgs) -> Result<()> {
    let whole = !quick && scenario.is_empty() && peer.is_empty();
    let typed: Vec<_> = std::env::args().skip(2).collect();
    let command = ["cargo", "xtask", "bench"].into_iter().map(str::to_owned).chain(typed);
    let command = command.collect::<Vec<_>>().join(" ");
    let wish = run::Wish { quick, scenarios: scenario, peers: peer, command };
    let mut folder = PathBuf::new();
    let run = run::run(&wish, |run| {
        let base = PathBuf::from(if whole { "bench/runs" } else { "target/bench" });
        folder = out.clone().unwrap_or_else(|| base.join(run.environment.folder()));
        run.save(&folder)
    })?;
    println!("\n{}\n{}", run.summary(), folder.join("README.md").display());
    if let Some(folder) = again
        && run.failed.is_empty()
    {
        let mut whole = report::Run::load(&folder)?;
        whole.replace(run)?;
        println!("replaced in {}", folder.display());
        return whole.save(&folder);
    }
    ensure!(run.failed.is_empty(), "{} rounds failed; see above", run.failed.len());
    Ok(())
}
