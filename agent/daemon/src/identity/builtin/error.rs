//! Why there is no CA.

use std::{path::PathBuf, time::Duration};

use crate::files::ReadError;

/// Why there is no CA. Every text names the file and says what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CaError {
    /// The directory or a file in it cannot be used.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A file cannot be read, and what to put there.
    #[error("{0}; {1}")]
    Unreadable(ReadError, &'static str),
    /// Another process holds the directory's lock.
    #[error("{} is held by another process for more than {} s; stop it, then try again", path.display(), waited.as_secs())]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// How long was waited.
        waited: Duration,
    },
    /// Some of the files are there, others are not.
    #[error(
        "{} holds only a part of a CA: {missing} missing; restore it, or empty the directory to have a new CA made",
        dir.display()
    )]
    Incomplete {
        /// The directory.
        dir: PathBuf,
        /// The names that are missing.
        missing: String,
    },
    /// A file's content cannot serve.
    #[error("{}: {problem}; {advice}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// What to do about it.
        advice: &'static str,
    },
    /// A new CA could not be made.
    #[error("cannot make a CA in {}", dir.display())]
    Make {
        /// The directory.
        dir: PathBuf,
        /// The cause.
        #[source]
        source: rcgen::Error,
    },
}
