//! Reads past the page cache in turns: of whole aligned blocks, into memory for whole blocks.

use std::ops::Range;

use crate::config::ALIGNMENT_BYTES;
use crate::reader::Request;

/// What is left of a read. After a turn that gave less than it was asked, the next one begins at the
/// last aligned place before its end: what direct I/O gives can end anywhere, but begins at a block.
#[derive(Debug)]
pub(crate) struct Blocks {
    offset: u64,
    bytes: usize,
    /// Bytes that have come.
    done: usize,
}

impl Blocks {
    /// All of a read.
    pub(crate) fn new(request: &Request) -> Self {
        Self { offset: request.offset, bytes: request.bytes, done: 0 }
    }

    /// What the next turn fills of the memory, and where it begins in the file.
    pub(crate) fn next(&self) -> (Range<usize>, u64) {
        let from = self.from();
        (from..self.bytes.next_multiple_of(ALIGNMENT_BYTES), self.offset + from as u64)
    }

    /// Takes what a turn gave. Tells whether the read has ended, with all of its bytes or those up to the
    /// end of the file; otherwise there is another turn.
    pub(crate) fn take(&mut self, count: usize) -> bool {
        let until = self.from() + count;
        let ended = until <= self.done || until >= self.bytes;
        self.done = self.done.max(until).min(self.bytes);
        ended
    }

    /// Bytes that have come.
    pub(crate) fn done(&self) -> usize {
        self.done
    }

    fn from(&self) -> usize {
        self.done / ALIGNMENT_BYTES * ALIGNMENT_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::{ALIGNMENT_BYTES, Blocks, Request};

    /// Reads a part of a file whose turns give at most so many bytes.
    fn read(file: &[u8], offset: usize, bytes: usize, most: usize) -> Vec<u8> {
        let mut memory = vec![0xee; bytes.next_multiple_of(ALIGNMENT_BYTES)];
        let mut blocks = Blocks::new(&Request { tag: 0, shard: 0, offset: offset as u64, bytes });
        loop {
            let (part, begin) = blocks.next();
            let begin = usize::try_from(begin).unwrap();
            assert!(part.start.is_multiple_of(ALIGNMENT_BYTES), "begins within a block");
            assert!(part.len().is_multiple_of(ALIGNMENT_BYTES), "asks for a part of a block");
            let there = file.len().saturating_sub(begin);
            let count = part.len().min(most).min(there);
            memory[part][..count].copy_from_slice(&file[begin..begin + count]);
            if blocks.take(count) {
                memory.truncate(blocks.done());
                return memory;
            }
        }
    }

    #[test]
    fn short_turns_of_a_direct_read_give_the_bytes_of_the_file() {
        let file: Vec<u8> = (0..40_000_u32).flat_map(u32::to_le_bytes).collect();
        for most in [ALIGNMENT_BYTES + 1, 9_000, 3 * ALIGNMENT_BYTES, usize::MAX] {
            for bytes in [1, ALIGNMENT_BYTES, ALIGNMENT_BYTES + 1, 33_333, 100_000] {
                for offset in [0, ALIGNMENT_BYTES, 10 * ALIGNMENT_BYTES] {
                    let end = offset + bytes;
                    assert_eq!(read(&file, offset, bytes, most), file[offset..end], "{most}");
                }
            }
            let cut = 8 * ALIGNMENT_BYTES + 77;
            let got = read(&file[..cut], ALIGNMENT_BYTES, 100_000, most);
            assert_eq!(got, file[ALIGNMENT_BYTES..cut], "up to the end of the file, {most}");
        }
    }
}
