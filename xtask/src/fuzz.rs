//! Fuzzes the parsers, and tells what the committed corpus reaches.
//!
//! The committed corpus is only read: what the fuzzer adds stays in `fuzz/target`, and a finding in `fuzz/artifacts`.
//! The parsers are safe code, so that no sanitizer is needed, and with it no nightly compiler.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
};

use anyhow::{Context as _, Result, bail};

use crate::{process, setup};

const CORPUS: &str = "fuzz/corpus";
const BUILD: &str = "fuzz/target";
const TOOLS: &str = "/usr/lib/llvm-22/bin";
/// Bytes of an input, at most: beyond every bound at which a parser gives up on what it has begun.
const MAX_LEN: usize = 8192;
/// What the corpus is to reach.
const PARSERS: [&str; 3] = [
    "proxy-userspace/src/front/inspect/client_hello.rs",
    "proxy-userspace/src/front/inspect/first_bytes.rs",
    "proxy-userspace/src/front/proxy_protocol.rs",
];

/// Runs each target so long, as many at a time as there are processors, then counts lines.
pub(crate) fn run(seconds: u32, chosen: Vec<String>) -> Result<()> {
    setup::fuzz()?;
    let all = targets()?;
    if let Some(unknown) = chosen.iter().find(|target| !all.contains(target)) {
        bail!("no fuzz target {unknown}; there are {}", all.join(", "));
    }
    let targets = if chosen.is_empty() { all } else { chosen };
    process::run(&mut fuzz("build"))?;
    let mut found = Vec::new();
    let at_once = thread::available_parallelism().map_or(1, usize::from);
    for some in targets.chunks(at_once) {
        let running: Vec<_> = some.iter().map(|target| Running::start(target, seconds)).collect();
        for target in running {
            let target = target?;
            let name = target.name.clone();
            if let Err(error) = target.finish() {
                println!("fuzz: {name}: {error:#}");
                found.push(name);
            }
        }
    }
    if !found.is_empty() {
        bail!("findings in {}; the inputs are in fuzz/artifacts", found.join(", "));
    }
    coverage()
}

/// A folder of the corpus is a target.
fn targets() -> Result<Vec<String>> {
    let mut names = fs::read_dir(CORPUS)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

fn fuzz(task: &str) -> Command {
    let mut cargo = process::cargo();
    cargo.args(["fuzz", task, "--sanitizer", "none"]);
    cargo
}

/// A target at work.
struct Running {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Running {
    fn start(name: &str, seconds: u32) -> Result<Self> {
        let scratch = Path::new(BUILD).join("corpus").join(name);
        fs::create_dir_all(&scratch)?;
        let log = Path::new(BUILD).join(format!("{name}.log"));
        let output = File::create(&log)?;
        let mut fuzz = fuzz("run");
        // The first folder is written to, the others are only read.
        fuzz.arg(name).args([scratch, Path::new(CORPUS).join(name)]).arg("--");
        fuzz.arg(format!("-max_total_time={seconds}")).arg(format!("-max_len={MAX_LEN}"));
        fuzz.args(["-timeout=10", "-print_final_stats=1"]);
        let child = fuzz.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).spawn();
        Ok(Self { name: name.into(), child: child.context("cargo fuzz could not be started")?, log })
    }

    fn finish(mut self) -> Result<()> {
        let status = self.child.wait()?;
        let log = String::from_utf8_lossy(&fs::read(&self.log)?).into_owned();
        if !status.success() {
            let last: Vec<_> = log.lines().rev().take(40).collect();
            bail!("{status}\n{}", last.into_iter().rev().collect::<Vec<_>>().join("\n"));
        }
        let executions = statistic(&log, "number_of_executed_units").context("the fuzzer told nothing")?;
        let each_second = statistic(&log, "average_exec_per_sec").unwrap_or(0);
        println!("fuzz: {}: {executions} executions, {each_second}/s, no finding", self.name);
        Ok(())
    }
}

/// A number of libFuzzer's final statistics: `stat::number_of_executed_units: 42`.
fn statistic(log: &str, name: &str) -> Option<u64> {
    log.lines()
        .filter_map(|line| line.strip_prefix("stat::")?.split_once(':'))
        .find(|(key, _)| *key == name)
        .and_then(|(_, value)| value.trim().parse().ok())
}

/// Prints which share of the parsers' lines the committed corpus runs.
fn coverage() -> Result<()> {
    let target = std::env::current_dir()?.join(BUILD).join("coverage");
    let (raw, data) = (target.join("replay.profraw"), target.join("replay.profdata"));
    process::run(
        process::cargo()
            .args(["build", "--quiet", "--manifest-path", "fuzz/Cargo.toml", "--example", "replay"])
            .arg("--target-dir")
            .arg(&target)
            .env("RUSTFLAGS", "-C instrument-coverage")
            // Build scripts are instrumented as well, and nobody asked.
            .env("LLVM_PROFILE_FILE", "/dev/null"),
    )?;
    let replay = target.join("debug/examples/replay");
    process::run(Command::new(&replay).arg(CORPUS).env("LLVM_PROFILE_FILE", &raw))?;
    let tool = |name| Command::new(Path::new(TOOLS).join(name));
    process::run(tool("llvm-profdata").args(["merge", "-sparse"]).arg(&raw).arg("-o").arg(&data))?;
    println!("fuzz: lines that the committed corpus reaches:");
    let sources = PARSERS.map(|parser| std::env::current_dir().map(|root| root.join(parser)));
    let mut report = tool("llvm-cov");
    report.arg("report").arg(&replay).arg(format!("-instr-profile={}", data.display()));
    report.args(["-show-region-summary=false", "-show-branch-summary=false"]);
    for source in sources {
        report.arg(source?);
    }
    process::run(&mut report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_fuzzers_statistics() {
        let log = "#7 DONE\nstat::number_of_executed_units: 42\nstat::average_exec_per_sec:     21\n";
        assert_eq!(statistic(log, "number_of_executed_units"), Some(42));
        assert_eq!(statistic(log, "average_exec_per_sec"), Some(21));
        assert_eq!(statistic(log, "peak_rss_mb"), None);
    }
}
