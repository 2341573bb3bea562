//! What there is to know of a running setu. It is what `/status.json` says, and so an interface: fields are added, and
//! keep their meaning.

use std::{collections::BTreeMap, net::SocketAddr, time::SystemTime};

use serde::{Deserialize, Serialize};

use super::history::{Counts, Month, Sample, Span};
use crate::{
    account::{Class, CloseReason, Purpose},
    operator::text::{moment, seconds},
};

/// Everything.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Whether clients are served, as far as is known: no problem, and not stopping.
    pub ready: bool,
    /// Whether setu has just started, and WhatsApp's servers have not said yet what there is to know.
    #[serde(default)]
    pub starting: bool,
    /// What is wrong, in plain words; while it starts, what is waited for.
    pub problems: Vec<String>,
    /// What does not work although clients are served, in plain words.
    #[serde(default)]
    pub degraded: Vec<String>,
    /// What to look at although clients are served, in plain words.
    #[serde(default)]
    pub notes: Vec<String>,
    /// See [`Reload`].
    #[serde(default)]
    pub reload: Reload,
    /// Whether setu was told to stop: new clients are to go elsewhere, and connections to end.
    pub stopping: bool,
    /// Seconds since 1970.
    pub now: u64,
    /// When setu started, seconds since 1970.
    pub started: u64,
    /// Of setu.
    pub version: String,
    /// The beginning of the SHA-256 of the effective configuration, as `setu check` prints it.
    pub configuration: String,
    /// In the order in which they came up.
    pub listeners: Vec<Listener>,
    /// Connections that ended, by the name of the reason; those that never happened are left out.
    pub closed: BTreeMap<String, u64>,
    /// Since the start.
    pub bytes: Bytes,
    /// Of the upstreams that listeners lead to.
    pub endpoints: Vec<Endpoint>,
    /// Failed lookups of names, by reason.
    pub name_failures: BTreeMap<String, u64>,
    /// Connections by an address past its time, because no resolver gave a better one.
    pub stale_answers: u64,
    /// Absent when all bytes go through userspace.
    pub kernel: Option<Kernel>,
    /// Flows that the kernel did not take, by reason.
    pub fallbacks: BTreeMap<String, u64>,
    /// Absent where there is no wire.
    #[serde(default)]
    pub wire: Option<Wire>,
    /// Flows that did not go on the wire, by reason.
    #[serde(default)]
    pub wire_refused: BTreeMap<String, u64>,
    /// Lines of the log that could not be written.
    pub log_lines_lost: u64,
    /// Connections in inspection or handshake.
    pub pending: u64,
    /// See [`Limits`].
    pub limits: Limits,
    /// Absent when no TLS ends in setu.
    pub certificate: Option<Certificate>,
    /// See [`Process`].
    pub process: Process,
    /// What it may read with all that is below: devices and inodes. Absent without a sandbox.
    #[serde(default)]
    pub sandbox: Option<Vec<(u64, u64)>>,
    /// The last hour, oldest minute first.
    pub history: Vec<Sample>,
    /// The last day in quarters of an hour, oldest first.
    #[serde(default)]
    pub history_day: Vec<Sample>,
    /// The last week in pieces of two hours, oldest first.
    #[serde(default)]
    pub history_week: Vec<Sample>,
    /// See [`Month`].
    #[serde(default)]
    pub month: Month,
}

/// What became of the configurations that setu was to take.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reload {
    /// Reloads since the start, also those that were refused.
    pub count: u64,
    /// When the configuration was taken that serves, by the start or by a reload, seconds since 1970.
    pub taken: u64,
    /// Of the last reload, if it was refused.
    pub refused: Option<Refused>,
}

/// A reload that changed nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// When, seconds since 1970.
    pub at: u64,
    /// Why, as the log says it.
    pub why: String,
}

/// One listener.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// Its name in the configuration.
    pub name: String,
    /// Connections accepted since the start.
    pub accepted: u64,
    /// Open connections by how their bytes move: `none` before they do, `wire`, `sockmap`, `userspace`.
    pub active: BTreeMap<String, u64>,
    /// Where it listens by the configuration that serves; nowhere when that has left it out.
    #[serde(default)]
    pub addresses: Vec<SocketAddr>,
    /// Flows that were of use to somebody since the start, by what for: `chat`, `media`.
    #[serde(default)]
    pub useful: BTreeMap<String, u64>,
}

/// Bytes handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bytes {
    /// To WhatsApp.
    pub to_upstream: u64,
    /// To clients.
    pub to_client: u64,
}

/// One server of WhatsApp.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// The upstream's name in the configuration.
    pub upstream: String,
    /// `host:port` of the configuration.
    pub endpoint: String,
    /// Whether clients are sent there.
    pub standing: Standing,
    /// Seconds since it stands so.
    pub seconds: u64,
    /// Why it could last not be reached; kept after it is up again.
    pub last_error: Option<String>,
    /// Connections to it, and attempts.
    pub connections: u64,
}

/// Whether a server can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// Nobody has tried yet.
    Untried,
    /// It answers.
    Up,
    /// It does not, and is left alone for a while.
    Down,
}

/// The kernel path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernel {
    /// Flows in it.
    pub flows: u64,
    /// Bytes that these may have on their way.
    pub reserved: u64,
    /// Bytes that all together may have on their way.
    pub budget: u64,
    /// How often a flow left it because a leg could not keep up.
    pub congested: u64,
    /// How often a flow left the kernel because it moved more than messages.
    #[serde(default)]
    pub streams: u64,
    /// How often a flow that had left for one of these came back.
    pub resumed: u64,
}

