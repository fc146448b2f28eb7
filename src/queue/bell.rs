//! What a thread can sleep on until another one rings.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};

use crate::source::system;

/// A descriptor that is readable once it was rung, until it is stopped.
#[derive(Debug)]
pub(super) struct Bell(File);

impl Bell {
    pub(super) fn new() -> io::Result<Self> {
        system::event_descriptor().map(Self)
    }

    pub(super) fn ring(&self) {
        // It cannot fail: it would have to ring 2^64 times unheard.
        let _rung = (&self.0).write(&1_u64.to_ne_bytes());
    }

    pub(super) fn stop(&self) {
        let _stopped = (&self.0).read(&mut [0; 8]);
    }

    pub(super) fn descriptor(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
