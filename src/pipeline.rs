//! The only loop: plan → reader → slots → device. It alone decides about order, errors and
//! shutdown, and it touches neither the system nor a driver: all of that is behind the traits.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::config::SIGNAL_INTERVAL;
use crate::device::{Buffer, Destination, Placed, Placement, Slot};
use crate::error::{Error, Result};
use crate::plan::{Plan, Read};
use crate::reader::{Completion, Reader, Request};
use crate::ring::Lease;
use crate::source::Source;

/// Whoever wants the result: takes each target as it is complete, and may stop the load.
pub(crate) trait Caller {
    /// A target is whole.
    fn deliver(&mut self, target: usize, buffer: Buffer) -> Result<()>;

    /// Called now and then, at least every `SIGNAL_INTERVAL`; an error stops the load.
    fn check(&mut self, bytes_done: u64) -> Result<()>;

    /// Whether a read may begin by now; asked again until it may.
    fn admits(&mut self, _read: &Read) -> bool {
        true
    }

    /// Waits for what lets the next read begin, at most a `SIGNAL_INTERVAL`: nothing is in flight.
    fn wait(&mut self) {}
}

/// The parts of one load.
pub(crate) struct Load<'parts, 'ring> {
    /// What to read.
    pub(crate) plan: &'parts Plan,
    /// From where.
    pub(crate) sources: &'parts [Arc<dyn Source>],
    /// By whom.
    pub(crate) reader: &'parts mut dyn Reader,
    /// To where.
    pub(crate) to: Destination<'parts>,
    /// Through which slots.
    pub(crate) lease: &'parts mut Lease<'ring>,
    /// For whom.
    pub(crate) caller: &'parts mut dyn Caller,
}

/// A target that is being filled.
struct Filling {
    buffer: Buffer,
    missing: u64,
}

/// A load in progress.
struct Progress {
    filling: HashMap<usize, Filling>,
    next_read: usize,
    delivered: usize,
    bytes_done: u64,
}

impl Load<'_, '_> {
    /// Carries the plan out: every target is delivered, or the error says why not and nothing is
    /// in flight any more.
    pub(crate) fn run(&mut self) -> Result<()> {
        let filling = HashMap::new();
        let mut progress = Progress { filling, next_read: 0, delivered: 0, bytes_done: 0 };
        let outcome = self.advance(&mut progress);
        self.drain();
        outcome?;
        for source in self.sources {
            source.check_unchanged()?;
        }
        let wanted = self.plan.wanted.len();
        if progress.delivered == wanted {
            return Ok(());
        }
        Err(Error::Internal(format!("{} of {wanted} tensors were delivered", progress.delivered)))
    }

    fn advance(&mut self, progress: &mut Progress) -> Result<()> {
        self.deliver_empty(progress)?;
        loop {
            self.caller.check(progress.bytes_done)?;
            let held_back = self.submit(progress);
            if self.reader.in_flight() == 0 && self.to.device.in_flight() == 0 {
                if held_back {
                    self.caller.wait();
                    continue;
                }
                return Ok(());
            }
            while let Some(placed) = self.to.device.wait(Duration::ZERO) {
                self.placed(progress, placed)?;
            }
            if self.reader.in_flight() > 0 {
                if let Some(completion) = self.reader.wait(SIGNAL_INTERVAL) {
                    self.completed(progress, completion)?;
                }
            } else if self.to.device.in_flight() > 0
                && let Some(placed) = self.to.device.wait(SIGNAL_INTERVAL)
            {
                self.placed(progress, placed)?;
            }
        }
    }

    /// Targets without bytes need no read.
    fn deliver_empty(&mut self, progress: &mut Progress) -> Result<()> {
        for (target, wanted) in self.plan.wanted.iter().enumerate() {
            if wanted.bytes() == 0 {
                let buffer = self.to.allocator.allocate(target, 0)?;
                progress.delivered += 1;
                self.caller.deliver(target, buffer)?;
            }
        }
        Ok(())
    }

