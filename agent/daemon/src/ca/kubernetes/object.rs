//! What the CA's objects in a cluster have in common: who writes them, and what can go wrong.

use super::api::TIMEOUT;
use crate::identity::CaError;

/// Who writes, as the API server remembers it.
pub(super) const WRITER: &str = "ambit-ca";

/// Why an object of the CA is of no use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ObjectError {
    /// The API server could not be asked, or refuses.
    #[error("cannot {action} in namespace {namespace}: {problem}")]
    Api {
        /// What was tried, on what.
        action: String,
        /// Where.
        namespace: String,
        /// What the API server says, causes included.
        problem: String,
    },
    /// There is none any more.
    #[error(
        "the Secret {namespace}/{name} is gone; restore it, or restart all replicas to have a new CA made"
    )]
    Gone {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// What it holds is no CA.
    #[error(transparent)]
    Content(#[from] CaError),
}

pub(super) fn no_answer() -> String {
    format!("no answer within {} s", TIMEOUT.as_secs())
}
