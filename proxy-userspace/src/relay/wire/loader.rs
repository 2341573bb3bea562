//! Loads the wire's program, owns its maps, and attaches it to devices.
//!
//! Flows on the wire outlive setu: maps and links are pinned below a folder of the BPF file system, if there is one, and who
//! comes next goes on with them. The folder's name has the layout's version, so that a setu that cannot read the flows of
//! another leaves them alone.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    ops::RangeInclusive,
    os::{
        fd::{AsFd as _, BorrowedFd},
        unix::fs::{MetadataExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{HashMap, Map, MapData, MapError, RingBuf},
    programs::{
        LinkOrder, ProgramError, SchedClassifier, TcAttachType,
        links::{FdLink, LinkError, PinnedLink},
        tc::{NlOptions, SchedClassifierLink, TcAttachOptions},
    },
};
use proxy_common::{
    names::wire as names,
    wire::layout::{Conn, Event, Names, Noted, Place, VERSION},
};
use rustix::{
    fs::{CWD, FlockOperation, Mode, OFlags, flock, mkdirat, openat},
    io::Errno,
};
use thiserror::Error;

use crate::{relay::refusal::refusal, sys::Shared};

/// The program that translates packets, as built by `cargo xtask ebpf`.
static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("CARGO_MANIFEST_DIR"), "/../proxy-ebpf/object/wire.bpf.o"));

/// Where the BPF file system is by convention.
const BPF_FS: &str = "/sys/fs/bpf";
/// The folder there of all instances' folders.
const ALL: &str = "setu";
/// What a pinned link's file name begins with; the index of its device follows.
const LINK: &str = "link-";
/// What the name of a folder beside the pins begins with, which says from what port to what port theirs are.
const PORTS: &str = "ports-";

