//! What programs did that the order of streams and events does not allow.

use std::sync::{Mutex, PoisonError};

use crate::settings::settings;

/// How many texts are kept.
const TEXTS_MAX: usize = 20;

/// How many there were, and the texts of the first.
#[derive(Clone, Default)]
pub(crate) struct Violations {
    pub(crate) count: u64,
    pub(crate) texts: Vec<String>,
}

static FOUND: Mutex<Violations> = Mutex::new(Violations { count: 0, texts: Vec::new() });

/// Enters one and says it.
pub(crate) fn report(text: String) {
    eprintln!("simcuda: violation: {text}");
    if settings().abort {
        std::process::abort();
    }
    let mut found = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
    found.count += 1;
    if found.texts.len() < TEXTS_MAX {
        found.texts.push(text);
    }
}

/// Those found so far.
pub(crate) fn found() -> Violations {
    FOUND.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Forgets them.
pub(crate) fn clear() {
    *FOUND.lock().unwrap_or_else(PoisonError::into_inner) = Violations::default();
}
