//! Two agents' ends of one connection over loopback: rustls' handshake, our records, frames and pool.

use std::{sync::Arc, time::Duration};

use ambit_core::{
    frame::{Control, Open},
    model::{PodAddr, SpiffeId},
    reason::{Reason, Refusal},
};
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, Interest},
    net::{TcpListener, TcpStream},
};

use super::{
    link::writer::Sent,
    tls::{Credentials, TlsSettings},
    *,
};
use crate::identity::{
    Clock, SystemClock,
    testing::{TestCa, id},
};

const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/web";
const SERVER: &str = "spiffe://cluster.local/ns/shop/sa/cart";

struct Sides {
    settings: TlsSettings,
    client: Credentials,
    server: Credentials,
}

impl Sides {
    fn new() -> Self {
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
        Self { settings, client, server }
    }

    async fn connect(&self, expected: &str) -> (Result<Link, TunnelError>, Result<Link, TunnelError>) {
        let (client, server) = pair().await;
        let expected = id(expected);
        let now = SystemClock.now();
        tokio::join!(
            connect(client, self.client.client_config(&expected), |certificates| {
                tls::peer_identity(
                    certificates,
                    Some(&expected),
                    &self.settings,
                    &tls::PeerRules::default(),
                    now,
                )
            }),
            accept(server, self.server.server_config(), |certificates| {
                tls::peer_identity(certificates, None, &self.settings, &tls::PeerRules::default(), now)
            })
        )
    }

    async fn links(&self) -> (Link, Link) {
        let (client, server) = self.connect(SERVER).await;
        (client.unwrap(), server.unwrap())
    }
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (client, accepted) =
        tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (client.unwrap(), accepted.unwrap().0)
}

fn open() -> Open {
    Open {
        original_dst: "198.19.0.1:80".parse().unwrap(),
        service: None,
        trace: None,
        order: Default::default(),
    }
}

/// All that arrives until FIN or RESET.
async fn drain(link: &mut Link) -> Result<Vec<u8>, TunnelError> {
    let (mut reader, _) = link.split();
    let (mut sink, mut received) = pair().await;
    let collect = tokio::spawn(async move {
        let mut bytes = Vec::new();
        received.read_to_end(&mut bytes).await.unwrap();
        bytes
    });
    loop {
        match reader.receive().await? {
            Received::Data(pieces) => {
                let len = pieces.len();
                assert!(len > 0);
                pieces.write_to(&mut sink.split().1).await.unwrap();
            }
            Received::Control(Control::Fin) => break,
            Received::Control(Control::Accept) => {}
            Received::Control(other) => panic!("{other:?}"),
        }
    }
    drop(sink);
    Ok(collect.await.unwrap())
}

/// Waits until it is known that the other end has ended.
async fn ended(socket: &TcpStream) {
    while !socket.ready(Interest::READABLE).await.unwrap().is_read_closed() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Sends `bytes` as an application would have them sent.
async fn send(link: &mut Link, bytes: Vec<u8>) {
    let (mut app, mut agent) = pair().await;
    let feed = tokio::spawn(async move {
        app.write_all(&bytes).await.unwrap();
    });
    let (_, mut writer) = link.split();
    let (mut source, _) = agent.split();
    while !writer.send_from(&mut source).await.unwrap().end {}
    feed.await.unwrap();
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|index| (index % 251) as u8).collect()
}

#[tokio::test]
async fn streams_follow_one_another_with_new_keys_on_the_way() {
    let sides = Sides::new();
    let (mut client, mut server) = sides.links().await;
    assert_eq!((client.peer().id.clone(), server.peer().id.clone()), (id(SERVER), id(CLIENT)));
    for len in [0, 1, 16_379, 16_380, 16_381, 131_040, 5_000_000] {
        let (up, down) = (pattern(len), pattern(len / 2));
        client.split().1.control(&Control::Open(open())).await.unwrap();
        assert_eq!(server.next_open(Duration::from_secs(5)).await.unwrap(), Some(open()));
        server.split().1.control(&Control::Accept).await.unwrap();
        let (_, received) = tokio::join!(send(&mut client, up.clone()), drain(&mut server));
        assert!(received.unwrap() == up, "{len} bytes up");
        let (_, received) = tokio::join!(send(&mut server, down.clone()), drain(&mut client));
        assert!(received.unwrap() == down, "{} bytes down", len / 2);
    }
    client.close_with(None).await;
    assert_eq!(server.next_open(Duration::from_secs(5)).await.unwrap(), None);
}

