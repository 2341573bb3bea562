//! `/`: a [`Status`] as one document for people, that needs nothing else: no script, no font, no second request.
//!
//! It says first whether setu works. Its only inline style is allowed by its hash, so that the policy of the page is
//! "nothing, but this", and a form that asks setu itself. Its layout has no left and no right: a translation sets `dir` and is done.

use std::fmt::{self, Display, Write as _};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use sha2::{Digest as _, Sha256};

use super::{
    history::{Sample, Span},
    status::{Endpoint, Listener, Standing, State, Status, total},
};
use crate::{
    account::{Class, CloseReason, Purpose},
    operator::{
        languages::{self, Language, LanguageError, fill, languages},
        text::{Escaped, ago, bit_rate, bytes, grouped, moment},
    },
    relay::wire::WireRefusal,
};

pub(super) const STYLE: &str = include_str!("page.css");
/// Between two loads. By a header, not by `<meta>`: what reads pages aloud takes that for a page that runs away, and here
/// it can be switched off.
pub(super) const REFRESH_SECONDS: &str = "15";
/// Height and width of a chart in the units of its view box, and the least height of a bar: a little must be seen to be
/// more than nothing.
const HEIGHT: f64 = 100.0;
const WIDTH: f64 = 600.0;
const LEAST: f64 = 1.5;

/// What of the page its reader has chosen. There are no scripts, so each choice is a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    /// Whether the page loads itself again every [`REFRESH_SECONDS`].
    pub refreshes: bool,
    /// What the charts show.
    pub span: Span,
}

impl View {
    /// By the query of a request; what it does not say, or says in words that are not known, is as by default.
    #[must_use]
    pub fn of(query: Option<&str>) -> Self {
        let mut view = Self { refreshes: true, span: Span::Hour };
        for choice in query.unwrap_or_default().split('&') {
            match choice {
                "refresh=off" => view.refreshes = false,
                "span=day" => view.span = Span::Day,
                "span=week" => view.span = Span::Week,
                _ => {}
            }
        }
        view
    }

    /// The link that chooses this.
    fn link(self) -> String {
        let span = match self.span {
            Span::Hour => None,
            Span::Day => Some("span=day"),
            Span::Week => Some("span=week"),
        };
        let choices: Vec<_> = span.into_iter().chain((!self.refreshes).then_some("refresh=off")).collect();
        if choices.is_empty() { "/".into() } else { format!("/?{}", choices.join("&amp;")) }
    }
}

/// The Content-Security-Policy of a page with this style.
pub(super) fn policy(style: &str) -> String {
    let hash = BASE64_STANDARD.encode(Sha256::digest(style));
    format!(
        "default-src 'none'; style-src 'sha256-{hash}'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    )
}

/// The page, in the best of the languages that a reader takes (Accept-Language), or in English.
///
/// # Errors
/// The words of a language cannot be read.
pub fn page(status: &Status, view: View, accepted: &str) -> Result<String, &'static LanguageError> {
    let language = languages()?.preferred(accepted);
    let mut to = String::with_capacity(32 * 1024);
    // Writing to a string cannot fail.
    let _ = Page { status, view, language, words: &language.status }.write(&mut to);
    Ok(to)
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

/// What is written, for whom, in which words.
#[derive(Clone, Copy)]
struct Page<'a> {
    status: &'a Status,
    view: View,
    language: &'a Language,
    words: &'a languages::Status,
}

/// A figure: its name, its value, and what more is to be said of it.
type Figure<'a> = (&'a str, String, String);

