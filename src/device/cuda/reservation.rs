//! How much of a GPU's memory a load takes, and in which pieces torch gets it from the driver.

use crate::config::{
    BLOCK_BYTES_MAX, BLOCK_BYTES_MIN, BLOCKS_MAX, DEVICE_ALIGNMENT_BYTES, TORCH_SMALL_BYTES_MAX,
};

/// A block of memory that torch reserves, and the large tensors that it is for: exactly their size.
#[derive(Debug, Default)]
pub(crate) struct Block {
    /// Its size.
    pub(crate) bytes: u64,
    /// Whose memory it is.
    pub(crate) targets: Vec<usize>,
}

impl Block {
    /// The first target in it.
    pub(crate) fn first(&self) -> Option<usize> {
        self.targets.first().copied()
    }
}

/// The blocks of a load. None is more than a part of it: as long as one tensor in it lives, nothing of it
/// goes back to the driver.
#[derive(Debug, Default)]
pub(crate) struct Blocks {
    /// The block of each target.
    of: Vec<usize>,
    all: Vec<Block>,
    /// Those that torch may have idle in its cache.
    idle: Vec<usize>,
}

impl Blocks {
    /// For targets of those sizes, in the order in which they will be filled, where torch has so many
    /// bytes idle in its cache.
    pub(crate) fn new(sizes: &[u64], mut idle: u64) -> Self {
        let large = |bytes: u64| if bytes > TORCH_SMALL_BYTES_MAX { bytes } else { 0 };
        let sizes: Vec<u64> = sizes.iter().map(|&bytes| room_for([large(bytes)].iter())).collect();
        let total = sizes.iter().copied().fold(0, u64::saturating_add);
        let bytes_max = (total / BLOCKS_MAX).clamp(BLOCK_BYTES_MIN, BLOCK_BYTES_MAX);
        let (mut of, mut blocks) = (Vec::with_capacity(sizes.len()), vec![Block::default()]);
        for (target, bytes) in sizes.into_iter().enumerate() {
            let open = blocks.len() - 1;
            if blocks[open].bytes.saturating_add(bytes) > bytes_max {
                blocks.push(Block::default());
            }
            let number = blocks.len() - 1;
            of.push(number);
            if bytes > 0 {
                blocks[number].bytes = blocks[number].bytes.saturating_add(bytes);
                blocks[number].targets.push(target);
            }
        }
        let mut told = Vec::new();
        for (number, block) in blocks.iter_mut().enumerate().filter(|(_, block)| block.bytes > 0) {
            if block.bytes <= idle {
                idle -= block.bytes;
                told.push(number);
            } else if block.targets.len() < 2 {
                *block = Block::default(); // torch makes it as well by itself
            }
        }
        Self { of, all: blocks, idle: told }
    }

    /// Of the blocks that torch may have idle in its cache the first target and the size, once.
    pub(crate) fn take_idle(&mut self) -> Vec<(usize, u64)> {
        let idle = std::mem::take(&mut self.idle).into_iter().map(|number| &self.all[number]);
        idle.filter_map(|block| Some((block.first()?, block.bytes))).collect()
    }

    /// The block that a large target is in, once; none where nothing is to be reserved for it.
    pub(crate) fn take(&mut self, target: usize) -> Option<Block> {
        let block = self.of.get(target).and_then(|&number| self.all.get_mut(number));
        block.map(std::mem::take).filter(|block| block.bytes > 0)
    }
}

/// The bytes of a GPU that tensors of those sizes take; no file is so large that more than a number can
/// hold are wanted, but headers may say so.
pub(crate) fn room_for<'size>(sizes: impl Iterator<Item = &'size u64>) -> u64 {
    let rounded = |bytes: &u64| bytes.checked_next_multiple_of(DEVICE_ALIGNMENT_BYTES);
    sizes.map(|bytes| rounded(bytes).unwrap_or(u64::MAX)).fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::{BLOCK_BYTES_MAX, BLOCK_BYTES_MIN, Blocks};

    const MIB: u64 = 1 << 20;

    /// What is reserved before each target is made, in MiB.
    fn reserved(sizes: &[u64], idle: u64) -> Vec<u64> {
        let sizes: Vec<u64> = sizes.iter().map(|size| size * MIB).collect();
        let mut blocks = Blocks::new(&sizes, idle * MIB);
        let taken = |target| blocks.take(target).map_or(0, |block| block.bytes / MIB);
        (0..sizes.len()).map(taken).collect()
    }

    #[test]
    fn a_block_is_as_large_as_what_is_in_it_and_a_part_of_the_load() {
        assert_eq!(BLOCK_BYTES_MIN, 128 * MIB);
        assert_eq!(reserved(&[40, 40, 40, 40, 40, 40, 40], 0), [120, 0, 0, 120, 0, 0, 0]);
        assert_eq!(reserved(&[200, 30, 0, 30, 200], 0), [0, 60, 0, 0, 0]);
        let told = reserved(&[100; 200], 0);
        assert_eq!(told.iter().sum::<u64>(), 200 * 100);
        assert_eq!(told.iter().max(), Some(&(BLOCK_BYTES_MAX / MIB / 100 * 100)));
    }

    #[test]
    fn a_block_is_for_the_large_tensors_in_it() {
        let mut blocks = Blocks::new(&[40 * MIB, 1, 0, 50 * MIB, 60 * MIB, 7, 60 * MIB], 0);
        assert_eq!(blocks.take(3).unwrap().targets, [0, 3]);
        assert!(blocks.take(0).is_none());
        assert_eq!(blocks.take(4).unwrap().targets, [4, 6]);
    }

    #[test]
    fn what_torch_has_idle_is_known() {
        let idle = |sizes: &[u64], idle| {
            let sizes: Vec<u64> = sizes.iter().map(|size| size * MIB).collect();
            Blocks::new(&sizes, idle * MIB).take_idle()
        };
        assert!(idle(&[60; 6], 100).is_empty());
        assert_eq!(idle(&[60; 6], 250), [(0, 120 * MIB), (2, 120 * MIB)]);
        assert_eq!(idle(&[200, 30, 60], 210), [(0, 200 * MIB)]);
        assert_eq!(idle(&[200, 30, 60], 90), [(1, 90 * MIB)]);
    }
}
