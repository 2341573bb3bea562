//! What a connection costs this machine, and so how many there may be. Nothing else reckons with that.
//!
//! Of the memory
//! - a half is for connections at what each may hold before it is accounted: [`RESTING`], and [`OPENING`] while it is in
//!   inspection or handshake;
//! - a quarter is for what flows in userspace hold besides, which are accounted (`relay/holdings.rs`); a part of that is
//!   left for what comes in while the first of them go;
//! - a sixteenth is for what is on its way in the kernel path;
//! - a thirty-second at most is for the wire's maps, where nobody asks for the wire by name;
//! - the rest is for setu itself, its maps, and what else runs beside it.

use std::{io, num::NonZero};

use proxy_common::wire::layout::{Conn, Names, Place};

use super::ports::{self, Ports};
use crate::{
    config::{Config, PathChoice},
    front::limits::Room,
    relay::holdings,
    sys,
};

/// Descriptors that setu needs besides those of connections and listeners.
const SPARE_DESCRIPTORS: u64 = 64;
/// Flows in the kernel at once, whatever the machine has: 384 MiB of maps.
const FLOWS_MAX: u32 = 1 << 20;
/// Of the memory, one part in so many may be on its way in the kernel path; at most [`BUDGET_MAX`].
const BUDGET_PART: u64 = 16;
const BUDGET_MAX: u64 = 256 << 20;

/// Of the memory, one part in so many is for connections.
const CONNECTIONS_PART: u64 = 2;
/// What a connection that is relayed may hold before it is accounted, bytes: two sockets, 9 KiB of the kernel; its task
/// and its TLS session, 10 KiB; and 16 KiB each way in the buffers, with the kernel's overhead.
const RESTING: u64 = 64 << 10;
/// What one may hold in inspection or handshake: a receive buffer of the size that the kernel gives one
/// (`net.ipv4.tcp_rmem`, 128 KiB), or a hello of 64 KiB that setu has read, and its TLS session.
const OPENING: u64 = 192 << 10;
/// Unless `limits.pending` says otherwise, one in so many is in inspection or handshake (`front/limits`).
const OPENING_PART: u64 = 4;
/// Of the memory, one part in so many may be held by flows in userspace, and before that one begins to go that stalls.
const HELD_PART: u64 = 4;
const SOFT_PART: u64 = 6;

/// Bytes that the wire's maps have for each connection: its entry, and its two names with their place.
pub(crate) const BYTES_ON_WIRE: u64 =
    (size_of::<Conn>() + 2 * (size_of::<Names>() + size_of::<Place>())) as u64;
/// Of the memory, one part in so many may be the wire's maps with `relay.path = "auto"`.
const WIRE_PART: u64 = 32;

/// Descriptors of a connection: its sockets.
const CONNECTION_FILES: u64 = 2;
/// Descriptors of a pipe: its ends.
const PIPE_FILES: u64 = 2;
/// One in so many descriptors may go to pipes, which bulk takes for the time in which it flows.
const PIPES_SHARE: u64 = 16;
/// More pipes than these are not needed: they are what a user may have without privileges (`pipe-user-pages-soft`,
/// proc_sys_fs(5), at 16 pages for each), some left for others.
const MAX_PIPES: u64 = 960;

/// What there is for connections.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    /// The limit of open files.
    pub(crate) files: u64,
    /// Memory, bytes: the machine's, or what its control groups leave of it.
    pub(crate) memory: u64,
    /// Local ports; `None` where that cannot be told.
    pub(crate) ports: Option<Ports>,
}

/// How many connections each of these allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Allowed {
    pub(crate) by_files: u64,
    pub(crate) by_memory: u64,
    /// `None`: there is no telling.
    pub(crate) by_ports: Option<u64>,
    /// Connections on the wire: they have neither files nor memory of those.
    pub(crate) on_wire: u64,
}

/// What connections need, and the machine may have too little of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    Files,
    Memory,
    Ports,
}

impl Need {
    /// In the operator's words.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Files => "open files",
            Self::Memory => "memory",
            Self::Ports => "source ports",
        }
    }

    /// Where more of it comes from.
    pub(crate) fn remedy(self) -> &'static str {
        match self {
            Self::Files => "raise the files with ulimit -Hn or LimitNOFILE=",
            Self::Memory => {
                "add memory, or raise memory.max and memory.high of the control group, if that is less than the machine \
                 has"
            }
            Self::Ports => {
                "widen net.ipv4.ip_local_port_range, or add endpoints or sources to [upstream.NAME]"
            }
        }
    }
}

impl Machine {
    /// Raises the limit of open files to what is allowed, and looks at this machine.
    ///
    /// # Errors
    /// The limit of open files cannot be read.
    pub(crate) fn look() -> io::Result<Self> {
        let files = sys::raise_file_limit()?;
        Ok(Self { files, memory: sys::available_memory(), ports: Ports::read() })
    }

