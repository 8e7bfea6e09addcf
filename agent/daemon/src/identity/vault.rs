//! The issuer `vault`: HashiCorp Vault's PKI engine, and whatever speaks its API (Vault's documentation, "PKI secrets engine
//! (API)", "Sign certificate").
//!
//! Signs with a token from a file or from the Kubernetes login, and keeps its lease. Which identities that token is good for
//! is the PKI role's affair: nothing here keeps a node from asking for others' (docs/certificates.md).

mod client;

use std::{
    path::PathBuf,
    sync::{Arc, Weak},
    time::Duration,
};

use hyper::{Method, Uri};
use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};
use tokio::{
    sync::Mutex,
    task::{AbortHandle, spawn_blocking},
    time::{Instant, sleep},
};
use tracing::warn;
use zeroize::Zeroizing;

use self::client::{Client, Failure};
use super::{Csr, IssueError, IssueFuture, Issued, Issuer, certificate::parse, certificates};
use crate::{error::with_causes, files};

/// The longest between two looks at the lease.
const LOOK: Duration = Duration::from_secs(30);
/// A file with a token is not larger.
const MAX_TOKEN: u64 = 64 * 1024;

/// How to reach and use Vault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VaultConfig {
    /// `https://HOST[:PORT]`; plain http for what listens on this host's loopback interface only.
    pub(crate) addr: Uri,
    /// PEM of the roots that Vault's own certificate leads to; read again for each call. Needed for https.
    pub(crate) ca_file: Option<PathBuf>,
    /// Mount of the PKI engine.
    pub(crate) mount: String,
    /// Its role.
    pub(crate) role: String,
    /// Where the token comes from.
    pub(crate) login: VaultLogin,
}

/// Where the token comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum VaultLogin {
    /// A file that somebody else writes, such as Vault's agent.
    Token {
        /// Read again for each call.
        file: PathBuf,
    },
    /// A service account's token for one of Vault's.
    Kubernetes {
        /// Mount of the login.
        mount: String,
        /// Its role.
        role: String,
        /// The service account's token, read again for each login.
        jwt: PathBuf,
    },
}

/// Has Vault sign.
pub(crate) struct VaultIssuer {
    shared: Arc<Shared>,
    keeper: AbortHandle,
}

struct Shared {
    config: VaultConfig,
    client: Client,
    session: Mutex<Option<Session>>,
}

struct Session {
    token: Zeroizing<String>,
    lease: Option<Lease>,
}

/// A token that ends. One without a lease does not.
struct Lease {
    renew: Instant,
    end: Instant,
    renewable: bool,
}

impl VaultIssuer {
    /// Asks nothing yet. Must be called in a tokio runtime.
    pub(crate) fn new(config: VaultConfig) -> Self {
        let client = Client::new(config.addr.clone(), config.ca_file.clone());
        let shared = Arc::new(Shared { config, client, session: Mutex::default() });
        let keeper = tokio::spawn(keep_lease(Arc::downgrade(&shared))).abort_handle();
        Self { shared, keeper }
    }
}

impl Issuer for VaultIssuer {
    fn name(&self) -> &str {
        "vault"
    }

    fn issue(&self, csr: Csr) -> IssueFuture<'_> {
        Box::pin(async move { self.shared.sign(&csr).await })
    }
}

impl Drop for VaultIssuer {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

impl Shared {
    async fn sign(&self, csr: &Csr) -> Result<Issued, IssueError> {
        let path = format!("/v1/{}/sign/{}", self.config.mount, self.config.role);
        let request = json!({
            "csr": pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", csr.der.as_ref())),
            "uri_sans": csr.id.to_string(),
            "ttl": format!("{}s", csr.ttl.as_secs()),
            "format": "pem",
        });
        let mut again = true;
        loop {
            let token = self.token().await?;
            match self.client.call(&Method::POST, &path, Some(&token), &request).await {
                Ok(answer) => return issued(&answer["data"]),
                // The token has ended, or was taken back, before its lease.
                Err(Failure::Forbidden(_)) if std::mem::replace(&mut again, false) => {
                    *self.session.lock().await = None;
                }
                Err(failure) => return Err(failure.into()),
            }
        }
    }

    /// A token that is good at this moment, as far as one can tell.
    async fn token(&self) -> Result<Zeroizing<String>, IssueError> {
        let mut session = self.session.lock().await;
        let present = session
            .as_ref()
            .filter(|session| session.lease.as_ref().is_none_or(|lease| lease.end > Instant::now()));
        let fresh = match &self.config.login {
            VaultLogin::Token { file } => {
                let token = secret(file.clone()).await?;
                match present {
                    Some(session) if session.token == token => return Ok(token),
                    _ => {
                        let path = "/v1/auth/token/lookup-self";
                        let about = self.client.call(&Method::GET, path, Some(&token), &Value::Null).await?;
                        let (ttl, renewable) = (&about["data"]["ttl"], &about["data"]["renewable"]);
                        Session { token, lease: lease(ttl, renewable) }
                    }
                }
            }
            VaultLogin::Kubernetes { mount, role, jwt } => match present {
                Some(session) => return Ok(session.token.clone()),
                None => {
                    let jwt = secret(jwt.clone()).await?;
                    let request = json!({ "role": role, "jwt": jwt.as_str() });
                    let path = format!("/v1/auth/{mount}/login");
                    let answer = self.client.call(&Method::POST, &path, None, &request).await?;
                    session_of(&answer["auth"])?
                }
            },
        };
        let token = fresh.token.clone();
        *session = Some(fresh);
        Ok(token)
    }

