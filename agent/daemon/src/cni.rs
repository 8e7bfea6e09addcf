//! The CNI plugin, the agent's side of it, and its installation on the node (CNI specification 1.1.0).
//!
//! Promises that a pod which opts in does not start before its traffic is captured, that no other pod is hindered, and that
//! nothing here waits without a bound. What enrolling a pod means is left to who handles the requests.

mod api;
mod conflist;
mod credentials;
mod fallback;
mod install;
mod places;
mod plugin;
mod protocol;
mod result;
mod server;
mod state;

use std::{io, path::PathBuf};

use crate::instance::InstanceError;

pub(crate) use credentials::{Account, follow_credentials};
pub(crate) use install::{Installed, Installer, Repairs, uninstall};
pub(crate) use places::uninstall_wherever;
pub(crate) use plugin::run;
pub(crate) use protocol::{Answer, BINARY, Command, ENROLMENT_WAIT, Outcome, PodRef, Request, read};
pub(crate) use server::serve;
pub(crate) use state::State;

/// What goes wrong around the plugin on the agent's side.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CniError {
    /// A file or folder cannot be used.
    #[error("cannot {step} {path}: {source}", path = path.display())]
    File {
        /// What was tried.
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The socket for the plugin cannot be served.
    #[error(transparent)]
    Socket(#[from] InstanceError),
    /// The folder has no network configuration yet.
    #[error("{path} has no network configuration to chain to: install a CNI network plugin first", path = .0.display())]
    NoNetwork(PathBuf),
    /// The network configuration is not one that can be chained to. It is left as it is.
    #[error("{path} is left alone: {why}", path = path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

impl CniError {
    fn file(step: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { step, path, source }
    }
}
