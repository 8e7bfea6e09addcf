//! Read-only views over a UNIX socket (gRPC) and HTTP: status, metrics, readiness. Decides nothing.
//!
//! Both servers bound what a client can hold: connections, header sizes, and the time any of them may take. The claim on
//! the run directory makes sure that one agent at a time serves it.

mod http;
mod readiness;
mod run_dir;
mod status;

use std::{io, net::SocketAddr, path::PathBuf};

pub(crate) use http::{Exposition, serve_http};
pub(crate) use readiness::{Gate, Readiness};
pub(crate) use run_dir::{RunDir, SocketFile, listen};
pub(crate) use status::{StatusProvider, serve_status};

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
    /// The HTTP address cannot be listened on.
    #[error("cannot listen on --metrics-addr {addr}")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// Why.
        source: io::Error,
    },
}
