//! Everything that must hold before a change lands, cheapest first.

use std::{env, path::Path, process::Command};

use anyhow::Result;

use crate::{bench, dist, docs, ebpf, fuzz, page, process, setup, test::SETU_BIN};

/// For each target.
const FUZZ_SECONDS: u32 = 120;
/// Three minutes for each path. The seed is fixed, so that changes are judged under the same conditions.
const TORTURE: [&str; 4] = ["--minutes", "9", "--seed", "13"];

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
    // Not the advisories: their database must be fetched anew each time, and CI has no network.
    process::run(process::cargo().args([
        "deny",
        "--log-level",
        "warn",
        "check",
        "bans",
        "licenses",
        "sources",
    ]))?;
    docs::check()?;
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
