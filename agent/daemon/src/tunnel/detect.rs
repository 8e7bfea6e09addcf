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
use crate::capture::wake_at;

/// Bytes of a ClientHello that are looked at, with the header of its record. One of ours, post-quantum key share included, has
/// less than 2,000.
const LOOK: usize = 4096;
/// Bytes of a record's header (RFC 8446 §5.1).
const HEADER: usize = 5;

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

/// Waits up to `patience` for the first bytes, and leaves them where they are. Looks three times at most: at what comes first,
/// at a record's header, and at the record, in which a ClientHello of ours comes whole.
pub(crate) async fn first_bytes(stream: &TcpStream, patience: Duration) -> io::Result<First> {
    let deadline = Instant::now() + patience;
    match timeout_at(deadline, stream.async_io(Interest::READABLE, || peek(stream))).await {
        Err(_) => Ok(First::Silence),
        Ok(Err(error)) => Err(error),
        Ok(Ok(Seen::Known(first))) => Ok(first),
        // A ClientHello cut in two. Half of one is no reason to wait for ever.
        Ok(Ok(Seen::Part(wanted))) => {
            let rest = timeout_at(deadline, Box::pin(rest(stream, wanted))).await;
            wake_at(stream, 1);
            rest.unwrap_or(Ok(First::Plaintext))
        }
    }
}

/// Looks again once `wanted` bytes are there. Through another descriptor: the stream itself is to stay readable, as it is.
async fn rest(stream: &TcpStream, mut wanted: usize) -> io::Result<First> {
    wake_at(stream, wanted);
    let other: std::net::TcpStream = stream.as_fd().try_clone_to_owned()?.into();
    let other = TcpStream::from_std(other)?;
    let look = || match peek(&other)? {
        Seen::Known(first) => Ok(first),
        Seen::Part(more) => {
            if more > wanted {
                wanted = more;
                wake_at(&other, wanted);
            }
            Err(io::ErrorKind::WouldBlock.into())
        }
    };
    other.async_io(Interest::READABLE, look).await
}

#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Known(First),
    /// So many bytes have to be there to tell more.
    Part(usize),
}

/// What it is by the bytes that are there.
fn peek(socket: &impl AsFd) -> io::Result<Seen> {
    #[cfg(test)]
    tests::LOOKS.with(|looks| looks.set(looks.get() + 1));
    let mut bytes = [0; LOOK];
    let len = recv(socket.as_fd().as_raw_fd(), &mut bytes, MsgFlags::MSG_PEEK)?;
    Ok(if len == 0 { Seen::Known(First::Closed) } else { look(&bytes[..len]) })
}

/// What begins with these bytes; `None` while that is open. What has been decided once, more bytes do not change.
pub(crate) fn judge(bytes: &[u8]) -> Option<First> {
    match look(&bytes[..bytes.len().min(LOOK)]) {
        Seen::Known(first) => Some(first),
        Seen::Part(_) => None,
    }
}

/// The server name in the ClientHello that these bytes are, in lower case, if they are one; `None` while that is open.
pub(crate) fn server_name(bytes: &[u8]) -> Option<Option<Box<str>>> {
    let Some(header) = bytes.first_chunk::<HEADER>() else {
        return (bytes.first().is_some_and(|first| *first != 22)).then_some(None);
    };
    if header[..2] != [22, 3] {
        return Some(None);
    }
    let len = HEADER + usize::from(u16::from_be_bytes([header[3], header[4]]));
    if len > LOOK {
        return Some(None);
    }
    let mut record = bytes.get(..len)?;
    let mut acceptor = Acceptor::default();
    if acceptor.read_tls(&mut record).is_err() {
        return Some(None);
    }
    let Ok(Some(accepted)) = acceptor.accept() else { return Some(None) };
    Some(accepted.client_hello().server_name().map(|name| name.to_ascii_lowercase().into()))
}

