//! How large the reads of a load are.

use crate::config::{
    ALIGNMENT_BYTES, FIRST_CHUNK_BYTES, GAP_BYTES_MAX, REMOTE_GAP_BYTES_MAX, SMALL_CHUNK_BYTES_MAX,
    SMALL_FIRST_CHUNK_BYTES,
};

/// How large reads are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chunks {
    /// The first ones of a load that takes several.
    first_bytes: u64,
    /// At most, most of them.
    bytes: u64,
    /// A load of no more is one read.
    one_read_bytes_max: u64,
    /// Unwanted bytes that are read rather than skipped.
    pub(super) gap_bytes_max: u64,
}

impl Chunks {
    /// The first four reads are small, the next four twice as large, and so on: the sooner one is done,
    /// the sooner the device has something to do.
    pub(crate) fn growing(bytes: usize) -> Self {
        let gap_bytes_max = GAP_BYTES_MAX;
        let bytes = bytes as u64;
        Self { first_bytes: FIRST_CHUNK_BYTES, bytes, one_read_bytes_max: bytes, gap_bytes_max }
    }

    /// Smaller, for a single small tensor of which so many bytes are read, gaps included: no thread helps its
    /// caller, who reads one while a GPU copies the one before.
    pub(crate) fn of_one_small(read_bytes: u64) -> Self {
        let (first_bytes, gap_bytes_max) = (SMALL_FIRST_CHUNK_BYTES, GAP_BYTES_MAX);
        let half = (read_bytes / 2).next_multiple_of(ALIGNMENT_BYTES as u64);
        let bytes = half.clamp(first_bytes, SMALL_CHUNK_BYTES_MAX);
        Self { first_bytes, bytes, one_read_bytes_max: 0, gap_bytes_max }
    }

    /// All of one size: each is a request, which costs the way to the source and back.
    pub(crate) fn equal(bytes: usize) -> Self {
        let (bytes, gap_bytes_max) = (bytes as u64, REMOTE_GAP_BYTES_MAX);
        Self { first_bytes: bytes, bytes, one_read_bytes_max: bytes, gap_bytes_max }
    }

    /// For a load of so many bytes.
    pub(super) fn of_load(self, load_bytes: u64) -> Self {
        let one = load_bytes <= self.one_read_bytes_max;
        let first_bytes = if one { self.bytes } else { self.first_bytes };
        Self { first_bytes, ..self }
    }

    /// The size of a read, after so many.
    pub(super) fn bytes(self, reads_before: usize) -> u64 {
        self.bytes.min(self.first_bytes << (reads_before / 4).min(4))
    }
}

#[cfg(test)]
mod tests {
    use super::Chunks;

    /// The sizes of a load's reads, all of whose bytes lie together.
    fn sizes(chunks: Chunks, load_bytes: u64) -> Vec<u64> {
        let chunks = chunks.of_load(load_bytes);
        let (mut left, mut sizes) = (load_bytes, Vec::new());
        while left > 0 {
            sizes.push(chunks.bytes(sizes.len()).min(left));
            left -= sizes[sizes.len() - 1];
        }
        sizes
    }

    #[test]
    fn a_single_small_tensor_is_read_in_parts() {
        let of_one = |bytes: u64| sizes(Chunks::of_one_small(bytes), bytes);
        let kib = 1 << 10;
        assert_eq!(of_one(256 * kib), [256 * kib]);
        assert_eq!(of_one(257 * kib), [256 * kib, kib]);
        assert_eq!(of_one(700 * kib), [256 * kib, 256 * kib, 188 * kib]);
        let many = of_one(8 << 20);
        assert_eq!(
            many[..9],
            [256, 256, 256, 256, 512, 512, 512, 512, 1024].map(|size| size * kib)
        );
        assert_eq!(many.len(), 13);
    }

    #[test]
    fn several_tensors_that_fit_are_one_read() {
        assert_eq!(sizes(Chunks::growing(8 << 20), 2 << 20), [2 << 20]);
        let several = sizes(Chunks::growing(2 << 20), 9 << 20);
        assert_eq!(several, [1, 1, 1, 1, 2, 2, 1].map(|size| size << 20));
    }
}
