//! What becomes of a segment.
//!
//! While setu's sockets still have bytes of their own that a side has not acknowledged, they answer for these, and the
//! segments that concern them are theirs; all else is translated. See [`fate`].

use super::sequence::{after, later};

/// Flags of the TCP header.
pub const FIN: u8 = 0x01;
/// See [`FIN`].
pub const SYN: u8 = 0x02;
/// See [`FIN`].
pub const RST: u8 = 0x04;
/// See [`FIN`].
pub const ACK: u8 = 0x10;
/// ECE and CWR, see [`FIN`].
pub const ECN: u8 = 0xc0;

/// A segment from X, in the numbers of leg x.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Sequence number.
    pub sequence: u32,
    /// What it acknowledges, if it has [`ACK`].
    pub acknowledgement: u32,
    /// Of [`FIN`] and so on.
    pub flags: u8,
    /// The window as it stands in the header.
    pub window: u16,
    /// Bytes of the stream.
    pub len: u32,
}

impl Segment {
    /// The next sequence number after it.
    #[inline(always)]
    #[must_use]
    pub const fn end(&self) -> u32 {
        self.sequence
            .wrapping_add(self.len)
            .wrapping_add((self.flags & FIN != 0) as u32)
            .wrapping_add((self.flags & SYN != 0) as u32)
    }

    /// Whether it carries nothing but an acknowledgement.
    #[inline(always)]
    #[must_use]
    pub const fn is_pure(&self) -> bool {
        self.len == 0 && self.flags & (SYN | FIN | RST) == 0
    }
}

/// What is known of the direction from X, and of X's progress, in numbers of leg x.
#[derive(Debug, Clone, Copy)]
pub struct Known {
    /// What X acknowledges once it has all of setu's own bytes.
    pub own_acknowledged: u32,
    /// Where X's stream goes on.
    pub own_received: u32,
    /// Where Y's stream is, as far as it was seen: nothing beyond can be acknowledged.
    pub other_end: u32,
    /// What Y has acknowledged of X's stream.
    pub other_acknowledged: u32,
    /// X has all of setu's own bytes.
    pub acknowledged: bool,
    /// So has Y.
    pub other_has: bool,
    /// Shift of X's windows, and of those that Y is told.
    pub shift_in: u32,
    /// See [`Self::shift_in`].
    pub shift_out: u32,
}

/// What is to be done with a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is of no use to anybody.
    Drop,
    /// It is for setu's socket, which must see this sequence number: it would ignore one outside of its window.
    Pass {
        /// That number.
        sequence: u32,
    },
    /// It goes to Y.
    Translate {
        /// In the numbers of leg x still.
        acknowledgement: u32,
        /// As it is written into the header.
        window: u16,
    },
}

/// What is to be done, and what was learnt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// What is to be done with the segment.
    pub fate: Fate,
    /// Whether X has all of setu's own bytes, as is known now.
    pub acknowledged: bool,
}

/// What becomes of a segment from X.
///
/// 1. X lacks own bytes, and says so with nothing else: setu's socket needs to hear it, to repeat them.
/// 2. The same with something else: it is translated as if it had not said so.
/// 3. X has them all.
/// 4. While Y lacks own bytes it is shown no acknowledgement above the one that setu's socket repeats: its repetitions
///    carry that one, which Y would else take for too old (RFC 5961, section 5.2).
/// 5. While Y lacks own bytes, what repeats what setu took already is dropped: it could make Y refuse setu's repetitions by
///    their timestamps.
#[inline(always)]
#[must_use]
pub fn fate(segment: &Segment, known: &Known) -> Outcome {
    let mut acknowledged = known.acknowledged;
    let mut acknowledgement = segment.acknowledgement;
    // No window of a SYN is scaled.
    let is_scaled = segment.flags & SYN == 0;
    let mut window = segment.window as u32;
    if is_scaled {
        window <<= known.shift_in;
    }
    if segment.flags & ACK != 0 {
        let beyond = after(acknowledgement, known.own_acknowledged);
        if !acknowledged && beyond < 0 {
            if segment.is_pure() {
                return Outcome { fate: Fate::Pass { sequence: known.own_received }, acknowledged };
            }
            window = window.saturating_sub(beyond.unsigned_abs());
            acknowledgement = known.own_acknowledged;
        } else if !acknowledged && after(acknowledgement, known.other_end) <= 0 {
            acknowledged = true;
        }
        if !known.other_has && beyond > 0 {
            window = window.saturating_add(beyond as u32);
            acknowledgement = known.own_acknowledged;
        }
    }
    if !known.other_has && after(segment.sequence, known.own_received) < 0 {
        return Outcome { fate: Fate::Drop, acknowledged };
    }
    let mut told = window;
    if is_scaled {
        told >>= known.shift_out;
    }
    // Rounded to nothing, a small window would stall: its owner thinks that it is open.
    if told == 0 && window != 0 {
        told = 1;
    }
    let told = if told > 0xffff { 0xffff } else { told as u16 };
    Outcome { fate: Fate::Translate { acknowledgement, window: told }, acknowledged }
}