/// Reads a ClientHello (RFC 8446 §4.1.2), if all of it is there, for the ALPN extension (RFC 7301).
fn look(bytes: &[u8]) -> Seen {
    let handshake = [22, 3];
    if bytes.iter().zip(handshake).any(|(byte, want)| *byte != want) {
        return Seen::Known(First::Plaintext);
    }
    let Some(header) = bytes.first_chunk::<HEADER>() else { return Seen::Part(HEADER) };
    let len = HEADER + usize::from(u16::from_be_bytes([header[3], header[4]]));
    if len > LOOK {
        return Seen::Known(First::Plaintext);
    }
    let Some(mut record) = bytes.get(..len) else { return Seen::Part(len) };
    let mut acceptor = Acceptor::default();
    let ours = acceptor.read_tls(&mut record).is_ok()
        && matches!(acceptor.accept(), Ok(Some(accepted))
            if accepted.client_hello().alpn().is_some_and(|mut names| names.any(|name| name == ALPN)));
    Seen::Known(if ours { First::Tunnel } else { First::Plaintext })
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    thread_local! {
        pub(super) static LOOKS: Cell<usize> = const { Cell::new(0) };
    }

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
        let (tunnel, plaintext) = (Seen::Known(First::Tunnel), Seen::Known(First::Plaintext));
        assert_eq!(look(&hello(&[ALPN])), tunnel);
        assert_eq!(look(&hello(&[b"h2", ALPN])), tunnel);
        assert_eq!(look(&hello(&[b"h2", b"http/1.1"])), plaintext);
        assert_eq!(look(&hello(&[])), plaintext);
        assert_eq!(look(b"GET / HTTP/1.1\r\n"), plaintext);
        assert_eq!(look(b"\x16\x03\x01"), Seen::Part(HEADER));
        assert_eq!(look(b"\x16\x03\x01\x0f\xfb"), Seen::Part(LOOK));
        assert_eq!(look(b"\x16\x03\x01\x0f\xfc"), plaintext, "longer than any of ours");
        assert_eq!(look(b"\x16\x03\x01\x00\x00"), plaintext, "an empty record");
    }

    #[test]
    fn the_name_in_a_hello_is_read_once_it_is_whole() {
        let ours = hello(&[]);
        assert_eq!(server_name(&ours), Some(Some("x.ambit".into())));
        for cut in 1..ours.len() {
            assert_eq!(server_name(&ours[..cut]), None, "cut at {cut}");
        }
        for other in [&b"GET / HTTP/1.1\r\n"[..], b"\x16\x04\x01\x00\x10", b"\x16\x03\x01\xff\xff", b"\x00"] {
            assert_eq!(server_name(other), Some(None));
        }
        assert_eq!(server_name(b""), None);
    }

    /// A ClientHello in records of one byte would have to be looked at for each.
    #[test]
    fn a_hello_in_several_records_is_none_of_ours() {
        let ours = hello(&[ALPN]);
        let mut records = Vec::new();
        for byte in &ours[HEADER..] {
            records.extend([22, 3, 1, 0, 1, *byte]);
        }
        assert_eq!(look(&records), Seen::Known(First::Plaintext));
    }

    #[tokio::test]
    async fn a_hello_byte_by_byte_is_looked_at_three_times() {
        use tokio::io::AsyncWriteExt as _;
        let (mut client, agent) = crate::tunnel::tests::pair().await;
        let ours = hello(&[ALPN]);
        let bytes = async {
            for byte in &ours {
                client.write_all(&[*byte]).await.unwrap();
                tokio::time::sleep(Duration::from_micros(500)).await;
            }
        };
        LOOKS.set(0);
        let (first, ()) = tokio::join!(first_bytes(&agent, Duration::from_secs(20)), bytes);
        assert_eq!(first.unwrap(), First::Tunnel);
        // One more for each time that the descriptor is new to the runtime.
        assert!(LOOKS.get() <= 5, "{} looks", LOOKS.get());
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
            assert!(matches!(look(&ours[..cut]), Seen::Part(_)), "cut at {cut}");
        }
    }

    #[test]
    fn garbage_never_panics() {
        let ours = hello(&[ALPN]);
        for at in 0..ours.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bytes = ours.clone();
                bytes[at] = value;
                let _: Seen = look(&bytes);
            }
        }
    }
}
