//! The text of a file, for errors that point into it, and the readers of single values.

use std::{
    net::{IpAddr, SocketAddr},
    ops::Range,
    str::FromStr,
    time::Duration,
};

use ipnet::IpNet;
use toml::Spanned;

use super::super::{
    error::{ConfigError, Place},
    schema::{self, Fault},
};
use crate::config::{Ranges, network::canonical};

/// The longest timeout: a day. A longer one is a slip of the unit.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// A string with its place.
pub(super) type Text = Spanned<String>;
/// An array of strings, each with its place.
pub(super) type Texts = Spanned<Vec<Text>>;

/// A file's name and text.
pub(super) struct Source<'a> {
    pub(super) file: &'a str,
    pub(super) text: &'a str,
}

impl Source<'_> {
    fn place(&self, span: &Range<usize>) -> Place {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        Place { file: self.file.into(), line: before.matches('\n').count() + 1 }
    }

    /// An error at `span`.
    pub(super) fn wrong<T>(
        &self,
        span: &Range<usize>,
        key: &str,
        problem: impl Into<String>,
        remedy: &str,
    ) -> Result<T, ConfigError> {
        let fault =
            Fault { span: span.clone(), key: key.into(), problem: problem.into(), remedy: remedy.into() };
        self.fault(fault)
    }

    /// As [`Self::wrong`].
    pub(super) fn fault<T>(&self, fault: Fault) -> Result<T, ConfigError> {
        let Fault { span, key, problem, remedy } = fault;
        Err(ConfigError::Value { place: self.place(&span), key, problem, remedy })
    }

    /// What the parser could not read. The key is what stands on that line before the `=`, below the last `[table]`.
    pub(super) fn syntax<T>(&self, error: &toml::de::Error) -> Result<T, ConfigError> {
        let span = error.span().unwrap_or(0..0);
        let lines: Vec<&str> = self.text.lines().take(self.place(&span).line).map(str::trim).collect();
        let (line, above) = lines.split_last().map_or(("", &lines[..]), |(line, above)| (*line, above));
        let table = above.iter().rfind(|line| line.starts_with('['));
        let key = match (table, line.split_once('=')) {
            (Some(table), Some((key, _))) => format!("{}.{}", table.trim_matches(['[', ']']), key.trim()),
            (None, Some((key, _))) => key.trim().into(),
            (_, None) => line.into(),
        };
        let message = error.message().replace('\n', "; ");
        let remedy = match message.as_str() {
            "duplicate key" => "remove one of the two",
            _ => "write [table] or key = value on a line, text in \"quotes\", lists in [brackets]",
        };
        self.wrong(&span, &key, message, remedy)
    }

    /// Reads a string; what `parse` says of it follows the quoted text.
    pub(super) fn read<T, E: Into<String>>(
        &self,
        key: &str,
        raw: &Text,
        remedy: &str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<T, ConfigError> {
        let text = raw.get_ref();
        parse(text).or_else(|problem| {
            let problem: String = problem.into();
            self.wrong(&raw.span(), key, format!("\"{text}\" {problem}"), remedy)
        })
    }

    /// Reads each of an array.
    pub(super) fn list<T, E: Into<String>>(
        &self,
        key: &str,
        raw: &Texts,
        remedy: &str,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Result<Vec<T>, ConfigError> {
        raw.get_ref().iter().map(|item| self.read(key, item, remedy, &parse)).collect()
    }

    /// Reads one of a few words.
    pub(super) fn keyword<T: FromStr>(&self, key: &str, raw: &Text, remedy: &str) -> Result<T, ConfigError> {
        self.read(key, raw, remedy, |text| text.parse().map_err(|_| "is unknown"))
    }

    pub(super) fn duration(&self, key: &str, raw: &Text) -> Result<Duration, ConfigError> {
        self.read(key, raw, schema::TIME, |text| match time(text)? {
            Duration::ZERO => Err("is no time to wait".to_owned()),
            time => Ok(time),
        })
    }

    /// As [`Self::duration`], where not to wait at all is sensible.
    pub(super) fn pause(&self, key: &str, raw: &Text) -> Result<Duration, ConfigError> {
        self.read(key, raw, schema::PAUSE, time)
    }

    pub(super) fn ranges(&self, key: &str, raw: &Texts) -> Result<Ranges, ConfigError> {
        let parse = |text: &str| match (text.parse::<IpNet>(), text.parse::<IpAddr>()) {
            (Ok(range), _) => Ok(range),
            (Err(_), Ok(ip)) => Ok(ip.into()),
            (Err(_), Err(_)) => Err("is no range of addresses"),
        };
        let read = |item: &Text| {
            let range: IpNet = self.read(key, item, schema::RANGE, parse)?;
            canonical(range).or_else(|remedy| {
                let problem = format!(
                    "\"{}\" means more than IPv4 addresses, and would match none of them",
                    item.get_ref()
                );
                self.wrong(&item.span(), key, problem, &remedy)
            })
        };
        Ok(Ranges::new(raw.get_ref().iter().map(read).collect::<Result<_, _>>()?))
    }

    /// Reads addresses to bind; `taken` are bound already.
    pub(super) fn bind(
        &self,
        key: &str,
        raw: &Texts,
        taken: &[SocketAddr],
    ) -> Result<Vec<SocketAddr>, ConfigError> {
        let mut bind: Vec<SocketAddr> = Vec::new();
        for text in raw.get_ref() {
            let address = self.read(key, text, schema::BIND, |text| {
                let address: SocketAddr = text.parse().map_err(|_| "is no address with a port")?;
                match address {
                    SocketAddr::V6(v6) if v6.ip().is_unicast_link_local() && v6.scope_id() == 0 => {
                        Err("is of one link only, and needs its number, as in [fe80::1%2]:443 (`ip link`)")
                    }
                    // The IPv4 address that is mapped: IPv6 sockets of setu take no IPv4.
                    address if address.ip().to_canonical().is_ipv4() => {
                        Ok(SocketAddr::new(address.ip().to_canonical(), address.port()))
                    }
                    address => Ok(address),
                }
            })?;
            if let Some(other) = taken.iter().chain(&bind).find(|other| overlap(**other, address)) {
                let problem = format!("{address} is bound already, by {other}");
                return self.wrong(&text.span(), key, problem, "give each address another port");
            }
            bind.push(address);
        }
        Ok(bind)
    }
}

fn time(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(time) if time > LONGEST => Err("is more than a day".into()),
        Ok(time) => Ok(time),
        Err(error) => Err(format!("is no time: {error}")),
    }
}

/// Whether both cannot be bound together. Port 0 is a new one each time.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    one.port() == other.port()
        && one.port() != 0
        && one.is_ipv4() == other.is_ipv4()
        && (one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified())
}

/// A name for logs and metrics.
pub(super) fn name(text: &str) -> Result<String, &'static str> {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    match (1..=64).contains(&text.len()) && text.bytes().all(known) {
        true => Ok(text.into()),
        false => Err("is no name"),
    }
}
