//! Bytes that both ends know by a seed and a position, so that what was lost, repeated or moved can be told apart.

use std::{fmt, ops::Range};

/// How far around a wrong byte its origin is looked for.
const REACH: u64 = 32 << 20;
/// So many bytes are found in one place only; fewer than the first say nothing.
const LEAST: usize = 6;
const SAMPLE: usize = 16;

/// The bytes of one direction of a flow.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pattern(u64);

/// What came in place of the byte that was due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wrong {
    /// The first wrong byte's place in the stream.
    pub(crate) at: u64,
    /// Where in the stream the bytes belong that came instead.
    pub(crate) instead: Option<u64>,
}

impl Pattern {
    /// The same seed gives the same bytes.
    pub(crate) fn new(seed: u64) -> Self {
        Self(mix(seed))
    }

    /// Writes the bytes from position `at` on.
    pub(crate) fn fill(self, at: u64, mut buffer: &mut [u8]) {
        let mut index = at / 8;
        let head = (at % 8) as usize;
        if head > 0 {
            let count = buffer.len().min(8 - head);
            let (first, rest) = buffer.split_at_mut(count);
            first.copy_from_slice(&self.word(index)[head..head + count]);
            (buffer, index) = (rest, index + 1);
        }
        let mut chunks = buffer.chunks_exact_mut(8);
        for chunk in &mut chunks {
            chunk.copy_from_slice(&self.word(index));
            index += 1;
        }
        let tail = chunks.into_remainder();
        let count = tail.len();
        tail.copy_from_slice(&self.word(index)[..count]);
    }

    /// Compares bytes that came at a position; `scratch` is at least as long.
    pub(crate) fn check(self, at: u64, bytes: &[u8], scratch: &mut [u8]) -> Option<Wrong> {
        let due = &mut scratch[..bytes.len()];
        self.fill(at, due);
        if due == bytes {
            return None;
        }
        let good = bytes.iter().zip(&*due).take_while(|(came, due)| came == due).count();
        let at = at + good as u64;
        Some(Wrong { at, instead: self.find(&bytes[good..], at) })
    }

    /// Where bytes belong, ahead of a position or behind it.
    fn find(self, bytes: &[u8], at: u64) -> Option<u64> {
        let sample = bytes.get(..SAMPLE.min(bytes.len()).max(LEAST))?;
        self.find_in(sample, at..at + REACH).or_else(|| self.find_in(sample, at.saturating_sub(REACH)..at))
    }

    fn find_in(self, sample: &[u8], range: Range<u64>) -> Option<u64> {
        let mut block = vec![0; (64 << 10) + SAMPLE];
        range.step_by(64 << 10).find_map(|start| {
            self.fill(start, &mut block);
            let found = block.windows(sample.len()).position(|window| window == sample)?;
            Some(start + found as u64)
        })
    }

    fn word(self, index: u64) -> [u8; 8] {
        mix(self.0 ^ index).to_le_bytes()
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, instead } = self;
        write!(formatter, "the byte at {at} is wrong")?;
        match instead {
            Some(from) if from > at => write!(formatter, ": {} bytes are missing before it", from - at),
            Some(from) => write!(formatter, ": those of {from} came, {} bytes back", at - from),
            None => write!(formatter, ", and belongs nowhere near"),
        }
    }
}

/// Makes of a number one that shows nothing of it (splitmix64).
pub(crate) fn mix(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_position_has_its_byte() {
        let pattern = Pattern::new(7);
        let mut whole = vec![0; 100];
        pattern.fill(0, &mut whole);
        for start in 0..40 {
            for len in 0..40 {
                let mut part = vec![0; len];
                pattern.fill(start as u64, &mut part);
                assert_eq!(part, whole[start..start + len]);
            }
        }
        let mut other = vec![0; 100];
        Pattern::new(8).fill(0, &mut other);
        assert_ne!(whole, other);
    }

    #[test]
    fn what_came_instead_is_found() {
        let pattern = Pattern::new(1);
        let (mut bytes, mut scratch) = (vec![0; 300], vec![0; 300]);
        pattern.fill(100, &mut bytes);
        assert_eq!(pattern.check(100, &bytes, &mut scratch), None);

        let mut flipped = bytes.clone();
        flipped[7] ^= 1;
        assert_eq!(pattern.check(100, &flipped, &mut scratch), Some(Wrong { at: 107, instead: None }));

        let lost = [&bytes[..50], &bytes[60..]].concat();
        let wrong = pattern.check(100, &lost, &mut scratch).unwrap();
        assert_eq!(wrong, Wrong { at: 150, instead: Some(160) });
        assert!(wrong.to_string().contains("10 bytes are missing"));

        let repeated = [&bytes[..50], &bytes[20..]].concat();
        let wrong = pattern.check(100, &repeated, &mut vec![0; 400]).unwrap();
        assert_eq!(wrong, Wrong { at: 150, instead: Some(120) });
    }
}
