//! Requests over the whole way: what is judged, answered, passed on and refused, with scripted applications that record what they get.

mod corpus;
mod streams;

use ambit_core::policy::{
    self, Action, Attribute, AuthorizationPolicy, Context, Field, JwtRule, Keys, RequestAuthentication, Rule,
    Target, TrustDomains,
};

use super::*;

/// A policy for all pods of namespace shop with one rule for these paths.
fn paths(action: Action, paths: &[&str]) -> AuthorizationPolicy {
    let trust_domains = TrustDomains::new("cluster.local".parse().unwrap(), []);
    let context = Context { namespace: "shop", trust_domains: &trust_domains };
    let paths: Vec<String> = paths.iter().map(|path| (*path).to_owned()).collect();
    let field = Field::new("to[0].operation.paths", Attribute::Path, false, &paths, context).unwrap();
    AuthorizationPolicy {
        name: ObjectName::new("shop", "paths"),
        target: Target::Pods(Labels::new()),
        action,
        provider: None,
        rules: vec![Rule::new(Vec::new(), vec![vec![field]], Vec::new())],
        dry_run: false,
        doubt: None,
    }
}

fn compiled(policies: impl IntoIterator<Item = AuthorizationPolicy>) -> Arc<WorkloadPolicy> {
    let mut set = PolicySet::new("ambit-system");
    for policy in policies {
        set.apply(policy::Change::AuthorizationPolicy(Arc::new(policy)));
    }
    Arc::new(set.compile_for(&"shop".into(), &Labels::new()))
}

/// No request for /admin, and all else.
fn no_admin() -> Arc<WorkloadPolicy> {
    compiled([paths(Action::Deny, &["/admin*"])])
}

async fn expect(socket: &mut TcpStream, text: &str) {
    let mut read = vec![0; text.len()];
    let result = timeout(SOON, socket.read_exact(&mut read)).await;
    let read = String::from_utf8_lossy(&read);
    assert!(matches!(result, Ok(Ok(_))), "{result:?} after {read:?} in place of {text:?}");
    assert_eq!(read, text);
}

async fn say(socket: &mut TcpStream, text: &str) {
    socket.write_all(text.as_bytes()).await.unwrap();
}

async fn is_ended(socket: &mut TcpStream) {
    let read = timeout(SOON, socket.read(&mut [0; 64])).await.expect("in time");
    assert_eq!(read.unwrap(), 0);
}

const REFUSED: &str =
    "HTTP/1.1 403 Forbidden\r\ncontent-type: text/plain\r\ncontent-length: 19\r\n\r\nRBAC: access denied";
const OK: &str = "HTTP/1.1 200 Fine\r\nX-Case: Kept\r\nContent-Length: 2\r\n\r\nok";

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: cart\r\nx-Odd-CASE: a\r\n\r\n")
}

/// A client of web, cart's application once something is there for it, and cart's policy.
struct Pair {
    node: Node,
    client: TcpStream,
    server: TcpListener,
    policy: Policy,
}

async fn pair_under(policy: Arc<WorkloadPolicy>) -> Pair {
    let node = Node::new().await;
    let (mut web, sender, server) = node.both().await;
    sender.send_replace(policy);
    let client = node.connect(&mut web).await;
    Pair { node, client, server, policy: sender }
}