/// A chart: its title, its class, what it shows, and in which unit.
type Chart = (String, &'static str, fn(&Sample) -> u64, Unit);

impl<'a> Page<'a> {
    fn write(self, to: &mut String) -> fmt::Result {
        let (_, word, _) = self.verdict();
        let Self { language, .. } = self;
        head(to, (&language.code, language.direction.name()), word)?;
        self.header(to)?;
        to.write_str("<main>\n")?;
        self.now(to)?;
        self.charts(to)?;
        self.faults(to)?;
        self.endpoints(to)?;
        self.listeners(to)?;
        self.wire_refused(to)?;
        self.endings(to)?;
        self.machine(to)?;
        to.write_str("</main>\n")?;
        self.footer(to)?;
        to.write_str("</body>\n</html>\n")
    }

    /// Class, word, and what that means.
    fn verdict(self) -> (&'static str, &'a str, &'a str) {
        let Self { status, words, .. } = self;
        let untried = |endpoint: &Endpoint| endpoint.standing == Standing::Untried;
        match status.state() {
            State::Stopping => ("waiting", &words.stopping, &words.stopping_meaning),
            State::Starting => ("waiting", &words.starting, &words.starting_meaning),
            State::NotWorking => ("bad", &words.not_working, &words.not_working_meaning),
            State::Degraded => ("waiting", &words.degraded, &words.degraded_meaning),
            State::Working if status.endpoints.iter().all(untried) => {
                ("waiting", &words.waiting, &words.waiting_meaning)
            }
            State::Working => ("good", &words.working, &words.working_meaning),
        }
    }

    fn header(self, to: &mut String) -> fmt::Result {
        let Self { status, words, .. } = self;
        let (class, word, meaning) = self.verdict();
        write!(
            to,
            "<header>\n<h1>{}</h1>\n<div class=\"state {class}\" role=\"status\"><strong>{word}</strong><p>{meaning}</p>",
            &words.title
        )?;
        list(to, status.problems.iter().chain(&status.degraded))?;
        let running = ago(status.now.saturating_sub(status.started));
        writeln!(to, "<p>{}</p></div>", isolated(&words.running, &[&running, &time(status.started)]))?;
        if !status.notes.is_empty() {
            write!(to, "<div class=\"state waiting\"><p>{}</p>", &words.notes)?;
            list(to, &status.notes)?;
            to.write_str("</div>\n")?;
        }
        to.write_str("</header>\n")
    }

    fn now(self, to: &mut String) -> fmt::Result {
        let Self { status, words, .. } = self;
        section(to, "now", "wide", &words.now)?;
        // Before there is an hour, all there is is of the last one.
        let (when, counts) = match status.last_hour() {
            Some(counts) => (&words.in_the_last_hour, counts),
            None => (&words.since_the_start, status.counts()),
        };
        let throughput = match status.history.last() {
            Some(minute) => {
                let rate = |bytes: u64| bit_rate(bytes.saturating_mul(8) / (Span::Hour.minutes() * 60));
                let up = rate(minute.counts.to_upstream);
                (rate(minute.counts.to_client), isolated(&words.throughput_more, &[&up]))
            }
            None => ("–".into(), words.throughput_unknown.clone()),
        };
        let month = &status.month;
        let paths = [status.in_kernel(), status.active("userspace"), status.active("none")].map(grouped);
        figures(
            to,
            &[
                (
                    &words.useful,
                    grouped(counts.useful_chat.saturating_add(counts.useful_media)),
                    isolated(
                        &words.useful_more,
                        &[&when, &grouped(counts.useful_chat), &grouped(counts.useful_media)],
                    ),
                ),
                (&words.throughput, throughput.0, throughput.1),
                (
                    &words.faults_now,
                    grouped(counts.failed),
                    isolated(&words.faults_now_more, &[&when, &grouped(counts.refused)]),
                ),
                (
                    &words.open,
                    grouped(status.connections()),
                    isolated(&words.open_more, &[&paths[0], &paths[1], &paths[2]]),
                ),
                (
                    &words.month,
                    bytes(month.to_client.saturating_add(month.to_upstream)),
                    isolated(
                        &words.month_more,
                        &[&bytes(month.to_client), &bytes(month.to_upstream), &time(month.since)],
                    ),
                ),
                (&words.accepted, grouped(status.accepted()), words.accepted_more.clone()),
            ],
        )
    }

    fn charts(self, to: &mut String) -> fmt::Result {
        let Self { status, view, words, .. } = self;
        section(to, "past", "wide", &words.history)?;
        write!(to, "<nav aria-label=\"{}\"><ul class=\"choice\">", &words.spans)?;
        for (span, name) in Span::ALL.into_iter().zip([&words.hour, &words.day, &words.week]) {
            let current = if span == view.span { " aria-current=\"true\"" } else { "" };
            write!(to, "<li><a href=\"{}\"{current}>{name}</a></li>", View { span, ..view }.link())?;
        }
        to.write_str("</ul></nav>\n")?;
        let (history, each, none) = match view.span {
            Span::Hour => (&status.history, &words.each_minute, &words.no_minute),
            Span::Day => (&status.history_day, &words.each_quarter, &words.no_quarter),
            Span::Week => (&status.history_week, &words.each_two_hours, &words.no_two_hours),
        };
        if history.is_empty() {
            return writeln!(to, "<p class=\"none\">{none}</p>\n</section>");
        }
        let count = |title: &str| format!("{title} {each}");
        let charts: [Chart; 8] = [
            (count(&words.chart_chats), "", |sample| sample.counts.useful_chat, Unit::Count),
            (count(&words.chart_media), "", |sample| sample.counts.useful_media, Unit::Count),
            (words.chart_to_clients.clone(), "second", |sample| sample.counts.to_client, Unit::Rate),
            (count(&words.chart_failed), "third", |sample| sample.counts.failed, Unit::Count),
            (words.chart_to_whatsapp.clone(), "second", |sample| sample.counts.to_upstream, Unit::Rate),
            (count(&words.chart_refused), "third", |sample| sample.counts.refused, Unit::Count),
            (words.chart_open.clone(), "", |sample| sample.connections, Unit::Count),
            (count(&words.chart_accepted), "", |sample| sample.counts.accepted, Unit::Count),
        ];
        to.write_str("<div class=\"charts\">\n")?;
        for (title, class, value, unit) in charts {
            self.chart(to, &title, class, unit, history.iter().map(value).collect())?;
        }
        to.write_str("</div>\n</section>\n")
    }

    /// A bar for each sample, the newest at the end.
    fn chart(
        self,
        to: &mut String,
        title: &str,
        class: &str,
        unit: Unit,
        mut values: Vec<u64>,
    ) -> fmt::Result {
        let Self { view: View { span, .. }, words, .. } = self;
        if unit == Unit::Rate {
            values.iter_mut().for_each(|value| *value = value.saturating_mul(8) / (span.minutes() * 60));
        }
        let show = |value| match unit {
            Unit::Count => grouped(value),
            Unit::Rate => bit_rate(value),
        };
        let most = values.iter().copied().max().unwrap_or(0);
        if most == 0 {
            // A phone's screen is too small for plots of nothing.
            return writeln!(
                to,
                "<figure><figcaption>{title} <span>{}</span></figcaption></figure>",
                &words.nothing
            );
        }
        let last = values.last().copied().unwrap_or(0);
        let shown: [&dyn Display; 2] = [&show(last), &show(most)];
        let (summary, spoken) = (isolated(&words.chart_summary, &shown), fill(&words.chart_summary, &shown));
        let (name, ago, half) = match span {
            Span::Hour => (&words.hour, &words.hour_ago, &words.half_hour_ago),
            Span::Day => (&words.day, &words.day_ago, &words.half_day_ago),
            Span::Week => (&words.week, &words.week_ago, &words.half_week_ago),
        };
        let top = scale(most);
        let middle = if top > 1 { show(top / 2) } else { String::new() };
        write!(
            to,
            "<figure class=\"{class}\"><figcaption>{title} <span>{summary}</span></figcaption><div class=\"plot\">\
             <div class=\"scale\" aria-hidden=\"true\"><bdi>{}</bdi><bdi>{middle}</bdi><bdi>0</bdi></div>\
             <svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{}\">\
             <path d=\"M0 0H{WIDTH}M0 {}H{WIDTH}\" vector-effect=\"non-scaling-stroke\"/>",
            show(top),
            format_args!("{title}, {name}: {spoken}"),
            HEIGHT / 2.0,
        )?;
        let bar = WIDTH / span.samples() as f64;
        let first = span.samples() - values.len().min(span.samples());
        for (at, value) in values.iter().enumerate().filter(|(_, value)| **value > 0) {
            let height = (*value as f64 / top as f64 * HEIGHT).max(LEAST);
            write!(
                to,
                "<rect x=\"{:.2}\" y=\"{:.1}\" width=\"{:.2}\" height=\"{height:.1}\"/>",
                (first + at) as f64 * bar,
                HEIGHT - height,
                bar * 0.8
            )?;
        }
        writeln!(
            to,
            "</svg><div class=\"axis\" aria-hidden=\"true\"><span>{ago}</span><span>{half}</span><span>{}</span></div>\
             </div></figure>",
            &words.until_now
        )
    }

    /// The reasons of these classes for which connections ended, the most frequent first.
    fn reasons(self, classes: &[Class]) -> Vec<(CloseReason, u64)> {
        let counted = CloseReason::ALL.iter().map(|reason| (*reason, self.status.ended(*reason)));
        let mut reasons: Vec<_> =
            counted.filter(|(reason, count)| *count > 0 && classes.contains(&reason.class())).collect();
        reasons.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        reasons
    }

    fn faults(self, to: &mut String) -> fmt::Result {
        let words = self.words;
        section(to, "faults", "wide", &words.faults)?;
        let reasons = self.reasons(&[Class::Fault, Class::Limit]);
        if reasons.is_empty() {
            return writeln!(to, "<p class=\"none\">{}</p>\n</section>", &words.faults_none);
        }
        let columns =
            [Column::Text(&words.reason), Column::Text(&words.remedy), Column::Number(&words.since_start)];
        table(to, &words.faults_label, "stack prose", &columns)?;
        for (reason, count) in reasons {
            reason_cell(to, reason.name(), reason.meaning())?;
            let remedy = code(reason.remedy().unwrap_or_default());
            write!(
                to,
                "<td data-label=\"{}\"><span lang=\"en\" dir=\"ltr\">{remedy}</span></td>",
                &words.remedy
            )?;
            number(to, &words.since_start, count)?;
            to.write_str("</tr>\n")?;
        }
        end_table(to)?;
        end_section(to)
    }

    /// Why connections did not go on the wire, where there is one and some did not.
    fn wire_refused(self, to: &mut String) -> fmt::Result {
        let Self { status, words, .. } = self;
        let count = |refusal: &WireRefusal| status.wire_refused.get(refusal.name()).copied().unwrap_or(0);
        let counted = WireRefusal::ALL.iter().map(|refusal| (refusal, count(refusal)));
        let mut refusals: Vec<_> = counted.filter(|(_, count)| *count > 0).collect();
        if refusals.is_empty() {
            return Ok(());
        }
        refusals.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        section(to, "wire", "wide", &words.wire_refused)?;
        let columns = [Column::Text(&words.reason), Column::Number(&words.since_start)];
        table(to, &words.wire_refused, "stack prose", &columns)?;
        for (refusal, count) in refusals {
            reason_cell(to, refusal.name(), refusal.meaning())?;
            number(to, &words.since_start, count)?;
            to.write_str("</tr>\n")?;
        }
        end_table(to)?;
        end_section(to)
    }

    fn endpoints(self, to: &mut String) -> fmt::Result {
        let Self { status, words, .. } = self;
        section(to, "servers", "wide", &words.servers)?;
        let columns = [
            Column::Text(&words.server),
            Column::Text(&words.state),
            Column::Text(&words.since),
            Column::Text(&words.last_failure),
            Column::Number(&words.connections),
        ];
        table(to, &words.servers_label, "stack", &columns)?;
        for Endpoint { upstream, endpoint, standing, seconds, last_error, connections } in &status.endpoints {
            let (class, word) = match standing {
                Standing::Up => ("up", &words.answers),
                Standing::Down => ("down", &words.does_not_answer),
                Standing::Untried => ("untried", &words.not_tried),
            };
            let since = if *standing == Standing::Untried { "–".into() } else { ago(*seconds) };
            let error = last_error.as_deref().unwrap_or(&words.nothing).replace('_', " ");
            write!(
                to,
                "<tr><th scope=\"row\"><bdi>{}</bdi><small><bdi>{}</bdi></small></th><td data-label=\"{}\"><bdi class=\"{class}\">{word}</bdi></td>\
                 <td data-label=\"{}\"><bdi>{since}</bdi></td><td data-label=\"{}\"><bdi lang=\"en\">{}</bdi></td>",
                Escaped(endpoint),
                Escaped(upstream),
                &words.state,
                &words.since,
                &words.last_failure,
                Escaped(&error),
            )?;
            number(to, &words.connections, *connections)?;
            to.write_str("</tr>\n")?;
        }
        end_table(to)?;
        end_section(to)
    }

    /// Those that nobody has used are folded: there are eight by default, and most servers need two.
    fn listeners(self, to: &mut String) -> fmt::Result {
        let Self { status, words, .. } = self;
        section(to, "listeners", "wide", &words.listeners)?;
        let (unused, used): (Vec<_>, Vec<_>) =
            status.listeners.iter().partition(|listener| listener.accepted == 0);
        if !used.is_empty() {
            self.listener_table(to, &words.listeners_label, &used)?;
        }
        if !unused.is_empty() {
            let names: Vec<_> =
                unused.iter().map(|listener| format!("<bdi>{}</bdi>", Escaped(&listener.name))).collect();
            let summary = isolated(&words.unused, &[&names.join(", ")]);
            writeln!(to, "<details><summary>{summary}</summary>")?;
            self.listener_table(to, &words.unused_label, &unused)?;
            to.write_str("</details>\n")?;
        }
        end_section(to)
    }

    fn listener_table(self, to: &mut String, label: &str, listeners: &[&Listener]) -> fmt::Result {
        let words = self.words;
        let columns = [
            Column::Text(&words.listener),
            Column::Number(&words.listener_useful),
            Column::Number(&words.listener_open),
            Column::Number(&words.listener_kernel),
            Column::Number(&words.listener_accepted),
        ];
        table(to, label, "stack", &columns)?;
        for listener in listeners {
            write!(
                to,
                "<tr><th scope=\"row\"><bdi>{}</bdi><small>{}</small></th>",
                Escaped(&listener.name),
                self.places(listener)
            )?;
            let useful = total(Purpose::ALL.map(|purpose| listener.useful(purpose)).into_iter());
            number(to, &words.listener_useful, useful)?;
            number(to, &words.listener_open, listener.connections())?;
            number(to, &words.listener_kernel, listener.in_kernel())?;
            number(to, &words.listener_accepted, listener.accepted)?;
            to.write_str("</tr>\n")?;
        }
        end_table(to)
    }

    /// Where a listener is: ports alone where it takes all addresses.
    fn places(self, listener: &Listener) -> String {
        let mut places = Vec::new();
        for address in &listener.addresses {
            let place = if address.ip().is_unspecified() {
                isolated(&self.words.ports, &[&address.port()])
            } else {
                format!("<bdi>{address}</bdi>")
            };
            if !places.contains(&place) {
                places.push(place);
            }
        }
        if places.is_empty() { self.words.listener_gone.clone() } else { places.join(", ") }
    }

    fn endings(self, to: &mut String) -> fmt::Result {
        let words = self.words;
        let groups = [
            ("endings", &words.endings, Class::Ordinary, &words.endings_label),
            ("visitors", &words.visitors, Class::Visitor, &words.visitors_label),
        ];
        for (id, title, class, label) in groups {
            section(to, id, "", title)?;
            let reasons = self.reasons(&[class]);
            if reasons.is_empty() {
                writeln!(to, "<p class=\"none\">{}</p>", &words.endings_none)?;
            } else {
                table(
                    to,
                    label,
                    "prose",
                    &[Column::Text(&words.reason), Column::Number(&words.since_start)],
                )?;
                for (reason, count) in reasons {
                    reason_cell(to, reason.name(), reason.meaning())?;
                    number(to, &words.since_start, count)?;
                    to.write_str("</tr>\n")?;
                }
                end_table(to)?;
            }
            end_section(to)?;
        }
        Ok(())
    }

    fn machine(self, to: &mut String) -> fmt::Result {
        let Self { status, words, .. } = self;
        section(to, "machine", "wide", &words.machine)?;
        let process = &status.process;
        let unknown = || words.unknown.clone();
        let of = |whole: String| isolated(&words.of, &[&whole]);
        let kernel = match &status.kernel {
            Some(kernel) => {
                (bytes(kernel.reserved), isolated(&words.kernel_path_more, &[&bytes(kernel.budget)]))
            }
            None => ("–".into(), words.kernel_path_none.clone()),
        };
        let free = status.limits.connections.saturating_sub(status.connections());
        let processor = process.cpu.map_or_else(unknown, |seconds| ago(seconds as u64));
        let mut rows: Vec<Figure<'_>> = vec![
            (&words.room, grouped(free), of(grouped(status.limits.connections))),
            (&words.memory, process.resident.map_or_else(unknown, bytes), words.resident.clone()),
            (&words.files, process.files.map_or_else(unknown, grouped), of(grouped(status.limits.files))),
            (&words.processor, processor, words.processor_more.clone()),
            (&words.kernel_path, kernel.0, kernel.1),
        ];
        if let Some(wire) = &status.wire {
            let more = isolated(&words.wire_more, &[&grouped(wire.handed_over), &grouped(wire.torn)]);
            rows.push((&words.wire, grouped(wire.flows), more));
        }
        if let Some(certificate) = &status.certificate {
            let left = certificate.not_after.checked_sub(status.now);
            let left = left.map_or_else(|| words.expired.clone(), ago);
            let until = isolated(&words.certificate_more, &[&time(certificate.not_after)]);
            rows.push((&words.certificate, left, until));
        }
        let taken = match status.reload.taken {
            0 => unknown(),
            taken => ago(status.now.saturating_sub(taken)),
        };
        let how = match (&status.reload.refused, status.reload.count) {
            (Some(_), _) => &words.reload_refused,
            (None, 0) => &words.read_at_start,
            (None, _) => &words.read_by_reload,
        };
        rows.push((&words.configuration, taken, how.clone()));
        let failures: u64 = total(status.name_failures.values().copied());
        rows.push((&words.lookups, grouped(failures), words.lookups_more.clone()));
        figures(to, &rows)
    }

    fn footer(self, to: &mut String) -> fmt::Result {
        let Self { status, view, language, words } = self;
        let other = View { refreshes: !view.refreshes, ..view }.link();
        let seconds: [&dyn Display; 1] = [&REFRESH_SECONDS];
        write!(to, "<footer>\n<p>{} ", isolated(&words.as_of, &[&time(status.now)]))?;
        if view.refreshes {
            let (says, stop) = (isolated(&words.refreshes, &seconds), &words.refreshes_stop);
            writeln!(to, "{says} <a href=\"{other}\">{stop}</a>.</p>")?;
        } else {
            writeln!(to, "<a href=\"{other}\">{}</a>.</p>", isolated(&words.refresh, &seconds))?;
        }
        let configuration = format!("<code>{}</code>", Escaped(&status.configuration));
        writeln!(
            to,
            "<p>{} <a href=\"/share\">{}</a>. {} <a href=\"/metrics\">metrics</a>, \
             <a href=\"/status.json\">status.json</a>. {}</p>",
            isolated(&words.about, &[&Escaped(&status.version), &configuration]),
            words.about_share,
            words.about_programs,
            words.about_privacy,
        )?;
        if let Some(unreviewed) = language.unreviewed() {
            writeln!(to, "<p>{unreviewed}</p>")?;
        }
        to.write_str("</footer>\n")
    }
}

