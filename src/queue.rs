//! Channels from worker threads to the thread that carries a load. It waits for all of them, and for the
//! kernel's own queue, at once: each has a descriptor that is readable while there may be something.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

#[cfg(not(every_order))]
use crossbeam::channel;

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
    bell: Option<Arc<Bell>>,
}

/// The end of the thread that carries the load.
#[derive(Debug)]
pub(crate) struct Receiver<T> {
    values: channel::Receiver<T>,
    /// None where the process may not have another descriptor.
    bell: Option<Arc<Bell>>,
}

/// A channel without a limit.
pub(crate) fn queue<T>() -> (Sender<T>, Receiver<T>) {
    let (values_in, values) = channel::unbounded();
    let bell = Bell::new().ok().map(Arc::new);
    (Sender { values: values_in, bell: bell.clone() }, Receiver { values, bell })
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self { values: self.values.clone(), bell: self.bell.clone() }
    }
}

impl<T> Sender<T> {
    /// Puts a value in, unless the other end is gone.
    pub(crate) fn send(&self, value: T) -> Result<(), channel::SendError<T>> {
        self.values.send(value)?;
        if let Some(bell) = &self.bell {
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
        if let Some(bell) = &self.bell {
            // Stopped before the last look: what is sent after that rings it again.
            bell.stop();
        }
        self.values.try_recv().ok()
    }

    /// Adds what tells that there may be a value; for who takes values, after this, until there is none.
    pub(crate) fn add_to(&self, wakes: &mut Wakes) {
        match &self.bell {
            Some(bell) => wakes.add(bell.descriptor()),
            None => wakes.blind = true,
        }
    }
}

/// Between two looks at what has no descriptor.
const BLIND: Duration = Duration::from_millis(1);

/// What a thread waits for; the descriptors are of those who are asked in the same breath.
#[derive(Debug, Default)]
pub(crate) struct Wakes {
    descriptors: Vec<RawFd>,
    /// Something has no descriptor and has to be looked at again and again.
    blind: bool,
    #[cfg(test)]
    awake: bool,
}

impl Wakes {
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

/// Looks again and again until there is something or the time is over, and sleeps between.
pub(crate) fn wait_for<T>(
    timeout: Duration,
    mut look: impl FnMut(&mut Wakes) -> Option<T>,
) -> Option<T> {
    let began = Instant::now();
    loop {
        let mut wakes = Wakes::default();
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
        let mut wakes = Wakes::default();
        receiver.add_to(&mut wakes);
        let began = Instant::now();
        wakes.wait(Duration::from_millis(30));
        assert!(began.elapsed() >= Duration::from_millis(29), "the bell rings on");
    }
}
