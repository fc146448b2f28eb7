//! Calls that fail because a test wants them to.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use crate::error::{Error, Outcome};
use crate::{context, settings};

/// A planned failure.
pub(crate) struct Fault {
    /// Of this entry point; `*`: of any that does work.
    pub(crate) symbol: String,
    /// The how-many-th call from now on fails.
    pub(crate) remaining: u64,
    /// With this error.
    pub(crate) code: u32,
    /// The error stays with the context, as after a crash on the device.
    pub(crate) sticky: bool,
    /// All later calls fail, too.
    pub(crate) onwards: bool,
}

static PLANNED: Mutex<Vec<Fault>> = Mutex::new(Vec::new());
/// Spares calls the lock while nothing is planned.
static ANY: AtomicBool = AtomicBool::new(false);

impl Fault {
    /// `symbol:n:code[:sticky]`.
    pub(crate) fn parse(text: &str) -> Option<Fault> {
        let parts: Vec<&str> = text.split(':').collect();
        let sticky = match parts.get(3) {
            None => false,
            Some(&"sticky") => true,
            Some(_) => return None,
        };
        Some(Fault {
            symbol: (*parts.first()?).to_string(),
            remaining: parts.get(1)?.parse().ok().filter(|n| *n > 0)?,
            code: parts.get(2)?.parse().ok()?,
            sticky,
            onwards: false,
        })
    }

    /// Counts a call; does it fail?
    fn strikes(&mut self) -> bool {
        if self.remaining == 0 {
            return self.onwards;
        }
        self.remaining -= 1;
        self.remaining == 0
    }
}

fn planned() -> MutexGuard<'static, Vec<Fault>> {
    PLANNED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Plans one more.
pub(crate) fn plan(fault: Fault) {
    planned().push(fault);
    ANY.store(true, Ordering::SeqCst);
}

/// Plans nothing any more.
pub(crate) fn clear() {
    planned().clear();
    ANY.store(false, Ordering::SeqCst);
}

/// Fails the call if that was planned. `any`: plans for any symbol apply.
pub(crate) fn strike(symbol: &str, any: bool) -> Outcome {
    static ENVIRONMENT: Once = Once::new();
    ENVIRONMENT.call_once(|| settings::planned_faults().into_iter().for_each(plan));
    if !ANY.load(Ordering::SeqCst) {
        return Ok(());
    }
    let mut struck = None;
    for fault in planned().iter_mut() {
        let meant = fault.symbol == symbol || (any && fault.symbol == "*");
        if meant && fault.strikes() && struck.is_none() {
            struck = Some((fault.code, fault.sticky));
        }
    }
    let Some((code, sticky)) = struck else { return Ok(()) };
    if sticky {
        context::break_current(Error(code));
    }
    Err(Error(code))
}
