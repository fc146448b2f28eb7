//! Figures of stretches of a file, made of its bytes as they pass, in file order.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use sha2::{Digest as _, Sha256};

use crate::source::{Source, read_full};

/// A finished SHA-256.
pub(crate) type Digest = [u8; 32];

/// Makes one figure of bytes that come in order.
pub(crate) trait Hasher: Default + Send + 'static {
    /// What comes of them.
    type Figure: Send + 'static;

    /// Takes the next bytes.
    fn update(&mut self, bytes: &[u8]);

    /// The figure of all that was taken.
    fn finish(self) -> Self::Figure;
}

impl Hasher for Sha256 {
    type Figure = Digest;

    fn update(&mut self, bytes: &[u8]) {
        sha2::Digest::update(self, bytes);
    }

    fn finish(self) -> Digest {
        self.finalize().into()
    }
}

/// The sum that `kernels/checksum.cu` makes of memory on a GPU: of 8-byte words, each mixed with its
/// place, the last one filled up with zeros, and of the number of bytes.
#[derive(Debug, Default)]
pub(crate) struct Sum {
    so_far: u64,
    bytes: u64,
    /// The beginning of a word whose end has not come yet.
    begun: [u8; 8],
}

impl Sum {
    fn add(&mut self, word: [u8; 8]) {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let place = (self.bytes / 8 + 1).wrapping_mul(STEP);
        self.so_far = self.so_far.wrapping_add(mix(u64::from_le_bytes(word).wrapping_add(place)));
        self.bytes += 8;
    }
}

/// The finaliser of splitmix64 (Steele, Lea and Flood: Fast Splittable Pseudorandom Number Generators,
/// 2014).
fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

impl Hasher for Sum {
    type Figure = u64;

    fn update(&mut self, mut bytes: &[u8]) {
        let begun = usize::try_from(self.bytes % 8).unwrap_or_default();
        if begun > 0 {
            let (first, rest) = bytes.split_at(bytes.len().min(8 - begun));
            self.begun[begun..begun + first.len()].copy_from_slice(first);
            bytes = rest;
            if begun + first.len() < 8 {
                self.bytes += first.len() as u64;
                return;
            }
            self.bytes -= begun as u64;
            self.add(self.begun);
        }
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.add(*word);
        }
        self.begun[..rest.len()].copy_from_slice(rest);
        self.bytes += rest.len() as u64;
    }

    fn finish(mut self) -> u64 {
        let bytes = self.bytes;
        let begun = usize::try_from(bytes % 8).unwrap_or_default();
        if begun > 0 {
            self.begun[begun..].fill(0);
            self.bytes -= begun as u64;
            self.add(self.begun);
        }
        self.so_far.wrapping_add(mix(bytes))
    }
}

/// A digest as it is commonly written.
pub(crate) fn hex(digest: &Digest) -> String {
    let (high, low) = digest.split_at(16);
    let number = |half: &[u8]| half.iter().fold(0, |sum, &byte| (sum << 8) | u128::from(byte));
    format!("{:032x}{:032x}", number(high), number(low))
}

/// The figures of the stretches of one file.
#[derive(Debug)]
pub(crate) struct Digests<H: Hasher> {
    stretches: Vec<Range<u64>>,
    /// Up to where bytes were taken.
    position: u64,
    hasher: H,
    finished: Vec<H::Figure>,
}

impl<H: Hasher> Digests<H> {
    /// Of stretches that stand in file order and do not overlap.
    pub(crate) fn new(stretches: Vec<Range<u64>>) -> Self {
        Self { stretches, position: 0, hasher: H::default(), finished: Vec::new() }
    }

    /// Takes the bytes at an offset. What lies before it and was not taken yet is read from the source,
    /// unless nobody wants it any more: the load passes over what belongs to no tensor.
    pub(crate) fn take(
        &mut self,
        source: &dyn Source,
        offset: u64,
        bytes: &[u8],
        stopped: &AtomicBool,
    ) -> io::Result<()> {
        const PIECE_BYTES: usize = 1 << 20;
        let mut piece = Vec::new();
        while let Some(needed) = self.needed().filter(|&needed| needed < offset) {
            if stopped.load(Ordering::Relaxed) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let left = usize::try_from(offset - needed).unwrap_or(PIECE_BYTES);
            piece.resize(left.min(PIECE_BYTES), 0);
            let count = read_full(source, needed, &mut piece)?;
            if count < piece.len() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.feed(needed, &piece);
        }
        self.feed(offset, bytes);
        Ok(())
    }

