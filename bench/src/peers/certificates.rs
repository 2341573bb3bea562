//! Certificates for the peers that end TLS: the reference's RSA 4096, and ECDSA P-256 for all others.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;

use super::Kind;
use crate::load::SERVER_NAME;

/// Two certificates and their keys, in a folder that goes when this is dropped.
pub(crate) struct Certificates(TempDir);

/// The files of one.
pub(crate) struct Certificate {
    /// PEM.
    pub(super) certificate: PathBuf,
    /// PEM.
    pub(super) key: PathBuf,
    /// Both in one, as HAProxy wants it.
    pub(super) both: PathBuf,
    /// DER, for the client to trust.
    pub(crate) trust: PathBuf,
}

impl Certificates {
    /// Makes them. RSA takes some seconds.
    ///
    /// # Errors
    /// When openssl does not make them.
    pub(crate) fn make() -> Result<Self> {
        let made = Self(tempfile::tempdir()?);
        let config = made.0.path().join("config");
        // No authority: a client that trusts just this one takes it as what it is, a server's.
        let text = format!(
            "[req]\ndistinguished_name = subject\nx509_extensions = extensions\n[subject]\n[extensions]\n\
             basicConstraints = CA:FALSE\nsubjectAltName = DNS:{SERVER_NAME}\n"
        );
        fs::write(&config, text)?;
        let keys = [("rsa", vec!["rsa:4096"]), ("ecdsa", vec!["ec", "-pkeyopt", "ec_paramgen_curve:P-256"])];
        for (name, algorithm) in keys {
            let Certificate { certificate, key, both, trust } = made.named(name);
            let mut request = Command::new("openssl");
            request.args(["req", "-x509", "-nodes", "-days", "30", "-subj", "/CN=setu bench", "-config"]);
            request.arg(&config).arg("-newkey").args(algorithm).arg("-keyout").arg(&key);
            openssl(request.arg("-out").arg(&certificate))?;
            let mut convert = Command::new("openssl");
            convert.args(["x509", "-outform", "der", "-in"]).arg(&certificate);
            openssl(convert.arg("-out").arg(&trust))?;
            fs::write(both, fs::read_to_string(&certificate)? + &fs::read_to_string(&key)?)?;
        }
        Ok(made)
    }

    /// The one that a peer uses.
    pub(crate) fn of(&self, kind: Kind) -> Certificate {
        self.named(if kind == Kind::HaproxyReference { "rsa" } else { "ecdsa" })
    }

    fn named(&self, name: &str) -> Certificate {
        let file = |extension: &str| self.0.path().join(format!("{name}.{extension}"));
        Certificate { certificate: file("crt"), key: file("key"), both: file("pem"), trust: file("der") }
    }
}

fn openssl(command: &mut Command) -> Result<()> {
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
    let status = status.context("openssl is needed: cargo xtask setup")?;
    ensure!(status.success(), "{command:?} failed: {status}");
    Ok(())
}
