//! Where the API server is and how to log in: from a kubeconfig file, or as every pod finds it.

use std::{
    env,
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;

use super::client::read_file;

/// Where the kubelet puts a pod's login.
const POD_LOGIN: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// The API server and the login there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ApiConfig {
    /// Host name or IP, without brackets.
    pub(super) host: String,
    /// TCP port.
    pub(super) port: u16,
    /// The name that its certificate must bear.
    pub(super) server_name: String,
    /// What stands before every path.
    pub(super) base: String,
    /// The roots of its certificate, PEM.
    pub(super) ca: Content,
    /// How to log in.
    pub(super) login: Login,
}

/// How to log in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Login {
    /// A bearer token.
    Token(Content),
    /// A client certificate, both PEM.
    Certificate { chain: Content, key: Content },
}

/// Bytes, or the file that has them.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Content {
    /// Given in the kubeconfig itself.
    Inline(Vec<u8>),
    /// Read when needed.
    File(PathBuf),
}

impl std::fmt::Debug for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Inline(_) => f.write_str("Inline(..)"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

/// Why there is no way to the API server.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiConfigError {
    /// The kubeconfig cannot be used.
    #[error("the kubeconfig {path}: {problem}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Not in a pod.
    #[error("KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set: this is no pod")]
    NoPod,
}

impl ApiConfig {
    /// The API server as a pod finds it.
    pub(crate) fn in_cluster() -> Result<Self, ApiConfigError> {
        let variable = |name| env::var(name).ok().filter(|value: &String| !value.is_empty());
        let host = variable("KUBERNETES_SERVICE_HOST").ok_or(ApiConfigError::NoPod)?;
        let port = variable("KUBERNETES_SERVICE_PORT").and_then(|port| port.parse().ok());
        let login = Path::new(POD_LOGIN);
        Ok(Self {
            server_name: host.clone(),
            host,
            port: port.ok_or(ApiConfigError::NoPod)?,
            base: String::new(),
            ca: Content::File(login.join("ca.crt")),
            login: Login::Token(Content::File(login.join("token"))),
        })
    }

    /// The current context of a kubeconfig file. Plain HTTP and unverified servers are refused, as are login plug-ins.
    pub(crate) fn kubeconfig(path: &Path) -> Result<Self, ApiConfigError> {
        let bad = |problem: String| ApiConfigError::File { path: path.to_owned(), problem };
        let bytes = read_file(path).map_err(|error| bad(error.to_string()))?;
        // The parser's own words may quote a secret.
        let file: Kubeconfig = serde_yaml_ng::from_slice(&bytes).map_err(|error| {
            let at = error.location().map(|at| format!(" (line {})", at.line()));
            bad(format!("not of the form of a kubeconfig{}", at.unwrap_or_default()))
        })?;
        file.resolve(path.parent().unwrap_or(Path::new("/"))).map_err(bad)
    }
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct Kubeconfig {
    current_context: String,
    contexts: Vec<Named<Context>>,
    clusters: Vec<Named<ClusterEntry>>,
    users: Vec<Named<UserEntry>>,
}

#[derive(Deserialize)]
struct Named<T> {
    name: String,
    #[serde(alias = "context", alias = "cluster", alias = "user")]
    value: T,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Context {
    cluster: String,
    user: String,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct ClusterEntry {
    server: String,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
    tls_server_name: Option<String>,
    insecure_skip_tls_verify: bool,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct UserEntry {
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<PathBuf>,
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<String>,
}

impl Kubeconfig {
    fn resolve(&self, dir: &Path) -> Result<ApiConfig, String> {
        let context = named(&self.contexts, &self.current_context, "context")?;
        let cluster = named(&self.clusters, &context.cluster, "cluster")?;
        let user = named(&self.users, &context.user, "user")?;
        if cluster.insecure_skip_tls_verify {
            return Err(
                "insecure-skip-tls-verify: the answers of a server that is not verified prove nothing".into(),
            );
        }
        let (host, port, base) = server(&cluster.server)
            .ok_or_else(|| format!("server {:?} is not https://HOST:PORT", cluster.server))?;
        let ca = pick(dir, &cluster.certificate_authority_data, &cluster.certificate_authority)?;
        let chain = pick(dir, &user.client_certificate_data, &user.client_certificate)?;
        let key = pick(dir, &user.client_key_data, &user.client_key)?;
        let token = match (&user.token_file, &user.token) {
            (Some(file), _) => Some(Content::File(dir.join(file))),
            (None, Some(token)) => Some(Content::Inline(token.clone().into_bytes())),
            (None, None) => None,
        };
        let login = match (token, chain, key) {
            (Some(token), _, _) => Login::Token(token),
            (None, Some(chain), Some(key)) => Login::Certificate { chain, key },
            _ => return Err("the user has neither a token nor a client certificate and key".into()),
        };
        Ok(ApiConfig {
            server_name: cluster.tls_server_name.clone().unwrap_or_else(|| host.clone()),
            host,
            port,
            base,
            ca: ca.ok_or("the cluster has no certificate-authority")?,
            login,
        })
    }
}

fn named<'a, T>(list: &'a [Named<T>], name: &str, kind: &str) -> Result<&'a T, String> {
    let found = list.iter().find(|entry| entry.name == name);
    found.map(|entry| &entry.value).ok_or_else(|| format!("there is no {kind} {name:?}"))
}

/// Data goes before a file; paths are relative to the kubeconfig.
fn pick(dir: &Path, data: &Option<String>, file: &Option<PathBuf>) -> Result<Option<Content>, String> {
    match (data, file) {
        (Some(data), _) => match STANDARD.decode(data.trim()) {
            Ok(bytes) => Ok(Some(Content::Inline(bytes))),
            Err(_) => Err("certificate or key data that is no base64".into()),
        },
        (None, Some(file)) => Ok(Some(Content::File(dir.join(file)))),
        (None, None) => Ok(None),
    }
}

/// Host, port and base path of an https URL.
fn server(url: &str) -> Option<(String, u16, String)> {
    let rest = url.strip_prefix("https://")?;
    let (authority, base) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let uri: hyper::Uri = url.parse().ok()?;
    let host = uri.host()?.trim_start_matches('[').trim_end_matches(']');
    (!authority.contains('@') && uri.query().is_none())
        .then(|| (host.to_owned(), uri.port_u16().unwrap_or(443), base.trim_end_matches('/').to_owned()))
}
