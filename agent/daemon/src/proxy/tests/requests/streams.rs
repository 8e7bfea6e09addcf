//! HTTP/2 with prior knowledge over the whole way: streams that are judged one by one, and messages that no client of ours would send.

use bytes::Bytes;
use h2::{Reason as Code, client, server};
use http::{HeaderMap, Request, Response, StatusCode};

use super::*;

/// An application that answers each stream with its path and body, and trailers.
fn serve(listener: TcpListener) -> JoinHandle<Vec<String>> {
    tokio::spawn(async move {
        let (socket, _) = listener.accept().await.unwrap();
        let mut seen = Vec::new();
        let Ok(mut connection) = server::handshake(socket).await else { return seen };
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            let path = request.uri().path().to_owned();
            seen.push(format!("{} {}", request.method(), request.uri()));
            tokio::spawn(async move {
                let mut body = request.into_body();
                let mut down = respond.send_response(Response::new(()), false).unwrap();
                down.send_data(Bytes::from(path), false).unwrap();
                while let Some(Ok(piece)) = body.data().await {
                    let _ = body.flow_control().release_capacity(piece.len());
                    down.send_data(piece, false).unwrap();
                }
                let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())]);
                let _ = down.send_trailers(trailers);
            });
        }
        seen
    })
}

async fn get(client: &mut client::SendRequest<Bytes>, request: Request<()>) -> Response<h2::RecvStream> {
    let (answer, _) = client.send_request(request, true).unwrap();
    timeout(SOON, answer).await.expect("in time").unwrap()
}

async fn text(body: &mut h2::RecvStream) -> String {
    let mut read = Vec::new();
    while let Some(piece) = timeout(SOON, body.data()).await.expect("in time") {
        let piece = piece.unwrap();
        let _ = body.flow_control().release_capacity(piece.len());
        read.extend_from_slice(&piece);
    }
    String::from_utf8(read).unwrap()
}

#[tokio::test]
async fn streams_are_judged_one_by_one() {
    let Pair { node, client, server, policy } = pair_under(no_admin()).await;
    let served = serve(server);
    let (mut client, connection) = client::handshake(client).await.unwrap();
    let driven = tokio::spawn(connection);
    let request = |path: &str| Request::post(format!("http://cart{path}"));
    // Both ways at once, and with trailers.
    let (answer, mut up) = client.send_request(request("/a?b=c").body(()).unwrap(), false).unwrap();
    let answer = timeout(SOON, answer).await.unwrap().unwrap();
    let mut body = answer.into_body();
    assert_eq!(timeout(SOON, body.data()).await.unwrap().unwrap().unwrap(), "/a");
    up.send_data(Bytes::from_static(b"hello"), false).unwrap();
    assert_eq!(timeout(SOON, body.data()).await.unwrap().unwrap().unwrap(), "hello");
    let refused = get(&mut client, request("/x/../admin").body(()).unwrap()).await;
    assert_eq!(refused.status(), StatusCode::FORBIDDEN);
    assert_eq!(text(&mut refused.into_body()).await, "RBAC: access denied");
    let grpc = request("/admin").header("content-type", "application/grpc").body(()).unwrap();
    let refused = get(&mut client, grpc).await;
    assert_eq!(
        (refused.status(), &refused.headers()["grpc-status"]),
        (StatusCode::OK, &"7".parse().unwrap())
    );
    up.send_data(Bytes::from_static(b"!"), true).unwrap();
    assert_eq!(text(&mut body).await, "!");
    assert_eq!(timeout(SOON, body.trailers()).await.unwrap().unwrap().unwrap()["grpc-status"], "0");
    // A change of policy holds from the next stream on.
    policy.send_replace(compiled([paths(Action::Allow, &["/c"])]));
    assert_eq!(get(&mut client, request("/a").body(()).unwrap()).await.status(), StatusCode::FORBIDDEN);
    assert_eq!(get(&mut client, request("/%63").body(()).unwrap()).await.status(), StatusCode::OK);
    // What one connection carries uses one connection to the application, which ends with it.
    drop((client, up, body, refused));
    let seen = timeout(SOON, served).await.expect("in time").unwrap();
    assert_eq!(seen, ["POST http://cart/a?b=c", "POST http://cart/c"]);
    driven.await.unwrap().unwrap();
    node.until("istio_tcp_sockets_open", &[], 0).await;
}

