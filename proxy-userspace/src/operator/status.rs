//! `setu status`: a running setu in the terminal, from its admin endpoint.

use std::{
    fmt::Write as _,
    io::{IsTerminal, Write},
    time::Duration,
};

use anyhow::Context as _;
use clap::Args;
use tokio::runtime;

use super::{
    admin::{Standing, Status, fetch, reachable},
    running::difference,
    text::{ago, bytes, grouped},
};
use crate::{
    config::{Config, RunArgs},
    log,
};

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(2);
/// Home, and erase to the end: what is drawn anew does not flicker, as it would on an empty screen.
const REDRAW: &str = "\x1b[H\x1b[J";
const CLEAR: &str = "\x1b[2J";
/// Reasons that are shown.
const REASONS: usize = 8;

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
    /// Print once, and end
    #[arg(long)]
    pub once: bool,
    /// Print what /status.json says, once
    #[arg(long)]
    pub json: bool,
}

impl StatusArgs {
    /// Where the admin endpoint is, and the configuration that says so.
    fn place(&self) -> anyhow::Result<(String, Option<Config>)> {
        if let Some(admin) = &self.admin {
            return Ok((admin.clone(), None));
        }
        let config = self.run.config()?;
        let at = config.admin.first().context("admin.bind is empty: setu cannot be asked how it is")?;
        Ok((reachable(*at).to_string(), Some(config)))
    }
}

/// Prints the status once, or again and again until interrupted where `to` is a terminal.
///
/// # Errors
/// Why there is none; while watching, only of the first look.
pub fn run(args: &StatusArgs, to: &mut (impl Write + IsTerminal)) -> anyhow::Result<()> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let (at, config) = args.place()?;
    let ask = || runtime.block_on(fetch(&at));
    let difference = |status: &Status| difference(config.as_ref()?, status);
    let look = || {
        ask().map(|mut status| {
            status.notes.extend(difference(&status));
            status
        })
    };
    if args.json {
        let status = ask()?;
        if let Some(difference) = difference(&status) {
            log::aside(&difference);
        }
        let text = serde_json::to_string_pretty(&status).context("the status cannot be written")?;
        return Ok(writeln!(to, "{text}")?);
    }
    let mut status = look()?;
    if args.once || !to.is_terminal() {
        return Ok(to.write_all(screen(&status, None).as_bytes())?);
    }
    write!(to, "{CLEAR}")?;
    let mut before = None;
    loop {
        writeln!(to, "{REDRAW}{}\nCtrl-C ends this.", screen(&status, before.as_ref()))?;
        to.flush()?;
        before = Some(status);
        status = loop {
            std::thread::sleep(INTERVAL);
            match look() {
                Ok(status) => break status,
                Err(error) => {
                    writeln!(to, "{REDRAW}setu: {error}")?;
                    to.flush()?;
                    before = None;
                }
            }
        };
    }
}

/// One screen; with rates where there is a status of before.
fn screen(status: &Status, before: Option<&Status>) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write(&mut text, status, before);
    text
}

