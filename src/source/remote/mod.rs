//! Remote files: HTTP Range, S3, GCS and Azure. Nothing outside this module knows of its runtime.

use std::future::Future;
use std::io;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::{FutureExt, StreamExt, TryStreamExt, stream};
use tokio::sync::watch;

pub(crate) mod answer;
pub(crate) mod cache;
pub(crate) mod failure;
mod fetch;
mod runtime;
mod store;
mod transport;
mod web;

use crate::config::{CONNECTIONS_MAX, REMOTE_HEAD_BYTES};
use crate::error::{Error, Refusal, Result};
use crate::source::address::{Address, Parts};
use crate::source::remote::answer::Known;
use crate::source::remote::cache::{Claim, Writer};
use crate::source::remote::failure::Failure;
use crate::source::remote::fetch::{Origin, Place, Retries};
use crate::source::remote::runtime::Network;
use crate::source::remote::store::{Bucket, Clients, Store};
use crate::source::remote::web::Web;
use crate::source::{LocalFile, Source};

/// A file that is read over the network, range by range, and was found there in one state.
#[derive(Debug)]
pub(crate) struct RemoteFile {
    /// Its address, without what may be secret.
    path: PathBuf,
    check: fn() -> Result<()>,
    /// Its first bytes, which came when it was opened: the header, most often.
    head: Vec<u8>,
    there: Arc<There>,
}

/// What the tasks that read a file need.
#[derive(Debug)]
struct There {
    origin: Origin,
    known: Known,
    /// Who keeps what comes.
    writer: Option<Arc<Writer>>,
}

/// What an address leads to.
#[derive(Debug)]
pub(crate) enum Opened {
    /// The file, over the network.
    Remote(RemoteFile),
    /// The same state of it, which a load before has kept.
    Kept(LocalFile),
}

/// The requests of one load: they end together, and are tried again as often as all together may be.
#[derive(Debug)]
pub(crate) struct Requests {
    stop: watch::Sender<bool>,
    retries: Arc<Retries>,
}

impl Requests {
    /// Without any yet.
    pub(crate) fn new() -> Self {
        Self { stop: watch::Sender::new(false), retries: Arc::default() }
    }

    /// Ends all at once: each gives its target back.
    pub(crate) fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// How often one was tried again.
    pub(crate) fn retries(&self) -> u32 {
        self.retries.count()
    }
}

/// Opens files, many at once; an error is the first in their order.
pub(crate) fn open_all(addresses: &[&Address]) -> Result<Vec<Opened>> {
    let Some(first) = addresses.first() else { return Ok(Vec::new()) };
    let network = Network::of_process().map_err(|failure| refused(first, failure.refusal(1)))?;
    let clients = Arc::new(Clients::default());
    let opening = |address: &&Address| {
        let (address, clients) = (Address::clone(address), Arc::clone(&clients));
        async move {
            let opened = open(&address, network, &clients).await;
            opened.map_err(|refusal| refused(&address, refusal))
        }
    };
    let opening: Vec<_> = addresses.iter().map(opening).collect();
    let all = stream::iter(opening).buffered(CONNECTIONS_MAX).try_collect::<Vec<_>>();
    keep(addresses, network.wait(first.access.check, all)??)
}

/// Looks each file up in the folder that keeps it, or has it written there. Those who wait for each
/// other's files do so in one order.
fn keep(addresses: &[&Address], files: Vec<RemoteFile>) -> Result<Vec<Opened>> {
    let entry =
        |(address, file): (&&Address, &RemoteFile)| cache::entry(address, &file.there.known);
    let entries: Vec<Option<PathBuf>> = addresses.iter().zip(&files).map(entry).collect();
    let mut opened: Vec<Opened> = files.into_iter().map(Opened::Remote).collect();
    let mut order: Vec<usize> = (0..opened.len()).collect();
    order.sort_by_key(|&number| &entries[number]);
    for number in order {
        let (Some(entry), Opened::Remote(file)) = (&entries[number], &mut opened[number]) else {
            continue;
        };
        let whole = addresses[number].access.whole;
        match cache::claim(entry, &file.there.known, whole, file.check)? {
            Claim::Kept(kept) => opened[number] = Opened::Kept(kept),
            Claim::Ours(writer) => file.keep_by(writer),
            Claim::NotOurs => {}
        }
    }
    Ok(opened)
}