    /// Begins reads as long as there are slots and the caller admits them; tells whether it is the
    /// caller who does not.
    fn submit(&mut self, progress: &mut Progress) -> bool {
        while let Some(read) = self.plan.reads.get(progress.next_read) {
            if !self.caller.admits(read) {
                return true;
            }
            let Some(slot) = self.lease.take() else { return false };
            let tag = progress.next_read;
            let request =
                Request { tag, shard: read.shard, offset: read.offset, bytes: read.bytes };
            self.reader.submit(request, slot);
            progress.next_read += 1;
        }
        false
    }

    fn completed(&mut self, progress: &mut Progress, completion: Completion) -> Result<()> {
        let Completion { request, slot, result } = completion;
        let checked = self
            .check_read(&request, result)
            .and_then(|()| self.placements(&mut progress.filling, request.tag));
        match checked {
            Ok(placements) => {
                self.to.device.place(request.tag, slot, placements);
                Ok(())
            }
            Err(error) => {
                self.lease.put(slot);
                Err(error)
            }
        }
    }

    fn check_read(&self, request: &Request, result: std::io::Result<usize>) -> Result<()> {
        let (got, cause, errno) = match result {
            Ok(got) if got == request.bytes => return Ok(()),
            Ok(got) => {
                (got, "the file has become shorter while it was being loaded".to_owned(), None)
            }
            Err(error) => (0, error.to_string(), error.raw_os_error()),
        };
        Err(Error::Read {
            path: self.sources[request.shard].path().to_owned(),
            offset: request.offset,
            wanted: request.bytes as u64,
            got: got as u64,
            target: self.plan.reads[request.tag].pieces.first().map(|piece| piece.target),
            tensor: None,
            cause,
            errno,
        })
    }

    /// Where the pieces of a read go; a target's memory is made when its first bytes are there.
    fn placements(
        &mut self,
        filling: &mut HashMap<usize, Filling>,
        read: usize,
    ) -> Result<Vec<Placement>> {
        let mut placements = Vec::with_capacity(self.plan.reads[read].pieces.len());
        for piece in &self.plan.reads[read].pieces {
            let buffer = if let Some(known) = filling.get(&piece.target) {
                known.buffer.clone()
            } else {
                let missing = self.plan.wanted[piece.target].bytes();
                let bytes = usize::try_from(missing).unwrap_or(usize::MAX);
                let buffer = self.to.allocator.allocate(piece.target, bytes)?;
                filling.insert(piece.target, Filling { buffer: buffer.clone(), missing });
                buffer
            };
            placements.push(Placement {
                buffer,
                buffer_offset: usize::try_from(piece.target_offset).unwrap_or(usize::MAX),
                slot_offset: piece.slot_offset,
                bytes: piece.bytes,
            });
        }
        Ok(placements)
    }

    fn placed(&mut self, progress: &mut Progress, placed: Placed) -> Result<()> {
        let Placed { tag, slot, result } = placed;
        if let Some(slot) = slot {
            self.lease.put(slot);
        }
        result?;
        for piece in &self.plan.reads[tag].pieces {
            let Some(target) = progress.filling.get_mut(&piece.target) else { continue };
            progress.bytes_done += piece.bytes as u64;
            target.missing -= piece.bytes as u64;
            if target.missing == 0
                && let Some(whole) = progress.filling.remove(&piece.target)
            {
                progress.delivered += 1;
                self.caller.deliver(piece.target, whole.buffer)?;
            }
        }
        Ok(())
    }

    /// Waits until nothing is in flight: neither kernel nor device may touch a slot or a buffer
    /// after the load has returned.
    fn drain(&mut self) {
        let mut slots: Vec<Slot> = Vec::new();
        while self.reader.in_flight() > 0 {
            slots.extend(self.reader.wait(SIGNAL_INTERVAL).map(|completion| completion.slot));
        }
        while self.to.device.in_flight() > 0 {
            slots.extend(self.to.device.wait(SIGNAL_INTERVAL).and_then(|placed| placed.slot));
        }
        for slot in slots {
            self.lease.put(slot);
        }
    }
}
