//! Against a server in this process that behaves as Vault documents its PKI engine: not a real Vault.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering},
    time::SystemTime,
};

use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, StatusCode, body::Bytes, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use rcgen::SanType;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::identity::{
    BuiltinCa, CheckedRequest, Clock, KeyStore, SystemClock,
    testing::{TestCa, id},
};

const WEB: &str = "spiffe://td1/ns/shop/sa/web";

/// Signs with a CA of ours; its tokens are `t0`, `t1`, …
struct FaithfulVault {
    ca: BuiltinCa,
    logins: AtomicUsize,
    renewals: AtomicUsize,
    /// Tokens below this number are good no more.
    oldest: AtomicUsize,
    lease: u64,
    _dir: tempfile::TempDir,
}

impl FaithfulVault {
    fn answer(&self, path: &str, token: &str, body: &Value) -> (u16, Value) {
        let number = token.strip_prefix('t').and_then(|number| number.parse::<usize>().ok());
        let good = number.is_some_and(|number| number >= self.oldest.load(Ordering::SeqCst));
        match path {
            "/v1/auth/kubernetes/login" if body["jwt"] == "the-jwt" && body["role"] == "node" => {
                let number = self.logins.fetch_add(1, Ordering::SeqCst);
                let auth = json!({ "client_token": format!("t{number}"), "lease_duration": self.lease, "renewable": true });
                (200, json!({ "auth": auth }))
            }
            "/v1/auth/kubernetes/login" => (400, json!({ "errors": ["invalid role or jwt"] })),
            _ if !good => (403, json!({ "errors": ["permission denied"] })),
            "/v1/auth/token/lookup-self" => {
                (200, json!({ "data": { "ttl": self.lease, "renewable": true } }))
            }
            "/v1/auth/token/renew-self" => {
                self.renewals.fetch_add(1, Ordering::SeqCst);
                (200, json!({ "auth": { "lease_duration": self.lease, "renewable": true } }))
            }
            "/v1/pki/sign/ambit" => {
                let csr = CheckedRequest::from_pem(body["csr"].as_str().unwrap()).unwrap();
                assert_eq!(body["uri_sans"].as_str().unwrap(), csr.id.to_string());
                let ttl = body["ttl"].as_str().unwrap().trim_end_matches('s').parse().unwrap();
                let issued = self.ca.sign(&csr, Duration::from_secs(ttl)).unwrap();
                let pem = |der: &CertificateDer<'_>| pem::encode(&pem::Pem::new("CERTIFICATE", der.as_ref()));
                let above: Vec<String> = issued.roots.iter().map(pem).collect();
                let data = json!({ "certificate": pem(&issued.chain[0]), "issuing_ca": above[0], "ca_chain": above });
                (200, json!({ "data": data }))
            }
            _ => (404, json!({ "errors": [] })),
        }
    }
}

/// The server's address and the file with its root.
async fn serve(lease: u64) -> (Arc<FaithfulVault>, SocketAddr, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let ca = BuiltinCa::open(&dir.path().join("ca"), "td1".parse().unwrap(), Arc::new(SystemClock)).unwrap();
    let tls_ca = TestCa::new("vault's own");
    let ca_file = dir.path().join("vault-ca.pem");
    std::fs::write(&ca_file, pem::encode(&pem::Pem::new("CERTIFICATE", tls_ca.certificate.as_ref())))
        .unwrap();
    let now = SystemTime::now();
    let (leaf, key) =
        tls_ca.leaf(&[], now - Duration::from_secs(60), now + Duration::from_secs(3600), |params| {
            params.subject_alt_names = vec![SanType::IpAddress("127.0.0.1".parse().unwrap())];
        });
    let config =
        rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![leaf], key)
            .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let zero = || AtomicUsize::new(0);
    let vault = FaithfulVault { ca, logins: zero(), renewals: zero(), oldest: zero(), lease, _dir: dir };
    let vault = Arc::new(vault);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let serving = vault.clone();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let (acceptor, vault) = (acceptor.clone(), serving.clone());
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(tcp).await else { return };
                let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                    let vault = vault.clone();
                    async move {
                        let path = request.uri().path().to_owned();
                        let token = request.headers().get("x-vault-token");
                        let token = token.map(|token| token.to_str().unwrap().to_owned()).unwrap_or_default();
                        let body = request.into_body().collect().await.unwrap().to_bytes();
                        let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
                        let (status, answer) = vault.answer(&path, &token, &body);
                        let mut response = Response::new(Full::new(Bytes::from(answer.to_string())));
                        *response.status_mut() = StatusCode::from_u16(status).unwrap();
                        Ok::<_, Infallible>(response)
                    }
                });
                let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    (vault, addr, ca_file)
}