async fn open(
    address: &Address,
    network: &Network,
    clients: &Clients,
) -> std::result::Result<RemoteFile, Refusal> {
    let refuse = |message: String| Failure::lasting(libc::EINVAL, message).refusal(1);
    let transport = &network.transport;
    let origin = match address.parts().map_err(refuse)? {
        Parts::Web(url) => Web::new(address, url).map(|web| Origin::Web(Box::new(web))),
        Parts::Object { scheme, bucket, key } => {
            let bucket = Bucket { scheme, name: bucket };
            let store = Store::open(address, bucket, key, clients).await;
            store.map(|store| Origin::Store(Box::new(store)))
        }
    };
    let origin = origin.map_err(|failure| failure.refusal(1))?;
    let (known, head) = fetch::open(&origin, transport, REMOTE_HEAD_BYTES).await?;
    let there = Arc::new(There { origin, known, writer: None });
    Ok(RemoteFile { path: address.shown(), check: address.access.check, head, there })
}

fn refused(address: &Address, refusal: Refusal) -> Error {
    Error::io(&address.shown(), io::Error::other(refusal))
}

impl RemoteFile {
    /// Has what comes, and what has come, written to a folder.
    fn keep_by(&mut self, writer: Writer) {
        let writer = Arc::new(writer);
        writer.write(0, &self.head);
        if let Some(there) = Arc::get_mut(&mut self.there) {
            there.writer = Some(writer);
        }
    }

    /// Begins to fill the first bytes of a target; `done` is told what came of it, in a thread of ours.
    pub(crate) fn fill<T: AsMut<[u8]> + Send + 'static>(
        &self,
        requests: &Requests,
        (offset, bytes): (u64, usize),
        mut target: T,
        done: impl FnOnce(T, io::Result<usize>) + Send + 'static,
    ) {
        let network = match Network::of_process() {
            Ok(network) => network,
            Err(failure) => return done(target, Err(io::Error::other(failure.refusal(1)))),
        };
        let (there, retries) = (Arc::clone(&self.there), Arc::clone(&requests.retries));
        let mut stopped = requests.stop.subscribe();
        network.spawn(async move {
            let wanted = &mut target.as_mut()[..bytes];
            let fill = AssertUnwindSafe(there.fill(network, offset, wanted, &retries));
            let outcome = tokio::select! {
                biased;
                _ = stopped.wait_for(|stop| *stop) => Err(io::Error::other("the load was stopped")),
                outcome = fill.catch_unwind() => {
                    outcome.unwrap_or_else(|_| Err(io::Error::other("a request panicked")))
                }
            };
            drop(there); // what is kept of the file ends with the load
            done(target, outcome);
        });
    }

    fn read(&self, offset: u64, bytes: usize) -> Result<Vec<u8>> {
        let refuse = |refusal| Error::io(&self.path, io::Error::other(refusal));
        let network = Network::of_process().map_err(|failure| refuse(failure.refusal(1)))?;
        let there = Arc::clone(&self.there);
        let read = async move {
            let mut target = vec![0; bytes];
            let filled = there.fill(network, offset, &mut target, &Retries::default()).await;
            filled.map(|_| target)
        };
        network.wait(self.check, read)?.map_err(|error| Error::io(&self.path, error))
    }
}

impl There {
    fn fill<'target>(
        &'target self,
        network: &'target Network,
        offset: u64,
        target: &'target mut [u8],
        retries: &'target Retries,
    ) -> impl Future<Output = io::Result<usize>> + Send + 'target {
        let Self { origin, known, writer } = self;
        let place = Place { origin, transport: &network.transport, known };
        async move {
            let bytes = target.len();
            let filled = fetch::fill(place, offset, target, retries);
            filled.await.map_err(io::Error::other)?;
            if let Some(writer) = writer {
                tokio::task::block_in_place(|| writer.write(offset, target));
            }
            Ok(bytes)
        }
    }
}

impl Source for RemoteFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn len(&self) -> u64 {
        self.there.known.bytes
    }

    fn read_at(&self, offset: u64, target: &mut [u8]) -> io::Result<usize> {
        let left = self.len().saturating_sub(offset);
        let bytes = target.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        if let Some(known) = self.head.get(start..).filter(|known| !known.is_empty()) {
            let count = known.len().min(bytes);
            target[..count].copy_from_slice(&known[..count]);
            return Ok(count);
        }
        if bytes > 0 {
            let read = self.read(offset, bytes).map_err(io::Error::other)?;
            target[..bytes].copy_from_slice(&read);
        }
        Ok(bytes)
    }

    /// None where all of it came when it was opened.
    fn remote(&self) -> Option<&RemoteFile> {
        ((self.head.len() as u64) < self.len()).then_some(self)
    }
}
