//! Demo and bench, and whether the documents say what the newest committed run found.

use std::{fs, process::Command};

use anyhow::Result;

use crate::{build_setu, process, setup, test::SETU_BIN};

/// Where runs are committed, in folders whose names begin with the date.
const RUNS: &str = "bench/runs";

/// Builds setu and the bench, and runs a task of the bench. What is only rendered needs no setu.
pub(crate) fn run(task: &str, args: &[String]) -> Result<()> {
    process::announce("building the bench (release)");
    process::run(process::cargo().args(["build", "--release", "--package", "setu-bench"]))?;
    let mut bench = Command::new("target/release/setu-bench");
    if !args.iter().any(|arg| arg.starts_with("--render")) {
        if task == "bench" {
            setup::install_all()?;
            setup::install_peers()?;
        }
        bench.env(SETU_BIN, build_setu()?);
    }
    process::run(bench.arg(task).args(args))
}

/// Fails when summary, plots, README.md or docs/performance.md are not what the newest committed run's raw data makes of
/// them.
pub(crate) fn check() -> Result<()> {
    let entries = fs::read_dir(RUNS).into_iter().flatten().flatten().map(|entry| entry.path());
    let Some(newest) = entries.filter(|path| path.join("raw.json").exists()).max() else {
        println!("ci: no run of the bench is committed; what documents say of it is not checked");
        return Ok(());
    };
    process::run(
        process::cargo()
            .args(["run", "--quiet", "--package", "setu-bench", "--", "bench", "--check", "--render"])
            .arg(newest),
    )
}
