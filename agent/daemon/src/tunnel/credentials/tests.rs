//! Roots and revocations that change while agents talk over loopback.

use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicBool, AtomicUsize},
    time::Duration,
};

use ambit_core::model::PodAddr;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    select,
    time::{sleep, timeout},
};

use super::*;
use crate::{
    identity::{BuiltinCa, LiveCa, SystemClock, testing::id},
    tunnel::{Incoming, Order, Pool, PoolKey, Session, Share},
};

const CLIENT: &str = "spiffe://td1/ns/shop/sa/web";
const SERVER: &str = "spiffe://td1/ns/shop/sa/cart";
const SOON: Duration = Duration::from_secs(15);
const FILES: [&str; 4] = ["ca-cert.pem", "ca-key.pem", "cert-chain.pem", "root-cert.pem"];

/// One node's agent, as far as trust goes.
async fn agent(ca_dir: &Path, own: &str, ttl: Duration) -> Wallet {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let ca = LiveCa::open(ca_dir, "td1".parse().unwrap(), clock.clone()).await.unwrap();
    let keys = KeyStore::new(Arc::new(ca), clock.clone(), ttl);
    keys.retain([id(own)]);
    let settings =
        TlsSettings { post_quantum: Default::default(), trust_domains: vec!["td1".parse().unwrap()] };
    Wallet::new(keys, settings, clock)
}

/// Makes a CA and returns its root.
fn make_ca(dir: &Path) -> String {
    BuiltinCa::open(dir, "td1".parse().unwrap(), Arc::new(SystemClock)).unwrap();
    fs::read_to_string(dir.join("root-cert.pem")).unwrap()
}

