//! The way to the API server: as a pod finds it, or by a kubeconfig.
//!
//! Promises that the server is verified. Leaves tokens, certificates and their renewal to the client library.

use std::{env, path::Path, path::PathBuf, time::Duration};

use kube::{
    Client, Config,
    config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError},
};

/// How long connecting may take, and one read or write.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Why there is no way to the API server.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoginError {
    /// The kubeconfig cannot be used.
    #[error("the kubeconfig {path}")]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Box<KubeconfigError>,
    },
    /// The answers of this server would prove nothing.
    #[error("the kubeconfig {path}: {problem}: the answers of a server that is not verified prove nothing")]
    Unverified {
        /// The file.
        path: PathBuf,
        /// What makes it so.
        problem: &'static str,
    },
    /// Neither in a pod nor told of a kubeconfig.
    #[error("this is no pod with a service account; pass --kubeconfig FILE")]
    NoPod(#[source] InClusterError),
    /// The login is unusable.
    #[error("cannot log in to the cluster")]
    Client(#[source] Box<kube::Error>),
}

/// Whether the kubelet has told this process of an API server.
pub(crate) fn in_pod() -> bool {
    env::var_os("KUBERNETES_SERVICE_HOST").is_some_and(|host| !host.is_empty())
}

/// A client of the current context of `kubeconfig`, or of the cluster that this process is a pod of. Connects when it is
/// used.
pub(super) async fn client(kubeconfig: Option<&Path>) -> Result<Client, LoginError> {
    let mut config = match kubeconfig {
        Some(path) => {
            let config = read(path).await.map_err(|source| LoginError::Kubeconfig {
                path: path.to_owned(),
                source: Box::new(source),
            })?;
            let problem = match config.cluster_url.scheme_str() {
                Some("https") if config.accept_invalid_certs => Some("insecure-skip-tls-verify"),
                Some("https") => None,
                _ => Some("its server is not https://HOST:PORT"),
            };
            match problem {
                Some(problem) => {
                    return Err(LoginError::Unverified { path: path.to_owned(), problem });
                }
                None => config,
            }
        }
        None => Config::incluster_env().map_err(LoginError::NoPod)?,
    };
    config.connect_timeout = Some(TIMEOUT);
    config.read_timeout = Some(TIMEOUT);
    config.write_timeout = Some(TIMEOUT);
    // Whoever asks for a certificate asks again by itself.
    config.default_retry = false;
    Client::try_from(config).map_err(|source| LoginError::Client(Box::new(source)))
}

async fn read(path: &Path) -> Result<Config, KubeconfigError> {
    Config::from_custom_kubeconfig(Kubeconfig::read_from(path)?, &KubeConfigOptions::default()).await
}
