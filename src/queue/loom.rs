//! Every order in which values can be sent while the other end looks for them and goes to sleep, on
//! the queue itself. What lies beneath it is modelled here: a channel, and the kernel's descriptor.

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicUsize, Ordering};

use ::loom::model::Builder;
use ::loom::sync::{Condvar, Mutex};
use ::loom::thread;

use super::{Receiver, queue};

/// Runs a model in every order in which so many times, at most, a thread that could go on has to
/// wait (few bugs need more than two), and tells how many there were.
#[expect(clippy::print_stdout, reason = "the figures of a test run are for people to read")]
pub(crate) fn in_every_order(
    name: &str,
    preemptions: usize,
    model: impl Fn() + Sync + Send + 'static,
) {
    let orders = std::sync::Arc::new(AtomicUsize::new(0)); // beside the model
    let counted = std::sync::Arc::clone(&orders);
    let mut builder = Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(move || {
        counted.fetch_add(1, Ordering::SeqCst);
        model();
    });
    println!("loom: {name}: {} orders", orders.load(Ordering::SeqCst));
}

/// Stands for crossbeam's.
pub(super) mod channel {
    use ::loom::sync::Arc;

    use super::{Mutex, VecDeque};

    #[derive(Debug)]
    pub(crate) struct SendError<T>(pub(crate) T);

    #[derive(Debug)]
    pub(crate) struct End<T>(Arc<Mutex<VecDeque<T>>>);
    pub(crate) use End as Sender;
    pub(crate) use End as Receiver;

    impl<T> Clone for End<T> {
        fn clone(&self) -> Self {
            Self(Arc::clone(&self.0))
        }
    }

    impl<T> End<T> {
        pub(crate) fn send(&self, value: T) -> Result<(), SendError<T>> {
            self.0.lock().unwrap().push_back(value);
            Ok(())
        }

        pub(crate) fn try_recv(&self) -> Result<T, ()> {
            self.0.lock().unwrap().pop_front().ok_or(())
        }
    }

    pub(crate) fn unbounded<T>() -> (Sender<T>, Receiver<T>) {
        let end = End(Arc::new(Mutex::new(VecDeque::new())));
        (end.clone(), end)
    }
}

/// Stands for a descriptor that is readable once it was rung, until it is stopped.
#[derive(Debug)]
pub(super) struct Bell {
    rung: Mutex<bool>,
    changed: Condvar,
}

impl Bell {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { rung: Mutex::new(false), changed: Condvar::new() })
    }

    pub(super) fn ring(&self) {
        *self.rung.lock().unwrap() = true;
        self.changed.notify_all();
    }

    pub(super) fn stop(&self) {
        *self.rung.lock().unwrap() = false;
    }

    pub(super) fn descriptor(&self) -> RawFd {
        unreachable!("no model waits for the kernel")
    }

    /// Stands for poll(2).
    fn wait(&self) {
        let mut rung = self.rung.lock().unwrap();
        while !*rung {
            rung = self.changed.wait(rung).unwrap();
        }
    }
}

/// Takes so many values, and sleeps whenever there is none: a lost wake-up is a sleep without end,
/// which loom reports.
fn take_all(receiver: &Receiver<u32>, count: usize) -> Vec<u32> {
    let mut taken = Vec::new();
    while taken.len() < count {
        // As `wait_for`: a look for what is there, and one more before it sleeps.
        let found = receiver.take().or_else(|| {
            let bell = receiver.bell().expect("the model's bell");
            let found = receiver.take();
            if found.is_none() {
                bell.wait();
            }
            found
        });
        taken.extend(found);
    }
    taken
}

#[test]
fn no_wake_up_is_lost() {
    in_every_order("two senders, one that sleeps", 3, || {
        let (sender, receiver) = queue();
        let other = sender.clone();
        let threads = [
            thread::spawn(move || (0..2).for_each(|value| sender.send(value).unwrap())),
            thread::spawn(move || other.send(2).unwrap()),
        ];
        let taken = take_all(&receiver, 3);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let of_one: Vec<_> = taken.iter().filter(|value| **value < 2).collect();
        assert_eq!(of_one, [&0, &1], "a sender's values keep their order");
        assert!(taken.contains(&2) && receiver.take().is_none());
    });
}
