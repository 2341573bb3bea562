//! Passes the tests and counts them.

use std::{
    io::{BufRead as _, BufReader},
    process::Stdio,
};

use anyhow::{Context as _, Result, bail};

use crate::{build_setu, process, setup};

/// The variable that names the binary for the end-to-end tests; without it one is built.
pub(crate) const SETU_BIN: &str = "SETU_BIN";

/// The real binary for the end-to-end tests, then every test of the workspace.
pub(crate) fn run(args: &[String]) -> Result<()> {
    setup::install_all()?;
    let setu = std::env::var_os(SETU_BIN).map_or_else(build_setu, |setu| Ok(setu.into()))?;
    process::announce("building the tests");
    let mut cargo = process::cargo();
    // Two at a time: the end-to-end tests share two cores with the proxies and peers that they start.
    cargo
        .args(["test", "--workspace", "--no-fail-fast", "--", "--test-threads=2"])
        .args(args)
        .env(SETU_BIN, setu)
        .stdout(Stdio::piped());
    let mut child = cargo.spawn().context("cargo test could not be started")?;
    let mut counts = [0_u64; 2];
    let output = child.stdout.take().context("cargo test has no output")?;
    for line in BufReader::new(output).lines() {
        let line = line?;
        println!("{line}");
        if let Some(result) = line.strip_prefix("test result: ") {
            for (count, word) in counts.iter_mut().zip(["passed", "failed"]) {
                *count += number_before(result, word).unwrap_or(0);
            }
        }
    }
    let status = child.wait()?;
    let [passed, failed] = counts;
    println!("{passed} passed, {failed} failed");
    if !status.success() || failed > 0 || passed == 0 {
        bail!("the tests did not pass");
    }
    Ok(())
}

/// The number before a word, as in `3 passed`.
fn number_before(text: &str, word: &str) -> Option<u64> {
    let before = text.split(word).next()?.trim_end();
    before.rsplit(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_runners_summary() {
        let text = "FAILED. 15 passed; 2 failed; 0 ignored";
        assert_eq!(number_before(text, "passed"), Some(15));
        assert_eq!(number_before(text, "failed"), Some(2));
    }
}
