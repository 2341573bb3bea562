//! A guest: a kernel, and in memory all that it needs. Nothing of it reaches this machine or a network.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::{Extent, TORTURE, Way, packages::Kernel, renew, table::Case};
use crate::process::{self, output, run};

/// What tests start, from this machine.
const PROGRAMS: [&str; 16] = [
    "bpftool", "curl", "ip", "nft", "nsenter", "openssl", "pgrep", "prlimit", "setpriv", "ss", "tc",
    "timeout", "unshare", "kill", "mount", "umount",
];
/// Parts of the kernel that tests need, where they are not built in.
const MODULES: [&str; 27] = [
    "8021q",
    "af_packet_diag",
    "bonding",
    "bridge",
    "cls_bpf",
    "dummy",
    "inet_diag",
    "nf_conntrack",
    "nf_conntrack_netlink",
    "nf_nat",
    "nf_tables",
    "nft_chain_nat",
    "nft_counter",
    "nft_ct",
    "nft_limit",
    "nft_masq",
    "nft_nat",
    "nft_numgen",
    "overlay",
    "sch_ingress",
    "sch_netem",
    "sch_tbf",
    "tcp_bbr",
    "tcp_diag",
    "tls",
    "udp_diag",
    "veth",
];
/// Memory of a guest, MiB, and how long all of its cases may take.
const MEMORY: &str = "3072";
const PATIENCE: &str = "40m";
/// What a kernel says on its console when something is wrong with itself.
const TROUBLE: [&str; 9] = [
    "BUG:",
    "WARNING: ",
    "Oops",
    "general protection",
    "Kernel panic",
    "refcount_t",
    "rcu: INFO",
    "hung task",
    "soft lockup",
];

