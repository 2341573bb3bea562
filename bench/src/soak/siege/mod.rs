//! The siege: healthy flows beside clients that mean harm. What the healthy ones feel is measured alone, besieged, and
//! alone again, in one run.
//!
//! | who besieges | limits |
//! | --- | --- |
//! | a crowd that is in: slow openings and readers without a window (`crowd`) | off for each source |
//! | floods that want in: one address, one IPv6 site, the silent, those that trickle (`floods`) | the defaults |
//!
//! What it cannot show:
//! - Attackers, servers and healthy clients share the machine's cores with setu, so that a part of the difference is
//!   theirs. Floods are therefore bounded in rate and number, so that two cores have time for all: what a larger one
//!   does only attackers on a machine of their own could show. A round that others disturb is made again.
//! - A veth pair is no wire: what a flood does to a link, or to the kernel's queue of half-open connections, is not in it.
//! - Floods say next to nothing. Whoever speaks as a client does, from as many addresses as it takes, is told from a
//!   client by nobody, and has as many connections as the limits give all of its addresses.

mod crowd;
mod floods;
mod healthy;

use anyhow::{Context as _, Result, ensure};
use setu_tests::{Path, machine};

/// Healthy p99 besieged, to that alone.
const RATIO: f64 = 2.0;

/// Runs all whose names begin with one of `only`, or all, on both paths, and prints tables.
///
/// # Errors
/// When healthy clients are worse off than they may be, or memory is.
pub(crate) fn run(only: &[String]) -> Result<()> {
    ensure!(machine::is_root(), "network namespaces need root: run it as root, or by sudo");
    machine::raise_file_limit();
    crate::interrupt::watch()?;
    let is_chosen = |name: &str| only.is_empty() || only.iter().any(|only| name.starts_with(only.as_str()));
    let paths = [Path::Sockmap, Path::Userspace];
    let mut findings = Vec::new();
    if is_chosen("crowd") {
        println!("{}", crowd::HEAD);
        for path in paths {
            findings.extend(crowd::besiege(path)?);
        }
    }
    let floods: Vec<_> = floods::ALL.iter().filter(|flood| is_chosen(flood.name)).collect();
    if !floods.is_empty() {
        println!("{}", floods::HEAD);
        let mut reasons = Vec::new();
        for flood in floods {
            for path in paths {
                let found = floods::besiege(flood, path);
                let found = found.with_context(|| format!("{}, {}", flood.name, path.name()))?;
                println!("{}", found.row);
                reasons.push(found.reasons);
                findings.extend(found.findings);
            }
        }
        println!("\n{}\n", reasons.join("\n"));
    }
    for finding in &findings {
        println!("FAILED {finding}");
    }
    ensure!(findings.is_empty(), "{} findings", findings.len());
    println!("clean");
    Ok(())
}
