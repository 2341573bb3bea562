//! The words of the status page.

use serde::Deserialize;
#[cfg(test)]
use serde::Serialize;

/// Texts by key, as files have them.
macro_rules! words {
    ($($key:ident)+) => {
        /// The words of the status page. `{0}`, `{1}` are the places of values, see [`fill`](super::fill).
        #[derive(Debug, Deserialize)]
        #[cfg_attr(test, derive(Serialize))]
        #[serde(deny_unknown_fields)]
        pub(crate) struct Status { $(pub(crate) $key: String,)+ }
    };
}

words! {
    title
    nothing
    stopping
    stopping_meaning
    starting
    starting_meaning
    not_working
    not_working_meaning
    degraded
    degraded_meaning
    waiting
    waiting_meaning
    working
    working_meaning
    running
    notes

    now
    useful
    useful_more
    in_the_last_hour
    since_the_start
    throughput
    throughput_more
    throughput_unknown
    open
    open_more
    faults_now
    faults_now_more
    month
    month_more
    accepted
    accepted_more

    history
    spans
    hour
    day
    week
    hour_ago
    half_hour_ago
    day_ago
    half_day_ago
    week_ago
    half_week_ago
    until_now
    each_minute
    each_quarter
    each_two_hours
    no_minute
    no_quarter
    no_two_hours
    chart_chats
    chart_media
    chart_to_clients
    chart_to_whatsapp
    chart_failed
    chart_refused
    chart_open
    chart_accepted
    chart_summary

    faults
    faults_none
    faults_label
    reason
    remedy
    since_start

    servers
    servers_label
    server
    state
    since
    last_failure
    connections
    answers
    does_not_answer
    not_tried

    listeners
    listeners_label
    listener
    listener_useful
    listener_open
    listener_kernel
    listener_accepted
    listener_gone
    ports
    unused
    unused_label

    wire_refused

    endings
    endings_none
    endings_label
    visitors
    visitors_label

    machine
    room
    of
    memory
    resident
    files
    processor
    processor_more
    kernel_path
    kernel_path_more
    kernel_path_none
    wire
    wire_more
    certificate
    certificate_more
    expired
    configuration
    read_at_start
    read_by_reload
    reload_refused
    lookups
    lookups_more
    unknown

    as_of
    refreshes
    refreshes_stop
    refresh
    about
    about_share
    about_programs
    about_privacy
}
