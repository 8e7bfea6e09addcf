//! The plugin's way to the Kubernetes API: a kubeconfig that the agent keeps on the node, with its own token as it rotates.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use data_encoding::BASE64;
use serde_json::json;
use tokio::{task::spawn_blocking, time::sleep};
use zeroize::Zeroizing;

use super::CniError;
use crate::files::{self, ReadError};

const FILE: &str = "ambit-cni.kubeconfig";
/// How often the source is looked at; tokens are renewed minutes before their end.
const LOOK: Duration = Duration::from_secs(20);
/// The longest file read, in bytes.
const MAX_FILE: u64 = 1024 * 1024;

/// Where the credentials are taken from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Credentials {
    /// The service account of the agent's pod: the API's address, and the folder with `token` and `ca.crt`.
    ServiceAccount {
        /// `https://host:port`.
        server: String,
        /// The mounted folder.
        dir: PathBuf,
    },
    /// A kubeconfig of the operator's; its references to other files must hold for the whole node.
    File(PathBuf),
}

impl Credentials {
    /// Those of the pod that this process runs in; none outside of Kubernetes.
    pub(crate) fn of_this_pod() -> Option<Self> {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let host = variable("KUBERNETES_SERVICE_HOST")?;
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        let port = variable("KUBERNETES_SERVICE_PORT").unwrap_or_else(|| "443".to_owned());
        let dir = PathBuf::from("/var/run/secrets/kubernetes.io/serviceaccount");
        dir.is_dir().then(|| Self::ServiceAccount { server: format!("https://{host}:{port}"), dir })
    }

    fn kubeconfig(&self) -> Result<Zeroizing<Vec<u8>>, ReadError> {
        match self {
            Self::File(path) => files::read(path, MAX_FILE),
            Self::ServiceAccount { server, dir } => {
                let token = files::read_text(&dir.join("token"), MAX_FILE)?;
                let authority = BASE64.encode(&files::read(&dir.join("ca.crt"), MAX_FILE)?);
                // JSON is YAML.
                let kubeconfig = json!({
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "ambit",
                    "contexts": [{ "name": "ambit", "context": { "cluster": "ambit", "user": "ambit" } }],
                    "clusters": [{
                        "name": "ambit",
                        "cluster": { "server": server, "certificate-authority-data": authority },
                    }],
                    "users": [{ "name": "ambit", "user": { "token": token.trim() } }],
                });
                Ok(Zeroizing::new(kubeconfig.to_string().into_bytes()))
            }
        }
    }
}

/// Keeps the kubeconfig in `dir` equal to what `source` has; runs until it is dropped.
pub(crate) async fn follow_credentials(source: Credentials, dir: PathBuf) {
    let mut warned = false;
    loop {
        let (credentials, folder) = (source.clone(), dir.clone());
        let done = spawn_blocking(move || write(&credentials, &folder)).await;
        match done {
            Ok(Err(error)) if !warned => {
                tracing::warn!(%error, "the CNI plugin gets no credentials for the API");
                warned = true;
            }
            Ok(Ok(())) => warned = false,
            _ => {}
        }
        sleep(LOOK).await;
    }
}

/// Where the kubeconfig in `dir` is.
pub(super) fn path(dir: &Path) -> PathBuf {
    dir.join(FILE)
}

fn write(source: &Credentials, dir: &Path) -> Result<(), CniError> {
    let path = path(dir);
    let made = source.kubeconfig().map_err(|error| io::Error::other(error.to_string()));
    let text = made.map_err(CniError::file("make", &path))?;
    if files::read(&path, MAX_FILE).is_ok_and(|present| present == text) {
        return Ok(());
    }
    files::replace(&path, &text, 0o600).map_err(CniError::file("write", &path))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use kube::config::Kubeconfig;

    use super::*;

    #[test]
    fn the_kubeconfig_is_what_kube_reads_and_follows_the_token() {
        let (account, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(account.path().join("ca.crt"), "PEM").unwrap();
        let source = Credentials::ServiceAccount {
            server: "https://[fd00::1]:443".into(),
            dir: account.path().into(),
        };
        assert!(write(&source, dir.path()).is_err(), "there is no token yet");
        for token in ["first", "second\n"] {
            fs::write(account.path().join("token"), token).unwrap();
            write(&source, dir.path()).unwrap();
            let read = Kubeconfig::read_from(path(dir.path())).unwrap();
            let cluster = read.clusters[0].cluster.as_ref().unwrap();
            assert_eq!(cluster.server.as_deref(), Some("https://[fd00::1]:443"));
            assert_eq!(cluster.certificate_authority_data.as_deref(), Some("UEVN"));
            assert!(fs::read_to_string(path(dir.path())).unwrap().contains(token.trim()));
        }
    }
}
