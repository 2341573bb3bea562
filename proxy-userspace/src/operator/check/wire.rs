//! What `setu check` says of the wire.

use std::fs;

use super::lines::Lines;
use crate::{
    config::{Config, PathChoice, Wire},
    relay::wire::{CAPABILITIES, Network, Pins, Probed, instance, is_free, others_with_ports, pinned, probe},
    serve::{
        capacity::BYTES_ON_WIRE,
        ports::{self, Ports},
        reserved::Reserved,
    },
};

/// Has what the unit needs for the wire.
const WIRE_UNIT: &str = "/usr/share/doc/setu/examples/wire.conf";

/// Said with the reason where `relay.path = "auto"` goes on without.
const NOT_ON_THE_WIRE: &str = "no connection goes on the wire, where it would cost least";

/// What the wire needs, and whether it is here; the rest a start alone shows. Returns whether connections are to go on it.
pub(super) fn needs(lines: &mut Lines, config: &Config, room: u32, effective: Option<u64>) -> bool {
    let by_name = match config.path {
        PathChoice::Wire => true,
        PathChoice::Auto if !config.wire.auto => {
            lines.fine("the wire is not wanted: wire.auto = false");
            return false;
        }
        PathChoice::Auto => false,
        PathChoice::Sockmap | PathChoice::Userspace => return false,
    };
    let is_missing = |bit: u32| effective.is_some_and(|effective| effective >> bit & 1 == 0);
    let mut hindrance = None;
    if by_name {
        for (bit, name, purpose) in CAPABILITIES {
            if is_missing(bit) {
                hindrance.get_or_insert(format!("{name} is missing"));
                lines.bad(&format!(
                    "{name} is missing, for {purpose}: without it relay.path = \"wire\" does not start; run as root or with \
                     AmbientCapabilities={name}, or set relay.path to \"auto\""
                ));
            } else {
                lines.fine(&format!("{name}, for {purpose}"));
            }
        }
    } else {
        let missing = CAPABILITIES.into_iter().filter(|(bit, ..)| is_missing(*bit));
        let missing: Vec<_> = missing.map(|(_, name, _)| name).collect();
        if !missing.is_empty() {
            lines.note(&format!(
                "{NOT_ON_THE_WIRE}: {} is missing; run as root, or have the unit give it: {WIRE_UNIT} says how",
                missing.join(", ")
            ));
            return false;
        }
        if let Err(reason) = is_free(config) {
            lines.note(&format!("{NOT_ON_THE_WIRE}: {reason}"));
            return false;
        }
    }
    if Pins::are_possible() {
        lines.fine(
            "the BPF file system is at /sys/fs/bpf: connections on the wire go on when setu is killed, and a successor takes \
             them over",
        );
        // Root asks for a service that is another user's.
        let is_root = rustix::process::geteuid().is_root();
        if let Some(refusal) = instance(config).ok().and_then(|instance| Pins::hindrance(&instance)) {
            if by_name && !is_root {
                lines.bad(&refusal)
            } else {
                lines.note(&refusal)
            }
            if !is_root {
                hindrance.get_or_insert(refusal);
            }
        }
    } else {
        lines.note(
            "there is no BPF file system at /sys/fs/bpf: connections on the wire end with setu; mount -t bpf bpf /sys/fs/bpf",
        );
    }
    // With "auto" it rules the wire out.
    if let Ok(Some(what)) = others_with_ports(config) {
        lines.note(&what);
    }
    let left = pinned().map_or(0, |all| all.iter().filter(|pins| !pins.is_held()).count());
    if left > 0 {
        lines.note(&format!(
            "no keeper runs for {left} of the folders that `setu wire show` lists: a start takes over those of its own state \
             directory and network; `setu wire clear` takes the others away"
        ));
    }
    let (most, wanted) = (u64::from(room), config.wire.max_flows);
    let whose = if room == wanted.get() { "wire.max_flows" } else { "the thirty-second part of the memory" };
    lines.fine(&format!(
        "room for {most} connections on the wire ({whose}): {} MiB of the kernel's memory from the start, {BYTES_ON_WIRE} bytes \
         for each, and what the kernel adds to them",
        (most * BYTES_ON_WIRE).div_ceil(1 << 20)
    ));
    let mut no_device = None;
    match Network::look_for_devices() {
        Ok(devices) if devices.is_empty() => {
            no_device = Some("it has no device".to_owned());
            lines.bad(
                "the wire has no device here: there is none that has Ethernet headers, is up, and is no port of a bridge or \
                 bond",
            );
        }
        Ok(devices) => {
            let names: Vec<_> = devices.into_iter().map(|device| device.name).collect();
            lines.fine(&format!("devices that the wire attaches to: {}", names.join(", ")));
        }
        Err(error) => lines.note(&format!("which devices the wire attaches to cannot be seen: {error}")),
    }
    // What it says is the reason of the line after it, if one is needed.
    match hindrance.or(test(lines, by_name)).or(no_device) {
        None => lines.fine(
            "path: wire, packets are translated in the kernel, for connections that last. Whether a route, an MTU or a \
             firewall keeps connections off the wire shows as they come: the reasons are on the status page",
        ),
        Some(reason) if by_name => lines
            .bad(&format!("path: relay.path = \"wire\" is not available: {reason}; set it to \"auto\"")),
        Some(reason) => {
            lines.note(&format!("{NOT_ON_THE_WIRE}: {reason}"));
            return false;
        }
    }
    true
}

