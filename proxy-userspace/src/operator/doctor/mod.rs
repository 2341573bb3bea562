//! `setu doctor`: does a running setu serve the app? Everything is tried from this machine as a phone would, through the
//! real ports, and each line says what is wrong and what to do.
//!
//! Unlike `setu check`, which looks at what could run, this looks at what does.

mod finding;
mod machine;
mod probe;
mod through;
mod tls;

use tokio::runtime;

use crate::config::Config;
pub use finding::{Diagnosis, Finding, Verdict};

/// Looks at everything. `host`: where clients reach setu; without it, the addresses of the configuration are tried from
/// this machine.
///
/// # Errors
/// The machine has no descriptor or thread left to look with.
pub fn examine(config: &Config, host: Option<&str>) -> anyhow::Result<Diagnosis> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let mut findings = runtime.block_on(machine::running(config));
    findings.extend(runtime.block_on(machine::upstreams(config)));
    findings.extend(through::listeners(config, host));
    findings.extend(machine::clock());
    findings.extend(machine::settings());
    findings.extend(machine::checks(config));
    Ok(Diagnosis(findings))
}
