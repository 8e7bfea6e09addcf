mod chains;
mod federation;
mod instead;

use std::sync::LazyLock;

use rcgen::ExtendedKeyUsagePurpose;
use rustls::{
    AlertDescription, ClientConnection, Error, HandshakeKind, NamedGroup, ServerConnection,
    client::UnbufferedClientConnection, server::UnbufferedServerConnection, unbuffered::ConnectionState,
};
use rustls_pki_types::PrivateKeyDer;

use super::*;
use crate::identity::testing::{FixedClock, TestCa, id};

const WEB: &str = "spiffe://td1/ns/shop/sa/web";
const CART: &str = "spiffe://td1/ns/shop/sa/cart";
const HOUR: Duration = Duration::from_secs(3600);

static CA: LazyLock<TestCa> = LazyLock::new(|| TestCa::new("the CA"));
/// The time of every test, on a full second as certificates have it.
static NOW: LazyLock<SystemTime> = LazyLock::new(|| UNIX_EPOCH + Duration::from_secs(1_900_000_000));

fn settings(post_quantum: PostQuantum) -> TlsSettings {
    TlsSettings { post_quantum, trust_domains: vec!["td1".parse().unwrap(), "old".parse().unwrap()] }
}

fn credentials_of(svid: Svid, post_quantum: PostQuantum, clock: Arc<dyn Clock>) -> Credentials {
    Credentials::new(Arc::new(svid), &settings(post_quantum), Arc::default(), clock).unwrap()
}

fn credentials(uri: &str) -> Credentials {
    let svid = CA.svid(uri, *NOW - HOUR, *NOW + HOUR);
    credentials_of(svid, PostQuantum::Offer, FixedClock::new(*NOW))
}

/// Credentials as only a bad peer would use them: any certificate, trusting `CA`.
fn forged((certificate, key): (CertificateDer<'static>, PrivateKeyDer<'static>)) -> Credentials {
    let mut svid = CA.svid(WEB, *NOW - HOUR, *NOW + HOUR);
    svid.chain = vec![certificate];
    svid.key = key.into();
    credentials_of(svid, PostQuantum::Offer, FixedClock::new(*NOW))
}

#[derive(Debug, PartialEq)]
enum Side {
    Client,
    Server,
}

fn pair(client: &Credentials, server: &Credentials, expected: &str) -> (ClientConnection, ServerConnection) {
    let (config, name) = client.client_config(&id(expected).into());
    (ClientConnection::new(config, name).unwrap(), ServerConnection::new(server.server_config()).unwrap())
}

/// Carries bytes both ways until nothing moves; the first side that fails, and what the other then learns.
fn run(
    client: &mut ClientConnection,
    server: &mut ServerConnection,
) -> Result<(), Box<(Side, Error, Option<Error>)>> {
    loop {
        let mut moved = 0;
        let mut wire = Vec::new();
        while client.wants_write() {
            moved += client.write_tls(&mut wire).unwrap();
        }
        let mut rest = wire.as_slice();
        while !rest.is_empty() {
            server.read_tls(&mut rest).unwrap();
            if let Err(error) = server.process_new_packets() {
                let mut alert = Vec::new();
                while server.wants_write() {
                    server.write_tls(&mut alert).unwrap();
                }
                client.read_tls(&mut alert.as_slice()).unwrap();
                return Err(Box::new((Side::Server, error, client.process_new_packets().err())));
            }
        }
        let mut wire = Vec::new();
        while server.wants_write() {
            moved += server.write_tls(&mut wire).unwrap();
        }
        let mut rest = wire.as_slice();
        while !rest.is_empty() {
            client.read_tls(&mut rest).unwrap();
            if let Err(error) = client.process_new_packets() {
                let mut alert = Vec::new();
                while client.wants_write() {
                    client.write_tls(&mut alert).unwrap();
                }
                server.read_tls(&mut alert.as_slice()).unwrap();
                return Err(Box::new((Side::Client, error, server.process_new_packets().err())));
            }
        }
        if moved == 0 {
            assert!(!client.is_handshaking() && !server.is_handshaking());
            return Ok(());
        }
    }
}

fn handshake(
    client: &Credentials,
    server: &Credentials,
    expected: &str,
) -> (ClientConnection, ServerConnection) {
    let (mut a, mut b) = pair(client, server, expected);
    run(&mut a, &mut b).unwrap();
    (a, b)
}

