//! Relays over loopback: sessions at both ends of the tunnel, and an application at each end of the whole.

use std::{cell::Cell, io, sync::Arc, time::Duration};

use ambit_core::reason::{Reason, Refusal};
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, Interest},
    task::JoinHandle,
    time::timeout,
};

use super::{super::BusyPoll, *};
use crate::tunnel::{
    Plain, Share, TunnelError,
    session::Stream,
    tests::{Sides, incoming, pair, pattern},
};

const SOON: Duration = Duration::from_secs(5);

#[derive(Default)]
struct Counts {
    sent: Cell<u64>,
    got: Cell<u64>,
}

impl Meter for Counts {
    fn app_sent(&self, bytes: u64) {
        self.sent.set(self.sent.get() + bytes);
    }

    fn app_got(&self, bytes: u64) {
        self.got.set(self.got.get() + bytes);
    }
}

/// A relay that runs, and its state once it has ended.
type Running = JoinHandle<(Result<(), LegError>, Direction, Direction)>;

fn start<L: Leg + Send + 'static>(mut relay: Relay<L>, tell: impl Fn(L) + Send + 'static) -> Running {
    tokio::spawn(async move {
        let ended = relay.run(&mut Looks::new(&BusyPoll::default()), &Silent).await;
        let (up, down) = relay.directions();
        if ended.is_err() {
            // As the proxy does: the application's socket resets when it is dropped, the peer is told.
            tell(relay.into_leg());
        }
        (ended, up, down)
    })
}

struct Silent;

impl Meter for Silent {
    fn app_sent(&self, _: u64) {}
    fn app_got(&self, _: u64) {}
}

/// The whole way: a client, its agent, the server's agent, a server.
struct Way {
    client: TcpStream,
    server: TcpStream,
    relays: [Running; 2],
    share: Arc<Share>,
}

fn resets(socket: &TcpStream) {
    SockRef::from(socket).set_linger(Some(Duration::ZERO)).unwrap();
}

async fn way() -> Way {
    let sides = Sides::new();
    let (client_stream, server_stream) = sides.streams().await;
    let (client, outer) = pair().await;
    let (server, inner) = pair().await;
    for socket in [&outer, &inner] {
        resets(socket);
    }
    let tell = |stream: Stream| drop(tokio::spawn(stream.close(Some(Refusal::new(Reason::Reset, "cut")))));
    let relays =
        [start(Relay::new(outer, client_stream), tell), start(Relay::new(inner, server_stream), tell)];
    Way { client, server, relays, share: sides.share.clone() }
}

async fn read_all(socket: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    timeout(SOON, socket.read_to_end(&mut bytes)).await.expect("in time")?;
    Ok(bytes)
}

#[tokio::test]
async fn each_direction_ends_by_itself() {
    let Way { mut client, mut server, relays, share } = way().await;
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(read_all(&mut server).await.unwrap(), b"question");
    let answer = pattern(1_000_000);
    let write = async {
        server.write_all(&answer).await.unwrap();
        server.shutdown().await.unwrap();
    };
    let (_, got) = tokio::join!(write, read_all(&mut client));
    assert!(got.unwrap() == answer);
    let [outer, inner] = relays;
    let (ended, up, down) = outer.await.unwrap();
    ended.unwrap();
    assert_eq!(up, Direction { bytes: 8, ended: true });
    assert_eq!(down, Direction { bytes: 1_000_000, ended: true });
    inner.await.unwrap().0.unwrap();
    assert_eq!(share.used(), 0);
}

#[tokio::test]
async fn both_directions_move_at_once() {
    let Way { client, server, relays, .. } = way().await;
    let bytes = pattern(3_000_000);
    let (mut client_read, mut client_write) = client.into_split();
    let (mut server_read, mut server_write) = server.into_split();
    let (mut up, mut down) = (vec![0; bytes.len()], vec![0; bytes.len()]);
    let all = async {
        tokio::try_join!(
            async { client_write.write_all(&bytes).await },
            async { server_write.write_all(&bytes).await },
            async { server_read.read_exact(&mut up).await.map(drop) },
            async { client_read.read_exact(&mut down).await.map(drop) },
        )
    };
    timeout(SOON, all).await.expect("neither waits for the other").unwrap();
    assert!(up == bytes && down == bytes);
    drop((client_read, client_write, server_read, server_write));
    for relay in relays {
        timeout(SOON, relay).await.expect("it ends").unwrap().0.unwrap();
    }
}

