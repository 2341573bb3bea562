//! `setu doctor`: can phones use WhatsApp through a server? What they do is tried, on the server through its own ports, or
//! from another machine with nothing but what phones know; and it ends in one sentence, and an exit code for each.
//!
//! Unlike `setu check`, which looks at what could run, this looks at what does. `way` has what is tried, `conclusion` what
//! it comes to, `sentence` how that is said.

mod answer;
mod conclusion;
mod finding;
mod link;
mod machine;
mod probe;
mod remote;
mod sentence;
mod through;
mod tls;
mod trial;
mod way;

use tokio::runtime::{Builder, Runtime};

use crate::config::Config;
use conclusion::Inside;
pub use finding::{Diagnosis, Finding};
pub use link::Link;
pub use sentence::EXIT_STATUS;
use through::Through;

/// Looks at this machine's setu, at WhatsApp's servers, and at the machine.
///
/// # Errors
/// The machine has no descriptor or thread left to look with.
pub fn examine(config: &Config) -> anyhow::Result<Diagnosis> {
    let runtime = runtime()?;
    let (running, mut findings) = runtime.block_on(machine::running(config));
    let (reached, of_upstreams) = runtime.block_on(machine::upstreams(config));
    let Through { ways, seen, is_any_untried, findings: others } = through::listeners(config);
    let inside = Inside { running, reached, ways, is_any_untried };
    findings.extend(of_upstreams);
    for (way, seen) in inside.ways.iter().zip(seen) {
        let is_explained = inside.is_explained(way);
        findings
            .extend(seen.into_iter().map(|finding| if is_explained { finding.explained() } else { finding }));
    }
    findings.extend(others);
    findings.extend(machine::clock());
    findings.extend(machine::settings());
    findings.extend(machine::checks(config));
    Ok(Diagnosis::new(inside.conclusion(), findings))
}

/// Looks at a server as phones do.
///
/// # Errors
/// The machine has no descriptor or thread left to look with.
pub fn examine_remote(link: &Link) -> anyhow::Result<Diagnosis> {
    Ok(runtime()?.block_on(remote::examine(link)))
}

fn runtime() -> std::io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}
