//! What is measured: setu in each of its paths, what people use instead, and what no proxy can pass.

mod certificates;
mod config;

use std::{
    fs::{self, File},
    net::SocketAddr,
    process::{Child, Command, ExitStatus},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::ValueEnum;
use procfs::{net::TcpState, process::Process};
use serde::{Deserialize, Serialize};
use setu_tests::{Setu, netns::Netns};
use tempfile::TempDir;

pub(crate) use certificates::Certificates;

use crate::topology::{PROXY, SERVER};

/// How long starting and stopping may take.
const PATIENCE: Duration = Duration::from_secs(15);
/// What setu ends with when it does not know what a configuration asks for (`sysexits.h`).
const BAD_CONFIGURATION: i32 = 64;

/// All of them, in the order of the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// Clients talk to the server; the proxy's host forwards packets.
    Direct,
    /// As direct, and nftables rewrites the address.
    NftDnat,
    /// As the reference configures it: buffers of 4 kB, no splice, RSA 4096.
    HaproxyReference,
    /// Default buffers, splice, ECDSA.
    HaproxyTuned,
    /// The stream module.
    Nginx,
    /// Routes by SNI; nothing else.
    Sniproxy,
    /// By default: each flow's bytes move where setu finds it best.
    SetuAuto,
    /// Packets are translated, past all sockets.
    SetuWire,
    /// Bytes move in the kernel.
    SetuSockmap,
    /// Bytes move through the process.
    SetuUserspace,
}

/// What clients want of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Service {
    /// Bytes as they are.
    Plain,
    /// TLS ends at the proxy.
    Tls,
    /// TLS goes through, if its SNI may.
    Sni,
}

impl Service {
    /// Where the proxy offers it, in its own namespace.
    pub(crate) fn port(self) -> u16 {
        match self {
            Self::Plain => 5222,
            Self::Tls => 443,
            Self::Sni => 587,
        }
    }
}

impl Kind {
    /// As in the report and on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::NftDnat => "nft-dnat",
            Self::HaproxyReference => "haproxy-reference",
            Self::HaproxyTuned => "haproxy-tuned",
            Self::Nginx => "nginx",
            Self::Sniproxy => "sniproxy",
            Self::SetuAuto => "setu-auto",
            Self::SetuWire => "setu-wire",
            Self::SetuSockmap => "setu-sockmap",
            Self::SetuUserspace => "setu-userspace",
        }
    }

    pub(crate) fn is_setu(self) -> bool {
        self == Self::SetuAuto || self.is_forced_setu()
    }

    /// Whether it is setu with a path that an operator has to ask for.
    pub(crate) fn is_forced_setu(self) -> bool {
        matches!(self, Self::SetuWire | Self::SetuSockmap | Self::SetuUserspace)
    }

    /// Whether it is a bound and no proxy.
    pub(crate) fn is_ceiling(self) -> bool {
        matches!(self, Self::Direct | Self::NftDnat)
    }

    /// Whether it can do this at all. TLS that ends at setu goes through userspace in every path.
    pub(crate) fn offers(self, service: Service) -> bool {
        match self {
            Self::Direct | Self::NftDnat | Self::SetuWire | Self::SetuSockmap => service != Service::Tls,
            Self::Sniproxy => service == Service::Sni,
            Self::HaproxyReference
            | Self::HaproxyTuned
            | Self::Nginx
            | Self::SetuAuto
            | Self::SetuUserspace => true,
        }
    }
}

/// A running peer. Dropping it stops it.
pub(crate) struct Peer<'a> {
    /// Where clients connect.
    pub(crate) address: SocketAddr,
    running: Running<'a>,
}

enum Running<'a> {
    Nothing,
    Rule(&'a Netns),
    Process { child: Child, folder: TempDir },
}

/// What came of starting a peer.
pub(crate) enum Start<'a> {
    Running(Peer<'a>),
    /// It does not know this service (yet), in its own words.
    Refused(String),
}

