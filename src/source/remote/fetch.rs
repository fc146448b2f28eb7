//! One range: tried, resumed where it broke off, tried again, and given up.

use std::hash::{BuildHasher, RandomState};
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use crate::config::{
    FRUITLESS_TRIES_MAX, LOAD_RETRIES_MAX, PATIENCE_VARIABLE, STALL_BYTES_PER_SECOND, config,
};
use crate::error::Refusal;
use crate::source::remote::answer::{Answer, Body, Known};
use crate::source::remote::failure::{Failure, Next};
use crate::source::remote::store::Store;
use crate::source::remote::transport::Transport;
use crate::source::remote::web::Web;

/// A try that brings so many bytes was not in vain.
const FRUITFUL_BYTES: usize = 64 << 10;

/// Who has the bytes.
#[derive(Debug)]
pub(super) enum Origin {
    /// A web server.
    Web(Box<Web>),
    /// An object store.
    Store(Box<Store>),
}

impl Origin {
    async fn get(
        &self,
        transport: &Transport,
        range: &Range<u64>,
        known: Option<&Known>,
    ) -> Result<Answer, Failure> {
        match self {
            Self::Web(web) => web.get(transport, range, known).await,
            Self::Store(store) => store.get(range, known).await,
        }
    }
}

/// A file whose state is known, and the connections to it.
pub(super) struct Place<'fetch> {
    /// Who has it.
    pub(super) origin: &'fetch Origin,
    /// How it is reached.
    pub(super) transport: &'fetch Transport,
    /// The state that it was found in.
    pub(super) known: &'fetch Known,
}

/// How often the ranges of one load may be tried again, all together.
#[derive(Debug, Default)]
pub(super) struct Retries {
    all: AtomicU32,
    /// Of them, those that no range that came since makes up for.
    in_vain: AtomicU32,
}

impl Retries {
    /// Counts one more, if there may be one.
    fn spend(&self) -> bool {
        self.all.fetch_add(1, Ordering::Relaxed);
        self.in_vain.fetch_add(1, Ordering::Relaxed) < LOAD_RETRIES_MAX
    }

    /// A range is there.
    fn earn(&self) {
        let less = |count: u32| Some(count.saturating_sub(1));
        let _before = self.in_vain.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    /// How many there were.
    pub(super) fn count(&self) -> u32 {
        self.all.load(Ordering::Relaxed)
    }
}

/// Asks for the beginning of a file of which nothing is known; gives it, and what it tells.
pub(super) async fn open(
    origin: &Origin,
    transport: &Transport,
    bytes: u64,
) -> Result<(Known, Vec<u8>), Refusal> {
    let (mut tries, retries) = (0, Retries::default());
    let Answer { known, range, body } = loop {
        tries += 1;
        match origin.get(transport, &(0..bytes), None).await {
            Ok(answer) => break answer,
            Err(failure) => {
                let turn = Turn { pauses: tries, in_vain: tries, tries };
                turn.pause(failure, &retries).await?;
            }
        }
    };
    let mut head = vec![0; usize::try_from(range.end - range.start).unwrap_or_default()];
    let mut done = 0;
    if let Err(failure) = receive(body, &mut head, &mut done).await {
        Turn { pauses: 1, in_vain: 1, tries: 1 }.pause(failure, &retries).await?;
        let place = Place { origin, transport, known: &known };
        fill(place, done as u64, &mut head[done..], &retries).await?;
    }
    Ok((known, head))
}

/// Fills a target with the bytes from an offset on.
pub(super) async fn fill(
    place: Place<'_>,
    offset: u64,
    target: &mut [u8],
    retries: &Retries,
) -> Result<(), Refusal> {
    let Place { origin, transport, known } = place;
    let (mut done, mut tries, mut fruitless, mut since) = (0, 0, 0, Instant::now());
    let end = offset + target.len() as u64;
    while done < target.len() {
        let range = offset + done as u64..end;
        let before = done;
        tries += 1;
        let failure = match origin.get(transport, &range, Some(known)).await {
            Ok(answer) => match answer.of_same(known) {
                Ok(answer) => receive(answer.body, target, &mut done).await.err(),
                Err(failure) => Some(failure),
            },
            Err(failure) => Some(failure),
        };
        let Some(failure) = failure else {
            retries.earn();
            return Ok(());
        };
        if done - before >= FRUITFUL_BYTES {
            (fruitless, since) = (0, Instant::now());
            retries.earn();
        }
        fruitless += 1;
        // A server that is started anew is waited for as long as one that says nothing.
        let in_vain = if since.elapsed() < config().network_patience { 0 } else { fruitless };
        let turn = Turn { pauses: fruitless, in_vain, tries };
        turn.pause(failure, retries).await?;
    }
    Ok(())
}

/// Takes an answer's bytes, all that are missing and no more.
async fn receive(mut body: Body, target: &mut [u8], done: &mut usize) -> Result<(), Failure> {
    let mut watch = Watch::new();
    while let Some(chunk) = watch.next(&mut body).await? {
        let end = *done + chunk.len();
        let Some(part) = target.get_mut(*done..end) else {
            return Err(Failure::lasting(libc::EIO, "the server sends more bytes than it said"));
        };
        part.copy_from_slice(&chunk);
        *done = end;
    }
    if *done < target.len() {
        let missing = target.len() - *done;
        let message = format!("the answer ended {missing} bytes early");
        return Err(Failure::passing(libc::ECONNRESET, message));
    }
    Ok(())
}

/// Looks that bytes keep coming: a connection may live on and bring next to nothing.
struct Watch {
    since: Instant,
    bytes: usize,
}

impl Watch {
    fn new() -> Self {
        Self { since: Instant::now(), bytes: 0 }
    }

