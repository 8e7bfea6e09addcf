//! Streams with a bundle beside them, over loopback.

use std::{future::poll_fn, time::Duration};

use ambit_core::{
    frame::parcel::{HEADER_LEN, WINDOW},
    model::PodAddr,
    reason::{Reason, Refusal},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    task::JoinHandle,
    time::timeout,
};

use super::*;
use crate::{
    identity::testing::id,
    telemetry::BundleCounts,
    tunnel::{
        Incoming, Leg, LegError, Stream, TunnelError,
        tests::{Sides, incoming, pair, pattern},
    },
};

const SOON: Duration = Duration::from_secs(20);
const LONG: Duration = Duration::from_secs(60);

/// The bundles of two agents.
struct Ends {
    sides: Sides,
    client: Bundles,
    server: Bundles,
}

fn key() -> PoolKey {
    PoolKey {
        pod: "a".into(),
        source: [198, 18, 0, 1].into(),
        destination: PodAddr("198.18.0.2:80".parse().unwrap()),
        peer: "b".into(),
        own: id("spiffe://cluster.local/ns/shop/sa/web"),
        expected: id("spiffe://cluster.local/ns/shop/sa/cart").into(),
    }
}

fn served() -> Served {
    Served {
        pod: "b".into(),
        source: [198, 18, 0, 1].into(),
        peer: id("spiffe://cluster.local/ns/shop/sa/web"),
    }
}

/// A bundle's connection: the tasks that carry its two ends.
type Carried = [JoinHandle<Result<(), LegError>>; 2];

impl Ends {
    fn new() -> Self {
        let bundles = || Bundles::new(Bundling::Force);
        Self { sides: Sides::new(), client: bundles(), server: bundles() }
    }

    /// Both ends of a stream that has said one word each way.
    async fn stream(&self) -> (Stream, Stream) {
        let (client, mut server) = self.sides.sessions().await;
        let strand = self.client.join(&key());
        let opening = Incoming { strand: strand.as_ref().map(Strand::name), ..incoming() };
        let mut client = client.open(opening, strand);
        client.write_all(b"hi").await.unwrap();
        client.flush().await.unwrap();
        let id = server.next(SOON).await.unwrap().unwrap().strand.unwrap();
        let mut server = server.accept_stream(self.server.enter(&served(), id));
        say(&mut server, b"hi").await;
        for stream in [&mut client, &mut server] {
            assert_eq!(hear(stream, 2).await, b"hi");
        }
        (client, server)
    }

    /// Their bundle, connected.
    async fn connect(&self) -> Carried {
        let (client, mut server) = self.sides.sessions().await;
        let here = lock(&self.client.dialled)[&key()].clone();
        let mut client = client.open(Incoming { strand: Some(here.name()), ..incoming() }, None);
        client.flush().await.unwrap();
        let id = server.next(SOON).await.unwrap().unwrap().strand.unwrap();
        let there = self.server.serve(&served(), id).unwrap();
        let mut server = server.accept_stream(None);
        server.flush().await.unwrap();
        client.confirmed(false).await.unwrap();
        let carried = [
            tokio::spawn({
                let here = here.clone();
                async move { carry(&here, &mut client, LONG, &BundleCounts::default()).await }
            }),
            tokio::spawn({
                let there = there.clone();
                async move { carry(&there, &mut server, LONG, &BundleCounts::default()).await }
            }),
        ];
        while [&here, &there].iter().any(|bundle| lock(&bundle.state).stand != Stand::Up) {
            tokio::task::yield_now().await;
        }
        carried
    }
}

async fn say(stream: &mut Stream, bytes: &[u8]) {
    stream.write_all(bytes).await.unwrap();
    stream.flush().await.unwrap();
}

async fn hear(stream: &mut Stream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    timeout(SOON, stream.read_exact(&mut bytes)).await.expect("it should have come").unwrap();
    bytes
}

/// How many parcels a stream has sent.
fn sent(stream: &Stream) -> u32 {
    let Stream::Ambit1(stream) = stream;
    stream.strand().unwrap().sent
}

