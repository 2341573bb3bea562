//! `setu init`: the configuration of a new server, from three answers. What it recommends is what most should run: one
//! port, which networks block last, and nothing told to WhatsApp of who connects.

use std::{
    fmt::Write as _,
    fs,
    io::{self, BufRead, IsTerminal as _, Write as _},
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    str::FromStr,
    time::SystemTime,
};

use clap::{Args, ValueEnum};
use tempfile::NamedTempFile;
use thiserror::Error;

use super::{
    share,
    text::{moment, seconds},
};
use crate::{
    config::{Config, DEFAULT_FILE},
    log,
};

/// setu's user reads it, and there is no secret in it.
const MODE: u32 = 0o644;
/// Of the folder, if it has to be made.
const FOLDER_MODE: u32 = 0o755;

/// Arguments of `setu init`.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// The name or IPv4 address by which phones reach this server
    #[arg(long, value_name = "HOST", value_parser = share::host)]
    host: Option<String>,
    /// The ports to open; without it, and without a terminal to ask on, 443
    #[arg(long, value_enum)]
    ports: Option<Ports>,
    /// Where a web server of your own answers, in plain HTTP, whoever comes to port 443 and is no client; or none, which is
    /// also what holds without it and without a terminal
    #[arg(long, value_name = "IP:PORT")]
    fallback: Option<Fallback>,
    /// Write this file
    #[arg(long, visible_alias = "config", value_name = "FILE", default_value = DEFAULT_FILE)]
    out: PathBuf,
    /// Write it although it exists; a copy of what was there is kept beside it
    #[arg(long)]
    force: bool,
}

/// Which ports are opened. Port 443 takes everything in each case: what else is open is for phones that were set by hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Ports {
    /// Everything on 443, which networks block last
    #[value(name = "443")]
    One,
    /// And media on 587, where the app looks for it unless it is told another port
    #[value(name = "443,587")]
    Two,
    /// And what else WhatsApp's own proxy has for phones: 80, 5222 and 7777
    #[value(name = "all")]
    All,
}

/// A listener beside that of port 443: name, port, mode and upstream.
type Beside = (&'static str, u16, &'static str, &'static str);

const MEDIA: Beside = ("media", 587, "media", "media");
const REFERENCE: [Beside; 4] = [
    MEDIA,
    ("media-direct", 7777, "media", "media"),
    ("chat", 5222, "chat", "chat"),
    ("chat-http", 80, "chat", "chat-http"),
];

impl Ports {
    fn beside(self) -> &'static [Beside] {
        match self {
            Self::One => &[],
            Self::Two => &[MEDIA],
            Self::All => &REFERENCE,
        }
    }
}

/// Who answers whoever is no client; `None` is setu itself, with a page that says 404.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fallback(Option<SocketAddr>);

impl FromStr for Fallback {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse::<SocketAddr>() {
            _ if text == "none" => Ok(Self(None)),
            Ok(address) if address.port() != 0 => Ok(Self(Some(address))),
            _ => Err("write none, or an address with a port, such as 127.0.0.1:8080"),
        }
    }
}

/// Why there is no new configuration.
#[derive(Debug, Error)]
pub enum InitError {
    /// Nobody can be asked.
    #[error(
        "there is no terminal to ask on: name --host, and if they are to be others than 443 and none, --ports and \
         --fallback"
    )]
    Unanswered,
    /// The terminal was closed.
    #[error("there was no answer: nothing is written")]
    Ended,
    /// What an operator wrote is not lost.
    #[error("{} exists; --force writes another, and keeps a copy of it", .0.display())]
    Exists(PathBuf),
    /// It cannot be written.
    #[error("{} cannot be written: {error}; run this as root, or name another file with --out", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's words.
        error: io::Error,
    },
}

impl InitError {
    /// Whether options are missing.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Unanswered)
    }
}

