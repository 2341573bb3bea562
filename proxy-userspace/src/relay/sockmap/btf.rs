//! Finds where the running kernel keeps two fields of its sockets.
//!
//! Rust emits no CO-RE relocations, so the program is told the offsets at load. aya parses BTF but keeps members to
//! itself, and the one other crate that reads it is LGPL; what is needed of the format is small.
//! Format: Documentation/bpf/btf.rst.

use thiserror::Error;

/// Where the kernel publishes its types.
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
/// Bytes of `struct btf_type`, and of `struct btf_member`.
const TYPE: usize = 12;

/// Why a field was not found.
#[derive(Debug, Error, PartialEq, Eq)]
pub(super) enum BtfError {
    /// The bytes are no BTF, or are cut off.
    #[error("not BTF at byte {0}")]
    Malformed(usize),
    /// No such structure or member.
    #[error("the kernel has no {0}.{1}")]
    Missing(String, String),
}

/// Types of a kernel, unparsed but for their places.
pub(super) struct Btf<'a> {
    types: Vec<usize>,
    bytes: &'a [u8],
    strings: &'a [u8],
}

impl<'a> Btf<'a> {
    /// Finds the types in the bytes of `/sys/kernel/btf/vmlinux`.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, BtfError> {
        if bytes.get(..2) != Some(&MAGIC.to_ne_bytes()) {
            return Err(BtfError::Malformed(0));
        }
        let header = word(bytes, 4)? as usize;
        let section = |at: usize| -> Result<(usize, usize), BtfError> {
            Ok((header + word(bytes, at)? as usize, word(bytes, at + 4)? as usize))
        };
        let (types_start, types_len) = section(8)?;
        let (strings_start, strings_len) = section(16)?;
        let end = types_start + types_len;
        let strings = bytes.get(strings_start..strings_start + strings_len).ok_or(BtfError::Malformed(16))?;
        if end > bytes.len() {
            return Err(BtfError::Malformed(8));
        }
        // Type 0 is void and has no bytes.
        let mut types = vec![0];
        let mut at = types_start;
        while at < end {
            types.push(at);
            let info = word(bytes, at + 4)?;
            let (kind, count) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
            at += TYPE
                + match kind {
                    1 | 14 | 17 => 4,
                    3 => 12,
                    KIND_STRUCT | KIND_UNION | 15 | 19 => count * 12,
                    6 | 13 => count * 8,
                    2 | 7..=12 | 16 | 18 => 0,
                    _ => return Err(BtfError::Malformed(at)),
                };
        }
        Ok(Self { types, bytes, strings })
    }

    /// Offset of a member of a structure, bytes. Members of unnamed structures inside it count as its own.
    pub(super) fn offset(&self, structure: &str, member: &str) -> Result<u32, BtfError> {
        for at in self.types.iter().skip(1) {
            let info = word(self.bytes, at + 4)?;
            if info >> 24 & 0x1f == KIND_STRUCT
                && self.name(word(self.bytes, *at)?) == structure.as_bytes()
                && let Some(bits) = self.find(*at, member, 8)?
            {
                return Ok(bits / 8);
            }
        }
        Err(BtfError::Missing(structure.into(), member.into()))
    }

    /// Offset of a member within the structure at `at`, bits; `depth` bounds the nesting.
    fn find(&self, at: usize, member: &str, depth: u32) -> Result<Option<u32>, BtfError> {
        let info = word(self.bytes, at + 4)?;
        // With the flag set, the upper 8 bits of an offset are a bitfield's size.
        let mask = if info >> 31 == 1 { 0x00ff_ffff } else { u32::MAX };
        for index in 0..(info & 0xffff) as usize {
            let entry = at + TYPE + index * TYPE;
            let name = self.name(word(self.bytes, entry)?);
            let bits = word(self.bytes, entry + 8)? & mask;
            if name == member.as_bytes() {
                return Ok(Some(bits));
            }
            if !name.is_empty() || depth == 0 {
                continue;
            }
            let Some(inner) = self.types.get(word(self.bytes, entry + 4)? as usize) else {
                continue;
            };
            let kind = word(self.bytes, inner + 4)? >> 24 & 0x1f;
            if matches!(kind, KIND_STRUCT | KIND_UNION)
                && let Some(inner) = self.find(*inner, member, depth - 1)?
            {
                return Ok(Some(bits + inner));
            }
        }
        Ok(None)
    }

    fn name(&self, at: u32) -> &[u8] {
        let rest = self.strings.get(at as usize..).unwrap_or_default();
        rest.split(|byte| *byte == 0).next().unwrap_or_default()
    }
}

fn word(bytes: &[u8], at: usize) -> Result<u32, BtfError> {
    let word = bytes.get(at..at + 4).ok_or(BtfError::Malformed(at))?;
    Ok(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `struct outer { u32 first; struct { u32 inner; }; }`, with a type of 4 bytes as 1.
    fn sample() -> Vec<u8> {
        let strings = b"\0u32\0outer\0first\0inner\0";
        let types: Vec<u32> = [
            [1, 1 << 24, 4].as_slice(),
            &[32],
            &[0, KIND_STRUCT << 24 | 1, 4, 17, 1, 0],
            &[5, KIND_STRUCT << 24 | 2, 8, 11, 1, 0, 0, 2, 32],
        ]
        .concat();
        let mut bytes = Vec::new();
        bytes.extend(MAGIC.to_ne_bytes());
        bytes.extend([1, 0]);
        for word in [24, 0, types.len() as u32 * 4, types.len() as u32 * 4, strings.len() as u32] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(types.iter().flat_map(|word| word.to_ne_bytes()));
        bytes.extend(strings);
        bytes
    }

    #[test]
    fn finds_members_of_unnamed_structures() {
        let bytes = sample();
        let btf = Btf::parse(&bytes).unwrap();
        assert_eq!(btf.offset("outer", "first"), Ok(0));
        assert_eq!(btf.offset("outer", "inner"), Ok(4));
        assert_eq!(btf.offset("outer", "absent"), Err(BtfError::Missing("outer".into(), "absent".into())));
    }

    #[test]
    fn every_prefix_is_refused_or_read() {
        let bytes = sample();
        for len in 0..bytes.len() {
            if let Ok(btf) = Btf::parse(&bytes[..len]) {
                let _ = btf.offset("outer", "inner");
            }
        }
    }

    #[test]
    fn reads_the_running_kernel() {
        let Ok(bytes) = std::fs::read(VMLINUX) else {
            println!("skipped: this kernel publishes no BTF");
            return;
        };
        let btf = Btf::parse(&bytes).unwrap();
        assert!(btf.offset("sock", "sk_sndbuf").unwrap() < 2048);
        assert!(btf.offset("tcp_sock", "bytes_acked").unwrap() > 512);
    }
}