#[tokio::test]
async fn frames_travel_with_the_data_beside_them() {
    let sides = Sides::new();
    let (mut client, mut server) = sides.links().await;
    let (mut app, mut agent) = pair().await;
    app.write_all(b"hello").await.unwrap();
    app.shutdown().await.unwrap();
    ended(&agent).await;
    let (_, mut writer) = client.split();
    let (mut source, _) = agent.split();
    writer.hold(&Control::Open(open()));
    assert_eq!(writer.send_from(&mut source).await.unwrap(), Sent { bytes: 5, end: true });
    assert_eq!(server.next_open(Duration::from_secs(5)).await.unwrap(), Some(open()));
    assert_eq!(drain(&mut server).await.unwrap(), b"hello");
}

#[tokio::test]
async fn an_open_waits_for_nothing() {
    let sides = Sides::new();
    let (mut client, mut server) = sides.links().await;
    let (_app, mut agent) = pair().await;
    let (_, mut writer) = client.split();
    writer.hold(&Control::Open(open()));
    assert_eq!(writer.send_now(&mut agent.split().0).await.unwrap(), Sent { bytes: 0, end: false });
    assert_eq!(server.next_open(Duration::from_secs(5)).await.unwrap(), Some(open()));
}

#[tokio::test]
async fn a_reset_source_has_not_ended() {
    let sides = Sides::new();
    for len in [0, 5, 16_380] {
        let (mut client, _server) = sides.links().await;
        let (mut app, mut agent) = pair().await;
        app.write_all(&pattern(len)).await.unwrap();
        SockRef::from(&app).set_linger(Some(Duration::ZERO)).unwrap();
        drop(app);
        ended(&agent).await;
        let sent = client.split().1.send_from(&mut agent.split().0).await;
        assert!(matches!(sent, Err(MoveError::Source(_))), "{len} bytes: {sent:?}");
    }
}

#[tokio::test]
async fn a_denial_arrives_whatever_the_client_has_sent_behind_its_open() {
    let sides = Sides::new();
    let (mut client, mut server) = sides.links().await;
    let deny = Refusal {
        reason: Reason::PolicyDenied,
        policy: Some("shop/deny".into()),
        rule: None,
        text: "no".into(),
    };
    client.split().1.control(&Control::Open(open())).await.unwrap();
    send(&mut client, pattern(100_000)).await;
    server.next_open(Duration::from_secs(5)).await.unwrap();
    let close = tokio::spawn(server.close_with(Some(Control::Deny(deny.clone()))));
    let (mut reader, _) = client.split();
    match reader.receive().await.unwrap() {
        Received::Control(Control::Deny(received)) => assert_eq!(received, deny),
        other => panic!("{other:?}"),
    }
    drop(client);
    close.await.unwrap();
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
    let (client, mut server) = sides.links().await;
    drop(client);
    assert_eq!(server.next_open(Duration::from_secs(5)).await.unwrap(), None);
    let (mut client, mut server) = sides.links().await;
    client.split().1.control(&Control::Open(open())).await.unwrap();
    server.next_open(Duration::from_secs(5)).await.unwrap();
    drop(client);
    assert!(drain(&mut server).await.is_err());
}

#[tokio::test]
async fn garbage_on_the_wire_is_refused() {
    let sides = Sides::new();
    let (mut raw, server) = pair().await;
    raw.write_all(&[22, 3, 1, 0, 5, 1, 2, 3, 4, 5]).await.unwrap();
    let refused = accept(server, sides.server.server_config(), |_| unreachable!()).await;
    assert!(matches!(refused, Err(TunnelError::Handshake { .. })), "{refused:?}");
}

fn key(own: &SpiffeId) -> PoolKey {
    PoolKey {
        pod: "u".into(),
        source: "198.18.1.2".parse().unwrap(),
        destination: PodAddr("198.18.2.2:80".parse().unwrap()),
        peer: "p".into(),
        own: own.clone(),
        expected: id(SERVER),
    }
}

#[tokio::test]
async fn the_pool_gives_back_what_is_alive_and_only_for_the_same_pair() {
    let sides = Sides::new();
    let pool = Pool::default();
    let (client, server) = sides.links().await;
    pool.put(key(&id(CLIENT)), client);
    assert!(pool.take(&key(&id(SERVER))).is_none());
    let client = pool.take(&key(&id(CLIENT))).expect("it is alive");
    pool.put(key(&id(CLIENT)), client);
    server.close_with(None).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(pool.take(&key(&id(CLIENT))).is_none(), "its peer has closed it");
}

#[tokio::test]
async fn the_second_handshake_resumes() {
    let sides = Sides::new();
    let (mut client, mut server) = sides.links().await;
    assert!(!client.is_resumed());
    // The ticket comes with the server's first words.
    client.split().1.control(&Control::Open(open())).await.unwrap();
    server.next_open(Duration::from_secs(5)).await.unwrap();
    let (_, received) = tokio::join!(send(&mut server, pattern(10)), drain(&mut client));
    received.unwrap();
    let (client, server) = sides.links().await;
    assert!(client.is_resumed() && server.is_resumed());
    assert_eq!(server.peer().id, id(CLIENT));
}
