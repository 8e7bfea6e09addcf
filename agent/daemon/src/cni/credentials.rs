//! The plugin's way to the Kubernetes API: a kubeconfig that the agent keeps on the node, with a token of an account that is the
//! plugin's own and may only read.
//!
//! Promises that the agent's own token never lies on the node's disk. The API server is asked for one that lasts an hour
//! (TokenRequest), and for the next one at half of its life.

use std::{
    io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use data_encoding::BASE64;
use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::ServiceAccount,
};
use kube::{Api, Config, api::PostParams};
use serde_json::json;
use tokio::{
    task::spawn_blocking,
    time::{sleep, timeout},
};
use zeroize::Zeroizing;

use super::CniError;
use crate::{
    cluster::{self, ClusterError, sentence},
    error::with_causes,
    files,
};

const FILE: &str = "ambit-cni.kubeconfig";
/// How long a token is asked for, seconds.
const LIFETIME: u32 = 3600;
/// How long the API server may take over one.
const PATIENCE: Duration = Duration::from_secs(5);
/// The shortest and the longest time between two tokens, whatever life the API server gave the first.
const SOONEST: Duration = Duration::from_secs(30);
const LATEST: Duration = Duration::from_secs(LIFETIME as u64 / 2);
/// After a failure; it doubles with each that follows.
const FIRST_WAIT: Duration = Duration::from_secs(5);
const LONGEST_WAIT: Duration = Duration::from_secs(120);

/// Whose token the plugin gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Account {
    /// The account's namespace.
    pub(crate) namespace: String,
    /// Its name.
    pub(crate) name: String,
    /// How the agent itself reaches the cluster; as a pod of it if `None`.
    pub(crate) kubeconfig: Option<PathBuf>,
}

/// Why there is no new token.
#[derive(Debug, thiserror::Error)]
enum NoToken {
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error("{0}")]
    Refused(String),
    #[error("the API server did not answer in time")]
    Slow,
    #[error("the API server gave none")]
    Empty,
    #[error("the roots of the API server's certificate: {0}")]
    Roots(String),
    #[error(transparent)]
    File(#[from] CniError),
}

/// Keeps a kubeconfig with a token of `account` in `dir`; without an account there is none, not even one that was left there. Runs
/// until it is dropped.
pub(crate) async fn follow_credentials(account: Option<Account>, dir: PathBuf) {
    let Some(account) = account else {
        let _absent: io::Result<()> = std::fs::remove_file(path(&dir));
        return;
    };
    let (mut failures, mut told) = (0_u32, None);
    loop {
        let wait = match renew(&account, &dir).await {
            Ok(lifetime) => {
                (failures, told) = (0, None);
                (lifetime / 2).clamp(SOONEST, LATEST)
            }
            Err(error) => {
                let error = with_causes(&error);
                if told.as_ref() != Some(&error) {
                    tracing::warn!(
                        error,
                        "the CNI plugin gets no token; without the agent it will go by the list of namespaces alone"
                    );
                }
                told = Some(error);
                let wait = FIRST_WAIT * 2_u32.saturating_pow(failures.min(16));
                failures += 1;
                wait.min(LONGEST_WAIT)
            }
        };
        // Not all nodes at once.
        sleep(wait.mul_f64(rand::random_range(0.8..1.0))).await;
    }
}

/// Where the kubeconfig in `dir` is.
pub(super) fn path(dir: &Path) -> PathBuf {
    dir.join(FILE)
}

/// Writes a kubeconfig with a new token; how long that is good for.
async fn renew(account: &Account, dir: &Path) -> Result<Duration, NoToken> {
    // Server and roots as they are now, too.
    let config = cluster::config(account.kubeconfig.as_deref()).await?;
    let accounts: Api<ServiceAccount> = Api::namespaced(cluster::client(config.clone())?, &account.namespace);
    let (token, lifetime) = ask(&accounts, &account.name).await?;
    let text = kubeconfig(&config, &token)?;
    let path = path(dir);
    let write = move || files::replace(&path, &text, 0o600).map_err(CniError::file("write", &path));
    spawn_blocking(write).await.map_err(|error| NoToken::Refused(error.to_string()))??;
    Ok(lifetime)
}

/// A token of the account, for the API server itself, and for how long.
async fn ask(accounts: &Api<ServiceAccount>, name: &str) -> Result<(Zeroizing<String>, Duration), NoToken> {
    let spec = TokenRequestSpec { expiration_seconds: Some(LIFETIME.into()), ..TokenRequestSpec::default() };
    let request = TokenRequest { spec: Some(spec), ..TokenRequest::default() };
    let params = PostParams::default();
    let asked = timeout(PATIENCE, accounts.create_token_request(name, &params, &request)).await;
    let given = asked.map_err(|_| NoToken::Slow)?.map_err(|error| NoToken::Refused(sentence(&error)))?;
    let status = given.status.unwrap_or_default();
    let token = status.token.filter(|token| !token.is_empty()).ok_or(NoToken::Empty)?;
    let end = status.expiration_timestamp.map_or(SystemTime::UNIX_EPOCH, |end| end.0.into());
    Ok((token.into(), end.duration_since(SystemTime::now()).unwrap_or_default()))
}

