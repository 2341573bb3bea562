//! `setu check`: the effective configuration, and what this machine can do for it.

mod lines;
mod wire;

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs, io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    num::NonZero,
    path::{Path, PathBuf},
    thread,
    time::SystemTime,
};

use procfs::process::Process;
use tokio::runtime;

pub(crate) use self::lines::{Lines, Verdict};
use super::running::{self, Running, listens};
use crate::{
    config::{Config, PathChoice},
    front::{
        listener::{self, BindError, Holder},
        tls::{self, CertificateError, TlsSettings},
    },
    relay::{sockmap, wire::CAPABILITIES as CAPABILITIES_OF_THE_WIRE},
    serve::{
        capacity::{Machine, Need},
        ports,
    },
    sys::{
        sandbox,
        state_dir::{self, StateDir},
        user::User,
    },
    upstream::useless_sources,
};

/// Whether eBPF programs are compiled to machine code.
const JIT: &str = "/proc/sys/net/core/bpf_jit_enable";

/// Where the package puts its unit.
const UNIT: &str = "/usr/lib/systemd/system/setu.service";

/// What the lack of any of three capabilities costs.
const USERSPACE: &str = "bytes go through userspace, which takes more CPU time for each";

/// Capabilities that setu can use, by their bit (include/uapi/linux/capability.h): what for, and what their lack costs.
const CAPABILITIES: [(u32, &str, &str, &str); 4] = [
    (
        10,
        "CAP_NET_BIND_SERVICE",
        "ports below 1024",
        "such ports cannot be bound unless the system lets everyone",
    ),
    (12, "CAP_NET_ADMIN", "attaching the program to its map of sockets", USERSPACE),
    (38, "CAP_PERFMON", "the program's reading of kernel structures", USERSPACE),
    (39, "CAP_BPF", "loading the program and its maps", USERSPACE),
];

/// What was found.
#[derive(Debug)]
pub struct Report {
    /// For the operator's terminal.
    pub text: String,
    /// Whether `setu run` would start.
    pub ready: bool,
}

/// Looks at everything and changes nothing. `file` is the configuration's.
#[must_use]
pub fn report(config: &Config, file: Option<&Path>) -> Report {
    let mut lines = machine(config);
    addresses(&mut lines, config, file);
    for what in ports::used(config).flat_map(useless_sources) {
        lines.note(&what);
    }
    user(&mut lines, config);
    if config.ends_tls() {
        certificate(&mut lines, config);
    }
    reload(&mut lines, config, file);
    let mut text = format!("# The effective configuration\n{config}\n# This machine\n");
    for (verdict, what) in &lines.0 {
        let verdict = match verdict {
            Verdict::Fine => "ok",
            Verdict::Note => "note",
            Verdict::Bad => "no",
        };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{verdict:<5} {what}");
    }
    Report { text, ready: lines.0.iter().all(|(verdict, _)| *verdict != Verdict::Bad) }
}

/// Whether the addresses are free, or in the hands of the setu that this configuration is for.
fn addresses(lines: &mut Lines, config: &Config, file: Option<&Path>) {
    let obstacles = listener::obstacles(config);
    if obstacles.is_empty() {
        let count = config.listeners.iter().map(|listener| listener.bind.len()).sum::<usize>();
        lines.fine(&format!("all {count} addresses can be bound"));
    }
    for obstacle in obstacles {
        match &obstacle {
            BindError::InUse { address, holder: Some(holder), .. } if serves(holder, file) => {
                served(lines, *address, holder, "served by");
            }
            BindError::InUse { address, holder: Some(Holder { name, pid: 1 }), .. } if name == "systemd" => {
                passed(lines, *address, file);
            }
            _ => lines.bad(&obstacle.to_string()),
        }
    }
}

/// An address that systemd holds: for whom, only it knows, unless the setu of this configuration has the socket already.
fn passed(lines: &mut Lines, address: SocketAddr, file: Option<&Path>) {
    let (port, ip) = (address.port(), address.ip());
    match listener::holders(address).into_iter().find(|holder| serves(holder, file)) {
        Some(holder) => served(lines, address, &holder, "passed by systemd to"),
        None => lines.note(&format!(
            "port {port} of {ip} is held by systemd (pid 1), for a socket unit: that is fine if it passes it to setu, as \
             setu.socket does; if it is for another service, stop that. `systemctl list-sockets` tells"
        )),
    }
}

/// An address that the setu of this configuration has, or that another of its own keeps it from having.
fn served(lines: &mut Lines, address: SocketAddr, holder: &Holder, how: &str) {
    let Holder { name, pid } = holder;
    let (port, ip) = (address.port(), address.ip());
    let whose = format!("{name} (pid {pid}), which runs with this configuration");
    if listens(*pid).is_none_or(|listens| has(&listens, address)) {
        lines.fine(&format!("port {port} of {ip} is {how} {whose}"));
    } else {
        lines.note(&format!(
            "port {port} is that of {whose}, but not of {ip}: a change between one address and all of them takes a restart"
        ));
    }
}

