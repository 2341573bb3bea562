//! TCP's options, word by word.
//!
//! Every stack in use aligns what changes on the way: timestamps as NOP NOP TS, SACK blocks as NOP NOP SACK, in any order; in a
//! SYN timestamps also come after SACK-permitted. So options are read in words of four bytes, which costs the verifier a
//! hundredth of what bytes do. A layout that is not so is found out before a flow goes on the wire ([`Word::Odd`]).

/// What a word is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    /// Nothing that changes.
    Same,
    /// A TSval.
    Value,
    /// A TSecr.
    Echo,
    /// An end of a SACK block.
    Edge,
    /// The MSS option, which says this.
    SegmentSize(u16),
    /// Nothing that is known: options that are not aligned, or others than are understood.
    Odd,
}

/// What is added to what changes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Additions {
    /// To TSval.
    pub timestamp: u32,
    /// To TSecr, unless it is 0, which says that there is none.
    pub echo: u32,
    /// To the ends of SACK blocks.
    pub acknowledgement: u32,
}

impl Word {
    /// What a word of this kind becomes.
    #[inline(always)]
    #[must_use]
    pub const fn rewrite(self, value: u32, additions: Additions) -> u32 {
        match self {
            Self::Value => value.wrapping_add(additions.timestamp),
            Self::Echo if value != 0 => value.wrapping_add(additions.echo),
            Self::Edge => value.wrapping_add(additions.acknowledgement),
            _ => value,
        }
    }
}

/// NOP NOP, or two other bytes, then timestamps: kind 8, length 10.
const TIMESTAMPS: u32 = 0x080a;
/// NOP NOP, then SACK blocks: kind 5, and a length.
const NOP_NOP_SACK: u32 = 0x0001_0105;
/// All NOP, all padding, and NOP NOP NOP with the end of the options.
const FILLERS: [u32; 3] = [0x0101_0101, 0, 0x0101_0100];
/// Kind 2, length 4.
const SEGMENT_SIZE: u32 = 0x0204;
/// NOP, window scale (kind 3, length 3), and a shift.
const NOP_SCALE: u32 = 0x0001_0303;
/// NOP NOP SACK-permitted (kind 4, length 2).
const NOP_NOP_PERMITTED: u32 = 0x0101_0402;
/// SACK-permitted and padding, at the end of a SYN of Apple's stack.
const PERMITTED_END: u32 = 0x0402_0000;
/// SACK-permitted, before timestamps.
const PERMITTED: u32 = 0x0402;

/// Where in the options one is: words that are left of the option at hand.
#[derive(Debug, Default, Clone, Copy)]
pub struct Options {
    stamps: u32,
    edges: u32,
}

impl Options {
    /// The next word, as a number whose first byte is the highest.
    #[inline(always)]
    pub fn next(&mut self, word: u32) -> Word {
        if self.stamps == 2 {
            self.stamps = 1;
            return Word::Value;
        }
        if self.stamps == 1 {
            self.stamps = 0;
            return Word::Echo;
        }
        if self.edges > 0 {
            self.edges -= 1;
            return Word::Edge;
        }
        let (high, low) = (word >> 16, word & 0xffff);
        if low == TIMESTAMPS && (high == 0x0101 || high == PERMITTED) {
            self.stamps = 2;
            return Word::Same;
        }
        if word >> 8 == NOP_NOP_SACK {
            // Two edges for each block, of which there are four at most.
            let edges = (word & 0xff).wrapping_sub(2) >> 2;
            if matches!(edges, 2 | 4 | 6 | 8) && word & 3 == 2 {
                self.edges = edges;
                return Word::Same;
            }
            return Word::Odd;
        }
        if high == SEGMENT_SIZE {
            return Word::SegmentSize(low as u16);
        }
        if word == FILLERS[0] || word == FILLERS[1] || word == FILLERS[2] {
            return Word::Same;
        }
        if word >> 8 == NOP_SCALE || word == NOP_NOP_PERMITTED || word == PERMITTED_END {
            return Word::Same;
        }
        Word::Odd
    }
}
