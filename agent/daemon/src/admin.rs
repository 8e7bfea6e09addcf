//! Read-only views over a UNIX socket (gRPC) and HTTP: status, metrics, readiness. Decides nothing.
//!
//! Both servers bound what a client can hold: connections, header sizes, and the time any of them may take. What is shown
//! is left to whoever provides it.

mod exposition;
mod guard;
mod http;
mod policies;
mod status;

use std::{io, net::SocketAddr};

use crate::instance::InstanceError;

pub(crate) use exposition::Exposition;
pub(crate) use guard::{Guard, METRICS_PATH};
pub(crate) use http::{Page, serve_http};
pub(crate) use policies::PolicyProvider;
pub(crate) use status::{StatusProvider, serve_own_status, serve_status, serve_status_tcp};

/// What keeps the admin room from serving.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdminError {
    /// The status socket cannot be served.
    #[error(transparent)]
    Socket(#[from] InstanceError),
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
    /// An HTTP address cannot be listened on.
    #[error("cannot listen on --{flag} {addr}")]
    Listen {
        /// The setting that names it, without dashes.
        flag: &'static str,
        /// The address.
        addr: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The metrics cannot be served under TLS.
    #[error("no certificate for the metrics: {0}")]
    Certificate(String),
}
