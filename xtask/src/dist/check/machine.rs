//! A Debian with systemd, in namespaces of its own, which goes when it is dropped.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use super::{files, quiet, remove, wait_for};
use crate::{
    dist::OUT,
    process::{self, output, run},
};

/// What a Debian has besides the least: what its checks need, and cloud-init, which brings Python. debootstrap does not find
/// out by itself that cffi-backend is what provides a virtual package that cloud-init needs.
const INCLUDE: &str = "cloud-init,curl,dbus,procps,python3-cffi-backend,systemd,systemd-sysv";
/// Where the package and the bench lie in each machine.
pub(super) const PACKAGE: &str = "/root/setu.deb";
pub(super) const BENCH: &str = "/root/setu-bench";

pub(super) struct Machine {
    unshare: Child,
    /// Its first process, in the numbers of this machine.
    pub(super) first: String,
}

impl Machine {
    /// Boots the Debian. The package and the bench lie in it, nothing is installed.
    pub(super) fn boot() -> Result<Self> {
        run(process::cargo().args(["build", "--quiet", "--locked", "--package", "setu-bench"]))?;
        let debian = debian()?;
        // Each machine mounts what it writes there, where nobody else sees it.
        let empty = std::env::current_dir()?.join(OUT).join("machine");
        fs::create_dir_all(&empty)?;
        let unshare = Command::new("unshare")
            .args(["--pid", "--fork", "--mount", "--net", "--ipc", "--uts", "--cgroup", "--kill-child"])
            .args(["sh", "xtask/src/dist/machine.sh"])
            .args([debian, empty])
            .stdin(Stdio::null())
            .spawn()
            .context("unshare could not be started")?;
        let mut machine = Self { unshare, first: String::new() };
        machine.wait()?;
        machine.put(package()?, PACKAGE)?;
        // The Debian there is of the release that is here, so that it runs.
        machine.put("target/debug/setu-bench", BENCH)?;
        Ok(machine)
    }

    /// Waits until systemd, the only child of `unshare`, has started all.
    fn wait(&mut self) -> Result<()> {
        let children = format!("/proc/{0}/task/{0}/children", self.unshare.id());
        wait_for("systemd", || {
            fs::read_to_string(&children)?.trim().clone_into(&mut self.first);
            let state = self.command(&["systemctl", "is-system-running"]).output()?;
            Ok(!self.first.is_empty() && state.stdout.starts_with(b"running"))
        })
    }

    /// Puts a file into it, at a path there.
    pub(super) fn put(&self, file: impl AsRef<Path>, path: &str) -> Result<()> {
        let file = file.as_ref();
        let content = fs::File::open(file).with_context(|| format!("{} is not there", file.display()))?;
        quiet(self.command(&["install", "--mode=755", "/dev/stdin", path]).stdin(content))
    }

    /// A command in it.
    pub(super) fn command(&self, command: &[&str]) -> Command {
        let mut inside = Command::new("nsenter");
        inside.args(["--target", &self.first, "--all", "--root", "--wdns=/"]).args(command);
        inside
    }

    /// Runs one of the scripts beside this in it, and shows what it printed.
    pub(super) fn test(&self, script: &str, arguments: &[&str]) -> Result<()> {
        let there = format!("/root/{script}");
        self.put(Path::new("xtask/src/dist").join(script), &there)?;
        let test = self.command(&["sh", &there]).args(arguments).output()?;
        ensure!(test.status.success(), "{}", String::from_utf8_lossy(&test.stderr).trim());
        for line in String::from_utf8_lossy(&test.stdout).lines() {
            println!("      {line}");
        }
        Ok(())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Its first process goes with it, and with that all others and what they wrote.
        if let Err(error) = self.unshare.kill().and_then(|()| self.unshare.wait()) {
            println!("      a machine is left: {error}");
        }
    }
}

/// The Debian that machines begin with, made once.
fn debian() -> Result<PathBuf> {
    let debian = std::env::current_dir()?.join(OUT).join("debian");
    let made = "root/include";
    if fs::read_to_string(debian.join(made)).is_ok_and(|include| include == INCLUDE) {
        return Ok(debian);
    }
    let partial = Path::new(OUT).join("debian.partial");
    remove(&partial)?;
    remove(&debian)?;
    let release = output(Command::new("sh").args(["-c", ". /etc/os-release && echo $VERSION_CODENAME"]))?;
    let mirrors = output(Command::new("apt-get").args(["indextargets", "--format", "$(RELEASE) $(SITE)"]))?;
    let mirror = mirrors.lines().find_map(|line| line.strip_prefix(&release)?.strip_prefix(' '));
    run(Command::new("debootstrap")
        .args(["--variant=minbase", &format!("--include={INCLUDE}"), &release])
        .arg(&partial)
        .args(mirror)
        .stdout(Stdio::null()))?;
    fs::write(partial.join(made), INCLUDE)?;
    fs::rename(&partial, &debian)?;
    Ok(debian)
}

/// The newest package that was made.
pub(super) fn package() -> Result<PathBuf> {
    let files = files(OUT)?;
    let packages = files.into_iter().filter(|file| file.extension().is_some_and(|ending| ending == "deb"));
    let newest = packages.max_by_key(|file| file.metadata().and_then(|data| data.modified()).ok());
    newest.context("there is no package")
}
