//! Two agents' ends of one session over loopback: rustls' handshake, our records, frames and pool.

use std::{future::poll_fn, sync::Arc, task::Poll, time::Duration};

use ambit_core::{
    model::{PodAddr, SpiffeId},
    reason::{Reason, Refusal},
};
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, Interest},
    net::{TcpListener, TcpStream},
};

use super::{
    session::Stream,
    tls::{Credentials, TlsSettings},
    *,
};
use crate::identity::{
    Clock, SystemClock,
    testing::{TestCa, id},
};

const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/web";
const SERVER: &str = "spiffe://cluster.local/ns/shop/sa/cart";

pub(crate) struct Sides {
    settings: TlsSettings,
    client: Credentials,
    server: Credentials,
    pub(crate) share: Arc<Share>,
}

impl Sides {
    pub(crate) fn new() -> Self {
        let ca = TestCa::new("test");
        let settings = TlsSettings {
            post_quantum: Default::default(),
            trust_domains: vec!["cluster.local".parse().unwrap()],
        };
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let make = |uri| {
            let now = clock.now();
            let svid = ca.svid(uri, now - Duration::from_secs(60), now + Duration::from_secs(3600));
            Credentials::new(Arc::new(svid), &settings, Arc::default(), clock.clone()).unwrap()
        };
        let (client, server) = (make(CLIENT), make(SERVER));
        let budget = Budget::new(1 << 30);
        if std::env::var_os("AMBIT_KERNEL_TLS").is_some_and(|wanted| wanted == "force") {
            // The same tests hold where records are the kernel's: for kernels that have it.
            budget.offload(Offload::new(probe().unwrap(), crate::telemetry::KernelTlsCounts::default()));
        }
        Self { settings, client, server, share: budget.share(&Arc::from("u")) }
    }

    async fn connect(&self, expected: &str) -> (Result<Session, TunnelError>, Result<Session, TunnelError>) {
        self.connect_over(pair().await, expected).await
    }

    async fn connect_over(
        &self,
        (client, server): (TcpStream, TcpStream),
        expected: &str,
    ) -> (Result<Session, TunnelError>, Result<Session, TunnelError>) {
        let expected = id(expected).into();
        let now = SystemClock.now();
        let rules = tls::PeerRules::default();
        let (config, name) = self.client.client_config(&expected);
        tokio::join!(
            Session::connect(client, config, name, &self.share, |certificates| {
                tls::peer_identity(certificates, Some(&expected), &self.settings, &rules, now).map(Arc::new)
            }),
            Session::accept(server, self.server.server_config(), &self.share, |certificates| {
                tls::peer_identity(certificates, None, &self.settings, &rules, now).map(Arc::new)
            })
        )
    }

    pub(crate) async fn sessions(&self) -> (Session, Session) {
        let (client, server) = self.connect(SERVER).await;
        (client.unwrap(), server.unwrap())
    }

    /// Both ends of a stream; OPEN has gone and been taken.
    pub(crate) async fn streams(&self) -> (Stream, Stream) {
        let (client, mut server) = self.sessions().await;
        let mut client = client.open(incoming(), None);
        client.flush().await.unwrap();
        assert_eq!(server.next(SOON).await.unwrap(), Some(incoming()));
        let mut server = server.accept_stream(None);
        server.flush().await.unwrap();
        (client, server)
    }
}

const SOON: Duration = Duration::from_secs(5);

pub(crate) async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (client, accepted) =
        tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (client.unwrap(), accepted.unwrap().0)
}

pub(crate) fn incoming() -> Incoming {
    Incoming {
        original_dst: "198.19.0.1:80".parse().unwrap(),
        service: None,
        trace: None,
        order: Order::default(),
        waits: false,
        strand: None,
    }
}

/// One step from the application.
async fn send_from(leg: &mut impl Leg, app: &TcpStream) -> Result<Moved, LegError> {
    poll_fn(|cx| leg.poll_send_from(cx, app)).await
}

