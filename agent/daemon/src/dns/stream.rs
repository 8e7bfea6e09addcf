//! DNS over TCP (RFC 7766): messages with their length in front. Those that the agent answers do not go on; everything else does,
//! whole and in order, both ways.

use std::io;

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    select,
    sync::mpsc,
};

/// The agent's own answers that wait for the client to read.
const WAITING: usize = 16;

/// Carries messages between a client and a resolver until both have ended. `answer` is asked about each of the client's; `moved`
/// is told how many bytes came from the client and went to it.
pub(crate) async fn splice(
    client: impl AsyncRead + AsyncWrite + Unpin,
    server: impl AsyncRead + AsyncWrite + Unpin,
    answer: impl Fn(&[u8]) -> Option<Vec<u8>>,
    moved: impl Fn(usize, usize),
) -> io::Result<()> {
    let moved = &moved;
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_server, mut to_server) = tokio::io::split(server);
    let (own, mut answers) = mpsc::channel::<Vec<u8>>(WAITING);
    let asking = async move {
        let mut message = Vec::new();
        while read(&mut from_client, &mut message).await? {
            moved(message.len(), 0);
            match answer(&message[PREFIX..]) {
                // Nobody takes it only where the connection has failed.
                Some(answer) => drop(own.send(framed(&answer)).await),
                None => {
                    to_server.write_all(&message).await?;
                    to_server.flush().await?;
                }
            }
        }
        drop(own);
        to_server.shutdown().await
    };
    // A read that is given up in the middle of a message would lose what it has: it has a place of its own.
    let (forward, mut forwarded) = mpsc::channel::<Vec<u8>>(1);
    let reading = async move {
        let mut message = Vec::new();
        while read(&mut from_server, &mut message).await? {
            if forward.send(std::mem::take(&mut message)).await.is_err() {
                break;
            }
        }
        Ok(())
    };
    // With its end nobody waits any more for the agent's own answers to be taken.
    let answering = async move {
        loop {
            let message = select! {
                Some(message) = answers.recv() => message,
                message = forwarded.recv() => match message.or_else(|| answers.try_recv().ok()) {
                    Some(message) => message,
                    None => break,
                },
            };
            moved(0, message.len());
            to_client.write_all(&message).await?;
            to_client.flush().await?;
        }
        to_client.shutdown().await
    };
    tokio::try_join!(asking, reading, answering).map(drop)
}

const PREFIX: usize = 2;

/// The next message with its length; whether there was one. What ends in its middle is an error.
async fn read(from: &mut (impl AsyncRead + Unpin), message: &mut Vec<u8>) -> io::Result<bool> {
    let mut length = [0; PREFIX];
    if from.read(&mut length[..1]).await? == 0 {
        return Ok(false);
    }
    from.read_exact(&mut length[1..]).await?;
    message.clear();
    message.extend_from_slice(&length);
    message.resize(PREFIX + usize::from(u16::from_be_bytes(length)), 0);
    from.read_exact(&mut message[PREFIX..]).await?;
    Ok(true)
}

fn framed(message: &[u8]) -> Vec<u8> {
    let length = u16::try_from(message.len()).unwrap_or(u16::MAX).to_be_bytes();
    length.iter().chain(message).copied().collect()
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;

    async fn next(from: &mut (impl AsyncRead + Unpin)) -> Option<Vec<u8>> {
        let mut message = Vec::new();
        read(from, &mut message).await.unwrap().then(|| message[PREFIX..].to_vec())
    }

    #[tokio::test]
    async fn what_is_answered_here_does_not_go_on_and_the_rest_does_as_it_is() {
        let ((mut app, client), (server, mut resolver)) = (duplex(1 << 20), duplex(1 << 20));
        let answer = |query: &[u8]| query.starts_with(b"ours").then(|| b"answered".to_vec());
        let carried = tokio::spawn(async move { splice(client, server, answer, |_, _| {}).await });
        let long = vec![b'x'; 65_535];
        for query in [b"theirs 1".as_slice(), b"ours", &long] {
            app.write_all(&framed(query)).await.unwrap();
        }
        assert_eq!(next(&mut app).await.unwrap(), b"answered");
        assert_eq!(next(&mut resolver).await.unwrap(), b"theirs 1");
        assert_eq!(next(&mut resolver).await.unwrap(), long);
        resolver.write_all(&framed(b"from there")).await.unwrap();
        assert_eq!(next(&mut app).await.unwrap(), b"from there");
        // The client's end goes on, and so does the resolver's, with what it says last.
        app.shutdown().await.unwrap();
        assert_eq!(next(&mut resolver).await, None);
        resolver.write_all(&framed(b"late")).await.unwrap();
        resolver.shutdown().await.unwrap();
        assert_eq!(next(&mut app).await.unwrap(), b"late");
        assert_eq!(next(&mut app).await, None);
        carried.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_message_that_ends_in_its_middle_is_an_error() {
        let ((mut app, client), (server, _resolver)) = (duplex(64), duplex(64));
        app.write_all(&[0, 9, 1]).await.unwrap();
        app.shutdown().await.unwrap();
        let error = splice(client, server, |_| None, |_, _| {}).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
