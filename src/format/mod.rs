//! The file format as pure data. No I/O here: every test is instant.

pub(crate) mod dtype;
pub(crate) mod header;
pub(crate) mod index;
pub(crate) mod sniff;

pub(crate) use dtype::Dtype;
pub(crate) use header::Header;
