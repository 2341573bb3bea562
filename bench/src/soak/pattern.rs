//! Bytes that both ends know by a seed.

use sha2::{Digest as _, Sha256};

/// A piece of a stream.
pub(crate) const PIECE: usize = 64 * 1024;

/// Pseudo-random bytes (xorshift64), so that no layer can shorten them and no two streams are alike.
pub(crate) struct Pattern(u64);

impl Pattern {
    /// The same seed gives the same bytes.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next number.
    pub(crate) fn number(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number from `low` to below `high`.
    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.number() % (high - low)
    }

    /// Fills a buffer whose length is a multiple of 8.
    pub(crate) fn fill(&mut self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_exact_mut(8) {
            chunk.copy_from_slice(&self.number().to_le_bytes());
        }
    }
}

/// The SHA-256 of so many pieces.
pub(crate) fn digest(seed: u64, pieces: u32) -> [u8; 32] {
    let (mut pattern, mut hash, mut buffer) = (Pattern::new(seed), Sha256::new(), vec![0; PIECE]);
    for _ in 0..pieces {
        pattern.fill(&mut buffer);
        hash.update(&buffer);
    }
    hash.finalize().into()
}
