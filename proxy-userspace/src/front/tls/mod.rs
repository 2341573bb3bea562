//! Ends the TLS of clients that speak chat inside TLS, so that the chat bytes can go on to WhatsApp.
//!
//! [`Acceptor`] has the certificate and replaces it without touching a connection, [`accept`] does a client's handshake,
//! and `relay::terminated` moves the bytes.

mod certificate;
mod handshake;
mod offer;
mod plain;
mod self_signed;
mod session;
mod settings;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod web;

use std::{
    fs,
    path::Path,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    server::{NoServerSessionStorage, ProducesTickets},
    sign::SingleCertAndKey,
};
use tracing::{info, warn};

pub use certificate::{CertificateError, Description, Source, renew, show};
pub(crate) use handshake::refuse_name;
pub use handshake::{Terminated, TlsFailure, accept};
pub use offer::Settings;
pub(crate) use plain::{let_go, refuse_plain};
pub(crate) use session::{End, ForwardError, Received, Session, SessionError};
pub use settings::TlsSettings;

use certificate::Certificate;
use offer::ALPN;

/// Between two looks at the files. Polling them is simpler than inotify, which follows neither symbolic links nor
/// mounted volumes that are replaced under it, as certbot and Kubernetes do; and nobody waits for a new certificate.
const WATCH: Duration = Duration::from_secs(5);

/// What every handshake needs.
#[derive(Debug)]
pub struct Acceptor {
    current: RwLock<Arc<Settings>>,
    loaded: Mutex<Loaded>,
    /// Stays when the certificate changes, so that clients can still resume.
    tickets: Arc<dyn ProducesTickets>,
}

/// Where the current certificate is from.
#[derive(Debug)]
struct Loaded {
    settings: TlsSettings,
    stamps: Vec<Stamp>,
    description: Description,
}

/// What tells that a file has changed; `None` when there is none.
type Stamp = Option<(SystemTime, u64)>;

impl Acceptor {
    /// Loads the certificate, or makes one.
    ///
    /// # Errors
    /// What is wrong with the operator's files.
    pub fn new(settings: TlsSettings) -> Result<Self, CertificateError> {
        let Certificate { certified, description } = certificate::load(&settings)?;
        let tickets = aws_lc_rs::Ticketer::new().map_err(CertificateError::Crypto)?;
        let config = settings_of(certified, tickets.clone()).map_err(CertificateError::Crypto)?;
        let stamps = stamps(&settings);
        announce(&description);
        Ok(Self {
            current: RwLock::new(Arc::new(config)),
            loaded: Mutex::new(Loaded { settings, stamps, description }),
            tickets,
        })
    }

    /// For the next handshake.
    pub fn config(&self) -> Arc<Settings> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What clients are shown.
    pub fn description(&self) -> Description {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner).description.clone()
    }

    /// Reads the files anew. Connections are not touched.
    ///
    /// # Errors
    /// What is wrong; then the certificate of before stays.
    pub fn reload(&self, settings: &TlsSettings) -> Result<(), CertificateError> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        // Taken first: what changes while the files are read is seen by the next look.
        let seen = stamps(settings);
        let same = *settings == loaded.settings;
        if same {
            loaded.stamps.clone_from(&seen);
        }
        let in_memory = loaded.description.source == Source::Memory && !loaded.description.is_due();
        if in_memory && same && seen == [None] {
            // There is nowhere to keep a new one either.
            return Ok(());
        }
        let Certificate { certified, description } = certificate::load(settings)?;
        if description.fingerprint != loaded.description.fingerprint {
            announce(&description);
        }
        let config = settings_of(certified, self.tickets.clone()).map_err(CertificateError::Crypto)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
        loaded.description = description;
        loaded.settings = settings.clone();
        loaded.stamps = seen;
        // A certificate that setu just made is not a change to react to.
        if settings.certificate.is_none() {
            loaded.stamps = stamps(settings);
        }
        Ok(())
    }

    /// Reloads whenever a file has changed, and when a certificate that setu made is about to expire. It reads files:
    /// it belongs on a thread that moves no bytes.
    pub async fn watch(&self) {
        loop {
            tokio::time::sleep(WATCH).await;
            self.look();
        }
    }

    /// One look of [`Self::watch`].
    pub(crate) fn look(&self) {
        let settings = {
            let loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
            let due = loaded.settings.certificate.is_none() && loaded.description.is_due();
            if !due && stamps(&loaded.settings) == loaded.stamps {
                return;
            }
            loaded.settings.clone()
        };
        if let Err(error) = self.reload(&settings) {
            warn!(%error, "the TLS certificate of before stays");
        }
    }
}

fn announce(description: &Description) {
    let Description { subject, source, .. } = description;
    let until = humantime::format_rfc3339_seconds(description.not_after);
    info!(%subject, names = ?description.names, %until, %source, "TLS certificate");
}

fn stamps(settings: &TlsSettings) -> Vec<Stamp> {
    let stamp = |file: &Path| {
        let metadata = fs::metadata(file).ok()?;
        Some((metadata.modified().ok()?, metadata.len()))
    };
    settings.files().iter().map(|file| stamp(file)).collect()
}

fn settings_of(
    certified: rustls::sign::CertifiedKey,
    tickets: Arc<dyn ProducesTickets>,
) -> Result<Settings, rustls::Error> {
    // Its groups begin with X25519, the cheapest; what the chat protocol sends inside is encrypted once more.
    let mut config = ServerConfig::builder_with_provider(aws_lc_rs::default_provider().into())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    config.ticketer = tickets;
    // Clients keep the state of a session, setu keeps none.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    // A client that comes back needs one. Each costs a write and a packet.
    config.send_tls13_tickets = 1;
    let other = Arc::new(config.clone());
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Settings { web: Arc::new(config), other })
}