#[tokio::test]
async fn each_request_of_a_connection_is_judged_and_passes_as_it_came() {
    let Pair { node, mut client, server, policy } = pair_under(no_admin()).await;
    say(&mut client, &get("/a//b?c=d")).await;
    let (mut app, _) = server.accept().await.unwrap();
    expect(&mut app, &get("/a//b?c=d")).await;
    say(&mut app, OK).await;
    expect(&mut client, OK).await;
    // Refused, and the connection lives on; what is behind the refused one as well.
    say(&mut client, &(get("/admin/x") + &get("/b"))).await;
    expect(&mut client, REFUSED).await;
    expect(&mut app, &get("/b")).await;
    say(&mut app, OK).await;
    expect(&mut client, OK).await;
    // What is judged is what is forwarded.
    say(&mut client, &get("/x/../%61dmin")).await;
    expect(&mut client, REFUSED).await;
    say(&mut client, &get("/x/./%62?q=/../%61")).await;
    expect(&mut app, &get("/x/b?q=/../%61")).await;
    say(&mut app, OK).await;
    expect(&mut client, OK).await;
    // A change of policy holds from the next request on.
    policy.send_replace(compiled([paths(Action::Allow, &["/c"])]));
    say(&mut client, &get("/b")).await;
    expect(&mut client, REFUSED).await;
    say(&mut client, &get("/c")).await;
    expect(&mut app, &get("/c")).await;
    say(&mut app, OK).await;
    expect(&mut client, OK).await;
    // And a connection of which no request can be let in is cut.
    policy.send_replace(strict_for_nobody());
    is_reset(&mut client).await;
    node.until("ambit_refusals_total", &["destination", "reason=\"policy_denied\""], 4).await;
}

/// Lets nobody in.
fn strict_for_nobody() -> Arc<WorkloadPolicy> {
    let mut nobody = paths(Action::Allow, &["/"]);
    nobody.rules.clear();
    compiled([nobody])
}

#[tokio::test]
async fn a_connection_that_ends_gives_its_tunnel_back() {
    let node = Node::new().await;
    let (mut web, policy, server) = node.both().await;
    policy.send_replace(no_admin());
    for _ in 0..3 {
        let mut client = node.connect(&mut web).await;
        say(&mut client, &get("/")).await;
        let (mut app, _) = server.accept().await.unwrap();
        expect(&mut app, &get("/")).await;
        say(&mut app, OK).await;
        expect(&mut client, OK).await;
        client.shutdown().await.unwrap();
        is_ended(&mut app).await;
        drop(app);
        is_ended(&mut client).await;
        drop(client);
        node.until("istio_tcp_sockets_open", &[], 0).await;
    }
    assert_eq!(node.metric("ambit_handshakes_total", &["source"]), 1);
}

#[tokio::test]
async fn bodies_pass_both_ways_at_once_with_interim_answers_and_trailers() {
    let Pair { mut client, server, .. } = pair_under(no_admin()).await;
    let head = "POST /a HTTP/1.1\r\nHost: cart\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n";
    say(&mut client, head).await;
    let (mut app, _) = server.accept().await.unwrap();
    expect(&mut app, head).await;
    for interim in ["HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", "HTTP/1.1 100 Continue\r\n\r\n"] {
        say(&mut app, interim).await;
        expect(&mut client, interim).await;
    }
    say(&mut client, "5;x=y\r\nhello\r\n").await;
    expect(&mut app, "5;x=y\r\nhello\r\n").await;
    // The answer begins, and goes on, before the request is over.
    let answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\n\r\n3\r\nyes\r\n";
    say(&mut app, answer).await;
    expect(&mut client, answer).await;
    for part in ["3\r\nyou\r\n", "0\r\nX-Sum: 1\r\n\r\n"] {
        say(&mut client, part).await;
        expect(&mut app, part).await;
    }
    say(&mut app, "0\r\nX: y\r\n\r\n").await;
    expect(&mut client, "0\r\nX: y\r\n\r\n").await;
    // HEAD has no body, whatever its length says; HTTP/1.0 ends with its connection.
    let request = "HEAD /b HTTP/1.0\r\nConnection: keep-alive\r\n\r\n";
    say(&mut client, request).await;
    expect(&mut app, request).await;
    say(&mut app, "HTTP/1.0 200 OK\r\nContent-Length: 99\r\n\r\n").await;
    expect(&mut client, "HTTP/1.0 200 OK\r\nContent-Length: 99\r\n\r\n").await;
    say(&mut client, "GET /c HTTP/1.0\r\n\r\n").await;
    expect(&mut app, "GET /c HTTP/1.0\r\n\r\n").await;
    say(&mut app, "HTTP/1.0 200 OK\r\n\r\nuntil the end").await;
    drop(app);
    expect(&mut client, "HTTP/1.0 200 OK\r\n\r\nuntil the end").await;
    is_ended(&mut client).await;
}