#[tokio::test]
async fn a_server_that_waits_for_no_preface_is_still_judged_by_streams() {
    let Pair { client, server, .. } = pair_under(no_admin()).await;
    let (mut app, _) = timeout(SOON, server.accept()).await.expect("in time").unwrap();
    app.write_all(&frame(4, 0, 0, &[0, 3, 0, 0, 0, 9])).await.unwrap();
    // It has said so long before the client begins.
    sleep(Duration::from_millis(200)).await;
    let (mut client, connection) = client::handshake(client).await.unwrap();
    tokio::spawn(connection);
    let refused = get(&mut client, Request::get("http://cart/admin").body(()).unwrap()).await;
    assert_eq!(refused.status(), StatusCode::FORBIDDEN);
}

/// A request whose head the application has, with both ends of what follows.
struct Begun {
    _client: client::SendRequest<Bytes>,
    answer: client::ResponseFuture,
    up: h2::SendStream<Bytes>,
    application: server::Connection<TcpStream, Bytes>,
    request: Request<h2::RecvStream>,
    respond: server::SendResponse<Bytes>,
}

async fn begin() -> Begun {
    let Pair { client, server, .. } = pair_under(no_admin()).await;
    let (mut client, connection) = client::handshake(client).await.unwrap();
    tokio::spawn(connection);
    let request = Request::post("http://cart/upload").body(()).unwrap();
    let (answer, up) = client.send_request(request, false).unwrap();
    let (socket, _) = server.accept().await.unwrap();
    let mut application = server::handshake(socket).await.unwrap();
    let (request, respond) = timeout(SOON, application.accept()).await.unwrap().unwrap().unwrap();
    Begun { _client: client, answer, up, application, request, respond }
}

/// More than an application has room for that reads nothing.
const MUCH: Bytes = Bytes::from_static(&[b'x'; 200_000]);

#[tokio::test]
async fn a_stream_that_its_client_resets_is_reset() {
    let Begun { _client, answer: _answer, mut up, mut application, request: _request, mut respond } =
        begin().await;
    up.send_reset(Code::CANCEL);
    let reset = async {
        tokio::select! {
            code = std::future::poll_fn(|cx| respond.poll_reset(cx)) => code.unwrap(),
            _ = application.accept() => panic!("the connection ended"),
        }
    };
    assert_eq!(timeout(SOON, reset).await.expect("in time"), Code::CANCEL);
}

/// It may want no more of a request that it has answered (RFC 9113, section 8.1).
#[tokio::test]
async fn who_answers_early_has_the_client_stop() {
    let Begun { _client, answer, mut up, mut application, request, mut respond } = begin().await;
    up.send_data(MUCH, false).unwrap();
    let mut down = respond.send_response(Response::new(()), false).unwrap();
    down.send_data(Bytes::from_static(b"enough"), true).unwrap();
    // Its library tells the client to stop.
    drop((request, respond, down));
    tokio::spawn(async move { while application.accept().await.is_some() {} });
    let answer = timeout(SOON, answer).await.expect("in time").unwrap();
    assert_eq!((answer.status(), &*text(&mut answer.into_body()).await), (StatusCode::OK, "enough"));
    let stopped = timeout(SOON, std::future::poll_fn(|cx| up.poll_reset(cx))).await.expect("in time");
    assert_eq!(stopped.unwrap(), Code::NO_ERROR);
}

/// Also where the application takes no more of what came before, whether it has answered or not.
#[tokio::test]
async fn a_request_that_its_client_gives_up_is_reset_though_it_is_stuck() {
    for answered in [None, Some(false), Some(true)] {
        let Begun { _client, answer, mut up, mut application, request, mut respond } = begin().await;
        up.send_data(MUCH, false).unwrap();
        let _down = answered.map(|ended| respond.send_response(Response::new(()), ended).unwrap());
        let driven = tokio::spawn(async move { while application.accept().await.is_some() {} });
        let mut body = request.into_body();
        // All that it has room for (RFC 9113, section 6.9.2), and no word that it has more.
        let mut taken = 0;
        while taken < 65_535 {
            taken += timeout(SOON, body.data()).await.expect("in time").unwrap().unwrap().len();
        }
        let _answer = match answered {
            None => Err(answer),
            Some(_) => Ok(timeout(SOON, answer).await.expect("in time").unwrap()),
        };
        up.send_reset(Code::CANCEL);
        let end = timeout(SOON, body.data()).await.expect("it is reset").expect("no orderly end");
        assert_eq!(end.unwrap_err().reason(), Some(Code::CANCEL), "{answered:?}");
        driven.abort();
    }
}

