//! The file format as pure data. No I/O here: every test is instant.

#[cfg(test)]
pub(crate) mod agreement;
#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "small numbers of tests")]
mod differential;
pub(crate) mod dtype;
pub(crate) mod header;
pub(crate) mod index;
pub(crate) mod sniff;
mod visit;

pub(crate) use dtype::Dtype;
pub(crate) use header::Header;
