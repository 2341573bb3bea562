//! What tests have in place of a configuration.

use std::time::Duration;

use super::Timeouts;

/// Long enough for any machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
pub(crate) const TIMEOUTS: Timeouts = Timeouts {
    connect: PATIENCE,
    inspect: PATIENCE,
    handshake: PATIENCE,
    idle: PATIENCE,
    half_close: PATIENCE,
    vanished: PATIENCE,
    lame_duck: Duration::ZERO,
    drain: PATIENCE,
};
