//! What is asked by gRPC, and what comes of the answers.

use ambit_proto::envoy::auth::{
    self as proto,
    authorization_server::{Authorization, AuthorizationServer},
    check_response::HttpResponse,
};
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::TcpListenerStream;

use super::*;

/// What a provider answers to each question.
pub(crate) type Answering =
    Arc<dyn Fn(proto::CheckRequest) -> Result<proto::CheckResponse, tonic::Status> + Send + Sync>;

struct Scripted(Answering);

#[tonic::async_trait]
impl Authorization for Scripted {
    async fn check(
        &self,
        request: tonic::Request<proto::CheckRequest>,
    ) -> Result<tonic::Response<proto::CheckResponse>, tonic::Status> {
        (self.0)(request.into_inner()).map(tonic::Response::new)
    }
}

pub(crate) fn serve(listener: TcpListener, answering: Answering) -> JoinHandle<()> {
    let service = AuthorizationServer::new(Scripted(answering));
    tokio::spawn(async move {
        let incoming = TcpListenerStream::new(listener);
        tonic::transport::Server::builder().serve_with_incoming(service, incoming).await.unwrap();
    })
}

pub(crate) fn allows() -> Answering {
    Arc::new(|_| Ok(response(0, None)))
}

fn response(code: i32, http_response: Option<HttpResponse>) -> proto::CheckResponse {
    let message = if code == 0 { String::new() } else { "not on Sundays".to_owned() };
    proto::CheckResponse { status: Some(proto::Status { code, message }), http_response }
}

fn option(key: &str, value: &str) -> proto::HeaderValueOption {
    let header = proto::HeaderValue { key: key.into(), value: value.into(), raw_value: Vec::new() };
    proto::HeaderValueOption { header: Some(header), ..Default::default() }
}

/// A provider that answers so, and what it is asked.
async fn provider(
    settings: ProviderSettings,
    answer: Result<proto::CheckResponse, tonic::Status>,
) -> (Providers, Loopback, mpsc::UnboundedReceiver<proto::CheckRequest>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dialler = Loopback::to(listener.local_addr().unwrap());
    let (seen, asked) = mpsc::unbounded_channel();
    serve(
        listener,
        Arc::new(move |request| {
            seen.send(request).unwrap();
            answer.clone()
        }),
    );
    (providers(settings).0, dialler, asked)
}

fn principal(peer: Option<&proto::attribute_context::Peer>) -> (String, u32, String) {
    let peer = peer.unwrap();
    let Some(proto::address::Address::SocketAddress(socket)) = &peer.address.as_ref().unwrap().address else {
        panic!("{peer:?}");
    };
    let Some(proto::socket_address::PortSpecifier::PortValue(port)) = socket.port_specifier else {
        panic!("{peer:?}");
    };
    (socket.address.clone(), port, peer.principal.clone())
}

#[tokio::test]
async fn a_connection_is_told_by_its_two_ends() {
    let (providers, dialler, mut asked) = provider(settings(Form::Grpc), Ok(response(7, None))).await;
    let (status, body, why) = denied(ask(&providers, &dialler, None).await);
    assert_eq!((status, &*body), (403, ""));
    assert_eq!(why, "the provider opa denied it: not on Sundays");
    let attributes = asked.recv().await.unwrap().attributes.unwrap();
    let web = "spiffe://cluster.local/ns/shop/sa/web".to_owned();
    assert_eq!(principal(attributes.source.as_ref()), ("198.18.1.2".to_owned(), 40_000, web));
    let cart = "spiffe://cluster.local/ns/shop/sa/cart".to_owned();
    assert_eq!(principal(attributes.destination.as_ref()), ("198.18.2.2".to_owned(), 8080, cart));
    assert_eq!(attributes.request, None);
    assert!(attributes.tls_session.is_some());
}

#[tokio::test]
async fn a_request_is_told_as_it_is() {
    let body = Some(BodySettings { max_bytes: 4, allow_partial: true, as_bytes: false });
    let settings = ProviderSettings { body, ..settings(Form::Grpc) };
    let (providers, dialler, mut asked) = provider(settings.clone(), Ok(response(0, None))).await;
    let fields =
        [("x-role", "a"), ("X-Role", "b"), ("x-request-id", "7"), ("x-envoy-auth-partial-body", "lie")];
    let request = head("POST", "/orders/1?all=1", &fields);
    admitted(ask_with(&providers, &dialler, Some(&request), Some((b"12345", false))).await);
    let told = asked.recv().await.unwrap().attributes.unwrap().request.unwrap();
    assert!(told.time.is_some());
    let http = told.http.unwrap();
    assert_eq!((&*http.method, &*http.path, &*http.host), ("POST", "/orders/1?all=1", "shop.test:8080"));
    assert_eq!((&*http.id, &*http.scheme, &*http.protocol, http.size), ("7", "http", "HTTP/1.1", -1));
    assert_eq!((&*http.body, http.raw_body.len()), ("1234", 0));
    for (name, value) in [
        ("x-role", "a,b"),
        (":method", "POST"),
        (":path", "/orders/1?all=1"),
        (":authority", "shop.test:8080"),
        ("host", "shop.test:8080"),
        ("x-envoy-auth-partial-body", "true"),
    ] {
        assert_eq!(http.headers.get(name).map(String::as_str), Some(value), "{name}");
    }
    let as_bytes = Some(BodySettings { max_bytes: 4, allow_partial: false, as_bytes: true });
    let settings = ProviderSettings { body: as_bytes, ..settings };
    let (providers, dialler, mut asked) = provider(settings, Ok(response(0, None))).await;
    admitted(ask_with(&providers, &dialler, Some(&request), Some((b"\xff\x00", true))).await);
    let http = asked.recv().await.unwrap().attributes.unwrap().request.unwrap().http.unwrap();
    assert_eq!((&*http.body, &*http.raw_body), ("", &b"\xff\x00"[..]));
    assert_eq!(http.headers["x-envoy-auth-partial-body"], "false");
}