impl<'a> Peer<'a> {
    /// Starts a peer in the proxy's namespace.
    ///
    /// # Errors
    /// When it does not come up.
    pub(crate) fn start(
        kind: Kind,
        service: Service,
        namespace: &'a Netns,
        certificates: Option<&Certificates>,
    ) -> Result<Start<'a>> {
        let address = SocketAddr::new(PROXY, service.port());
        match kind {
            Kind::Direct => Ok(Start::Running(Self { address: SERVER, running: Running::Nothing })),
            Kind::NftDnat => {
                let folder = tempfile::tempdir()?;
                let file = folder.path().join("rules");
                fs::write(&file, config::nftables(address.port()))?;
                let status = namespace.command("nft").arg("-f").arg(&file).status()?;
                ensure!(status.success(), "nftables does not take the rule: {status}");
                Ok(Start::Running(Self { address, running: Running::Rule(namespace) }))
            }
            _ => Self::process(kind, service, namespace, certificates, address),
        }
    }

    fn process(
        kind: Kind,
        service: Service,
        namespace: &Netns,
        certificates: Option<&Certificates>,
        address: SocketAddr,
    ) -> Result<Start<'a>> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("config");
        let certificate = certificates.map(|certificates| certificates.of(kind));
        let text = config::of(kind, service, certificate.as_ref());
        fs::write(&file, text.replace("FOLDER", &folder.path().display().to_string()))?;
        let setu = Setu::binary().display().to_string();
        let (program, arguments): (&str, &[&str]) = match kind {
            Kind::HaproxyReference | Kind::HaproxyTuned => ("haproxy", &["-db", "-f"]),
            Kind::Nginx => ("nginx", &["-c"]),
            Kind::Sniproxy => ("sniproxy", &["-f", "-c"]),
            _ => (&setu, &["run", "--config"]),
        };
        let log = File::create(folder.path().join("log"))?;
        let mut command = namespace.command(program);
        command.args(arguments).arg(&file).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| format!("{program}: cargo xtask setup --bench"))?;
        let mut peer = Self { address, running: Running::Process { child, folder } };
        match peer.wait_until_it_listens()? {
            None if kind == Kind::SetuAuto => {
                peer.wait_until_it_is_whole()?;
                Ok(Start::Running(peer))
            }
            None => Ok(Start::Running(peer)),
            Some(status) if kind.is_setu() && status.code() == Some(BAD_CONFIGURATION) => {
                Ok(Start::Refused(peer.log()))
            }
            Some(status) => bail!("{} ended with {status}: {}", kind.name(), peer.log()),
        }
    }

    /// Returns how it ended, if it did.
    fn wait_until_it_listens(&mut self) -> Result<Option<ExitStatus>> {
        let port = self.address.port();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let Running::Process { child, .. } = &mut self.running else { return Ok(None) };
            if let Some(status) = child.try_wait()? {
                return Ok(Some(status));
            }
            // Asked of the kernel: a connection would be one that the peer has to serve.
            let sockets = Process::new(child.id() as i32)?.tcp().unwrap_or_default();
            let found = |socket: &procfs::net::TcpNetEntry| {
                socket.state == TcpState::Listen && socket.local_address.port() == port
            };
            if sockets.iter().any(found) {
                return Ok(None);
            }
            ensure!(Instant::now() < deadline, "it does not listen on {port}: {}", self.log());
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// `auto` goes on without the wire where it cannot have it, and would be measured as what it is not.
    fn wait_until_it_is_whole(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let said = self.said();
            if let Some((_, path)) = said.split_once(" ready path=") {
                ensure!(path.starts_with("wire"), "it has no wire: {}", self.log());
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "it does not say that it is ready: {}", self.log());
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// All that it said.
    fn said(&self) -> String {
        let Running::Process { folder, .. } = &self.running else { return String::new() };
        fs::read_to_string(folder.path().join("log")).unwrap_or_default()
    }

    /// The end of what it said.
    fn log(&self) -> String {
        let Running::Process { folder, .. } = &self.running else { return String::new() };
        let text = self.said();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(5)..].join("; ").replace(&folder.path().display().to_string(), "")
    }

    /// Its first process.
    pub(crate) fn pid(&self) -> Option<u32> {
        match &self.running {
            Running::Process { child, .. } => Some(child.id()),
            Running::Nothing | Running::Rule(_) => None,
        }
    }
}

impl Drop for Peer<'_> {
    fn drop(&mut self) {
        // Errors mean that it has ended, or that its namespace will take it along.
        match &mut self.running {
            Running::Nothing => {}
            Running::Rule(namespace) => {
                let _ = namespace.command("nft").args(["delete", "table", "ip", config::TABLE]).status();
            }
            Running::Process { child, .. } => {
                if !matches!(child.try_wait(), Ok(None)) {
                    return;
                }
                // TERM, so that nginx's master stops its workers.
                let _ = Command::new("kill").arg(child.id().to_string()).status();
                let deadline = Instant::now() + PATIENCE;
                while matches!(child.try_wait(), Ok(None)) && Instant::now() < deadline {
                    thread::sleep(Duration::from_millis(10));
                }
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}
