//! What setu does on other kernels: Debian's, each booted in a virtual machine without a network, with the static binary,
//! the end-to-end tests that depend on the kernel, and the torture.
//!
//! The machine is emulated (TCG), so that it runs where there is no KVM. What takes how long means nothing there.

mod guest;
mod packages;
mod table;

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use clap::{Args, ValueEnum};

use crate::{dist, process, setup};

/// What is kept between runs: packages, modules, guests' consoles.
const FOLDER: &str = "target/kernels";
/// What the guests need.
const PACKAGES: [(&str, &str); 5] = [
    ("busybox-static", "the guest's shell"),
    ("cpio", "packs the guest's files"),
    ("kmod", "knows which modules need each other"),
    ("qemu-system-x86", "runs other kernels"),
    ("xz-utils", "unpacks modules"),
];
/// Debian's series with a kernel for clouds, from bullseye to trixie-backports.
const ALL: [&str; 5] = ["5.10", "6.1", "6.12", "6.18", "7.3"];
/// What is booted without a choice, in CI: the oldest, on which the kernel paths must be refused in words, and Debian 12's.
const FEW: [&str; 2] = ["5.10", "6.1"];
/// How long the torture of each path takes, minutes.
const TORTURE: &str = "0.3";

#[derive(Args)]
pub(crate) struct KernelsArgs {
    /// A series (6.1) or a version (6.1.0-56-cloud-amd64) of Debian's cloud kernels
    #[arg(long, value_name = "V")]
    kernel: Vec<String>,
    /// All series that Debian has, and write what came of it to docs/kernels.md
    #[arg(long, conflicts_with_all = ["kernel", "path"])]
    all: bool,
    /// Only the tests of each path's main promises; always so without a choice of kernels
    #[arg(long)]
    few: bool,
    /// Only these of setu's paths
    #[arg(long, value_name = "P", value_enum)]
    path: Vec<Way>,
    /// The static binary of setu; without it one is made, as `cargo xtask dist` does
    #[arg(long, value_name = "FILE")]
    setu: Option<PathBuf>,
}

impl KernelsArgs {
    /// The few, with a binary that is there.
    pub(crate) fn of(setu: &Path) -> Self {
        Self { kernel: Vec::new(), all: false, few: true, path: Vec::new(), setu: Some(setu.into()) }
    }
}

/// A path of setu's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Way {
    Userspace,
    Sockmap,
    Wire,
}

/// How many of the tests are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Extent {
    /// Those of each path's main promises.
    Few,
    Every,
}

impl Extent {
    fn name(self) -> &'static str {
        match self {
            Self::Few => "few",
            Self::Every => "every",
        }
    }
}

impl Way {
    const EVERY: [Self; 3] = [Self::Userspace, Self::Sockmap, Self::Wire];

    fn name(self) -> &'static str {
        match self {
            Self::Userspace => "userspace",
            Self::Sockmap => "sockmap",
            Self::Wire => "wire",
        }
    }

    /// Whether a kernel cannot have it, and setu must say so: its programs need atomic operations that return the old
    /// value (Linux 5.12, BPF_FETCH).
    fn is_too_new_for(self, version: &str) -> bool {
        self != Self::Userspace && packages::numbers(version) < vec![5, 12]
    }
}

pub(crate) fn run(args: &KernelsArgs) -> Result<()> {
    setup::install_all()?;
    setup::install(&PACKAGES)?;
    let setu = match &args.setu {
        // Before minutes go to kernels.
        Some(setu) => setu.canonicalize().with_context(|| format!("--setu {}", setu.display()))?,
        None => {
            dist::build()?;
            env::current_dir()?.join(dist::BINARY)
        }
    };
    let wanted: Vec<&str> = match (&args.kernel[..], args.all) {
        ([], false) => FEW.into(),
        ([], true) => ALL.into(),
        (named, _) => named.iter().map(String::as_str).collect(),
    };
    let extent = if args.few || args.kernel.is_empty() && !args.all { Extent::Few } else { Extent::Every };
    let ways = if args.path.is_empty() { &Way::EVERY[..] } else { &args.path };

    let folder = env::current_dir()?.join(FOLDER);
    let kernels = packages::fetch(&folder, &wanted)?;
    let tools = guest::tools(&folder, &setu)?;
    let mut results = Vec::new();
    for kernel in &kernels {
        process::announce(&format!("booting {}", kernel.version));
        let cases = guest::run_cases(&folder, kernel, &tools, extent, ways)?;
        for case in &cases {
            println!("{} {case}", kernel.version);
        }
        results.push(table::Outcome { version: kernel.version.clone(), cases });
    }
    println!("\n{}", table::summary(&results));
    if args.all {
        table::write(&results, extent)?;
    }
    let faults: Vec<_> = results.iter().flat_map(|result| result.faults(ways)).collect();
    ensure!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
    Ok(())
}

/// Makes an empty folder.
fn renew(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    Ok(fs::create_dir_all(folder)?)
}
