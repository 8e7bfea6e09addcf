//! How a stream is cut: who is waited for until it knows why, and for how long.

use std::future::{pending, poll_fn};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::sleep,
};

use super::*;
use crate::tunnel::{
    session::{Leg as _, Stream},
    tests::{Sides, pair},
};

/// A stream of which as much is under way as sockets take, and the end of it that is about to cut it; answers how long that waits.
async fn cut_behind_much() -> (Stream, impl Future<Output = Duration>) {
    let (mut client, server) = Sides::new().streams().await;
    let (mut app, agent) = pair().await;
    tokio::spawn(async move { while app.write_all(&[7; 65_536]).await.is_ok() {} });
    let stuck = async { while !poll_fn(|cx| client.poll_send_from(cx, &agent)).await.unwrap().end {} };
    assert!(timeout(Duration::from_millis(300), stuck).await.is_err());
    (server, async move {
        let begun = Instant::now();
        client.close(Some(why())).await;
        begun.elapsed()
    })
}

fn why() -> Refusal {
    Refusal::new(Reason::PolicyDenied, "no")
}

#[tokio::test]
async fn who_takes_what_came_before_gets_to_why_a_stream_is_cut() {
    let (mut server, close) = cut_behind_much().await;
    // All in all this takes longer than it may take nothing.
    let slowly = async {
        let mut room = vec![0; 1 << 17];
        loop {
            sleep(Duration::from_millis(10)).await;
            match server.read(&mut room).await {
                Ok(read) => assert_ne!(read, 0, "no end was sent"),
                Err(error) => break error,
            }
        }
    };
    let (waited, error) = tokio::join!(close, slowly);
    let told = error.get_ref().and_then(|told| told.downcast_ref());
    assert!(matches!(told, Some(LegError::Reset(told)) if *told == why()), "{error:?} after {waited:?}");
    assert!(waited > LOOKS * LOOK, "{waited:?}: there was not much in front of it");
}

#[tokio::test]
async fn who_takes_nothing_is_not_waited_for() {
    let (server, close) = cut_behind_much().await;
    let waited = close.await;
    assert!((LOOKS * LOOK..FAREWELL / 2).contains(&waited), "{waited:?}");
    drop(server);
}

#[tokio::test]
async fn who_goes_on_taking_is_waited_for_a_second() {
    let (near, mut far) = pair().await;
    let mut room = [0; 64];
    let begun = Instant::now();
    let said = tokio::select! {
        said = while_taken(&near, pending::<()>()) => said,
        () = async { while near.try_write(b"more").is_ok() { sleep(Duration::from_millis(5)).await } } => Some(()),
        () = async { while far.read(&mut room).await.is_ok() {} } => Some(()),
    };
    assert_eq!(said, None, "it was told before");
    assert!((FAREWELL..2 * FAREWELL).contains(&begun.elapsed()), "{:?}", begun.elapsed());
}
