//! A real Kubernetes on this machine: its API server alone, or two nodes with pods as containers.
//!
//! Everything lives in network namespaces and cgroups that bear the run's name, with addresses that exist only there. What
//! a cluster runs on is given to it: [`Programs`] are built by `cargo xtask`.

mod api_server;
mod pki;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use self::api_server::ApiServer;

/// The folder of the programs of Kubernetes, etcd, containerd and their like.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Programs(PathBuf);

impl Programs {
    /// Programs that are all in `folder`.
    pub fn new(folder: PathBuf) -> Self {
        Self(folder)
    }

    /// The path of one.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Where they are.
    pub fn folder(&self) -> &Path {
        &self.0
    }
}
