//! Everything that must hold before a change lands, cheapest first.

use std::{env, fs, path::Path, process::Command};

use anyhow::Result;

use crate::{bench, dist, docs, ebpf, fuzz, page, process, setup, test::SETU_BIN};

/// For each target.
const FUZZ_SECONDS: u32 = 120;
/// Two minutes for each path. The seed is fixed, so that changes are judged under the same conditions.
const TORTURE: [&str; 4] = ["--minutes", "6", "--seed", "13"];

pub(crate) fn run() -> Result<()> {
    setup::run(false)?;
    process::run(process::cargo().args(["fmt", "--all", "--check"]))?;
    process::run(Command::new("cargo").args(["fmt", "--check"]).current_dir("proxy-ebpf"))?;
    process::run(process::cargo().args([
        "clippy",
        "--quiet",
        "--workspace",
        "--all-targets",
        "--",
        "--deny",
        "warnings",
    ]))?;
    process::run(process::cargo().args([
        "deny",
        "--log-level",
        "warn",
        "check",
        "bans",
        "licenses",
        "sources",
    ]))?;
    advisories()?;
    docs::check()?;
    process::run(process::cargo().args([
        "test",
        "--quiet",
        "--package",
        "proxy-userspace",
        "--test",
        "layers",
    ]))?;
    ebpf::check()?;
    bench::check()?;
    dist::build()?;
    dist::check()?;
    page::run(Path::new(dist::BINARY))?;
    fuzz::run(FUZZ_SECONDS, Vec::new())?;
    bench::run("torture", &TORTURE.map(str::to_owned))?;
    // With the binary that is handed out: a static one is not the same in all it does.
    let setu = env::current_dir()?.join(dist::BINARY);
    process::run(Command::new(env::current_exe()?).arg("test").env(SETU_BIN, setu))
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