fn config(addr: SocketAddr, ca_file: Option<PathBuf>, login: VaultLogin) -> VaultConfig {
    VaultConfig {
        addr: format!("https://{addr}").parse().unwrap(),
        ca_file,
        mount: "pki".into(),
        role: "ambit".into(),
        login,
    }
}

fn kubernetes(dir: &tempfile::TempDir, role: &str) -> VaultLogin {
    let jwt = dir.path().join("jwt");
    std::fs::write(&jwt, "the-jwt\n").unwrap();
    VaultLogin::Kubernetes { mount: "kubernetes".into(), role: role.into(), jwt }
}

fn store(config: VaultConfig) -> KeyStore {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    KeyStore::new(Arc::new(VaultIssuer::new(config)), clock, Duration::from_secs(3600))
}

#[tokio::test]
async fn signs_after_a_kubernetes_login_and_logs_in_again_when_its_token_is_taken_back() {
    let dir = tempfile::tempdir().unwrap();
    let (vault, addr, ca_file) = serve(3600).await;
    let store = store(config(addr, Some(ca_file), kubernetes(&dir, "node")));
    store.retain([id(WEB)]);
    let svid = store.svid(&id(WEB)).await.unwrap();
    assert_eq!((&svid.id, svid.chain.len(), svid.trust.roots.len()), (&id(WEB), 1, 1));
    vault.oldest.store(1, Ordering::SeqCst);
    let cart = id("spiffe://td1/ns/shop/sa/cart");
    store.retain([id(WEB), cart.clone()]);
    store.svid(&cart).await.unwrap();
    assert_eq!(vault.logins.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn the_lease_of_a_token_from_a_file_is_renewed_and_a_new_token_taken() {
    let dir = tempfile::tempdir().unwrap();
    let (vault, addr, ca_file) = serve(2).await;
    let file = dir.path().join("token");
    std::fs::write(&file, "t0").unwrap();
    let issuer = VaultIssuer::new(config(addr, Some(ca_file), VaultLogin::Token { file: file.clone() }));
    issuer.shared.token().await.unwrap();
    sleep(Duration::from_millis(1100)).await;
    issuer.shared.renew().await;
    assert_eq!(vault.renewals.load(Ordering::SeqCst), 1);
    vault.oldest.store(7, Ordering::SeqCst);
    std::fs::write(&file, "t7").unwrap();
    assert_eq!(issuer.shared.token().await.unwrap().as_str(), "t7");
}

#[tokio::test]
async fn trouble_is_told_by_its_cause() {
    let dir = tempfile::tempdir().unwrap();
    let (_vault, addr, ca_file) = serve(3600).await;
    let foreign = dir.path().join("foreign.pem");
    let other = TestCa::new("another");
    std::fs::write(&foreign, pem::encode(&pem::Pem::new("CERTIFICATE", other.certificate.as_ref()))).unwrap();
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let node = || kubernetes(&dir, "node");
    for (config, expected) in [
        (config(addr, Some(ca_file.clone()), kubernetes(&dir, "other")), "invalid role or jwt"),
        (config(addr, None, node()), "--vault-ca-file"),
        (config(addr, Some(foreign), node()), "UnknownIssuer"),
        (config(nobody, Some(ca_file), node()), "refused"),
    ] {
        let error = VaultIssuer::new(config).shared.token().await.unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    }
}
