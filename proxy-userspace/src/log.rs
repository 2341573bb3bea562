//! The log: lines on standard error, which whoever reads them must not be able to stop setu by.
//!
//! The reader may be gone, slow or stopped, the disk full, the terminal set to nonblocking by another program. So a
//! server leaves writing to a thread with a bounded queue ([`Queue`]); what does not fit, and what cannot be written, is
//! counted and not told.

use std::{
    env,
    io::{self, IsTerminal as _, Write},
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use tracing::warn;
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

/// The environment variable that says what is logged.
const VARIABLE: &str = "SETU_LOG";
/// What is logged without it.
const DEFAULT: &str = "info";
/// What a module's path begins with.
const CRATE: &str = "setu";
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
            Err(slip) => (EnvFilter::new(DEFAULT), Some(slip)),
        },
        Err(env::VarError::NotPresent) => (EnvFilter::new(DEFAULT), None),
        Err(env::VarError::NotUnicode(_)) => (EnvFilter::new(DEFAULT), Some("it is not UTF-8".into())),
    };
    tracing_subscriber::fmt()
        .with_writer(Line::new)
        // It would tell standard error.
        .log_internal_errors(false)
        .with_ansi(io::stderr().is_terminal())
        .with_env_filter(filter)
        .init();
    if let Some(slip) = slip {
        warn!("{VARIABLE}: {slip}; {DEFAULT} is logged");
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

/// What is to be logged. [`EnvFilter`] takes a word that is no level for a module, and then logs nothing at all.
fn parse(text: &str) -> Result<EnvFilter, String> {
    for directive in text.split(',').map(str::trim).filter(|directive| !directive.is_empty()) {
        let (target, level) = match directive.rsplit_once('=') {
            Some((target, level)) => (Some(target), Some(level)),
            None if directive.parse::<LevelFilter>().is_ok() => (None, None),
            None => (Some(directive), None),
        };
        // Nothing parses as the level of errors.
        if level.is_some_and(|level| level.trim().is_empty() || level.trim().parse::<LevelFilter>().is_err())
            || level.is_none() && target.is_some_and(|target| !target.starts_with(CRATE))
        {
            let wrong = level.unwrap_or(directive);
            return Err(format!(
                "{wrong:?} is no level; write error, warn, info, debug, trace or off, alone or as {CRATE}::module=level"
            ));
        }
    }
    EnvFilter::try_new(text).map_err(|error| error.to_string())
}

/// Writes what ends setu. It goes past the queue, of which there is none any more.
pub fn last_words(text: &str) {
    // Nobody is left to tell when it cannot be written.
    let _ = writeln!(io::stderr(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

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
