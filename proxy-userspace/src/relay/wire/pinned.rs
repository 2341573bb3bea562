//! What is pinned of the wire, as somebody sees it who is no keeper.

use std::{
    fs, io,
    ops::RangeInclusive,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            fs::MetadataExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
    path::PathBuf,
    process,
};

use proxy_common::wire::layout::ACTIVE;

use super::{
    keeper::notes::{self, State},
    loader::{LoadError, Pins},
    network::Network,
};
use crate::config::Config;
use sha2::{Digest as _, Sha256};

/// An instance's pins.
#[derive(Debug)]
pub(crate) struct Pinned(Pins);

/// How many flows there are, of which nothing else is told: their names are clients' addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Flows {
    /// On the wire.
    pub(crate) on_wire: u32,
    /// Over, and translated on for what comes late.
    pub(crate) over: u32,
    /// So many there can be.
    pub(crate) most: u32,
}

/// What tells this setu's pins from those of another on the same machine: its network, and the folder of its state.
///
/// # Errors
/// There is no /proc.
pub(crate) fn instance(config: &Config) -> io::Result<String> {
    let network = fs::metadata("/proc/self/ns/net")?.ino();
    let folder =
        config.tls.state_dir.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    // Of two folders with the same name each has its own.
    let digest = Sha256::digest(config.tls.state_dir.as_os_str().as_encoded_bytes());
    let mark: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("{}-{mark}-{network}", folder.replace(|c| !is_plain(c), "_")))
}

/// Tells other setus of this network, as long as it lives, which ports a keeper has: where there are no pins nothing else
/// does. It is a name among the abstract sockets, of which each network has its own (unix(7)).
#[derive(Debug)]
#[expect(dead_code, reason = "held for its name")]
pub(crate) struct Notice(UnixDatagram);

/// What the names of all begin with; the instance, the ports and the process follow.
const NOTICE: &str = "setu-wire";

impl Notice {
    /// # Errors
    /// The kernel's.
    pub(crate) fn post(instance: &str, ports: &RangeInclusive<u16>) -> io::Result<Self> {
        let name = format!("{NOTICE}/{instance}/{}-{}/{}", ports.start(), ports.end(), process::id());
        Ok(Self(UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name)?)?))
    }

    /// Whether another instance has some of these ports.
    fn is_of_another(instance: &str, ports: &RangeInclusive<u16>) -> bool {
        let all = fs::read_to_string("/proc/self/net/unix").unwrap_or_default();
        all.lines().any(|line| is_of_another(line, instance, ports))
    }
}

fn is_of_another(line: &str, instance: &str, ports: &RangeInclusive<u16>) -> bool {
    let theirs = || {
        let name = line.rsplit_once('@')?.1.strip_prefix(NOTICE)?.strip_prefix('/')?;
        let (other, rest) = name.split_once('/')?;
        let (first, last) = rest.split_once('/')?.0.split_once('-')?;
        (other != instance).then_some(first.parse().ok()?..=last.parse().ok()?)
    };
    theirs().is_some_and(|theirs: RangeInclusive<u16>| {
        theirs.start() <= ports.end() && ports.start() <= theirs.end()
    })
}

/// What is to be said of others' connections in this network that have some of the same ports, if there are any.
///
/// # Errors
/// The pins cannot be read.
pub(crate) fn others_with_ports(config: &Config) -> Result<Option<String>, LoadError> {
    let Ok(instance) = instance(config) else { return Ok(None) };
    let Some(pins) = Pins::other_with_ports(&instance, &config.wire.ports)? else {
        return Ok(Notice::is_of_another(&instance, &config.wire.ports).then(|| {
            "another setu runs in this network and has some of wire.ports: neither knows of the other's connections, and new \
             ones may fail; give each ports of its own"
                .into()
        }));
    };
    let path = pins.path().display();
    Ok(Some(if pins.is_held() {
        format!(
            "{path} is another setu's that runs in this network and has some of wire.ports: neither knows of the other's \
             connections, and new ones may fail; give each ports of its own"
        )
    } else {
        format!(
            "{path} has connections on the wire that no setu keeps, from some of wire.ports: new ones may fail; `setu wire clear` \
             ends them"
        )
    }))
}

/// Whether the wire can be had beside what else there is: what nobody asked for by name is in nobody's way.
///
/// # Errors
/// Why not, in the operator's words.
pub(crate) fn is_free(config: &Config) -> Result<(), String> {
    let (first, last) = (config.wire.ports.start(), config.wire.ports.end());
    if let Some((whose, bind)) = config.wire_conflict() {
        return Err(format!("wire.ports, {first}-{last}, has the port of {whose}, {bind}"));
    }
    if Network::look_for_devices().is_ok_and(|devices| devices.is_empty()) {
        return Err(
            "there is no device that has Ethernet headers, is up, and is no port of a bridge or bond".into(),
        );
    }
    match others_with_ports(config) {
        Ok(Some(what)) => Err(what),
        Ok(None) | Err(_) => Ok(()),
    }
}

/// Those of all instances.
///
/// # Errors
/// They cannot be read.
pub(crate) fn pinned() -> Result<Vec<Pinned>, LoadError> {
    Ok(Pins::all()?.into_iter().map(Pinned).collect())
}

impl Pinned {
    /// Their folder.
    pub(crate) fn path(&self) -> PathBuf {
        self.0.path().to_owned()
    }

    /// Whether a keeper lives whose flows these are.
    pub(crate) fn is_held(&self) -> bool {
        self.0.is_held()
    }

    /// The devices, by index, to which the program is attached.
    pub(crate) fn devices(&self) -> Vec<u32> {
        let mut devices = self.0.links();
        devices.sort_unstable();
        devices
    }

    /// How many flows there are.
    ///
    /// # Errors
    /// They cannot be read.
    pub(crate) fn flows(&self) -> Result<Flows, LoadError> {
        let (conns, most) = self.0.conns()?;
        let mut flows = Flows { on_wire: 0, over: 0, most };
        for conn in (0..most).map(|index| conns.conn(index)).filter(|conn| conn.gate() & ACTIVE != 0) {
            match notes::state(conn) {
                State::Hand | State::Spliced => flows.on_wire += 1,
                State::Over(_) => flows.over += 1,
                // A free place keeps what was in it.
                State::Free | State::Offered => {}
            }
        }
        Ok(flows)
    }

    /// Takes them away, and with them the program and every flow: what an end sends next is answered by a reset.
    /// Returns whether it did: not while a keeper lives.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn clear(&self) -> io::Result<bool> {
        // Held until the end, so that no keeper begins with what goes away.
        if !self.0.claim() {
            return Ok(false);
        }
        self.0.clear().map(|()| true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_has_is_seen_and_what_is_ones_own_is_not() {
        let ports = 1..=7;
        let notice = Notice::post("test-of-notices-one", &ports).unwrap();
        assert!(Notice::is_of_another("test-of-notices-two", &(7..=9)));
        assert!(!Notice::is_of_another("test-of-notices-two", &(8..=9)));
        assert!(!Notice::is_of_another("test-of-notices-one", &ports));
        drop(notice);
        assert!(!Notice::is_of_another("test-of-notices-two", &ports));
        for nonsense in [
            "",
            "@",
            "@setu-wire",
            "@setu-wire/a",
            "@setu-wire/a/1-",
            "@setu-wire/a/x-7/1",
            "@setu-wire/a/1-7",
        ] {
            assert!(!is_of_another(nonsense, "b", &ports), "{nonsense}");
        }
        assert!(is_of_another("0000: 00000002 0 0002 01 1 @setu-wire/a/1-7/12", "b", &ports));
    }
}
