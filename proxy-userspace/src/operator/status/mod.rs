//! `setu status`: a running setu in the terminal, from its admin endpoint.

mod screen;
mod terminal;

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::Duration,
};

use anyhow::Context as _;
use clap::Args;
use tokio::{runtime, time::sleep};

use super::{
    admin::{FetchError, State, Status, fetch, reachable},
    running::difference,
};
use crate::{
    config::{Config, RunArgs},
    log,
};
use screen::{Size, screen};
use terminal::{Event, Terminal};

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(2);

/// Arguments of `setu status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// What setu was started with, for its admin endpoint.
    #[command(flatten)]
    pub run: RunArgs,
    /// The admin endpoint, as host:port or http://host:port, whatever the configuration says; without it the first of
    /// admin.bind
    #[arg(long, value_name = "ADDRESS")]
    pub admin: Option<String>,
    /// Print once, and end with 0 when clients are served, 3 when they are not, 4 while setu starts, 5 while it stops, and 1
    /// when it does not answer. So it does where it does not print to a terminal
    #[arg(long)]
    pub once: bool,
    /// Print what /status.json says, once
    #[arg(long)]
    pub json: bool,
}

/// A running setu to look at.
struct Instance {
    /// Its admin endpoint.
    at: String,
    /// The configuration that says so, if that has not been given.
    config: Option<Config>,
}

impl Instance {
    fn of(args: &StatusArgs) -> anyhow::Result<Self> {
        if let Some(at) = &args.admin {
            return Ok(Self { at: at.clone(), config: None });
        }
        let config = args.run.config()?;
        let at = config.admin.first().context("admin.bind is empty: setu cannot be asked how it is")?;
        Ok(Self { at: reachable(*at).to_string(), config: Some(config) })
    }

    /// How it is, with a note if it has another configuration.
    async fn look(&self) -> Result<Status, FetchError> {
        let mut status = fetch(&self.at).await?;
        status.notes.extend(self.difference(&status));
        Ok(status)
    }

    fn difference(&self, status: &Status) -> Option<String> {
        difference(self.config.as_ref()?, status)
    }
}

/// Prints the status once, or again and again where `to` is a terminal, until `q` or a signal. Returns the exit code.
///
/// # Errors
/// Why there is none; while watching, only of the first look.
pub fn run(args: &StatusArgs, to: &mut io::Stdout) -> anyhow::Result<u8> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let instance = Instance::of(args)?;
    runtime.block_on(async {
        if args.json {
            let status = fetch(&instance.at).await?;
            if let Some(difference) = instance.difference(&status) {
                log::aside(&difference);
            }
            let text = serde_json::to_string_pretty(&status).context("the status cannot be written")?;
            writeln!(to, "{text}")?;
            return Ok(0);
        }
        let status = instance.look().await?;
        if args.once || !to.is_terminal() {
            let columns = terminal::size(to).map_or(usize::MAX, |size| size.columns);
            writeln!(to, "{}", screen(&status, None, Size { columns, rows: usize::MAX }))?;
            Ok(exit_code(status.state()))
        } else {
            watch(&instance, to, status).await?;
            Ok(0)
        }
    })
}

fn exit_code(state: State) -> u8 {
    match state {
        State::Working | State::Degraded => 0,
        State::NotWorking => 3,
        State::Starting => 4,
        State::Stopping => 5,
    }
}

async fn watch(instance: &Instance, to: &mut io::Stdout, status: Status) -> io::Result<()> {
    let mut terminal = Terminal::enter(to)?;
    let (mut before, mut now): (_, Result<_, FetchError>) = (None, Ok(status));
    loop {
        let look = async {
            sleep(INTERVAL).await;
            instance.look().await
        };
        tokio::pin!(look);
        let next = loop {
            let size = terminal.size();
            terminal.draw(&match &now {
                Ok(status) => screen(status, before.as_ref(), size),
                Err(error) => screen::unreachable(error, size),
            })?;
            tokio::select! {
                next = &mut look => break next,
                event = terminal.event() => match event {
                    Event::Resized => {}
                    Event::End => return Ok(()),
                },
            }
        };
        before = now.ok();
        now = next;
    }
}
