//! A file system for what outlives its process in the kernel: programs and maps that are pinned (bpffs).

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

use crate::netns::Netns;

/// Such a file system for one host, apart from the machine's own. What is pinned there stays while processes come and go.
/// Dropping it takes all of it away.
#[derive(Debug)]
pub struct Pins(TempDir);

impl Pins {
    /// Makes one; it takes root.
    #[must_use]
    pub fn new() -> Self {
        let pins = Self(tempfile::tempdir().unwrap());
        let status = Command::new("mount").args(["-t", "bpf", "bpf"]).arg(pins.0.path()).status().unwrap();
        assert!(status.success(), "a bpffs cannot be mounted: {status}");
        pins
    }

    /// A command that will run in a network namespace, and finds the file system at /sys/fs/bpf. What /sys has of the
    /// network is the namespace's, too.
    #[must_use]
    pub fn command(&self, namespace: &Netns, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace.name(), "sh", "-c"]);
        command.arg("mount --bind \"$0\" /sys/fs/bpf && exec \"$@\"").arg(self.0.path()).arg(program);
        command
    }

    /// What is pinned, as paths below /sys/fs/bpf.
    #[must_use]
    pub fn all(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        collect(self.0.path(), &mut found);
        found.iter().map(|path| path.strip_prefix(self.0.path()).unwrap().to_path_buf()).collect()
    }
}

fn collect(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            collect(&entry.path(), found);
        } else {
            found.push(entry.path());
        }
    }
}

impl Default for Pins {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        // Lazily: a process that ends may have it still.
        let _ = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
    }
}