/// Tries the wire, and returns what it failed by.
fn test(lines: &mut Lines, by_name: bool) -> Option<String> {
    let Probed { checks, skipped } = probe();
    let mut failure = None;
    for check in checks {
        match check.result {
            Ok(()) => lines.fine(&format!("self-test: {}", check.name)),
            Err(error) => {
                let text = format!("self-test failed: {}: {error}", check.name);
                if by_name {
                    lines.bad(&text)
                } else {
                    lines.note(&text)
                }
                failure.get_or_insert(error);
            }
        }
    }
    if let Some(reason) = skipped {
        lines.note(&format!("self-test of the wire, or a part of it, was skipped: {reason}"));
    }
    failure
}

/// How many connections there are ports of the wire's for, and whether the kernel leaves these to setu.
pub(super) fn ports(lines: &mut Lines, config: &Config, known: Option<&Ports>) {
    let Wire { ports: range, room, .. } = &config.wire;
    let (first, last) = (range.start(), range.end());
    let each = ports::used(config).map(|upstream| {
        let flows = ports::pairs(upstream).count() as u64 * range.len() as u64;
        format!("{} to upstream \"{}\"", flows.min((*room).into()), upstream.name)
    });
    lines.fine(&format!(
        "wire.ports: {} ({first} to {last}) for each server and local address, so many connections on the wire: {}, and \
         {room} in all",
        range.len(),
        each.collect::<Vec<_>>().join(", ")
    ));
    let name = "net.ipv4.ip_local_reserved_ports";
    let is_chosen = known.is_none_or(|known| {
        let chosen = &known.range;
        chosen.start().max(first) <= chosen.end().min(last)
    });
    match Reserved::read().map(|reserved| (reserved.has(range), reserved.with(range))) {
        Ok((true, _)) => lines.fine(&format!("{name} has all of wire.ports: the system gives them to nobody else")),
        Ok((false, _)) if Reserved::may_be_written() => {
            lines.fine(&format!("{name} gets wire.ports while setu runs, so that the system gives them to nobody else"))
        }
        Ok((false, all)) if is_chosen => lines.note(&format!(
            "{name} has not all of wire.ports, and setu may not write it: the system may give a port to others that a \
             connection on the wire has, and theirs fails; sysctl {name}={all}"
        )),
        Ok((false, _)) => lines.fine(&format!(
            "{name} has not all of wire.ports, and setu may not write it; but these are none that the system chooses \
             (net.ipv4.ip_local_port_range)"
        )),
        Err(error) => lines.note(&format!("{name} cannot be read: {error}")),
    }
}

/// Whether the table of connections that firewalls keep has room for setu's, two for each.
pub(super) fn tracked(lines: &mut Lines) {
    let read = |name: &str| {
        let text = fs::read_to_string(format!("/proc/sys/net/netfilter/nf_conntrack_{name}")).ok()?;
        text.trim().parse::<u64>().ok()
    };
    // Other network namespaces than the first have the limit of that.
    let (Some(count), Some(max)) = (read("count"), read("max")) else {
        return lines.fine("connections are not tracked here (nf_conntrack)");
    };
    let text = format!("{count} of {max} connections are tracked (net.netfilter.nf_conntrack_max)");
    if count >= max / 4 * 3 {
        lines.note(&format!("{text}: the system refuses new ones when the table is full; raise it"));
    } else {
        lines.fine(&text);
    }
}
