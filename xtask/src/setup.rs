//! Installs what the other subcommands need, with the progress of whoever installs it. Quiet when all is there.

use std::process::Command;

use anyhow::{Result, bail};

use crate::{
    ebpf::{self, Way},
    process::{self, succeeds},
};

/// Debian packages for the tests, and what for.
const TEST_PACKAGES: [(&str, &str); 11] = [
    ("bpftool", "tests look for maps that setu left behind"),
    ("chromium", "a real client: a browser's TLS"),
    ("curl", "a real client"),
    ("gnutls-bin", "a real client"),
    ("haproxy", "the reference, to compare with, and a load balancer"),
    ("iproute2", "network namespaces"),
    ("libnginx-mod-stream", "a peer, to compare with"),
    ("nftables", "faults in the network"),
    ("nginx-light", "a peer, to compare with"),
    ("openssl", "a real client"),
    ("util-linux", "nsenter and setpriv"),
];
/// Debian packages for the bench, and what for; those for the tests come too.
const BENCH_PACKAGES: [(&str, &str); 1] = [("sniproxy", "a peer that routes by SNI, to compare with")];
/// Debian packages that build the eBPF object where rustup has no nightly with rust-src.
const EBPF_PACKAGES: [(&str, &str); 4] = [
    ("rustc-web", "the compiler for the eBPF object"),
    ("cargo-web", "of the same version"),
    ("rust-web-src", "the source of core, which the eBPF target needs"),
    ("llvm-22-dev", "the linker of the eBPF object"),
];
const LINKER: &str = "0.13.0";
const DENY: &str = "0.20.2";
/// Debian packages for fuzzing.
const FUZZ_PACKAGES: [(&str, &str); 2] = [
    ("g++", "the fuzzer's runtime is C++"),
    ("llvm-22", "reads what the stable compiler's coverage instrumentation wrote"),
];
const FUZZER: &str = "0.13.2";

/// Debian packages to look at the status page with.
const PAGE_PACKAGES: [(&str, &str); 5] = [
    ("chromium", "the browser that looks at the status page"),
    ("fonts-droid-fallback", "the Chinese card"),
    ("fonts-noto-core", "cards in all other scripts"),
    ("nodejs", "drives the browser"),
    ("npm", "fetches axe-core and puppeteer-core"),
];

pub(crate) fn run(bench: bool) -> Result<()> {
    install_all()?;
    if bench {
        install_peers()?;
    }
    println!("setup: all there");
    Ok(())
}

/// What the bench needs besides.
pub(crate) fn install_peers() -> Result<()> {
    install(&BENCH_PACKAGES)
}

/// What build and tests need.
pub(crate) fn install_all() -> Result<()> {
    let mut packages: Vec<_> = TEST_PACKAGES.into();
    let way = ebpf::way();
    if !matches!(way, Ok(Way::Rustup)) {
        packages.extend(EBPF_PACKAGES);
    }
    install(&packages)?;
    if !succeeds(Command::new("bpf-linker").arg("--version")) {
        println!("setup: building bpf-linker {LINKER}, the linker of the eBPF object");
        let mut install = process::cargo();
        install.args(["install", "--locked", "bpf-linker", "--version", LINKER]);
        if !matches!(way, Ok(Way::Rustup)) {
            install
                .args(["--no-default-features", "--features", "llvm-22"])
                .env("LLVM_PREFIX", "/usr/lib/llvm-22");
        }
        process::run(&mut install)?;
    }
    if !succeeds(process::cargo().args(["deny", "--version"])) {
        println!("setup: building cargo-deny {DENY}, which checks licences and sources of dependencies");
        let mut install = process::cargo();
        install.args(["install", "--locked", "cargo-deny", "--version", DENY]);
        // It runs for a second in all: optimising it, link-time and for one codegen unit, would take minutes.
        for (setting, value) in [("OPT_LEVEL", "0"), ("DEBUG", "0"), ("LTO", "off"), ("CODEGEN_UNITS", "16")]
        {
            install.env(format!("CARGO_PROFILE_RELEASE_{setting}"), value);
        }
        process::run(&mut install)?;
    }
    Ok(())
}

/// What looking at the status page needs besides.
pub(crate) fn page() -> Result<()> {
    install(&PAGE_PACKAGES)
}

/// What fuzzing needs besides.
pub(crate) fn fuzz() -> Result<()> {
    install(&FUZZ_PACKAGES)?;
    if !succeeds(process::cargo().args(["fuzz", "--version"])) {
        println!("setup: building cargo-fuzz {FUZZER}");
        let mut install = process::cargo();
        install.args(["install", "--locked", "cargo-fuzz", "--version", FUZZER]);
        process::run(&mut install)?;
    }
    Ok(())
}

/// Installs what is missing of these Debian packages, each with its purpose.
pub(crate) fn install(packages: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<_> = packages.iter().filter(|(name, _)| !installed(name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    for (name, purpose) in &missing {
        println!("setup: {name}: {purpose}");
    }
    let names: Vec<_> = missing.iter().map(|(name, _)| *name).collect();
    let by_hand = format!("as root: apt-get update && apt-get install {}", names.join(" "));
    if !succeeds(Command::new("apt-get").arg("--version")) {
        bail!(
            "this is no Debian; install what these packages hold with the system's own means: {}",
            names.join(" ")
        );
    }
    if !succeeds(Command::new("test").args(["-w", "/var/lib/dpkg"])) {
        bail!("packages are missing and this is not root; {by_hand}");
    }
    process::run(apt().args(["-q", "update"]))?;
    process::run(apt().args(["-q", "install", "--yes", "--no-install-recommends"]).args(&names))
}

fn apt() -> Command {
    let mut apt = Command::new("apt-get");
    apt.env("DEBIAN_FRONTEND", "noninteractive");
    apt
}

fn installed(package: &str) -> bool {
    // nginx-light is one of several packages that hold nginx, and npm may come with nodejs.
    let program = match package {
        "nginx-light" => Some(("nginx", "-v")),
        "npm" => Some(("npm", "--version")),
        _ => None,
    };
    if program.is_some_and(|(program, version)| succeeds(Command::new(program).arg(version))) {
        return true;
    }
    let status = Command::new("dpkg-query").args(["-W", "-f", "${Status}", package]).output();
    status.is_ok_and(|output| output.stdout.starts_with(b"install ok installed"))
}
