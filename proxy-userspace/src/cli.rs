//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::{
    config::{Config, ConfigError, FileArgs, RunArgs},
    lifecycle::ServeArgs,
    operator::{
        doctor::{self, Link},
        reload::ReloadArgs,
        share::{self, ShareError},
        status::StatusArgs,
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
    /// Make the link and the code that set a phone to this server
    Share(ShareArgs),
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
    /// Also write proxy.svg, and instruction cards to print (HTML) in several languages, into this directory
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
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
    /// The link that these arguments ask for.
    ///
    /// # Errors
    /// What is wrong in the file, or why there is no link.
    pub fn link(&self) -> anyhow::Result<share::Link> {
        let config = self.run.config()?;
        let named = || config.tls.names.first().map(ToString::to_string);
        let host = self.host.clone().or_else(named).ok_or(ShareError::NoHost)?;
        Ok(share::link(&config, &host)?)
    }
}
