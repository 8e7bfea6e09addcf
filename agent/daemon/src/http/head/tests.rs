//! Heads that are read, heads that are refused, and heads as they go on.

use super::*;

fn read(text: &str) -> Result<Request, Malformed> {
    let mut seen = 0;
    match end(text.as_bytes(), &mut seen)? {
        Some(len) => request(&text.as_bytes()[..len]),
        None => Err(Malformed::new("it is not whole")),
    }
}

#[test]
fn a_head_ends_where_its_empty_line_does_however_it_comes() {
    let text = b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET";
    let mut seen = 0;
    for len in 0..27 {
        assert_eq!(end(&text[..len], &mut seen), Ok(None), "{len}");
    }
    assert_eq!(end(text, &mut seen), Ok(Some(27)));
    assert_eq!(end(text, &mut 0), Ok(Some(27)));
}

#[test]
fn requests_are_read_in_all_their_forms() {
    for (text, method, uri, body) in [
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", "GET", "/", Body::EMPTY),
        ("GET /a?b=c#d HTTP/1.1\r\nHost: a:8080\r\n\r\n", "GET", "/a?b=c", Body::EMPTY),
        ("POST / HTTP/1.0\r\nContent-Length: 5\r\n\r\n", "POST", "/", Body::Length(5)),
        (
            "PUT //a//b HTTP/1.1\r\nhost:\r\ntransfer-encoding: Chunked\r\n\r\n",
            "PUT",
            "//a//b",
            Body::CHUNKED,
        ),
        ("GET http://a/b HTTP/1.1\r\nHost: A\r\n\r\n", "GET", "http://a/b", Body::EMPTY),
        ("CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", "CONNECT", "a:443", Body::EMPTY),
        ("OPTIONS * HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", "OPTIONS", "*", Body::EMPTY),
        ("frob /a\\b|c HTTP/1.1\r\nHost: a\r\nX:\t y \r\n\r\n", "frob", "/a\\b|c", Body::EMPTY),
    ] {
        let request = read(text).unwrap_or_else(|error| panic!("{text:?}: {error}"));
        assert_eq!(request.parts.method, method, "{text:?}");
        assert_eq!(request.parts.uri.to_string(), uri, "{text:?}");
        assert_eq!(request.body, body, "{text:?}");
        assert_eq!(request.changed, text.contains('#'), "{text:?}");
        if !request.changed {
            let again = request.rewritten(text.as_bytes());
            let lines = |text: &str| text.replace(":\t y ", ": y").replace("host:\r", "host: \r");
            assert_eq!(String::from_utf8(again).unwrap(), lines(text));
        }
    }
}