#[tokio::test]
async fn who_is_refused_is_not_told_to_go_on() {
    let Pair { mut client, server, .. } = pair_under(no_admin()).await;
    say(
        &mut client,
        "PUT /admin HTTP/1.1\r\nHost: cart\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n",
    )
    .await;
    let closes = REFUSED.replace("19\r\n", "19\r\nconnection: close\r\n");
    expect(&mut client, &closes).await;
    is_ended(&mut client).await;
    let (mut app, _) = server.accept().await.unwrap();
    assert_eq!(app.read(&mut [0; 8]).await.unwrap_or(0), 0, "nothing of it came");
}

#[tokio::test]
async fn the_body_of_a_refused_request_is_read_over() {
    let Pair { mut client, server, .. } = pair_under(no_admin()).await;
    say(&mut client, "POST /admin HTTP/1.1\r\nHost: cart\r\nContent-Length: 31\r\n\r\nGET /b HTTP/1.1\r\n")
        .await;
    expect(&mut client, REFUSED).await;
    say(&mut client, "Host: cart\r\n\r\n").await;
    say(&mut client, &get("/b")).await;
    let (mut app, _) = server.accept().await.unwrap();
    expect(&mut app, &get("/b")).await;
}

#[tokio::test]
async fn heads_that_take_too_much_are_refused_with_a_reason() {
    let many: String = (0..200).map(|at| format!("x-{at}: y\r\n")).collect();
    for (fields, why) in [
        (format!("x: {}\r\n", "y".repeat(70_000)), "the head is longer than 64 KiB with its request line"),
        (many, "the head has more than 128 fields"),
    ] {
        let Pair { mut client, server, .. } = pair_under(no_admin()).await;
        say(&mut client, &format!("GET / HTTP/1.1\r\nHost: cart\r\n{fields}\r\n")).await;
        let body = format!("Request Header Fields Too Large: {why}");
        let head = format!(
            "HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: text/plain\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
            body.len()
        );
        expect(&mut client, &(head + &body)).await;
        is_ended(&mut client).await;
        let (mut app, _) = server.accept().await.unwrap();
        assert_eq!(app.read(&mut [0; 8]).await.unwrap_or(0), 0, "nothing of it came");
    }
}

#[tokio::test]
async fn an_upgrade_that_is_let_in_carries_anything() {
    let Pair { mut client, server, .. } = pair_under(no_admin()).await;
    let request = "GET /chat HTTP/1.1\r\nHost: cart\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    say(&mut client, request).await;
    let (mut app, _) = server.accept().await.unwrap();
    expect(&mut app, request).await;
    let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    say(&mut app, &(answer.to_owned() + "hello")).await;
    expect(&mut client, &(answer.to_owned() + "hello")).await;
    say(&mut client, "GET /admin HTTP/1.1\n\n").await;
    expect(&mut app, "GET /admin HTTP/1.1\n\n").await;
    client.shutdown().await.unwrap();
    is_ended(&mut app).await;
    say(&mut app, "bye").await;
    drop(app);
    expect(&mut client, "bye").await;
    is_ended(&mut client).await;
}

