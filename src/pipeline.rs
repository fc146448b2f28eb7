//! The only loop: plan → reader → slots → device. It alone decides about order, errors and
//! shutdown, and it touches neither the system nor a driver: all of that is behind the traits.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use crate::config::SIGNAL_INTERVAL;
use crate::device::{self, Buffer, Destination, Placed, Placement, Slot};
use crate::error::{Error, Result, errno_of};
use crate::plan::{Plan, Read};
use crate::queue::{Wakes, wait_for};
use crate::reader::{self, Completion, Reader, Request};
use crate::ring::Lease;
use crate::source::Source;
use crate::timeline::{Step, Timeline};

/// Whoever wants the result: takes each target as it is complete, and may stop the load.
pub(crate) trait Caller {
    /// A target is whole.
    fn deliver(&mut self, target: usize, buffer: Buffer) -> Result<()>;

    /// Called now and then, at least every `SIGNAL_INTERVAL`; an error stops the load.
    fn check(&mut self, bytes_done: u64) -> Result<()>;

    /// Whether a read may begin by now; asked again until it may, and then it does.
    fn admits(&mut self, _read: &Read) -> bool {
        true
    }

    /// Whether there is memory for what a read has brought, by now; asked again until there is.
    fn receives(&mut self, _read: &Read) -> bool {
        true
    }

    /// Whether there may be other answers than before, and what will tell that there are.
    fn has_news(&mut self, _wakes: &mut Wakes) -> bool {
        false
    }

    /// Waits for other answers, at most a `SIGNAL_INTERVAL`: nothing is in flight.
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

/// What the loop goes on with.
enum Next {
    Placed(Placed),
    Completed(Completion),
    News,
}

/// A load in progress.
struct Progress {
    filling: HashMap<usize, Filling>,
    /// Reads that wait in their slots for memory to go to.
    early: VecDeque<Completion>,
    next_read: usize,
    delivered: usize,
    bytes_done: u64,
    timeline: Timeline,
}

impl Load<'_, '_> {
    /// Carries the plan out: every target is delivered, or the error says why not and nothing is
    /// in flight any more.
    pub(crate) fn run(mut self) -> Result<Timeline> {
        let mut progress = Progress {
            filling: HashMap::new(),
            early: VecDeque::new(),
            next_read: 0,
            delivered: 0,
            bytes_done: 0,
            timeline: Timeline::new(self.plan),
        };
        let outcome = self.advance(&mut progress);
        progress.early.drain(..).for_each(|completion| self.lease.put(completion.slot));
        if outcome.is_err() {
            self.reader.stop();
        }
        self.drain();
        outcome?;
        for source in self.sources {
            source.check_unchanged()?;
        }
        let wanted = self.plan.wanted.len();
        if progress.delivered == wanted {
            return Ok(progress.timeline);
        }
        Err(Error::Internal(format!("{} of {wanted} tensors were delivered", progress.delivered)))
    }

