//! What tests of certificates share.

use std::{fs, path::Path, sync::Arc, time::SystemTime};

use super::{Acceptor, TlsSettings, self_signed};

/// A certificate that is kept in this directory.
pub(crate) fn acceptor(state: &Path) -> Arc<Acceptor> {
    let settings = TlsSettings { certificate: None, names: Vec::new(), state_dir: state.into() };
    Arc::new(Acceptor::new(settings).unwrap())
}

/// The operator's files, and a second pair to change to.
pub(crate) struct Files {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) settings: TlsSettings,
}

impl Files {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name| directory.path().join(name);
        let certificate = Some((path("cert.pem"), path("key.pem")));
        let settings = TlsSettings { certificate, names: Vec::new(), state_dir: path("state") };
        let files = Self { settings, directory };
        files.replace("cert.pem", true);
        files
    }

    /// Replaces both files, or only the named one.
    pub(crate) fn replace(&self, name: &str, both: bool) {
        let pem = self_signed::make(&[], SystemTime::now()).unwrap();
        for file in ["cert.pem", "key.pem"] {
            if both || file == name {
                fs::write(self.directory.path().join(file), &pem).unwrap();
            }
        }
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        fs::write(self.directory.path().join(name), text).unwrap();
    }
}