#[tokio::test]
async fn nobody_upgrades_to_what_carries_unjudged_requests() {
    let Pair { mut client, server, .. } = pair_under(no_admin()).await;
    let asked = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n";
    say(&mut client, &format!("GET / HTTP/1.1\r\nHost: cart\r\n{asked}\r\n")).await;
    let (mut app, _) = server.accept().await.unwrap();
    expect(&mut app, "GET / HTTP/1.1\r\nHost: cart\r\n\r\n").await;
    // An application that does it all the same is cut off.
    say(&mut app, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n").await;
    let read = timeout(SOON, client.read(&mut [0; 64])).await.expect("in time");
    assert!(read.is_err() || read.unwrap() == 0);
}

#[tokio::test]
async fn what_is_not_http_goes_by_the_rules_for_it() {
    // A DENY loses what is of HTTP only, and then is for everything; RequestAuthentication alone leaves other protocols alone.
    let Pair { node, mut client, server, .. } = pair_under(no_admin()).await;
    say(&mut client, "\x00\x01binary").await;
    is_reset(&mut client).await;
    node.until("ambit_refusals_total", &["destination", "reason=\"policy_denied\""], 1).await;
    drop(server);
    let Pair { mut client, server, .. } = pair_under(tokens()).await;
    let (mut app, _) = server.accept().await.unwrap();
    say(&mut app, "220 the server speaks first\r\n").await;
    expect(&mut client, "220 the server speaks first\r\n").await;
    say(&mut client, "EHLO web\r\n").await;
    expect(&mut app, "EHLO web\r\n").await;
    let Pair { mut client, server, .. } = pair_under(tokens()).await;
    say(&mut client, "\x16\x04\x01 no hello").await;
    let (mut app, _) = server.accept().await.unwrap();
    expect(&mut app, "\x16\x04\x01 no hello").await;
}

/// Tokens of one issuer are judged.
fn tokens() -> Arc<WorkloadPolicy> {
    tokens_and([])
}

/// The same, beside other policies.
fn tokens_and(others: impl IntoIterator<Item = AuthorizationPolicy>) -> Arc<WorkloadPolicy> {
    let mut set = PolicySet::new("ambit-system");
    let rule = JwtRule {
        issuer: "https://issuer.example".into(),
        audiences: Vec::new(),
        keys: Keys::Inline(r#"{"keys":[]}"#.into()),
        places: Vec::new(),
        payload_header: Some("x-payload".into()),
        claim_headers: Vec::new(),
        forward: false,
        timeout_ms: 1000,
        space_delimited: Vec::new(),
    };
    set.apply(policy::Change::RequestAuthentication(Arc::new(RequestAuthentication {
        name: ObjectName::new("shop", "tokens"),
        target: Target::Pods(Labels::new()),
        rules: vec![Arc::new(rule)],
        doubt: None,
    })));
    for policy in others {
        set.apply(policy::Change::AuthorizationPolicy(Arc::new(policy)));
    }
    Arc::new(set.compile_for(&"shop".into(), &Labels::new()))
}

#[tokio::test]
async fn bad_tokens_are_refused_and_fields_of_ours_cannot_be_forged() {
    let Pair { mut client, server, .. } = pair_under(tokens()).await;
    say(&mut client, "GET / HTTP/1.1\r\nHost: cart\r\nX-Payload: forged\r\nA: b\r\n\r\n").await;
    let (mut app, _) = server.accept().await.unwrap();
    expect(&mut app, "GET / HTTP/1.1\r\nHost: cart\r\nA: b\r\n\r\n").await;
    say(&mut app, OK).await;
    expect(&mut client, OK).await;
    say(&mut client, "GET / HTTP/1.1\r\nHost: cart\r\nAuthorization: Bearer x\r\n\r\n").await;
    expect(&mut client, "HTTP/1.1 401 Unauthorized\r\ncontent-type: text/plain\r\nwww-authenticate: Bearer realm=\"http://cart/\"").await;
}

/// A preflight carries no token that counts, so that a bad one does it no harm; policies hold for it all the same.
#[tokio::test]
async fn case_42_a_preflight_is_judged_without_its_token() {
    let Pair { mut client, server, .. } = pair_under(tokens_and([paths(Action::Deny, &["/admin*"])])).await;
    let asks = |method: &str, path: &str| {
        format!(
            "{method} {path} HTTP/1.1\r\nHost: cart\r\nOrigin: https://shop\r\nAccess-Control-Request-Method: PUT\r\n\
             Authorization: Bearer x\r\n\r\n"
        )
    };
    say(&mut client, &asks("OPTIONS", "/a")).await;
    let (mut app, _) = server.accept().await.unwrap();
    expect(&mut app, &asks("OPTIONS", "/a")).await;
    say(&mut app, OK).await;
    expect(&mut client, OK).await;
    say(&mut client, &asks("OPTIONS", "/admin")).await;
    expect(&mut client, REFUSED).await;
    say(&mut client, &asks("GET", "/a")).await;
    expect(&mut client, "HTTP/1.1 401 Unauthorized").await;
}
