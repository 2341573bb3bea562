//! One end of a flow: reads and writes at once, as its script says, and knows each byte that must come.

use std::{cell::Cell, io, net::Shutdown, pin::pin, time::Duration};

use setu_tests::peers::Random;
use socket2::{SockRef, TcpKeepalive};
use tokio::{net::TcpStream, sync::watch, time::sleep};

use super::{
    conditions::Die,
    judge::{Outcome, Read},
    pattern::{Pattern, Wrong},
    plan::{Role, Script, Step},
    stage::{Flow, Stage},
};

/// How often a quiet peer asks whether the other side is there: a reset that was lost is noticed by the answer.
const KEEPALIVE: Duration = Duration::from_secs(3);
/// A host that loses packets is not gone.
const KEEPALIVES: u32 = 60;

/// What an end's reader has.
#[derive(Default, Clone, Copy)]
struct Progress {
    bytes: u64,
    ended: bool,
}

/// How an end's writing went.
enum Written {
    All,
    Broken(io::Error),
    Reset,
}

/// Plays one end until both directions have ended, or one breaks; `died` ends it by a reset.
pub(crate) async fn play(
    stream: TcpStream,
    flow: &Flow,
    role: Role,
    stage: &Stage,
    died: impl Future<Output = ()>,
) -> Outcome {
    let (script, planned) = (flow.plan.script(role), flow.plan.script(role.other()).total());
    let (progress, sent) = (watch::Sender::new(Progress::default()), Cell::new(0));
    let end =
        End { stream: &stream, stage, script, progress: &progress, sent: &sent, failed: Cell::new(false) };
    let mut write_error = None;
    let ended = match end.prepare() {
        Err(error) => (Read::Broken(error.to_string()), None),
        Ok(()) => {
            let end = &end;
            let mut reading = pin!(end.read(flow.plan.pattern(role.other())));
            let mut writing = pin!(end.write(flow.plan.pattern(role)));
            let (mut died, mut given_up) = (pin!(died), pin!(stage.given_up()));
            let (mut read, mut written) = (None, false);
            loop {
                if let (Some(read), true) = (&read, written) {
                    break (Clone::clone(read), None);
                }
                tokio::select! {
                    biased;
                    ended = &mut reading, if read.is_none() => match ended {
                        // Of a stream that is too short its writer could wait for ever for the rest.
                        (Read::End, None) if progress.borrow().bytes >= planned => read = Some(Read::End),
                        broken => break broken,
                    },
                    how = &mut writing, if !written => {
                        written = true;
                        match how {
                            Written::All => {}
                            // The reader finds out.
                            Written::Broken(error) => write_error = Some(error.to_string()),
                            Written::Reset => break (Read::Left, None),
                        }
                    }
                    () = &mut died => break (Read::Left, None),
                    () = &mut given_up => break (Read::Hanging, None),
                }
            }
        }
    };
    let (read, wrong) = ended;
    let at = stage.time();
    let received = progress.borrow().bytes;
    if read == Read::Left || read == Read::End && received < planned {
        stage.resets(flow);
        // Without the option it is a FIN, at which the judge will look.
        let _ = stream.set_zero_linger();
    }
    Outcome { received, sent: sent.get(), wrong, read, write_error, at }
}

struct End<'a> {
    stream: &'a TcpStream,
    stage: &'a Stage,
    script: &'a Script,
    progress: &'a watch::Sender<Progress>,
    sent: &'a Cell<u64>,
    /// Whether writing has failed: that takes the socket's error, so that reading finds an end.
    failed: Cell<bool>,
}

impl End<'_> {
    fn prepare(&self) -> io::Result<()> {
        self.stream.set_nodelay(self.script.no_delay)?;
        let keepalive =
            TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE).with_retries(KEEPALIVES);
        SockRef::from(self.stream).set_tcp_keepalive(&keepalive)
    }

    /// Reads to the end.
    async fn read(&self, pattern: Pattern) -> (Read, Option<Wrong>) {
        let mut buffer = vec![0; self.script.read as usize];
        let mut scratch = vec![0; buffer.len()];
        let mut random = Random::new(self.script.read);
        let mut stalls = self.script.stalls.iter().peekable();
        let mut at = 0;
        loop {
            while let Some(stall) = stalls.next_if(|stall| stall.at <= at) {
                sleep(Duration::from_millis(stall.time)).await;
            }
            let most = Die(&mut random).between(1, buffer.len() as u64) as usize;
            match self.receive(&mut buffer[..most]).await {
                Ok(0) if self.failed.get() => return (Read::Broken("writing failed".into()), None),
                Ok(0) => {
                    self.progress.send_modify(|progress| progress.ended = true);
                    return (Read::End, None);
                }
                Ok(count) => {
                    let wrong = pattern.check(at, &buffer[..count], &mut scratch);
                    if wrong.is_some() {
                        return (Read::Left, wrong);
                    }
                    at += count as u64;
                    self.stage.moves();
                    self.progress.send_modify(|progress| progress.bytes = at);
                }
                Err(error) => return (Read::Broken(error.to_string()), None),
            }
        }
    }

    async fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            self.stream.readable().await?;
            match self.stream.try_read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return result,
            }
        }
    }

    /// Does all steps, and finishes.
    async fn write(&self, pattern: Pattern) -> Written {
        match self.steps(pattern).await {
            Ok(written) => written,
            Err(error) => {
                self.failed.set(true);
                Written::Broken(error)
            }
        }
    }

    async fn steps(&self, pattern: Pattern) -> io::Result<Written> {
        let mut random = Random::new(self.script.total());
        let mut buffer = Vec::new();
        let mut seen = self.progress.subscribe();
        for step in &self.script.steps {
            match *step {
                Step::Write { bytes, piece, pause } => {
                    let mut left = bytes;
                    while left > 0 {
                        let count = Die(&mut random).between(piece.div_ceil(2), piece).min(left);
                        buffer.resize(count as usize, 0);
                        pattern.fill(self.sent.get(), &mut buffer);
                        self.send(&buffer).await?;
                        left -= count;
                        if pause > 0 {
                            sleep(Duration::from_micros(pause)).await;
                        }
                    }
                }
                Step::Rest(time) => sleep(Duration::from_millis(time)).await,
                // The sender outlives this; it is never dropped meanwhile.
                Step::Await(bytes) => drop(seen.wait_for(|seen| seen.bytes >= bytes).await),
                Step::AwaitEnd => drop(seen.wait_for(|seen| seen.ended).await),
                Step::Reset => return Ok(Written::Reset),
            }
        }
        SockRef::from(self.stream).shutdown(Shutdown::Write)?;
        Ok(Written::All)
    }

    async fn send(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            self.stream.writable().await?;
            match self.stream.try_write(bytes) {
                Ok(count) => {
                    self.sent.set(self.sent.get() + count as u64);
                    bytes = &bytes[count..];
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
