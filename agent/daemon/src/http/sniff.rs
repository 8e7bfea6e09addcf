//! What the first bytes of a connection are: requests of one of the two kinds, or something else.

/// How a client with prior knowledge begins HTTP/2 (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How much is looked at for the end of a request line.
const LINE: usize = 16 * 1024;
/// Which methods are taken for the beginning of a request line that is longer.
const METHODS: [&str; 9] =
    ["GET ", "HEAD ", "POST ", "PUT ", "DELETE ", "CONNECT ", "OPTIONS ", "TRACE ", "PATCH "];

/// What a connection carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carries {
    /// HTTP/1.0 or HTTP/1.1, be it malformed.
    Http1,
    /// HTTP/2 without TLS.
    Http2,
    /// Something else.
    Other,
}

/// What begins with these bytes; `None` while that is open. Where it is `expected` that they are requests, text is one.
pub(super) fn sniff(bytes: &[u8], expected: bool) -> Option<Carries> {
    let shown = bytes.len().min(PREFACE.len());
    if shown > 0 && bytes[..shown] == PREFACE[..shown] {
        return (shown == PREFACE.len()).then_some(Carries::Http2);
    }
    // Empty lines may come first (RFC 9112, section 2.2).
    let line = bytes.trim_ascii_start();
    let end = line.iter().take(LINE).position(|byte| *byte == b'\n');
    let seen = &line[..end.unwrap_or(line.len().min(LINE))];
    let is_binary = |byte: &u8| matches!(byte, 0..=8 | 0x0b..=0x0c | 0x0e..=0x1f | 0x7f);
    if bytes.first().is_some_and(|first| !first.is_ascii()) || seen.iter().any(is_binary) {
        return Some(Carries::Other);
    }
    if end.is_none() && line.len() < LINE {
        return None;
    }
    let is_request = expected
        || seen.windows(5).any(|piece| piece.eq_ignore_ascii_case(b"HTTP/"))
        || end.is_none() && METHODS.iter().any(|method| seen.starts_with(method.as_bytes()));
    Some(if is_request { Carries::Http1 } else { Carries::Other })
}

/// Whether what an application says before its client does is how servers of HTTP/2 begin: a SETTINGS frame (RFC 9113, section 3.4),
/// for which gRPC's wait for nobody.
pub(super) fn is_settings(said: &[u8; SETTINGS]) -> bool {
    let [0, high, low, 4, 0, 0, 0, 0, 0] = *said else { return false };
    u16::from_be_bytes([high, low]).is_multiple_of(6)
}

/// The head of a frame.
pub(super) const SETTINGS: usize = 9;

/// The most of a ClientHello that is looked at.
const HELLO: usize = 16 * 1024;

/// What the ClientHello at the beginning of `bytes` asks for; `None` while it is not whole.
pub(super) fn server_name(bytes: &[u8]) -> Option<Option<String>> {
    const HANDSHAKE: [u8; 2] = [22, 3];
    if bytes.iter().zip(HANDSHAKE).any(|(byte, expected)| *byte != expected) {
        return Some(None);
    }
    if bytes.len() < HANDSHAKE.len() {
        return bytes.is_empty().then_some(None);
    }
    let mut acceptor = rustls::server::Acceptor::default();
    let mut left = &bytes[..bytes.len().min(HELLO)];
    while !left.is_empty() {
        if acceptor.read_tls(&mut left).is_err() {
            return Some(None);
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => return Some(accepted.client_hello().server_name().map(str::to_owned)),
            Ok(None) => {}
            Err(_) => return Some(None),
        }
    }
    (bytes.len() >= HELLO).then_some(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes_decide_as_soon_as_they_can() {
        let (http1, http2, other) = (Some(Carries::Http1), Some(Carries::Http2), Some(Carries::Other));
        for (bytes, carries) in [
            (&b"GET / HTTP/1.1\r\nHost: a\r\n"[..], http1),
            (b"GET / HTTP/1.1\n", http1),
            (b"\r\nPOST /a HTTP/1.0\r\n", http1),
            (b"GET  /  HTTP/1.1\r\n", http1),
            (b" GET / HTTP/1.1\r\n", http1),
            (b"M-SEARCH * HTTP/1.1\r\n", http1),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", http2),
            (b"PRI * HTTP/2.0\r\n\r\nSM", None),
            (b"PRI * HTTP/2.0\r\nHost: a\r\n\r\n", http1),
            (b"GET / HTTP/1", None),
            (b"", None),
            (b"\r\n", None),
            (b"PING\r\n", other),
            (b"SET a b\r\n", other),
            (b"*1\r\n$4\r\nPING\r\n", other),
            (b"EHLO client.example\r\n", other),
            (b"\x16\x03\x01", other),
            (b"GET /\x00 HTTP/1.1\r\n", other),
            (b"\x00\x00\x00\x55", other),
            (b"\xff\xfe", other),
        ] {
            assert_eq!(sniff(bytes, false), carries, "{:?}", String::from_utf8_lossy(bytes));
        }
        assert_eq!(sniff(b"HELLO\r\n", true), http1, "where requests are expected, text is a bad one");
        assert_eq!(sniff(b"\x16\x03\x01", true), other);
        let long = [b"GET /".as_slice(), &[b'a'; LINE]].concat();
        assert_eq!(sniff(&long, false), http1);
        assert_eq!(sniff(&[b'a'; LINE], false), other);
    }

    #[test]
    fn a_server_of_http2_that_speaks_first_is_one() {
        for (said, expected) in [
            (b"\0\0\0\x04\0\0\0\0\0", true),
            (b"\0\0\x12\x04\0\0\0\0\0", true),
            (b"\0\0\x01\x04\0\0\0\0\0", false),
            (b"\0\0\0\x04\x01\0\0\0\0", false),
            (b"\x4a\0\0\0\x0a8.0.", false),
            (b"220 hello", false),
        ] {
            assert_eq!(is_settings(said), expected, "{said:?}");
        }
    }

    #[test]
    fn what_is_decided_stays_decided() {
        for text in ["GET / HTTP/1.1\r\nHost: a\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0", "SET a\r\n"]
        {
            let mut decided = None;
            for end in 0..=text.len() {
                let now = sniff(&text.as_bytes()[..end], false);
                assert!(decided.is_none() || now == decided, "{text:?} at {end}");
                decided = now;
            }
            assert!(decided.is_some());
        }
    }
}