/// What a segment from X says of its stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// The highest acknowledgement, and the highest end.
    pub acknowledged: u32,
    /// See [`Self::acknowledged`].
    pub end: u32,
    /// X's stream ends with it, at [`Self::end`] or before.
    pub finished: bool,
    /// X resets the connection.
    pub reset: bool,
    /// The segment could be X's own: it is a sign of life.
    pub is_believed: bool,
}

/// How far outside of what the other end expects a segment may be to be believed: as far behind as a sequence number can
/// be told from one ahead, and as far ahead as windows are.
const FARTHEST_BEHIND: i32 = -(1 << 30);
const AHEAD: i32 = 1 << 26;
/// How far beyond all that was seen of X's stream a segment may begin: what lies between was lost on its way to setu. It is one
/// chance in a thousand for who guesses.
const GAP: i32 = 1 << 22;
/// How far behind what X has acknowledged its acknowledgements may be: it has a segment on its way while it sends others. Again
/// few of those that are guessed.
const LATE: i32 = 1 << 24;

/// What is believed of a segment: a forged one may say anything, and only what could be the end's own counts (RFC 5961, section
/// 5, asks as much of what it acknowledges). `acknowledged` and `end` are what was known before.
#[inline(always)]
#[must_use]
pub fn progress(segment: &Segment, known: &Known, acknowledged: u32, end: u32) -> Progress {
    let place = after(segment.sequence, known.other_acknowledged);
    let says = segment.flags & ACK != 0 && after(segment.acknowledgement, known.other_end) <= 0;
    let is_believed = matches!(place, FARTHEST_BEHIND..AHEAD)
        && after(segment.sequence, end) <= GAP
        && says
        && after(segment.acknowledgement, acknowledged) >= -LATE;
    Progress {
        acknowledged: if says { later(segment.acknowledgement, acknowledged) } else { acknowledged },
        // A SYN is none of the flow's: were it counted, the same SYN, sent again once the flow was reset by it, would not
        // be newer than the flow.
        end: if is_believed && segment.flags & SYN == 0 { later(segment.end(), end) } else { end },
        // One that Y has acknowledged was seen when it came first.
        finished: is_believed
            && segment.flags & FIN != 0
            && after(segment.end(), known.other_acknowledged) > 0,
        // It begins where X's stream has come to, or where Y said that it is: an answer takes its number from there. Y believes
        // no other (RFC 5961, section 3.2).
        reset: (place == 0 || segment.sequence == end) && segment.flags & RST != 0,
        is_believed,
    }
}

/// A side's clock, if it is known: an `Option` whose number is always there, as the verifier asks of what is copied.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Clock {
    /// Whether it is known.
    pub known: bool,
    /// A TSval.
    pub value: u32,
}

/// Whether a SYN is newer than the flow whose names it carries, and not its own first one, repeated or long under way: what
/// TIME_WAIT asks of it. `finished`: X's clock at its FIN.
#[inline(always)]
#[must_use]
pub fn is_new(sequence: u32, clock: Clock, end: u32, finished: Clock) -> bool {
    let is_later = clock.known && finished.known && after(clock.value, finished.value) > 0;
    after(sequence, end) > 0 || is_later
}