/// How far a connection has come when it is reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Point {
    Idle,
    DataUp,
    DataBoth,
    HalfClosed,
    OtherHalfClosed,
}

#[tokio::test]
async fn a_reset_is_a_reset_at_the_other_end_whenever_it_comes() {
    for by_client in [true, false] {
        for point in [Point::Idle, Point::DataUp, Point::DataBoth, Point::HalfClosed, Point::OtherHalfClosed]
        {
            let Way { client, server, relays, .. } = way().await;
            let (mut one, mut other) = if by_client { (client, server) } else { (server, client) };
            let mut got = [0; 4];
            if point != Point::Idle {
                one.write_all(b"data").await.unwrap();
                other.read_exact(&mut got).await.unwrap();
            }
            if point == Point::DataBoth {
                other.write_all(b"back").await.unwrap();
                one.read_exact(&mut got).await.unwrap();
            }
            if point == Point::HalfClosed {
                one.shutdown().await.unwrap();
                assert_eq!(other.read(&mut got).await.unwrap(), 0);
            }
            if point == Point::OtherHalfClosed {
                other.shutdown().await.unwrap();
                assert_eq!(one.read(&mut got).await.unwrap(), 0);
            }
            resets(&one);
            drop(one);
            if point == Point::HalfClosed {
                // Its reading end was over: the reset shows when it is written to.
                for _ in 0..100 {
                    if other.write_all(b"more").await.is_err() {
                        break;
                    }
                    sleep(Duration::from_millis(5)).await;
                }
                assert!(other.write_all(b"more").await.is_err(), "{point:?} by client: {by_client}");
            } else {
                let seen = read_all(&mut other).await.unwrap_err();
                assert_eq!(seen.kind(), io::ErrorKind::ConnectionReset, "{point:?}, client: {by_client}");
            }
            let [outer, inner] = relays.map(|relay| timeout(SOON, relay));
            let (outer, inner) = (outer.await.unwrap().unwrap().0, inner.await.unwrap().unwrap().0);
            let (near, far) = if by_client { (outer, inner) } else { (inner, outer) };
            assert!(matches!(near, Err(LegError::App(_))), "{point:?}: {near:?}");
            assert!(
                matches!(far, Err(LegError::Reset(Refusal { reason: Reason::Reset, .. }) | LegError::App(_))),
                "{point:?}: {far:?}"
            );
        }
    }
}

#[tokio::test]
async fn a_dead_agent_is_a_failed_tunnel_for_the_other() {
    let sides = Sides::new();
    let (client_stream, server_stream) = sides.streams().await;
    let (_client, outer) = pair().await;
    let relay = start(Relay::new(outer, client_stream), drop);
    drop(server_stream);
    let ended = timeout(SOON, relay).await.unwrap().unwrap().0;
    assert!(matches!(ended, Err(LegError::Tunnel(TunnelError::Closed | TunnelError::Io(_)))), "{ended:?}");
}

#[tokio::test]
async fn a_slow_reader_gets_everything() {
    let Way { mut client, mut server, .. } = way().await;
    let sent = pattern(8_000_000);
    let bytes = sent.clone();
    let write = tokio::spawn(async move {
        client.write_all(&bytes).await.unwrap();
        client.shutdown().await.unwrap();
    });
    sleep(Duration::from_millis(100)).await;
    let mut got = Vec::new();
    let mut some = vec![0; 100_000];
    loop {
        match timeout(SOON, server.read(&mut some)).await.expect("in time").unwrap() {
            0 => break,
            read => got.extend_from_slice(&some[..read]),
        }
        sleep(Duration::from_millis(1)).await;
    }
    write.await.unwrap();
    assert!(got == sent);
}

