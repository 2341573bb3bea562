//! The log: lines on standard error, which whoever reads them must not be able to stop setu by.
//!
//! The reader may be gone, slow or stopped, the disk full, the terminal set to nonblocking by another program. So a
//! server leaves writing to a thread with a bounded queue ([`Queue`]); what does not fit, and what cannot be written, is
//! counted and not told.

use std::{
    env, fmt,
    io::{self, IsTerminal as _, Write},
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, SystemTime},
};

use tracing::warn;
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{
    EnvFilter,
    filter::LevelFilter,
    fmt::{format::Writer, time::FormatTime},
};

/// The environment variable that says what is logged.
const VARIABLE: &str = "SETU_LOG";
/// What is logged without it.
const DEFAULT: &str = "info";
/// Whoever looks names up tells which ones, and clients choose some. It says nothing unless it is asked by name.
const RESOLVER: &str = "hickory";
const SILENT_RESOLVER: &str = "hickory_net=off,hickory_proto=off,hickory_resolver=off";
/// What a module's path begins with.
const CRATE: &str = "setu";
/// What lines are of: setu, and the libraries that write any.
const PARTS: [&str; 8] = [CRATE, "hickory", "rustls", "tokio", "hyper", "mio", "aya", "h2"];
/// What is told in any case, of whichever part.
const ALWAYS: &str = "error";
/// What it was before.
const EARLIER: &str = "proxy_userspace";
/// Lines that may wait to be written: a burst, and a bound to what a stopped reader costs.
const WAITING: usize = 4096;
/// How soon a reader that had no room is tried again.
const PAUSE: Duration = Duration::from_millis(100);

/// The queue, once there is one.
static QUEUE: OnceLock<NonBlocking> = OnceLock::new();
/// Lines that could not be written.
static UNWRITTEN: AtomicU64 = AtomicU64::new(0);

/// Begins to log what the environment asks for.
pub fn init() {
    let (filter, slip) = match env::var(VARIABLE) {
        Ok(text) => match parse(&text) {
            Ok(filter) => (filter, None),
            Err(slip) => (quiet(DEFAULT), Some(slip)),
        },
        Err(env::VarError::NotPresent) => (quiet(DEFAULT), None),
        Err(env::VarError::NotUnicode(_)) => (quiet(DEFAULT), Some("it is not UTF-8".into())),
    };
    tracing_subscriber::fmt()
        .with_writer(Line::new)
        .with_timer(Seconds)
        // It would tell standard error.
        .log_internal_errors(false)
        .with_ansi(io::stderr().is_terminal())
        .with_env_filter(filter)
        .init();
    if let Some(slip) = slip {
        warn!("{VARIABLE}: {slip}; {DEFAULT} is logged");
    }
}

/// The time of a line. Anything finer would match the end of a connection with what others have recorded.
struct Seconds;

impl FormatTime for Seconds {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        write!(writer, "{}", humantime::format_rfc3339_seconds(SystemTime::now()))
    }
}

/// Lines that were lost since the start.
pub(crate) fn lost() -> u64 {
    let dropped = QUEUE.get().map_or(0, |queue| queue.error_counter().dropped_lines());
    UNWRITTEN.load(Ordering::Relaxed) + dropped as u64
}

/// What leaves writing to a thread for as long as it lives. It begins after privileges are dropped: its thread would
/// keep them.
#[derive(Debug)]
pub(crate) struct Queue {
    /// On drop what waits is written, if that is possible within a second.
    _thread: WorkerGuard,
}

impl Queue {
    pub(crate) fn begin() -> Self {
        let (queue, thread) = NonBlockingBuilder::default()
            .buffered_lines_limit(WAITING)
            .thread_name("log")
            .finish(StandardError { when_full: WhenFull::Wait });
        // There is one server in a process.
        let _ = QUEUE.set(queue);
        Self { _thread: thread }
    }
}

/// Where one line goes.
enum Line {
    Now(StandardError),
    Queued(NonBlocking),
}

impl Line {
    fn new() -> Self {
        match QUEUE.get() {
            Some(queue) => Self::Queued(queue.clone()),
            None => Self::Now(StandardError { when_full: WhenFull::Lose }),
        }
    }
}