/// All that `stream` brings until its end, as the application gets it.
async fn drain(stream: &mut Stream) -> Result<Vec<u8>, LegError> {
    let (sink, mut received) = pair().await;
    let collect = tokio::spawn(async move {
        let mut bytes = Vec::new();
        received.read_to_end(&mut bytes).await.unwrap();
        bytes
    });
    while !poll_fn(|cx| stream.poll_deliver_to(cx, &sink)).await?.end {}
    drop(sink);
    Ok(collect.await.unwrap())
}

/// Sends `bytes` while it takes what comes, until both ends have ended.
async fn exchange(stream: &mut Stream, bytes: Vec<u8>) -> Vec<u8> {
    let (app, agent) = pair().await;
    let (mut reading, mut writing) = app.into_split();
    let feed = tokio::spawn(async move {
        writing.write_all(&bytes).await.unwrap();
        writing.shutdown().await.unwrap();
    });
    let collect = tokio::spawn(async move {
        let mut bytes = Vec::new();
        reading.read_to_end(&mut bytes).await.unwrap();
        bytes
    });
    let (mut sent, mut delivered) = (false, false);
    poll_fn(|cx| {
        loop {
            let mut waits = true;
            if !sent && let Poll::Ready(step) = stream.poll_send_from(cx, &agent) {
                (sent, waits) = (step.unwrap().end, false);
            }
            if !delivered && let Poll::Ready(step) = stream.poll_deliver_to(cx, &agent) {
                (delivered, waits) = (step.unwrap().end, false);
            }
            match (sent && delivered, waits) {
                (true, _) => return Poll::Ready(()),
                (false, true) => return Poll::Pending,
                (false, false) => {}
            }
        }
    })
    .await;
    feed.await.unwrap();
    collect.await.unwrap()
}

/// Waits until it is known that the other end has ended.
async fn ended(socket: &TcpStream) {
    while !socket.ready(Interest::READABLE).await.unwrap().is_read_closed() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Sends `bytes` and the end, as an application would have them sent.
async fn send(stream: &mut Stream, bytes: Vec<u8>) {
    let (mut app, agent) = pair().await;
    let feed = tokio::spawn(async move {
        app.write_all(&bytes).await.unwrap();
    });
    while !send_from(stream, &agent).await.unwrap().end {}
    feed.await.unwrap();
}

pub(crate) fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|index| (index % 251) as u8).collect()
}

#[tokio::test]
async fn streams_follow_one_another_with_new_keys_on_the_way() {
    let sides = Sides::new();
    let (mut client, mut server) = sides.sessions().await;
    let peers = (client.facts().peer.id.clone(), server.facts().peer.id.clone());
    assert_eq!(peers, (id(SERVER), id(CLIENT)));
    for len in [0, 1, 16_379, 16_380, 16_381, 131_040, 5_000_000] {
        let (up, down) = (pattern(len), pattern(len / 2));
        let mut sending = client.open(incoming(), None);
        sending.flush().await.unwrap();
        assert_eq!(server.next(SOON).await.unwrap(), Some(incoming()));
        let mut receiving = server.accept_stream(None);
        let (_, received) = tokio::join!(send(&mut sending, up.clone()), drain(&mut receiving));
        assert!(received.unwrap() == up, "{len} bytes up");
        let (_, received) = tokio::join!(send(&mut receiving, down.clone()), drain(&mut sending));
        assert!(received.unwrap() == down, "{} bytes down", len / 2);
        (client, server) = (sending.into_session(), receiving.into_session());
    }
    assert_eq!(sides.share.used(), 0, "idle sessions hold no buffers");
    client.close(None).await;
    assert_eq!(server.next(SOON).await.unwrap(), None);
}

