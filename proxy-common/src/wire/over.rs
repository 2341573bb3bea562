//! Whether a side's end is its own: a forged segment that the other refuses changes nothing, however long the flow is quiet
//! after it.

use super::layout::{FIN_SEEN, RST_SEEN};

/// What was noted of a side, X: see the fields of these names of [`super::layout::Direction`].
#[derive(Debug, Default, Clone, Copy)]
pub struct Side {
    /// Of [`FIN_SEEN`] and so on.
    pub flags: u32,
    /// Where X's stream ends.
    pub finish: u32,
    /// What Y has acknowledged of it.
    pub other_acknowledged: u32,
}

impl Side {
    /// Whether X's stream has ended: Y has it up to its FIN, and nothing beyond.
    #[inline(always)]
    #[must_use]
    pub const fn has_finished(&self) -> bool {
        self.flags & FIN_SEEN != 0 && self.other_acknowledged == self.finish
    }

    /// Whether X has reset the connection.
    #[inline(always)]
    #[must_use]
    pub const fn has_reset(&self) -> bool {
        self.flags & RST_SEEN != 0
    }
}

/// Whether a flow is over, by what its sides have sent.
#[inline(always)]
#[must_use]
pub const fn is_over(sides: &[Side; 2]) -> bool {
    let [x, y] = sides;
    (x.has_finished() && y.has_finished()) || x.has_reset() || y.has_reset()
}
