//! How ALPN is answered.

use std::sync::Arc;

use rustls::ServerConfig;

/// The protocol that is agreed on with those who offer it.
pub(super) const ALPN: &[u8] = b"http/1.1";

/// What a handshake goes by. ALPN is answered as nginx does without HTTP/2, before its version 1.21.4: whoever offers
/// `http/1.1` gets it, and whoever offers something else gets no answer to that, where later ones end the handshake.
/// Clients of chat are not to be turned away for what they offer.
#[derive(Debug)]
pub struct Settings {
    /// For those who offer [`ALPN`].
    pub(super) web: Arc<ServerConfig>,
    pub(super) other: Arc<ServerConfig>,
}