/// Why the wire cannot be had.
#[derive(Debug, Error)]
pub(crate) enum LoadError {
    /// The object was refused.
    #[error("the kernel refused the wire's maps: {0}; CAP_BPF and CAP_NET_ADMIN are needed")]
    Object(#[from] EbpfError),
    /// The program was refused.
    #[error("{}", refusal("the wire's program", .0))]
    Program(#[from] ProgramError),
    /// A map is not what it should be.
    #[error("map: {0}")]
    Map(#[from] MapError),
    /// The object lacks a part; a defect of the build.
    #[error("the wire's object has no {0}")]
    Missing(&'static str),
    /// The shared memory could not be mapped.
    #[error("mapping of shared memory: {0}")]
    Shared(#[source] io::Error),
    /// Another setu's flows.
    #[error("they are of another version of setu, which alone can read them")]
    OtherVersion,
    /// The folder of pins.
    #[error("{path}: {error}", path = path.display())]
    Pins {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        error: io::Error,
    },
}

/// Where the pins are.
#[derive(Debug)]
pub(crate) struct Pins {
    path: PathBuf,
    /// The folder itself, to be locked.
    folder: File,
}

impl Pins {
    /// The folder of this instance, made if it is not there. `None`: there is no BPF file system.
    ///
    /// # Errors
    /// It cannot be made.
    pub(crate) fn of(instance: &str) -> Result<Option<Self>, LoadError> {
        if !Self::are_possible() {
            return Ok(None);
        }
        let all = Path::new(BPF_FS).join(ALL);
        let path = all.join(format!("{instance}-v{VERSION}"));
        let folder = own_folder(None, &all, true).and_then(|all| own_folder(Some(&all), &path, false));
        match folder {
            Ok(folder) => Ok(Some(Self { path, folder })),
            Err(error) => Err(LoadError::Pins { path, error }),
        }
    }

    /// Why this user's start could not have the folder of this instance, if it could not. Nothing is made.
    pub(crate) fn hindrance(instance: &str) -> Option<String> {
        let all = Path::new(BPF_FS).join(ALL);
        let path = all.join(format!("{instance}-v{VERSION}"));
        let own = rustix::process::geteuid().as_raw();
        [(all, true), (path, false)].into_iter().find_map(|(path, is_shared)| {
            let meta = fs::symlink_metadata(&path).ok()?;
            if meta.is_dir() {
                refuse(&path, meta.uid(), own, is_shared)
            } else {
                Some(format!("{} is no folder", path.display()))
            }
        })
    }

    /// Takes the folder away again, if there is nothing in it.
    pub(crate) fn give_up(path: &Path) {
        // An error means that there is, or that others' instances are beside it.
        let _ = fs::remove_dir(path).and_then(|()| fs::remove_dir(path.parent().unwrap_or(path)));
    }

    /// Other pins in the same network whose flows have some of these ports. `instance`: this one, the name of whose network is its
    /// end.
    ///
    /// # Errors
    /// The folders cannot be read.
    pub(super) fn other_with_ports(
        instance: &str,
        ports: &RangeInclusive<u16>,
    ) -> Result<Option<Self>, LoadError> {
        let network = instance.rsplit('-').next().unwrap_or_default();
        let is_other = |pins: &Self| {
            let name = pins.path.file_name().unwrap_or_default().to_string_lossy();
            let (of, _) = name.rsplit_once("-v").unwrap_or_default();
            name != format!("{instance}-v{VERSION}") && of.rsplit('-').next() == Some(network)
        };
        let overlaps = |pins: &Self| {
            pins.ports().is_some_and(|theirs| theirs.start() <= ports.end() && ports.start() <= theirs.end())
        };
        Ok(Self::all()?.into_iter().find(|pins| is_other(pins) && overlaps(pins)))
    }

    /// From what port to what port its keeper's are.
    fn ports(&self) -> Option<RangeInclusive<u16>> {
        let entries = fs::read_dir(&self.path).ok()?.flatten();
        let range = |entry: fs::DirEntry| {
            let name = entry.file_name();
            let (first, last) = name.to_str()?.strip_prefix(PORTS)?.split_once('-')?;
            Some(first.parse().ok()?..=last.parse().ok()?)
        };
        entries.filter_map(range).next()
    }

    fn note_ports(&self, ports: &RangeInclusive<u16>) {
        let folder =
            |ports: RangeInclusive<u16>| self.path.join(format!("{PORTS}{}-{}", ports.start(), ports.end()));
        // Errors mean that nobody is warned.
        while let Some(before) = self.ports().filter(|before| before != ports) {
            if fs::remove_dir(folder(before)).is_err() {
                return;
            }
        }
        let _ = fs::create_dir(folder(ports.clone()));
    }

    /// Whether there is a BPF file system.
    pub(crate) fn are_possible() -> bool {
        /// `BPF_FS_MAGIC` (include/uapi/linux/magic.h).
        const BPF_FS_MAGIC: u64 = 0xcafe_4a11;
        rustix::fs::statfs(BPF_FS).is_ok_and(|fs| fs.f_type as u64 == BPF_FS_MAGIC)
    }

    /// The folders of all instances.
    ///
    /// # Errors
    /// They cannot be read.
    pub(crate) fn all() -> Result<Vec<Self>, LoadError> {
        let all = Path::new(BPF_FS).join(ALL);
        let error = |path: &Path, error| LoadError::Pins { path: path.to_owned(), error };
        let entries = match fs::read_dir(&all) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(|reason| error(&all, reason))?,
        };
        let mut paths = entries
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<io::Result<Vec<_>>>()
            .map_err(|reason| error(&all, reason))?;
        paths.sort();
        let open = |path: PathBuf| match File::open(&path) {
            Ok(folder) => Ok(Self { path, folder }),
            Err(reason) => Err(error(&path, reason)),
        };
        paths.into_iter().map(open).collect()
    }

    /// The folder.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the flows this process's own, unless they are another's, which lives: two would not know of each other's.
    pub(super) fn claim(&self) -> bool {
        flock(&self.folder, FlockOperation::NonBlockingLockExclusive).is_ok()
    }

    fn map(&self, name: &str) -> PathBuf {
        self.path.join(name.to_lowercase())
    }

    fn link(&self, device: u32) -> PathBuf {
        self.path.join(format!("{LINK}{device}"))
    }

    fn wanted(&self) -> PathBuf {
        self.path.join("wanted")
    }

    /// Whether a keeper lives whose flows these are.
    pub(super) fn is_held(&self) -> bool {
        // For so short a time that a keeper which tries to have it now has it at its next try.
        let is_held = flock(&self.folder, FlockOperation::NonBlockingLockShared).is_err();
        // An error means that there was nothing to unlock.
        let _ = flock(&self.folder, FlockOperation::Unlock);
        is_held
    }

    /// The flows that are pinned, if their layout is this setu's.
    ///
    /// # Errors
    /// There are none, or the kernel refuses them.
    pub(super) fn conns(&self) -> Result<(Shared<Conn>, u32), LoadError> {
        let is_known = self.path.to_string_lossy().ends_with(&format!("-v{VERSION}"));
        if !is_known {
            return Err(LoadError::OtherVersion);
        }
        map_shared(Map::Array(MapData::from_pin(self.map(names::CONNS))?), names::CONNS)
    }

    /// The devices of which a link is pinned.
    pub(super) fn links(&self) -> Vec<u32> {
        let entries = fs::read_dir(&self.path).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.strip_prefix(LINK)?.parse().ok()).collect()
    }

    /// Takes every pin away: once nothing has them open, the program and its maps are gone.
    pub(crate) fn clear(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }?;
        // Others' instances may be beside it.
        let _ = self.path.parent().map(fs::remove_dir);
        Ok(())
    }
}

/// Opens a folder, made if it is not there: `path`, whose last part is in `within`. Whoever may make files beside it, as in a
/// file system that was mounted for all, may have put something else there before.
fn own_folder(within: Option<&File>, path: &Path, is_shared: bool) -> io::Result<File> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let (at, name) = match within {
        Some(within) => (within.as_fd(), Path::new(path.file_name().unwrap_or_default())),
        None => (CWD, path),
    };
    match mkdirat(at, name, Mode::RWXU) {
        Err(Errno::EXIST) | Ok(()) => {}
        Err(error) => return Err(error.into()),
    }
    let folder = File::from(openat(at, name, flags, Mode::empty())?);
    let meta = folder.metadata()?;
    let (own, uid) = (rustix::process::geteuid().as_raw(), meta.uid());
    if let Some(refusal) = refuse(path, uid, own, is_shared) {
        return Err(io::Error::other(refusal));
    }
    if uid == own {
        folder.set_permissions(fs::Permissions::from_mode(0o700))?;
    }
    Ok(folder)
}

/// Why a folder of this user is not to be used by another. Root's are as good as one's own where others' instances are beside it.
fn refuse(path: &Path, uid: u32, own: u32, is_shared: bool) -> Option<String> {
    if uid == own || is_shared && uid == 0 {
        return None;
    }
    let remedy =
        if is_shared { "`rmdir` it, once it is empty" } else { "`setu wire clear`, as root, takes it away" };
    Some(format!("{} belongs to user {uid}; {remedy}", path.display()))
}

/// The loaded program with its maps.
pub(crate) struct Program {
    flows: HashMap<MapData, Names, Place>,
    pub(super) conns: Shared<Conn>,
    noted: Shared<Noted>,
    ports: RangeInclusive<u16>,
    /// How many flows there is room for.
    pub(super) most: u32,
    events: RingBuf<MapData>,
    object: Ebpf,
    pins: Option<Pins>,
    /// Held as long as this process waits for the pins.
    wants: Option<File>,
    links: BTreeMap<u32, Attached>,
}

/// How the program is attached to a device. Dropped, it is not any more, unless it is pinned.
#[expect(dead_code, reason = "held for what dropping it does")]
enum Attached {
    Pinned(PinnedLink),
    Link(SchedClassifierLink),
}

impl Program {
    /// Loads it with room for so many flows, or with the maps that are pinned.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub(crate) fn load(most: u32, ports: RangeInclusive<u16>, pins: Option<Pins>) -> Result<Self, LoadError> {
        let count = u32::from(ports.end() - ports.start()) + 1;
        let first = u32::from(*ports.start());
        let mut loader = EbpfLoader::new();
        loader
            .override_global(names::FIRST_PORT, &first, true)
            .override_global(names::PORTS, &count, true)
            .map_max_entries(names::FLOWS, most * 2)
            .map_max_entries(names::CONNS, most)
            .map_max_entries(names::NOTED, count);
        let pinned =
            pins.as_ref().map(|pins| [names::FLOWS, names::CONNS].map(|name| (name, pins.map(name))));
        for (name, path) in pinned.iter().flatten() {
            loader.map_pin_path(name, path);
        }
        let mut object = loader.load(OBJECT)?;
        classifier(&mut object)?.load()?;
        let mut take = |name| object.take_map(name).ok_or(LoadError::Missing(name));
        let flows = HashMap::try_from(take(names::FLOWS)?)?;
        // That of a predecessor may have room for another number.
        let (conns, most) = map_shared::<Conn>(take(names::CONNS)?, names::CONNS)?;
        let (noted, _) = map_shared::<Noted>(take(names::NOTED)?, names::NOTED)?;
        let events = RingBuf::try_from(take(names::WIRE_EVENTS)?)?;
        Ok(Self {
            flows,
            conns,
            noted,
            ports,
            most,
            events,
            object,
            pins,
            wants: None,
            links: BTreeMap::new(),
        })
    }

