//! What a flow is made of: two legs, and the path between them.

use std::fmt;

/// One of the two legs of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// The phone's.
    Client,
    /// WhatsApp's.
    Upstream,
}

impl Side {
    /// The other leg.
    pub(crate) fn other(self) -> Self {
        match self {
            Self::Client => Self::Upstream,
            Self::Upstream => Self::Client,
        }
    }

    /// For arrays with one place for each leg.
    pub(crate) fn index(self) -> usize {
        match self {
            Self::Client => 0,
            Self::Upstream => 1,
        }
    }
}

/// How a flow's bytes move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// Not yet.
    None,
    /// By packets that the kernel translates, without setu.
    Wire,
    /// In the kernel.
    Sockmap,
    /// Through this process.
    Userspace,
}

impl Path {
    /// Every path.
    pub const ALL: [Self; 4] = [Self::None, Self::Wire, Self::Sockmap, Self::Userspace];

    /// Its name in logs and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Wire => "wire",
            Self::Sockmap => "sockmap",
            Self::Userspace => "userspace",
        }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}
