//! Machine code for one kind of GPU, an ELF file, read for its entries and the sizes of their parameters.
//! What the code does is not simulated: the host build of each kernel runs in its place.

use std::collections::HashMap;

use crate::error::{Error, Outcome};
use crate::settings::settings;

/// How such a file begins.
pub(crate) const MAGIC: [u8; 4] = *b"\x7fELF";

const HEADER_BYTES: usize = 64;
const SECTION_BYTES: usize = 64;
const MACHINE_CUDA: usize = 190;

/// A section without bytes in the file.
const NO_BITS: usize = 8;

/// A record of `.nv.info.NAME` whose value has a size of its own.
const SIZED: u8 = 4;

/// The record that tells of one parameter, and where its size is: the upper bits of its last word.
const PARAMETER: u8 = 0x17;
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

/// The whole of a file, by what its header and its table of sections say.
///
/// # Safety
/// `image` must point to an ELF file that lives as long as the process.
pub(crate) unsafe fn file(image: *const u8) -> Outcome<&'static [u8]> {
    // SAFETY: a file is no shorter than its header.
    let header = unsafe { std::slice::from_raw_parts(image, HEADER_BYTES) };
    let (table, count) = (number(header, 40, 8)?, number(header, 60, 2)?);
    let table_end = table + count * SECTION_BYTES;
    // SAFETY: the header says that the table is there.
    let bytes = unsafe { std::slice::from_raw_parts(image, table_end) };
    let mut end = table_end;
    for at in (table..table_end).step_by(SECTION_BYTES) {
        if number(bytes, at + 4, 4)? != NO_BITS {
            end = end.max(number(bytes, at + 24, 8)? + number(bytes, at + 32, 8)?);
        }
    }
    // SAFETY: the table says that the sections are there.
    Ok(unsafe { std::slice::from_raw_parts(image, end) })
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

/// Code runs on GPUs of its own major number whose minor one is no smaller.
fn check_architecture(file: &[u8]) -> Outcome {
    if number(file, 18, 2)? != MACHINE_CUDA {
        return Err(Error::INVALID_IMAGE);
    }
    let flags = number(file, 48, 4)?;
    let built_for = match number(file, 8, 1)? {
        7 => flags & 0xFF,
        8 => flags >> 8 & 0xFF,
        _ => return Err(Error::INVALID_IMAGE),
    };
    let built_for = i32::try_from(built_for).map_err(|_| Error::INVALID_IMAGE)?;
    let device = settings().compute_capability;
    let fits = built_for / 10 == device / 10 && built_for <= device;
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
        if format == SIZED && attribute == usize::from(PARAMETER) {
            let (ordinal, word) = (number(records, at + 8, 2)?, number(records, at + 12, 4)?);
            found.push((ordinal, word >> SIZE_SHIFT));
        }
        at += 4 + bytes;
    }
    found.sort_unstable();
    Ok(found.into_iter().map(|(_, bytes)| bytes).collect())
}
