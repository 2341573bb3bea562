//! Everything that must hold before a change lands, cheapest first.

use std::process::Command;

use anyhow::Result;

use crate::{bench, ebpf, fuzz, page, process, setup, test};

/// For each target.
const FUZZ_SECONDS: u32 = 120;

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
    ebpf::check()?;
    page::run()?;
    bench::check()?;
    fuzz::run(FUZZ_SECONDS, Vec::new())?;
    test::run(&[])
}