/// Asks what the options do not say, and writes the configuration. Returns what has been done and what is next.
///
/// # Errors
/// Why nothing was written.
pub fn run(args: &InitArgs) -> anyhow::Result<String> {
    let path = &args.out;
    if !args.force && fs::symlink_metadata(path).is_ok() {
        return Err(InitError::Exists(path.clone()).into());
    }
    let stdin = io::stdin();
    let mut terminal = stdin.is_terminal().then(|| stdin.lock());
    let host = match (&args.host, &mut terminal) {
        (Some(host), _) => host.clone(),
        (None, Some(terminal)) => ask(
            terminal,
            "By which name, or which IPv4 address, do phones reach this server?\n\
             A name can be led to another server later, and links stay right: proxy.example.org",
            None,
            share::host,
        )?,
        (None, None) => return Err(InitError::Unanswered.into()),
    };
    if let Some(doubt) = share::doubt(&host) {
        log::aside(&format!("warning: {doubt}"));
    }
    let ports = match (args.ports, &mut terminal) {
        (Some(ports), _) => ports,
        (None, Some(terminal)) => ask(
            terminal,
            "Which ports is it to open?\n  443      everything on one, which networks block last\n  443,587  and 587 for \
             media, for phones that are set by hand\n  all      and 80, 5222 and 7777, as WhatsApp's own proxy",
            Some("443"),
            |answer| Ports::from_str(answer, true).map_err(|_| "write 443, 443,587 or all"),
        )?,
        (None, None) => Ports::One,
    };
    let fallback = match (args.fallback, &mut terminal) {
        (Some(fallback), _) => fallback,
        (None, Some(terminal)) => ask(
            terminal,
            "Does a web server of yours answer whoever comes to port 443 and is no phone? Where, in plain HTTP?\n\
             127.0.0.1:8080, say; without one, setu says that there is no such page",
            Some("none"),
            Fallback::from_str,
        )?,
        (None, None) => Fallback(None),
    };
    let text = text(&host, ports, fallback);
    let config = Config::parse(&path.display().to_string(), &text)?;
    let copy =
        write(path, &text, args.force).map_err(|error| InitError::Write { path: path.clone(), error })?;
    Ok(said(path, copy.as_deref(), &config))
}

/// Asks until there is an answer that can be used. Questions go to standard error, which is not what programs read.
fn ask<T, E: std::fmt::Display>(
    from: &mut impl BufRead,
    question: &str,
    default: Option<&str>,
    read: impl Fn(&str) -> Result<T, E>,
) -> anyhow::Result<T> {
    let mut stderr = io::stderr();
    writeln!(stderr, "{question}")?;
    loop {
        match default {
            Some(default) => write!(stderr, "[{default}] > ")?,
            None => write!(stderr, "> ")?,
        }
        stderr.flush()?;
        let mut line = String::new();
        if from.read_line(&mut line)? == 0 {
            return Err(InitError::Ended.into());
        }
        let answer = match (line.trim(), default) {
            ("", Some(default)) => default,
            (answer, _) => answer,
        };
        match read(answer) {
            Ok(answer) => {
                writeln!(stderr)?;
                return Ok(answer);
            }
            Err(error) => writeln!(stderr, "{error}")?,
        }
    }
}

/// The configuration.
fn text(host: &str, ports: Ports, fallback: Fallback) -> String {
    let fallback = match fallback {
        Fallback(Some(address)) => format!("fallback = \"{address}\""),
        Fallback(None) => "#fallback = \"127.0.0.1:8080\"".into(),
    };
    let mut text = format!(
        r#"# setu's configuration, by `setu init`. All keys: man setu.toml
# After a change: systemctl reload setu, which checks first, and fails if this cannot be taken

# Chat in TLS, chat in the clear and media on one port, told apart by their first bytes.
[[listener]]
name = "all"
bind = ["0.0.0.0:443", "[::]:443"]
mode = "auto"
chat = "chat"
media = "media"
# Your web server, in plain HTTP, for whoever is no client. Without one setu says that there is no such page.
{fallback}

[tls]
names = ["{host}"]    # by which phones reach this server: for `setu share`, and for the certificate that setu makes
#certificate = "cert.pem"    # one of your own; WhatsApp's app does not check who signed it, visitors of a web server do
#key = "key.pem"

# "off" tells WhatsApp nothing of who connects; "v1" each client's IP address and port, as WhatsApp's own proxy does.
[upstream.chat]
send_proxy_protocol = "off"
"#
    );
    if ports == Ports::All {
        text += "[upstream.chat-http]\nsend_proxy_protocol = \"off\"\n";
    }
    if ports != Ports::One {
        text += "\n# For phones that are set by hand, without a link.";
    }
    for (name, port, mode, upstream) in ports.beside() {
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "\n[[listener]]\nname = \"{name}\"\nbind = [\"0.0.0.0:{port}\", \"[::]:{port}\"]\nmode = \"{mode}\"\n\
             upstream = \"{upstream}\"\n"
        );
    }
    text
}

