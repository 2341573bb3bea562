//! `setu reload`: has a running setu take its configuration anew, and tells whether it did.
//!
//! A signal has no outcome. Who automates reloads, a service manager above all, needs one: this looks first at what it
//! can, then signals, and asks the admin endpoint what has become of it.

use std::{
    net::SocketAddr,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::Args;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tokio::runtime;

use super::{
    admin::Status,
    running::{Running, ask, doors},
};
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
    pub run: RunArgs,
    /// The process to tell; without it, the one whose admin endpoint has the address of the configuration, or the only one
    /// that runs with the same file
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
}

/// Has the configuration taken. Returns what has become of it.
///
/// # Errors
/// What is wrong with the configuration: whoever runs with it was told all the same, to refuse it and to show that. Or why
/// setu did not take it: then nothing has changed. Or that it is not known whether it did.
pub fn run(args: &ReloadArgs) -> anyhow::Result<String> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let config = match usable(&args.run) {
        Ok(config) => config,
        Err(error) => {
            tell_of(args);
            return Err(error);
        }
    };
    let answered = config.admin.first().and_then(|at| Some((*at, ask(*at, &runtime)?)));
    let named = answered.as_ref().and_then(|(_, status)| status.process.id);
    let id = match args.pid.or(named) {
        Some(id) => id,
        None => the_one_with(args.run.file().path())?,
    };
    let process = process(id)?;
    may_be_told(process, args.pid.is_some())?;
    let known = |(_, status): &(SocketAddr, Status)| status.process.id == Some(id);
    // With another admin.bind it answers where it did before.
    let before = answered.filter(known).or_else(|| {
        let elsewhere = doors(process.as_raw_pid(), &config);
        elsewhere.filter_map(|at| Some((at, ask(at, &runtime)?))).find(known)
    });
    kill_process(process, Signal::HUP).with_context(|| format!("process {id} cannot be told"))?;
    let Some((at, before)) = before else {
        anyhow::ensure!(
            config.admin.is_empty(),
            "process {id} was told, and whether it took the configuration is not known: it does not answer at admin.bind; \
             its log says whether. A change of admin.bind takes a restart"
        );
        return Ok(format!("process {id} was told; its log says whether it took the configuration"));
    };
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        thread::sleep(INTERVAL);
        match ask(at, &runtime).filter(|status| status.process.id == Some(id)) {
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

/// The configuration, if `setu run` could serve it as far as can be seen from here.
fn usable(args: &RunArgs) -> anyhow::Result<Config> {
    let config = args.config()?;
    if config.ends_tls() && config.tls.files.is_some() {
        tls::show(&TlsSettings::from(&config.tls))?;
    }
    Ok(config)
}

/// Tells whoever runs with a file that cannot be used: it refuses, and its log and its admin endpoint, to which alerts look,
/// show that. Who runs with another would take that one, and is left alone.
fn tell_of(args: &ReloadArgs) {
    let file = args.run.file().path();
    let Some(process) = args.pid.or_else(|| the_one_with(file).ok()).and_then(|id| process(id).ok()) else {
        return;
    };
    let has = |running: Running| running.has(file);
    let is_of_it = Running::look(process.as_raw_pid()).is_none_or(has);
    if is_of_it && may_be_told(process, args.pid.is_some()).is_ok() {
        // What is wrong with the file is what the operator hears of.
        let _ = kill_process(process, Signal::HUP);
    }
}

/// The only setu that runs with a file.
fn the_one_with(file: Option<&Path>) -> anyhow::Result<u32> {
    let advice = "name the process by --pid, or restart setu if admin.bind has changed";
    match Running::with(file).as_slice() {
        [one] => Ok(one.pid.cast_unsigned()),
        [] => {
            anyhow::bail!("no setu answers at admin.bind, and none is seen to run with this file; {advice}")
        }
        several => {
            let several: Vec<_> = several.iter().map(|process| process.pid.to_string()).collect();
            anyhow::bail!(
                "no setu answers at admin.bind, and several run with this file: {}; {advice}",
                several.join(", ")
            )
        }
    }
}

fn process(id: u32) -> anyhow::Result<Pid> {
    let process = i32::try_from(id).ok().and_then(Pid::from_raw);
    process.with_context(|| format!("{id}: not a process; name one by --pid"))
}

/// Whether a process is a setu that serves: SIGHUP ends most others, and at the address of the configuration may be anybody,
/// who says that he is any of them. One that /proc does not show, as in the packaged unit, must be `named` by the operator.
fn may_be_told(process: Pid, named: bool) -> anyhow::Result<()> {
    let id = process.as_raw_pid();
    match Running::look(id) {
        Some(running) => anyhow::ensure!(
            running.is_setu(),
            "process {id} is {}, and no setu that runs: it was not told; {}",
            running.name,
            if named {
                "name another by --pid"
            } else {
                "who answers at admin.bind may be none, name it by --pid"
            }
        ),
        None => {
            test_kill_process(process).with_context(|| format!("process {id} cannot be told"))?;
            anyhow::ensure!(named, "process {id} cannot be looked at: it was not told; name it by --pid");
        }
    }
    Ok(())
}
