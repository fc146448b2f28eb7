//! Machine code for one kind of GPU, an ELF file, read for its entries and the sizes of their parameters.
//! What the code does is not simulated: the host build of each kernel runs in its place.

use std::collections::HashMap;

use crate::error::{Error, Outcome};
use crate::settings::settings;

/// How such a file begins.
pub(crate) const MAGIC: [u8; 4] = *b"\x7fELF";

const HEADER_BYTES: usize = 64;
const SECTION_BYTES: usize = 64;

/// What the header must say: at, bytes, number. 64 bits, low bytes first, to be run, for a GPU, and sections
/// of the known size.
const HEADER: [(usize, usize, usize); 5] =
    [(4, 1, 2), (5, 1, 1), (16, 2, 2), (18, 2, 190), (58, 2, SECTION_BYTES)];

/// More than any file has: a number in a header that says so is wrong.
const FILE_BYTES_MAX: usize = 16 << 20;

/// A section without bytes in the file.
const NO_BITS: usize = 8;

/// A record of `.nv.info.NAME` whose value has a size of its own.
const SIZED: u8 = 4;

/// The record that tells of one parameter, and where its size is: the upper bits of its last word.
const PARAMETER: usize = 0x17;
const PARAMETER_BYTES: usize = 12;
const SIZE_SHIFT: usize = 18;

/// The first driver that is said to take code of the assemblers in use here.
const DRIVER_MIN: i32 = 12000;

/// A number of so many bytes, the lowest first; an error where the file is shorter.
fn number(bytes: &[u8], at: usize, width: usize) -> Outcome<usize> {
    let field = at.checked_add(width).and_then(|end| bytes.get(at..end));
    let field = field.ok_or(Error::INVALID_IMAGE)?;
    Ok(field.iter().rev().fold(0, |number, &byte| number << 8 | usize::from(byte)))
}

struct Section<'file> {
    name: String,
    content: &'file [u8],
}

/// Where a stretch of a file ends.
fn end(start: usize, bytes: usize) -> Outcome<usize> {
    let end = start.checked_add(bytes).filter(|&end| end <= FILE_BYTES_MAX);
    end.ok_or(Error::INVALID_IMAGE)
}

/// The whole of a file, by what its header and its table of sections say.
///
/// # Safety
/// `image` must point to an ELF file that lives as long as the process.
pub(crate) unsafe fn file(image: *const u8) -> Outcome<&'static [u8]> {
    // SAFETY: a file is no shorter than its header.
    let header = unsafe { std::slice::from_raw_parts(image, HEADER_BYTES) };
    for (at, width, expected) in HEADER {
        if number(header, at, width)? != expected {
            return Err(Error::INVALID_IMAGE);
        }
    }
    let (table, count) = (number(header, 40, 8)?, number(header, 60, 2)?);
    let table_end = end(table, count * SECTION_BYTES)?;
    // SAFETY: the header says that the table is there.
    let bytes = unsafe { std::slice::from_raw_parts(image, table_end) };
    let mut whole = table_end;
    for at in (table..table_end).step_by(SECTION_BYTES) {
        if number(bytes, at + 4, 4)? != NO_BITS {
            whole = whole.max(end(number(bytes, at + 24, 8)?, number(bytes, at + 32, 8)?)?);
        }
    }
    // SAFETY: the table says that the sections are there.
    Ok(unsafe { std::slice::from_raw_parts(image, whole) })
}

/// The kernels of a file, each with the sizes of its parameters.
pub(crate) fn entries(file: &[u8]) -> Outcome<HashMap<String, Vec<usize>>> {
    check_architecture(file)?;
    let sections = sections(file)?;
    let named = |name: &str| sections.iter().find(|section| section.name == name);
    let kernels = sections.iter().filter_map(|section| section.name.strip_prefix(".text."));
    kernels
        .map(|kernel| {
            let told = named(&format!(".nv.info.{kernel}")).ok_or(Error::INVALID_IMAGE)?;
            Ok((kernel.to_owned(), parameters(told.content)?))
        })
        .collect()
}

/// Code runs on cards of its own major number whose minor one is no smaller. Code with features of one
/// architecture alone, and all code for GPUs in one chip with a processor, runs there alone.
fn check_architecture(file: &[u8]) -> Outcome {
    let flags = number(file, 48, 4)?;
    let (built_for, alone) = match number(file, 8, 1)? {
        7 => (flags & 0xFF, flags & 0x800 != 0),
        8 => (flags >> 8 & 0xFF, flags & 0x8 != 0),
        _ => return Err(Error::INVALID_IMAGE),
    };
    let built_for = i32::try_from(built_for).map_err(|_| Error::INVALID_IMAGE)?;
    let device = settings().compute_capability;
    let compatible = !alone && !settings().is_integrated();
    let fits =
        built_for == device || (compatible && built_for / 10 == device / 10 && built_for <= device);
    if fits && settings().driver_version >= DRIVER_MIN {
        Ok(())
    } else {
        Err(Error::NO_BINARY_FOR_GPU)
    }
}

fn sections(file: &[u8]) -> Outcome<Vec<Section<'_>>> {
    let (table, count, names) = (number(file, 40, 8)?, number(file, 60, 2)?, number(file, 62, 2)?);
    let content = |section: usize| {
        let at = table + section * SECTION_BYTES;
        if number(file, at + 4, 4)? == NO_BITS {
            return Ok(&[][..]);
        }
        let (start, bytes) = (number(file, at + 24, 8)?, number(file, at + 32, 8)?);
        file.get(start..start + bytes).ok_or(Error::INVALID_IMAGE)
    };
    let all_names = content(names)?;
    (0..count)
        .map(|section| {
            let name = number(file, table + section * SECTION_BYTES, 4)?;
            let name = all_names.get(name..).ok_or(Error::INVALID_IMAGE)?;
            let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
            let name = String::from_utf8_lossy(name).into_owned();
            Ok(Section { name, content: content(section)? })
        })
        .collect()
}

/// The sizes of a kernel's parameters, in their order.
fn parameters(records: &[u8]) -> Outcome<Vec<usize>> {
    let (mut found, mut at) = (Vec::new(), 0);
    while at < records.len() {
        let (format, attribute) = (records[at], number(records, at + 1, 1)?);
        let bytes = if format == SIZED { number(records, at + 2, 2)? } else { 0 };
        if format == SIZED && attribute == PARAMETER {
            if bytes != PARAMETER_BYTES {
                return Err(Error::INVALID_IMAGE);
            }
            let (ordinal, word) = (number(records, at + 8, 2)?, number(records, at + 12, 4)?);
            found.push((ordinal, word >> SIZE_SHIFT));
        }
        at += 4 + bytes;
    }
    found.sort_unstable();
    Ok(found.into_iter().map(|(_, bytes)| bytes).collect())
}
