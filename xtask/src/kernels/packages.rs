//! Debian's kernels, by an apt with lists of its own, so that the machine's stay as they are.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::process::{output, run};

/// Releases whose kernels are looked through, and whether they have backports.
const RELEASES: [(&str, bool); 3] = [("bullseye", false), ("bookworm", true), ("trixie", true)];
const ARCHITECTURE: &str = "amd64";
/// Of the packages into which a kernel is split since 6.19.
const PARTS: [&str; 4] = ["image", "binary", "modules", "base"];

/// A kernel, unpacked.
#[derive(Debug)]
pub(crate) struct Kernel {
    pub(crate) version: String,
    /// What its packages hold.
    pub(crate) root: PathBuf,
}

impl Kernel {
    /// What is booted.
    pub(super) fn image(&self) -> Result<PathBuf> {
        let places =
            [format!("boot/vmlinuz-{}", self.version), format!("usr/lib/modules/{}/vmlinuz", self.version)];
        let image = places.iter().map(|place| self.root.join(place)).find(|image| image.exists());
        image.with_context(|| format!("the packages of {} hold no kernel", self.version))
    }
}

/// Fetches the newest kernels of series, or versions.
pub(super) fn fetch(folder: &Path, wanted: &[&str]) -> Result<Vec<Kernel>> {
    let apt = Apt::new(folder)?;
    let text = output(apt.command("apt-cache").args([
        "search",
        "--names-only",
        &format!("^linux-image-.*cloud-{ARCHITECTURE}$"),
    ]))?;
    let known: Vec<_> =
        text.lines().filter_map(|line| line.split(' ').next()?.strip_prefix("linux-image-")).collect();
    let kernels: Vec<_> = wanted.iter().map(|wanted| newest(&known, wanted)).collect::<Result<_>>()?;
    kernels.into_iter().map(|version| apt.unpack(version)).collect()
}

/// The newest version of a series, or the version itself.
fn newest<'a>(known: &[&'a str], wanted: &str) -> Result<&'a str> {
    let series = format!("{wanted}.");
    // Kernels of one release built for an older one are not what anybody has.
    let is_wanted =
        |version: &&&str| **version == wanted || version.starts_with(&series) && !version.contains("deb11.");
    let newest = known.iter().filter(is_wanted).max_by_key(|version| numbers(version));
    newest
        .copied()
        .with_context(|| format!("Debian has no cloud kernel {wanted}; it has {}", known.join(", ")))
}

/// All numbers of a version, in their order.
pub(super) fn numbers(version: &str) -> Vec<u32> {
    version.split(|letter: char| !letter.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

/// An apt that knows of the machine nothing but its mirrors and keys.
struct Apt {
    folder: PathBuf,
    config: PathBuf,
}

impl Apt {
    /// Makes it, and asks for what there is.
    fn new(folder: &Path) -> Result<Self> {
        let root = folder.join("apt");
        for part in ["lists/partial", "cache/archives/partial", "etc/preferences.d", "etc/none.d"] {
            fs::create_dir_all(root.join(part))?;
        }
        fs::write(root.join("status"), "")?;
        fs::write(root.join("etc/sources.list"), sources()?)?;
        let config = folder.join("apt.conf");
        let at = root.display();
        fs::write(
            &config,
            format!(
                "Dir::State \"{at}\"; Dir::State::status \"{at}/status\"; Dir::State::lists \"{at}/lists\";\n\
                 Dir::Cache \"{at}/cache\"; Dir::Etc \"{at}/etc\"; Dir::Etc::main \"none\"; Dir::Etc::parts \"none.d\";\n\
                 APT::Architecture \"{ARCHITECTURE}\"; APT::Sandbox::User \"root\"; Acquire::Languages \"none\";\n\
                 #clear DPkg::Post-Invoke; #clear APT::Update::Post-Invoke;\n"
            ),
        )?;
        let apt = Self { folder: folder.into(), config };
        run(apt.command("apt-get").args(["-qq", "update"]))?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", &self.config);
        command
    }

    /// Downloads and unpacks a kernel, unless it is there.
    fn unpack(&self, version: &str) -> Result<Kernel> {
        let root = self.folder.join("unpacked").join(version);
        let kernel = Kernel { version: version.into(), root };
        if kernel.image().is_ok() {
            return Ok(kernel);
        }
        let packages = PARTS.map(|part| format!("linux-{part}-{version}"));
        let is_there = |package: &&String| {
            output(self.command("apt-cache").args(["policy", package]))
                .is_ok_and(|text| text.contains("Candidate: ") && !text.contains("Candidate: (none)"))
        };
        let there: Vec<_> = packages.iter().filter(is_there).collect();
        let archives = self.folder.join("archives").join(version);
        super::renew(&archives)?;
        run(self.command("apt-get").args(["-qq", "download"]).args(there).current_dir(&archives))?;
        super::renew(&kernel.root)?;
        for archive in fs::read_dir(&archives)? {
            run(Command::new("dpkg-deb").arg("--extract").arg(archive?.path()).arg(&kernel.root))?;
        }
        fs::remove_dir_all(&archives)?;
        kernel.image()?;
        Ok(kernel)
    }
}

/// The machine's own mirrors, for other releases.
fn sources() -> Result<String> {
    let format = ["--format", "$(LABEL)|$(REPO_URI)", "Created-By: Packages"];
    let targets = output(Command::new("apt-get").arg("indextargets").args(format))?;
    let mirror = |label: &str| {
        let found = targets.lines().find_map(|line| line.strip_prefix(label)?.strip_prefix('|'));
        found.map(|mirror| mirror.trim_end_matches('/').to_owned())
    };
    let Some(main) = mirror("Debian") else {
        bail!("this machine has no mirror of Debian in its apt sources: apt-get update")
    };
    let keys = "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]";
    ensure!(
        Path::new("/usr/share/keyrings/debian-archive-keyring.gpg").exists(),
        "Debian's keys are missing: debian-archive-keyring"
    );
    let mut lines = Vec::new();
    for (release, has_backports) in RELEASES {
        lines.push(format!("deb {keys} {main} {release} main"));
        if let Some(security) = mirror("Debian-Security") {
            lines.push(format!("deb {keys} {security} {release}-security main"));
        }
        if has_backports {
            lines.push(format!("deb {keys} {main} {release}-backports main"));
        }
    }
    Ok(lines.join("\n") + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_of_a_series_is_taken() {
        let known = [
            "6.1.0-9-cloud-amd64",
            "6.1.0-56-cloud-amd64",
            "6.1.0-0.deb11.99-cloud-amd64",
            "6.12.9+deb13-cloud-amd64",
            "6.12.10+deb12-cloud-amd64",
        ];
        assert_eq!(newest(&known, "6.1").unwrap(), "6.1.0-56-cloud-amd64");
        assert_eq!(newest(&known, "6.12").unwrap(), "6.12.10+deb12-cloud-amd64");
        assert_eq!(newest(&known, "6.1.0-9-cloud-amd64").unwrap(), "6.1.0-9-cloud-amd64");
        let error = newest(&known, "6.2").unwrap_err().to_string();
        assert!(error.contains("6.2; it has 6.1.0-9"), "{error}");
    }
}
