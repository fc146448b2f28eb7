//! Channels from worker threads to the thread that carries a load. It waits for all of them, and for the
//! kernel's own queue, at once: each has a descriptor that is readable while there may be something. That of
//! a channel is made when its receiver is about to sleep, before its last look; most small loads never do.

use std::os::fd::RawFd;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

#[cfg(all(test, every_order))]
use ::loom::sync::Mutex;
#[cfg(not(every_order))]
use {crossbeam::channel, std::sync::Mutex};

use crate::source::system;

#[cfg(not(every_order))]
use self::bell::Bell;
// What loom tries in every order.
#[cfg(all(test, every_order))]
use self::loom::{Bell, channel};

#[cfg(not(every_order))]
mod bell;
#[cfg(all(test, every_order))]
pub(crate) mod loom;

/// The end that threads have.
#[derive(Debug)]
pub(crate) struct Sender<T> {
    values: channel::Sender<T>,
    bell: BellPlace,
}

/// The end of the thread that carries the load.
#[derive(Debug)]
pub(crate) struct Receiver<T> {
    values: channel::Receiver<T>,
    bell: BellPlace,
}

/// Where a channel's bell is once somebody has gone to sleep. It is hung up before the last look for
/// values, and looked for after a value was sent: one of the two is seen.
type BellPlace = Arc<Mutex<Option<Arc<Bell>>>>;

/// A channel without a limit.
pub(crate) fn queue<T>() -> (Sender<T>, Receiver<T>) {
    let (values_in, values) = channel::unbounded();
    let bell = BellPlace::default();
    (Sender { values: values_in, bell: Arc::clone(&bell) }, Receiver { values, bell })
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self { values: self.values.clone(), bell: Arc::clone(&self.bell) }
    }
}

impl<T> Sender<T> {
    /// Puts a value in, unless the other end is gone.
    pub(crate) fn send(&self, value: T) -> Result<(), channel::SendError<T>> {
        self.values.send(value)?;
        if let Some(bell) = &*self.bell.lock().unwrap_or_else(PoisonError::into_inner) {
            bell.ring();
        }
        Ok(())
    }
}

impl<T> Receiver<T> {
    /// A value, if there is one.
    pub(crate) fn take(&self) -> Option<T> {
        if let Ok(value) = self.values.try_recv() {
            return Some(value);
        }
        if let Some(bell) = &*self.bell.lock().unwrap_or_else(PoisonError::into_inner) {
            // Stopped before the last look: what is sent after that rings it again.
            bell.stop();
        }
        self.values.try_recv().ok()
    }

    /// The bell; none where the process may not have another descriptor.
    fn bell(&self) -> Option<Arc<Bell>> {
        let mut place = self.bell.lock().unwrap_or_else(PoisonError::into_inner);
        if place.is_none() {
            *place = Bell::new().ok().map(Arc::new);
        }
        place.clone()
    }

    /// Adds what tells that there may be a value; for who takes values, after this, until there is none.
    pub(crate) fn add_to(&self, wakes: &mut Wakes) {
        if wakes.waits {
            match self.bell() {
                Some(bell) => wakes.add(bell.descriptor()),
                None => wakes.blind = true,
            }
        }
    }
}

/// Between two looks at what has no descriptor.
const BLIND: Duration = Duration::from_millis(1);

/// What a thread waits for; the descriptors are of those who are asked in the same breath.
#[derive(Debug, Default)]
pub(crate) struct Wakes {
    /// Whether who looks will wait; for others no descriptor is made.
    waits: bool,
    descriptors: Vec<RawFd>,
    /// Something has no descriptor and has to be looked at again and again.
    blind: bool,
    #[cfg(test)]
    awake: bool,
}

impl Wakes {
    /// For who will wait.
    pub(crate) fn to_wait() -> Self {
        Self { waits: true, ..Self::default() }
    }

    /// Adds what is ready whenever it is looked at.
    #[cfg(test)]
    pub(crate) fn add_awake(&mut self) {
        self.awake = true;
    }

    /// Adds a descriptor.
    pub(crate) fn add(&mut self, descriptor: RawFd) {
        self.descriptors.push(descriptor);
    }

    /// Waits until one is readable, at most so long; may return early.
    pub(crate) fn wait(&self, timeout: Duration) {
        #[cfg(test)]
        if self.awake {
            return;
        }
        let timeout = if self.blind { timeout.min(BLIND) } else { timeout };
        system::wait_readable(&self.descriptors, timeout);
    }
}

/// Looks again and again until there is something or the time is over, and sleeps between; the first
/// look is for what is there already.
pub(crate) fn wait_for<T>(
    timeout: Duration,
    mut look: impl FnMut(&mut Wakes) -> Option<T>,
) -> Option<T> {
    if let Some(found) = look(&mut Wakes::default()) {
        return Some(found);
    }
    let began = Instant::now();
    loop {
        let mut wakes = Wakes::to_wait();
        if let Some(found) = look(&mut wakes) {
            return Some(found);
        }
        let left = timeout.checked_sub(began.elapsed())?;
        wakes.wait(left);
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{Wakes, queue, wait_for};

    #[test]
    fn what_is_sent_wakes_who_waits_and_nothing_else_does() {
        let (sender, receiver) = queue::<u32>();
        let sending = std::thread::Builder::new()
            .spawn(move || (0..1000).for_each(|number| sender.send(number).unwrap()))
            .unwrap();
        for number in 0..1000 {
            let taken = wait_for(Duration::from_secs(10), |wakes| {
                receiver.add_to(wakes);
                receiver.take()
            });
            assert_eq!(taken, Some(number));
        }
        sending.join().unwrap();
        assert_eq!(receiver.take(), None);
        let mut wakes = Wakes::to_wait();
        receiver.add_to(&mut wakes);
        let began = Instant::now();
        wakes.wait(Duration::from_millis(30));
        assert!(began.elapsed() >= Duration::from_millis(29), "the bell rings on");
    }
}