    /// Whether the flows are this process's to change: not while a predecessor lives that has not yielded.
    pub(super) fn claim(&self) -> bool {
        self.pins.as_ref().is_none_or(Pins::claim)
    }

    /// How many flows there is room for.
    pub(crate) fn most(&self) -> u32 {
        self.most
    }

    /// Whether it is attached to any device.
    pub(super) fn is_attached(&self) -> bool {
        !self.links.is_empty()
    }

    /// Whether flows outlive this process.
    pub(super) fn is_pinned(&self) -> bool {
        self.pins.is_some()
    }

    /// Where the pins are.
    pub(super) fn folder(&self) -> String {
        self.pins.as_ref().map_or_else(String::new, |pins| pins.path.display().to_string())
    }

    /// Says beside the pins which ports are in use.
    pub(super) fn note_ports(&self) {
        if let Some(pins) = &self.pins {
            pins.note_ports(&self.ports);
        }
    }

    /// Says beside the pins, as long as this process lives, that it waits for them: a predecessor whose setu is gone ends then.
    pub(super) fn want(&mut self) {
        let Some(pins) = &self.pins else { return };
        if self.wants.is_some() {
            return;
        }
        // Errors mean that it is so already, or that there is no file system any more.
        let _ = fs::create_dir(pins.wanted());
        let folder = File::open(pins.wanted()).ok();
        self.wants = folder.filter(|folder| flock(folder, FlockOperation::NonBlockingLockShared).is_ok());
    }

