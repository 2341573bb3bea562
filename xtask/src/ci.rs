//! Everything that must hold before a change lands, cheapest first.

use std::process::Command;

use anyhow::Result;

use crate::{ebpf, process, setup, test};

pub(crate) fn run() -> Result<()> {
    setup::run()?;
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
    if process::succeeds(process::cargo().args(["deny", "--version"])) {
        process::run(process::cargo().args(["deny", "check", "bans", "licenses", "sources"]))?;
    } else {
        println!("ci: cargo-deny is not installed; licences and sources of dependencies are not checked");
    }
    ebpf::check()?;
    test::run(&[])
}
