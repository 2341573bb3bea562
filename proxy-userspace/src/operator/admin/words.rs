//! What the status page says, all of it in one place, so that it can be said in another language: a translation is another
//! [`Words`]. What connections' ends mean is with [`crate::account::CloseReason`].
//!
//! `{0}`, `{1}` are the places of values, see [`fill`].

use std::fmt::{Display, Write as _};

macro_rules! words {
    ($($key:ident: $text:literal,)+) => {
        /// The words of the page by key.
        pub(super) struct Words { $(pub(super) $key: &'static str,)+ }

        /// In English.
        pub(super) const ENGLISH: Words = Words { $($key: $text,)+ };
    };
}

words! {
    title: "setu, a bridge to WhatsApp",
    nothing: "none",
    stopping: "Stopping",
    stopping_meaning: "New clients are to go elsewhere; connections that are open have time to end.",
    starting: "Starting",
    starting_meaning: "WhatsApp’s servers are being asked:",
    not_working: "Not working",
    not_working_meaning: "New connections to WhatsApp fail:",
    degraded: "Working in part",
    degraded_meaning: "Clients are being connected to WhatsApp, but:",
    waiting: "Waiting for the first client",
    waiting_meaning: "setu listens, and has not had to connect to WhatsApp yet.",
    working: "Working",
    working_meaning: "Clients are being connected to WhatsApp.",
    running: "Running for {0}, since {1}.",
    notes: "To be looked at:",

    now: "Now",
    useful: "Useful connections",
    useful_more: "{0}: {1} chats, {2} for media",
    in_the_last_hour: "in the last hour",
    since_the_start: "since the start",
    throughput: "Throughput",
    throughput_more: "to clients; {0} to WhatsApp; mean of the last minute",
    throughput_unknown: "the first minute is not over yet",
    open: "Open connections",
    open_more: "{0} in the kernel, {1} through userspace, {2} being connected",
    faults_now: "Failed",
    faults_now_more: "{0}; {1} more refused by limits",
    month: "Traffic this month",
    month_more: "sent: {0} to clients, {1} to WhatsApp; about as much came in. Counted since {2}",
    accepted: "Accepted",
    accepted_more: "since the start, with all who only try the ports",

    history: "The past",
    spans: "Which stretch of it",
    hour: "Last hour",
    day: "Last day",
    week: "Last week",
    hour_ago: "1 hour ago",
    half_hour_ago: "30 min ago",
    day_ago: "24 h ago",
    half_day_ago: "12 h ago",
    week_ago: "7 days ago",
    half_week_ago: "3½ days ago",
    until_now: "now",
    each_minute: "each minute",
    each_quarter: "each quarter of an hour",
    each_two_hours: "each two hours",
    no_minute: "The first minute is not over yet.",
    no_quarter: "The first quarter of an hour is not over yet.",
    no_two_hours: "The first two hours are not over yet.",
    chart_chats: "Useful chats",
    chart_media: "Useful media",
    chart_to_clients: "Throughput to clients",
    chart_to_whatsapp: "Throughput to WhatsApp",
    chart_failed: "Failed",
    chart_refused: "Refused by limits",
    chart_open: "Open connections",
    chart_accepted: "New connections",
    chart_summary: "last {0}, at most {1}",

    chart_label: "{0}, {1}: {2}",

    faults: "What went wrong",
    faults_none: "Nothing since the start: no client has failed, and no limit has refused one.",
    faults_label: "Faults and refusals, as a table",
    reason: "Reason",
    remedy: "What to do",
    since_start: "Since the start",

    servers: "WhatsApp’s servers",
    servers_label: "WhatsApp’s servers, as a table",
    server: "Server",
    state: "State",
    since: "Since",
    last_failure: "Last failure",
    connections: "Connections",
    answers: "answers",
    does_not_answer: "does not answer",
    not_tried: "not tried yet",

    listeners: "Where clients come in",
    listeners_label: "Listeners, as a table",
    listener: "Listener",
    listener_useful: "Useful",
    listener_open: "Open",
    listener_kernel: "In the kernel",
    listener_accepted: "Accepted",
    listener_gone: "not in the configuration any more",
    ports: "port {0}",
    unused: "Without a connection since the start: {0}",
    unused_label: "Listeners without a connection, as a table",

    endings: "How other connections ended",
    endings_none: "None has ended yet.",
    endings_label: "Ordinary ends, as a table",
    visitors: "Not clients of WhatsApp’s, or gave up",
    visitors_label: "Ends of others, as a table",

    machine: "This machine",
    room: "Room for connections",
    of: "of {0}",
    memory: "Memory",
    resident: "resident",
    files: "Open files",
    processor: "CPU time",
    processor_more: "of all threads, since the start",
    kernel_path: "Kernel path",
    kernel_path_more: "may be on their way in the kernel, of {0}",
    kernel_path_none: "all bytes go through userspace",
    certificate: "TLS certificate",
    certificate_more: "valid until {0}",
    expired: "expired",
    configuration: "Configuration",
    read_at_start: "since it was read, at the start",
    read_by_reload: "since it was read, by a reload",
    reload_refused: "since it was read; the last reload was refused",
    lookups: "Failed lookups",
    lookups_more: "of names, since the start",
    unknown: "unknown",

    as_of: "As of {0}.",
    refreshes: "This page loads again every {0} seconds. <a href=\"{1}\">Stop that</a>.",
    refresh: "<a href=\"{1}\">Load this page again every {0} seconds</a>.",
    about: "setu {0}, configuration <code>{1}</code>. <a href=\"/share\">Set a phone to this proxy</a>. For programs: \
            <a href=\"/metrics\">metrics</a>, <a href=\"/status.json\">status.json</a>. No client’s address is in any of it.",
}

/// A text with values in their places, in whatever order a language has them.
pub(super) fn fill(text: &str, values: &[&dyn Display]) -> String {
    let mut parts = text.split('{');
    let mut filled = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (place, rest) = part.split_once('}').unwrap_or(("", part));
        if let Some(value) = place.parse::<usize>().ok().and_then(|place| values.get(place)) {
            // Writing to a string cannot fail.
            let _ = write!(filled, "{value}");
        }
        filled.push_str(rest);
    }
    filled
}

#[cfg(test)]
mod tests {
    use super::fill;

    #[test]
    fn values_have_their_places() {
        assert_eq!(fill("{1} of {0}, {1}", &[&"{1}", &2]), "2 of {1}, 2");
        assert_eq!(fill("none", &[&1]), "none");
    }
}
