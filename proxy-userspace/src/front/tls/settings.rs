//! Which certificate clients are shown, and where it is.

use std::path::PathBuf;

use crate::{
    config::{self, Host},
    sys::state_dir::CERTIFICATE,
};

/// Which certificate clients are shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsSettings {
    /// The operator's chain and key, PEM files. Without them setu makes a certificate.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// What a certificate that setu makes is for.
    pub names: Vec<Host>,
    /// Where setu keeps the certificate that it made.
    pub state_dir: PathBuf,
}

impl From<&config::Tls> for TlsSettings {
    fn from(tls: &config::Tls) -> Self {
        let files = tls.files.as_ref();
        Self {
            certificate: files.map(|files| (files.certificate.clone(), files.key.clone())),
            names: tls.names.clone(),
            state_dir: tls.state_dir.clone(),
        }
    }
}

impl TlsSettings {
    /// The files that the certificate comes from.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        match &self.certificate {
            Some((chain, key)) => vec![chain.clone(), key.clone()],
            None => vec![self.own_file()],
        }
    }

    /// Where the certificate is kept that setu makes.
    pub(super) fn own_file(&self) -> PathBuf {
        self.state_dir.join(CERTIFICATE)
    }
}
