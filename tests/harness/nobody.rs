//! setu as it is for someone who has no privilege at all.

use std::{fs, process::Command};

use tempfile::TempDir;

use crate::Setu;

/// A copy of setu that nobody may run: the folder of the build is often closed to all but its owner.
#[derive(Debug)]
pub struct Nobody {
    folder: TempDir,
}

impl Nobody {
    /// Copies setu.
    #[must_use]
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::copy(Setu::binary(), folder.path().join("setu")).unwrap();
        Command::new("chmod").args(["-R", "a+rX"]).arg(folder.path()).status().unwrap();
        Self { folder }
    }

    /// Runs setu as the user nobody, without capabilities; only root can.
    #[must_use]
    pub fn setu(&self) -> Command {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .args(["--bounding-set=-all", "--inh-caps=-all"])
            .arg(self.folder.path().join("setu"));
        command
    }
}

impl Default for Nobody {
    fn default() -> Self {
        Self::new()
    }
}
