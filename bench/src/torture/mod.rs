//! The machine that looks for bytes that are lost, repeated or moved.
//!
//! Between three hosts of their own, flows talk, burst, stall and end in all ways, in rounds; each round is played under
//! conditions that are drawn from its seed: short queues, loss, repetition, reordering, small buffers, busy processors,
//! peers that reset, setu told to reload or to stop. Every byte has its place and is compared. What must not be is in
//! `judge.rs`.
//!
//! Or all frames between the hosts are carried by forwarders of ours, which lose, repeat, delay and reorder them
//! (`forwarded`): what flows that go on as packets must stand.

mod clients;
mod conditions;
mod forwarded;
mod judge;
mod pattern;
mod peer;
mod plan;
mod report;
mod round;
mod servers;
mod stage;
mod weather;

use std::{
    path::PathBuf,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use clap::{Args, ValueEnum};
use setu_tests::{Path, machine};

use crate::{environment::Environment, interrupt};
use conditions::{Conditions, seed_of};
use report::Tally;
pub(crate) use weather::be_hogs;

/// From so many minutes of a path on, a run is one to keep.
const KEPT: f64 = 60.0;

/// Rounds in which no flow may go on the wire, from the first on: a round of few flows may have none that can.
const PATIENT: u64 = 4;

#[derive(Args)]
pub(crate) struct TortureArgs {
    /// In all; the paths share them
    #[arg(long, default_value_t = 9.0)]
    minutes: f64,
    /// Only this path of setu's; all of them by default
    #[arg(long, value_enum)]
    path: Option<Choice>,
    /// Let forwarders carry all frames, and lose, repeat, delay and reorder them; always so with --path wire
    #[arg(long, requires = "path")]
    forwarders: bool,
    /// Play until so many flows went on the wire, in place of a time
    #[arg(long, value_name = "N", requires = "path", conflicts_with = "minutes")]
    hand_overs: Option<u64>,
    /// The first round's seed: that of a round that failed makes the same conditions and flows again
    #[arg(long)]
    seed: Option<u64>,
    /// Write a page for each path into a folder there. Without it, runs of an hour and more write to bench/runs
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Choice {
    Userspace,
    Sockmap,
    Wire,
    Auto,
}

impl Choice {
    fn path(self) -> Path {
        match self {
            Self::Userspace => Path::Userspace,
            Self::Sockmap => Path::Sockmap,
            Self::Wire => Path::Wire,
            Self::Auto => Path::Auto,
        }
    }
}

/// Plays rounds until the time is over.
///
/// # Errors
/// What must not be.
pub(crate) fn run(arguments: &TortureArgs) -> Result<()> {
    ensure!(machine::is_root(), "network namespaces need root: run it as root, or by sudo");
    machine::raise_file_limit();
    interrupt::watch()?;
    let seed = match arguments.seed {
        Some(seed) => seed,
        None => SystemTime::UNIX_EPOCH.elapsed().context("the clock is before 1970")?.as_millis() as u64,
    };
    let paths = match arguments.path {
        Some(choice) => vec![choice.path()],
        None => vec![Path::Userspace, Path::Sockmap, Path::Auto],
    };
    ensure!(
        arguments.hand_overs.is_none() || paths == [Path::Wire],
        "--hand-overs counts flows that go on the wire: it needs --path wire"
    );
    let minutes = arguments.minutes / paths.len() as f64;
    let mut tallies = Vec::new();
    for path in paths {
        let tally = if arguments.forwarders || path == Path::Wire {
            let until = match arguments.hand_overs {
                Some(count) => Until::HandOvers(count),
                None => Until::Time(Duration::from_secs_f64(minutes * 60.0)),
            };
            exercise(path, until, seed)?
        } else {
            torture(path, Duration::from_secs_f64(minutes * 60.0), seed)?
        };
        println!("{}", tally.table());
        save(&tally, arguments, minutes, seed)?;
        tallies.push(tally);
    }
    let found: usize = tallies.iter().map(Tally::found).sum();
    ensure!(found == 0, "{found} findings; see above");
    println!("clean");
    Ok(())
}

/// Plays one path's rounds.
fn torture(path: Path, time: Duration, seed: u64) -> Result<Tally> {
    let mut tally = Tally::new(path.name());
    let forces = path != Path::Userspace && round::can_force_handover();
    let begun = Instant::now();
    for number in 0.. {
        interrupt::check()?;
        let conditions = Conditions::draw(seed_of(seed, number));
        println!("round {} path={} {conditions}", number + 1, path.name());
        let forced = conditions.force_handover.filter(|_| forces);
        let round = round::play(path, &conditions, forced)?;
        tally.add(&conditions, forced.is_some(), round);
        if begun.elapsed() >= time {
            break;
        }
    }
    tally.time = begun.elapsed();
    Ok(tally)
}

/// When rounds are enough.
#[derive(Clone, Copy)]
enum Until {
    Time(Duration),
    /// So many flows went on the wire.
    HandOvers(u64),
}

/// Plays one path's rounds between forwarders.
fn exercise(path: Path, until: Until, seed: u64) -> Result<Tally> {
    let mut tally = Tally::new(path.name());
    let begun = Instant::now();
    for number in 0.. {
        interrupt::check()?;
        let conditions = Conditions::draw_forwarded(seed_of(seed, number));
        println!("round {} path={} {conditions}", number + 1, path.name());
        let round = forwarded::play(path, &conditions)?;
        tally.add(&conditions, false, round);
        let handed_over = tally.count(forwarded::HANDED_OVER);
        ensure!(
            path != Path::Wire || handed_over > 0 || number < PATIENT,
            "no flow went on the wire in {} rounds{}",
            number + 1,
            tally.table()
        );
        let enough = match until {
            Until::Time(time) => begun.elapsed() >= time,
            Until::HandOvers(count) => handed_over >= count,
        };
        if enough {
            break;
        }
    }
    tally.time = begun.elapsed();
    ensure!(
        path != Path::Wire || tally.count(forwarded::HANDED_OVER) > 0,
        "no flow went on the wire{}",
        tally.table()
    );
    Ok(tally)
}

/// Leaves a page where it is wished for.
fn save(tally: &Tally, arguments: &TortureArgs, minutes: f64, seed: u64) -> Result<()> {
    let base = arguments.out.clone().or_else(|| (minutes >= KEPT).then(|| PathBuf::from("bench/runs")));
    let Some(base) = base else { return Ok(()) };
    let typed: Vec<_> = std::env::args().skip(1).collect();
    let environment = Environment::read(&format!("cargo xtask {}", typed.join(" ")), false)?;
    let folder = base.join(format!("{}-torture-{}", environment.date, tally.path));
    tally.save(&folder, &environment, seed)?;
    println!("{}", folder.join("README.md").display());
    Ok(())
}