/// In what a chart counts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unit {
    Count,
    /// Bits a second.
    Rate,
}

/// The top of a scale on which this is to be seen: a number that can be read at a glance, and halved.
fn scale(most: u64) -> u64 {
    let mut decade = 1_u64;
    loop {
        for factor in [1, 2, 4, 6, 8] {
            let top = decade.saturating_mul(factor);
            if top >= most {
                return top;
            }
        }
        decade = decade.saturating_mul(10);
    }
}

/// Items that are in English in any language: what setu says elsewhere, too, in its log above all.
fn list<'a>(to: &mut String, items: impl IntoIterator<Item = &'a String>) -> fmt::Result {
    let mut items = items.into_iter().peekable();
    if items.peek().is_none() {
        return Ok(());
    }
    to.write_str("<ul lang=\"en\" dir=\"ltr\">")?;
    for item in items {
        write!(to, "<li>{}</li>", Escaped(item))?;
    }
    to.write_str("</ul>")
}

/// A text with values in their places, each of which runs its own way: a date would run backwards in Arabic.
fn isolated(text: &str, values: &[&dyn Display]) -> String {
    let values: Vec<_> = values.iter().map(|value| format!("<bdi>{value}</bdi>")).collect();
    let values: Vec<&dyn Display> = values.iter().map(|value| value as &dyn Display).collect();
    fill(text, &values)
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

fn end_section(to: &mut String) -> fmt::Result {
    to.write_str("</section>\n")
}

/// All that a section has to show.
fn figures(to: &mut String, rows: &[Figure<'_>]) -> fmt::Result {
    to.write_str("<dl class=\"figures\">")?;
    for (name, value, more) in rows {
        write!(to, "<div><dt>{name}</dt><dd><bdi>{value}</bdi><small>{more}</small></dd></div>")?;
    }
    to.write_str("</dl>\n")?;
    end_section(to)
}

/// A table's column by its name.
enum Column<'a> {
    Text(&'a str),
    Number(&'a str),
}

/// Opens a table with a header for each column.
fn table(to: &mut String, label: &str, class: &str, columns: &[Column<'_>]) -> fmt::Result {
    write!(
        to,
        "<div class=\"scroll\" role=\"region\" tabindex=\"0\" aria-label=\"{label}\"><table class=\"{class}\"><thead><tr>"
    )?;
    for column in columns {
        match column {
            Column::Number(name) => write!(to, "<th scope=\"col\" class=\"number\">{name}</th>")?,
            Column::Text(name) => write!(to, "<th scope=\"col\">{name}</th>")?,
        }
    }
    to.write_str("</tr></thead><tbody>\n")
}

fn end_table(to: &mut String) -> fmt::Result {
    to.write_str("</tbody></table></div>\n")
}

/// A cell that tells its column by itself where the screen is too narrow for columns.
fn number(to: &mut String, label: &str, value: u64) -> fmt::Result {
    write!(to, "<td class=\"number\" data-label=\"{label}\"><bdi>{}</bdi></td>", grouped(value))
}

/// The row's head: a reason by its name in logs and metrics, and what it means.
fn reason_cell(to: &mut String, name: &str, meaning: &str) -> fmt::Result {
    let meaning = code(meaning.trim());
    write!(
        to,
        "<tr><th scope=\"row\"><code>{name}</code><small lang=\"en\" dir=\"ltr\">{meaning}</small></th>"
    )
}

/// Text in which what is between backticks is code.
fn code(text: &str) -> String {
    let mut html = String::new();
    for (at, part) in text.split('`').enumerate() {
        let part = Escaped(part);
        // Writing to a string cannot fail.
        let _ = if at % 2 == 1 { write!(html, "<code>{part}</code>") } else { write!(html, "{part}") };
    }
    html
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::admin::status::Wire;

    #[test]
    fn a_choice_is_kept_by_the_links_of_the_others() {
        for (query, link) in [
            (None, "/"),
            (Some("refresh=off"), "/?refresh=off"),
            (Some("span=day"), "/?span=day"),
            (Some("refresh=off&span=week"), "/?span=week&amp;refresh=off"),
            (Some("span=year&<script>"), "/"),
        ] {
            assert_eq!(View::of(query).link(), link, "{query:?}");
        }
        let view = View::of(Some("span=week&refresh=off"));
        assert_eq!(view, View { refreshes: false, span: Span::Week });
    }

    #[test]
    fn the_wire_is_in_the_kernel_and_tells_what_it_does_not_take() {
        let mut status: Status =
            serde_json::from_str(include_str!("../../../../tests/page/status/busy.json")).unwrap();
        let text = |status: &Status| page(status, View::of(None), "en").unwrap();
        assert!(!text(&status).contains("Not on the wire"), "there is none");
        let in_kernel = status.in_kernel();
        status.listeners[0].active.insert("wire".into(), 7000);
        status.wire = Some(Wire { keeper: true, flows: 7000, handed_over: 81_234, busy: 12, torn: 3 });
        status.wire_refused = [("mtu".into(), 5), ("no_port".into(), 0)].into();
        assert_eq!(status.in_kernel(), in_kernel + 7000);
        let english = text(&status);
        let row = "<dt>On the wire</dt><dd><bdi>7\u{202f}000</bdi>";
        let row = row.replace("7\u{202f}000", &grouped(7000));
        assert!(english.contains(&row) && english.contains(&grouped(81_234)), "{english}");
        assert!(
            english.contains("<code>mtu</code>") && english.contains("smaller packets (MTU)"),
            "{english}"
        );
        assert!(!english.contains("<code>no_port</code>"), "{english}");
        for language in languages().unwrap().iter() {
            let page = page(&status, View::of(None), &language.code).unwrap();
            assert!(page.contains(&language.status.wire_refused), "{}", language.code);
        }
    }

    #[test]
    fn scales_are_round_and_hold_the_most() {
        for (most, top) in
            [(0, 1), (1, 1), (2, 2), (3, 4), (5, 6), (9, 10), (11, 20), (39, 40), (41, 60), (81, 100)]
        {
            assert_eq!(scale(most), top);
        }
        assert_eq!(scale(u64::MAX), u64::MAX);
    }

    #[test]
    fn backticks_are_code_and_markup_is_text() {
        assert_eq!(code("set `a.<b>` or & wait"), "set <code>a.&lt;b&gt;</code> or &amp; wait");
    }
}