#[tokio::test]
async fn small_messages_of_many_streams_go_over_one_connection() {
    let ends = Ends::new();
    let mut streams = Vec::new();
    for _ in 0..12 {
        streams.push(ends.stream().await);
    }
    let [client, server] = ends.connect().await;
    for round in 0..50_u32 {
        for (at, (client, server)) in streams.iter_mut().enumerate() {
            let word = format!("{at} in round {round}");
            say(client, word.as_bytes()).await;
            assert_eq!(hear(server, word.len()).await, word.as_bytes());
            say(server, word.as_bytes()).await;
            assert_eq!(hear(client, word.len()).await, word.as_bytes());
        }
    }
    for (client, server) in &mut streams {
        assert_eq!((sent(client), sent(server)), (50, 50));
        assert_eq!(client.write(b"").await.unwrap(), 0);
        assert_eq!(sent(client), 50, "nothing is no message");
    }
    // The end comes behind all that was said.
    for (client, server) in &mut streams {
        say(client, b"bye").await;
        client.shutdown().await.unwrap();
        let mut last = Vec::new();
        timeout(SOON, server.read_to_end(&mut last)).await.unwrap().unwrap();
        assert_eq!(last, b"bye");
    }
    lock(&ends.client.dialled)[&key()].end();
    assert!(client.await.unwrap().is_ok() && server.await.unwrap().is_ok());
    drop(streams);
    ends.client.sweep();
    ends.server.sweep();
    assert!(lock(&ends.client.dialled).is_empty() && lock(&ends.server.served).is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_keep_their_order_whichever_way_they_take() {
    let ends = Ends::new();
    let (mut client, server) = ends.stream().await;
    let (other, _other) = ends.stream().await;
    let mut carried = ends.connect().await;
    let sizes = [1, 100, 4096, 4097, 3, 70_000, 5, 6, 7, 8, 9, 20_000, 4096, 4096, 4096, 2];
    let all = pattern(sizes.iter().sum::<usize>() * 40);
    let expected = all.clone();
    let (mut hearing, mut answering) = tokio::io::split(server);
    let echo = tokio::spawn(async move { tokio::io::copy(&mut hearing, &mut answering).await });
    let mut left = all.as_slice();
    let mut received = Vec::new();
    for (turn, size) in sizes.iter().cycle().take(sizes.len() * 40).enumerate() {
        if turn == sizes.len() * 20 {
            // The bundle ends in good order, and another takes its place.
            lock(&ends.client.dialled)[&key()].end();
            for end in carried {
                end.await.unwrap().unwrap();
            }
            carried = ends.connect().await;
        }
        let (front, rest) = left.split_at(*size);
        left = rest;
        // Several behind one another before anything is read, so that what waits goes both ways.
        say(&mut client, front).await;
        if turn % 3 == 0 {
            let mut bytes = vec![0; 100_000];
            let read = timeout(SOON, client.read(&mut bytes)).await.unwrap().unwrap();
            received.extend_from_slice(&bytes[..read]);
        }
    }
    let parcels = sent(&client);
    client.shutdown().await.unwrap();
    let rest = hear(&mut client, expected.len() - received.len()).await;
    received.extend(rest);
    assert!(received == expected, "{} of {} bytes", received.len(), expected.len());
    assert!(parcels > 20, "{parcels} parcels");
    echo.await.unwrap().unwrap();
    drop((other, carried));
}

#[tokio::test]
async fn who_does_not_read_holds_up_nobody_else() {
    let ends = Ends::new();
    let (mut slow, _unread) = ends.stream().await;
    let (mut client, mut server) = ends.stream().await;
    let _carried = ends.connect().await;
    for _ in 0..100 {
        say(&mut slow, &[7; 1000]).await;
        say(&mut client, b"quick").await;
        assert_eq!(hear(&mut server, 5).await, b"quick");
        say(&mut server, b"quick").await;
        assert_eq!(hear(&mut client, 5).await, b"quick");
    }
    assert_eq!(sent(&slow), WINDOW, "the rest takes the stream's own connection");
}

#[tokio::test]
async fn a_bundle_that_breaks_off_breaks_what_may_be_lost_and_nothing_else() {
    let ends = Ends::new();
    let (mut quiet, mut far_quiet) = ends.stream().await;
    let (mut lost, mut far_lost) = ends.stream().await;
    let carried = ends.connect().await;
    say(&mut lost, b"heard").await;
    assert_eq!(hear(&mut far_lost, 5).await, b"heard");
    carried.iter().for_each(JoinHandle::abort);
    for end in carried {
        assert!(end.await.is_err_and(|error| error.is_cancelled()));
    }
    // Nobody has told this one that its word has arrived.
    let broken = poll_fn(|cx| Leg::poll_readable(&mut lost, cx)).await;
    assert!(matches!(broken, Err(LegError::Tunnel(TunnelError::Closed))), "{broken:?}");
    // This one had nothing on the way, and goes on over its own connection.
    for _ in 0..5 {
        say(&mut quiet, b"still here").await;
        assert_eq!(hear(&mut far_quiet, 10).await, b"still here");
    }
    let _carried = ends.connect().await;
    say(&mut quiet, b"and now").await;
    assert_eq!(hear(&mut far_quiet, 7).await, b"and now");
    assert_eq!(sent(&quiet), 0, "what has met a break keeps away from bundles");
    let (mut new, mut far_new) = ends.stream().await;
    say(&mut new, b"again").await;
    assert_eq!(hear(&mut far_new, 5).await, b"again");
    assert_eq!(sent(&new), 1);
}

/// A client that says over the bundle of `stream`, a server's end, what the test likes, and what becomes of that bundle.
async fn hostile(ends: &Ends, stream: &Stream) -> (Stream, JoinHandle<Result<(), LegError>>) {
    let (client, mut server) = ends.sides.sessions().await;
    let Stream::Ambit1(stream) = stream;
    let bundle = stream.strand().unwrap().bundle().clone();
    let mut client = client.open(Incoming { strand: Some(bundle.name()), ..incoming() }, None);
    client.flush().await.unwrap();
    server.next(SOON).await.unwrap();
    let mut server = server.accept_stream(None);
    server.flush().await.unwrap();
    let carried = async move { carry(&bundle, &mut server, LONG, &BundleCounts::default()).await };
    (client, tokio::spawn(carried))
}

/// A parcel for `stream` of one byte, and how many bytes of its own connection come before it.
fn parcel(stream: &Stream, before: u64) -> Vec<u8> {
    let Stream::Ambit1(stream) = stream;
    let head = Head { strand: stream.strand().unwrap().name().number, taken: 0, before, len: 1 };
    [head.encode().as_slice(), b"x"].concat()
}

#[tokio::test]
async fn a_peer_that_sends_more_than_it_may_is_cut() {
    let ends = Ends::new();
    let (_near, far) = ends.stream().await;
    let (mut client, carried) = hostile(&ends, &far).await;
    for _ in 0..WINDOW + 1 {
        client.write_all(&parcel(&far, u64::MAX)).await.unwrap();
    }
    client.flush().await.unwrap();
    let ended = timeout(SOON, carried).await.unwrap().unwrap();
    assert!(matches!(ended, Err(LegError::Tunnel(TunnelError::Unexpected("parcel")))), "{ended:?}");
}

#[tokio::test]
async fn what_has_come_in_front_of_nonsense_is_heard() {
    let ends = Ends::new();
    let (_near, mut far) = ends.stream().await;
    let (mut client, carried) = hostile(&ends, &far).await;
    let said = [parcel(&far, 2), vec![0; HEADER_LEN]].concat();
    // In a task of its own, which nothing else wakes.
    let heard = tokio::spawn(async move { far.read_u8().await });
    tokio::time::sleep(Duration::from_millis(20)).await;
    say(&mut client, &said).await;
    let ended = timeout(SOON, carried).await.unwrap().unwrap();
    assert_eq!(timeout(SOON, heard).await.expect("it is woken").unwrap().unwrap(), b'x');
    assert!(matches!(ended, Err(LegError::Tunnel(TunnelError::Parcel(_)))), "{ended:?}");
}

#[tokio::test]
async fn nobody_gets_a_word_into_a_stream_of_somebody_else() {
    let ends = Ends::new();
    let (_client, server) = ends.stream().await;
    let Stream::Ambit1(stream) = &server;
    let name = stream.strand().unwrap().name();
    let stranger = Served { peer: id("spiffe://cluster.local/ns/shop/sa/evil"), ..served() };
    let theirs = ends.server.serve(&stranger, name).unwrap();
    assert!(lock(&theirs.state).inboxes.is_empty());
    let elsewhere = Served { source: [198, 18, 0, 9].into(), ..served() };
    assert!(lock(&ends.server.serve(&elsewhere, name).unwrap().state).inboxes.is_empty());
    assert!(ends.server.enter(&served(), name).is_none(), "the name is taken");
    let itself = StrandId { number: 0, ..name };
    assert!(ends.server.enter(&served(), itself).is_none(), "that is the bundle");
}

#[tokio::test]
async fn nothing_is_bundled_that_either_end_does_not_want() {
    let off = Bundles::new(Bundling::Off);
    assert!(off.join(&key()).is_none());
    assert!(off.serve(&served(), StrandId { bundle: 1, number: 0 }).is_none());
    // A server that does not bundle, as those before it.
    let ends = Ends { server: off, ..Ends::new() };
    let (mut client, mut server) = ends.stream().await;
    say(&mut client, b"word").await;
    assert_eq!(hear(&mut server, 4).await, b"word");
    assert_eq!(sent(&client), 0);
}

#[test]
fn a_bundle_is_kept_by_one_once_there_are_many_streams() {
    let bundles = Bundles::new(Bundling::Auto);
    let mut strands: Vec<Strand> = (1..MANY).map(|_| bundles.join(&key()).unwrap()).collect();
    assert!(!strands[0].bundle().is_to_be_kept());
    strands.push(bundles.join(&key()).unwrap());
    assert!(strands[0].bundle().is_to_be_kept());
    assert!(!strands[1].bundle().is_to_be_kept(), "somebody does");
    let mut numbers: Vec<u32> = strands.iter().map(|strand| strand.name().number).collect();
    numbers.dedup();
    assert_eq!(numbers.len(), MANY);
}

#[tokio::test]
async fn who_has_ended_says_nothing_more_of_what_it_gets() {
    let ends = Ends::new();
    let (mut client, mut server) = ends.stream().await;
    let (_other, _far) = ends.stream().await;
    let _carried = ends.connect().await;
    client.shutdown().await.unwrap();
    let mut nothing = Vec::new();
    timeout(SOON, server.read_to_end(&mut nothing)).await.unwrap().unwrap();
    // Parcels may still come the other way, and be taken.
    say(&mut server, b"late").await;
    assert_eq!(hear(&mut client, 4).await, b"late");
    assert_eq!(sent(&server), 1);
    let cut = Refusal::new(Reason::Reset, "gone");
    tokio::spawn(client.close(Some(cut)));
    let (_app, agent) = pair().await;
    let ended = timeout(SOON, poll_fn(|cx| Leg::poll_send_from(&mut server, cx, &agent))).await;
    assert!(matches!(ended, Ok(Err(LegError::Reset(_)))), "{ended:?}");
}

#[test]
fn nobody_else_keeps_it_before_who_did_has_left() {
    let bundles = Bundles::new(Bundling::Force);
    let join = || [0; 2].map(|_| bundles.join(&key()).unwrap());
    let strands = join();
    let bundle = strands[0].bundle().clone();
    assert!(bundle.is_to_be_kept());
    drop(strands);
    let wanted = bundle.poll_wanted(&mut Context::from_waker(Waker::noop()));
    assert_eq!(wanted, Poll::Ready(false), "there are no streams");
    let _strands = join();
    assert!(!bundle.is_to_be_kept(), "two connections would break each other off");
    bundle.give_up();
    assert!(bundle.is_to_be_kept());
}