#[tokio::test]
async fn frames_travel_with_the_data_beside_them() {
    let sides = Sides::new();
    let (client, mut server) = sides.sessions().await;
    let (mut app, agent) = pair().await;
    app.write_all(b"hello").await.unwrap();
    app.shutdown().await.unwrap();
    ended(&agent).await;
    // The end has company only if it is known before the bytes are sent: the second step finds it.
    let mut stream = client.open(incoming(), None);
    let first = send_from(&mut stream, &agent).await.unwrap();
    assert_eq!(first, Moved { bytes: 5, end: false });
    assert_eq!(send_from(&mut stream, &agent).await.unwrap(), Moved { bytes: 0, end: true });
    assert_eq!(server.next(SOON).await.unwrap(), Some(incoming()));
    let mut received = server.accept_stream(None);
    assert_eq!(drain(&mut received).await.unwrap(), b"hello");
    let (mut app, agent) = pair().await;
    app.write_all(b"bye").await.unwrap();
    app.shutdown().await.unwrap();
    ended(&agent).await;
    assert_eq!(send_from(&mut received, &agent).await.unwrap(), Moved { bytes: 3, end: true });
    assert_eq!(drain(&mut stream).await.unwrap(), b"bye");
}

#[tokio::test]
async fn an_open_waits_for_nothing() {
    let sides = Sides::new();
    let (client, mut server) = sides.sessions().await;
    let (_app, agent) = pair().await;
    let mut stream = client.open(incoming(), None);
    assert_eq!(send_from(&mut stream, &agent).await.unwrap(), Moved { bytes: 0, end: false });
    assert_eq!(server.next(SOON).await.unwrap(), Some(incoming()));
}

#[tokio::test]
async fn a_reset_source_has_not_ended() {
    let sides = Sides::new();
    for len in [0, 5, 16_380] {
        let (mut client, _server) = sides.streams().await;
        let (mut app, agent) = pair().await;
        app.write_all(&pattern(len)).await.unwrap();
        SockRef::from(&app).set_linger(Some(Duration::ZERO)).unwrap();
        drop(app);
        ended(&agent).await;
        let mut sent = 0;
        let ended = loop {
            match send_from(&mut client, &agent).await {
                Ok(moved) => {
                    assert!(!moved.end, "{len} bytes: an end that is none");
                    sent += moved.bytes;
                }
                Err(error) => break error,
            }
        };
        assert!(matches!(ended, LegError::App(_)), "{len} bytes: {ended:?}");
        assert_eq!(sent, len, "what was said before goes out first");
    }
}

#[tokio::test]
async fn a_refusal_arrives_whatever_the_client_has_sent_behind_its_open() {
    let sides = Sides::new();
    let (client, mut server) = sides.sessions().await;
    let refusal = Refusal {
        policy: Some("shop/deny".into()),
        rule: Some("rules[1]".into()),
        ..Refusal::new(Reason::PolicyDenied, "no")
    };
    let mut client = client.open(incoming(), None);
    send(&mut client, pattern(100_000)).await;
    server.next(SOON).await.unwrap();
    let close = tokio::spawn(server.refuse_stream(refusal.clone()));
    match drain(&mut client).await {
        Err(LegError::Refused(received)) => assert_eq!(received, refusal),
        other => panic!("{other:?}"),
    }
    drop(client);
    close.await.unwrap();
}

#[tokio::test]
async fn legs_are_read_and_written_as_any_other_socket() {
    let sides = Sides::new();
    let (mut client, mut server) = sides.streams().await;
    let sent = pattern(300_000);
    let write = async {
        tokio::io::copy(&mut &*sent, &mut client).await.unwrap();
        client.shutdown().await.unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        answer
    };
    let read = async {
        let mut received = Vec::new();
        tokio::io::copy(&mut server, &mut received).await.unwrap();
        server.write_all(b"thanks").await.unwrap();
        server.shutdown().await.unwrap();
        received
    };
    let (answer, received) = tokio::join!(write, read);
    assert!(received == sent);
    assert_eq!(answer, b"thanks");
    // Both directions have ended: another stream can follow.
    let (client, mut server) = (client.into_session(), server.into_session());
    client.open(incoming(), None).flush().await.unwrap();
    assert_eq!(server.next(SOON).await.unwrap(), Some(incoming()));
}