#[test]
fn what_two_servers_could_read_differently_is_refused() {
    let ok = "GET / HTTP/1.1\r\nHost: a\r\n";
    for (front, rest) in [
        (ok, "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"),
        (ok, "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n"),
        (ok, "Content-Length: 5\r\nContent-Length: 5\r\n"),
        (ok, "Content-Length: 5, 5\r\n"),
        (ok, "Content-Length: +5\r\n"),
        (ok, "Content-Length: 0x5\r\n"),
        (ok, "Content-Length: 5 5\r\n"),
        (ok, "Content-Length:\r\n"),
        (ok, "Content-Length: -1\r\n"),
        (ok, "Content-Length: 9999999999999999999\r\n"),
        (ok, "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
        (ok, "Transfer-Encoding: chunked, chunked\r\n"),
        (ok, "Transfer-Encoding: gzip, chunked\r\n"),
        (ok, "Transfer-Encoding: identity\r\n"),
        (ok, "Transfer-Encoding: xchunked\r\n"),
        (ok, "Transfer-Encoding: chunked;q=1\r\n"),
        (ok, "Transfer-Encoding:\x0bchunked\r\n"),
        (ok, "Transfer-Encoding : chunked\r\n"),
        (ok, "X: a\r\n folded\r\n"),
        (ok, "X: a\r\n\tfolded\r\n"),
        (ok, " X: a\r\n"),
        (ok, "X: a\nY: b\r\n"),
        (ok, "X: a\rY: b\r\n"),
        (ok, "X: a\0b\r\n"),
        (ok, "X\0: a\r\n"),
        (ok, "X Y: a\r\n"),
        (ok, "X\t: a\r\n"),
        (ok, ": a\r\n"),
        (ok, "no colon\r\n"),
        (ok, "Host: b\r\n"),
        (ok, "Connection: X-Role\r\nX-Role: admin\r\n"),
        ("GET / HTTP/1.1\r\n", ""),
        ("GET / HTTP/1.1\r\nHost: a b\r\n", ""),
        ("GET / HTTP/1.1\r\nHost: a/b\r\n", ""),
        ("GET / HTTP/1.1\r\nHost: u@a\r\n", ""),
        ("GET http://b/ HTTP/1.1\r\nHost: a\r\n", ""),
        ("GET http://u@a/ HTTP/1.1\r\nHost: u@a\r\n", ""),
        ("GET ftp://a/ HTTP/1.1\r\nHost: a\r\n", ""),
        ("GET a HTTP/1.1\r\nHost: a\r\n", ""),
        ("GET * HTTP/1.1\r\nHost: a\r\n", ""),
        ("CONNECT /a HTTP/1.1\r\nHost: a\r\n", ""),
        ("GET  / HTTP/1.1\r\nHost: a\r\n", ""),
        ("GET /  HTTP/1.1\r\nHost: a\r\n", ""),
        ("GET\t/ HTTP/1.1\r\nHost: a\r\n", ""),
        (" GET / HTTP/1.1\r\nHost: a\r\n", ""),
        ("GET / HTTP/1.1 \r\nHost: a\r\n", ""),
        ("GET /a b HTTP/1.1\r\nHost: a\r\n", ""),
        ("GET / HTTP/2.0\r\nHost: a\r\n", ""),
        ("GET / HTTP/1.2\r\nHost: a\r\n", ""),
        ("GET / http/1.1\r\nHost: a\r\n", ""),
        ("GET /\r\nHost: a\r\n", ""),
        ("G(T / HTTP/1.1\r\nHost: a\r\n", ""),
        ("GET /\0 HTTP/1.1\r\nHost: a\r\n", ""),
        ("GET /<a> HTTP/1.1\r\nHost: a\r\n", ""),
        ("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n", ""),
        ("GET / HTTP/1.1\nHost: a\r\n", ""),
        ("GET / HTTP/1.1\r\nHost: a\n", ""),
    ] {
        let text = format!("{front}{rest}\r\n");
        assert!(read(&text).is_err(), "{text:?}");
    }
    let many: String = (0..FIELDS).map(|at| format!("x{at}: y\r\n")).collect();
    assert!(read(&format!("{ok}{many}\r\n")).is_err());
}

#[test]
fn nothing_is_upgraded_to_what_carries_requests() {
    let upgrade = |protocol: &str| {
        format!(
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings, keep-alive\r\n\
             Upgrade: {protocol}\r\nHTTP2-Settings: AAA\r\nX: y\r\n\r\n"
        )
    };
    let websocket = read(&upgrade("websocket")).unwrap();
    assert!(websocket.may_upgrade() && !websocket.changed);
    for protocol in ["h2c", "websocket, H2C", "HTTP/2.0", "TLS/1.0"] {
        let text = upgrade(protocol);
        let request = read(&text).unwrap();
        assert!(!request.may_upgrade() && request.changed, "{protocol}");
        let gone = String::from_utf8(request.rewritten(text.as_bytes())).unwrap();
        assert_eq!(gone, "GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\nX: y\r\n\r\n");
    }
}

#[test]
fn what_changes_in_a_head_leaves_the_rest_as_it_came() {
    let text = "GET /a HTTP/1.1\r\nHOST: a\r\nx-A: 1\r\nB: 2\r\nX-a: 3\r\nC: 4\r\n\r\n";
    let mut request = read(text).unwrap();
    let headers = &mut request.parts.headers;
    headers.append("x-a", HeaderValue::from_static("5"));
    headers.remove("b");
    headers.insert("c", HeaderValue::from_static("6"));
    headers.insert("d", HeaderValue::from_static("7"));
    request.parts.uri = "/b?c".parse().unwrap();
    let written = String::from_utf8(request.rewritten(text.as_bytes())).unwrap();
    assert_eq!(written, "GET /b?c HTTP/1.1\r\nHOST: a\r\nx-A: 1\r\nX-a: 3\r\nX-a: 5\r\nC: 6\r\nd: 7\r\n\r\n");
}

#[test]
fn the_end_of_an_answer_is_known_from_its_head() {
    for (text, method, body) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", "GET", Body::Length(5)),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", "HEAD", Body::EMPTY),
        ("HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", "GET", Body::EMPTY),
        ("HTTP/1.1 204 No Content\r\n\r\n", "GET", Body::EMPTY),
        ("HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n", "GET", Body::EMPTY),
        (
            "HTTP/1.1 200\r\nTransfer-Encoding: gzip, chunked\r\nContent-Length: 5\r\n\r\n",
            "GET",
            Body::CHUNKED,
        ),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", "GET", Body::UntilEnd),
        ("HTTP/1.0 200 OK\r\n\r\n", "GET", Body::UntilEnd),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", "GET", Body::UntilEnd),
        ("HTTP/1.1 200 OK\nContent-Length: 5\n\n", "GET", Body::Length(5)),
    ] {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let read = answer(text.as_bytes(), &method).unwrap_or_else(|error| panic!("{text:?}: {error}"));
        let read = read.unwrap_or_else(|| panic!("{text:?} is not whole"));
        assert_eq!((read.len, read.body), (text.len(), body), "{text:?}");
    }
    assert_eq!(answer(b"HTTP/1.1 200 OK\r\nA: b\r\n", &Method::GET), Ok(None));
    assert!(answer(b"SSH-2.0-OpenSSH\r\n", &Method::GET).is_err());
}
