//! Those who prove nothing: many at once, or for long.

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpSocket,
    time::timeout,
};

use super::*;

/// A connection from a source that nobody else of a test has.
async fn stranger(addr: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    socket.connect(addr).await.unwrap()
}

#[tokio::test]
async fn a_crowd_from_one_source_costs_nobody_else_a_certificate() {
    let ca = Running::start().await;
    let (mut silent, mut sessions) = (Vec::new(), Vec::new());
    let name = || ServerName::try_from("ca.test").unwrap();
    for _ in 0..2 * server::MAX_EACH {
        let mut stream = stranger(ca.addr).await;
        // Half a record that never ends, or no word at all.
        stream.write_all(&[22, 3, 1]).await.unwrap();
        silent.push(stream);
    }
    for _ in 0..server::MAX_EACH / 2 {
        sessions.push(ca.tls(None).connect(name(), stranger(ca.addr).await).await.unwrap());
    }
    let begun = Instant::now();
    issue(&ca.issuer(), WEB).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    let mut open = 0;
    for stream in &mut silent {
        open += usize::from(timeout(Duration::from_millis(5), stream.read(&mut [0; 64])).await.is_err());
    }
    assert!(open <= server::MAX_EACH - sessions.len(), "{open} of one source are still open");
    // Beyond a rate, it does not get as far as a handshake.
    let mut turned_away = 0;
    for _ in 0..200 {
        let hello = ca.tls(None).connect(name(), stranger(ca.addr).await).await;
        turned_away += usize::from(hello.is_err());
    }
    assert!(turned_away > 50, "{turned_away} were turned away");
    issue(&ca.issuer(), WEB).await.expect("another source is not concerned");
    let metrics = ca.metrics.encode();
    for reason in ["rate", "handshake"] {
        let line = format!("ambit_ca_connections_dropped_total{{reason=\"{reason}\"}} ");
        assert!(metrics.contains(&line), "{metrics}");
    }
}

#[tokio::test]
async fn a_session_ends_that_proves_nothing_or_asks_nothing_any_more() {
    let patience = Patience {
        handshake: Duration::from_millis(300),
        proof: Duration::from_millis(600),
        idle: Duration::from_millis(1_500),
    };
    let ca = Running::run(TempDir::new().unwrap(), |_| (), patience).await;
    let begun = Instant::now();
    let mut silent = TcpStream::connect(ca.addr).await.unwrap();
    let mut scrap = Vec::new();
    let ended = timeout(Duration::from_secs(5), silent.read_to_end(&mut scrap)).await;
    assert!(ended.is_ok() && scrap.is_empty(), "a handshake that does not begin");
    let stream = TcpStream::connect(ca.addr).await.unwrap();
    let name = ServerName::try_from("ca.test").unwrap();
    let mut session = ca.tls(None).connect(name, stream).await.unwrap();
    let ended = timeout(Duration::from_secs(5), session.read_to_end(&mut scrap)).await;
    assert!(ended.is_ok(), "a session without a word is open still");
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());

    // Requests prove nothing that nobody who is known has made.
    let mut stranger = ca.raw(None);
    for _ in 0..8 {
        let refused =
            stranger.ask(Some("nobody-0123456789abcdef"), csr_pem(WEB), None, 60).await.unwrap_err();
        assert!(
            matches!(refused.code(), Code::Unauthenticated | Code::Unavailable | Code::Unknown),
            "{refused}"
        );
        sleep(Duration::from_millis(200)).await;
    }
    assert!(ca.dialled.load(Ordering::Relaxed) >= 2, "a stranger's session goes on and on");

    ca.dialled.store(0, Ordering::Relaxed);
    let mut agent = ca.raw(None);
    for (rest, expected) in [(0, 1), (900, 1), (900, 1), (2_500, 2)] {
        sleep(Duration::from_millis(rest)).await;
        agent.ask(Some(TOKEN), csr_pem(WEB), Some(WEB), 60).await.unwrap();
        assert_eq!(ca.dialled.load(Ordering::Relaxed), expected, "connections after a rest of {rest} ms");
    }
}
