//! The way to the Kubernetes API: a client from a kubeconfig, or as every pod finds it.
//!
//! Promises that the server is verified and that no wait on it is endless. What is asked of it is left to others.

use std::{
    error::Error,
    path::{Path, PathBuf},
    time::Duration,
};

use kube::{
    Client, Config,
    config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError},
};

/// How long a connection to the API server may take to come about.
const CONNECT: Duration = Duration::from_secs(4);

/// Why there is no way to the API.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClusterError {
    /// The kubeconfig cannot be used.
    #[error("cannot use the kubeconfig {path}")]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: KubeconfigError,
    },
    /// The kubeconfig tells to take any server for the right one.
    #[error(
        "the kubeconfig {0} has insecure-skip-tls-verify: the answers of a server that is not verified prove nothing; \
         give it the cluster's certificate-authority instead"
    )]
    Unverified(PathBuf),
    /// Not in a pod.
    #[error("this is no pod of a cluster: name the cluster with --kubeconfig, or a folder with --manifests")]
    NoPod(#[source] InClusterError),
    /// TLS or the login cannot be set up.
    #[error("cannot set up the way to the Kubernetes API")]
    Client(#[source] kube::Error),
}

/// A client for the current context of the kubeconfig, or without one for the cluster whose pod this is. Speaks to nobody
/// yet. Tokens and roots that are files are read again as they change.
pub(crate) async fn client(kubeconfig: Option<&Path>) -> Result<Client, ClusterError> {
    let mut config = match kubeconfig {
        Some(path) => {
            let failed = |source| ClusterError::Kubeconfig { path: path.to_owned(), source };
            let file = Kubeconfig::read_from(path).map_err(failed)?;
            let options = KubeConfigOptions::default();
            let config = Config::from_custom_kubeconfig(file, &options).await.map_err(failed)?;
            if config.accept_invalid_certs {
                return Err(ClusterError::Unverified(path.to_owned()));
            }
            config
        }
        None => Config::incluster().map_err(ClusterError::NoPod)?,
    };
    config.connect_timeout = Some(CONNECT);
    Client::try_from(config).map_err(ClusterError::Client)
}

/// What the API server said, or why it could not be asked, in one line.
pub(crate) fn sentence(error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error {
        return match &*status.message {
            "" => format!("the API server answers with status {}", status.code),
            message => message.to_owned(),
        };
    }
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        // Many errors say in their own words what their cause says.
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
        source = error.source();
    }
    text
}
