//! `setu reload`: has a running setu take its configuration anew, and tells whether it did.
//!
//! A signal has no outcome. Who automates reloads, a service manager above all, needs one: this looks first at what it
//! can, then signals, and asks the admin endpoint what has become of it.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::Args;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tokio::runtime;

use super::admin::{Status, fetch, reachable};
use crate::{
    config::{Config, RunArgs},
    front::tls::{self, TlsSettings},
};

/// How long a reload may take, and between two looks at whether it is over.
const PATIENCE: Duration = Duration::from_secs(30);
const INTERVAL: Duration = Duration::from_millis(100);

/// Arguments of `setu reload`.
#[derive(Debug, Args)]
pub struct ReloadArgs {
    /// What setu was started with.
    #[command(flatten)]
    run: RunArgs,
    /// The process to tell; without it, the one whose admin endpoint has the address of the configuration
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
}

/// Has the configuration taken. Returns what has become of it.
///
/// # Errors
/// What is wrong with the configuration: then nobody was told. Or why setu did not take it: then nothing has changed.
pub fn run(args: &ReloadArgs) -> anyhow::Result<String> {
    let config = args.run.config()?;
    if config.ends_tls() && config.tls.files.is_some() {
        tls::show(&TlsSettings::from(&config.tls))?;
    }
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let look = || ask(&config, &runtime);
    let before = look().filter(|status| args.pid.is_none() || args.pid == status.process.id);
    let known = before.as_ref().and_then(|status| status.process.id);
    let id = args.pid.or(known).context("no setu answers at admin.bind; name the process by --pid")?;
    let process = i32::try_from(id).ok().and_then(Pid::from_raw);
    let process = process.with_context(|| format!("{id}: not a process; name one by --pid"))?;
    kill_process(process, Signal::HUP).with_context(|| format!("process {id} cannot be told"))?;
    // One of another version does not tell its id, nor of reloads.
    let Some(before) = before.filter(|_| known.is_some()) else {
        return Ok(format!("process {id} was told; its log says whether it took the configuration"));
    };
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        thread::sleep(INTERVAL);
        match look().filter(|status| status.process.id == known) {
            Some(now) if now.reload.count > before.reload.count => {
                return match now.reload.refused {
                    None => Ok(format!("reloaded, the configuration is {}", now.configuration)),
                    Some(refused) => anyhow::bail!("not reloaded, nothing has changed: {}", refused.why),
                };
            }
            Some(_) => {}
            None => test_kill_process(process).with_context(|| format!("process {id} has ended"))?,
        }
    }
    anyhow::bail!("process {id} was told, and has not answered within {PATIENCE:?}; its log says more")
}

/// What the setu at the admin endpoint says; `None` where there is no endpoint, or nobody at it.
fn ask(config: &Config, runtime: &runtime::Runtime) -> Option<Status> {
    let address = reachable(*config.admin.first()?);
    runtime.block_on(fetch(&address.to_string())).ok()
}
