//! `/`: a [`Status`] as one document for people, that needs nothing else: no script, no font, no second request.
//!
//! It says first whether setu works. Its only inline style is allowed by its hash, so that the policy of the page is
//! "nothing, but this", and a form that asks setu itself. Its layout has no left and no right: a translation sets `dir` and is done.

use std::fmt::{self, Write as _};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use sha2::{Digest as _, Sha256};

use super::{
    history::{SAMPLES, Sample},
    status::{Endpoint, Standing, State, Status},
};
use crate::{
    account::CloseReason,
    operator::text::{Escaped, ago, bytes, grouped, moment},
};

pub(super) const STYLE: &str = include_str!("page.css");
/// Between two loads. By a header, not by `<meta>`: what reads pages aloud takes that for a page that runs away, and here
/// it can be switched off.
pub(super) const REFRESH_SECONDS: &str = "15";
/// Height of a chart, and width of a bar with its gap, in the units of its view box.
const CHART_HEIGHT: f64 = 100.0;
const BAR: usize = 10;

/// Whether the page loads itself again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refresh {
    /// Every [`REFRESH_SECONDS`].
    On,
    /// No.
    Off,
}

/// The Content-Security-Policy of a page with this style.
pub(super) fn policy(style: &str) -> String {
    let hash = BASE64_STANDARD.encode(Sha256::digest(style));
    format!(
        "default-src 'none'; style-src 'sha256-{hash}'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    )
}

/// The page.
#[must_use]
pub fn page(status: &Status, refresh: Refresh) -> String {
    let mut to = String::with_capacity(32 * 1024);
    // Writing to a string cannot fail.
    let _ = write(&mut to, status, refresh);
    to
}

/// Up to the body, in a language that is written in a direction.
pub(super) fn head(to: &mut String, (language, direction): (&str, &str), title: &str) -> fmt::Result {
    writeln!(
        to,
        "<!DOCTYPE html>\n<html lang=\"{language}\" dir=\"{direction}\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"robots\" content=\"noindex\">\n<title>setu: {title}</title>\n<style>{STYLE}</style>\n</head>\n<body>"
    )
}

fn write(to: &mut String, status: &Status, refresh: Refresh) -> fmt::Result {
    let (_, word, _) = verdict(status);
    head(to, ("en", "ltr"), word)?;
    header(to, status)?;
    to.write_str("<main>\n")?;
    figures(to, status)?;
    charts(to, &status.history)?;
    endpoints(to, status)?;
    listeners(to, status)?;
    endings(to, status)?;
    machine(to, status)?;
    to.write_str("</main>\n")?;
    footer(to, status, refresh)?;
    to.write_str("</body>\n</html>\n")
}

/// Class, word, and what that means.
fn verdict(status: &Status) -> (&'static str, &'static str, &'static str) {
    let untried = |endpoint: &Endpoint| endpoint.standing == Standing::Untried;
    match status.state() {
        State::Stopping => (
            "waiting",
            "Stopping",
            "New clients are to go elsewhere; connections that are open have time to end.",
        ),
        State::Starting => ("waiting", "Starting", "WhatsApp’s servers are being asked:"),
        State::NotWorking => ("bad", "Not working", "New connections to WhatsApp fail:"),
        State::Degraded => ("waiting", "Working in part", "Clients are being connected to WhatsApp, but:"),
        State::Working if status.endpoints.iter().all(untried) => (
            "waiting",
            "Waiting for the first client",
            "setu listens, and has not had to connect to WhatsApp yet.",
        ),
        State::Working => ("good", "Working", "Clients are being connected to WhatsApp."),
    }
}

fn header(to: &mut String, status: &Status) -> fmt::Result {
    let (class, word, meaning) = verdict(status);
    write!(
        to,
        "<header>\n<h1>setu, a bridge to WhatsApp</h1>\n<div class=\"state {class}\" role=\"status\">\
         <strong>{word}</strong><p>{meaning}</p>"
    )?;
    if !(status.problems.is_empty() && status.degraded.is_empty()) {
        to.write_str("<ul>")?;
        for problem in status.problems.iter().chain(&status.degraded) {
            write!(to, "<li>{}</li>", Escaped(problem))?;
        }
        to.write_str("</ul>")?;
    }
    writeln!(
        to,
        "<p>Running for {}, since {}.</p></div>",
        ago(status.now.saturating_sub(status.started)),
        time(status.started),
    )?;
    if !status.notes.is_empty() {
        to.write_str("<div class=\"state waiting\"><p>To be looked at:</p><ul>")?;
        for note in &status.notes {
            write!(to, "<li>{}</li>", Escaped(note))?;
        }
        to.write_str("</ul></div>\n")?;
    }
    to.write_str("</header>\n")
}

/// A moment, for people and for programs.
fn time(seconds: u64) -> String {
    let exact = moment(seconds);
    // To the minute; nobody wants to read seconds.
    let (day, hour) = (&exact[..10], &exact[11..16]);
    format!("<time datetime=\"{exact}\">{day} {hour} UTC</time>")
}

fn section(to: &mut String, id: &str, class: &str, title: &str) -> fmt::Result {
    writeln!(to, "<section aria-labelledby=\"{id}\" class=\"{class}\">\n<h2 id=\"{id}\">{title}</h2>")
}

fn figures(to: &mut String, status: &Status) -> fmt::Result {
    section(to, "now", "wide", "Now")?;
    to.write_str("<dl class=\"figures\">")?;
    let paths = format!(
        "{} in the kernel, {} through userspace, {} being connected",
        grouped(status.active("sockmap")),
        grouped(status.active("userspace")),
        grouped(status.active("none"))
    );
    for (name, value, more) in [
        ("Open connections", grouped(status.connections()), paths.as_str()),
        ("Accepted", grouped(status.accepted()), "since the start"),
        ("To WhatsApp", bytes(status.bytes.to_upstream), "since the start"),
        ("To clients", bytes(status.bytes.to_client), "since the start"),
    ] {
        write!(to, "<div><dt>{name}</dt><dd><bdi>{value}</bdi><small>{more}</small></dd></div>")?;
    }
    to.write_str("</dl>\n</section>\n")
}

fn charts(to: &mut String, history: &[Sample]) -> fmt::Result {
    section(to, "hour", "wide", "The last hour")?;
    if history.is_empty() {
        return to.write_str("<p class=\"none\">The first minute is not over yet.</p>\n</section>\n");
    }
    to.write_str("<div class=\"charts\">\n")?;
    chart(to, "Open connections", "", history, |sample| sample.connections, grouped)?;
    chart(to, "New connections each minute", "", history, |sample| sample.accepted, grouped)?;
    chart(to, "To WhatsApp each minute", "second", history, |sample| sample.to_upstream, bytes)?;
    chart(to, "To clients each minute", "second", history, |sample| sample.to_client, bytes)?;
    to.write_str("</div>\n</section>\n")
}

/// A bar for each minute, the newest at the end.
fn chart(
    to: &mut String,
    title: &str,
    class: &str,
    history: &[Sample],
    value: fn(&Sample) -> u64,
    show: fn(u64) -> String,
) -> fmt::Result {
    let values: Vec<_> = history.iter().map(value).collect();
    let most = values.iter().copied().max().unwrap_or(0);
    let last = values.last().copied().unwrap_or(0);
    let summary = format!("{} in the last minute, at most {}", show(last), show(most));
    write!(
        to,
        "<figure><figcaption>{title} <span>{summary}</span></figcaption>\
         <svg class=\"{class}\" viewBox=\"0 0 {} {CHART_HEIGHT}\" preserveAspectRatio=\"none\" role=\"img\" \
         aria-label=\"{title} over the last {} minutes: {summary}\">",
        SAMPLES * BAR,
        values.len(),
    )?;
    for (at, value) in values.iter().enumerate().filter(|(_, value)| **value > 0) {
        let x = (SAMPLES - values.len() + at) * BAR;
        // A little must be seen to be more than nothing.
        let height = (*value as f64 / most as f64 * CHART_HEIGHT).max(1.5);
        write!(
            to,
            "<rect x=\"{x}\" y=\"{:.1}\" width=\"{}\" height=\"{height:.1}\"/>",
            CHART_HEIGHT - height,
            BAR - 2
        )?;
    }
    to.write_str("</svg><div class=\"axis\"><span>1 hour ago</span><span>now</span></div></figure>\n")
}

/// Opens a table with a header for each column; columns of numbers end with `#`.
fn table(to: &mut String, label: &str, class: &str, columns: &[&str]) -> fmt::Result {
    write!(
        to,
        "<div class=\"scroll\" role=\"region\" tabindex=\"0\" aria-label=\"{label}\"><table class=\"{class}\"><thead><tr>"
    )?;
    for column in columns {
        match column.strip_suffix('#') {
            Some(name) => write!(to, "<th scope=\"col\" class=\"number\">{name}</th>")?,
            None => write!(to, "<th scope=\"col\">{column}</th>")?,
        }
    }
    to.write_str("</tr></thead><tbody>\n")
}

fn end_table(to: &mut String) -> fmt::Result {
    to.write_str("</tbody></table></div>\n</section>\n")
}

/// A cell that tells its column by itself where the screen is too narrow for columns.
fn number(to: &mut String, label: &str, value: u64) -> fmt::Result {
    write!(to, "<td class=\"number\" data-label=\"{label}\"><bdi>{}</bdi></td>", grouped(value))
}

fn endpoints(to: &mut String, status: &Status) -> fmt::Result {
    section(to, "servers", "wide", "WhatsApp’s servers")?;
    table(
        to,
        "WhatsApp’s servers, as a table",
        "stack",
        &["Server", "State", "Since", "Last failure", "Connections#"],
    )?;
    for Endpoint { upstream, endpoint, standing, seconds, last_error, connections } in &status.endpoints {
        let (class, word) = match standing {
            Standing::Up => ("up", "answers"),
            Standing::Down => ("down", "does not answer"),
            Standing::Untried => ("untried", "not tried yet"),
        };
        let since = if *standing == Standing::Untried { "–".into() } else { ago(*seconds) };
        let error = last_error.as_deref().unwrap_or("none");
        write!(
            to,
            "<tr><th scope=\"row\">{}<small>{}</small></th>\
             <td data-label=\"State\"><bdi class=\"{class}\">{word}</bdi></td>\
             <td data-label=\"Since\"><bdi>{since}</bdi></td><td data-label=\"Last failure\"><bdi>{}</bdi></td>",
            Escaped(endpoint),
            Escaped(upstream),
            Escaped(&error.replace('_', " ")),
        )?;
        number(to, "Connections", *connections)?;
        to.write_str("</tr>\n")?;
    }
    end_table(to)
}

fn listeners(to: &mut String, status: &Status) -> fmt::Result {
    section(to, "listeners", "", "Where clients come in")?;
    table(to, "Listeners, as a table", "stack", &["Listener", "Open#", "In the kernel#", "Accepted#"])?;
    for listener in &status.listeners {
        write!(to, "<tr><th scope=\"row\">{}</th>", Escaped(&listener.name))?;
        number(to, "Open", listener.connections())?;
        number(to, "In the kernel", listener.active.get("sockmap").copied().unwrap_or(0))?;
        number(to, "Accepted", listener.accepted)?;
        to.write_str("</tr>\n")?;
    }
    end_table(to)
}

fn endings(to: &mut String, status: &Status) -> fmt::Result {
    section(to, "endings", "", "How connections ended")?;
    let count = |reason: &CloseReason| status.closed.get(reason.name()).copied().unwrap_or(0);
    let mut reasons: Vec<_> = CloseReason::ALL.iter().map(|reason| (reason, count(reason))).collect();
    reasons.retain(|(_, count)| *count > 0);
    reasons.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    if reasons.is_empty() {
        return to.write_str("<p class=\"none\">None has ended yet.</p>\n</section>\n");
    }
    table(to, "Reasons, as a table", "", &["Reason", "Count#"])?;
    for (reason, count) in reasons {
        writeln!(
            to,
            "<tr><th scope=\"row\"><code>{reason}</code><small>{}</small></th><td class=\"number\"><bdi>{}</bdi></td></tr>",
            Escaped(reason.meaning().trim().replace('`', "").as_str()),
            grouped(count)
        )?;
    }
    end_table(to)
}

fn machine(to: &mut String, status: &Status) -> fmt::Result {
    section(to, "machine", "wide", "This machine")?;
    to.write_str("<dl class=\"figures\">")?;
    let process = &status.process;
    let unknown = || "unknown".to_owned();
    let kernel = match &status.kernel {
        Some(kernel) => (
            bytes(kernel.reserved),
            format!("may be on their way in the kernel, of {}", bytes(kernel.budget)),
        ),
        None => ("–".into(), "all bytes go through userspace".into()),
    };
    let mut rows = vec![
        (
            "Room for connections",
            grouped(status.limits.connections.saturating_sub(status.connections())),
            format!("of {}", grouped(status.limits.connections)),
        ),
        ("Memory", process.resident.map_or_else(unknown, bytes), "resident".into()),
        (
            "Open files",
            process.files.map_or_else(unknown, grouped),
            format!("of {}", grouped(status.limits.files)),
        ),
        (
            "CPU time",
            process.cpu.map_or_else(unknown, |seconds| ago(seconds as u64)),
            "of all threads, since the start".into(),
        ),
        ("Kernel path", kernel.0, kernel.1),
    ];
    if let Some(certificate) = &status.certificate {
        let left = match certificate.not_after.checked_sub(status.now) {
            Some(left) => ago(left),
            None => "expired".into(),
        };
        rows.push(("TLS certificate", left, format!("valid until {}", time(certificate.not_after))));
    }
    let taken = match status.reload.taken {
        0 => unknown(),
        taken => ago(status.now.saturating_sub(taken)),
    };
    let how = match (&status.reload.refused, status.reload.count) {
        (Some(_), _) => "since it was read; the last reload was refused",
        (None, 0) => "since it was read, at the start",
        (None, _) => "since it was read, by a reload",
    };
    rows.push(("Configuration", taken, how.into()));
    let failures: u64 = status.name_failures.values().sum();
    rows.push(("Failed lookups", grouped(failures), "of names, since the start".into()));
    for (name, value, more) in rows {
        write!(to, "<div><dt>{name}</dt><dd><bdi>{value}</bdi><small>{more}</small></dd></div>")?;
    }
    to.write_str("</dl>\n</section>\n")
}

fn footer(to: &mut String, status: &Status, refresh: Refresh) -> fmt::Result {
    let switch = match refresh {
        Refresh::On => format!(
            "This page loads again every {REFRESH_SECONDS} seconds. <a href=\"/?refresh=off\">Stop that</a>."
        ),
        Refresh::Off => format!("<a href=\"/\">Load this page again every {REFRESH_SECONDS} seconds</a>."),
    };
    write!(
        to,
        "<footer>\n<p>As of {}. {switch}</p>\n\
         <p>setu {}, configuration <code>{}</code>. <a href=\"/share\">Set a phone to this proxy</a>. For programs: <a href=\"/metrics\">metrics</a>, \
         <a href=\"/status.json\">status.json</a>. No client’s address is in any of it.</p>\n</footer>\n",
        time(status.now),
        Escaped(&status.version),
        Escaped(&status.configuration),
    )
}