#[tokio::test]
async fn what_it_wants_changed_is_changed_both_ways() {
    let ok = proto::OkHttpResponse {
        headers: vec![
            option("x-user", "alice"),
            proto::HeaderValueOption { append: Some(true), ..option("x-role", "admin") },
            proto::HeaderValueOption { append_action: 1, ..option("x-kept", "new") },
            option("x-empty", ""),
        ],
        headers_to_remove: vec!["authorization".to_owned()],
        response_headers_to_add: vec![option("x-checked", "yes")],
        query_parameters_to_set: vec![proto::QueryParameter { key: "u".into(), value: "alice".into() }],
        query_parameters_to_remove: vec!["debug".to_owned()],
    };
    let ok = response(0, Some(HttpResponse::OkResponse(ok)));
    let (providers, dialler, _asked) = provider(settings(Form::Grpc), Ok(ok)).await;
    let fields = [("authorization", "secret"), ("x-user", "mallory"), ("x-role", "guest"), ("x-kept", "old")];
    let mut request = head("GET", "/a?debug=1&b=2", &fields);
    let changes = admitted(ask(&providers, &dialler, Some(&request)).await);
    changes.apply_to_request(&mut request);
    let all = |name: &str| -> Vec<&str> {
        request.headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect()
    };
    assert_eq!(all("x-user"), ["alice"]);
    assert_eq!(all("x-role"), ["guest", "admin"]);
    assert_eq!(all("x-kept"), ["old"]);
    assert!(all("authorization").is_empty() && all("x-empty").is_empty());
    assert_eq!(request.uri, "/a?b=2&u=alice");
    let mut answer = ::http::HeaderMap::new();
    changes.apply_to_answer(&mut answer);
    assert_eq!(answer["x-checked"], "yes");
}

/// A yes with a change that would get past policies is none.
#[tokio::test]
async fn a_change_that_policies_would_not_see_is_refused() {
    for name in [":path", ":method", "host", "content-length", "Transfer-Encoding", "connection", "a b"] {
        for removed in [false, true] {
            let ok = match removed {
                true => proto::OkHttpResponse { headers_to_remove: vec![name.into()], ..Default::default() },
                false => proto::OkHttpResponse { headers: vec![option(name, "x")], ..Default::default() },
            };
            let ok = response(0, Some(HttpResponse::OkResponse(ok)));
            let open = ProviderSettings { fail_open: true, ..settings(Form::Grpc) };
            let (providers, dialler, _asked) = provider(open, Ok(ok)).await;
            let (status, _, why) = denied(ask(&providers, &dialler, Some(&head("GET", "/", &[]))).await);
            assert_eq!(status, 403, "{name}");
            assert!(why.contains("a change that is not made"), "{why}");
        }
    }
}

#[tokio::test]
async fn a_denial_is_passed_on() {
    let no = proto::DeniedHttpResponse {
        status: Some(proto::HttpStatus { code: 401 }),
        headers: vec![option("www-authenticate", "Bearer"), option("content-length", "99")],
        body: "who are you?".to_owned(),
    };
    let no = response(16, Some(HttpResponse::DeniedResponse(no)));
    let (providers, dialler, _asked) = provider(settings(Form::Grpc), Ok(no)).await;
    let request = head("GET", "/", &[]);
    match ask(&providers, &dialler, Some(&request)).await {
        Answer::Denied { status, headers, body, .. } => {
            assert_eq!((status.as_u16(), &*body), (401, &b"who are you?"[..]));
            let names: Vec<&str> = headers.iter().map(|(name, _)| name.as_str()).collect();
            assert_eq!(names, ["www-authenticate"]);
        }
        Answer::Admitted(changes) => panic!("{changes:?}"),
    }
}

#[tokio::test]
async fn what_decides_nothing_lets_nobody_in() {
    let error = proto::DeniedHttpResponse {
        status: Some(proto::HttpStatus { code: 502 }),
        body: "my database is gone".to_owned(),
        ..Default::default()
    };
    let contradiction = HttpResponse::DeniedResponse(proto::DeniedHttpResponse::default());
    for (answer, expected, words) in [
        (Err(tonic::Status::unimplemented("no such thing")), 503, "gRPC status Unimplemented: no such thing"),
        (Ok(proto::CheckResponse::default()), 503, "has no status"),
        (Ok(response(0, Some(contradiction))), 503, "yes and no at once"),
        (Ok(response(13, Some(HttpResponse::ErrorResponse(error)))), 502, "could not decide: not on Sundays"),
    ] {
        let status_on_error = StatusCode::SERVICE_UNAVAILABLE;
        let settings = ProviderSettings { status_on_error, ..settings(Form::Grpc) };
        let (providers, dialler, _asked) = provider(settings, answer).await;
        let (status, _, why) = denied(ask(&providers, &dialler, Some(&head("GET", "/", &[]))).await);
        assert_eq!(status, expected, "{why}");
        assert!(why.contains(words), "{why}");
    }
}
