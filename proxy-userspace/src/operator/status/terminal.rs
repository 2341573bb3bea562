//! The terminal while a status is watched: a screen of its own, and keys that are heard at once. Dropping it gives
//! everything back as it was, however the watching ends.

use std::{
    io::{self, IsTerminal as _, Write as _},
    os::fd::AsFd,
    thread,
};

use rustix::{
    io::Errno,
    termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr},
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
};

use super::screen::Size;

/// Another screen, without a cursor, on which lines are never wrapped (xterm's control sequences).
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l";
const LEAVE: &str = "\x1b[?7h\x1b[?25h\x1b[?1049l";
/// Home, and erase to the end: what is drawn anew does not flicker, as it would on an empty screen.
const REDRAW: &str = "\x1b[H\x1b[J";
/// What a terminal is taken to have that does not tell.
const USUAL: Size = Size { columns: 80, rows: 24 };

const ESCAPE: u8 = 0x1b;
const CONTROL_C: u8 = 0x03;

/// What happens while nothing is drawn.
pub(super) enum Event {
    /// There is more room, or less.
    Resized,
    /// Enough was seen.
    End,
}

/// A terminal that shows one screen after the other.
pub(super) struct Terminal<'a> {
    to: &'a mut io::Stdout,
    keys: Option<Keys>,
    resized: Signal,
    ends: [Signal; 4],
}

/// A terminal whose keys are heard.
struct Keys {
    /// Told of one that ends the watching.
    end: mpsc::Receiver<()>,
    /// How the terminal was.
    before: Termios,
}

impl<'a> Terminal<'a> {
    /// Takes the terminal.
    ///
    /// # Errors
    /// It cannot be written, or signals cannot be awaited.
    pub(super) fn enter(to: &'a mut io::Stdout) -> io::Result<Self> {
        let ends =
            [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup(), SignalKind::quit()];
        let [interrupt, terminate, hangup, quit] = ends.map(signal);
        let ends = [interrupt?, terminate?, hangup?, quit?];
        let terminal =
            Self { to, keys: Keys::listen()?, resized: signal(SignalKind::window_change())?, ends };
        terminal.to.write_all(ENTER.as_bytes())?;
        Ok(terminal)
    }

    /// How large it is now.
    pub(super) fn size(&self) -> Size {
        size(&*self.to).unwrap_or(USUAL)
    }

    /// Shows lines, which must fit.
    pub(super) fn draw(&mut self, lines: &str) -> io::Result<()> {
        self.to.write_all(format!("{REDRAW}{lines}").as_bytes())?;
        self.to.flush()
    }

    /// Waits for the next event.
    pub(super) async fn event(&mut self) -> Event {
        let [interrupt, terminate, hangup, quit] = &mut self.ends;
        let key = async {
            let told = match &mut self.keys {
                Some(keys) => keys.end.recv().await,
                None => None,
            };
            if told.is_none() {
                // When the terminal is gone a signal says so.
                std::future::pending().await
            }
        };
        tokio::select! {
            _ = self.resized.recv() => Event::Resized,
            () = key => Event::End,
            _ = interrupt.recv() => Event::End,
            _ = terminate.recv() => Event::End,
            _ = hangup.recv() => Event::End,
            _ = quit.recv() => Event::End,
        }
    }
}

impl Drop for Terminal<'_> {
    fn drop(&mut self) {
        // Errors mean that it is gone.
        let _ = self.to.write_all(LEAVE.as_bytes()).and_then(|()| self.to.flush());
    }
}

impl Keys {
    /// Makes the standard input give each key as it is pressed, and show none. `None` if it is no terminal.
    fn listen() -> io::Result<Option<Self>> {
        if !io::stdin().is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(io::stdin())?;
        let mut termios = before.clone();
        // Without signals, so that nobody suspends setu and is left with a terminal that shows no key.
        termios.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG);
        tcsetattr(io::stdin(), OptionalActions::Now, &termios)?;
        let (tell, end) = mpsc::channel(1);
        let keys = Self { end, before };
        // It waits in a system call that nothing ends, and goes with the process.
        thread::Builder::new().name("setu-keys".into()).spawn(move || {
            if hear() {
                // An error means that the watching has ended.
                let _ = tell.try_send(());
            }
        })?;
        Ok(Some(keys))
    }
}

/// Waits for a key that ends the watching. Returns whether there was one.
fn hear() -> bool {
    let mut pressed = [0; 64];
    loop {
        match rustix::io::read(io::stdin(), &mut pressed) {
            Ok(count) if ends(&pressed[..count]) => return true,
            Ok(1..) | Err(Errno::INTR) => {}
            Ok(0) | Err(_) => return false,
        }
    }
}

/// Whether one of the keys pressed is `q`, Ctrl-C or Escape. Others, such as arrows, begin as Escape does and go on.
fn ends(mut pressed: &[u8]) -> bool {
    loop {
        pressed = match pressed {
            [] => return false,
            [b'q' | b'Q' | CONTROL_C, ..] | [ESCAPE] => return true,
            // Up to its final byte (ECMA-48, section 5.4).
            [ESCAPE, b'[', rest @ ..] => {
                let end = rest.iter().position(|byte| (0x40..=0x7e).contains(byte));
                end.map_or(&[][..], |end| &rest[end + 1..])
            }
            [ESCAPE, b'O', _, rest @ ..] | [ESCAPE, _, rest @ ..] | [_, rest @ ..] => rest,
        }
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        // As above.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}

/// How large a terminal is.
pub(super) fn size(of: &impl AsFd) -> Option<Size> {
    let size = tcgetwinsize(of).ok()?;
    let (columns, rows) = (size.ws_col.into(), size.ws_row.into());
    (columns > 0 && rows > 0).then_some(Size { columns, rows })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_begin_as_escape_does_are_others() {
        for pressed in [&b"q"[..], b"Q", b"\x03", b"\x1b", b"xq", b"\x1b[Aq", b"\x1b[1;5A\x1b", b"\x1bOAq"] {
            assert!(ends(pressed), "{pressed:?}");
        }
        for pressed in [&b""[..], b"x", b"\x1b[A", b"\x1b[15~", b"\x1bOQ", b"\x1bq", b"\x1b[", "ж".as_bytes()]
        {
            assert!(!ends(pressed), "{pressed:?}");
        }
    }
}
