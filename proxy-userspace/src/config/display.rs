//! The configuration as a file that reads back to the same.

use std::{fmt, num::NonZero, path::Path};

use super::{Config, Limits, Listener, Mode, Timeouts, Tls, Upstream, Wire};

impl fmt::Display for Config {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "[relay]\npath = \"{}\"", self.path)?;
        self.wire.fmt(formatter)?;
        for listener in &self.listeners {
            self.listener(listener, formatter)?;
        }
        for upstream in &self.upstreams {
            upstream.fmt(formatter)?;
        }
        self.timeouts.fmt(formatter)?;
        self.limits.fmt(formatter)?;
        writeln!(formatter, "\n[allow]\nsni = [{}]", list(self.allowed_names.iter()))?;
        writeln!(formatter, "\n[proxy_protocol]\ntrusted = [{}]", list(self.trusted.iter()))?;
        self.tls.fmt(formatter)?;
        writeln!(formatter, "\n[dns]\nservers = [{}]", list(self.dns_servers.iter()))?;
        writeln!(formatter, "\n[admin]\nbind = [{}]", list(self.admin.iter()))?;
        writeln!(formatter, "hosts = [{}]", list(self.admin_hosts.iter()))?;
        writeln!(formatter, "ready_after = \"{}\"", humantime::format_duration(self.ready_after))?;
        writeln!(formatter, "\n[privacy]\nclient_addresses = \"{}\"", self.client_addresses)?;
        writeln!(formatter, "\n[security]\nallow_private_upstreams = {}", self.allow_private_upstreams)?;
        match &self.user {
            Some(user) => writeln!(formatter, "user = \"{user}\""),
            None => writeln!(formatter, "# user: setu if there is one, else a number that nobody has"),
        }
    }
}

impl Config {
    fn listener(&self, listener: &Listener, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |id| &self.upstream(id).name;
        writeln!(formatter, "\n[[listener]]\nname = \"{}\"", listener.name)?;
        writeln!(formatter, "bind = [{}]", list(listener.bind.iter()))?;
        match listener.mode {
            Mode::Chat { upstream, gate } => {
                writeln!(formatter, "mode = \"chat\"\nupstream = \"{}\"\ngate = {gate}", name(upstream))?;
            }
            Mode::ChatTls { upstream, gate } => {
                writeln!(formatter, "mode = \"chat-tls\"\nupstream = \"{}\"\ngate = {gate}", name(upstream))?;
            }
            Mode::Media { upstream } => {
                writeln!(formatter, "mode = \"media\"\nupstream = \"{}\"", name(upstream))?;
            }
            Mode::Auto { chat, media, fallback, gate } => {
                writeln!(
                    formatter,
                    "mode = \"auto\"\nchat = \"{}\"\nmedia = \"{}\"",
                    name(chat),
                    name(media)
                )?;
                match fallback {
                    Some(fallback) => writeln!(formatter, "fallback = \"{fallback}\"")?,
                    None => writeln!(
                        formatter,
                        "# fallback: none, what is neither is told that there is nothing"
                    )?,
                }
                writeln!(formatter, "gate = {gate}")?;
            }
        }
        writeln!(formatter, "accept_proxy_protocol = {}", listener.accept_proxy_protocol)?;
        writeln!(formatter, "dial = \"{}\"", listener.dial)
    }
}

impl fmt::Display for Wire {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { auto, ports, max_flows, mss, room: _ } = self;
        writeln!(formatter, "\n[wire]\nauto = {auto}\nports = \"{}-{}\"", ports.start(), ports.end())?;
        writeln!(formatter, "max_flows = {max_flows}\nmss = {mss}")
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "\n[upstream.{}]", self.name)?;
        writeln!(formatter, "endpoints = [{}]", list(self.endpoints.iter()))?;
        writeln!(formatter, "send_proxy_protocol = \"{}\"", self.send_proxy_protocol)?;
        writeln!(formatter, "route = \"{}\"", self.route)?;
        writeln!(formatter, "sources = [{}]", list(self.sources.iter()))
    }
}

impl fmt::Display for Timeouts {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { connect, inspect, handshake, idle, half_close, vanished, lame_duck, drain } = self;
        writeln!(formatter, "\n[timeouts]")?;
        for (key, time) in [
            ("connect", connect),
            ("inspect", inspect),
            ("handshake", handshake),
            ("idle", idle),
            ("half_close", half_close),
            ("vanished", vanished),
            ("lame_duck", lame_duck),
            ("drain", drain),
        ] {
            writeln!(formatter, "{key} = \"{}\"", humantime::format_duration(*time))?;
        }
        Ok(())
    }
}

impl fmt::Display for Limits {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { connections, per_source, per_source_rate, exempt, pending, kernel_bytes } = self;
        let count = |limit: &Option<NonZero<u32>>| limit.map_or(0, NonZero::get);
        writeln!(formatter, "\n[limits]")?;
        match connections {
            Some(connections) => writeln!(formatter, "connections = {connections}")?,
            None => writeln!(formatter, "# connections: what open files, memory and source ports allow")?,
        }
        writeln!(formatter, "per_source = {}", count(per_source))?;
        writeln!(formatter, "per_source_rate = {}", count(per_source_rate))?;
        writeln!(formatter, "exempt = [{}]", list(exempt.iter()))?;
        match pending {
            Some(pending) => writeln!(formatter, "pending = {pending}")?,
            None => writeln!(formatter, "# pending: a quarter of the connections")?,
        }
        match kernel_bytes {
            Some(bytes) => writeln!(formatter, "kernel_bytes = \"{bytes}\""),
            None => writeln!(formatter, "# kernel_bytes: a part of the memory"),
        }
    }
}

impl fmt::Display for Tls {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "\n[tls]")?;
        match &self.files {
            Some(files) => {
                writeln!(formatter, "certificate = {}\nkey = {}", path(&files.certificate), path(&files.key))?
            }
            None => writeln!(formatter, "# certificate, key: made by setu")?,
        }
        writeln!(formatter, "names = [{}]", list(self.names.iter()))?;
        writeln!(formatter, "state_dir = {}", path(&self.state_dir))
    }
}

/// Items of an array; none has a character that needs an escape.
fn list(items: impl Iterator<Item = impl fmt::Display>) -> String {
    items.map(|item| format!("\"{item}\"")).collect::<Vec<_>>().join(", ")
}

fn path(path: &Path) -> toml::Value {
    toml::Value::String(path.display().to_string())
}