impl Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match self {
            Self::Now(direct) => direct.write(line),
            Self::Queued(queue) => queue.write(line),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Standard error, which never fails: what cannot be written is counted.
struct StandardError {
    when_full: WhenFull,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WhenFull {
    /// There is room again some day, and a queue meanwhile.
    Wait,
    Lose,
}

impl Write for StandardError {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if write_all(&mut io::stderr(), line, self.when_full).is_err() {
            UNWRITTEN.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_all(to: &mut impl Write, mut line: &[u8], when_full: WhenFull) -> io::Result<()> {
    while !line.is_empty() {
        match to.write(line) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => line = &line[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // A writer that never waits shares its file with others, who may have set it so at any time.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && when_full == WhenFull::Wait => {
                thread::sleep(PAUSE);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// What is to be logged. Filters of versions whose lines had another target are read as they were meant. [`EnvFilter`] takes a word that is no level for a module, and then logs nothing at all.
fn parse(text: &str) -> Result<EnvFilter, String> {
    let text = text.replace(EARLIER, CRATE);
    let directives = text.split(',').map(str::trim).filter(|directive| !directive.is_empty());
    let directives = directives.map(directive).collect::<Result<Vec<_>, _>>()?;
    let wanted = if directives.is_empty() { DEFAULT.to_owned() } else { directives.join(",") };
    let is_off = directives.iter().any(|directive| directive == "off");
    // What goes wrong is told, whichever part is asked for; the later of two directives for the same holds.
    let wanted = if is_off { wanted } else { format!("{ALWAYS},{wanted}") };
    Ok(if wanted.contains(RESOLVER) { EnvFilter::new(wanted) } else { quiet(&wanted) })
}

/// One directive as [`EnvFilter`] takes it: a level, a part, or a part and its level.
fn directive(text: &str) -> Result<String, String> {
    let level = |text: &str| {
        let text = text.trim();
        // Nothing at all parses as the level of errors.
        if text.parse::<LevelFilter>().is_ok() && text.starts_with(|first: char| first.is_ascii_alphabetic())
        {
            return Ok(text.to_lowercase());
        }
        Err(format!(
            "{text:?} is no level; write error, warn, info, debug, trace or off, alone or as {CRATE}::module=level"
        ))
    };
    let part = |text: &str| {
        let text = text.trim();
        let first = text.split("::").next().unwrap_or_default();
        let is_path = text.chars().all(|sign| sign.is_ascii_alphanumeric() || "_:".contains(sign));
        if is_path && PARTS.iter().any(|part| first == *part || first.starts_with(&format!("{part}_"))) {
            return Ok(text.to_owned());
        }
        Err(format!(
            "{text:?} is no part of setu; write {CRATE}, {CRATE}::module, or one of its libraries: {PARTS:?}"
        ))
    };
    match text.split_once('=') {
        Some((name, value)) => {
            let level = level(value)?;
            Ok(format!("{}={level}", part(name)?))
        }
        None => level(text).or_else(|slip| part(text).map_err(|_| slip)),
    }
}

/// The filter of these directives, of which each is right, without what the resolver says.
fn quiet(directives: &str) -> EnvFilter {
    EnvFilter::new(format!("{directives},{SILENT_RESOLVER}"))
}

/// Writes what ends setu. It goes past the queue, of which there is none any more.
pub fn last_words(text: &str) {
    let text: String =
        text.chars().map(|letter| if letter == '\n' { letter } else { harmless(letter) }).collect();
    // Nobody is left to tell when it cannot be written.
    let _ = writeln!(io::stderr(), "{text}");
}

/// A character as a terminal may be given it, whoever has chosen it: neither does it anything to the terminal, nor does it
/// change the order of what stands beside it.
pub(crate) fn harmless(letter: char) -> char {
    let changes_direction =
        matches!(letter, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    if letter.is_control() || changes_direction { char::REPLACEMENT_CHARACTER } else { letter }
}

/// Tells the operator of a command what is not its result, which others may read from standard output.
pub fn aside(text: &str) {
    last_words(&format!("setu: {text}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_have_chosen_does_nothing_to_a_terminal() {
        let shown: String = "a\u{1b}[2J\r\n\u{9b}31m\u{202e}\u{2066}é سلام".chars().map(harmless).collect();
        assert_eq!(shown, "a\u{fffd}[2J\u{fffd}\u{fffd}\u{fffd}31m\u{fffd}\u{fffd}é سلام");
    }

    #[test]
    fn a_word_that_is_no_level_is_told() {
        for right in
            ["", "info", "WARN", "off", "setu=debug", "setu::relay", "info,setu::relay=trace,hickory=off"]
        {
            parse(right).unwrap_or_else(|slip| panic!("{right}: {slip}"));
        }
        for wrong in ["warning", "verbose", "notice", "info,quiet", "setu=warning", "setu::relay=", "=info2"]
        {
            let slip = parse(wrong).expect_err(wrong);
            assert!(slip.contains("is no level; write error, warn"), "{wrong}: {slip}");
        }
        assert!(parse("warning").unwrap_err().contains("\"warning\""));
        assert!(parse("setu=loud").unwrap_err().contains("\"loud\""));
        for wrong in ["setup=debug", "log=info", "info;setu=debug", "setu[a=debug", "setu:=info,x=warn"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    /// However it is written, and whichever part is asked for, errors come through.
    #[test]
    fn errors_are_always_told() {
        assert_eq!(
            parse("debug").unwrap().to_string(),
            quiet("debug").to_string(),
            "nothing is less than it says"
        );
        for (text, most) in [
            (" info", LevelFilter::INFO),
            ("debug\n", LevelFilter::DEBUG),
            ("setu = debug", LevelFilter::DEBUG),
            ("setu::upstream=warn", LevelFilter::WARN),
            ("setu::upstream::dns=error", LevelFilter::ERROR),
            ("tokio=off", LevelFilter::ERROR),
            ("off", LevelFilter::OFF),
        ] {
            let filter = parse(text).unwrap_or_else(|slip| panic!("{text}: {slip}"));
            assert_eq!(filter.max_level_hint(), Some(most), "{text}");
            let is_told = filter.to_string().split(',').any(|directive| directive == "error");
            assert!(is_told || !text.contains("::"), "{filter}");
        }
    }

    /// Gives each answer in turn.
    struct Reader(Vec<io::Result<usize>>);

    impl Write for Reader {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            self.0.remove(0)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_without_room_is_waited_for_by_the_queue_alone() {
        let full = || io::Result::Err(io::ErrorKind::WouldBlock.into());
        let slow = || Reader(vec![Ok(2), full(), Err(io::ErrorKind::Interrupted.into()), Ok(2)]);
        write_all(&mut slow(), b"line", WhenFull::Wait).unwrap();
        let error = write_all(&mut slow(), b"line", WhenFull::Lose).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_reader_that_is_gone_is_an_error_at_once() {
        for gone in [io::ErrorKind::BrokenPipe, io::ErrorKind::StorageFull, io::ErrorKind::WriteZero] {
            for when_full in [WhenFull::Wait, WhenFull::Lose] {
                let error =
                    write_all(&mut Reader(vec![Ok(1), Err(gone.into())]), b"line", when_full).unwrap_err();
                assert_eq!(error.kind(), gone);
            }
        }
    }
}
