//! The way to the Kubernetes API: a client from a kubeconfig, or as every pod finds it.
//!
//! Promises that the server is verified and that no wait on it is endless. What is asked of it is left to others.

mod authorizer;
mod remote;

use std::{
    env,
    path::{Path, PathBuf},
    time::Duration,
};

use kube::{
    Client, Config,
    config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError},
    runtime::watcher,
};

pub(crate) use authorizer::{Access, Authorizer};
pub(crate) use remote::config as remote_config;

use crate::{error::with_causes, files};

/// The longest token read, in bytes.
const MAX_TOKEN: u64 = 64 * 1024;
/// How long a connection to the API server may take to come about.
const CONNECT: Duration = Duration::from_secs(4);

/// Why there is no way to the API.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClusterError {
    /// The kubeconfig cannot be used.
    #[error("the kubeconfig {path}")]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
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
    /// The token would never be sent.
    #[error("the token file {path} cannot be used: {problem}")]
    Token {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Neither in a pod nor told of a kubeconfig.
    #[error("this is no pod with a service account; pass --kubeconfig FILE")]
    NoPod(#[source] InClusterError),
    /// TLS or the login cannot be set up.
    #[error("cannot log in to the cluster")]
    Client(#[source] Box<kube::Error>),
}

/// Whether the kubelet has told this process of an API server.
pub(crate) fn in_pod() -> bool {
    env::var_os("KUBERNETES_SERVICE_HOST").is_some_and(|host| !host.is_empty())
}

/// Server and login of the current context of the kubeconfig, or without one of the cluster whose pod this is. Tokens and
/// roots that are files are read again as they change.
pub(crate) async fn config(kubeconfig: Option<&Path>) -> Result<Config, ClusterError> {
    let mut config = match kubeconfig {
        Some(path) => {
            let read = async || {
                let file = Kubeconfig::read_from(path)?;
                Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await
            };
            let failed =
                |source| ClusterError::Kubeconfig { path: path.to_owned(), source: Box::new(source) };
            let config = read().await.map_err(failed)?;
            let problem = match config.cluster_url.scheme_str() {
                Some("https") if config.accept_invalid_certs => Some("insecure-skip-tls-verify"),
                Some("https") => None,
                _ => Some("its server is not https://HOST:PORT"),
            };
            match problem {
                Some(problem) => return Err(ClusterError::Unverified { path: path.to_owned(), problem }),
                None => config,
            }
        }
        None => Config::incluster_env().map_err(ClusterError::NoPod)?,
    };
    if let Some(path) = &config.auth_info.token_file {
        check_token(Path::new(path))?;
    }
    config.connect_timeout = Some(CONNECT);
    Ok(config)
}

/// A client of it, which connects when it is used.
pub(crate) fn client(config: Config) -> Result<Client, ClusterError> {
    Client::try_from(config).map_err(|source| ClusterError::Client(Box::new(source)))
}

/// The client library sends the file's content as it is.
fn check_token(path: &Path) -> Result<(), ClusterError> {
    let bad = |problem: String| ClusterError::Token { path: path.to_owned(), problem };
    let token = files::read_text(path, MAX_TOKEN).map_err(|error| bad(error.into_problem().to_string()))?;
    match !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => Ok(()),
        false => Err(bad("it must hold the token and nothing else, no line end either".into())),
    }
}

/// Why what is watched cannot be read, in one line.
pub(crate) fn watch_sentence(error: &watcher::Error) -> String {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => sentence(error),
        other => other.to_string(),
    }
}

/// What the API server said, or why it could not be asked, in one line.
pub(crate) fn sentence(error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error {
        return match &*status.message {
            "" => format!("the API server answers with status {}", status.code),
            message => message.to_owned(),
        };
    }
    with_causes(error)
}

#[cfg(test)]
pub(crate) mod testing;