/// Writes all of it or nothing. Returns where a copy of what was there is kept.
fn write(path: &Path, text: &str, overwrite: bool) -> io::Result<Option<PathBuf>> {
    let folder = path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
    if !folder.exists() {
        fs::create_dir(folder)?;
        fs::set_permissions(folder, fs::Permissions::from_mode(FOLDER_MODE))?;
    }
    let mut file = NamedTempFile::new_in(folder)?;
    file.write_all(text.as_bytes())?;
    file.as_file().set_permissions(fs::Permissions::from_mode(MODE))?;
    file.as_file().sync_all()?;
    if !overwrite || !path.exists() {
        file.persist_noclobber(path)?;
        return Ok(None);
    }
    let mut copy = path.as_os_str().to_owned();
    copy.push(format!(".{}", moment(seconds(SystemTime::now()))));
    let copy = PathBuf::from(copy);
    fs::copy(path, &copy)?;
    file.persist(path)?;
    Ok(Some(copy))
}

/// What was done, and what is next.
fn said(path: &Path, copy: Option<&Path>, config: &Config) -> String {
    let mut ports: Vec<_> =
        config.listeners.iter().flat_map(|listener| &listener.bind).map(SocketAddr::port).collect();
    ports.sort_unstable();
    ports.dedup();
    let ports: Vec<_> = ports.iter().map(u16::to_string).collect();
    let (ports, file) = (ports.join(", "), path.display());
    let kept = copy.map_or(String::new(), |copy| format!("kept what was there: {}\n", copy.display()));
    let (start, option) = if path == Path::new(DEFAULT_FILE) {
        ("systemctl enable --now setu   # if it runs already: systemctl restart setu".into(), String::new())
    } else {
        let option = format!(" --config {file}");
        (format!("setu run{option}"), option)
    };
    format!(
        "wrote {file}\n{kept}\nLet phones in: TCP port {ports}, in this machine's firewall, if it has one, and in your \
         provider's panel. Then:\n  setu check{option}   # what this machine can do, and whether the ports are free\n  \
         {start}\n  setu doctor{option}   # whether phones are served\n  setu share{option}   # the link for phones\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{SendProxyProtocol, UpstreamId};

    #[test]
    fn each_choice_is_a_configuration_with_a_link_that_tells_whatsapp_nothing() {
        for (ports, open) in
            [(Ports::One, &[443][..]), (Ports::Two, &[443, 587]), (Ports::All, &[443, 587, 7777, 5222, 80])]
        {
            for fallback in ["none", "127.0.0.1:8080", "[::1]:8081"] {
                let text = text("proxy.example.org", ports, fallback.parse().unwrap());
                let config = Config::parse("f", &text).unwrap_or_else(|error| panic!("{error}\n{text}"));
                let bound: Vec<_> = config.listeners.iter().map(|listener| listener.bind[0].port()).collect();
                assert_eq!(bound, open);
                let link = share::link(&config, "proxy.example.org", &share::Ports::default()).unwrap();
                assert!(link.url().ends_with("&chatPort=443&mediaPort=443&chatTLS=true"), "{}", link.url());
                let used = (0..config.upstreams.len()).map(UpstreamId).filter(|id| config.is_used(*id));
                for id in used {
                    assert_eq!(config.upstream(id).send_proxy_protocol, SendProxyProtocol::Off);
                }
                assert_eq!(text.contains("\nfallback = "), fallback != "none");
            }
        }
    }

    #[test]
    fn answers_are_asked_for_until_they_can_be_used() {
        let host = |answers: &str| ask(&mut answers.as_bytes(), "?", None, share::host);
        assert_eq!(host("\n0.0.0.0\nhttps://a.b\n Proxy.Example.org \n").unwrap(), "proxy.example.org");
        assert!(host("0.0.0.0\n").unwrap_err().is::<InitError>());
        let fallback =
            |answers: &str| ask(&mut answers.as_bytes(), "?", Some("none"), Fallback::from_str).unwrap();
        assert_eq!(fallback("\n"), Fallback(None));
        assert_eq!(fallback("8080\n127.0.0.1:0\n127.0.0.1:8080\n").0, "127.0.0.1:8080".parse().ok());
    }
}