    /// It waits for them no more.
    pub(super) fn want_no_more(&mut self) {
        self.wants = None;
        if let Some(pins) = &self.pins {
            // An error means that it is not there.
            let _ = fs::remove_dir(pins.wanted());
        }
    }

    /// Whether another waits for the pins.
    pub(super) fn is_wanted(&self) -> bool {
        let wanted = self.pins.as_ref().and_then(|pins| File::open(pins.wanted()).ok());
        wanted.is_some_and(|wanted| flock(&wanted, FlockOperation::NonBlockingLockExclusive).is_err())
    }

    /// Attaches it to a device, first of all that are there, unless it is; or takes over the link that is pinned.
    ///
    /// # Errors
    /// What the kernel refused.
    pub(super) fn attach(&mut self, device: u32, name: &str) -> Result<(), LoadError> {
        if self.links.contains_key(&device) {
            return Ok(());
        }
        let path = self.pins.as_ref().map(|pins| pins.link(device));
        let program = classifier(&mut self.object)?;
        if let Some(path) = &path
            && let Ok(pinned) = PinnedLink::from_pin(path)
            && let Ok(link) = SchedClassifierLink::try_from(FdLink::from(pinned))
        {
            match program.attach_to_link(link) {
                Ok(id) => {
                    // The pin stays where it is.
                    let link = Attached::Link(program.take_link(id)?);
                    self.links.insert(device, link);
                    return Ok(());
                }
                // Of a device that is gone, whose index another has now.
                Err(_) => drop(fs::remove_file(path)),
            }
        }
        let first = TcAttachOptions::TcxOrder(LinkOrder::first());
        let (id, path) = match program.attach_with_options(name, TcAttachType::Ingress, first) {
            Ok(id) => (id, path),
            // Before Linux 6.6 there are no such links: a filter stays where it is without a pin.
            Err(_) => {
                // An error means that it is there.
                let _ = aya::programs::tc::qdisc_add_clsact(name);
                let options = TcAttachOptions::Netlink(NlOptions { priority: 1, ..NlOptions::default() });
                (program.attach_with_options(name, TcAttachType::Ingress, options)?, None)
            }
        };
        let link = program.take_link(id)?;
        let attached = match path {
            None => Attached::Link(link),
            Some(path) => match FdLink::try_from(link) {
                Ok(link) => {
                    let error = |error: aya::pin::PinError| LoadError::Pins {
                        path: path.clone(),
                        error: io::Error::other(error),
                    };
                    Attached::Pinned(link.pin(&path).map_err(error)?)
                }
                Err(LinkError::InvalidLink) | Err(_) => return Err(LoadError::Missing("link")),
            },
        };
        self.links.insert(device, attached);
        Ok(())
    }

