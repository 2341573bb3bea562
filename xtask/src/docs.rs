//! What is made of setu's own definitions: its manual, the page on its configuration, and the alerts for Kubernetes.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::{Result, ensure};

use crate::process;

const CONFIGURATION: &str = "docs/configuration.md";
const RULES: &str = "dist/prometheus/setu.rules.yml";
const PROMETHEUS_RULE: &str = "dist/kubernetes/components/monitoring/prometheusrule.yaml";
const OUT: &str = "target/docs";

/// A file that is committed, because it is read where the source is; what it is made of; and what makes it.
type Committed = (&'static str, &'static str, fn() -> Result<String>);

const COMMITTED: [Committed; 2] =
    [(CONFIGURATION, "the keys", configuration), (PROMETHEUS_RULE, RULES, prometheus_rule)];

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

/// Puts what is committed where it is.
pub(crate) fn write() -> Result<()> {
    for (file, source, make) in COMMITTED {
        fs::write(file, make()?)?;
        println!("{file}: made of {source}");
    }
    Ok(())
}

/// What the page on each command has, besides what is made of the command line.
const SECTIONS: [&str; 5] = ["\"EXIT STATUS\"", "ENVIRONMENT", "FILES", "SIGNALS", "EXAMPLES"];

/// Fails when what is committed is not what is made, or a page lacks what operators look for in it.
pub(crate) fn check() -> Result<()> {
    for (file, source, make) in COMMITTED {
        let made = make()?;
        ensure!(
            fs::read_to_string(file).is_ok_and(|there| there == made),
            "{file} is not what is made of {source}; run: cargo xtask docs"
        );
    }
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
    Ok(())
}

fn configuration() -> Result<String> {
    make(Path::new(OUT))?;
    Ok(fs::read_to_string(Path::new(OUT).join("configuration.md"))?)
}

/// The alerts as the Prometheus operator takes them. kustomize cannot put a file into a resource.
fn prometheus_rule() -> Result<String> {
    let mut rule = format!(
        "# Made of {RULES} by `cargo xtask docs`.\napiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\n\
         metadata:\n  name: setu\n  namespace: setu\nspec:\n"
    );
    for line in fs::read_to_string(RULES)?.lines() {
        let indent = if line.is_empty() { "" } else { "  " };
        writeln!(rule, "{indent}{line}")?;
    }
    Ok(rule)
}
