//! Messages that two servers could read differently. Each is sent in whole and in pieces to an application behind a policy that refuses
//! /admin; a raw server records what reaches it.

use super::*;

/// How a message is to end.
enum Expected {
    /// With 400, and nothing of it at the application.
    Refused,
    /// With 403, and nothing of it at the application.
    Denied,
    /// Exactly these bytes reach the application.
    Passes(&'static str),
}

use Expected::{Denied, Passes, Refused};

const SMUGGLED: &str = "GET /admin HTTP/1.1\r\nHost: cart\r\n\r\n";

/// What is put between the request line of a POST to / with its Host, and the end of the head; and what follows.
const FIELDS: &[(&str, &str)] = &[
    ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
    ("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", "0\r\n\r\n"),
    ("Content-Length: 0\r\nContent-Length: 35\r\n", ""),
    ("Content-Length: 35\r\nContent-Length: 0\r\n", ""),
    ("Content-Length: 0\r\nContent-Length: 0\r\n", ""),
    ("Content-Length: 0, 35\r\n", ""),
    ("Content-Length: 35, 35\r\n", ""),
    ("Content-Length: +0\r\n", ""),
    ("Content-Length: 0x0\r\n", ""),
    ("Content-Length: 0 35\r\n", ""),
    ("Content-Length: \r\n", ""),
    ("Content-Length: 00000000000000000000\r\n", ""),
    ("Content-Length : 0\r\n", ""),
    ("Content-Length\t: 0\r\n", ""),
    ("Content-Length:\x0b0\r\n", ""),
    ("Content-Length: 0\r\n Content-Length: 35\r\n", ""),
    ("Content_Length: 0\r\nContent-Length: 0\r\nContent-length: 35\r\n", ""),
    ("Transfer-Encoding: xchunked\r\n", "0\r\n\r\n"),
    ("Transfer-Encoding: chunked, identity\r\n", "0\r\n\r\n"),
    ("Transfer-Encoding: identity, chunked\r\n", "0\r\n\r\n"),
    ("Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
    ("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", "0\r\n\r\n"),
    ("Transfer-Encoding : chunked\r\n", "0\r\n\r\n"),
    ("Transfer-Encoding:\x0bchunked\r\n", "0\r\n\r\n"),
    ("Transfer-Encoding: \"chunked\"\r\n", "0\r\n\r\n"),
    ("Transfer-Encoding: chunked;a=b\r\n", "0\r\n\r\n"),
    ("Transfer-Encoding:\r\n chunked\r\n", "0\r\n\r\n"),
    ("X: y\r\nTransfer-Encoding:\r\n\tchunked\r\n", "0\r\n\r\n"),
    ("X: y\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
    ("X: y\rTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
    ("X: y\0\r\n", ""),
    ("X\0: y\r\n", ""),
    (" X: y\r\n", ""),
    ("X y: z\r\n", ""),
    (": y\r\n", ""),
    ("\u{e9}: y\r\n", ""),
    ("Host: other\r\n", ""),
    ("Connection: close, X-User\r\nX-User: admin\r\n", ""),
    ("Transfer-Encoding: chunked\r\n", "0\n\r\n"),
    ("Transfer-Encoding: chunked\r\n", "0\r\nX: y\n\r\n"),
    ("Transfer-Encoding: chunked\r\n", " 0\r\n\r\n"),
    ("Transfer-Encoding: chunked\r\n", "0x0\r\n\r\n"),
    ("Transfer-Encoding: chunked\r\n", "-1\r\n\r\n"),
    ("Transfer-Encoding: chunked\r\n", "1 \r\nx\r\n0\r\n\r\n"),
    ("Transfer-Encoding: chunked\r\n", "1;\nx\r\n0\r\n\r\n"),
    ("Transfer-Encoding: chunked\r\n", "1\r\nxx\r\n0\r\n\r\n"),
    ("Transfer-Encoding: chunked\r\n", "1\r\nx0\r\n\r\n"),
    ("Transfer-Encoding: chunked\r\n", "fffffffffffffffff\r\nx"),
    ("Transfer-Encoding: chunked\r\n", "0\r\nContent-Length: 35\r\n\r\n"),
    ("Transfer-Encoding: chunked\r\n", "0\r\nTransfer-Encoding: chunked\r\n\r\n"),
];

const WHOLE: &[(&str, Expected)] = &[
    ("GET  / HTTP/1.1\r\nHost: cart\r\n\r\n", Refused),
    ("GET / HTTP/1.1\nHost: cart\n\n", Refused),
    ("GET / HTTP/1.1\r\n\r\n", Refused),
    ("GET / HTTP/1.1 \r\nHost: cart\r\n\r\n", Refused),
    ("GET / HTTP/1.1\r\nHost: cart/\r\n\r\n", Refused),
    ("GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", Refused),
    ("GET / HTTP/9.9\r\nHost: cart\r\n\r\n", Refused),
    ("GET x HTTP/1.1\r\nHost: cart\r\n\r\n", Refused),
    ("GET http://other/ HTTP/1.1\r\nHost: cart\r\n\r\n", Refused),
    ("GET http://user@cart/ HTTP/1.1\r\nHost: user@cart\r\n\r\n", Refused),
    ("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", Refused),
    ("GET /%00/../admin HTTP/1.1\r\nHost: cart\r\n\r\n", Refused),
    ("GET /x/../admin HTTP/1.1\r\nHost: cart\r\n\r\n", Denied),
    ("GET /%61dmin HTTP/1.1\r\nHost: cart\r\n\r\n", Denied),
    ("GET /x\\..\\admin HTTP/1.1\r\nHost: cart\r\n\r\n", Denied),
    ("GET /admin#/x HTTP/1.1\r\nHost: cart\r\n\r\n", Denied),
    ("GET http://cart/admin HTTP/1.1\r\nHost: cart\r\n\r\n", Denied),
    ("GET /%2e%2e/%2e/admin HTTP/1.1\r\nHost: cart\r\n\r\n", Denied),
    ("\r\n\r\nGET /a HTTP/1.1\r\nHost: cart\r\n\r\n", Passes("GET /a HTTP/1.1\r\nHost: cart\r\n\r\n")),
    ("GET /a#b HTTP/1.1\r\nHost: cart\r\n\r\n", Passes("GET /a HTTP/1.1\r\nHost: cart\r\n\r\n")),
    ("GET /a/%2E%2e/b HTTP/1.1\r\nHost: cart\r\n\r\n", Passes("GET /b HTTP/1.1\r\nHost: cart\r\n\r\n")),
    ("GET /ADMIN HTTP/1.1\r\nHost: cart\r\n\r\n", Passes("GET /ADMIN HTTP/1.1\r\nHost: cart\r\n\r\n")),
];

/// What the client gets at first, and all that the application does, of `message` sent in pieces of `step` bytes.
async fn exchange(node: &Node, way: &mut Way, message: &[u8], step: usize) -> (String, String) {
    let mut client = node.connect(&mut way.web).await;
    let (mut app, _) = timeout(SOON, way.server.accept()).await.unwrap().unwrap();
    let sent = async {
        for piece in message.chunks(step) {
            if client.write_all(piece).await.is_err() {
                break;
            }
            if step < message.len() {
                tokio::task::yield_now().await;
            }
        }
        let mut answer = vec![0; 12];
        let read = timeout(Duration::from_secs(3), client.read_exact(&mut answer)).await;
        let answered = matches!(read, Ok(Ok(_)));
        drop(client);
        if answered { String::from_utf8_lossy(&answer).into_owned() } else { String::new() }
    };
    let recorded = async {
        let mut recorded = Vec::new();
        let mut buffer = [0; 1024];
        let mut answered = false;
        while let Ok(read @ 1..) = app.read(&mut buffer).await {
            recorded.extend_from_slice(&buffer[..read]);
            if !answered && recorded.windows(4).any(|end| end == b"\r\n\r\n") {
                answered = true;
                let _ = app.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await;
            }
        }
        String::from_utf8_lossy(&recorded).into_owned()
    };
    timeout(SOON, async { tokio::join!(sent, recorded) }).await.expect("in time")
}

struct Way {
    web: Serving<Scripted>,
    server: TcpListener,
    _policy: Policy,
}

#[tokio::test]
async fn what_reaches_the_application_is_what_was_judged() {
    let node = Node::new().await;
    let (web, policy, server) = node.both().await;
    policy.send_replace(no_admin());
    let mut way = Way { web, server, _policy: policy };
    assert!(FIELDS.len() + WHOLE.len() >= 60);
    for (fields, body) in FIELDS {
        let message = format!("POST / HTTP/1.1\r\nHost: cart\r\n{fields}\r\n{body}{SMUGGLED}");
        for step in [message.len(), 7, 1] {
            let (answer, recorded) = exchange(&node, &mut way, message.as_bytes(), step).await;
            assert!(!recorded.contains("/admin"), "{message:?} by {step}: {recorded:?}");
            if step == message.len() {
                assert_eq!(answer, "HTTP/1.1 400", "{message:?}");
                assert_eq!(recorded, "", "{message:?}");
            }
            // In pieces, a head has gone on before its body turns out to be malformed, and nothing of that follows.
            let head = format!("POST / HTTP/1.1\r\nHost: cart\r\n{fields}\r\n");
            let good = recorded.strip_prefix(&*head).unwrap_or(&recorded);
            assert!(recorded.is_empty() || body.starts_with(good), "{message:?} by {step}: {recorded:?}");
        }
    }
    for (message, expected) in WHOLE {
        let message = format!("{message}{SMUGGLED}");
        for step in [message.len(), 3] {
            let (answer, recorded) = exchange(&node, &mut way, message.as_bytes(), step).await;
            let (status, passed) = match expected {
                Refused => ("HTTP/1.1 400", ""),
                Denied => ("HTTP/1.1 403", ""),
                Passes(bytes) => ("HTTP/1.1 204", *bytes),
            };
            assert_eq!((&*answer, &*recorded), (status, passed), "{message:?} by {step}");
        }
    }
}