#[tokio::test]
async fn connections_whose_readers_are_stuck_hold_little_and_leave_room_for_others() {
    const STUCK: usize = 150;
    let share = Share::alone();
    let mut ends = Vec::new();
    let mut relays = Vec::new();
    for _ in 0..STUCK {
        let (mut client, outer) = pair().await;
        let (server, inner) = pair().await;
        for socket in [&client, &outer, &server, &inner] {
            SockRef::from(socket).set_send_buffer_size(16_384).unwrap();
            SockRef::from(socket).set_recv_buffer_size(16_384).unwrap();
        }
        relays.push(start(Relay::new(outer, Plain::new(inner, share.clone())), drop));
        let write = tokio::spawn(async move {
            let _ = client.write_all(&vec![1; 1 << 20]).await;
        });
        ends.push((server, write));
    }
    let started = Instant::now();
    let mut before = 0;
    while started.elapsed() < Duration::from_secs(2) && (before == 0 || share.used() != before) {
        before = share.used();
        sleep(Duration::from_millis(100)).await;
    }
    assert!(share.used() > 0, "they are stuck");
    assert!(share.used() <= (8 << 20) + STUCK * 19 * 1024, "{}", share.used());
    // One more, whose reader reads.
    let (mut client, outer) = pair().await;
    let (mut server, inner) = pair().await;
    let relay = start(Relay::new(outer, Plain::new(inner, share.clone())), drop);
    let sent = pattern(500_000);
    let write = async {
        client.write_all(&sent).await.unwrap();
        client.shutdown().await.unwrap();
    };
    let (_, got) = tokio::join!(write, read_all(&mut server));
    assert!(got.unwrap() == sent);
    drop(server);
    relay.await.unwrap().0.unwrap();
    for ((server, write), relay) in ends.into_iter().zip(relays) {
        write.abort();
        drop(server);
        let _ = timeout(SOON, relay).await.expect("it ends");
    }
    assert_eq!(share.used(), 0);
}

#[tokio::test]
async fn the_answer_waits_for_the_first_bytes_but_not_for_long() {
    let sides = Sides::new();
    let (client, mut server) = sides.sessions().await;
    let mut client = client.open(incoming(), None);
    client.flush().await.unwrap();
    server.next(SOON).await.unwrap();
    let (_app, agent) = pair().await;
    let started = Instant::now();
    let mut relay = Relay::new(agent, server.accept_stream(None));
    assert!(relay.leg.holds_answer());
    let counts = Counts::default();
    assert!(
        timeout(Duration::from_millis(100), relay.run(&mut Looks::new(&BusyPoll::default()), &counts))
            .await
            .is_err()
    );
    assert!(!relay.leg.holds_answer() && started.elapsed() >= ANSWER);
    assert_eq!((counts.sent.get(), counts.got.get()), (0, 0));
}

/// What costs as much as a packet is left to those that wait for long.
#[tokio::test]
async fn only_an_application_that_stays_half_closed_is_asked_whether_it_is_still_there() {
    let sides = Sides::new();
    let (stream, _server) = sides.streams().await;
    let (mut app, agent) = pair().await;
    let mut relay = Relay::new(agent, stream);
    app.write_all(b"question").await.unwrap();
    app.shutdown().await.unwrap();
    assert!(
        timeout(HALF_CLOSED / 2, relay.run(&mut Looks::new(&BusyPoll::default()), &Silent)).await.is_err()
    );
    assert_eq!(relay.directions().0, Direction { bytes: 8, ended: true });
    assert!(!SockRef::from(&relay.app).keepalive().unwrap(), "not yet");
    assert!(
        timeout(2 * HALF_CLOSED, relay.run(&mut Looks::new(&BusyPoll::default()), &Silent)).await.is_err()
    );
    assert!(SockRef::from(&relay.app).keepalive().unwrap());
}

#[tokio::test]
async fn a_relay_that_was_stopped_goes_on_where_it_was() {
    let sides = Sides::new();
    let (client_stream, server_stream) = sides.streams().await;
    let (client, outer) = pair().await;
    let (mut server, inner) = pair().await;
    let inner = start(Relay::new(inner, server_stream), drop);
    let sent = pattern(4_000_000);
    let bytes = sent.clone();
    let write = tokio::spawn(async move {
        let mut client = client;
        client.write_all(&bytes).await.unwrap();
        client.shutdown().await.unwrap();
        client
    });
    let counts = Counts::default();
    let mut relay = Relay::new(outer, client_stream);
    let stopped = async {
        while timeout(Duration::from_millis(1), relay.run(&mut Looks::new(&BusyPoll::default()), &counts))
            .await
            .is_err()
        {}
    };
    let end = async {
        let got = read_all(&mut server).await.unwrap();
        server.shutdown().await.unwrap();
        got
    };
    let (_, got) = tokio::join!(stopped, end);
    assert!(got == sent);
    assert_eq!(counts.sent.get(), 4_000_000);
    inner.await.unwrap().0.unwrap();
    write.await.unwrap();
}