/// Whether an address is one of those at which a setu listens.
fn has(listens: &BTreeSet<SocketAddr>, wanted: SocketAddr) -> bool {
    // A socket that was passed may be for both families; setu's own never are.
    let of_both = SocketAddr::from((Ipv6Addr::UNSPECIFIED, wanted.port()));
    let has_own = || listens.iter().any(|address| address.is_ipv4() && address.port() == wanted.port());
    listens.contains(&wanted)
        || (wanted.ip() == Ipv4Addr::UNSPECIFIED && listens.contains(&of_both) && !has_own())
}

/// Whether a process is a setu that was started with this file, or as this check without any.
fn serves(holder: &Holder, file: Option<&Path>) -> bool {
    Running::look(holder.pid).is_some_and(|process| process.is_setu() && process.has(file))
}

/// Whom setu becomes, and whether that user may have the state directory.
fn user(lines: &mut Lines, config: &Config) {
    let path = &config.tls.state_dir;
    let user = match User::wanted(config.user.as_deref(), state_dir::owner(path)) {
        Ok(user) => user,
        Err(error) => return lines.bad(&error.to_string()),
    };
    let folder = path.display();
    match &user {
        Some(user) => match state_dir::why_not_given(path, user) {
            Ok(None) => lines.fine(&format!("setu becomes user {}, and keeps its state in {folder}", user.name)),
            Ok(Some(why)) => lines.bad(&format!(
                "tls.state_dir: {folder} {why}; name a folder for setu alone, such as {folder}/setu"
            )),
            Err(error) => lines.note(&format!("tls.state_dir: {folder}: {error}")),
        },
        None => match StateDir::there(path) {
            Ok(_) => lines.fine(&format!("setu stays this user, and keeps its state in {folder}")),
            Err(error) => lines.note(&format!(
                "tls.state_dir: {folder}: {error}; setu makes it if it may. Without it a certificate that it makes is \
                 another at each start, and `setu run --replace` finds nothing to replace"
            )),
        },
    }
}

/// Whether there is a certificate that can be served; one of its own setu makes when it starts.
fn certificate(lines: &mut Lines, config: &Config) {
    match tls::show(&TlsSettings::from(&config.tls)) {
        Ok(description) => match description.untimely(SystemTime::now()) {
            None => lines.fine(&format!("the TLS certificate can be served: {}", description.source)),
            Some(_) if config.tls.files.is_none() => {
                lines
                    .note("setu will make another TLS certificate: that of before is not valid at this time");
            }
            Some(why) => {
                lines.note(&format!("the TLS certificate can be served ({}), but {why}", description.source))
            }
        },
        Err(error) if config.tls.files.is_some() => lines.bad(&error.to_string()),
        Err(CertificateError::Unreadable { error, .. }) if error.kind() == io::ErrorKind::NotFound => {
            lines.fine("there is no TLS certificate yet: setu makes one when it starts");
        }
        Err(error) => lines.note(&format!("setu will make another TLS certificate: {error}")),
    }
}

/// What keeps a setu that runs from taking this configuration up, as far as that is seen from here: it has given up its
/// rights, and reads what its user and its sandbox let it. A start takes no notice of these.
fn reload(lines: &mut Lines, config: &Config, file: Option<&Path>) {
    let (named, serving) = (named(config, file), running::serving(config, file));
    // A unit may have made it another user.
    let user = serving.as_ref().and_then(|(running, _)| running.user).map(|user| user.to_string());
    let user = user.as_deref().or(config.user.as_deref());
    if let Ok(Some(user)) = User::wanted(user, state_dir::owner(&config.tls.state_dir)) {
        // The packaged unit starts as that user.
        let is_start = serving.is_none() && Path::new(UNIT).exists();
        for path in user.cannot_read(&named) {
            let (name, path) = (&user.name, path.display());
            let what = if is_start { "setu does not start as the unit has it" } else { "a reload will fail" };
            let text = format!(
                "{path}: setu's user {name} cannot read it: {what}; let that user read it: chgrp {name} {path}; \
                 chmod 640 {path}"
            );
            if is_start { lines.bad(&text) } else { lines.note(&text) }
        }
    }
    let Some((Running { pid, name, .. }, listens)) = serving else { return };
    let privileged = first_unprivileged();
    let all = config.listeners.iter().flat_map(|listener| &listener.bind);
    for address in all.filter(|address| (1..privileged).contains(&address.port())) {
        // One in its own way is told of already.
        if !listens.iter().any(|held| listener::in_the_way(*held, *address)) {
            lines.note(&format!(
                "port {} of {}: {name} (pid {pid}), which runs with this configuration, has given up the right to bind it: \
                 restart setu to take it up",
                address.port(),
                address.ip()
            ));
        }
    }
    let ask = |at| running::ask(at, &runtime::Builder::new_current_thread().enable_all().build().ok()?);
    let status = config.admin.iter().find(|at| listens.contains(at)).and_then(|at| ask(*at));
    if let Some(difference) = status.as_ref().and_then(|status| running::difference(config, status)) {
        lines.note(&difference);
    }
    for path in &named {
        let places = status.as_ref().and_then(|status| status.sandbox.as_deref());
        if places.is_some_and(|places| sandbox::is_within(path, places).is_ok_and(|is_within| !is_within)) {
            lines.note(&format!(
                "{} lies outside of what {name} (pid {pid}) may read, which runs with this configuration: restart setu to \
                 take it up",
                path.display()
            ));
        }
    }
}

