//! A terminal of the kernel's, in which a program runs as if somebody sat before it.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::fd::OwnedFd,
    process::{Child, Command},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::{Mode, OFlags, open},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize},
};

use crate::peers::PATIENCE;

/// What begins another screen: home, and erase to the end.
const REDRAW: &str = "\x1b[H\x1b[J";
/// The program's own screen, and the way back.
const ENTER: &str = "\x1b[?1049h";
const LEAVE: &str = "\x1b[?1049l";

/// A terminal, which sees all that is written to it.
#[derive(Debug)]
pub struct Terminal {
    keyboard: File,
    inside: OwnedFd,
    written: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    /// One of this size.
    #[must_use]
    pub fn new(columns: u16, rows: u16) -> Self {
        let outside = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&outside).unwrap();
        unlockpt(&outside).unwrap();
        let name = ptsname(&outside, Vec::new()).unwrap();
        let inside = open(name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let keyboard = File::from(outside);
        let written = Arc::<Mutex<Vec<u8>>>::default();
        let (mut screen, seen) = (keyboard.try_clone().unwrap(), written.clone());
        // Until nobody has the inside any more.
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = screen.read(&mut buffer) {
                seen.lock().unwrap().extend(&buffer[..count]);
            }
        });
        let terminal = Self { keyboard, inside, written };
        terminal.resize(columns, rows);
        terminal
    }

    /// Its window becomes larger or smaller.
    pub fn resize(&self, columns: u16, rows: u16) {
        let size = Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&self.keyboard, size).unwrap();
    }

    /// Runs a program in it, in a session of its own, as a terminal does.
    #[must_use]
    pub fn run(&self, program: &Command) -> Child {
        let inside = || self.inside.try_clone().unwrap();
        let mut command = Command::new("setsid");
        command.arg("--ctty").arg(program.get_program()).args(program.get_args());
        command.stdin(inside()).stdout(inside()).stderr(inside()).spawn().unwrap()
    }

    /// Presses keys.
    pub fn press(&self, keys: &[u8]) {
        (&self.keyboard).write_all(keys).unwrap();
    }

    /// Whether it shows keys that are pressed and gathers them into lines, as a shell needs it.
    #[must_use]
    pub fn is_usual(&self) -> bool {
        let modes = tcgetattr(&self.inside).unwrap().local_modes;
        modes.contains(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG)
    }

    fn written(&self) -> String {
        String::from_utf8_lossy(&self.written.lock().unwrap()).into_owned()
    }

    /// Waits until the program has left its own screen, and the cursor is back.
    pub fn wait_given_back(&self) {
        self.wait_written("given back", |written| {
            let last = |what: &str| written.rfind(what);
            last(LEAVE) > last(ENTER)
                && last("\x1b[?25h") > last("\x1b[?25l")
                && last("\x1b[?7h") > last("\x1b[?7l")
        });
    }

    /// Waits for a screen of which this is so, and returns its lines.
    #[must_use]
    pub fn wait(&self, what: &str, is_so: impl Fn(&[&str]) -> bool) -> Vec<String> {
        let lines = |written: &str| {
            let (_, screen) = written.rsplit_once(REDRAW)?;
            let lines: Vec<_> = screen.split("\r\n").collect();
            is_so(&lines).then(|| lines.into_iter().map(str::to_owned).collect())
        };
        lines(&self.wait_written(what, |written| lines(written).is_some())).unwrap_or_default()
    }

    /// Waits until this is so of all that was written, and returns that.
    pub fn wait_written(&self, what: &str, is_so: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let written = self.written();
            if is_so(&written) {
                return written;
            }
            assert!(Instant::now() < deadline, "{what}: not seen:\n{written}");
            thread::sleep(Duration::from_millis(20));
        }
    }
}
