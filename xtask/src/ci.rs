//! Everything that must hold before a change lands, cheapest first.

use std::{env, fs, path::Path, process::Command, thread, time::Instant};

use anyhow::Result;

use crate::{
    bench, dist, docs, ebpf, fuzz,
    kernels::{self, KernelsArgs},
    page, process, setup,
    test::SETU_BIN,
};

/// For each target.
const FUZZ_SECONDS: u32 = 60;
/// The seeds are fixed, so that changes are judged under the same conditions. A minute for each path that has sockets.
const TORTURE: [&str; 4] = ["--minutes", "3", "--seed", "13"];
/// As long for the wire, between forwarders.
const WIRE: [&str; 6] = ["--path", "wire", "--minutes", "3", "--seed", "13"];

pub(crate) fn run() -> Result<()> {
    timed("setup", || setup::run(false))?;
    // One compiler is busy with the static binary for longer than all that needs none.
    thread::scope(|scope| {
        let dist = scope.spawn(|| timed("dist", dist::build));
        let cheap = without_binary();
        dist.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)).and(cheap)
    })?;
    timed("dist, checked", dist::check)?;
    // The binary that is handed out: a static one is not the same in all it does.
    let setu = env::current_dir()?.join(dist::BINARY);
    timed("page", || page::run(&setu))?;
    timed("fuzz", || fuzz::run(FUZZ_SECONDS, Vec::new()))?;
    timed("torture", || torture(&setu, &TORTURE))?;
    timed("torture of the wire", || torture(&setu, &WIRE))?;
    timed("kernels", || kernels::run(&KernelsArgs::of(&setu)))?;
    process::run(Command::new(env::current_exe()?).arg("test").env(SETU_BIN, setu))
}

/// What needs no binary of setu, cheapest first, and at last what later steps build.
fn without_binary() -> Result<()> {
    timed("style", style)?;
    timed("documents", docs::check)?;
    timed("layers", || {
        let test = ["test", "--quiet", "--package", "proxy-userspace", "--test", "layers"];
        process::run(process::cargo().args(test))
    })?;
    timed("kernel programs", ebpf::check)?;
    timed("bench", bench::check)?;
    timed("tests, built", || {
        process::run(process::cargo().args(["test", "--quiet", "--workspace", "--no-run"]))
    })
}

/// Says how long a step took.
fn timed(step: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let begun = Instant::now();
    work()?;
    println!("ci: {step}: {} s", begun.elapsed().as_secs());
    Ok(())
}

/// How the code is written, and what it depends on.
fn style() -> Result<()> {
    process::run(process::cargo().args(["fmt", "--all", "--check"]))?;
    process::run(Command::new("cargo").args(["fmt", "--check"]).current_dir("proxy-ebpf"))?;
    let clippy = ["clippy", "--quiet", "--workspace", "--all-targets", "--", "--deny", "warnings"];
    process::run(process::cargo().args(clippy))?;
    let deny = ["deny", "--log-level", "warn", "check", "bans", "licenses", "sources"];
    process::run(process::cargo().args(deny))?;
    advisories()
}

/// With the bench as the tests build it: another build of it would take longer than the torture.
fn torture(setu: &Path, arguments: &[&str]) -> Result<()> {
    let task = ["run", "--quiet", "--package", "setu-bench", "--", "torture"];
    process::run(process::cargo().args(task).args(arguments).env(SETU_BIN, setu))
}

/// Holds the dependencies against known advisories, where the database of these can be had, or was once.
fn advisories() -> Result<()> {
    // A server that asks who this is is none that can be had.
    let fetched =
        process::succeeds(process::cargo().args(["deny", "fetch", "db"]).env("GIT_TERMINAL_PROMPT", "0"));
    if !fetched && !has_database() {
        println!(
            "ci: ADVISORIES WERE NOT CHECKED: their database cannot be fetched here, and there is none of before. \
             Before a release a person must: docs/releasing.md"
        );
        return Ok(());
    }
    if !fetched {
        println!("ci: ADVISORIES OF BEFORE: a newer database cannot be fetched here");
    }
    process::run(process::cargo().args(["deny", "--offline", "--log-level", "warn", "check", "advisories"]))
}

/// Whether cargo-deny has fetched one before (its default `db-path`). A clone that failed leaves an empty folder.
fn has_database() -> bool {
    let home = env::var("CARGO_HOME").or_else(|_| env::var("HOME").map(|home| format!("{home}/.cargo")));
    let Ok(folders) = fs::read_dir(Path::new(&home.unwrap_or_default()).join("advisory-dbs")) else {
        return false;
    };
    folders.flatten().any(|folder| folder.path().join("crates").is_dir())
}
