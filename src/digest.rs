//! SHA-256 of stretches of a file, made of its bytes as they pass, in file order.

use std::io;
use std::ops::Range;

use sha2::{Digest as _, Sha256};

use crate::source::{Source, read_full};

/// A finished SHA-256.
pub(crate) type Digest = [u8; 32];

/// A digest as it is commonly written.
pub(crate) fn hex(digest: &Digest) -> String {
    let (high, low) = digest.split_at(16);
    let number = |half: &[u8]| half.iter().fold(0, |sum, &byte| (sum << 8) | u128::from(byte));
    format!("{:032x}{:032x}", number(high), number(low))
}

/// The digests of the stretches of one file.
#[derive(Debug)]
pub(crate) struct Digests {
    stretches: Vec<Range<u64>>,
    /// Up to where bytes were taken.
    position: u64,
    hasher: Sha256,
    finished: Vec<Digest>,
}

impl Digests {
    /// Of stretches that stand in file order and do not overlap.
    pub(crate) fn new(stretches: Vec<Range<u64>>) -> Self {
        Self { stretches, position: 0, hasher: Sha256::new(), finished: Vec::new() }
    }

    /// Takes the bytes at an offset. What lies before it and was not taken yet is read from the source:
    /// the load passes over what belongs to no tensor.
    pub(crate) fn take(
        &mut self,
        source: &dyn Source,
        offset: u64,
        bytes: &[u8],
    ) -> io::Result<()> {
        const PIECE_BYTES: u64 = 1 << 20;
        while let Some(needed) = self.needed().filter(|&needed| needed < offset) {
            let mut piece = vec![0; usize::try_from(PIECE_BYTES.min(offset - needed)).unwrap_or(0)];
            let count = read_full(source, needed, &mut piece)?;
            if count < piece.len() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.feed(needed, &piece);
        }
        self.feed(offset, bytes);
        Ok(())
    }

    /// Takes the rest of the file and gives the digests in the order of the stretches.
    pub(crate) fn finish(mut self, source: &dyn Source) -> io::Result<Vec<Digest>> {
        self.take(source, source.len(), &[])?;
        Ok(self.finished)
    }

    /// The first byte that a stretch lacks; finishes those that lack none.
    fn needed(&mut self) -> Option<u64> {
        while let Some(stretch) = self.stretches.get(self.finished.len()) {
            let needed = self.position.max(stretch.start);
            if needed < stretch.end {
                return Some(needed);
            }
            self.finished.push(self.hasher.finalize_reset().into());
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

    use super::{Digest, Digests, hex};
    use crate::source::memory::MemorySource;

    #[test]
    fn stretches_are_digested_however_their_bytes_come() {
        let content: Vec<u8> = (0..3000_u32).map(|place| (place % 251).to_le_bytes()[0]).collect();
        let source = MemorySource(content.clone());
        let stretches = vec![0..3_u64, 3..3, 10..1999, 2500..3000];
        let parts = [&content[..3], &[], &content[10..1999], &content[2500..]];
        let expected = parts.map(|part| -> Digest { Sha256::digest(part).into() });
        for step in [1, 7, 512, 5000] {
            let mut digests = Digests::new(stretches.clone());
            // Overlaps and gaps, as aligned reads have.
            for offset in (5..content.len()).step_by(step) {
                let end = content.len().min(offset + step + 3);
                digests.take(&source, offset as u64, &content[offset..end]).unwrap();
            }
            assert_eq!(digests.finish(&source).unwrap(), expected);
        }
    }

    #[test]
    fn a_known_digest() {
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let source = MemorySource(b"abc".to_vec());
        let all = 0..3_u64;
        assert_eq!(hex(&Digests::new(vec![all]).finish(&source).unwrap()[0]), abc);
    }

    #[test]
    fn a_file_that_is_too_short_is_an_error() {
        let source = MemorySource(vec![1; 10]);
        let all = 0..20_u64;
        assert!(Digests::new(vec![all]).take(&source, 15, &[0; 5]).is_err());
    }
}