/// The files that a reload reads, the configuration's own included.
pub(crate) fn named(config: &Config, file: Option<&Path>) -> Vec<PathBuf> {
    let certificate = config.tls.files.iter().flat_map(|files| [&files.certificate, &files.key]);
    certificate.map(PathBuf::from).chain(file.map(PathBuf::from)).collect()
}

/// The first port that everybody may bind (ip-sysctl).
fn first_unprivileged() -> u16 {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(1024)
}

/// What this machine can do for setu; whether its addresses are free is another matter.
pub(crate) fn machine(config: &Config) -> Lines {
    let mut lines = Lines(Vec::new());
    let effective = privileges(&mut lines, config);
    // How many connections there may be depends on it, and it is told last.
    let mut last = Lines(Vec::new());
    let mut config = config.clone();
    // An error is told below.
    let room = Machine::look().map_or(config.wire.max_flows, |machine| machine.room_on_wire(&config));
    config.wire.room = if wire::needs(&mut last, &config, room.get(), effective) { room.get() } else { 0 };
    kernel(&mut lines, &config);
    connections(&mut lines, &config);
    lines.0.append(&mut last.0);
    lines
}

/// Tells which there are, and returns them by bit.
fn privileges(lines: &mut Lines, config: &Config) -> Option<u64> {
    let effective = Process::myself().and_then(|process| process.status()).map(|status| status.capeff);
    let Ok(effective) = effective else {
        lines.note("privileges: /proc/self/status cannot be read; mount /proc");
        return None;
    };
    let is_meant = |(bit, ..): &(u32, &str, &str, &str)| {
        config.path != PathChoice::Wire || CAPABILITIES_OF_THE_WIRE.iter().all(|(other, ..)| bit != other)
    };
    for (bit, name, purpose, cost) in CAPABILITIES.into_iter().filter(is_meant) {
        if effective >> bit & 1 == 1 {
            lines.fine(&format!("{name}, for {purpose}"));
        } else {
            lines.note(&format!(
                "{name} is missing, for {purpose}: without it {cost}; run as root or with AmbientCapabilities={name}"
            ));
        }
    }
    Some(effective)
}

fn kernel(lines: &mut Lines, config: &Config) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_else(|_| "unknown".into());
    lines.fine(&format!("Linux {}", release.trim()));
    if config.path == PathChoice::Userspace {
        return lines.fine(&format!("the kernel path is not wanted: relay.path = \"{}\"", config.path));
    }
    match fs::metadata(sockmap::VMLINUX) {
        Ok(_) => lines.fine(&format!("the kernel publishes its types (BTF) in {}", sockmap::VMLINUX)),
        Err(error) => lines.note(&format!(
            "{}: {error}; the kernel path needs a kernel that is built with CONFIG_DEBUG_INFO_BTF, and /sys mounted",
            sockmap::VMLINUX
        )),
    }
    match fs::read_to_string(JIT).as_deref().map(str::trim) {
        Ok("0") => lines.note("eBPF is interpreted, which is slow; sysctl net.core.bpf_jit_enable=1"),
        Ok(_) => lines.fine("eBPF is compiled (JIT)"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // Other network namespaces than the first do not have it (net/core/sysctl_net_core.c): containers.
            lines.note(
                "whether eBPF is compiled cannot be seen here; on the host: sysctl net.core.bpf_jit_enable; if it is not \
                 there either, the kernel is built without CONFIG_BPF_JIT, and eBPF is slow",
            );
        }
        // Only root may read it (net/core/sysctl_net_core.c).
        Err(error) => {
            lines.note(&format!("whether eBPF is compiled is not known: {JIT}: {error}; ask as root"))
        }
    }
    let mut failed = None;
    match sockmap::probe() {
        Ok(checks) => {
            for check in checks {
                match check.result {
                    Ok(()) => lines.fine(&format!("self-test: {}", check.name)),
                    Err(error) => {
                        lines.note(&format!("self-test failed: {}: {error}", check.name));
                        failed.get_or_insert_with(|| check.name.to_owned());
                    }
                }
            }
        }
        Err(error) => failed = Some(error.trim().to_owned()),
    }
    match (failed, config.path) {
        (None, _) if config.wire.is_on() => lines.fine(
            "sockmap, in the kernel, takes quiet connections that the wire refuses; those that stream use this process",
        ),
        (None, PathChoice::Auto) => {
            lines.fine("path: sockmap, in the kernel, for connections that are quiet; those that stream use this process")
        }
        (None, _) => lines.fine("path: sockmap, bytes move in the kernel"),
        (Some(reason), PathChoice::Sockmap) => {
            lines.bad(&format!(
                "path: relay.path = \"sockmap\" is not available: {reason}; set it to \"auto\""
            ));
        }
        (Some(reason), _) if config.wire.is_on() => lines.note(&format!(
            "connections that the wire refuses use this process, because sockmap is not available: {reason}"
        )),
        (Some(reason), _) => {
            lines.note(&format!("path: userspace, because the kernel path is not available: {reason}"))
        }
    }
}