/// Writes until nothing is taken for a while; answers how much was.
async fn stuff(socket: &mut TcpStream) -> usize {
    let chunk = vec![7; 64 << 10];
    let mut taken = 0;
    while let Ok(wrote) = timeout(Duration::from_millis(300), socket.write(&chunk)).await {
        taken += wrote.unwrap();
    }
    taken
}

#[tokio::test]
async fn a_reset_is_seen_at_once_where_nobody_reads() {
    for by_client in [true, false] {
        let Way { client, server, relays, share } = way().await;
        let (mut one, other) = if by_client { (client, server) } else { (server, client) };
        stuff(&mut one).await;
        let reset = Instant::now();
        resets(&one);
        drop(one);
        timeout(SOON, other.ready(Interest::ERROR)).await.expect("in time").unwrap();
        assert!(reset.elapsed() < Duration::from_millis(500), "only after {:?}", reset.elapsed());
        for relay in relays {
            timeout(SOON, relay).await.expect("it ends").unwrap().0.unwrap_err();
        }
        assert_eq!(share.used(), 0);
    }
}

#[tokio::test]
async fn who_is_gone_after_its_end_is_noticed_by_the_first_write() {
    for by_client in [true, false] {
        let Way { client, server, .. } = way().await;
        let (one, mut other) = if by_client { (client, server) } else { (server, client) };
        // Closed, both ways: the other end sees the end of what comes, and may not know more before it writes.
        drop(one);
        assert_eq!(other.read(&mut [0; 8]).await.unwrap(), 0);
        other.write_all(b"into the void").await.unwrap();
        timeout(SOON, other.ready(Interest::ERROR)).await.expect("without another write").unwrap();
        assert!(other.write_all(b"again").await.is_err());
    }
}

#[tokio::test]
async fn what_was_said_before_a_reset_arrives() {
    for round in 0..20 {
        for by_client in [true, false] {
            let Way { client, server, .. } = way().await;
            let (mut one, mut other) = if by_client { (client, server) } else { (server, client) };
            // What comes back is not read: the kernel makes a RST of the close.
            other.write_all(b"unread").await.unwrap();
            let sent = pattern(100_000 + 1_000 * round);
            one.write_all(&sent).await.unwrap();
            // What it does not read is there, and what it has sent has gone.
            one.readable().await.unwrap();
            sleep(Duration::from_millis(5)).await;
            drop(one);
            let mut got = Vec::new();
            let ended = timeout(SOON, other.read_to_end(&mut got)).await.expect("in time");
            assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
            assert_eq!(got.len(), sent.len(), "round {round}, by client: {by_client}");
        }
    }
}

#[tokio::test]
async fn what_was_said_arrives_though_the_answer_to_it_cannot() {
    for by_client in [true, false] {
        let Way { client, server, .. } = way().await;
        let (mut one, mut other) = if by_client { (client, server) } else { (server, client) };
        let sent = pattern(300_000);
        let answers = async {
            let mut got = Vec::new();
            let mut some = vec![0; 1000];
            let mut refused = None;
            loop {
                match timeout(SOON, other.read(&mut some)).await.expect("in time") {
                    // The kernel tells a reset once.
                    Ok(0) => return (got, refused.expect("an end that is none")),
                    Ok(read) => got.extend_from_slice(&some[..read]),
                    Err(error) => return (got, error),
                }
                // It answers each piece, to one that has closed by then.
                if let Err(error) = other.try_write(b"answer") {
                    refused = Some(error);
                }
            }
        };
        let asks = async {
            one.write_all(&sent).await.unwrap();
            sleep(Duration::from_millis(2)).await;
            resets(&one);
            drop(one);
        };
        let ((got, error), ()) = tokio::join!(answers, asks);
        let reset = [io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe];
        assert!(reset.contains(&error.kind()), "{error:?}");
        println!("{} of {} bytes", got.len(), sent.len());
    }
}
