//! The runner's side of a load process.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, ChildStdin, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use setu_tests::netns::Netns;

use super::{Order, Outcome, Reply};
use crate::interrupt;

/// How long a process may take beyond the time of its order: longer than it waits itself.
const PATIENCE: Duration = Duration::from_secs(90);

/// A load process in a namespace. Dropping it ends it.
pub(crate) struct Agent {
    child: Child,
    input: ChildStdin,
    replies: Receiver<Reply>,
}

impl Agent {
    /// Starts the server.
    ///
    /// # Errors
    /// When it does not come up.
    pub(crate) fn server(namespace: &Netns) -> Result<Self> {
        Self::start(namespace, "load-server")
    }

    /// Starts a client, which waits for its order.
    ///
    /// # Errors
    /// When it does not come up.
    pub(crate) fn client(namespace: &Netns) -> Result<Self> {
        Self::start(namespace, "load-client")
    }

    fn start(namespace: &Netns, role: &str) -> Result<Self> {
        let myself = std::env::current_exe()?;
        let mut command = namespace.command(&myself.display().to_string());
        let mut child = command.arg(role).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (input, output) = child.stdin.take().zip(child.stdout.take()).context("no pipes")?;
        let (sender, replies) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let reply = serde_json::from_str(&line).unwrap_or_else(|_| Reply::Failed(line.clone()));
                if sender.send(reply).is_err() {
                    break;
                }
            }
        });
        let agent = Self { child, input, replies };
        match agent.hear(PATIENCE)? {
            Reply::Up => Ok(agent),
            other => bail!("the {role} says {other:?}"),
        }
    }

    /// Has the client make its connections.
    ///
    /// # Errors
    /// The client's.
    pub(crate) fn prepare(&mut self, order: &Order) -> Result<()> {
        self.say(&serde_json::to_string(order)?)?;
        match self.hear(PATIENCE)? {
            Reply::Ready => Ok(()),
            other => bail!("the client says {other:?}"),
        }
    }

    /// Lets the client go, and waits until it is done. Its connections stay open until it is dropped.
    ///
    /// # Errors
    /// The client's.
    pub(crate) fn go(&mut self, time: Duration) -> Result<Outcome> {
        self.say("go")?;
        match self.hear(time + PATIENCE)? {
            Reply::Done(outcome) => Ok(outcome),
            other => bail!("the client says {other:?}"),
        }
    }

    fn say(&mut self, line: &str) -> Result<()> {
        writeln!(self.input, "{line}").context("the load process has ended")
    }

    fn hear(&self, patience: Duration) -> Result<Reply> {
        let deadline = Instant::now() + patience;
        loop {
            interrupt::check()?;
            match self.replies.recv_timeout(Duration::from_millis(100)) {
                Ok(Reply::Failed(reason)) => bail!(reason),
                Ok(reply) => return Ok(reply),
                Err(RecvTimeoutError::Disconnected) => bail!("the load process has ended"),
                Err(RecvTimeoutError::Timeout) if Instant::now() > deadline => {
                    bail!("the load process says nothing")
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Errors mean that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