#[tokio::test]
async fn a_plaintext_leg_is_read_and_written_as_any_other_socket() {
    let (mut far, near) = pair().await;
    let mut leg = Plain::new(near, Share::alone());
    let sent = pattern(100_000);
    let mut source = &*sent;
    let copied = tokio::io::copy(&mut source, &mut leg);
    let mut received = vec![0; 100_000];
    let (copied, read) = tokio::join!(copied, far.read_exact(&mut received));
    assert_eq!((copied.unwrap(), read.unwrap()), (100_000, 100_000));
    leg.shutdown().await.unwrap();
    assert_eq!(far.read(&mut received).await.unwrap(), 0);
}

#[tokio::test]
async fn what_a_plaintext_leg_holds_is_read_first() {
    let (mut far, near) = pair().await;
    let (mut app, agent) = pair().await;
    let sent = pattern(20_000_000);
    let bytes = sent.clone();
    let write = tokio::spawn(async move { far.write_all(&bytes).await.unwrap() });
    let share = Share::alone();
    let mut leg = Plain::new(near, share.clone());
    // Nobody reads at the application's end.
    let stuck = async { while !poll_fn(|cx| leg.poll_deliver_to(cx, &agent)).await.unwrap().end {} };
    assert!(tokio::time::timeout(Duration::from_millis(300), stuck).await.is_err());
    assert!(share.used() > 0);
    drop(agent);
    let (mut first, mut rest) = (Vec::new(), Vec::new());
    tokio::try_join!(app.read_to_end(&mut first), leg.read_to_end(&mut rest)).unwrap();
    write.await.unwrap();
    first.append(&mut rest);
    assert!(first == sent);
    assert_eq!(share.used(), 0);
}

#[tokio::test]
async fn a_step_that_is_given_up_half_way_loses_nothing() {
    let sides = Sides::new();
    let (mut client, mut server) = sides.streams().await;
    let (mut app, agent) = pair().await;
    let sent = pattern(20_000_000);
    let feed = {
        let sent = sent.clone();
        tokio::spawn(async move {
            app.write_all(&sent).await.unwrap();
            app.shutdown().await.unwrap();
        })
    };
    // Nobody reads at the other end: the tunnel's socket is full, and a batch is cut in the middle of a record.
    let stuck = async { while !send_from(&mut client, &agent).await.unwrap().end {} };
    assert!(tokio::time::timeout(Duration::from_millis(300), stuck).await.is_err());
    assert!(sides.share.used() > 0, "what the socket has not taken is kept");
    let sending = async { while !send_from(&mut client, &agent).await.unwrap().end {} };
    let (_, received) = tokio::join!(sending, drain(&mut server));
    assert!(received.unwrap() == sent);
    feed.await.unwrap();
}

#[tokio::test]
async fn what_has_gone_out_arrives_though_its_session_is_dropped() {
    let sides = Sides::new();
    for _ in 0..8 {
        let (mut client, mut server) = sides.streams().await;
        // What has come and is not read would have the socket reset.
        client.confirmed(false).await.unwrap();
        let (mut app, agent) = pair().await;
        let sent = pattern(3_000_000);
        let feed = {
            let sent = sent.clone();
            tokio::spawn(async move {
                app.write_all(&sent).await.unwrap();
                app.shutdown().await.unwrap();
            })
        };
        // The other end reads only when the socket is full.
        let sending = async {
            while !send_from(&mut client, &agent).await.unwrap().end {}
            drop(client.into_session());
        };
        let draining = async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            drain(&mut server).await
        };
        let (_, received) = tokio::join!(sending, draining);
        assert!(received.unwrap() == sent);
        feed.await.unwrap();
    }
}

#[tokio::test]
async fn keys_are_renewed_while_both_talk() {
    let sides = Sides::new();
    let (mut client, mut server) = sides.streams().await;
    // Both ways at once, so that each end learns new keys between records of its own.
    let sent = pattern(12_000_000);
    let received = tokio::join!(exchange(&mut client, sent.clone()), exchange(&mut server, sent.clone()));
    assert!(received.0 == sent && received.1 == sent);
    // What follows is under the last keys.
    let (client, mut server) = (client.into_session(), server.into_session());
    let mut client = client.open(incoming(), None);
    client.flush().await.unwrap();
    assert_eq!(server.next(SOON).await.unwrap(), Some(incoming()));
}