    fn advance(&mut self, progress: &mut Progress) -> Result<()> {
        self.deliver_empty(progress)?;
        loop {
            self.caller.check(progress.bytes_done)?;
            self.hand_over_early(progress)?;
            let held_back = self.submit(progress) || !progress.early.is_empty();
            if self.reader.in_flight() == 0 && self.to.device.in_flight() == 0 {
                if held_back {
                    let since = Instant::now();
                    self.caller.wait();
                    progress.timeline.held_back(since);
                    continue;
                }
                return Ok(());
            }
            // Whichever comes first: a slot that is free again is a read that can begin.
            let next = wait_for(SIGNAL_INTERVAL, |wakes| {
                self.to.device.add_to(wakes);
                self.reader.add_to(wakes);
                let mut news = held_back && self.caller.has_news(wakes);
                let with_source = self.reader.with_source();
                let placed = self.to.device.poll().map(Next::Placed);
                let next = placed.or_else(|| self.reader.poll().map(Next::Completed));
                // The source can have another read while this one is digested.
                news |= self.reader.with_source() < with_source;
                next.or_else(|| news.then_some(Next::News))
                    .or_else(|| self.to.device.finish().map(Next::Placed))
            });
            match next {
                Some(Next::Placed(placed)) => self.placed(progress, placed)?,
                Some(Next::Completed(completion)) => self.completed(progress, completion)?,
                Some(Next::News) | None => {}
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
            let worth = self.reader.slots_worth();
            let slots_to_read = self.lease.slots_to_read(worth);
            if self.reader.is_full() || self.reader.with_source() >= slots_to_read {
                return false;
            }
            let Some(slot) = self.lease.take_or_make(worth) else { return false };
            if !self.caller.admits(read) {
                self.lease.put(slot);
                return true;
            }
            let tag = progress.next_read;
            let request =
                Request { tag, shard: read.shard, offset: read.offset, bytes: read.bytes };
            progress.timeline.begin(tag, read, &slot);
            self.reader.submit(request, slot);
            progress.next_read += 1;
        }
        false
    }

    fn completed(&mut self, progress: &mut Progress, completion: Completion) -> Result<()> {
        let tag = completion.request.tag;
        progress.timeline.mark(tag, Step::Read);
        // What failed needs no memory, and ends the load.
        if !completion.is_whole() || self.caller.receives(&self.plan.reads[tag]) {
            return self.hand_over(progress, completion);
        }
        progress.early.push_back(completion);
        Ok(())
    }

    /// What has waited for memory that is there now.
    fn hand_over_early(&mut self, progress: &mut Progress) -> Result<()> {
        for _ in 0..progress.early.len() {
            let Some(completion) = progress.early.pop_front() else { break };
            let tag = completion.request.tag;
            if self.caller.receives(&self.plan.reads[tag]) {
                progress.timeline.mark(tag, Step::Received);
                self.hand_over(progress, completion)?;
            } else {
                progress.early.push_back(completion);
            }
        }
        Ok(())
    }

    fn hand_over(&mut self, progress: &mut Progress, completion: Completion) -> Result<()> {
        let checked = self.check_read(&completion);
        let Completion { request, slot, .. } = completion;
        let checked = checked.and_then(|()| self.placements(&mut progress.filling, request.tag));
        match checked {
            Ok(placements) => {
                progress.timeline.mark(request.tag, Step::Handed);
                self.to.device.place(request.tag, slot, placements);
                Ok(())
            }
            Err(error) => {
                self.lease.put(slot);
                Err(error)
            }
        }
    }

    /// An error where not all bytes of a read have come: the tensor is the first one that is not whole.
    fn check_read(&self, completion: &Completion) -> Result<()> {
        let Completion { request, done, result, .. } = completion;
        let (cause, errno) = match result {
            Ok(()) if completion.is_whole() => return Ok(()),
            Ok(()) => {
                let cause = "the file has become shorter while it was being loaded; load it again";
                (cause.to_owned(), None)
            }
            Err(error) => (error.to_string(), errno_of(error)),
        };
        let pieces = &self.plan.reads[request.tag].pieces;
        let missing = pieces.iter().find(|piece| piece.slot_offset + piece.bytes > *done);
        Err(Error::Read {
            path: self.sources[request.shard].path().to_owned(),
            offset: request.offset,
            wanted: request.bytes as u64,
            got: *done as u64,
            target: missing.map(|piece| piece.target),
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
                let buffer = self.to.allocator.allocate(piece.target, bytes);
                let path = self.sources[self.plan.reads[read].shard].path();
                let buffer = buffer.map_err(|error| error.wanted_by(path, piece.target))?;
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
        let Placed { tag, slot, copied, result } = placed;
        progress.timeline.placed(tag, copied);
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
        progress.timeline.mark(tag, Step::Delivered);
        Ok(())
    }

    /// Waits until nothing is in flight: neither kernel nor device may touch a slot or a buffer
    /// after the load has returned.
    fn drain(&mut self) {
        let mut slots: Vec<Slot> = Vec::new();
        while self.reader.in_flight() > 0 {
            slots.extend(
                reader::wait(self.reader, SIGNAL_INTERVAL).map(|completion| completion.slot),
            );
        }
        while self.to.device.in_flight() > 0 {
            slots.extend(
                device::wait(self.to.device, SIGNAL_INTERVAL).and_then(|placed| placed.slot),
            );
        }
        for slot in slots {
            self.lease.put(slot);
        }
    }
}
