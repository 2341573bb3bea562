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

use super::admin::{FetchError, State, Status, fetch};
use screen::{Size, screen};
use terminal::{Event, Terminal};

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(2);

/// Arguments of `setu status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// The admin endpoint, as host:port or http://host:port
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8199")]
    pub admin: String,
    /// Print once, and end with 0 when clients are served, 3 when they are not, 4 while setu starts, 5 while it stops, and 1
    /// when it does not answer. So it does where it does not print to a terminal
    #[arg(long)]
    pub once: bool,
    /// Print what /status.json says, once
    #[arg(long)]
    pub json: bool,
}

/// Prints the status once, or again and again where `to` is a terminal, until `q` or a signal. Returns the exit code.
///
/// # Errors
/// Why there is none; while watching, only of the first look.
pub fn run(args: &StatusArgs, to: &mut io::Stdout) -> anyhow::Result<u8> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let status = fetch(&args.admin).await?;
        if args.json {
            let text = serde_json::to_string_pretty(&status).context("the status cannot be written")?;
            writeln!(to, "{text}")?;
            Ok(0)
        } else if args.once || !to.is_terminal() {
            let columns = terminal::size(to).map_or(usize::MAX, |size| size.columns);
            writeln!(to, "{}", screen(&status, None, Size { columns, rows: usize::MAX }))?;
            Ok(exit_code(status.state()))
        } else {
            watch(args, to, status).await?;
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

async fn watch(args: &StatusArgs, to: &mut io::Stdout, status: Status) -> io::Result<()> {
    let mut terminal = Terminal::enter(to)?;
    let (mut before, mut now): (_, Result<_, FetchError>) = (None, Ok(status));
    loop {
        let look = async {
            sleep(INTERVAL).await;
            fetch(&args.admin).await
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
