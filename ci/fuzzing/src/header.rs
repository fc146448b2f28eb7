//! Any bytes as a whole file.

use crate::agreement::{parse, verdict};
use crate::format::header::LENGTH_BYTES;
use crate::memory::peak_of;

/// The most memory that parsing may hold at once, for each byte of the header. The worst is a message
/// that repeats a string of `\u{7f}`: six bytes for each, and up to three times that while it grows.
const BYTES_PER_BYTE: usize = 20;

/// And whatever the header.
const BYTES_FIXED: usize = 1024;

/// Panics unless our reader says of a file what upstream's says, in memory in proportion to the header.
pub fn check(file: &[u8]) {
    let peak = peak_of(|| parse(file));
    let length = file.first_chunk().map_or(0, |field| u64::from_le_bytes(*field));
    let length = usize::try_from(length).unwrap_or(usize::MAX).min(file.len());
    let bound = length * BYTES_PER_BYTE + BYTES_FIXED;
    assert!(peak <= bound, "a header of {length} bytes took {peak} bytes of memory");
    verdict(file);
}

/// Makes another file of one, by way of `change`, which changes bytes up to a length: mostly of the
/// header alone, whose length is then written before it, and now and then of the data's length.
pub fn mutate(
    file: &mut [u8],
    (len, len_max): (usize, usize),
    seed: u32,
    change: impl Fn(&mut [u8], usize, usize) -> usize,
) -> usize {
    let anything = seed.is_multiple_of(8) || len > len_max;
    let Some(header) = header_of(&file[..len]).filter(|_| !anything) else {
        return change(file, len, len_max);
    };
    let mut text = header.to_vec();
    let data_bytes = len - LENGTH_BYTES - text.len();
    text.resize(len_max - LENGTH_BYTES, 0);
    let text_bytes = change(&mut text, header.len(), len_max - LENGTH_BYTES);
    text.truncate(text_bytes);
    let told = number_in(&text, seed / 32).filter(|_| (seed / 8).is_multiple_of(4));
    let data = LENGTH_BYTES + text.len();
    let len = len_max.min(data + told.unwrap_or(data_bytes));
    file[..LENGTH_BYTES].copy_from_slice(&(text.len() as u64).to_le_bytes());
    file[LENGTH_BYTES..data].copy_from_slice(&text);
    file[data..len].fill(0);
    len
}

/// The header of a file, if it is all there and not empty.
fn header_of(file: &[u8]) -> Option<&[u8]> {
    let (field, rest) = file.split_first_chunk()?;
    let length = usize::try_from(u64::from_le_bytes(*field)).ok()?;
    rest.get(..length).filter(|header| !header.is_empty())
}

/// One of the numbers of a header, small enough to be a length of data.
fn number_in(text: &[u8], choice: u32) -> Option<usize> {
    const DATA_BYTES_MAX: usize = 256;
    let digits = text.split(|byte| !byte.is_ascii_digit());
    let number = |digits| std::str::from_utf8(digits).ok()?.parse::<usize>().ok();
    let numbers: Vec<usize> =
        digits.filter_map(number).filter(|number| *number <= DATA_BYTES_MAX).collect();
    numbers.get(choice as usize % numbers.len().max(1)).copied()
}
