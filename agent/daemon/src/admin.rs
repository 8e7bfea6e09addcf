//! Read-only views over a UNIX socket (gRPC) and HTTP: status, metrics, readiness. Decides nothing.
//!
//! Both servers bound what a client can hold: connections, header sizes, and the time any of them may take. The claim on
//! the run directory makes sure that one agent at a time serves it, and goes from one to the next at an upgrade.

mod handover;
mod http;
mod readiness;
mod run_dir;
mod status;

use std::{io, net::SocketAddr, path::PathBuf};

pub(crate) use handover::{SWAP_LIMIT, Takeover, serve_successors};
pub(crate) use http::{Exposition, serve_http};
pub(crate) use readiness::{Gate, Readiness};
pub(crate) use run_dir::{Claim, RunDir, Successor, listen};
pub(crate) use status::{StatusProvider, serve_status, serve_status_tcp};

/// What keeps the admin room from serving.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdminError {
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
    /// There is something else where the status socket belongs.
    #[error("{path} is in the way: it is no socket, so it is not replaced")]
    InTheWay {
        /// The path of the socket.
        path: PathBuf,
    },
    /// The status server stopped by itself.
    #[error("the status server failed")]
    Status(#[source] tonic::transport::Error),
    /// The status address cannot be listened on.
    #[error("cannot listen on --admin-addr {addr}")]
    ListenStatus {
        /// The address.
        addr: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The HTTP address cannot be listened on.
    #[error("cannot listen on --metrics-addr {addr}")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// Why.
        source: io::Error,
    },
}
