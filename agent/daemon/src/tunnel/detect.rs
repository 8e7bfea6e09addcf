//! What the first bytes of an inbound connection are: a tunnel of ours, or plaintext (an application's own TLS is
//! plaintext here). They are only peeked at: whoever goes on with the connection reads them again.

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _},
    time::Duration,
};

use nix::sys::socket::{MsgFlags, recv};
use rustls::server::Acceptor;
use tokio::{
    io::Interest,
    net::TcpStream,
    time::{Instant, timeout_at},
};

use super::tls::ALPN;

/// Bytes of a ClientHello that are looked at. One of ours, post-quantum key share included, has less than 2,000.
const LOOK: usize = 4096;

/// What a connection begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum First {
    /// A TLS ClientHello that offers `ambit/1`.
    Tunnel,
    /// Anything else.
    Plaintext,
    /// Nothing, until the time was up.
    Silence,
    /// The client closed without a word.
    Closed,
}

/// Waits up to `patience` for the first bytes, and leaves them where they are. Looks once for each arrival.
pub(crate) async fn first_bytes(stream: &TcpStream, patience: Duration) -> io::Result<First> {
    let deadline = Instant::now() + patience;
    match timeout_at(deadline, stream.async_io(Interest::READABLE, || peek(stream))).await {
        Err(_) => Ok(First::Silence),
        Ok(Err(error)) => Err(error),
        Ok(Ok(Some(first))) => Ok(first),
        // A ClientHello cut in two. Half of one is no reason to wait for ever.
        Ok(Ok(None)) => match timeout_at(deadline, Box::pin(rest(stream))).await {
            Ok(first) => first,
            Err(_) => Ok(First::Plaintext),
        },
    }
}

/// Looks again whenever more has come. Through another descriptor: the stream itself is to stay readable, as it is.
async fn rest(stream: &TcpStream) -> io::Result<First> {
    let other: std::net::TcpStream = stream.as_fd().try_clone_to_owned()?.into();
    let other = TcpStream::from_std(other)?;
    let look = || peek(&other)?.ok_or_else(|| io::ErrorKind::WouldBlock.into());
    other.async_io(Interest::READABLE, look).await
}

/// What it is by the bytes that are there; `None` while that is open.
fn peek(socket: &impl AsFd) -> io::Result<Option<First>> {
    let mut bytes = [0; LOOK];
    let len = recv(socket.as_fd().as_raw_fd(), &mut bytes, MsgFlags::MSG_PEEK)?;
    Ok(if len == 0 { Some(First::Closed) } else { judge(&bytes[..len]) })
}

/// What begins with these bytes; `None` while that is open. What has been decided once, more bytes do not change.
pub(crate) fn judge(bytes: &[u8]) -> Option<First> {
    let looked_at = &bytes[..bytes.len().min(LOOK)];
    match look(looked_at) {
        Look::Tunnel => Some(First::Tunnel),
        Look::Other => Some(First::Plaintext),
        Look::More if looked_at.len() == LOOK => Some(First::Plaintext),
        Look::More => None,
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Look {
    Tunnel,
    Other,
    More,
}

/// Reads a ClientHello (RFC 8446 §4.1.2) as far as it is there, for the ALPN extension (RFC 7301).
fn look(mut bytes: &[u8]) -> Look {
    // rustls says nothing before it has a whole record header.
    let handshake = [22, 3];
    if bytes.iter().zip(handshake).any(|(byte, want)| *byte != want) {
        return Look::Other;
    }
    let mut acceptor = Acceptor::default();
    while !bytes.is_empty() {
        if acceptor.read_tls(&mut bytes).is_err() {
            return Look::Other;
        }
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(accepted)) => {
                let ours =
                    accepted.client_hello().alpn().is_some_and(|mut names| names.any(|name| name == ALPN));
                return if ours { Look::Tunnel } else { Look::Other };
            }
            Err(_) => return Look::Other,
        }
    }
    Look::More
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A ClientHello as rustls writes it.
    fn hello(alpn: &[&[u8]]) -> Vec<u8> {
        let mut config = rustls::ClientConfig::builder()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        let name = "x.ambit".try_into().unwrap();
        let mut connection = rustls::ClientConnection::new(config.into(), name).unwrap();
        let mut bytes = Vec::new();
        connection.write_tls(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn our_hello_is_known_and_no_other() {
        assert_eq!(look(&hello(&[ALPN])), Look::Tunnel);
        assert_eq!(look(&hello(&[b"h2", ALPN])), Look::Tunnel);
        assert_eq!(look(&hello(&[b"h2", b"http/1.1"])), Look::Other);
        assert_eq!(look(&hello(&[])), Look::Other);
        assert_eq!(look(b"GET / HTTP/1.1\r\n"), Look::Other);
        assert_eq!(look(b"\x16\x03\x01"), Look::More);
    }

    #[tokio::test]
    async fn a_hello_in_two_parts_is_looked_at_when_the_second_comes() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let (mut client, mut agent) = crate::tunnel::tests::pair().await;
        let ours = hello(&[ALPN]);
        client.write_all(&ours[..100]).await.unwrap();
        let rest = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            client.write_all(&ours[100..]).await.unwrap();
        };
        let (first, ()) = tokio::join!(first_bytes(&agent, Duration::from_secs(5)), rest);
        assert_eq!(first.unwrap(), First::Tunnel);
        let mut read = vec![0; ours.len()];
        agent.read_exact(&mut read).await.unwrap();
        assert!(read == ours, "what was looked at is still there");
    }

    #[tokio::test]
    async fn half_a_hello_is_plaintext_in_the_end_and_can_be_read() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let (mut client, mut agent) = crate::tunnel::tests::pair().await;
        client.write_all(&[22, 3, 1]).await.unwrap();
        let first = first_bytes(&agent, Duration::from_millis(50)).await;
        assert_eq!(first.unwrap(), First::Plaintext);
        let mut read = [0; 8];
        let read = tokio::time::timeout(Duration::from_secs(5), agent.read(&mut read)).await;
        assert_eq!(read.expect("it is readable as before").unwrap(), 3);
        let quiet = first_bytes(&agent, Duration::from_millis(50)).await;
        assert_eq!(quiet.unwrap(), First::Silence);
        drop(client);
        assert_eq!(first_bytes(&agent, Duration::from_secs(5)).await.unwrap(), First::Closed);
    }

    #[test]
    fn a_hello_cut_anywhere_waits_or_is_known() {
        let ours = hello(&[ALPN]);
        for cut in 1..ours.len() {
            assert_ne!(look(&ours[..cut]), Look::Other, "cut at {cut}");
        }
    }

    #[test]
    fn garbage_never_panics() {
        let ours = hello(&[ALPN]);
        for at in 0..ours.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bytes = ours.clone();
                bytes[at] = value;
                let _: Look = look(&bytes);
            }
        }
    }
}
