//! The bytes that all traffic is made of, known to both ends.

use std::sync::LazyLock;

use anyhow::{Result, ensure};
use setu_tests::peers::Random;

/// Bytes of the block that a stream repeats.
pub(super) const BLOCK: usize = 1 << 20;
/// The longest message.
const LONGEST: usize = 64 << 10;

/// Pseudo-random, so that no layer can shorten it, and without the bytes that mean something to the server. The
/// beginning comes again after the end, so that a message may start anywhere in the block.
static BYTES: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut random = Random::new(0x5e7);
    let mut bytes: Vec<u8> = (0..BLOCK).map(|_| (random.number() >> 32) as u8).collect();
    for byte in &mut bytes {
        if matches!(*byte, b'D' | b'U') {
            *byte = byte.to_ascii_lowercase();
        }
    }
    bytes.extend_from_within(..LONGEST);
    bytes
});

/// The block of a stream.
pub(super) fn block() -> &'static [u8] {
    &BYTES[..BLOCK]
}

/// A message that differs from the ones around it, in its connection and in others.
pub(super) fn message(connection: usize, number: usize, len: usize) -> &'static [u8] {
    let start = (connection * 7919 + number * 257) % BLOCK;
    &BYTES[start..start + len.min(LONGEST)]
}

/// Checks the bytes of a stream after `total` right ones.
///
/// # Errors
/// When they are wrong.
pub(super) fn check(mut bytes: &[u8], mut total: u64) -> Result<()> {
    while !bytes.is_empty() {
        let expected = &block()[(total % BLOCK as u64) as usize..];
        let len = bytes.len().min(expected.len());
        ensure!(bytes[..len] == expected[..len], "wrong bytes after {total} right ones");
        total += len as u64;
        bytes = &bytes[len..];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_checked_across_the_end_of_the_block() {
        let stream = [block(), block()].concat();
        assert!(check(&stream[BLOCK - 3..BLOCK + 5], BLOCK as u64 - 3).is_ok());
        let mut wrong = stream[BLOCK - 3..BLOCK + 5].to_vec();
        wrong[4] ^= 1;
        assert!(check(&wrong, BLOCK as u64 - 3).is_err());
    }

    #[test]
    fn messages_differ_and_ask_the_server_for_nothing() {
        assert_ne!(message(1, 1, 256), message(1, 2, 256));
        assert_ne!(message(1, 1, 256), message(2, 1, 256));
        assert!(!block().iter().any(|byte| matches!(byte, b'D' | b'U')));
        assert_eq!(message(usize::MAX / 8000, 77, LONGEST).len(), LONGEST);
    }
}
