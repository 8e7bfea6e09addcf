//! What comes out of a handshake, held against rustls.

use rustls::{
    SupportedCipherSuite,
    crypto::{
        CryptoProvider,
        aws_lc_rs::{cipher_suite, default_provider},
    },
    version::TLS13,
};

use super::*;
use crate::{
    identity::{Clock as _, SystemClock, testing::TestCa},
    tunnel::{secret::Ear, tests::pair},
};

const NAME: &str = "peer.test";

/// Both sides of a handshake that is over, with this cipher suite.
async fn over(
    suite: SupportedCipherSuite,
) -> (Driver<UnbufferedClientConnection>, Driver<UnbufferedServerConnection>) {
    let provider = Arc::new(CryptoProvider { cipher_suites: vec![suite], ..default_provider() });
    let (ca, now) = (TestCa::new("test"), SystemClock.now());
    let (certificate, key) =
        ca.leaf(&[], now - Duration::from_secs(60), now + Duration::from_secs(60), |params| {
            params.subject_alt_names.push(rcgen::SanType::DnsName(NAME.try_into().unwrap()));
        });
    let mut client = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_root_certificates(ca.trust().anchors().unwrap())
        .with_no_client_auth();
    let mut server = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    (client.enable_secret_extraction, server.enable_secret_extraction) = (true, true);
    (client.key_log, server.key_log) = (Arc::new(Ear), Arc::new(Ear));
    let client = UnbufferedClientConnection::new(Arc::new(client), NAME.try_into().unwrap()).unwrap();
    let server = UnbufferedServerConnection::new(Arc::new(server)).unwrap();
    let sockets = pair().await;
    let (mut client, mut server) =
        (Driver::new(sockets.0, Box::new(client)), Driver::new(sockets.1, Box::new(server)));
    let (share, party) = (Share::alone(), IpAddr::V4(Ipv4Addr::LOCALHOST));
    let ended = tokio::join!(client.drive(party, &share), server.drive(party, &share));
    ended.0.unwrap();
    ended.1.unwrap();
    (client, server)
}

#[tokio::test]
async fn each_renewal_has_the_keys_that_rustls_would_have() {
    for suite in [
        cipher_suite::TLS13_AES_128_GCM_SHA256,
        cipher_suite::TLS13_AES_256_GCM_SHA384,
        cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ] {
        let (client, server) = over(suite).await;
        let (ExtractedSecrets { tx, rx }, mut client_keys) =
            client.side.dangerous_into_kernel_connection().unwrap();
        let (mut up, mut down) = client.secrets.behind(&tx.1, &rx.1).unwrap();
        let (ExtractedSecrets { tx, rx }, mut server_keys) =
            server.side.dangerous_into_kernel_connection().unwrap();
        server.secrets.behind(&rx.1, &tx.1).unwrap();
        for _ in 0..3 {
            (up, down) = (up.next().unwrap(), down.next().unwrap());
            assert!(up.makes(&client_keys.update_tx_secret().unwrap().1).unwrap());
            assert!(up.makes(&server_keys.update_rx_secret().unwrap().1).unwrap());
            assert!(down.makes(&client_keys.update_rx_secret().unwrap().1).unwrap());
            assert!(down.makes(&server_keys.update_tx_secret().unwrap().1).unwrap());
        }
    }
}

#[tokio::test]
async fn secrets_of_another_handshake_are_not_taken() {
    let suite = cipher_suite::TLS13_AES_128_GCM_SHA256;
    let ((one, _), (other, _)) = (over(suite).await, over(suite).await);
    let (ExtractedSecrets { tx, rx }, _) = one.side.dangerous_into_kernel_connection().unwrap();
    assert!(other.secrets.behind(&tx.1, &rx.1).is_err());
    assert!(Secrets::default().behind(&tx.1, &rx.1).is_err());
    assert!(one.secrets.behind(&rx.1, &tx.1).is_err());
}
