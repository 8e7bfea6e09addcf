//! What the first bytes of an inbound connection are: a tunnel of ours, or plaintext (an application's own TLS is
//! plaintext here).

use std::{io, time::Duration};

use tokio::{
    net::TcpStream,
    time::{Instant, sleep, timeout_at},
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

/// Waits up to `patience` for the first bytes, and leaves them where they are.
pub(crate) async fn first_bytes(stream: &TcpStream, patience: Duration) -> io::Result<First> {
    let deadline = Instant::now() + patience;
    let mut bytes = [0; LOOK];
    let mut seen = 0;
    loop {
        let Ok(peeked) = timeout_at(deadline, stream.peek(&mut bytes)).await else {
            return Ok(First::Silence);
        };
        let len = peeked?;
        match look(&bytes[..len]) {
            _ if len == 0 => return Ok(First::Closed),
            Look::Tunnel => return Ok(First::Tunnel),
            Look::Other => return Ok(First::Plaintext),
            // A ClientHello cut in two. Half of one is no reason to wait for ever.
            Look::More if Instant::now() >= deadline || len == LOOK => return Ok(First::Plaintext),
            Look::More => {
                // The bytes stay readable, so only time tells when there are more.
                let pause = if len == seen { Duration::from_millis(5) } else { Duration::from_millis(1) };
                seen = len;
                sleep(pause).await;
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Look {
    Tunnel,
    Other,
    More,
}

/// Reads a ClientHello (RFC 8446 §4.1.2) as far as it is there, for the ALPN extension (RFC 7301).
fn look(bytes: &[u8]) -> Look {
    const HANDSHAKE: u8 = 22;
    const CLIENT_HELLO: u8 = 1;
    let expected = [Some(HANDSHAKE), Some(3), None, None, None, Some(CLIENT_HELLO)];
    if bytes.iter().zip(expected).any(|(byte, want)| want.is_some_and(|want| want != *byte)) {
        return Look::Other;
    }
    let Some(header) = bytes.first_chunk::<5>() else {
        return Look::More;
    };
    let len = usize::from(u16::from_be_bytes([header[3], header[4]]));
    let whole = bytes.len() >= 5 + len;
    let hello = &bytes[5..bytes.len().min(5 + len)];
    match offers_alpn(hello) {
        Some(true) => Look::Tunnel,
        Some(false) => Look::Other,
        None if whole => Look::Other,
        None => Look::More,
    }
}

/// Whether the ClientHello offers our protocol; `None` if it ends before that is clear.
fn offers_alpn(hello: &[u8]) -> Option<bool> {
    const ALPN_EXTENSION: u16 = 16;
    let mut hello = Cursor(hello);
    hello.take(4 + 2 + 32)?;
    let session = hello.u8()?;
    hello.take(session.into())?;
    let suites = hello.u16()?;
    hello.take(suites.into())?;
    let compressions = hello.u8()?;
    hello.take(compressions.into())?;
    let extensions_len = usize::from(hello.u16()?);
    let complete = hello.0.len() >= extensions_len;
    let mut extensions = Cursor(&hello.0[..extensions_len.min(hello.0.len())]);
    while !extensions.0.is_empty() {
        let (kind, len) = (extensions.u16()?, extensions.u16()?);
        let body = extensions.take(len.into())?;
        if kind == ALPN_EXTENSION {
            let mut protocols = Cursor(body.get(2..)?);
            while let Some(len) = protocols.u8() {
                if protocols.take(len.into())? == ALPN {
                    return Some(true);
                }
            }
            return Some(false);
        }
    }
    complete.then_some(false)
}

struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (part, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(part)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    }
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