fn write(to: &mut String, status: &Status, before: Option<&Status>) -> std::fmt::Result {
    let word = match (status.stopping, status.ready) {
        (true, _) => "stopping",
        (false, true) => "working",
        (false, false) => "NOT WORKING",
    };
    let up = ago(status.now.saturating_sub(status.started));
    let read = match status.reload.taken {
        0 => String::new(),
        taken => format!(", read {} ago", ago(status.now.saturating_sub(taken))),
    };
    writeln!(
        to,
        "setu {}: {word}, running for {up}, configuration {}{read}",
        status.version, status.configuration
    )?;
    for problem in &status.problems {
        writeln!(to, "  ! {problem}")?;
    }
    for note in &status.notes {
        writeln!(to, "  * {note}")?;
    }
    let seconds = before.map_or(0, |before| status.now.saturating_sub(before.now));
    let rate = |now: u64, earlier: fn(&Status) -> u64| {
        before.filter(|_| seconds > 0).map(|before| now.saturating_sub(earlier(before)) / seconds)
    };
    let per_second = |rate: Option<u64>, show: fn(u64) -> String| {
        rate.map_or(String::new(), |rate| format!(" ({} a second)", show(rate)))
    };
    writeln!(
        to,
        "\nconnections  {} open: {} in the kernel, {} through userspace, {} being connected; room for {}",
        grouped(status.connections()),
        grouped(status.active("sockmap")),
        grouped(status.active("userspace")),
        grouped(status.active("none")),
        grouped(status.limits.connections),
    )?;
    writeln!(
        to,
        "accepted     {}{}",
        grouped(status.accepted()),
        per_second(rate(status.accepted(), Status::accepted), grouped)
    )?;
    let up = rate(status.bytes.to_upstream, |status| status.bytes.to_upstream);
    let down = rate(status.bytes.to_client, |status| status.bytes.to_client);
    writeln!(to, "to WhatsApp  {}{}", bytes(status.bytes.to_upstream), per_second(up, bytes))?;
    writeln!(to, "to clients   {}{}", bytes(status.bytes.to_client), per_second(down, bytes))?;
    writeln!(
        to,
        "process      {} of memory, {} of {} files",
        status.process.resident.map_or_else(|| "unknown".into(), bytes),
        status.process.files.map_or_else(|| "unknown".into(), grouped),
        grouped(status.limits.files),
    )?;
    writeln!(to, "\n{:<20} {:>10} {:>10} {:>14}", "LISTENER", "OPEN", "KERNEL", "ACCEPTED")?;
    for listener in &status.listeners {
        let kernel = listener.active.get("sockmap").copied().unwrap_or(0);
        let (name, open, accepted) =
            (&listener.name, grouped(listener.connections()), grouped(listener.accepted));
        writeln!(to, "{name:<20} {open:>10} {:>10} {accepted:>14}", grouped(kernel))?;
    }
    writeln!(to, "\n{:<34} {:<16} {:<14} {:>10}", "WHATSAPP'S SERVER", "STATE", "SINCE", "OPEN")?;
    for endpoint in &status.endpoints {
        let (word, since) = match endpoint.standing {
            Standing::Up => ("answers", ago(endpoint.seconds)),
            Standing::Down => ("does not answer", ago(endpoint.seconds)),
            Standing::Untried => ("not tried yet", String::new()),
        };
        writeln!(
            to,
            "{:<34} {word:<16} {since:<14} {:>10}",
            endpoint.endpoint,
            grouped(endpoint.connections)
        )?;
    }
    let mut reasons: Vec<_> = status.closed.iter().collect();
    reasons.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    writeln!(to, "\n{:<20} {:>14}", "ENDED", "COUNT")?;
    for (reason, count) in reasons.into_iter().take(REASONS) {
        writeln!(to, "{reason:<20} {:>14}", grouped(*count))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_screen_tells_state_and_rates() {
        let text = include_str!("../../../tests/page/status/busy.json");
        let now: Status = serde_json::from_str(text).unwrap();
        let mut before = now.clone();
        before.now -= 2;
        before.bytes.to_client -= 4 << 20;
        let screen = screen(&now, Some(&before));
        assert!(screen.starts_with("setu 0.1.0: working, running for 12 days 5 h"), "{screen}");
        assert!(screen.contains("(2.0\u{a0}MiB a second)"), "{screen}");
        assert!(screen.contains("g-fallback.whatsapp.net:5222       does not answer"), "{screen}");
        let broken: Status =
            serde_json::from_str(include_str!("../../../tests/page/status/broken.json")).unwrap();
        assert!(super::screen(&broken, None).contains("\n  * the reload of "));
        assert!(
            super::screen(&broken, None).contains("NOT WORKING")
                && !super::screen(&broken, None).contains("a second")
        );
    }
}
