//! Looks at the status page in a browser: `tests/page/check.mjs` says how.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::{process, setup};

/// Where the browser's modules, the pages and the screenshots go.
const OUT: &str = "target/page";
/// What is checked with, pinned; and states of setu that a test cannot wait for.
const SOURCE: &str = "tests/page";
/// The state that is looked at in each way that a reader may choose: by the end of the page's name, the query, and the
/// browser's language.
const CHOSEN: &str = "busy";
const CHOICES: [(&str, &str, &str); 4] = [
    ("-day", "span=day", "en"),
    ("-week", "span=week&refresh=off", "en"),
    ("-arabic", "", "ar"),
    ("-burmese", "", "my"),
];

/// `setu` is the binary.
pub(crate) fn run(setu: &Path) -> Result<()> {
    setup::page()?;
    fs::create_dir_all(OUT)?;
    install_modules()?;
    let mut pages = Vec::new();
    for entry in fs::read_dir(Path::new(SOURCE).join("status"))? {
        let status = entry?.path();
        pages.push(render(&status, "", "", "en")?);
        if status.file_stem() == Some(OsStr::new(CHOSEN)) {
            for (ending, query, language) in CHOICES {
                pages.push(render(&status, ending, query, language)?);
            }
        }
    }
    pages.sort();
    if pages.is_empty() {
        bail!("{SOURCE}/status has no states");
    }
    let check = Path::new(SOURCE).join("check.mjs");
    process::run(Command::new("node").arg(check).arg(setu).args([OUT, OUT]).args(pages))
}

/// Installs what the lock file names, unless that is there.
fn install_modules() -> Result<()> {
    let [wanted, there] = [SOURCE, OUT].map(|folder| Path::new(folder).join("package-lock.json"));
    let is_there = Path::new(OUT).join("node_modules").is_dir();
    if is_there && fs::read(&wanted).ok() == fs::read(&there).ok() {
        return Ok(());
    }
    fs::copy(Path::new(SOURCE).join("package.json"), Path::new(OUT).join("package.json"))?;
    fs::copy(wanted, there)?;
    let quiet = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error", "--prefix", OUT];
    process::run(Command::new("npm").arg("ci").args(quiet).stdout(Stdio::null()))
}

/// Makes the page of a status, as a browser that asks by this query, in this language, gets it.
fn render(status: &Path, ending: &str, query: &str, language: &str) -> Result<PathBuf> {
    let name = status.file_stem().and_then(OsStr::to_str).context("a status without a name")?;
    let page = Path::new(OUT).join(format!("{name}{ending}.html"));
    let mut example = process::cargo();
    example
        .args(["run", "--quiet", "--package", "proxy-userspace", "--example", "status_page", "--"])
        .args([query, language])
        .stdin(fs::File::open(status)?)
        .stdout(fs::File::create(&page)?);
    process::run(&mut example)?;
    Ok(page)
}
