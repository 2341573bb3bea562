//! `setu check`: the effective configuration, and what this machine can do for it.

use std::{
    fmt::Write as _,
    fs, io,
    net::SocketAddr,
    num::NonZero,
    path::{Path, PathBuf},
    thread,
    time::SystemTime,
};

use procfs::process::Process;

use crate::{
    config::{Config, PathChoice},
    front::{
        listener::{self, BindError, Holder},
        tls::{self, CertificateError, TlsSettings},
    },
    relay::sockmap,
    serve::{
        capacity::{Machine, Need},
        ports,
    },
    sys::{
        state_dir::{self, StateDir},
        user::User,
    },
    upstream::useless_sources,
};

/// Whether eBPF programs are compiled to machine code.
const JIT: &str = "/proc/sys/net/core/bpf_jit_enable";

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

/// What something that was found means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is as it should be.
    Fine,
    /// Something is missing that setu can do without.
    Note,
    /// Something is missing without which setu does not start.
    Bad,
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
                let Holder { name, pid } = holder;
                lines.fine(&format!(
                    "port {} of {} is served by {name} (pid {pid}), which runs with this configuration",
                    address.port(),
                    address.ip()
                ));
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
        Some(Holder { name, pid }) => lines.fine(&format!(
            "port {port} of {ip} is passed by systemd to {name} (pid {pid}), which runs with this configuration"
        )),
        None => lines.note(&format!(
            "port {port} of {ip} is held by systemd (pid 1), for a socket unit: that is fine if it passes it to setu, as \
             setu.socket does; if it is for another service, stop that. `systemctl list-sockets` tells"
        )),
    }
}

/// Whether a process is a setu that was started with this file, or as this check without any.
fn serves(holder: &Holder, file: Option<&Path>) -> bool {
    let arguments = || {
        let process = Process::new(holder.pid).ok()?;
        Some((process.cmdline().ok()?, process.cwd().ok()))
    };
    let Some((arguments, folder)) = arguments() else { return false };
    let own = Process::myself().and_then(|process| process.stat());
    let is_namesake = own.is_ok_and(|own| own.comm == holder.name);
    let is_run = arguments.iter().any(|argument| argument == "run");
    let mut after = arguments.iter().skip_while(|argument| !argument.starts_with("--config"));
    let theirs = after.next().and_then(|argument| match argument.split_once('=') {
        Some((_, file)) => Some(PathBuf::from(file)),
        None => after.next().map(PathBuf::from),
    });
    let theirs = theirs.map(|theirs| folder.unwrap_or_default().join(theirs));
    let real = |file: &Path| file.canonicalize().ok();
    is_namesake
        && is_run
        && match (theirs, file) {
            (None, None) => true,
            (Some(theirs), Some(file)) => real(&theirs).is_some_and(|theirs| Some(theirs) == real(file)),
            _ => false,
        }
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

/// What this machine can do for setu; whether its addresses are free is another matter.
pub(crate) fn machine(config: &Config) -> Lines {
    let mut lines = Lines(Vec::new());
    privileges(&mut lines);
    kernel(&mut lines, config);
    connections(&mut lines, config);
    lines
}

/// What was found, in the order in which it was looked for.
pub(crate) struct Lines(pub(crate) Vec<(Verdict, String)>);

impl Lines {
    fn fine(&mut self, what: &str) {
        self.0.push((Verdict::Fine, what.into()));
    }

    fn note(&mut self, what: &str) {
        self.0.push((Verdict::Note, what.into()));
    }

    fn bad(&mut self, what: &str) {
        self.0.push((Verdict::Bad, what.into()));
    }
}

fn privileges(lines: &mut Lines) {
    let effective = Process::myself().and_then(|process| process.status()).map(|status| status.capeff);
    let Ok(effective) = effective else {
        return lines.note("privileges: /proc/self/status cannot be read; mount /proc");
    };
    for (bit, name, purpose, cost) in CAPABILITIES {
        if effective >> bit & 1 == 1 {
            lines.fine(&format!("{name}, for {purpose}"));
        } else {
            lines.note(&format!(
                "{name} is missing, for {purpose}: without it {cost}; run as root or with AmbientCapabilities={name}"
            ));
        }
    }
}

fn kernel(lines: &mut Lines, config: &Config) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_else(|_| "unknown".into());
    lines.fine(&format!("Linux {}", release.trim()));
    if config.path == PathChoice::Userspace {
        return lines.fine("the kernel path is not wanted: relay.path = \"userspace\"");
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
        (None, PathChoice::Auto) => {
            lines.fine("path: sockmap, in the kernel, for connections that are quiet; those that stream use this process")
        }
        (None, _) => lines.fine("path: sockmap, bytes move in the kernel"),
        (Some(reason), PathChoice::Sockmap) => {
            lines.bad(&format!(
                "path: relay.path = \"sockmap\" is not available: {reason}; set it to \"auto\""
            ));
        }
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
    let possible = allowed.by_files.min(allowed.by_memory);
    let wanted = config.limits.connections.map_or(10_000, NonZero::get).into();
    let text = format!(
        "{} open files and {} MiB of memory, for {possible} connections",
        machine.files,
        machine.memory >> 20
    );
    if possible < wanted {
        let need = if allowed.by_files <= allowed.by_memory { Need::Files } else { Need::Memory };
        lines.note(&format!("{text}; for more, {}", need.remedy()));
    } else {
        lines.fine(&text);
    }
    source_ports(lines, config, &machine, possible, allowed.by_ports);
}

/// How many connections there are ports for, where `possible` are so by files and memory.
fn source_ports(lines: &mut Lines, config: &Config, machine: &Machine, possible: u64, all: Option<u64>) {
    let Some(ports) = &machine.ports else {
        return lines.note("source ports: /proc/sys/net/ipv4 cannot be read; mount /proc");
    };
    let (one, range) = (ports.of_one(), &ports.range);
    let each: Vec<_> = ports::used(config).map(|upstream| (&upstream.name, ports.of(upstream))).collect();
    let listed: Vec<_> = each.iter().map(|(name, ports)| format!("{ports} to upstream \"{name}\"")).collect();
    let text = format!(
        "source ports: {one} ({} to {}, {} of them reserved) for each server and local address, so many connections: {}",
        range.start(),
        range.end(),
        ports.reserved,
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