#[tokio::test]
async fn a_reset_gets_through_behind_a_cut_record() {
    let sides = Sides::new();
    let (mut client, mut server) = sides.streams().await;
    let (mut app, agent) = pair().await;
    let feed = tokio::spawn(async move { while app.write_all(&[7; 65_536]).await.is_ok() {} });
    let stuck = async { while !send_from(&mut client, &agent).await.unwrap().end {} };
    assert!(tokio::time::timeout(Duration::from_millis(300), stuck).await.is_err());
    let why = Refusal { policy: Some("shop/p".into()), ..Refusal::new(Reason::PolicyDenied, "no") };
    let (_, received) = tokio::join!(client.close(Some(why.clone())), drain(&mut server));
    assert!(
        matches!(&received, Err(LegError::Reset(told)) if *told == why),
        "{:?}",
        received.map(|b| b.len())
    );
    drop(agent);
    feed.await.unwrap();
}

#[tokio::test]
async fn the_wrong_peer_is_refused_by_the_client() {
    let sides = Sides::new();
    let (client, server) = sides.connect("spiffe://cluster.local/ns/shop/sa/other").await;
    assert_eq!(client.unwrap_err().reason(), Reason::IdentityMismatch);
    assert!(server.is_err());
}

#[tokio::test]
async fn a_cut_connection_is_an_error_in_a_stream_and_an_end_between_streams() {
    let sides = Sides::new();
    let (client, mut server) = sides.sessions().await;
    drop(client);
    assert_eq!(server.next(SOON).await.unwrap(), None);
    let (client, mut server) = sides.streams().await;
    drop(client);
    // What was sent to it unread makes the kernel answer with a RST.
    let cut = drain(&mut server).await;
    assert!(matches!(cut, Err(LegError::Tunnel(TunnelError::Closed | TunnelError::Io(_)))), "{cut:?}");
}

#[tokio::test]
async fn garbage_on_the_wire_is_refused() {
    let sides = Sides::new();
    let (mut raw, server) = pair().await;
    raw.write_all(&[22, 3, 1, 0, 5, 1, 2, 3, 4, 5]).await.unwrap();
    let refused = Session::accept(server, sides.server.server_config(), &sides.share, |_| unreachable!());
    let refused = refused.await;
    assert!(matches!(refused, Err(TunnelError::Handshake { .. })), "{refused:?}");
}

/// Passes on what comes, a few bytes at a time.
async fn trickle(mut from: tokio::net::tcp::OwnedReadHalf, mut to: tokio::net::tcp::OwnedWriteHalf) {
    let mut some = [0; 16];
    while let Ok(read @ 1..) = from.read(&mut some).await {
        to.write_all(&some[..read]).await.unwrap();
        tokio::time::sleep(Duration::from_micros(200)).await;
    }
}

#[tokio::test]
async fn a_handshake_that_comes_bit_by_bit_is_one_all_the_same() {
    let sides = Sides::new();
    let ((client, near), (far, server)) = (pair().await, pair().await);
    let (near, far) = (near.into_split(), far.into_split());
    tokio::spawn(trickle(near.0, far.1));
    tokio::spawn(trickle(far.0, near.1));
    let (client, server) = sides.connect_over((client, server), SERVER).await;
    let (client, mut server) = (client.unwrap(), server.unwrap());
    let mut client = client.open(incoming(), None);
    client.flush().await.unwrap();
    assert_eq!(
        server.next(SOON).await.unwrap(),
        Some(incoming()),
        "it is woken for less than a record again"
    );
}

