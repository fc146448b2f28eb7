//! The threads that carry requests: one set for the process, begun with the first remote file, and
//! begun anew in a child of fork.

use std::future::Future;

use crossbeam::channel::{RecvTimeoutError, bounded};
use tokio::runtime::{Builder, Runtime};

use crate::config::{NETWORK_THREADS_MAX, SIGNAL_INTERVAL, processors};
use crate::error::{Error, Result};
use crate::process::PerProcess;
use crate::source::remote::failure::Failure;
use crate::source::remote::transport::Transport;

/// What all remote files of a process share.
#[derive(Debug)]
pub(super) struct Network {
    runtime: Runtime,
    /// The clients with their connections.
    pub(super) transport: Transport,
}

impl Network {
    fn new() -> std::result::Result<Self, Failure> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(processors().min(NETWORK_THREADS_MAX))
            .thread_name("sst-network")
            .enable_all()
            .build();
        let runtime = runtime.map_err(|error| Failure::lasting(libc::EAGAIN, error.to_string()))?;
        Ok(Self { runtime, transport: Transport::new()? })
    }

    /// That of this process.
    pub(super) fn of_process() -> std::result::Result<&'static Self, Failure> {
        static NETWORKS: PerProcess<std::result::Result<Network, Failure>> = PerProcess::new();
        NETWORKS.get(Self::new).as_ref().map_err(Failure::clone)
    }

    /// Begins a task.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(task);
    }

    /// Carries a task and waits for it; an error of `check` ends it.
    pub(super) fn wait<T: Send + 'static>(
        &self,
        check: fn() -> Result<()>,
        task: impl Future<Output = T> + Send + 'static,
    ) -> Result<T> {
        let (done, outcome) = bounded(1);
        let task = self.runtime.spawn(async move {
            // Nobody listens any more: it was aborted.
            let _sent = done.send(task.await);
        });
        loop {
            match outcome.recv_timeout(SIGNAL_INTERVAL) {
                Ok(outcome) => return Ok(outcome),
                Err(RecvTimeoutError::Timeout) => check().inspect_err(|_| task.abort())?,
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Error::Internal("a request ended without a word".to_owned()));
                }
            }
        }
    }
}