/// An application with endless answers, and a client that gives them room and reads nothing.
#[tokio::test]
async fn what_a_client_does_not_read_is_bounded_and_counted() {
    let Pair { mut client, server, node, .. } = pair_under(no_admin()).await;
    let served = tokio::spawn(async move {
        let (socket, _) = server.accept().await.unwrap();
        let mut connection = server::handshake::<_>(socket).await.unwrap();
        let mut down = Vec::new();
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            let mut body = respond.send_response(Response::new(()), false).unwrap();
            let _ = body.send_data(Bytes::from(vec![b'x'; 1_000_000]), false);
            down.push((respond, body));
        }
    });
    let get = block(&[(":method", "GET"), (":scheme", "http"), (":authority", "cart"), (":path", "/a")]);
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    // Room for two gigabytes on each stream and on all of them.
    bytes.extend(frame(4, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]));
    bytes.extend(frame(8, 0, 0, &[0x7f, 0, 0, 0]));
    for stream in 0..100 {
        bytes.extend(frame(1, 0x5, 2 * stream + 1, &get));
    }
    client.write_all(&bytes).await.unwrap();
    let share = node.proxy.0.budget.share(&"cart".into());
    let mut most = 0;
    let full = async {
        while share.used() == 0 {
            sleep(Duration::from_millis(10)).await;
        }
        // Until nothing more comes.
        for _ in 0..50 {
            most = most.max(share.used());
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(SOON, full).await.expect("what is not read is counted");
    assert!(most <= 1024 * 1024, "{most} bytes for one connection");
    drop(client);
    let none = async {
        while share.used() > 0 {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(SOON, none).await.expect("all of it is given back");
    served.abort();
}

/// A frame (RFC 9113, section 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend_from_slice(&[kind, flags]);
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// A header block of literals without compression (RFC 7541, section 6.2.2).
fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).unwrap());
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

#[tokio::test]
async fn malformed_streams_do_not_reach_the_application() {
    let get = [(":method", "GET"), (":scheme", "http"), (":authority", "cart")];
    let with = |more: &[(&'static str, &'static str)]| [&get[..], more].concat();
    let ok = (":path", "/a");
    for fields in [
        with(&[(":path", "/admin")]),
        with(&[(":path", "/x/../admin")]),
        with(&[(":path", "admin")]),
        with(&[(":path", "")]),
        with(&[]),
        with(&[ok, (":path", "/admin")]),
        with(&[ok, ("x", "y"), (":authority", "other")]),
        with(&[ok, ("host", "other")]),
        with(&[ok, ("host", "cart"), ("host", "cart")]),
        with(&[ok, ("X-Upper", "y")]),
        with(&[ok, ("connection", "close")]),
        with(&[ok, ("transfer-encoding", "chunked")]),
        with(&[ok, ("te", "gzip")]),
        with(&[ok, ("x", "a\r\nb: c")]),
        with(&[ok, ("x", "a\0")]),
        with(&[ok, ("x y", "a")]),
        with(&[ok, (":status", "200")]),
        vec![(":method", "GET"), (":scheme", "http"), (":authority", "user@cart"), ok],
        vec![(":method", "CONNECT"), (":scheme", "http"), (":authority", "cart"), ok],
    ] {
        let Pair { mut client, server, .. } = pair_under(no_admin()).await;
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        bytes.extend(frame(4, 0, 0, &[]));
        bytes.extend(frame(1, 0x5, 1, &block(&fields)));
        // One that passes follows, unless the connection is over.
        bytes.extend(frame(1, 0x5, 3, &block(&with(&[(":path", "/after")]))));
        client.write_all(&bytes).await.unwrap();
        let (socket, _) = timeout(SOON, server.accept()).await.unwrap().unwrap();
        let first = async {
            let mut connection = server::handshake(socket).await.ok()?;
            let (request, _respond) = connection.accept().await?.ok()?;
            Some(request.uri().path().to_owned())
        };
        let first = timeout(Duration::from_secs(2), first).await.expect("in time");
        assert!(matches!(first.as_deref(), None | Some("/after")), "{fields:?}: {first:?}");
    }
}
