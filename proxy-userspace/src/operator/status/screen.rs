//! A [`Status`] as lines that fit into a terminal: what matters most comes first, and what matters least is left out where
//! there is no room.

use std::cmp::Reverse;

use crate::{
    log,
    operator::{
        admin::{Endpoint, FetchError, Listener, Standing, State, Status},
        text::{ago, bytes, grouped},
    },
};

/// Reasons that are shown.
const REASONS: usize = 8;
/// Columns of names of the configuration; longer ones are cut.
const NAME: usize = 24;
const SERVER: usize = 36;
const HINT: &str = "q ends this.";

/// Room for text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) columns: usize,
    pub(super) rows: usize,
}

/// What lines are worth: those of the last rank go first, and of one rank the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Verdict,
    Hint,
    Cause,
    Traffic,
    Version,
    Note,
    /// What a cause or a note has to say in more lines than one.
    More,
    Down,
    /// By their place in the order of use.
    Listener(usize),
    Server,
    Process,
    Ended,
    Space,
}

struct Line {
    rank: Rank,
    text: String,
}

/// One screen; with rates where there is a status of before. Nothing in it is longer or more than there is room for.
pub(super) fn screen(status: &Status, before: Option<&Status>, size: Size) -> String {
    let mut lines = Lines { columns: size.columns, all: Vec::new() };
    lines.add(Rank::Verdict, verdict(status));
    lines.causes(status);
    lines.notes(status);
    lines.space();
    lines.version(status);
    lines.traffic(status, before);
    lines.listeners(status);
    lines.servers(status);
    lines.ended(status);
    lines.fit(size.rows)
}

/// The screen when there is no status.
pub(super) fn unreachable(error: &FetchError, size: Size) -> String {
    let mut lines = Lines { columns: size.columns, all: Vec::new() };
    lines.add(Rank::Verdict, "NO ANSWER".into());
    lines.paragraph(Rank::Cause, "", &error.to_string());
    lines.fit(size.rows)
}

/// The first line: how it is, and the first reason.
fn verdict(status: &Status) -> String {
    let because = |reasons: &[String]| reasons.first().cloned().unwrap_or_default();
    match status.state() {
        State::Working => "working".into(),
        State::Degraded => format!("working, but {}", because(&status.degraded)),
        State::Starting => format!("starting: {}", because(&status.problems)),
        State::NotWorking => format!("NOT WORKING: {}", because(&status.problems)),
        State::Stopping => "stopping: new clients are to go elsewhere".into(),
    }
}

struct Lines {
    columns: usize,
    all: Vec<Line>,
}

impl Lines {
    fn add(&mut self, rank: Rank, text: String) {
        self.all.push(Line { rank, text: clip(&text, self.columns) });
    }

    fn space(&mut self) {
        self.add(Rank::Space, String::new());
    }

    /// A text in as many lines as it takes, of which the first has a mark.
    fn paragraph(&mut self, rank: Rank, mark: &str, text: &str) {
        let mut line = mark.to_owned();
        let mut rank = rank;
        for word in text.split_whitespace() {
            let is_empty = line.trim_end().len() == mark.trim_end().len() || line.trim().is_empty();
            if !is_empty && line.chars().count() + 1 + word.chars().count() > self.columns {
                self.add(rank, std::mem::replace(&mut line, " ".repeat(mark.len())));
                rank = Rank::More;
            } else if !is_empty {
                line.push(' ');
            }
            line.push_str(word);
        }
        self.add(rank, line);
    }

    /// All reasons, unless the verdict has them.
    fn causes(&mut self, status: &Status) {
        let causes: Vec<_> = status.problems.iter().chain(&status.degraded).collect();
        if causes.len() == 1 && verdict(status).chars().count() <= self.columns {
            return;
        }
        for cause in causes {
            self.paragraph(Rank::Cause, "  ! ", cause);
        }
    }

    fn notes(&mut self, status: &Status) {
        for note in &status.notes {
            self.paragraph(Rank::Note, "  * ", note);
        }
    }

    fn version(&mut self, status: &Status) {
        let since = |moment: u64| ago(status.now.saturating_sub(moment));
        let read = match status.reload.taken {
            0 => String::new(),
            taken => format!(", read {} ago", since(taken)),
        };
        let Status { version, configuration, started, .. } = status;
        self.add(
            Rank::Version,
            format!("setu {version}, up {}, configuration {configuration}{read}", since(*started)),
        );
    }

