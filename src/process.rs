//! What each process in a line of forks has for itself.

use std::sync::OnceLock;

/// A value that every process makes when it first asks: a child of fork never meets its parent's,
/// whoever held that at the fork.
pub(crate) struct PerProcess<T: 'static> {
    first: OnceLock<Box<Generation<T>>>,
}

struct Generation<T: 'static> {
    process: u32,
    value: T,
    next: OnceLock<Box<Generation<T>>>,
}

impl<T> PerProcess<T> {
    pub(crate) const fn new() -> Self {
        Self { first: OnceLock::new() }
    }

    /// That of this process. Threads that ask for the first time together may all make one; one is
    /// kept.
    pub(crate) fn get(&'static self, make: impl Fn() -> T) -> &'static T {
        let process = std::process::id();
        let mut place = &self.first;
        loop {
            match place.get() {
                Some(generation) if generation.process == process => return &generation.value,
                Some(generation) => place = &generation.next,
                None => {
                    // Made before its place is held, for no longer than it takes to move it there: a
                    // fork meanwhile would leave it held in the child for ever.
                    let (value, next) = (make(), OnceLock::new());
                    let _kept = place.set(Box::new(Generation { process, value, next }));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Duration;

    use crossbeam::channel::bounded;

    use super::PerProcess;

    #[test]
    fn who_comes_while_another_makes_one_does_not_wait_for_it() {
        static VALUE: PerProcess<&str> = PerProcess::new();
        let (begun, begins) = bounded(1);
        let (end, ended) = bounded::<()>(1);
        thread::scope(|threads| {
            let slow = threads.spawn(|| {
                *VALUE.get(|| {
                    begun.send(()).unwrap();
                    ended.recv().unwrap();
                    "slow"
                })
            });
            begins.recv().unwrap();
            let (told, tells) = bounded(1);
            threads.spawn(move || told.send(*VALUE.get(|| "quick")));
            let quick = tells.recv_timeout(Duration::from_secs(10));
            end.send(()).unwrap();
            assert_eq!(quick, Ok("quick"));
            assert_eq!(slow.join().unwrap(), "quick");
        });
        assert_eq!(*VALUE.get(|| "late"), "quick");
    }
}
