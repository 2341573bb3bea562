//! Documents that are made of setu's own definitions: its manual, and the page on its configuration.

use std::{fs, path::Path};

use anyhow::{Result, ensure};

use crate::process;

/// The one that is committed, because it is read where the source is.
const CONFIGURATION: &str = "docs/configuration.md";
const OUT: &str = "target/docs";

/// Makes all of them, in a directory of their own.
pub(crate) fn make(directory: &Path) -> Result<()> {
    if directory.exists() {
        fs::remove_dir_all(directory)?;
    }
    process::run(
        process::cargo()
            .args(["run", "--quiet", "--locked", "--package", "proxy-userspace", "--example", "manual", "--"])
            .arg(directory),
    )
}

/// Puts the page on the configuration where it is committed.
pub(crate) fn write() -> Result<()> {
    fs::write(CONFIGURATION, configuration()?)?;
    println!("{CONFIGURATION}: made of the keys");
    Ok(())
}

/// What the page on each command has, besides what is made of the command line.
const SECTIONS: [&str; 5] = ["\"EXIT STATUS\"", "ENVIRONMENT", "FILES", "SIGNALS", "EXAMPLES"];

/// Fails when what is committed is not what is made, or a page lacks what operators look for in it.
pub(crate) fn check() -> Result<()> {
    let made = configuration()?;
    for page in fs::read_dir(Path::new(OUT).join("man"))? {
        let page = page?.path();
        if page.extension().is_some_and(|section| section == "1") {
            let text = fs::read_to_string(&page)?;
            for section in SECTIONS {
                let items = text.split(&format!("\n.SH {section}\n")).nth(1).unwrap_or_default();
                ensure!(items.starts_with(".TP\n"), "{}: it has no {section}", page.display());
            }
        }
    }
    ensure!(
        fs::read_to_string(CONFIGURATION).is_ok_and(|there| there == made),
        "{CONFIGURATION} is not what the keys make of it; run: cargo xtask docs"
    );
    Ok(())
}

fn configuration() -> Result<String> {
    make(Path::new(OUT))?;
    Ok(fs::read_to_string(Path::new(OUT).join("configuration.md"))?)
}