/// The reason on the refusing side, which must be `side`.
fn refusal(client: &Credentials, server: &Credentials, expected: &str, side: &Side) -> (Reason, String) {
    let (mut a, mut b) = pair(client, server, expected);
    let (failed, error, _) = *run(&mut a, &mut b).unwrap_err();
    assert_eq!(&failed, side, "{error}");
    handshake_reason(&error)
}

#[test]
fn a_good_pair_knows_each_other_and_resumes() {
    let (web, cart) = (credentials(WEB), credentials(CART));
    for kind in [HandshakeKind::Full, HandshakeKind::Resumed, HandshakeKind::Resumed] {
        let (client, server) = handshake(&web, &cart, CART);
        assert_eq!((client.handshake_kind(), server.handshake_kind()), (Some(kind), Some(kind)));
        assert_eq!(client.alpn_protocol(), Some(ALPN));
        assert_eq!(server.alpn_protocol(), Some(ALPN));
        assert_eq!(server.server_name(), None, "no server name is sent");
        assert_eq!(client.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
        let suite = client.negotiated_cipher_suite().unwrap().suite();
        assert_eq!(suite, rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
        let settings = settings(PostQuantum::Offer);
        let seen = peer_identity(
            client.peer_certificates().unwrap(),
            Some(&id(CART).into()),
            &settings,
            &PeerRules::default(),
            *NOW,
        )
        .unwrap();
        assert_eq!((&seen.id, seen.not_after), (&id(CART), *NOW + HOUR));
        let seen =
            peer_identity(server.peer_certificates().unwrap(), None, &settings, &PeerRules::default(), *NOW)
                .unwrap();
        assert_eq!(seen.id, id(WEB));
    }
}

#[test]
fn tickets_are_bound_to_the_pair_and_die_with_the_credentials() {
    let (web, cart) = (credentials(WEB), credentials(CART));
    handshake(&web, &cart, CART);
    let renewed = credentials(CART);
    let (client, _) = handshake(&web, &renewed, CART);
    assert_eq!(client.handshake_kind(), Some(HandshakeKind::Full), "the server's ticket key is gone");
    let (client, _) = handshake(&credentials(WEB), &renewed, CART);
    assert_eq!(client.handshake_kind(), Some(HandshakeKind::Full), "the client's tickets are gone");
    let (client, _) = handshake(&web, &credentials(WEB), WEB);
    assert_eq!(client.handshake_kind(), Some(HandshakeKind::Full), "another peer");
}

#[test]
fn tickets_end_with_the_certificate_and_so_does_a_resumed_peer() {
    let clock = FixedClock::new(*NOW);
    let short = |uri| CA.svid(uri, *NOW - HOUR, *NOW + Duration::from_secs(60));
    let long = |uri| CA.svid(uri, *NOW - HOUR, *NOW + HOUR);
    let web = credentials_of(short(WEB), PostQuantum::Offer, clock.clone());
    let cart = credentials_of(long(CART), PostQuantum::Offer, clock.clone());
    handshake(&web, &cart, CART);
    clock.advance(Duration::from_secs(61));
    // The server's own certificate is good, so its ticket is; the client's in it is not.
    let (_, server) = handshake(&web, &cart, CART);
    assert_eq!(server.handshake_kind(), Some(HandshakeKind::Resumed));
    let settings = settings(PostQuantum::Offer);
    let refused = peer_identity(
        server.peer_certificates().unwrap(),
        None,
        &settings,
        &PeerRules::default(),
        clock.now(),
    );
    let (reason, text) = refused.unwrap_err();
    assert_eq!(reason, Reason::CertificateExpired, "{text}");
    // The other way round the ticket itself has ended, and the full handshake refuses.
    let (reason, _) = refusal(&cart, &web, WEB, &Side::Client);
    assert_eq!(reason, Reason::CertificateExpired);
    let ticketer = &web.server_config().ticketer;
    assert_eq!((ticketer.encrypt(b"state"), ticketer.lifetime()), (None, 0));
}

#[test]
fn every_bad_certificate_is_refused_with_its_own_reason_on_both_sides() {
    let other_ca = TestCa::new("another CA");
    let namesake = TestCa::new("the CA");
    let (from, to) = (*NOW - HOUR, *NOW + HOUR);
    let minute = Duration::from_secs(60);
    let good = |_: &mut rcgen::CertificateParams| ();
    let cases = [
        ("expired", CA.leaf(&[CART], from, *NOW - minute, good), Reason::CertificateExpired),
        ("not yet valid", CA.leaf(&[CART], *NOW + minute, to, good), Reason::CertificateNotYetValid),
        ("another CA", other_ca.leaf(&[CART], from, to, good), Reason::CertificateUntrusted),
        ("another CA of that name", namesake.leaf(&[CART], from, to, good), Reason::CertificateUntrusted),
        ("no URI SAN", CA.leaf(&[], from, to, good), Reason::CertificateIdentity),
        ("two URI SANs", CA.leaf(&[CART, WEB], from, to, good), Reason::CertificateIdentity),
        ("the same twice", CA.leaf(&[CART, CART], from, to, good), Reason::CertificateIdentity),
        ("no SPIFFE form", CA.leaf(&["https://cart.shop"], from, to, good), Reason::CertificateIdentity),
        ("a path too long", CA.leaf(&[&format!("{CART}/x")], from, to, good), Reason::CertificateIdentity),
        (
            "foreign trust domain",
            CA.leaf(&["spiffe://td2/ns/shop/sa/cart"], from, to, good),
            Reason::TrustDomain,
        ),
        (
            "another purpose",
            CA.leaf(&[CART], from, to, |params| {
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
            }),
            Reason::CertificateInvalid,
        ),
        (
            "a CA as a leaf",
            CA.leaf(&[CART], from, to, |params| {
                params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            }),
            Reason::CertificateInvalid,
        ),
    ];
    let web = credentials(WEB);
    for (name, certificate, expected) in cases {
        let bad = forged(certificate);
        let (reason, text) = refusal(&web, &bad, CART, &Side::Client);
        assert_eq!(reason, expected, "server with {name}: {text}");
        let (reason, text) = refusal(&bad, &web, WEB, &Side::Server);
        assert_eq!(reason, expected, "client with {name}: {text}");
        assert!(!text.is_empty() && text.len() < 800, "{name}: {text}");
    }
}

#[test]
fn the_server_must_be_the_one_expected() {
    let (reason, text) = refusal(&credentials(WEB), &credentials(WEB), CART, &Side::Client);
    assert_eq!(reason, Reason::IdentityMismatch);
    assert!(text.contains(WEB) && text.contains(CART), "{text}");
    let alias = "spiffe://old/ns/shop/sa/cart";
    handshake(&credentials(alias), &credentials(alias), alias);
    let foreign = "spiffe://td2/ns/shop/sa/cart";
    let (reason, _) = refusal(&credentials(WEB), &credentials(foreign), foreign, &Side::Client);
    assert_eq!(reason, Reason::TrustDomain, "not even if it is expected");
}

#[test]
fn a_client_without_certificate_is_refused() {
    let (web, cart) = (credentials(WEB), credentials(CART));
    let (config, name) = web.client_config(&id(CART).into());
    let mut config = ClientConfig::clone(&config);
    config.client_auth_cert_resolver = Arc::new(NoCertificate);
    let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut server = ServerConnection::new(cart.server_config()).unwrap();
    let (side, error, seen) = *run(&mut client, &mut server).unwrap_err();
    assert_eq!(side, Side::Server);
    assert_eq!(handshake_reason(&error).0, Reason::CertificateMissing);
    assert_eq!(handshake_reason(&seen.unwrap()).0, Reason::CertificateMissing);
}

#[derive(Debug)]
struct NoCertificate;

impl rustls::client::ResolvesClientCert for NoCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

#[test]
fn alerts_tell_the_refused_side_what_tls_can() {
    let (from, to) = (*NOW - HOUR, *NOW + HOUR);
    let other_ca = TestCa::new("another CA");
    let cases = [
        (CA.leaf(&[CART], from, *NOW - HOUR / 2, |_| ()), Reason::CertificateExpired),
        (other_ca.leaf(&[CART], from, to, |_| ()), Reason::CertificateUntrusted),
        (CA.leaf(&[CART, WEB], from, to, |_| ()), Reason::CertificateInvalid),
    ];
    for (certificate, expected) in cases {
        let (mut a, mut b) = pair(&forged(certificate), &credentials(WEB), WEB);
        let (_, _, seen) = *run(&mut a, &mut b).unwrap_err();
        let (reason, text) = handshake_reason(&seen.unwrap());
        assert_eq!(reason, expected, "{text}");
        assert!(text.contains("our certificate"), "{text}");
    }
    assert_eq!(reason::alert_reason(AlertDescription::AccessDenied).0, Reason::IdentityMismatch);
    assert_eq!(reason::alert_reason(AlertDescription::Unknown(200)).0, Reason::TlsHandshake);
    assert_eq!(handshake_reason(&Error::DecryptError).0, Reason::TlsHandshake);
}

#[test]
fn peers_with_another_protocol_are_refused() {
    let (web, cart) = (credentials(WEB), credentials(CART));
    let (config, name) = web.client_config(&id(CART).into());
    let mut config = ClientConfig::clone(&config);
    config.alpn_protocols = vec![b"h2".to_vec()];
    let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut server = ServerConnection::new(cart.server_config()).unwrap();
    let (_, error, seen) = *run(&mut client, &mut server).unwrap_err();
    for error in [error, seen.unwrap()] {
        let (reason, text) = handshake_reason(&error);
        assert_eq!(reason, Reason::TlsHandshake);
        assert!(text.contains("ambit/1"), "{text}");
    }
}

#[test]
fn the_post_quantum_setting_chooses_the_group() {
    use PostQuantum::{Off, Offer, Prefer, Require};
    let of =
        |uri, setting| credentials_of(CA.svid(uri, *NOW - HOUR, *NOW + HOUR), setting, FixedClock::new(*NOW));
    let cases = [
        (Off, Off, Some(NamedGroup::X25519)),
        (Offer, Offer, Some(NamedGroup::X25519)),
        (Prefer, Offer, Some(NamedGroup::X25519MLKEM768)),
        (Prefer, Off, Some(NamedGroup::X25519)),
        (Offer, Require, Some(NamedGroup::X25519MLKEM768)),
        (Require, Offer, Some(NamedGroup::X25519MLKEM768)),
        (Require, Off, None),
        (Off, Require, None),
    ];
    for (client, server, expected) in cases {
        let (mut a, mut b) = pair(&of(WEB, client), &of(CART, server), CART);
        let outcome = run(&mut a, &mut b);
        assert_eq!(outcome.is_ok(), expected.is_some(), "{client:?} to {server:?}");
        if let Err(failure) = outcome {
            let error = failure.1;
            assert!(handshake_reason(&error).1.contains("key exchange"), "{error}");
            continue;
        }
        assert_eq!(a.negotiated_key_exchange_group().map(rustls::crypto::SupportedKxGroup::name), expected);
    }
}

#[test]
fn client_configurations_are_reused_and_bounded() {
    let web = credentials(WEB);
    let first = web.client_config(&id(CART).into()).0;
    assert!(Arc::ptr_eq(&first, &web.client_config(&id(CART).into()).0));
    for number in 0..2 * MAX_CLIENT_CONFIGS {
        web.client_config(&id(&format!("spiffe://td1/ns/shop/sa/peer-{number}")).into());
    }
    let clients = web.clients.lock().unwrap();
    assert_eq!((clients.ready.len(), clients.order.len()), (MAX_CLIENT_CONFIGS, MAX_CLIENT_CONFIGS));
    assert!(!clients.ready.contains_key(&id(CART).into()), "the oldest goes first");
}

#[test]
fn a_key_of_another_certificate_is_an_error() {
    let mut svid = CA.svid(WEB, *NOW - HOUR, *NOW + HOUR);
    svid.key = CA.leaf(&[WEB], *NOW, *NOW, |_| ()).1.into();
    let error =
        Credentials::new(Arc::new(svid), &settings(PostQuantum::Off), Arc::default(), FixedClock::new(*NOW));
    assert!(matches!(error.unwrap_err(), TlsError::Certificate { .. }));
}

#[test]
fn validity_counts_at_both_ends() {
    let settings = settings(PostQuantum::Off);
    let (leaf, _) = CA.leaf(&[WEB], *NOW, *NOW + HOUR, |_| ());
    let second = Duration::from_secs(1);
    let at = |now| {
        peer_identity(std::slice::from_ref(&leaf), None, &settings, &PeerRules::default(), now)
            .map_err(|refused| refused.0)
    };
    assert_eq!(at(*NOW - second).unwrap_err(), Reason::CertificateNotYetValid);
    assert!(at(*NOW).is_ok() && at(*NOW + HOUR).is_ok());
    assert_eq!(at(*NOW + HOUR + second).unwrap_err(), Reason::CertificateExpired);
    assert_eq!(
        peer_identity(&[], None, &settings, &PeerRules::default(), *NOW).unwrap_err().0,
        Reason::CertificateMissing
    );
    let mismatch = peer_identity(
        std::slice::from_ref(&leaf),
        Some(&id(CART).into()),
        &settings,
        &PeerRules::default(),
        *NOW,
    )
    .unwrap_err();
    assert_eq!(mismatch.0, Reason::IdentityMismatch);
}

#[test]
fn arbitrary_bytes_are_refused_without_panic() {
    let settings = settings(PostQuantum::Off);
    let (leaf, _) = CA.leaf(&[WEB], *NOW - HOUR, *NOW + HOUR, |_| ());
    let mut taken = 0;
    for round in 0..20_000_usize {
        let mut bytes = leaf.to_vec();
        match round % 3 {
            0 => {
                for _ in 0..=round % 4 {
                    let at = rand::random_range(0..bytes.len());
                    bytes[at] = rand::random();
                }
            }
            1 => bytes.truncate(rand::random_range(0..bytes.len())),
            _ => bytes = (0..rand::random_range(0..300)).map(|_| rand::random()).collect(),
        }
        let certificate = CertificateDer::from(bytes.clone());
        if let Ok(peer) =
            peer_identity(&[certificate], Some(&id(WEB).into()), &settings, &PeerRules::default(), *NOW)
        {
            assert_eq!(peer.id, id(WEB));
            taken += usize::from(round % 3 != 0);
        }
    }
    assert_eq!(taken, 0, "neither noise nor a part of a certificate is one");
}

/// One turn of an unbuffered connection: whether it has nothing left but application data.
macro_rules! step {
    ($connection:expr, $input:expr, $output:expr) => {{
        let mut done = false;
        loop {
            let status = $connection.process_tls_records(&mut $input);
            let discard = status.discard;
            let more = match status.state.unwrap() {
                ConnectionState::EncodeTlsData(mut data) => {
                    let mut record = vec![0; 32 * 1024];
                    let length = data.encode(&mut record).unwrap();
                    $output.extend_from_slice(&record[..length]);
                    true
                }
                ConnectionState::TransmitTlsData(data) => {
                    data.done();
                    true
                }
                ConnectionState::BlockedHandshake => false,
                ConnectionState::WriteTraffic(_) => {
                    done = true;
                    false
                }
                state => panic!("{state:?}"),
            };
            $input.drain(..discard);
            if !more {
                break;
            }
        }
        done
    }};
}

/// The way the tunnel drives handshakes, up to the secrets it takes out.
#[test]
fn secrets_come_out_of_unbuffered_connections_and_agree() {
    let (web, cart) = (credentials(WEB), credentials(CART));
    let (config, name) = web.client_config(&id(CART).into());
    let mut client = UnbufferedClientConnection::new(config, name).unwrap();
    let mut server = UnbufferedServerConnection::new(cart.server_config()).unwrap();
    let (mut to_client, mut to_server) = (Vec::new(), Vec::new());
    let (mut client_done, mut server_done) = (false, false);
    for _ in 0..20 {
        client_done = step!(client, to_client, to_server);
        server_done = step!(server, to_server, to_client);
        if client_done && server_done && to_server.is_empty() {
            break;
        }
    }
    assert!(client_done && server_done);
    let (client, mut client_side) = client.dangerous_into_kernel_connection().unwrap();
    let (server, _) = server.dangerous_into_kernel_connection().unwrap();
    let secret = |(_, secrets): &(u64, rustls::ConnectionTrafficSecrets)| match secrets {
        rustls::ConnectionTrafficSecrets::Aes128Gcm { key, iv } => {
            (key.as_ref().to_vec(), iv.as_ref().to_vec())
        }
        _ => panic!("not AES-128-GCM"),
    };
    assert_eq!(secret(&client.tx), secret(&server.rx));
    assert_eq!(secret(&client.rx).0, secret(&server.tx).0);
    assert!(client_side.handle_new_session_ticket(&[]).is_err());
}
