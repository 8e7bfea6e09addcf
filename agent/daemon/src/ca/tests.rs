mod crowds;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Instant, SystemTime},
};

use ambit_core::model::SpiffeId;
use ambit_proto::istio::auth::{
    IstioCertificateRequest, istio_certificate_service_client::IstioCertificateServiceClient,
};
use hyper_util::rt::TokioIo;
use prost_types::{Struct, Value, value::Kind};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use rustls_pki_types::{
    CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, ServerName, pem::PemObject,
};
use tempfile::TempDir;
use tokio::{net::TcpStream, sync::oneshot, task::JoinHandle, time::sleep};
use tokio_rustls::TlsConnector;
use tonic::{
    Code, Request, Status,
    transport::{Channel, Endpoint},
};

use super::*;
use crate::{
    admin::Exposition,
    identity::{Csr, Issued, Issuer, IstioIssuer, IstioSettings, Leaf, PublishedRoots, SystemClock},
};

const WEB: &str = "spiffe://td1/ns/shop/sa/web";
const TOKEN: &str = "node1-0123456789abcdef";
const CALLERS: &str = "callers:
- {node: node1, token: node1-0123456789abcdef, namespaces: [shop]}
- {node: node2, token: node2-0123456789abcdef, service-accounts: [bank/teller]}
- {node: node3, certificate: 'spiffe://td1/ns/shop/sa/web', service-accounts: [bank/teller]}
";

struct Running {
    dir: TempDir,
    addr: SocketAddr,
    metrics: CaMetrics,
    readiness: Readiness,
    /// Connections made by [`Running::raw`].
    dialled: Arc<AtomicUsize>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<(), CaServiceError>>,
}

impl Running {
    async fn start() -> Self {
        Self::start_with(TempDir::new().unwrap(), |_| ()).await
    }

    async fn start_with(dir: TempDir, change: impl FnOnce(&mut CaSettings)) -> Self {
        Self::run(dir, change, Patience::default()).await
    }