/// The server that `config` leads to, with `token`.
fn kubeconfig(config: &Config, token: &str) -> Result<Zeroizing<Vec<u8>>, NoToken> {
    let mut cluster = json!({ "server": config.cluster_url.to_string() });
    if let Some(roots) = roots(config)? {
        cluster["certificate-authority-data"] = BASE64.encode(&roots).into();
    }
    if let Some(name) = &config.tls_server_name {
        cluster["tls-server-name"] = name.as_str().into();
    }
    // JSON is YAML.
    let kubeconfig = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "ambit",
        "contexts": [{ "name": "ambit", "context": { "cluster": "ambit", "user": "ambit" } }],
        "clusters": [{ "name": "ambit", "cluster": cluster }],
        "users": [{ "name": "ambit", "user": { "token": token } }],
    });
    Ok(Zeroizing::new(kubeconfig.to_string().into_bytes()))
}

/// The roots that `config` names, as PEM.
fn roots(config: &Config) -> Result<Option<Vec<u8>>, NoToken> {
    /// The longest file of roots read, in bytes.
    const MAX_ROOTS: u64 = 1024 * 1024;
    if let Some(file) = &config.root_cert_file {
        let read = files::read(file, MAX_ROOTS);
        return read
            .map(|text| Some(text.to_vec()))
            .map_err(|error| NoToken::Roots(error.into_problem().to_string()));
    }
    let pem = |der: &Vec<u8>| pem::encode(&pem::Pem::new("CERTIFICATE", der.clone()));
    Ok(config.root_cert.as_ref().map(|roots| roots.iter().map(pem).collect::<String>().into_bytes()))
}

#[cfg(test)]
mod tests {
    use kube::config::Kubeconfig;

    use super::*;
    use crate::cluster::testing::scripted;

    #[tokio::test]
    async fn a_token_of_the_plugins_own_account_is_asked_for() {
        let (client, mut calls) = scripted("none");
        let server = tokio::spawn(async move {
            let mut call = calls.recv().await.unwrap();
            assert_eq!(
                (call.method.as_str(), &*call.path),
                ("POST", "/api/v1/namespaces/ambit-system/serviceaccounts/ambit-cni/token")
            );
            assert_eq!(call.body["spec"]["expirationSeconds"], 3600);
            let mut given = call.body.take();
            let end = time::OffsetDateTime::now_utc() + time::Duration::minutes(10);
            let end = end.format(&time::format_description::well_known::Rfc3339).unwrap();
            given["status"] = json!({ "token": "short-lived", "expirationTimestamp": end });
            call.answer(201, &given);
            calls.recv().await.unwrap().refuse(
                403,
                "Forbidden",
                "serviceaccounts \"ambit-cni\" is forbidden",
            );
        });
        let accounts: Api<ServiceAccount> = Api::namespaced(client, "ambit-system");
        let (token, lifetime) = ask(&accounts, "ambit-cni").await.unwrap();
        assert_eq!(&**token, "short-lived");
        assert!((590..=600).contains(&lifetime.as_secs()), "{lifetime:?}");
        let refused = ask(&accounts, "ambit-cni").await.unwrap_err();
        assert!(refused.to_string().contains("is forbidden"), "{refused}");
        server.await.unwrap();
    }

    #[test]
    fn the_kubeconfig_is_what_kube_reads() {
        let mut config = Config::new("https://[fd00::1]:443".parse().unwrap());
        config.root_cert = Some(vec![b"one".to_vec(), b"two".to_vec()]);
        let dir = tempfile::tempdir().unwrap();
        let file = path(dir.path());
        std::fs::write(&file, &*kubeconfig(&config, "abc").unwrap()).unwrap();
        let read = Kubeconfig::read_from(&file).unwrap();
        let cluster = read.clusters[0].cluster.as_ref().unwrap();
        assert_eq!(cluster.server.as_deref(), Some("https://[fd00::1]:443/"));
        let roots = BASE64.decode(cluster.certificate_authority_data.as_ref().unwrap().as_bytes()).unwrap();
        assert_eq!(String::from_utf8(roots).unwrap().matches("BEGIN CERTIFICATE").count(), 2);
        assert!(std::fs::read_to_string(&file).unwrap().contains("abc"));
        std::fs::write(dir.path().join("ca.crt"), "PEM").unwrap();
        config.root_cert_file = Some(dir.path().join("ca.crt"));
        assert_eq!(roots_of(&config), b"PEM");
    }

    fn roots_of(config: &Config) -> Vec<u8> {
        roots(config).unwrap().unwrap()
    }

    #[tokio::test]
    async fn without_an_account_no_token_stays_on_the_node() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(path(dir.path()), "the agent's own, from an earlier version").unwrap();
        follow_credentials(None, dir.path().to_owned()).await;
        assert!(!path(dir.path()).exists());
    }
}
