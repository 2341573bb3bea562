//! `cargo xtask`: everything that is done to setu, one module for each subcommand. CI calls nothing else.
#![expect(clippy::print_stdout, reason = "a tool for the terminal")]

mod bench;
mod ci;
#[cfg(test)]
mod dependencies;
mod dist;
mod docs;
mod ebpf;
mod fuzz;
mod kernels;
#[cfg(test)]
mod links;
mod page;
mod process;
mod setup;
mod test;

use std::{
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Builds, runs and tests setu
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what build and tests need
    Setup {
        /// And the peers of the bench
        #[arg(long)]
        bench: bool,
    },
    /// Build setu and run it; arguments go to `setu run`
    Run {
        /// For `setu run`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Build everything and pass the tests; arguments go to the test binaries
    Test {
        /// For the test binaries: a name to choose tests, say
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Build the eBPF object from source and commit it beside its provenance
    Ebpf {
        /// Only compare what is built with what is committed, byte by byte
        #[arg(long)]
        check: bool,
    },
    /// Fuzz the parsers from the committed corpus, and print how many of their lines the corpus reaches
    Fuzz {
        /// How long each target runs
        #[arg(long, default_value_t = 120)]
        seconds: u32,
        /// All by default
        targets: Vec<String>,
    },
    /// Drive chat and media through a real setu on loopback, and print what came of it
    Demo,
    /// Mixed traffic, harm and faults against a real setu, then look for what is left behind; as root
    Soak {
        /// For the soak: --minutes N
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Flows under conditions that are drawn anew each round, every byte compared; as root
    Torture {
        /// For the torture: --minutes N, --path P, --forwarders, --hand-overs N, --seed S, --out DIR
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Healthy flows among thousands of clients that mean harm, beside the same flows alone; as root
    Siege {
        /// For the siege: --only S
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Boot Debian's kernels and try setu on each: tests that depend on the kernel, and the torture
    Kernels(kernels::KernelsArgs),
    /// A million idle flows on the wire, each of which must answer at last; prints what they cost; as root
    Idlers {
        /// For it: --flows N
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Measure setu beside what people would use instead; as root. Arguments go to the bench
    Bench {
        /// For the bench
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Look at the status page in a browser, and let axe-core judge it; screenshots go to target/page
    Page,
    /// Make what is handed to operators, in target/dist: static binary, Debian package, image
    Dist {
        /// Then check all of it, and dist/: alerts, manifests, the unit, the package in a Debian of its own
        #[arg(long)]
        check: bool,
    },
    /// Make docs/configuration.md of the keys that setu takes, and the alerts for Kubernetes of those for Prometheus
    Docs {
        /// Only compare what is made with what is committed
        #[arg(long)]
        check: bool,
    },
    /// Everything that must hold before a change lands
    Ci,
}

fn main() -> Result<()> {
    // Paths below are relative to the repository.
    std::env::set_current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))?;
    match Cli::parse().task {
        Task::Setup { bench } => setup::run(bench),
        Task::Run { args } => run(&args),
        Task::Test { args } => test::run(&args),
        Task::Ebpf { check: false } => ebpf::build(),
        Task::Ebpf { check: true } => ebpf::check(),
        Task::Fuzz { seconds, targets } => fuzz::run(seconds, targets),
        Task::Demo => bench::run("demo", &[]),
        Task::Soak { args } => bench::run("soak", &args),
        Task::Torture { args } => bench::run("torture", &args),
        Task::Siege { args } => bench::run("siege", &args),
        Task::Kernels(args) => kernels::run(&args),
        Task::Idlers { args } => bench::run("idlers", &args),
        Task::Bench { args } => bench::run("bench", &args),
        Task::Dist { check: false } => dist::build(),
        Task::Dist { check: true } => dist::build().and_then(|()| dist::check()),
        Task::Docs { check: false } => docs::write(),
        Task::Docs { check: true } => docs::check(),
        Task::Page => page::run(&build_setu()?),
        Task::Ci => ci::run(),
    }
}

/// Builds setu and becomes it, so that signals reach it.
fn run(args: &[String]) -> Result<()> {
    build_setu()?;
    Err(Command::new("target/release/setu").arg("run").args(args).exec().into())
}

fn build_setu() -> Result<PathBuf> {
    let setu = std::env::current_dir()?.join("target/release/setu");
    let first = if setu.exists() { "" } else { "; the first time takes some minutes" };
    process::announce(&format!("building setu (release){first}"));
    process::run(process::cargo().args(["build", "--release", "--package", "proxy-userspace"]))?;
    Ok(setu)
}
