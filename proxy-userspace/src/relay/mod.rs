//! Moves a flow's bytes: picks a path, and records why.

use std::time::Duration;

mod silence;
pub mod sockmap;
pub mod terminated;
pub(crate) mod userspace;
pub(crate) mod vanished;

/// A flow that has lasted for so long gets what costs more than all that a shorter one, a probe's or a health check's,
/// would move: the kernel watches its peers, and with `relay.path = "auto"` takes it.
pub(crate) const LASTING: Duration = Duration::from_millis(250);