fn connections(lines: &mut Lines, config: &Config) {
    let machine = match Machine::look() {
        Ok(machine) => machine,
        Err(error) => return lines.bad(&format!("the limit of open files cannot be read: {error}")),
    };
    // As many listening sockets as workers for each address.
    let workers = thread::available_parallelism().map_or(1, NonZero::get);
    let addresses: usize = config.listeners.iter().map(|listener| listener.bind.len()).sum();
    let allowed = machine.allows(config, addresses * workers);
    let with_sockets = allowed.by_files.min(allowed.by_memory);
    let possible = with_sockets + allowed.on_wire;
    let wanted = config.limits.connections.map_or(10_000, NonZero::get).into();
    let text = format!(
        "{} open files and {} MiB of memory, for {with_sockets} connections{}",
        machine.files,
        machine.memory >> 20,
        if allowed.on_wire == 0 { String::new() } else { format!(", and {} on the wire", allowed.on_wire) }
    );
    if possible < wanted {
        let need = if allowed.by_files <= allowed.by_memory { Need::Files } else { Need::Memory };
        lines.note(&format!("{text}; for more, {}", need.remedy()));
    } else {
        lines.fine(&text);
    }
    source_ports(lines, config, &machine, possible, allowed.by_ports);
    if config.wire.is_on() {
        wire::ports(lines, config, machine.ports.as_ref());
        wire::tracked(lines);
    }
}

/// How many connections there are ports for, where `possible` are so by files and memory.
fn source_ports(lines: &mut Lines, config: &Config, machine: &Machine, possible: u64, all: Option<u64>) {
    let Some(ports) = &machine.ports else {
        return lines.note("source ports: /proc/sys/net/ipv4 cannot be read; mount /proc");
    };
    let (one, range) = (ports.of_one(config), &ports.range);
    let each: Vec<_> =
        ports::used(config).map(|upstream| (&upstream.name, ports.of(upstream, config))).collect();
    let listed: Vec<_> = each.iter().map(|(name, ports)| format!("{ports} to upstream \"{name}\"")).collect();
    let wire = if config.wire.is_on() {
        format!(", and {} to {} for the wire", config.wire.ports.start(), config.wire.ports.end())
    } else {
        String::new()
    };
    let text = format!(
        "source ports: {one} ({} to {}, {} of them reserved{wire}) for each server and local address, so many connections: {}",
        range.start(),
        range.end(),
        ports.reserved(config),
        listed.join(", ")
    );
    let wanted = config.limits.connections.map_or(possible, |wanted| possible.min(wanted.get().into()));
    let remedy = Need::Ports.remedy();
    let short: Vec<_> =
        each.iter().filter(|(_, ports)| *ports < wanted).map(|(name, _)| name.as_str()).collect();
    match all {
        Some(all) if all < wanted => lines.note(&format!(
            "{text}. These are the limit, {all} in all, where files and memory allow {possible}; for more, {remedy}"
        )),
        _ if !short.is_empty() => lines.note(&format!(
            "{text}. These are the limit, not files and memory, where most clients go to one of: {}; for more, {remedy}",
            short.join(", ")
        )),
        _ => lines.fine(&text),
    }
    let rate = one / ports::REST;
    let text = format!(
        "net.ipv4.tcp_tw_reuse = {}: a source port rests for {} s after a connection that its client ended first",
        ports.reuse,
        ports::REST
    );
    if ports.reuse == 1 {
        lines.fine("net.ipv4.tcp_tw_reuse = 1: a source port that rests is used again after a second");
    } else {
        lines.fine(&format!(
            "{text}, which is enough for {rate} of them a second to one server; for more, set it to 1"
        ));
    }
}