    fn traffic(&mut self, status: &Status, before: Option<&Status>) {
        let seconds = before.map_or(0, |before| status.now.saturating_sub(before.now));
        let rate = |count: fn(&Status) -> u64, show: fn(u64) -> String| {
            let before = before.filter(|_| seconds > 0);
            let rate = before.map(|before| count(status).saturating_sub(count(before)) / seconds);
            rate.map_or(String::new(), |rate| format!(" ({}/s)", show(rate)))
        };
        let (counts, when) = match status.last_hour() {
            Some(counts) => (counts, "in the last hour"),
            None => (status.counts(), "since the start"),
        };
        self.add(
            Rank::Traffic,
            format!(
                "useful       {} chats, {} media {when}; {} accepted{}",
                grouped(counts.useful_chat),
                grouped(counts.useful_media),
                grouped(status.accepted()),
                rate(Status::accepted, grouped),
            ),
        );
        self.add(
            Rank::Traffic,
            format!(
                "connections  {} open of {}: {} kernel, {} userspace, {} connecting",
                grouped(status.connections()),
                grouped(status.limits.connections),
                grouped(status.in_kernel()),
                grouped(status.active("userspace")),
                grouped(status.active("none")),
            ),
        );
        self.add(
            Rank::Traffic,
            format!(
                "moved        {} to WhatsApp{}, {} to clients{}",
                bytes(status.bytes.to_upstream),
                rate(|status| status.bytes.to_upstream, bytes),
                bytes(status.bytes.to_client),
                rate(|status| status.bytes.to_client, bytes),
            ),
        );
        if let Some(wire) = &status.wire {
            let refused = status.wire_refused.values().copied();
            self.add(
                Rank::Process,
                format!(
                    "wire         {} on it; since the start {} went on it, {} did not, {} torn",
                    grouped(wire.flows),
                    grouped(wire.handed_over),
                    grouped(refused.fold(0, u64::saturating_add)),
                    grouped(wire.torn),
                ),
            );
        }
        self.add(
            Rank::Process,
            format!(
                "process      {} of memory, {} of {} files",
                status.process.resident.map_or_else(|| "unknown".into(), bytes),
                status.process.files.map_or_else(|| "unknown".into(), grouped),
                grouped(status.limits.files),
            ),
        );
    }

    fn listeners(&mut self, status: &Status) {
        self.space();
        // The title is worth as much as the first that it is for.
        self.add(
            Rank::Listener(0),
            format!("{:<NAME$} {:>10} {:>10} {:>14}", "LISTENER", "OPEN", "KERNEL", "ACCEPTED"),
        );
        let mut by_use: Vec<&Listener> = status.listeners.iter().collect();
        by_use.sort_by_key(|listener| Reverse((listener.connections(), listener.accepted)));
        for listener in &status.listeners {
            let place = by_use.iter().position(|other| std::ptr::eq(*other, listener)).unwrap_or_default();
            let (name, open, accepted) =
                (clip(&listener.name, NAME), grouped(listener.connections()), grouped(listener.accepted));
            self.add(
                Rank::Listener(place),
                format!("{name:<NAME$} {open:>10} {:>10} {accepted:>14}", grouped(listener.in_kernel())),
            );
        }
    }

    fn servers(&mut self, status: &Status) {
        self.space();
        let is_down = |endpoint: &Endpoint| endpoint.standing == Standing::Down;
        let rank = |is_down| if is_down { Rank::Down } else { Rank::Server };
        self.add(
            rank(status.endpoints.iter().any(is_down)),
            format!("{:<SERVER$} {:<16} {:<14} {:>10}", "WHATSAPP'S SERVER", "STATE", "SINCE", "OPEN"),
        );
        for endpoint in &status.endpoints {
            let (word, since) = match endpoint.standing {
                Standing::Up => ("answers", ago(endpoint.seconds)),
                Standing::Down => ("does not answer", ago(endpoint.seconds)),
                Standing::Untried => ("not tried yet", String::new()),
            };
            let (name, open) = (clip(&endpoint.endpoint, SERVER), grouped(endpoint.connections));
            self.add(rank(is_down(endpoint)), format!("{name:<SERVER$} {word:<16} {since:<14} {open:>10}"));
        }
    }

    fn ended(&mut self, status: &Status) {
        let mut reasons: Vec<_> = status.closed.iter().collect();
        reasons.sort_by_key(|(_, count)| Reverse(**count));
        self.space();
        self.add(Rank::Ended, format!("{:<NAME$} {:>14}", "ENDED", "COUNT"));
        for (reason, count) in reasons.into_iter().take(REASONS) {
            self.add(Rank::Ended, format!("{reason:<NAME$} {:>14}", grouped(*count)));
        }
    }

    /// The text, without the lines for which there is no room.
    fn fit(mut self, rows: usize) -> String {
        // What is printed once needs no key.
        if rows < usize::MAX {
            self.add(Rank::Hint, HINT.into());
        }
        while self.all.len() > rows.max(1) {
            let least = self.all.iter().enumerate().max_by_key(|(_, line)| line.rank);
            let Some((at, _)) = least else { break };
            self.all.remove(at);
        }
        self.all.into_iter().map(|line| line.text).collect::<Vec<_>>().join("\n")
    }
}