    /// Forgets devices that are gone.
    pub(super) fn retain(&mut self, is_there: impl Fn(u32) -> bool) {
        self.links.retain(|device, _| is_there(*device));
        let Some(pins) = &self.pins else { return };
        for device in pins.links().into_iter().filter(|device| !is_there(*device)) {
            let _ = fs::remove_file(pins.link(device));
        }
    }

    /// Lets the program see packets with these names as those of a place.
    ///
    /// # Errors
    /// The names are taken, or the map is full.
    pub(super) fn insert(&mut self, names: &Names, place: Place) -> Result<(), MapError> {
        /// Of `bpf_map_update_elem`: only if it is not there.
        const NO_EXIST: u64 = 1;
        self.flows.insert(names, place, NO_EXIST)
    }

    /// Takes names out again.
    pub(super) fn remove(&mut self, names: &Names) {
        // An error means that they are not there.
        let _ = self.flows.remove(names);
    }

    /// The place of these names.
    pub(super) fn find(&self, names: &Names) -> Option<Place> {
        self.flows.get(names, 0).ok()
    }

    /// Every name there is, with its place.
    pub(super) fn flows(&self) -> Vec<(Names, Place)> {
        self.flows.iter().filter_map(Result::ok).collect()
    }

    /// The MSS option that was in the SYN-ACK that came last for this local port from this sender.
    pub(super) fn noted(&self, port: u16, sender_mark: u16) -> Option<u16> {
        let index = self.ports.contains(&port).then(|| port - self.ports.start())?;
        let noted = self.noted.noted(index.into());
        let (size, mark) = (noted as u16, (noted >> 16) as u16);
        (size != 0 && mark == sender_mark).then_some(size)
    }

    /// Whether setu's leg may be on the wire by its port.
    pub(super) fn owns(&self, port: u16) -> bool {
        self.ports.contains(&port)
    }

    /// Readable when there is something to see in a flow.
    pub(super) fn events(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }

