//! This process among the agents of its node: the run directory and its lock, succession, readiness, signals, draining.
//!
//! Promises that one agent at a time serves a run directory, and that however a process ends, the next one can. What is
//! served, handed over and drained is the caller's: it passes in how much of it is left.

mod capacity;
mod draining;
mod readiness;
mod run_dir;
mod signals;
mod socket;
mod succession;

use std::{io, path::PathBuf};

pub(crate) use capacity::{Capacity, MemoryUse, has_processor_limit};
pub(crate) use draining::{drained, end_superseded};
pub(crate) use readiness::{Gate, REPLACED, Readiness, TAKEOVER};
pub(crate) use run_dir::{Claim, RunDir, Successor};
pub(crate) use signals::Signals;
pub(crate) use socket::listen;
pub(crate) use succession::{SWAP_LIMIT, Takeover, hear, reclaim, serve_successors};

/// What keeps a process from being an agent of its node.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InstanceError {
    /// Another process holds the claim on the run directory.
    #[error("another agent runs in this --run-dir: {dir}{}", pid.map(|pid| format!(" (process {pid})")).unwrap_or_default())]
    Claimed {
        /// The run directory.
        dir: PathBuf,
        /// The process that holds it, as it said itself.
        pid: Option<u32>,
    },
    /// The agent that serves the run directory does not hand it over.
    #[error("the agent that serves this node does not answer at {path}; stop it first")]
    NotGranted {
        /// Its socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file in the run directory cannot be used.
    #[error("cannot use {path}")]
    RunDir {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is something else where a socket belongs.
    #[error("{path} is in the way: it is no socket, so it is not replaced")]
    InTheWay {
        /// The path of the socket.
        path: PathBuf,
    },
}