/// At most so many characters, none of which does anything to a terminal.
fn clip(text: &str, columns: usize) -> String {
    let mut characters = text.chars().map(log::harmless);
    let mut clipped: String = characters.by_ref().take(columns).collect();
    if characters.next().is_some() {
        clipped.pop();
        clipped.push('…');
    }
    clipped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::admin::Wire;

    fn busy() -> Status {
        serde_json::from_str(include_str!("../../../../tests/page/status/busy.json")).unwrap()
    }

    const WHOLE: Size = Size { columns: usize::MAX, rows: usize::MAX };

    #[test]
    fn what_another_process_says_has_no_bounds() {
        let mut status = busy();
        status.bytes.to_client = u64::MAX;
        for listener in &mut status.listeners {
            listener.accepted = u64::MAX;
            listener.active = ["sockmap", "userspace"].map(|path| (path.into(), u64::MAX)).into();
        }
        let text = screen(&status, None, Size { columns: 80, rows: 24 });
        assert!(text.contains("useful       ") && text.lines().count() <= 24, "{text}");
    }

    #[test]
    fn a_screen_tells_state_and_rates() {
        let now = busy();
        let mut before = now.clone();
        before.now -= 2;
        before.bytes.to_client -= 4 << 20;
        let text = screen(&now, Some(&before), WHOLE);
        assert!(text.starts_with("working\n"), "{text}");
        assert!(text.contains("\nsetu 0.1.0, up 12 d 5 h, configuration "), "{text}");
        assert!(text.contains("to clients (2.0\u{a0}MiB/s)"), "{text}");
        assert!(text.contains("g-fallback.whatsapp.net:5222         does not answer"), "{text}");
        let broken = include_str!("../../../../tests/page/status/broken.json");
        let text = screen(&serde_json::from_str(broken).unwrap(), None, WHOLE);
        assert!(text.starts_with("NOT WORKING: ") && text.contains("\n  * the reload of "), "{text}");
        assert!(!text.contains("/s)"), "{text}");
    }

    #[test]
    fn a_screen_tells_of_the_wire_where_there_is_one() {
        let mut status = busy();
        assert!(!screen(&status, None, WHOLE).contains("\nwire "));
        status.listeners[0].active = [("wire".into(), 5), ("sockmap".into(), 2)].into();
        status.wire = Some(Wire { keeper: true, flows: 5, handed_over: 9, busy: 1, torn: 1 });
        status.wire_refused = [("mtu".into(), u64::MAX), ("local".into(), 3)].into();
        let text = screen(&status, None, WHOLE);
        assert!(text.contains("\nwire         5 on it; since the start 9 went on it, "), "{text}");
        let name = format!("{:<NAME$}", status.listeners[0].name);
        let row = text.lines().find(|line| line.starts_with(&name)).unwrap();
        assert!(row.contains(&format!(" {:>10} {:>10} ", 7, 7)), "{row}");
    }

    /// As much trouble as there can be, and names as long as they may be.
    fn crowded() -> Status {
        let mut status = busy();
        let listener = status.listeners[0].clone();
        for number in 0..8 {
            status.listeners.push(Listener { name: format!("{number}").repeat(64), ..listener.clone() });
        }
        status.endpoints[0].endpoint = format!("{}:443", "server.".repeat(30));
        status.degraded = vec!["word ".repeat(60), "w".repeat(400)];
        status.notes = vec!["a line\nand \x1b[31mred ".repeat(20), String::new()];
        status
    }

    #[test]
    fn it_fits_however_little_room_there_is() {
        for status in [busy(), crowded()] {
            for (columns, rows) in [(80, 24), (80, 10), (40, 24), (20, 3), (1, 1), (300, 100)] {
                let text = screen(&status, Some(&status), Size { columns, rows });
                let lines: Vec<_> = text.split('\n').collect();
                assert!(lines.len() <= rows, "{rows}: {text}");
                assert!(lines.iter().all(|line| line.chars().count() <= columns), "{columns}: {text}");
                assert!(!text.contains('\x1b'), "{text}");
                assert!(columns < 20 || lines[0].starts_with("working"), "{text}");
            }
        }
        let lower = screen(&crowded(), None, Size { columns: 80, rows: 12 });
        assert!(lower.contains("connections ") && lower.ends_with(HINT), "{lower}");
        assert!(!lower.contains("ENDED") && !lower.contains("process "), "{lower}");
    }

    #[test]
    fn the_least_used_listeners_go_first() {
        let mut status = busy();
        status.listeners[0].active.clear();
        (status.listeners[0].name, status.listeners[0].accepted) = ("unused".into(), 0);
        let text = |rows| screen(&status, None, Size { columns: 80, rows });
        assert!(text(24).contains("unused"), "{}", text(24));
        assert!(!text(12).contains("unused") && text(12).contains("media "), "{}", text(12));
    }

    #[test]
    fn a_cause_is_told_whole() {
        let mut status = busy();
        let cause = "chat on ports 80 and 8080 does not work: g.whatsapp.net:80 does not answer (connect_timeout); on the \
                     others it does";
        status.degraded = vec![cause.into()];
        let text = screen(&status, None, Size { columns: 80, rows: 24 });
        let (first, rest) = text.split_once('\n').unwrap();
        assert!(
            first.starts_with("working, but chat on ports 80 and 8080 does not work: ")
                && first.ends_with('…')
        );
        let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(words(rest).contains(cause), "{text}");
        let wide = screen(&status, None, Size { columns: 200, rows: 24 });
        assert_eq!(wide.matches("8080").count(), 1, "{wide}");
    }
}
