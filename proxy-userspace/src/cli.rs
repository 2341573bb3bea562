//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::{
    config::{Config, ConfigError, FileArgs, RunArgs},
    lifecycle::ServeArgs,
    operator::{
        self,
        doctor::{self, Link},
        init::InitArgs,
        reload::ReloadArgs,
        share::{self, Format, Ports, ShareError},
        status::StatusArgs,
        wire,
    },
};

/// Keeps people connected to WhatsApp where it is blocked.
///
/// setu forwards chat and media connections to WhatsApp's servers. Content stays end-to-end encrypted: setu cannot
/// read it, and keeps nothing about who connects. Without a configuration it serves the ports of WhatsApp's own proxy.
#[derive(Debug, Parser)]
#[command(name = "setu", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve clients until SIGTERM or Ctrl-C
    Run(ServeArgs),
    /// Write the configuration of a new server, after three questions or from options
    Init(InitArgs),
    /// Check the configuration, and tell what this machine can do; takes the same options as `run`
    Check(RunArgs),
    /// Have a running setu take its configuration anew, and tell whether it did; with the options that it was started with
    Reload(ReloadArgs),
    /// The TLS certificate that clients are shown
    Cert(CertArgs),
    /// Tell whether phones can use a server: this machine's, or with --remote one as phones reach it
    #[command(after_help = doctor::EXIT_STATUS)]
    Doctor(DoctorArgs),
    /// Watch a running setu in the terminal
    Status(StatusArgs),
    /// What connections on the wire have left in the kernel, which goes on when setu is killed
    #[command(subcommand, after_help = wire::EXIT_STATUS)]
    Wire(WireCommand),
    /// Make the link and the code that set a phone to this server
    Share(ShareArgs),
}

/// What to do with what is left of the wire.
#[derive(Debug, Clone, Copy, Subcommand)]
pub enum WireCommand {
    /// Tell what there is: folders, whether a keeper runs, devices, how many connections
    #[command(after_help = wire::EXIT_STATUS)]
    Show,
    /// Take away what no keeper that runs has; connections that are on the wire are reset
    #[command(after_help = wire::EXIT_STATUS)]
    Clear,
}

/// Arguments of `setu doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// What setu was started with.
    #[command(flatten)]
    pub run: RunArgs,
    #[command(flatten)]
    remote: RemoteArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// The server that `setu doctor` looks at from outside.
#[derive(Debug, Args)]
struct RemoteArgs {
    /// Test this server as a phone does, from any machine: its name or address, or its whole share link. No configuration
    /// is read, and nothing is said of this machine
    #[arg(long, value_name = "HOST", alias = "host", conflicts_with_all = ["config", "path", "port_offset"])]
    remote: Option<Link>,
    /// The port for chat, if not the link's or 443
    #[arg(long, value_name = "N", requires = "remote", value_parser = clap::value_parser!(u16).range(1..))]
    chat_port: Option<u16>,
    /// The port for media, if not the link's or 587
    #[arg(long, value_name = "N", requires = "remote", value_parser = clap::value_parser!(u16).range(1..))]
    media_port: Option<u16>,
    /// Whether chat is inside TLS, if not as the link says or true
    #[arg(long, value_name = "true|false", requires = "remote")]
    chat_tls: Option<bool>,
}

impl DoctorArgs {
    /// The server to look at from outside.
    #[must_use]
    pub fn remote(&self) -> Option<Link> {
        let RemoteArgs { remote, chat_port, media_port, chat_tls } = &self.remote;
        remote.clone().map(|link| Link {
            chat: chat_port.unwrap_or(link.chat),
            media: media_port.unwrap_or(link.media),
            tls: chat_tls.unwrap_or(link.tls),
            is_media_known: link.is_media_known || media_port.is_some(),
            ..link
        })
    }
}

/// Arguments of `setu cert`.
#[derive(Debug, Args)]
pub struct CertArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: CertCommand,
    #[command(flatten)]
    file: FileArgs,
}

/// What to do with the certificate.
#[derive(Debug, Clone, Copy, Subcommand)]
pub enum CertCommand {
    /// Tell what is in it
    Show,
    /// Have setu make a new one; a setu that runs takes it up by itself
    New,
}

/// Arguments of `setu share`.
#[derive(Debug, Args)]
pub struct ShareArgs {
    /// Those of `setu run`, for the ports that it opens.
    #[command(flatten)]
    run: RunArgs,
    /// The name or IPv4 address by which phones reach this server; without it the first of tls.names
    #[arg(long, value_name = "HOST")]
    host: Option<String>,
    /// The port for chat, if a load balancer or NAT has another than setu
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    chat_port: Option<u16>,
    /// The port for media, if a load balancer or NAT has another than setu
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    media_port: Option<u16>,
    /// Whether chat is inside TLS; without it as the configuration has it on that port, and true on one that it does not have
    #[arg(long, value_name = "true|false")]
    chat_tls: Option<bool>,
    /// Also write the code, and instruction cards to print (HTML) in all languages, into this directory
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// What the code is written as; may be a list, as in svg,png
    #[arg(long, value_enum, value_delimiter = ',', default_value = "svg", requires = "out")]
    pub format: Vec<Format>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

impl Command {
    /// Where the configuration comes from, if the operator named no file and this needs one; `run` has it in its log.
    #[must_use]
    pub fn unnamed_origin(&self) -> Option<String> {
        let file = match self {
            Self::Check(args) => args.file(),
            Self::Reload(args) => args.run.file(),
            Self::Cert(args) => &args.file,
            Self::Doctor(args) if args.remote().is_none() => args.run.file(),
            Self::Status(args) if args.admin.is_none() => args.run.file(),
            Self::Share(args) => args.run.file(),
            Self::Run(_) | Self::Init(_) | Self::Status(_) | Self::Doctor(_) | Self::Wire(_) => return None,
        };
        (!file.is_named()).then(|| file.origin())
    }
}

impl CertArgs {
    /// The configuration whose certificate it is.
    ///
    /// # Errors
    /// What is wrong in the file.
    pub fn config(&self) -> Result<Config, ConfigError> {
        self.file.load()
    }
}

impl ShareArgs {
    /// Why the link may not be that of the setu that runs here.
    #[must_use]
    pub fn doubt(&self) -> Option<String> {
        operator::difference_here(&self.run.config().ok()?, self.run.file().path())
    }

    /// The link that these arguments ask for.
    ///
    /// # Errors
    /// What is wrong in the file, or why there is no link.
    pub fn link(&self) -> anyhow::Result<share::Link> {
        let config = self.run.config()?;
        let named = || config.tls.names.first().map(ToString::to_string);
        let host = self.host.clone().or_else(named).ok_or(ShareError::NoHost)?;
        let ports = Ports { chat: self.chat_port, media: self.media_port, chat_tls: self.chat_tls };
        Ok(share::link(&config, &host, &ports)?)
    }
}
