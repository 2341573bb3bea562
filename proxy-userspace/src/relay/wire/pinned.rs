//! What is pinned of the wire, as somebody sees it who is no keeper.

use std::{fs, io, os::unix::fs::MetadataExt as _, path::PathBuf};

use proxy_common::wire::layout::ACTIVE;

use super::{
    keeper::notes::{self, State},
    loader::{LoadError, Pins},
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

/// What is to be said of others' connections in this network that have some of the same ports, if there are any.
///
/// # Errors
/// The pins cannot be read.
pub(crate) fn others_with_ports(config: &Config) -> Result<Option<String>, LoadError> {
    let Ok(instance) = instance(config) else { return Ok(None) };
    let Some(pins) = Pins::other_with_ports(&instance, &config.wire.ports)? else { return Ok(None) };
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
