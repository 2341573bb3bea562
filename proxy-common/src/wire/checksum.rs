//! Internet checksums, by what changed (RFC 1624).

/// Differences of words that are covered, in the order in which they stand in memory: their sum, with what it carries.
#[derive(Debug, Default, Clone, Copy)]
pub struct Difference(pub u64);

impl Difference {
    /// One word becomes another.
    #[inline(always)]
    pub fn replace(&mut self, old: u32, new: u32) {
        self.0 += !old as u64;
        self.0 += new as u64;
    }

    /// What is to be added in one's complement, as `bpf_l4_csum_replace` takes it.
    #[inline(always)]
    #[must_use]
    pub const fn sum(self) -> u32 {
        let sum = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        let sum = (sum & 0xffff_ffff) + (sum >> 32);
        sum as u32
    }

    /// A checksum after the change.
    #[inline(always)]
    #[must_use]
    pub const fn apply(self, checksum: u16) -> u16 {
        let sum = self.0 + !checksum as u64;
        // At most 2^36 or so: two steps to 32 bits and a bit, three more to 16.
        let sum = (sum & 0xffff_ffff) + (sum >> 32);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        !(sum as u16)
    }
}

/// What is to be added, in one's complement, to a checksum whose pseudo header gets other addresses.
#[must_use]
pub fn of_addresses(old: [[u32; 4]; 2], new: [[u32; 4]; 2]) -> u32 {
    let mut difference = Difference::default();
    for (old, new) in old.as_flattened().iter().zip(new.as_flattened()) {
        difference.replace(*old, *new);
    }
    difference.sum()
}