    async fn next(&mut self, body: &mut Body) -> Result<Option<bytes::Bytes>, Failure> {
        let patience = config().network_patience;
        loop {
            let left = patience.saturating_sub(self.since.elapsed());
            let next = timeout(left, body.next()).await;
            if let Ok(Ok(Some(chunk))) = &next {
                self.bytes += chunk.len();
            }
            if self.since.elapsed() >= patience {
                let seconds = patience.as_secs_f64();
                let rate = self.bytes as f64 / seconds;
                if rate < STALL_BYTES_PER_SECOND && !matches!(next, Ok(Ok(None))) {
                    let message = format!(
                        "{} bytes came within {seconds} s, which {PATIENCE_VARIABLE} sets",
                        self.bytes
                    );
                    return Err(Failure::passing(libc::ETIMEDOUT, message));
                }
                *self = Self::new();
            }
            if let Ok(next) = next {
                return next;
            }
        }
    }
}

/// How often a range was asked for.
struct Turn {
    /// In a row, without much coming.
    pauses: u32,
    /// The same, as far as it is to end the load.
    in_vain: u32,
    /// In all.
    tries: u32,
}

impl Turn {
    /// Waits before another try, or tells why there is none.
    async fn pause(self, failure: Failure, retries: &Retries) -> Result<(), Refusal> {
        let pause = match failure.next {
            Next::Retry => backoff(self.pauses),
            Next::RetryAfter(pause) => pause.max(backoff(self.pauses)),
            Next::GiveUp | Next::Region(_) => return Err(failure.refusal(self.tries)),
        };
        if self.in_vain >= FRUITLESS_TRIES_MAX || !retries.spend() {
            return Err(failure.refusal(self.tries));
        }
        sleep(pause).await;
        Ok(())
    }
}

/// A pause at random up to one that doubles ("full jitter", AWS architecture blog, 2015): those who
/// failed together do not come back together.
fn backoff(fruitless: u32) -> Duration {
    const FIRST: Duration = Duration::from_millis(100);
    let most = FIRST * (1 << fruitless.clamp(1, 7));
    let share = RandomState::new().hash_one(()) as f64 / u64::MAX as f64;
    most.mul_f64(share)
}