    /// Looks anew at what others may have changed, and a setu without privileges may see.
    pub(crate) fn look_again(&mut self) {
        self.memory = sys::available_memory();
    }

    /// How many connections there may be beside so many listening sockets, of which workers have duplicates.
    pub(crate) fn allows(&self, config: &Config, listening: usize) -> Allowed {
        Allowed {
            by_files: by_files(self.files, SPARE_DESCRIPTORS + 2 * listening as u64),
            by_memory: by_memory(self.memory, config),
            by_ports: self.ports.as_ref().and_then(|ports| ports.of_all(config)),
            on_wire: ports::on_wire(config),
        }
    }

    /// For how many connections the wire is to have room, if it can be had: the kernel takes the memory at once.
    pub(crate) fn room_on_wire(&self, config: &Config) -> NonZero<u32> {
        let wanted = config.wire.max_flows;
        let allowed = u32::try_from(self.memory / WIRE_PART / BYTES_ON_WIRE).unwrap_or(u32::MAX);
        match config.path {
            PathChoice::Auto => {
                NonZero::new(allowed).map_or(NonZero::<u32>::MIN, |allowed| wanted.min(allowed))
            }
            _ => wanted,
        }
    }

    /// How many pipes the process may have at once.
    pub(crate) fn pipes(&self) -> u32 {
        pipes(self.files)
    }

    /// What flows in userspace may hold.
    pub(crate) fn holdings(&self) -> holdings::Bounds {
        holdings::Bounds { soft: self.memory / SOFT_PART, hard: self.memory / HELD_PART }
    }

    /// How many flows the kernel path gets room for: as many as there may be connections. The room is memory that the
    /// kernel takes at once, whether or not there are flows.
    pub(crate) fn flows(&self, config: &Config) -> u32 {
        let room = self.allows(config, 0).room(config);
        room.connections.min(room.sockets).min(FLOWS_MAX)
    }

    /// Bytes that all flows together may have on their way in the kernel path.
    pub(crate) fn budget(&self, config: &Config) -> u64 {
        let part = (self.memory / BUDGET_PART).min(BUDGET_MAX);
        config.limits.kernel_bytes.map_or(part, NonZero::get)
    }
}

impl Allowed {
    /// How many there may be: what is configured, as far as files and memory allow it. By itself setu has no more than it
    /// has ports for; an operator may know of more servers behind a name.
    pub(crate) fn room(&self, config: &Config) -> Room {
        let sockets = self.by_files.min(self.by_memory);
        let wanted = config.limits.connections.map(|wanted| u64::from(wanted.get()));
        let connections = (sockets + self.on_wire).min(wanted.or(self.by_ports).unwrap_or(u64::MAX));
        let number = |count: u64| u32::try_from(count).unwrap_or(u32::MAX).max(1);
        Room { connections: number(connections), sockets: number(sockets) }
    }

    /// What there is too little of for `limits.connections`, and for how many there is enough.
    pub(crate) fn lacks(&self, config: &Config) -> impl Iterator<Item = (Need, u64)> {
        let wanted = config.limits.connections.map_or(0, |wanted| wanted.get().into());
        let files = (Need::Files, self.by_files + self.on_wire);
        let memory = (Need::Memory, self.by_memory + self.on_wire);
        let all = [Some(files), Some(memory), self.by_ports.map(|ports| (Need::Ports, ports))];
        all.into_iter().flatten().filter(move |(_, enough)| *enough < wanted)
    }
}

/// How many connections files allow, with `spare` descriptors and those of [`pipes`] aside.
fn by_files(files: u64, spare: u64) -> u64 {
    let for_pipes = u64::from(pipes(files)) * PIPE_FILES;
    files.saturating_sub(spare + for_pipes) / CONNECTION_FILES
}

fn by_memory(memory: u64, config: &Config) -> u64 {
    let (part, more) = (memory / CONNECTIONS_PART, OPENING - RESTING);
    match config.limits.pending {
        Some(pending) => part.saturating_sub(u64::from(pending.get()) * more) / RESTING,
        None => part / (RESTING + more / OPENING_PART),
    }
}

