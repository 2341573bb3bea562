//! Everything that must hold before a change lands, cheapest first.

use std::process::Command;

use anyhow::Result;

use crate::{bench, ebpf, process, setup, test};

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
    bench::check()?;
    test::run(&[])
}