    /// The next flow in which there is something to see.
    pub(super) fn next_event(&mut self) -> Option<u32> {
        let item = self.events.next()?;
        let bytes: [u8; 4] = item.get(..4)?.try_into().ok()?;
        const { assert!(std::mem::offset_of!(Event, index) == 0) };
        Some(u32::from_ne_bytes(bytes))
    }

    /// Runs the program over a packet, so many times, on the packet as the run before has left it. Tells the verdict, what
    /// became of the packet, and how long a run took.
    #[cfg(test)]
    pub(super) fn run(&self, packet: &[u8], repeat: u32) -> (i32, Vec<u8>, std::time::Duration) {
        use aya::programs::{TestRun as _, TestRunOptions};
        let Some(aya::programs::Program::SchedClassifier(program)) = self.object.program(names::TRANSLATE)
        else {
            panic!("no program")
        };
        let mut out = vec![0; packet.len()];
        let options = TestRunOptions {
            data_in: Some(packet),
            data_out: Some(&mut out),
            repeat,
            ..TestRunOptions::new()
        };
        let result = program.test_run(options).unwrap();
        (result.return_value as i32, out, result.duration)
    }

    /// Takes all of it out of the kernel.
    pub(super) fn unload(mut self) {
        self.links.clear();
        if let Some(pins) = &self.pins
            && let Err(error) = pins.clear()
        {
            tracing::warn!(%error, pins = %pins.path().display(), "the wire's pins cannot be taken away");
        }
    }
}

fn classifier(object: &mut Ebpf) -> Result<&mut SchedClassifier, LoadError> {
    let program = object.program_mut(names::TRANSLATE).ok_or(LoadError::Missing(names::TRANSLATE))?;
    Ok(program.try_into()?)
}

/// Maps an array map whose type aya would want to copy, and tells how many elements it has.
fn map_shared<T>(map: Map, name: &'static str) -> Result<(Shared<T>, u32), LoadError> {
    let Map::Array(data) = map else {
        return Err(LoadError::Missing(name));
    };
    let len = data.info()?.max_entries();
    Ok((Shared::map(data.fd().as_fd(), len as usize).map_err(LoadError::Shared)?, len))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn the_kernel_takes_it() {
        let program = Program::load(16, 10_000..=10_007, None).unwrap();
        assert_eq!((program.most, program.owns(10_007), program.owns(10_008)), (16, true, false));
        assert_eq!((program.noted(10_003, 0), program.noted(9_999, 0)), (None, None));
        let Some(translate) = program.object.program(names::TRANSLATE) else { panic!("no program") };
        let verified = translate.info().unwrap().verified_instruction_count();
        println!("instructions verified: {verified:?}");
        // The limit is a million (`BPF_COMPLEXITY_LIMIT_INSNS`, include/linux/bpf.h); other kernels need more than this one.
        assert!(verified.is_none_or(|count| count < 200_000), "{verified:?}");
    }

    #[test]
    fn what_is_in_the_place_of_a_folder_is_not_followed() {
        let root = tempfile::tempdir().unwrap();
        let (all, victim) = (root.path().join("setu"), root.path().join("victim"));
        let mode = |path: &Path| fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777;
        fs::create_dir(&victim).unwrap();
        fs::set_permissions(&victim, fs::Permissions::from_mode(0o755)).unwrap();
        symlink(&victim, &all).unwrap();
        own_folder(None, &all, true).unwrap_err();
        fs::remove_file(&all).unwrap();

        let folder = own_folder(None, &all, true).unwrap();
        assert_eq!(mode(&all), 0o700);
        symlink(&victim, all.join("of-another")).unwrap();
        own_folder(Some(&folder), &all.join("of-another"), false).unwrap_err();
        fs::write(all.join("file"), "").unwrap();
        own_folder(Some(&folder), &all.join("file"), false).unwrap_err();
        assert_eq!(mode(&victim), 0o755);
        own_folder(Some(&folder), &all.join("own"), false).unwrap();
        assert_eq!(mode(&all.join("own")), 0o700);
    }
}