    /// Takes the rest of the file and gives the figures in the order of the stretches.
    pub(crate) fn finish(
        mut self,
        source: &dyn Source,
        stopped: &AtomicBool,
    ) -> io::Result<Vec<H::Figure>> {
        self.take(source, source.len(), &[], stopped)?;
        Ok(self.finished)
    }

    /// The first byte that a stretch lacks; finishes those that lack none.
    fn needed(&mut self) -> Option<u64> {
        while let Some(stretch) = self.stretches.get(self.finished.len()) {
            let needed = self.position.max(stretch.start);
            if needed < stretch.end {
                return Some(needed);
            }
            self.finished.push(std::mem::take(&mut self.hasher).finish());
        }
        None
    }

    /// Takes the bytes at an offset, before which nothing is lacking.
    fn feed(&mut self, offset: u64, bytes: &[u8]) {
        let end = offset + bytes.len() as u64;
        while let Some(needed) = self.needed().filter(|&needed| needed < end) {
            let until = end.min(self.stretches[self.finished.len()].end);
            let place = |at: u64| usize::try_from(at - offset).unwrap_or(usize::MAX);
            self.hasher.update(&bytes[place(needed)..place(until)]);
            self.position = until;
        }
    }
}

#[cfg(test)]
mod tests {
    use sha2::{Digest as _, Sha256};

    use std::sync::atomic::AtomicBool;

    use super::{Digest, Digests, Hasher, Sum, hex};
    use crate::source::memory::MemorySource;

    static GOES_ON: AtomicBool = AtomicBool::new(false);

    #[test]
    fn stretches_are_digested_however_their_bytes_come() {
        let content: Vec<u8> = (0..3000_u32).map(|place| (place % 251).to_le_bytes()[0]).collect();
        let source = MemorySource(content.clone());
        let stretches = vec![0..3_u64, 3..3, 10..1999, 2500..3000];
        let parts = [&content[..3], &[], &content[10..1999], &content[2500..]];
        let expected = parts.map(|part| -> Digest { Sha256::digest(part).into() });
        for step in [1, 7, 512, 5000] {
            let mut digests = Digests::<Sha256>::new(stretches.clone());
            // Overlaps and gaps, as aligned reads have.
            for offset in (5..content.len()).step_by(step) {
                let end = content.len().min(offset + step + 3);
                digests.take(&source, offset as u64, &content[offset..end], &GOES_ON).unwrap();
            }
            assert_eq!(digests.finish(&source, &GOES_ON).unwrap(), expected);
        }
    }

    #[test]
    fn a_known_digest() {
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let source = MemorySource(b"abc".to_vec());
        let all = 0..3_u64;
        let digests = Digests::<Sha256>::new(vec![all]).finish(&source, &GOES_ON).unwrap();
        assert_eq!(hex(&digests[0]), abc);
    }

    /// The words of a kernel, told apart by place and number of bytes, however the bytes come.
    #[test]
    fn a_sum_is_that_of_its_words() {
        let bytes: Vec<u8> = (0..77_u8).collect();
        let sum_in_steps = |count: usize, step: usize| {
            let mut sum = Sum::default();
            bytes[..count].chunks(step).for_each(|part| sum.update(part));
            sum.finish()
        };
        let sums: Vec<u64> = (0..=bytes.len()).map(|count| sum_in_steps(count, 100)).collect();
        for (count, sum) in sums.iter().enumerate() {
            assert!((1..12).all(|step| sum_in_steps(count, step) == *sum), "{count} bytes");
            assert!(!sums[..count].contains(sum));
        }
        // splitmix64's first two numbers from the seed 0, as its authors give them, are those of words
        // of zeros; that of the number of bytes comes to them.
        let mut zeros = Sum::default();
        zeros.update(&[0; 16]);
        let published = 0xe220_a839_7b1d_cdaf_u64.wrapping_add(0x6e78_9e6a_a1b9_65f4);
        assert_eq!(zeros.finish(), published.wrapping_add(super::mix(16)));
    }

    #[test]
    fn a_file_that_is_too_short_is_an_error() {
        let source = MemorySource(vec![1; 10]);
        let all = 0..20_u64;
        let mut digests = Digests::<Sha256>::new(vec![all]);
        assert!(digests.take(&source, 15, &[0; 5], &GOES_ON).is_err());
    }

    #[test]
    fn nothing_is_read_for_who_has_stopped() {
        let source = MemorySource(vec![1; 10]);
        let all = 0..10_u64;
        let mut digests = Digests::<Sha256>::new(vec![all]);
        let stopped = AtomicBool::new(true);
        digests.take(&source, 0, &[1; 5], &stopped).unwrap();
        assert!(digests.finish(&source, &stopped).is_err());
    }
}
