//! The work of one stream and the thread that does it.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::context;
use crate::error::Outcome;
use crate::settings::settings;

/// What a piece of work does when its turn comes.
pub(crate) type Work = Box<dyn FnOnce(&mut Timeline) -> Outcome + Send>;

/// The modelled time of a stream: when its last piece of work ended. It does not contain by how much
/// the thread woke up late, so that a long sequence of copies has the modelled rate.
pub(crate) struct Timeline {
    /// The end of the last piece of work, or when the next one could begin.
    pub(crate) at: Instant,
}

/// Sleeping for less costs more than it says; the time is made up later.
const SLEEP_MIN: Duration = Duration::from_micros(20);

/// Sleeps until a modelled time.
pub(crate) fn sleep_until(time: Instant) {
    let left = time.saturating_duration_since(Instant::now());
    if left >= SLEEP_MIN {
        thread::sleep(left);
    }
}

/// How many ends of work are remembered; older work ended long ago.
const ENDS_MAX: usize = 64;

/// A piece of work of another stream that must be done first.
pub(crate) struct Dependency {
    /// Where it is.
    pub(crate) queue: Arc<Queue>,
    /// Its number there.
    pub(crate) sequence: u64,
}

/// A piece of work.
pub(crate) struct Operation {
    after: Vec<Dependency>,
    enqueued: Instant,
    work: Work,
}

/// The work of one stream, in order.
pub(crate) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    device: usize,
}

struct State {
    waiting: VecDeque<Operation>,
    /// Number of the last piece of work that is done.
    done: u64,
    /// When the last ones ended, in modelled time; the newest is the last.
    ends: VecDeque<Instant>,
    /// Is there a thread? It starts with the first piece of work.
    has_thread: bool,
    /// The stream is destroyed: what waits is still done, then the thread ends.
    closed: bool,
}

impl Queue {
    /// A queue whose first piece of work will have number `done + 1`.
    pub(crate) fn new(device: usize, done: u64) -> Arc<Queue> {
        let state = State {
            waiting: VecDeque::new(),
            done,
            ends: VecDeque::new(),
            has_thread: false,
            closed: false,
        };
        Arc::new(Queue { state: Mutex::new(state), changed: Condvar::new(), device })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends a piece of work.
    pub(crate) fn push(self: &Arc<Self>, after: Vec<Dependency>, work: Work) {
        let mut state = self.state();
        state.waiting.push_back(Operation { after, enqueued: Instant::now(), work });
        if !state.has_thread {
            state.has_thread = true;
            let queue = Arc::clone(self);
            let thread = thread::Builder::new().name("simcuda-stream".into());
            if let Err(error) = thread.spawn(move || queue.run()) {
                eprintln!("simcuda: no thread for a stream: {error}");
                std::process::abort();
            }
        }
        drop(state);
        self.changed.notify_all();
    }

    /// No more work comes.
    pub(crate) fn close(&self) {
        self.state().closed = true;
        self.changed.notify_all();
    }

    /// Is the piece of work of this number done?
    pub(crate) fn is_done(&self, sequence: u64) -> bool {
        self.state().done >= sequence
    }

    /// Waits until the piece of work of this number is done; gives when that was in modelled time,
    /// if that is still known.
    pub(crate) fn wait(&self, sequence: u64) -> Option<Instant> {
        let mut state = self.state();
        while state.done < sequence {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let age = usize::try_from(state.done - sequence).ok()?;
        state.ends.iter().rev().nth(age).copied()
    }

    /// The piece of work that ran is done.
    fn finish(&self, end: Instant) {
        let mut state = self.state();
        state.done += 1;
        state.ends.push_back(end);
        if state.ends.len() > ENDS_MAX {
            state.ends.pop_front();
        }
        drop(state);
        self.changed.notify_all();
    }

    fn next(&self) -> Option<Operation> {
        let mut state = self.state();
        loop {
            if let Some(operation) = state.waiting.pop_front() {
                return Some(operation);
            }
            if state.closed {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Does the work until the stream is destroyed and nothing is left.
    fn run(&self) {
        // SAFETY: changes nothing but how exactly this thread sleeps.
        unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1) };
        let mut timeline = Timeline { at: Instant::now() };
        let mut jitter = Jitter::new(&raw const *self as u64);
        while let Some(Operation { after, enqueued, work }) = self.next() {
            let late = jitter.sleep().then(Instant::now);
            let others = after.iter().filter_map(|other| other.queue.wait(other.sequence));
            let ready = others.chain(late).fold(enqueued, Instant::max);
            timeline.at = timeline.at.max(ready);
            // After a crash the work of the context is dropped.
            if context::check(self.device).is_ok()
                && let Err(error) = work(&mut timeline)
            {
                context::break_device(self.device, error);
            }
            self.finish(timeline.at);
        }
    }
}

/// Delays work, so that what is ordered by luck alone comes apart.
struct Jitter(u64);

impl Jitter {
    fn new(seed: u64) -> Self {
        Jitter(seed | 1)
    }

    /// Did it sleep?
    fn sleep(&mut self) -> bool {
        let longest = settings().jitter_us;
        if longest == 0 {
            return false;
        }
        // xorshift64: any generator does.
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        thread::sleep(Duration::from_micros(self.0 % (longest + 1)));
        true
    }
}