/// The wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wire {
    /// Whether the process is there that keeps it.
    pub keeper: bool,
    /// Flows on it.
    pub flows: u64,
    /// Flows that went on it.
    pub handed_over: u64,
    /// How often one was to go on it and could not in that moment.
    pub busy: u64,
    /// Flows that were reset because it could not be shown that every byte had arrived as they went on it.
    pub torn: u64,
}

/// How much is allowed. `None`: no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Open connections.
    pub connections: u64,
    /// Of these, in inspection or handshake.
    pub pending: u64,
    /// Open files.
    pub files: u64,
    /// Open connections of one source.
    pub per_source: Option<u64>,
    /// New connections of one source each second.
    pub per_source_rate: Option<u64>,
}

/// The certificate of listeners where TLS ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// Until when it is valid, seconds since 1970.
    pub not_after: u64,
}

/// What the process takes. `None` where the system does not tell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Process {
    /// Its id.
    #[serde(default)]
    pub id: Option<u32>,
    /// Open files.
    pub files: Option<u64>,
    /// Resident memory, bytes.
    pub resident: Option<u64>,
    /// CPU time of all threads, seconds.
    pub cpu: Option<f64>,
}

/// How setu is, in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Clients are served.
    Working,
    /// They are, on some ports.
    Degraded,
    /// It is not known yet.
    Starting,
    /// No chat is possible, or no media.
    NotWorking,
    /// Clients are to go elsewhere.
    Stopping,
}

impl Status {
    /// How it is.
    #[must_use]
    pub fn state(&self) -> State {
        match self {
            Self { stopping: true, .. } => State::Stopping,
            Self { starting: true, .. } => State::Starting,
            Self { ready: false, .. } => State::NotWorking,
            Self { degraded, .. } if degraded.is_empty() => State::Working,
            _ => State::Degraded,
        }
    }

    /// Open connections by how their bytes move.
    #[must_use]
    pub fn active(&self, path: &str) -> u64 {
        total(self.listeners.iter().filter_map(|listener| listener.active.get(path)).copied())
    }

    /// Open connections that the kernel moves, by either path.
    #[must_use]
    pub fn in_kernel(&self) -> u64 {
        total(self.listeners.iter().map(Listener::in_kernel))
    }

    /// Open connections.
    #[must_use]
    pub fn connections(&self) -> u64 {
        total(self.listeners.iter().map(Listener::connections))
    }

    /// Flows that were of use since the start, for `purpose`.
    #[must_use]
    pub fn useful(&self, purpose: Purpose) -> u64 {
        total(self.listeners.iter().map(|listener| listener.useful(purpose)))
    }

    /// Connections that ended for this reason since the start.
    #[must_use]
    pub fn ended(&self, reason: CloseReason) -> u64 {
        self.closed.get(reason.name()).copied().unwrap_or(0)
    }

    /// What was counted in the last hour, once there is one.
    pub(crate) fn last_hour(&self) -> Option<Counts> {
        let sum = || self.history.iter().fold(Counts::default(), |sum, sample| sum.and(sample.counts));
        (self.history.len() >= Span::Hour.samples()).then(sum)
    }

    /// What was counted since the start.
    pub(crate) fn counts(&self) -> Counts {
        let ended = |class| {
            let reasons = CloseReason::ALL.iter().filter(|reason| reason.class() == class);
            total(reasons.map(|reason| self.ended(*reason)))
        };
        Counts {
            accepted: self.accepted(),
            useful_chat: self.useful(Purpose::Chat),
            useful_media: self.useful(Purpose::Media),
            failed: ended(Class::Fault),
            refused: ended(Class::Limit),
            to_upstream: self.bytes.to_upstream,
            to_client: self.bytes.to_client,
        }
    }

    /// Connections accepted since the start.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        total(self.listeners.iter().map(|listener| listener.accepted))
    }
}

/// Together. What another process says has no bounds.
pub(super) fn total(numbers: impl Iterator<Item = u64>) -> u64 {
    numbers.fold(0, u64::saturating_add)
}

impl Reload {
    /// The start is the first time that a configuration is taken.
    pub(crate) fn start() -> Self {
        Self { taken: seconds(SystemTime::now()), ..Self::default() }
    }

    /// Another configuration serves.
    pub(crate) fn take(&mut self) {
        *self = Self { count: self.count + 1, ..Self::start() };
    }

    /// Another one was not taken.
    pub(crate) fn refuse(&mut self, why: &str) {
        self.count += 1;
        self.refused = Some(Refused { at: seconds(SystemTime::now()), why: why.into() });
    }

    /// What there is to look at.
    pub(super) fn note(&self) -> Option<String> {
        let Refused { at, why } = self.refused.as_ref()?;
        Some(format!(
            "the reload of {} was refused, and the configuration of before serves: {why}",
            moment(*at)
        ))
    }
}

impl Listener {
    /// Open connections.
    #[must_use]
    pub fn connections(&self) -> u64 {
        total(self.active.values().copied())
    }

    /// Open connections that the kernel moves, by either path.
    #[must_use]
    pub fn in_kernel(&self) -> u64 {
        total(["wire", "sockmap"].into_iter().filter_map(|path| self.active.get(path)).copied())
    }

    /// Flows that were of use since the start, for `purpose`.
    #[must_use]
    pub fn useful(&self, purpose: Purpose) -> u64 {
        self.useful.get(purpose.name()).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_word_for_what_is() {
        let mut status: Status =
            serde_json::from_str(include_str!("../../../../tests/page/status/busy.json")).unwrap();
        assert_eq!(status.state(), State::Working);
        status.degraded = vec!["chat on port 80".into()];
        assert_eq!(status.state(), State::Degraded);
        status.ready = false;
        assert_eq!(status.state(), State::NotWorking);
        status.starting = true;
        assert_eq!(status.state(), State::Starting);
        status.stopping = true;
        assert_eq!(status.state(), State::Stopping);
    }
}
