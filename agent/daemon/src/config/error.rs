//! Why there is no configuration.

use std::{io, path::PathBuf};

use ambit_core::model::TrustDomain;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// The config file cannot be read.
    #[error("cannot read the config file {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something in the config file is no setting.
    #[error("config file {path}: {key}")]
    Setting {
        /// The file.
        path: PathBuf,
        /// The key as written.
        key: String,
        /// What is wrong with it.
        source: serde_yaml_ng::Error,
    },
    /// A setting without a default is not set.
    #[error("--{flag} is needed: pass the flag, set {variable}, or put `{flag}:` into the config file")]
    Missing {
        /// The flag without dashes, which is the key as well.
        flag: &'static str,
        /// The environment variable.
        variable: &'static str,
    },
    /// Two settings that exclude each other are both set.
    #[error("--{first} and --{second} cannot both be set")]
    Both {
        /// A flag without dashes.
        first: &'static str,
        /// The other.
        second: &'static str,
    },
    /// Somebody else's roots are meant to vouch for our own trust domain.
    #[error("--trust-bundle {0}: that is our own trust domain or its alias; its roots come from the issuer")]
    OwnTrustDomain(TrustDomain),
    /// A folder cannot be used.
    #[error("cannot use --{flag} {path}")]
    Folder {
        /// The flag that names it, without dashes.
        flag: &'static str,
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A folder that holds secrets is open to others.
    #[error("--{flag} {path} is not safe: {why}")]
    Unsafe {
        /// The flag that names it, without dashes.
        flag: &'static str,
        /// The folder.
        path: PathBuf,
        /// What is wrong, and how to mend it.
        why: String,
    },
}