fn pipes(files: u64) -> u32 {
    u32::try_from((files / PIPES_SHARE / PIPE_FILES).min(MAX_PIPES)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;
    const UNIT: u64 = 1 << 20;

    fn machine(files: u64, memory: u64) -> Machine {
        Machine { files, memory, ports: None }
    }

    fn config(text: &str) -> Config {
        Config::parse("test", text).unwrap()
    }

    #[test]
    fn room_for_flows_follows_files_memory_and_the_configured_limit() {
        let (any, few) = (config(""), config("[limits]\nconnections = 5000"));
        let by_files = by_files(1_064, SPARE_DESCRIPTORS) as u32;
        assert_eq!(machine(1_064, 64 * GIB).flows(&any), by_files);
        // What the unit sets says nothing of the machine.
        let by_memory = [GIB / 2, GIB, 4 * GIB].map(|memory| machine(UNIT, memory).flows(&any));
        assert_eq!(by_memory, [2_730, 5_461, 21_845]);
        assert!(by_memory[2] < machine(UNIT, 1 << 50).flows(&any));
        assert_eq!(machine(u64::MAX, 1 << 50).flows(&any), FLOWS_MAX);
        assert_eq!(machine(UNIT, 4 * GIB).flows(&few), 5_000);
        assert_eq!(machine(1_064, 4 * GIB).flows(&few), by_files);
        assert_eq!(machine(0, 0).flows(&few), 1);
    }

    #[test]
    fn what_is_possible_follows_files_memory_and_ports() {
        let any = config("");
        assert_eq!(pipes(20_000), 625);
        assert_eq!(machine(20_000, 1 << 40).allows(&any, 0).by_files, 9_968 - 625);
        assert_eq!((by_files(10, 64), pipes(10), pipes(1 << 30)), (0, 0, 960));
        let ports = Ports { range: 1000..=1089, reserved: Default::default(), reuse: 2 };
        let machine = Machine { ports: Some(ports), ..machine(UNIT, GIB) };
        assert_eq!(machine.allows(&any, 0).by_ports, Some(270));
        let connections = |config: &Config| machine.allows(config, 0).room(config).connections;
        assert_eq!(connections(&any), 270);
        // The operator knows better.
        assert_eq!(connections(&config("[limits]\nconnections = 1000")), 1_000);
        assert_eq!(connections(&config("[limits]\nconnections = 9000")), 5_461);
        // But is told what there is too little of.
        let lacks = |config: &Config| machine.allows(config, 0).lacks(config).collect::<Vec<_>>();
        assert_eq!(lacks(&any), []);
        assert_eq!(lacks(&config("[limits]\nconnections = 270")), []);
        assert_eq!(lacks(&config("[limits]\nconnections = 1000")), [(Need::Ports, 270)]);
        let all = [(Need::Files, 523_296), (Need::Memory, 5_461), (Need::Ports, 270)];
        assert_eq!(lacks(&config("[limits]\nconnections = 600000")), all);
    }

    #[test]
    fn connections_on_the_wire_need_neither_files_nor_memory() {
        let room = |room: u32, more: &str| {
            let mut config = config(&format!("[limits]\n{more}"));
            config.wire.room = room;
            let Room { connections, sockets } = machine(20_000, GIB).allows(&config, 0).room(&config);
            (connections, sockets)
        };
        assert_eq!(room(0, ""), (5_461, 5_461));
        assert_eq!(room(60_000, ""), (65_461, 5_461));
        assert_eq!(room(60_000, "connections = 9000"), (9_000, 5_461));
        // The maps of the kernel path are for those that have sockets.
        let mut wire = config("");
        wire.wire.room = 60_000;
        assert_eq!(machine(20_000, GIB).flows(&wire), 5_461);
        let mut more = config("[limits]\nconnections = 600000");
        more.wire.room = 65_536;
        let lacks: Vec<_> = machine(20_000, GIB).allows(&more, 0).lacks(&more).collect();
        assert_eq!(lacks, [(Need::Files, 9_343 + 65_536), (Need::Memory, 5_461 + 65_536)]);
    }

    #[test]
    fn the_wires_room_is_a_small_part_of_the_memory_unless_it_was_asked_for() {
        let room = |memory: u64, text: &str| machine(UNIT, memory).room_on_wire(&config(text)).get();
        assert_eq!(room(4 * GIB, ""), 65_536);
        assert_eq!(u64::from(room(256 << 20, "")), (8 << 20) / BYTES_ON_WIRE);
        assert_eq!(room(256 << 20, "[wire]\nmax_flows = 7"), 7);
        assert_eq!(room(256 << 20, "[relay]\npath = \"wire\""), 65_536);
        assert_eq!(room(0, ""), 1);
    }

    #[test]
    fn all_parts_of_the_memory_are_no_more_than_it() {
        for (memory, text) in
            [(256 << 20, ""), (GIB, "[limits]\npending = 1000"), (GIB, "[limits]\npending = 9000")]
        {
            let (config, machine) = (config(text), machine(UNIT, memory));
            let all = by_memory(memory, &config);
            let opening =
                config.limits.pending.map_or(all / OPENING_PART, |pending| pending.get().into()).min(all);
            let reckoned = (all - opening) * RESTING + opening * OPENING;
            let held = reckoned + machine.holdings().hard + machine.budget(&config);
            assert!(held <= memory / 16 * 13, "{held} of {memory}: {text}");
            assert!(machine.holdings().soft < machine.holdings().hard);
        }
    }
}