#[tokio::test]
async fn a_handshake_in_too_many_records_is_refused() {
    let sides = Sides::new();
    let ((mut client, near), (mut far, server)) = (pair().await, pair().await);
    let (config, name) = sides.client.client_config(&id(SERVER).into());
    let hello = Session::connect(near, config, name, &sides.share, |_| unreachable!("no answer comes"));
    let flood = async {
        let mut hello = vec![0; 4096];
        let read = client.read(&mut hello).await.unwrap();
        far.write_all(&hello[..read]).await.unwrap();
        // Nothing but noise for compatibility (RFC 8446 §5), which is passed over.
        far.write_all(&[20, 3, 3, 0, 1, 1].repeat(1000)).await.unwrap();
        let accepted =
            Session::accept(server, sides.server.server_config(), &sides.share, |_| unreachable!());
        accepted.await.unwrap_err()
    };
    let refused = tokio::select! {
        refused = flood => refused,
        _ = hello => unreachable!("it waits for an answer"),
    };
    assert!(matches!(refused, TunnelError::Handshake { reason: Reason::TlsHandshake, .. }), "{refused:?}");
}

fn key(own: &SpiffeId) -> PoolKey {
    PoolKey {
        pod: "u".into(),
        source: "198.18.1.2".parse().unwrap(),
        destination: PodAddr("198.18.2.2:80".parse().unwrap()),
        peer: "p".into(),
        own: own.clone(),
        expected: id(SERVER).into(),
    }
}

#[tokio::test]
async fn the_pool_gives_back_what_is_alive_and_only_for_the_same_pair() {
    let sides = Sides::new();
    let pool = Pool::default();
    let (client, server) = sides.sessions().await;
    pool.put(key(&id(CLIENT)), client);
    assert!(pool.take(&key(&id(SERVER))).is_none());
    let (client, _) = pool.take(&key(&id(CLIENT))).expect("it is alive");
    pool.put(key(&id(CLIENT)), client);
    server.close(None).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(pool.take(&key(&id(CLIENT))).is_none(), "its peer has closed it");
}

#[tokio::test]
async fn no_stream_follows_where_the_server_has_asked_for_none() {
    let sides = Sides::new();
    let pool = Pool::default();
    let (client, mut server) = sides.sessions().await;
    let mut sending = client.open(incoming(), None);
    sending.flush().await.unwrap();
    // It crosses our word on the way, and is served.
    server.go_away().await.unwrap();
    assert_eq!(server.next(SOON).await.unwrap(), Some(incoming()));
    let mut receiving = server.accept_stream(None);
    let (_, received) = tokio::join!(send(&mut sending, pattern(9)), drain(&mut receiving));
    assert_eq!(received.unwrap(), pattern(9));
    let (_, received) = tokio::join!(send(&mut receiving, pattern(7)), drain(&mut sending));
    assert_eq!(received.unwrap(), pattern(7));
    pool.put(key(&id(CLIENT)), sending.into_session());
    assert!(pool.take(&key(&id(CLIENT))).is_none());
    // Nor where it is said while the session rests.
    let (client, mut server) = sides.sessions().await;
    pool.put(key(&id(CLIENT)), client);
    server.go_away().await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(pool.take(&key(&id(CLIENT))).is_none());
}

#[tokio::test]
async fn the_second_handshake_resumes() {
    let sides = Sides::new();
    let (mut client, mut server) = sides.streams().await;
    // The ticket comes with the server's first words.
    let (_, received) = tokio::join!(send(&mut server, pattern(10)), drain(&mut client));
    received.unwrap();
    assert!(!client.into_session().facts().resumed);
    let (client, server) = sides.sessions().await;
    assert!(client.facts().resumed && server.facts().resumed);
    assert_eq!(server.facts().peer.id, id(CLIENT));
}

/// What a session costs while nothing runs on it: measured, so that it does not grow unseen.
#[test]
fn sessions_and_streams_are_small() {
    assert!(size_of::<Session>() <= 16);
    assert!(size_of::<Stream>() <= 24, "{}", size_of::<Stream>());
    assert!(size_of::<ambit1::Link>() <= 2_048, "{}", size_of::<ambit1::Link>());
}
