//! Against rustls as a server, over loopback.

use std::future::poll_fn;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::{ServerConfig, pki_types::PrivateKeyDer};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    task::JoinHandle,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream as ServerStream};

use super::*;
use crate::tunnel::{
    OutsideTls, Plain,
    tests::{pair, pattern},
};

const HOST: &str = "api.example.com";
const LIMIT: Duration = Duration::from_secs(10);

struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "roots");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() }
    }

    fn server(
        &self,
        host: &str,
        versions: &[&'static rustls::SupportedProtocolVersion],
    ) -> Arc<ServerConfig> {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            );
        Arc::new(config.unwrap())
    }

    fn outside(&self, names: &[&str], roots: Option<&Self>) -> Outside {
        let names: Vec<Arc<str>> = names.iter().map(|name| (*name).into()).collect();
        let roots = roots.unwrap_or(self).issuer.pem();
        Outside::new(&OutsideTls {
            server_name: HOST,
            names: &names,
            roots: Some(roots.as_bytes()),
            client: None,
            revoked: None,
            unverified: false,
            alpn: None,
        })
        .unwrap()
    }
}

/// The agent's leg, and the server's end.
async fn connected(
    outside: &Outside,
    server: Arc<ServerConfig>,
) -> (Result<Originated<Plain>, TunnelError>, io::Result<ServerStream<TcpStream>>) {
    let (agent, far) = pair().await;
    let share = Share::alone();
    let plain = Plain::new(agent, share.clone());
    tokio::join!(Originated::connect(plain, outside, share, LIMIT), TlsAcceptor::from(server).accept(far))
}

/// Moves one direction to its end.
async fn send_all(leg: &mut Originated<Plain>, app: &TcpStream) -> Result<(), LegError> {
    while !poll_fn(|cx| leg.poll_send_from(cx, app)).await?.end {}
    Ok(())
}

async fn deliver_all(leg: &mut Originated<Plain>, app: &TcpStream) -> Result<(), LegError> {
    while !poll_fn(|cx| leg.poll_deliver_to(cx, app)).await?.end {}
    Ok(())
}

#[tokio::test]
async fn bytes_pass_both_ways_and_each_direction_ends_by_itself() {
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let ca = Authority::new();
        let (leg, server) = connected(&ca.outside(&[HOST], None), ca.server(HOST, &[version])).await;
        let (mut leg, mut server) = (leg.unwrap(), server.unwrap());
        let (app, mut application) = pair().await;
        let sent = pattern(1_000_000);
        let question = sent.clone();
        let answer: JoinHandle<Vec<u8>> = tokio::spawn(async move {
            let mut heard = Vec::new();
            server.read_to_end(&mut heard).await.unwrap();
            server.write_all(&heard).await.unwrap();
            server.shutdown().await.unwrap();
            heard
        });
        let speaker = tokio::spawn(async move {
            application.write_all(&question).await.unwrap();
            application.shutdown().await.unwrap();
            let mut heard = Vec::new();
            application.read_to_end(&mut heard).await.unwrap();
            heard
        });
        send_all(&mut leg, &app).await.unwrap();
        deliver_all(&mut leg, &app).await.unwrap();
        assert!(answer.await.unwrap() == sent && speaker.await.unwrap() == sent, "{version:?}");
        assert!(!leg.is_sending() && !leg.is_delivering());
    }
}

#[tokio::test]
async fn what_is_cut_off_is_no_end() {
    let ca = Authority::new();
    let (leg, server) =
        connected(&ca.outside(&[HOST], None), ca.server(HOST, &[&rustls::version::TLS13])).await;
    let (mut leg, mut server) = (leg.unwrap(), server.unwrap());
    server.write_all(b"half").await.unwrap();
    server.flush().await.unwrap();
    // Without close_notify, as by somebody on the way.
    server.into_inner().0.shutdown().await.unwrap();
    let (app, mut application) = pair().await;
    let broken = deliver_all(&mut leg, &app).await.unwrap_err();
    assert!(matches!(broken, LegError::Plain(_) | LegError::Tunnel(_)), "{broken:?}");
    let mut heard = [0; 8];
    assert_eq!(application.read(&mut heard).await.unwrap(), 4);
}

#[tokio::test]
async fn a_server_is_believed_by_the_right_roots_and_names_only() {
    let (ca, strange) = (Authority::new(), Authority::new());
    let server = || ca.server(HOST, rustls::ALL_VERSIONS);
    for (outside, reason) in [
        (ca.outside(&[HOST], None), None),
        (ca.outside(&["other.example.com", HOST], None), None),
        (ca.outside(&["other.example.com"], None), Some(Reason::IdentityMismatch)),
        (ca.outside(&["spiffe://td/ns/a/sa/b"], None), Some(Reason::IdentityMismatch)),
        (ca.outside(&[HOST], Some(&strange)), Some(Reason::CertificateUntrusted)),
    ] {
        let (leg, _server) = connected(&outside, server()).await;
        assert_eq!(leg.as_ref().err().map(TunnelError::reason), reason, "{:?}", leg.err());
    }
}

#[tokio::test]
async fn a_server_that_speaks_plaintext_is_told_as_one() {
    let ca = Authority::new();
    let (agent, mut far) = pair().await;
    far.write_all(b"220 plaintext speaks first\r\n").await.unwrap();
    let share = Share::alone();
    let leg =
        Originated::connect(Plain::new(agent, share.clone()), &ca.outside(&[HOST], None), share, LIMIT).await;
    let error = leg.unwrap_err();
    assert_eq!(error.reason(), Reason::TlsHandshake);
    assert!(error.to_string().contains("plaintext"), "{error}");
}