    async fn run(dir: TempDir, change: impl FnOnce(&mut CaSettings), patience: Patience) -> Self {
        let callers = dir.path().join("callers.yaml");
        write_private(&callers, CALLERS);
        fs::write(dir.path().join("token"), TOKEN).unwrap();
        let mut settings = CaSettings {
            listen: "127.0.0.1:0".parse().unwrap(),
            source: CaSource::Own(dir.path().join("ca")),
            publish: None,
            trust_domain: "td1".parse().unwrap(),
            max_ttl: Duration::from_secs(7200),
            names: vec![
                SanType::DnsName("ca.test".try_into().unwrap()),
                SanType::IpAddress([127, 0, 0, 1].into()),
            ],
            token_file: Some(callers),
            kubernetes: None,
            rate: 100,
        };
        change(&mut settings);
        let readiness = Readiness::default();
        let mut ca = Ca::open(settings, Arc::new(SystemClock), readiness.clone()).await.unwrap();
        ca.patience = patience;
        let (addr, metrics) = (ca.addr().unwrap(), ca.metrics());
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(ca.serve(async {
            let _ = stopped.await;
        }));
        Self { dir, addr, metrics, readiness, dialled: Arc::default(), stop: Some(stop), task }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// How an agent with the token of node1 asks.
    fn asking(&self) -> IstioSettings {
        IstioSettings {
            host: "127.0.0.1".into(),
            port: self.addr.port(),
            server_name: Some("ca.test".into()),
            root: self.path("ca/root-cert.pem"),
            token_file: Some(self.path("token")),
            cluster_id: "Kubernetes".into(),
        }
    }

    fn issuer(&self) -> IstioIssuer {
        IstioIssuer::new(self.asking(), None).unwrap()
    }

    /// TLS as a client does it.
    fn tls(&self, identity: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.path("ca/root-cert.pem")).unwrap()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match identity {
            Some((chain, key)) => config.with_client_auth_cert(chain, key).unwrap(),
            None => config.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        TlsConnector::from(Arc::new(config))
    }

    /// A client that says what it likes.
    fn raw(&self, identity: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>) -> Raw {
        let (connector, addr, dialled) = (self.tls(identity), self.addr, self.dialled.clone());
        let connect = tower::service_fn(move |_| {
            let (connector, dialled) = (connector.clone(), dialled.clone());
            async move {
                dialled.fetch_add(1, Ordering::Relaxed);
                let name = ServerName::try_from("ca.test").unwrap();
                Ok::<_, std::io::Error>(TokioIo::new(
                    connector.connect(name, TcpStream::connect(addr).await?).await?,
                ))
            }
        });
        let endpoint = Endpoint::from_static("https://ca.test");
        Raw(IstioCertificateServiceClient::new(endpoint.connect_with_connector_lazy(connect)))
    }

    async fn stop(mut self) {
        self.stop.take().unwrap().send(()).unwrap();
        self.task.await.unwrap().unwrap();
    }
}

struct Raw(IstioCertificateServiceClient<Channel>);

impl Raw {
    async fn ask(
        &mut self,
        token: Option<&str>,
        csr: String,
        impersonated: Option<&str>,
        seconds: i64,
    ) -> Result<Vec<String>, Status> {
        let metadata = impersonated.map(|id| Struct {
            fields: [("ImpersonatedIdentity".to_owned(), Value { kind: Some(Kind::StringValue(id.into())) })]
                .into(),
        });
        let mut request = Request::new(IstioCertificateRequest { csr, validity_duration: seconds, metadata });
        if let Some(token) = token {
            request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        Ok(self.0.create_certificate(request).await?.into_inner().cert_chain)
    }
}

fn write_private(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

fn id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

fn csr_of(
    uri: &str,
    change: impl FnOnce(&mut CertificateParams),
) -> (CertificateSigningRequestDer<'static>, KeyPair) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
    change(&mut params);
    (params.serialize_request(&key).unwrap().der().clone(), key)
}

fn csr_pem(uri: &str) -> String {
    pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", csr_of(uri, |_| ()).0.as_ref()))
}

async fn issue(issuer: &IstioIssuer, uri: &str) -> Result<Issued, IssueError> {
    let csr = Csr { id: id(uri), der: csr_of(uri, |_| ()).0, ttl: Duration::from_secs(3600) };
    issuer.issue(csr).await
}

fn pem_of(certificates: &[CertificateDer<'static>]) -> String {
    certificates.iter().map(|der| pem::encode(&pem::Pem::new("CERTIFICATE", der.as_ref()))).collect()
}

/// What openssl thinks of a chain.
fn openssl_verify(dir: &Path, issued: &Issued) {
    let file = |name: &str, text: String| {
        fs::write(dir.join(name), text).unwrap();
        dir.join(name)
    };
    let leaf = file("leaf.pem", pem_of(&issued.chain[..1]));
    let middle = file("middle.pem", pem_of(&issued.chain[1..]));
    let roots = file("roots.pem", pem_of(&issued.roots));
    for purpose in ["sslclient", "sslserver"] {
        let mut openssl = Command::new("openssl");
        openssl.args(["verify", "-x509_strict", "-purpose", purpose, "-CAfile"]).arg(&roots);
        if issued.chain.len() > 1 {
            openssl.arg("-untrusted").arg(&middle);
        }
        let said = openssl.arg(&leaf).output().unwrap();
        assert!(said.status.success(), "{purpose}: {said:?}");
    }
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !holds().await {
        assert!(start.elapsed() < Duration::from_secs(20), "not within 20 s: {what}");
        sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn an_agent_gets_the_certificate_it_asks_for() {
    let ca = Running::start().await;
    let issuer = ca.issuer();
    let before = SystemTime::now();
    let issued = issue(&issuer, WEB).await.unwrap();
    let leaf = Leaf::read(&issued.chain[0]).unwrap();
    assert_eq!((leaf.id, issued.chain.len(), issued.roots.len()), (id(WEB), 1, 1));
    let back = before.duration_since(leaf.not_before).unwrap().as_secs();
    assert!((118..=121).contains(&back), "not-before is 2 min back, here {back} s");
    let ahead = leaf.not_after.duration_since(before).unwrap().as_secs();
    assert!((3598..=3602).contains(&ahead), "{ahead}");
    openssl_verify(ca.dir.path(), &issued);
    let metrics = ca.metrics.encode();
    assert!(metrics.contains("ambit_ca_issued_total 1\n"), "{metrics}");
    assert!(metrics.contains("ambit_ca_request_duration_seconds_count 1\n"), "{metrics}");
    assert!(metrics.contains("ambit_ca_root_expiry_timestamp_seconds{serial="), "{metrics}");
    assert!(ca.readiness.pending().is_empty());
    ca.stop().await;
}

#[tokio::test]
async fn every_refusal_has_its_code() {
    let ca = Running::start().await;
    let mut raw = ca.raw(None);
    let spoiled = |change: fn(&mut CertificateParams)| {
        pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", csr_of(WEB, change).0.as_ref()))
    };
    let extra_dns = spoiled(|params| {
        params.subject_alt_names.push(SanType::DnsName("web.shop".try_into().unwrap()));
    });
    let named = spoiled(|params| params.distinguished_name.push(rcgen::DnType::CommonName, "web"));
    let mut unsigned = csr_of(WEB, |_| ()).0.to_vec();
    let at = unsigned.windows(WEB.len()).position(|part| part == WEB.as_bytes()).unwrap();
    unsigned[at + WEB.len() - 1] = b'c';
    let unsigned = pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", unsigned));
    let foreign = "spiffe://td2/ns/shop/sa/web";
    let teller = "spiffe://td1/ns/bank/sa/teller";
    let good = || csr_pem(WEB);
    let t = Some(TOKEN);
    let cases = [
        ("no_credentials", Code::Unauthenticated, None, good(), Some(WEB), 60),
        ("unknown_caller", Code::Unauthenticated, Some("stolen-from-elsewhere"), good(), Some(WEB), 60),
        ("not_on_node", Code::PermissionDenied, t, csr_pem(teller), Some(teller), 60),
        ("not_on_node", Code::PermissionDenied, Some("node2-0123456789abcdef"), good(), Some(WEB), 60),
        ("trust_domain", Code::PermissionDenied, t, csr_pem(foreign), Some(foreign), 60),
        ("identity", Code::InvalidArgument, t, good(), Some("shop/web"), 60),
        ("request", Code::InvalidArgument, t, csr_pem(teller), Some(WEB), 60),
        ("request", Code::InvalidArgument, t, extra_dns, Some(WEB), 60),
        ("request", Code::InvalidArgument, t, named, Some(WEB), 60),
        ("request", Code::InvalidArgument, t, String::new(), Some(WEB), 60),
        ("signature", Code::InvalidArgument, t, unsigned, None, 60),
        ("lifetime", Code::InvalidArgument, t, good(), Some(WEB), 7201),
        ("lifetime", Code::InvalidArgument, t, good(), Some(WEB), i64::MAX),
    ];
    for (reason, code, token, csr, impersonated, seconds) in cases {
        let count = |text: &str| {
            let line = format!("ambit_ca_refused_total{{reason=\"{reason}\"}} ");
            text.lines().find_map(|found| found.strip_prefix(&line)?.parse::<u64>().ok()).unwrap_or(0)
        };
        let before = count(&ca.metrics.encode());
        let status = raw.ask(token, csr, impersonated, seconds).await.unwrap_err();
        assert_eq!(status.code(), code, "{reason}: {status}");
        assert_eq!(count(&ca.metrics.encode()), before + 1, "{reason}: {status}");
    }
    let long = raw.ask(t, "a".repeat(100 * 1024), None, 60).await.unwrap_err();
    assert_eq!(long.code(), Code::OutOfRange, "{long}");
    assert!(ca.metrics.encode().contains("ambit_ca_issued_total 0\n"));
    let chain = raw.ask(t, good(), None, 0).await.unwrap();
    assert_eq!(chain.len(), 2, "the name in the request says what is asked for: {chain:?}");
}

#[tokio::test]
async fn a_client_certificate_of_the_mesh_is_a_callers_proof() {
    let ca = Running::start().await;
    let (der, key) = csr_of(WEB, |_| ());
    let csr = Csr { id: id(WEB), der, ttl: Duration::from_secs(600) };
    let issued = ca.issuer().issue(csr).await.unwrap();
    let mut raw = ca.raw(Some((issued.chain, key.into())));
    let teller = "spiffe://td1/ns/bank/sa/teller";
    assert_eq!(raw.ask(None, csr_pem(teller), Some(teller), 60).await.unwrap().len(), 2);
    let refused = raw.ask(None, csr_pem(WEB), Some(WEB), 60).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    let refused = raw.ask(Some("wrong-0123456789abcdef"), csr_pem(teller), None, 60).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");

    let strange = crate::identity::testing::TestCa::new("strange");
    let now = SystemTime::now();
    let (leaf, key) =
        strange.leaf(&[WEB], now - Duration::from_secs(60), now + Duration::from_secs(600), |_| ());
    let refused = ca.raw(Some((vec![leaf], key))).ask(None, csr_pem(teller), Some(teller), 60).await;
    assert!(refused.is_err(), "a certificate of another CA ends the handshake");
}

#[tokio::test]
async fn who_asks_too_often_is_told_so_and_others_are_not() {
    let ca = Running::start_with(TempDir::new().unwrap(), |settings| settings.rate = 1).await;
    let mut raw = ca.raw(None);
    let mut codes = Vec::new();
    for _ in 0..14 {
        codes.push(
            raw.ask(Some(TOKEN), csr_pem(WEB), Some(WEB), 60).await.map_err(|status| status.code()).err(),
        );
    }
    assert_eq!(codes[..10], [None; 10]);
    assert!(codes[10..].contains(&Some(Code::ResourceExhausted)), "{codes:?}");
    let teller = "spiffe://td1/ns/bank/sa/teller";
    raw.ask(Some("node2-0123456789abcdef"), csr_pem(teller), Some(teller), 60).await.unwrap();
}

#[tokio::test]
async fn a_new_ca_is_taken_over_without_a_restart_and_a_broken_one_is_not() {
    let ca = Running::start().await;
    let issuer = ca.issuer();
    let old = issue(&issuer, WEB).await.unwrap();

    fs::write(ca.path("ca/ca-key.pem"), "broken").unwrap();
    until("the broken file is noticed", async || {
        ca.metrics.encode().contains("ambit_ca_reload_failures_total 1\n")
    })
    .await;
    assert_eq!(issue(&issuer, WEB).await.unwrap().roots, old.roots);
    fs::remove_file(ca.path("ca/ca-key.pem")).unwrap();
    until("the missing file is noticed", async || {
        ca.metrics.encode().contains("ambit_ca_reload_failures_total 2\n")
    })
    .await;
    assert_eq!(issue(&issuer, WEB).await.unwrap().roots, old.roots, "no new CA is made in its place");

    let fresh = ca.path("fresh");
    crate::identity::BuiltinCa::open(&fresh, "td1".parse().unwrap(), Arc::new(SystemClock)).unwrap();
    for name in ["ca-cert.pem", "ca-key.pem", "cert-chain.pem", "root-cert.pem"] {
        fs::copy(fresh.join(name), ca.path("ca").join(name)).unwrap();
    }
    // The client sees the new root file as well; its old channel stays until then.
    until("the new CA signs", async || match issue(&issuer, WEB).await {
        Ok(issued) => issued.roots != old.roots,
        Err(_) => false,
    })
    .await;
    openssl_verify(ca.dir.path(), &issue(&issuer, WEB).await.unwrap());
}

#[tokio::test]
async fn replicas_over_one_directory_sign_under_one_root() {
    let first = Running::start().await;
    let shared = first.path("ca");
    let second = Running::start_with(TempDir::new().unwrap(), |settings| {
        settings.source = CaSource::PluggedIn(shared)
    })
    .await;
    let one = issue(&first.issuer(), WEB).await.unwrap();
    let mut settings = IstioSettings { root: first.path("ca/root-cert.pem"), ..second.asking() };
    let other = issue(&IstioIssuer::new(settings.clone(), None).unwrap(), WEB).await.unwrap();
    assert_eq!(one.roots, other.roots);

    fs::write(second.path("token"), "not-a-token-anybody-has").unwrap();
    let issuer = IstioIssuer::new(settings.clone(), None).unwrap();
    let error = issue(&issuer, WEB).await.unwrap_err();
    assert!(matches!(&error, IssueError::Refused(text) if text.contains("Unauthenticated")), "{error}");
    fs::write(second.path("token"), TOKEN).unwrap();
    issue(&issuer, WEB).await.expect("the token is read anew for each call");

    settings.server_name = None;
    issue(&IstioIssuer::new(settings.clone(), None).unwrap(), WEB)
        .await
        .expect("the address is in the certificate");
    settings.server_name = Some("other.test".into());
    let error = issue(&IstioIssuer::new(settings, None).unwrap(), WEB).await.unwrap_err();
    assert!(matches!(&error, IssueError::Unreachable(text) if text.contains("ertificate")), "{error}");
}

#[tokio::test]
async fn a_service_under_another_root_gets_no_token_and_one_that_is_away_is_named() {
    let (ca, strange) = (Running::start().await, Running::start().await);
    let settings = IstioSettings { root: strange.path("ca/root-cert.pem"), ..ca.asking() };
    let error = issue(&IstioIssuer::new(settings.clone(), None).unwrap(), WEB).await.unwrap_err();
    assert!(matches!(&error, IssueError::Unreachable(_)), "{error}");
    let metrics = ca.metrics.encode();
    assert!(!metrics.contains("ambit_ca_refused_total{"), "nothing was asked: {metrics}");
    let gone = IstioSettings { root: ca.path("ca/root-cert.pem"), ..settings };
    ca.stop().await;
    let error = issue(&IstioIssuer::new(gone, None).unwrap(), WEB).await.unwrap_err();
    assert!(matches!(&error, IssueError::Unreachable(_)), "{error}");
}

#[tokio::test]
async fn published_roots_stand_above_the_file_and_what_comes_with_certificates() {
    let (ca, strange) = (Running::start().await, Running::start().await);
    let read = |running: &Running| fs::read(running.path("ca/root-cert.pem")).unwrap();
    let (own, other) = (read(&ca), read(&strange));
    let roots = PublishedRoots::default();
    let issuer = IstioIssuer::new(ca.asking(), Some(roots.clone())).unwrap();
    roots.take(&[own, other.clone()].concat()).unwrap();
    assert_eq!(issue(&issuer, WEB).await.unwrap().roots.len(), 2);
    roots.take(&other).unwrap();
    assert_eq!(issuer.trust().unwrap().borrow().roots.len(), 1);
    // A CA under the withdrawn root is asked no more, and over no connection from before.
    let error = issue(&issuer, WEB).await.unwrap_err();
    assert!(matches!(&error, IssueError::Unreachable(text) if text.contains("ertificate")), "{error}");
    assert!(ca.metrics.encode().contains("ambit_ca_issued_total 1\n"), "{}", ca.metrics.encode());
}

/// A plugged-in CA as Istio's Makefile makes it: RSA, an intermediate under a root, the root at the end of the chain.
#[tokio::test]
async fn a_plugged_in_rsa_intermediate_signs_chains_that_openssl_believes() {
    let dir = TempDir::new().unwrap();
    let cacerts = dir.path().join("ca");
    fs::create_dir(&cacerts).unwrap();
    let script = "set -e
        openssl req -x509 -newkey rsa:2048 -nodes -keyout root-key.pem -out root-cert.pem -days 30 -subj '/O=Istio/CN=Root CA' \
          -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign
        openssl req -new -newkey rsa:2048 -nodes -keyout ca-key.pem -out ca.csr -subj '/O=Istio/CN=Intermediate CA'
        printf 'basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n' > ext
        openssl x509 -req -in ca.csr -CA root-cert.pem -CAkey root-key.pem -CAcreateserial -days 20 -extfile ext -out ca-cert.pem
        cat ca-cert.pem root-cert.pem > cert-chain.pem";
    let made = Command::new("sh").args(["-c", script]).current_dir(&cacerts).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let ca =
        Running::start_with(dir, |settings| settings.source = CaSource::PluggedIn(cacerts.clone())).await;
    let issued = issue(&ca.issuer(), WEB).await.unwrap();
    assert_eq!((issued.chain.len(), issued.roots.len()), (2, 1));
    openssl_verify(ca.dir.path(), &issued);
}

#[tokio::test]
async fn what_is_wrong_at_start_is_an_error() {
    let dir = TempDir::new().unwrap();
    let callers = dir.path().join("callers.yaml");
    let settings = |source| CaSettings {
        listen: "127.0.0.1:0".parse().unwrap(),
        source,
        publish: None,
        trust_domain: "td1".parse().unwrap(),
        max_ttl: Duration::from_secs(60),
        names: vec![],
        token_file: Some(callers.clone()),
        kubernetes: None,
        rate: 1,
    };
    let open = async |source| {
        let opened = Ca::open(settings(source), Arc::new(SystemClock), Readiness::default()).await;
        opened.err().map(|error| error.to_string())
    };
    let own = || CaSource::Own(dir.path().join("ca"));
    assert!(open(own()).await.unwrap().contains("callers.yaml"));
    write_private(&callers, "callers: []");
    let empty = dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    assert!(open(CaSource::PluggedIn(empty.clone())).await.unwrap().contains("no usable CA"));
    assert!(fs::read_dir(&empty).unwrap().next().is_none(), "nothing is made where somebody else keeps a CA");
    assert_eq!(open(own()).await, None);
}
