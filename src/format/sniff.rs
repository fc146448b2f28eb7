//! What a refused file probably is, and what to do about it.

use crate::format::header::{Fault, HEADER_BYTES_MAX, LENGTH_BYTES};

/// Bytes from the start of a file that are enough to tell.
pub(crate) const SNIFF_BYTES: usize = 512;

/// First bytes of other formats, and what they are.
const SIGNATURES: [(&[u8], &str); 12] = [
    (b"PK\x03\x04", "a zip archive, as torch.save writes: load it with torch.load"),
    (b"\x80\x02", "a pickle, as old torch.save writes: load it with torch.load"),
    (b"\x80\x03", "a pickle: load it with torch.load"),
    (b"\x80\x04", "a pickle: load it with torch.load"),
    (b"\x80\x05", "a pickle: load it with torch.load"),
    (b"GGUF", "a gguf file: load it with a gguf reader such as llama.cpp's"),
    (b"\x1f\x8b", "a gzip archive: decompress it first"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive: decompress it first"),
    (b"\x93NUMPY", "a NumPy array: load it with numpy.load"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file: load it with h5py"),
    (b"\xef\xbb\xbf", "a text file with a byte order mark"),
    (b"\x7fELF", "a program or library"),
];

/// A sentence on what the file probably is, or where its fault lies, and what to do.
pub(crate) fn hint(first: &[u8], file_bytes: u64, fault: &Fault) -> String {
    if file_bytes == 0 {
        return "the file is empty: download it again".to_owned();
    }
    foreign(first).unwrap_or_else(|| detail(file_bytes, fault))
}

fn foreign(first: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(first);
    let trimmed = text.trim_start().to_ascii_lowercase();
    if text.starts_with("version https://git-lfs.github.com/spec") {
        let size = text.lines().find_map(|line| line.strip_prefix("size "));
        let size = size.map(|size| format!(" for {} bytes", size.trim())).unwrap_or_default();
        return Some(format!(
            "this is a Git LFS pointer{size}, not the weights: run `git lfs pull`, or download \
             the file itself"
        ));
    }
    if trimmed.starts_with("<!doctype html") || trimmed.starts_with("<html") {
        return Some(
            "this is an HTML page, not the weights: the download was answered with a web page \
             (a login or an error); download the file itself"
                .to_owned(),
        );
    }
    if trimmed.starts_with("<?xml") {
        return Some(
            "this is an XML document, often a store's error: download it again".to_owned(),
        );
    }
    if trimmed.starts_with('{') && !first.get(1..8).is_some_and(|bytes| bytes.ends_with(&[0; 4])) {
        return Some(
            "this is JSON text (an index or a store's error?), not the weights it names".to_owned(),
        );
    }
    let known = SIGNATURES.iter().find(|(signature, _)| first.starts_with(signature));
    known.map(|(_, what)| format!("this is {what}"))
}

/// What to do about a file that is what it should be, and faulty.
const AGAIN: &str =
    "it is damaged, or was written wrongly: fetch it again, or have it written anew";

fn detail(file_bytes: u64, fault: &Fault) -> String {
    match fault {
        Fault::TooSmall => format!(
            "the file has {file_bytes} bytes, a header alone takes 8 or more: truncated? fetch it \
             again"
        ),
        Fault::TooLarge { header_bytes } => format!(
            "its first {LENGTH_BYTES} bytes tell of a header of {header_bytes} bytes, where \
             {HEADER_BYTES_MAX} are the most: not a safetensors file, or damaged; fetch it again"
        ),
        Fault::InvalidLength { header_end } => format!(
            "the header alone wants {header_end} bytes and the file has {file_bytes}: truncated \
             (an incomplete download?), or not a safetensors file; fetch it again"
        ),
        Fault::Incomplete { wanted } if *wanted > file_bytes => format!(
            "the file is truncated: wanted {wanted} bytes, found {file_bytes}; the download or \
             copy is incomplete, fetch it again"
        ),
        Fault::Incomplete { wanted } => format!(
            "{} bytes too many: wanted {wanted} bytes, found {file_bytes}; {AGAIN}",
            file_bytes.saturating_sub(*wanted)
        ),
        Fault::Utf8(error) => {
            let place = error.valid_up_to().saturating_add(LENGTH_BYTES);
            format!("the first is byte {place} of the file; {AGAIN}")
        }
        Fault::InvalidInfo { name, begin, end, wanted } => format!(
            "tensor `{name}` has the bytes {begin} to {end} of the data, and its type and shape take \
             {wanted} bytes; {AGAIN}"
        ),
        Fault::InvalidOffset { begin, end, start, .. } => format!(
            "it has the bytes {begin} to {end} of the data, and those before it end at {start}; \
             {AGAIN}"
        ),
        Fault::Overflow { name } | Fault::Misaligned { name } => {
            format!("tensor `{name}`; {AGAIN}")
        }
        Fault::Json(_) | Fault::Duplicate(_) => AGAIN.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::{Fault, hint};

    #[test]
    fn a_pointer_tells_the_size_it_stands_for() {
        let text = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n";
        let told = hint(text, text.len() as u64, &Fault::TooLarge { header_bytes: 123 });
        assert!(told.contains("Git LFS pointer for 123 bytes"), "{told}");
    }

    #[test]
    fn a_short_file_tells_both_sizes() {
        let told = hint(b"\x02\0\0\0\0\0\0\0{}", 90, &Fault::Incomplete { wanted: 100 });
        assert!(told.contains("wanted 100 bytes, found 90"), "{told}");
    }

    #[test]
    fn an_honest_header_is_not_taken_for_json() {
        let first = b"{\0\0\0\0\0\0\0{\"a\":";
        assert!(!hint(first, 1000, &Fault::TooLarge { header_bytes: 123 }).contains("JSON"));
    }
}
