//! A control group that bounds a process's memory, as a container's does.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{self, Command},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

/// A control group of its own. Dropping it deletes it, once its processes are gone.
#[derive(Debug)]
pub struct Cgroup {
    folder: PathBuf,
    version: Version,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

impl Cgroup {
    /// Makes one that has so many bytes of memory. In version 2 sockets count; in version 1, which bounds those by a number
    /// of its own or not at all, they are counted without a bound.
    ///
    /// # Errors
    /// Why there can be none here.
    pub fn new(memory: u64) -> Result<Self, String> {
        let (top, version) = Self::top()?;
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let serial = NEXT.fetch_add(1, Ordering::Relaxed);
        let group = Self { folder: top.join(format!("setu-test-{}-{serial}", process::id())), version };
        fs::create_dir(&group.folder).map_err(|error| told(&group.folder, &error))?;
        match version {
            Version::Two => group.set("memory.max", memory)?,
            Version::One => {
                group.set("memory.limit_in_bytes", memory)?;
                group.set("memory.kmem.tcp.limit_in_bytes", 1 << 50)?;
            }
        }
        Ok(group)
    }

    /// Where groups with a bound of memory can be made.
    fn top() -> Result<(PathBuf, Version), String> {
        let mounts = fs::read_to_string("/proc/self/mounts").map_err(|error| error.to_string())?;
        let find = |kind: &str, controller: &str| {
            mounts.lines().find_map(|line| {
                let mut fields = line.split(' ').skip(1);
                let (place, is_kind, options) = (fields.next()?, fields.next()? == kind, fields.next()?);
                let has = controller.is_empty() || options.split(',').any(|option| option == controller);
                (is_kind && has).then(|| PathBuf::from(place))
            })
        };
        if let Some(top) = find("cgroup", "memory") {
            return Ok((top, Version::One));
        }
        let top = find("cgroup2", "").ok_or("no control groups are mounted")?;
        let has_memory = |file: &str| {
            let path = top.join(file);
            let text = fs::read_to_string(&path).map_err(|error| told(&path, &error))?;
            Ok::<_, String>(text.split_whitespace().any(|controller| controller == "memory"))
        };
        if !has_memory("cgroup.controllers")? {
            return Err(format!("{} has no controller of memory", top.display()));
        }
        if !has_memory("cgroup.subtree_control")? {
            let path = top.join("cgroup.subtree_control");
            fs::write(&path, "+memory").map_err(|error| told(&path, &error))?;
        }
        Ok((top, Version::Two))
    }

    fn set(&self, file: &str, value: u64) -> Result<(), String> {
        let path = self.folder.join(file);
        fs::write(&path, value.to_string()).map_err(|error| told(&path, &error))
    }

    /// Gives it another bound.
    pub fn change(&self, memory: u64) {
        let file = if self.version == Version::Two { "memory.max" } else { "memory.limit_in_bytes" };
        self.set(file, memory).unwrap();
    }

    /// A command that runs in it; arguments of setu's may follow.
    #[must_use]
    pub fn command(&self, inner: &Command) -> Command {
        let mut command = Command::new("sh");
        let enter = format!("echo $$ > '{}' && exec \"$@\"", self.folder.join("cgroup.procs").display());
        command.args(["-c", &enter, "sh"]).arg(inner.get_program()).args(inner.get_args());
        command
    }

    /// Bytes that it has taken, with those of its sockets.
    #[must_use]
    pub fn used(&self) -> u64 {
        match self.version {
            Version::Two => self.number("memory.current"),
            Version::One => {
                self.number("memory.usage_in_bytes") + self.number("memory.kmem.tcp.usage_in_bytes")
            }
        }
    }

    /// How many of its processes the kernel has killed for want of memory.
    #[must_use]
    pub fn killed(&self) -> u64 {
        let file = if self.version == Version::Two { "memory.events" } else { "memory.oom_control" };
        let text = fs::read_to_string(self.folder.join(file)).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        line.expect("the kernel does not count whom it kills: it takes Linux 4.13").parse().unwrap()
    }

    fn number(&self, file: &str) -> u64 {
        fs::read_to_string(self.folder.join(file)).unwrap().trim().parse().unwrap()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for _ in 0..100 {
            if fs::remove_dir(&self.folder).is_ok() {
                return;
            }
            // Its last process is not gone yet.
            thread::sleep(Duration::from_millis(20));
        }
    }
}

fn told(path: &Path, error: &io::Error) -> String {
    format!("{}: {error}", path.display())
}