    /// Renews the lease if that is due; answers when to look again.
    async fn renew(&self) -> Duration {
        let now = Instant::now();
        let token = match &*self.session.lock().await {
            Some(Session { token, lease: Some(lease) }) if lease.renewable => {
                if lease.renew > now {
                    return (lease.renew - now).min(LOOK);
                }
                token.clone()
            }
            _ => return LOOK,
        };
        let path = "/v1/auth/token/renew-self";
        let renewed = self.client.call(&Method::POST, path, Some(&token), &json!({})).await;
        let mut session = self.session.lock().await;
        let Some(current) = session.as_mut().filter(|session| session.token == token) else { return LOOK };
        match renewed {
            Ok(answer) => {
                let auth = &answer["auth"];
                current.lease = lease(&auth["lease_duration"], &auth["renewable"]);
                LOOK.min(Duration::from_secs(1))
            }
            Err(failure) => {
                let error = with_causes(&IssueError::from(failure));
                warn!(error, "the lease of Vault's token could not be renewed");
                Duration::from_secs(5)
            }
        }
    }
}

async fn keep_lease(shared: Weak<Shared>) {
    loop {
        let Some(shared) = shared.upgrade() else { return };
        let wait = shared.renew().await;
        drop(shared);
        // A new session's lease may be shorter than the wait for it was long.
        sleep(wait.min(LOOK)).await;
    }
}

fn session_of(auth: &Value) -> Result<Session, IssueError> {
    let token = auth["client_token"].as_str().filter(|token| !token.is_empty());
    let token = token.ok_or_else(|| IssueError::Unusable("Vault's login gave no token".into()))?;
    Ok(Session {
        token: Zeroizing::new(token.to_owned()),
        lease: lease(&auth["lease_duration"], &auth["renewable"]),
    })
}

/// `None` for a token without end.
fn lease(seconds: &Value, renewable: &Value) -> Option<Lease> {
    let seconds = seconds.as_u64().filter(|seconds| *seconds > 0)?.min(365 * 86_400);
    let (now, life) = (Instant::now(), Duration::from_secs(seconds));
    Some(Lease { renew: now + life / 2, end: now + life, renewable: renewable.as_bool().unwrap_or(false) })
}

/// Leaf and intermediates as chain; what signed itself, or else what stands highest, as roots.
fn issued(data: &Value) -> Result<Issued, IssueError> {
    let unusable = |problem: String| IssueError::Unusable(format!("Vault's answer {problem}"));
    let read = |value: &Value| -> Result<Vec<CertificateDer<'static>>, IssueError> {
        certificates(value.as_str().unwrap_or_default().as_bytes()).map_err(unusable)
    };
    let mut chain = read(&data["certificate"])?;
    let mut above = Vec::new();
    match data["ca_chain"].as_array().filter(|links| !links.is_empty()) {
        Some(links) => {
            for link in links {
                above.extend(read(link)?);
            }
        }
        None => above = read(&data["issuing_ca"])?,
    }
    let signs_itself = |certificate: &CertificateDer<'_>| {
        parse(certificate).is_ok_and(|parsed| parsed.subject().as_raw() == parsed.issuer().as_raw())
    };
    let (mut roots, mut between): (Vec<_>, Vec<_>) = above.into_iter().partition(signs_itself);
    if roots.is_empty() {
        roots.extend(between.pop());
    }
    chain.retain(|certificate| !roots.contains(certificate));
    between.retain(|certificate| !chain.contains(certificate));
    chain.extend(between);
    Ok(Issued { chain, roots, key: None })
}

async fn secret(file: PathBuf) -> Result<Zeroizing<String>, IssueError> {
    let read = spawn_blocking(move || {
        let unusable = |problem| IssueError::Unusable(format!("{}: {problem}", file.display()));
        let text =
            files::read_text(&file, MAX_TOKEN).map_err(|error| IssueError::Unusable(error.to_string()))?;
        let token = Zeroizing::new(text.trim().to_owned());
        match token.is_empty() {
            true => Err(unusable("it is empty")),
            false if token.chars().all(|c| c.is_ascii_graphic()) => Ok(token),
            false => Err(unusable("it holds no token")),
        }
    });
    read.await.unwrap_or(Err(IssueError::Internal))
}

#[cfg(test)]
mod tests;
