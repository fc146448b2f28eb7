//! Ranges of remote files, as many under way as pay.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use crate::config::SLOT_BYTES;
use crate::device::Slot;
use crate::queue::{Receiver, Sender, Wakes, queue};
use crate::reader::depth::Depth;
use crate::reader::{Completion, Reader, Request};
use crate::source::Source;
use crate::source::remote::Requests;

/// Asks for ranges; where that is no remote file's, a completion says so.
#[derive(Debug)]
pub(crate) struct RemoteReader {
    sources: Arc<[Arc<dyn Source>]>,
    requests: Requests,
    done: Receiver<Completion>,
    done_in: Sender<Completion>,
    /// Ranges in flight, and when they were begun.
    begun: HashMap<usize, Instant>,
    depth: Depth,
    /// The most that were in flight at once.
    most: usize,
    retries: u32,
    /// When fewer were allowed last: what was begun before says nothing of that.
    halved: Option<Instant>,
}

impl RemoteReader {
    /// For one load; nothing is connected yet.
    pub(crate) fn new(sources: Arc<[Arc<dyn Source>]>) -> Self {
        let (done_in, done) = queue();
        Self {
            sources,
            requests: Requests::new(),
            done,
            done_in,
            begun: HashMap::new(),
            depth: Depth::of_requests(),
            most: 0,
            retries: 0,
            halved: None,
        }
    }

    /// What it did, if it did anything.
    pub(crate) fn reason(&self) -> Option<String> {
        let tried_again = match self.retries {
            0 => String::new(),
            count => format!(", {count} requests were tried again"),
        };
        (self.most > 0).then(|| format!("up to {} ranges at once{tried_again}", self.most))
    }
}

impl Reader for RemoteReader {
    fn submit(&mut self, request: Request, slot: Slot) {
        let source = Arc::clone(&self.sources[request.shard]);
        let Some(file) = source.remote() else { return };
        self.begun.insert(request.tag, Instant::now());
        self.most = self.most.max(self.begun.len());
        self.depth.begin(request.bytes as u64);
        let done = self.done_in.clone();
        file.fill(&self.requests, (request.offset, request.bytes), slot, move |slot, result| {
            let (bytes, result) = match result {
                Ok(bytes) => (bytes, Ok(())),
                Err(error) => (0, Err(error)),
            };
            // Nobody listens any more: the load has ended.
            let _sent = done.send(Completion { request, slot, done: bytes, result });
        });
    }

    fn poll(&mut self) -> Option<Completion> {
        let completion = self.done.take()?;
        let Request { tag, bytes, .. } = completion.request;
        let since = self.begun.remove(&tag);
        if let Some(since) = since {
            self.depth.end(bytes as u64, since, Instant::now());
        }
        let retries = self.requests.retries();
        if retries > self.retries {
            self.retries = retries;
            // Of those that failed together the first one counts.
            let now = Instant::now();
            if since.is_some_and(|since| self.halved.is_none_or(|halved| since > halved)) {
                self.halved = Some(now);
                self.depth.halve();
            }
        }
        Some(completion)
    }

    fn add_to(&self, wakes: &mut Wakes) {
        self.done.add_to(wakes);
    }

    fn in_flight(&self) -> usize {
        self.begun.len()
    }

    fn is_full(&self) -> bool {
        self.depth.is_full()
    }

    /// A quarter of a load's slots is with the device.
    fn slots_worth(&self) -> usize {
        let reads = self.depth.reads(SLOT_BYTES as u64);
        if self.begun.is_empty() { 0 } else { reads + reads.div_ceil(3) }
    }

    fn stop(&mut self) {
        self.requests.stop();
    }
}

impl Drop for RemoteReader {
    /// Slots that are in flight come back first.
    fn drop(&mut self) {
        self.requests.stop();
        while !self.begun.is_empty() {
            crate::reader::wait(self, crate::config::SIGNAL_INTERVAL);
        }
    }
}