/// Packs what all guests have in common: programs, setu, the tests and the torture.
pub(super) fn tools(folder: &Path, setu: &Path) -> Result<PathBuf> {
    let root = folder.join("tools");
    renew(&root)?;
    let bin = root.join("usr/bin");
    for part in ["bin", "dev", "etc", "lib64", "proc", "root", "sys", "usr/bin", "usr/lib/ssl", "var/lib"] {
        fs::create_dir_all(root.join(part))?;
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n")?;
    fs::write(root.join("etc/group"), "root:x:0:\nnogroup:x:65534:\n")?;
    fs::write(root.join("etc/hosts"), "127.0.0.1 localhost\n::1 localhost\n")?;
    fs::copy("/etc/ssl/openssl.cnf", root.join("usr/lib/ssl/openssl.cnf"))?;
    fs::copy("/bin/busybox", root.join("bin/busybox"))?;
    for (file, text) in [("init", include_str!("init")), ("cases", include_str!("cases"))] {
        fs::write(root.join(file), text)?;
        run(Command::new("chmod").arg("755").arg(root.join(file)))?;
    }
    fs::copy(setu, bin.join("setu")).with_context(|| format!("{} cannot be read", setu.display()))?;
    process::announce("building the tests and the torture");
    for (name, arguments) in [
        ("e2e", &["test", "--package", "setu-tests", "--test", "e2e", "--no-run"][..]),
        ("setu-bench", &["build", "--package", "setu-bench"]),
    ] {
        let built = built(arguments)?;
        run(Command::new("strip").arg("-o").arg(bin.join(name)).arg(built))?;
    }
    for program in PROGRAMS {
        let places = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(|folder| Path::new(folder).join(program));
        let found = places.iter().find(|place| place.exists());
        fs::copy(found.with_context(|| format!("{program} is missing"))?, bin.join(program))?;
    }
    libraries(&root)?;
    pack(&root, &folder.join("tools.cpio"))
}

/// Builds something by cargo, and returns what it made.
fn built(arguments: &[&str]) -> Result<PathBuf> {
    let messages = output(process::cargo().args(arguments).args([
        "--message-format",
        "json-render-diagnostics",
        "--quiet",
    ]))?;
    let executable = messages.lines().rev().find_map(|line| {
        let (_, rest) = line.split_once("\"executable\":\"")?;
        Some(PathBuf::from(rest.split_once('"')?.0))
    });
    executable.with_context(|| format!("cargo {} made no program", arguments.join(" ")))
}

/// Copies the libraries that programs ask for.
fn libraries(root: &Path) -> Result<()> {
    let mut all = BTreeSet::new();
    for program in fs::read_dir(root.join("usr/bin"))? {
        // A static one has none, and ldd says so by its status.
        let answer = Command::new("ldd").arg(program?.path()).output()?;
        let text = String::from_utf8_lossy(&answer.stdout).into_owned();
        all.extend(text.split_whitespace().filter(|word| word.starts_with('/')).map(str::to_owned));
    }
    for library in all {
        let to = root.join(library.trim_start_matches('/'));
        fs::create_dir_all(to.parent().unwrap_or(root))?;
        fs::copy(&library, &to)?;
    }
    Ok(())
}

/// Packs the modules of a kernel, unpacked, with the order in which they are to be loaded.
fn modules(folder: &Path, kernel: &Kernel) -> Result<PathBuf> {
    let root = folder.join("modules");
    renew(&root)?;
    let to = root.join("modules");
    fs::create_dir_all(&to)?;
    // From bookworm on everything is below /usr, where modprobe does not look by itself.
    let base =
        if kernel.root.join("lib/modules").exists() { kernel.root.clone() } else { kernel.root.join("usr") };
    run(Command::new("depmod").arg("--basedir").arg(&base).arg(&kernel.version))?;
    let mut order: Vec<String> = Vec::new();
    for module in MODULES {
        let mut modprobe = Command::new("modprobe");
        modprobe
            .args(["--show-depends", "--ignore-install", "--set-version", &kernel.version, "--dirname"])
            .arg(&base);
        // What is built in, or not there, is none.
        let answer = modprobe.arg(module).output()?;
        for line in String::from_utf8_lossy(&answer.stdout).lines() {
            let Some(path) = line.strip_prefix("insmod ").and_then(|rest| rest.split_whitespace().next())
            else {
                continue;
            };
            let file = Path::new(path)
                .file_name()
                .context("a module without a name")?
                .to_string_lossy()
                .into_owned();
            let name = file.trim_end_matches(".xz").to_owned();
            if order.contains(&name) {
                continue;
            }
            fs::copy(path, to.join(&file))?;
            if name != file {
                run(Command::new("xz").arg("--decompress").arg(to.join(&file)))?;
            }
            order.push(name);
        }
    }
    fs::write(to.join("order"), order.join("\n") + "\n")?;
    pack(&root, &folder.join("modules.cpio"))
}

fn pack(root: &Path, archive: &Path) -> Result<PathBuf> {
    let script = "find . | cpio --quiet --create --format=newc --owner=0:0 > \"$0\"";
    run(Command::new("sh").args(["-c", script]).arg(archive).current_dir(root))?;
    Ok(archive.into())
}

/// Boots a kernel, and returns what its cases came to.
pub(super) fn run_cases(
    folder: &Path,
    kernel: &Kernel,
    tools: &Path,
    extent: Extent,
    ways: &[Way],
) -> Result<Vec<Case>> {
    let modules = modules(folder, kernel)?;
    let initrd = folder.join("initrd");
    fs::write(&initrd, [fs::read(tools)?, fs::read(modules)?].concat())?;
    let consoles = folder.join("consoles");
    fs::create_dir_all(&consoles)?;
    let console = consoles.join(format!("{}.console", kernel.version));
    let said = consoles.join(format!("{}.cases", kernel.version));
    let cases: Vec<_> =
        [extent.name(), TORTURE].into_iter().chain(ways.iter().map(|way| way.name())).collect();
    let status = Command::new("timeout")
        .args([
            "--kill-after=5",
            PATIENCE,
            "qemu-system-x86_64",
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
        ])
        .args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", MEMORY, "-kernel"])
        .arg(kernel.image()?)
        .arg("-initrd")
        .arg(&initrd)
        .args([
            "-serial",
            &format!("file:{}", console.display()),
            "-serial",
            &format!("file:{}", said.display()),
        ])
        .args([
            "-append",
            &format!(
                "console=ttyS0,115200 panic=-1 oops=panic random.trust_cpu=on cases={}",
                cases.join(",")
            ),
        ])
        .status()
        .context("qemu-system-x86_64 could not be started")?;
    let said = String::from_utf8_lossy(&fs::read(&said)?).into_owned();
    let console_text = String::from_utf8_lossy(&fs::read(&console)?).into_owned();
    let mut found: Vec<Case> = said.lines().filter_map(Case::parse).collect();
    if !said.contains("guest ended 0") {
        // What came of it so far, and of other kernels, is kept.
        let last: Vec<_> = console_text.lines().rev().take(5).collect();
        let words = format!("the guest did not get to its end ({status}): {}", last.join(" / "));
        found.push(Case::of_the_kernel(&words));
        return Ok(found);
    }
    let is_trouble = |line: &&str| TROUBLE.iter().any(|word| line.contains(word));
    let trouble: Vec<_> = console_text.lines().filter(is_trouble).take(3).collect();
    found.push(Case::of_the_kernel(&trouble.join(" / ")));
    Ok(found)
}