async fn dial(wallet: &Wallet, addr: std::net::SocketAddr) -> Result<Session, TunnelError> {
    let held = wallet.credentials(&id(CLIENT)).await?;
    let expected = id(SERVER).into();
    let tcp = TcpStream::connect(addr).await?;
    let (config, name) = held.client_config(&expected);
    let verify = |shown: &[CertificateDer<'_>]| wallet.peer(&held, shown, Some(&expected));
    Session::connect(tcp, config, name, &Share::alone(), verify).await
}

async fn answer(wallet: &Wallet, tcp: TcpStream) -> Result<Session, TunnelError> {
    let held = wallet.credentials(&id(SERVER)).await?;
    let verify = |shown: &[CertificateDer<'_>]| wallet.peer(&held, shown, None);
    Session::accept(tcp, held.server_config(), &Share::alone(), verify).await
}

async fn sessions(
    client: &Wallet,
    server: &Wallet,
) -> (Result<Session, TunnelError>, Result<Session, TunnelError>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::join!(dial(client, addr), async { answer(server, listener.accept().await.unwrap().0).await })
}

/// Serves streams until the peer leaves or is not believed any more.
async fn serve(wallet: Wallet, listener: TcpListener, cut: Arc<AtomicUsize>) {
    loop {
        let (tcp, _) = listener.accept().await.unwrap();
        let (wallet, cut) = (wallet.clone(), cut.clone());
        tokio::spawn(async move {
            let mut session = answer(&wallet, tcp).await.unwrap();
            let (peer, own) = (session.facts().peer.clone(), id(SERVER));
            select! {
                () = async move {
                    while let Ok(Some(_)) = session.next(SOON).await {
                        let mut stream = session.accept_stream(None);
                        stream.flush().await.unwrap();
                        assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
                        stream.shutdown().await.unwrap();
                        session = stream.into_session();
                    }
                } => {}
                _ = wallet.until_distrusted(&own, &peer) => {
                    cut.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
    }
}

/// One stream over a pooled connection or a new one.
async fn call(wallet: &Wallet, pool: &Pool, addr: std::net::SocketAddr) -> Result<(), String> {
    let key = PoolKey {
        pod: "u".into(),
        source: addr.ip(),
        destination: PodAddr(addr),
        peer: "p".into(),
        own: id(CLIENT),
        expected: id(SERVER).into(),
    };
    let mut found = None;
    while let Some((session, _)) = pool.take(&key) {
        if wallet.recheck(&id(CLIENT), &session.facts().peer).is_ok() {
            found = Some(session);
            break;
        }
    }
    let session = match found {
        Some(session) => session,
        None => dial(wallet, addr).await.map_err(|error| error.to_string())?,
    };
    let (peer, own) = (session.facts().peer.clone(), id(CLIENT));
    let run = async {
        let order = Order::default();
        let incoming =
            Incoming { original_dst: addr, service: None, trace: None, order, waits: false, strand: None };
        let mut stream = session.open(incoming, None);
        stream.flush().await?;
        sleep(Duration::from_millis(2)).await;
        stream.shutdown().await?;
        assert_eq!(stream.read(&mut [0]).await?, 0);
        Ok::<_, std::io::Error>(stream.into_session())
    };
    let session = select! {
        done = run => done.map_err(|error| error.to_string())?,
        (_, text) = wallet.until_distrusted(&own, &peer) => return Err(text),
    };
    pool.put(key, session);
    Ok(())
}

async fn until(what: &str, done: impl Fn() -> bool) {
    let waiting = async {
        while !done() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(timeout(SOON, waiting).await.is_ok(), "{what} did not come");
}

fn roots_of(wallet: &Wallet, own: &str) -> usize {
    wallet.0.keys.trust(&id(own)).map_or(0, |trust| trust.roots.len())
}

#[tokio::test]
async fn the_root_rotates_under_traffic_and_only_who_stayed_on_the_old_one_is_cut() {
    let dir = tempfile::tempdir().unwrap();
    let (ca, next) = (dir.path().join("ca"), dir.path().join("next"));
    let (old_root, new_root) = (make_ca(&ca), make_ca(&next));
    let ttl = Duration::from_secs(4);
    let (client, server) = (agent(&ca, CLIENT, ttl).await, agent(&ca, SERVER, ttl).await);
    let both = [(&client, CLIENT), (&server, SERVER)];

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(serve(server.clone(), listener, Arc::default()));
    let stop = Arc::new(AtomicBool::new(false));
    let traffic = tokio::spawn({
        let (client, stop) = (client.clone(), stop.clone());
        async move {
            let (pool, mut calls) = (Pool::default(), 0);
            while !stop.load(Ordering::SeqCst) {
                call(&client, &pool, addr).await.unwrap();
                calls += 1;
            }
            calls
        }
    });
    // A connection that lives through it all, from before the rotation.
    let (client_session, server_session) = sessions(&client, &server).await;
    let (client_session, server_session) = (client_session.unwrap(), server_session.unwrap());
    let first: Vec<_> = both.iter().map(|(wallet, own)| wallet.0.keys.current(&id(own)).unwrap()).collect();

    fs::write(ca.join("root-cert.pem"), format!("{old_root}{new_root}")).unwrap();
    until("the new root", || both.iter().all(|(wallet, own)| roots_of(wallet, own) == 2)).await;
    assert!(
        client.recheck(&id(CLIENT), &client_session.facts().peer).is_ok() && Arc::strong_count(&first[0]) > 0,
        "a root more cuts nobody"
    );
    for name in &FILES[..3] {
        fs::copy(next.join(name), ca.join(name)).unwrap();
    }
    let new = CertificateDer::from(pem::parse(&new_root).unwrap().into_contents());
    let issued_by_new = |wallet: &Wallet, own: &str| {
        let svid = wallet.0.keys.current(&id(own));
        svid.is_some_and(|svid| {
            crate::identity::issuer_name(&svid.chain[0]) == crate::identity::issuer_name(&new)
        })
    };
    until("certificates of the new CA", || both.iter().all(|(wallet, own)| issued_by_new(wallet, own))).await;
    // Pooled connections follow within a fifth of a certificate's life.
    sleep(ttl / 4).await;
    fs::write(ca.join("root-cert.pem"), &new_root).unwrap();

    for (wallet, own, session) in [(&client, CLIENT, &client_session), (&server, SERVER, &server_session)] {
        let cut = timeout(SOON, wallet.until_distrusted(&id(own), &session.facts().peer)).await;
        let (reason, text) = cut.expect("it is cut");
        assert_eq!(reason, Reason::RootWithdrawn, "{text}");
        assert_eq!(roots_of(wallet, own), 1);
    }
    sleep(Duration::from_millis(300)).await;
    stop.store(true, Ordering::SeqCst);
    let calls = traffic.await.expect("not one call failed");
    assert!(calls > 500, "{calls}");
}

#[tokio::test]
async fn files_that_do_not_fit_together_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (ca, next) = (dir.path().join("ca"), dir.path().join("next"));
    make_ca(&ca);
    let new_root = make_ca(&next);
    let wallet = agent(&ca, CLIENT, Duration::from_secs(3600)).await;
    let held = wallet.credentials(&id(CLIENT)).await.unwrap();
    // Withdraws the root that the CA itself signs under.
    fs::write(ca.join("root-cert.pem"), &new_root).unwrap();
    sleep(Duration::from_millis(1700)).await;
    let again = wallet.credentials(&id(CLIENT)).await.unwrap();
    assert!(Arc::ptr_eq(&held.credentials, &again.credentials));
}

#[tokio::test]
async fn a_revoked_peer_loses_what_it_has_and_gets_nothing_new() {
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca");
    make_ca(&ca);
    let hour = Duration::from_secs(3600);
    let (client, server) = (agent(&ca, CLIENT, hour).await, agent(&ca, SERVER, hour).await);
    let (session, _server_session) = sessions(&client, &server).await;
    let session = session.unwrap();
    let cut = tokio::spawn({
        let (client, peer) = (client.clone(), session.facts().peer.clone());
        async move { client.until_distrusted(&id(CLIENT), &peer).await }
    });
    let svid = server.0.keys.current(&id(SERVER)).unwrap();
    client.revoke(revocations(&ca, &svid.serial));
    let (reason, text) = timeout(SOON, cut).await.unwrap().unwrap();
    assert_eq!(reason, Reason::CertificateRevoked, "{text}");
    let (refused, _) = sessions(&client, &server).await;
    assert_eq!(refused.unwrap_err().reason(), Reason::CertificateRevoked);
    client.revoke(Revocations::default());
    assert!(sessions(&client, &server).await.0.is_ok(), "no longer on the list");
}

/// A list of the CA in `dir` with one serial, hexadecimal, on it.
fn revocations(dir: &Path, serial: &str) -> Revocations {
    use rcgen::{CertificateRevocationListParams, KeyIdMethod, KeyPair, RevokedCertParams, SerialNumber};
    let key = KeyPair::from_pem(&fs::read_to_string(dir.join("ca-key.pem")).unwrap()).unwrap();
    let ca = fs::read_to_string(dir.join("ca-cert.pem")).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_pem(&ca, key).unwrap();
    let bytes: Vec<u8> = (0..serial.len() / 2)
        .map(|at| u8::from_str_radix(&serial[2 * at..2 * at + 2], 16).unwrap())
        .collect();
    let now = time::OffsetDateTime::now_utc();
    let list = CertificateRevocationListParams {
        this_update: now - Duration::from_secs(60),
        next_update: now + Duration::from_secs(60),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: vec![RevokedCertParams {
            serial_number: SerialNumber::from_slice(&bytes),
            revocation_time: now,
            reason_code: None,
            invalidity_date: None,
        }],
        key_identifier_method: KeyIdMethod::Sha256,
    };
    Revocations::parse(list.signed_by(&issuer).unwrap().pem().unwrap().as_bytes()).unwrap()
}

#[tokio::test]
async fn a_workload_of_this_node_is_vouched_for_as_in_a_handshake() {
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca");
    make_ca(&ca);
    let node = agent(&ca, CLIENT, Duration::from_secs(3600)).await;
    let (client, server) = (id(CLIENT), id(SERVER));
    let missing = node.vouch(&client, &server).await.unwrap_err();
    assert_eq!(missing.0, Reason::IdentityUnavailable, "{}", missing.1);
    node.0.keys.retain([client.clone(), server.clone()]);
    let peer = node.vouch(&client, &server).await.unwrap();
    assert_eq!(peer.id, server);
    assert!(Arc::ptr_eq(&peer, &node.vouch(&client, &server).await.unwrap()), "judged once");
    let serial = node.0.keys.current(&server).unwrap().serial.clone();
    let cut = tokio::spawn({
        let (node, client, peer) = (node.clone(), client.clone(), peer.clone());
        async move { node.until_distrusted(&client, &peer).await }
    });
    node.revoke(revocations(&ca, &serial));
    assert_eq!(timeout(SOON, cut).await.unwrap().unwrap().0, Reason::CertificateRevoked);
    assert_eq!(node.vouch(&client, &server).await.unwrap_err().0, Reason::CertificateRevoked);
    assert!(node.vouch(&server, &client).await.is_ok(), "the other is not meant");
    node.revoke(Revocations::default());
    assert!(node.vouch(&client, &server).await.is_ok());
    node.retain(|kept| *kept == client);
    node.0.keys.retain([client.clone()]);
    assert_eq!(node.vouch(&client, &server).await.unwrap_err().0, Reason::IdentityUnavailable);
}

#[tokio::test]
async fn certificates_of_a_peer_are_held_once() {
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca");
    make_ca(&ca);
    let hour = Duration::from_secs(3600);
    let (client, server) = (agent(&ca, CLIENT, hour).await, agent(&ca, SERVER, hour).await);
    let (first, second) = (sessions(&client, &server).await, sessions(&client, &server).await);
    let peer = |session: &Result<Session, TunnelError>| session.as_ref().unwrap().facts().peer.clone();
    assert!(Arc::ptr_eq(&peer(&first.0), &peer(&second.0)), "the client's");
    assert!(Arc::ptr_eq(&peer(&first.1), &peer(&second.1)), "the server's");
}
