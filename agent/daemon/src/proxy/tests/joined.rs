//! Two pods of one node whose connections are joined: no tunnel, and otherwise all as over one.

use ambit_core::policy::Action;

use super::{authorization::for_accounts, *};

const BOTH: [&str; 2] = ["reporter=\"source\"", "reporter=\"destination\""];
const JOINED: &str = "connection_security_policy=\"local_identity\"";

async fn joining() -> (Node, Serving<Scripted>, Policy, TcpListener) {
    let node = Node::joining(true).await;
    let (web, policy, server) = node.both().await;
    (node, web, policy, server)
}

/// A connection that has been used, and the application's end of it.
async fn used(node: &Node, web: &mut Serving<Scripted>, server: &TcpListener) -> (TcpStream, TcpStream) {
    let mut client = node.connect(web).await;
    client.write_all(b"x").await.unwrap();
    let (mut app, _) = timeout(SOON, server.accept()).await.expect("in time").unwrap();
    app.read_exact(&mut [0]).await.unwrap();
    (client, app)
}

#[tokio::test]
async fn they_need_no_handshake_and_are_counted_at_both_ends() {
    let (node, mut web, _policy, server) = joining().await;
    for _ in 0..3 {
        ask(node.connect(&mut web).await, &server).await;
    }
    node.until("istio_tcp_sockets_open", &[], 0).await;
    assert_eq!(node.metric("ambit_handshakes_total", &[]), 0);
    for reporter in BOTH {
        let web = "source_principal=\"spiffe://cluster.local/ns/shop/sa/web\"";
        let cart = "destination_principal=\"spiffe://cluster.local/ns/shop/sa/cart\"";
        let labels = [reporter, JOINED, web, cart];
        assert_eq!(node.metric("istio_tcp_received_bytes_total", &labels), 27);
        assert_eq!(node.metric("istio_tcp_sent_bytes_total", &labels), 12);
        assert_eq!(node.metric("istio_tcp_connections_closed_total", &labels), 3);
    }
    assert_eq!(node.proxy.active(), 0);
}

#[tokio::test]
async fn mutual_tls_is_satisfied_and_plaintext_is_not() {
    let (node, mut web, policy, server) = joining().await;
    policy.send_replace(strict());
    ask(node.connect(&mut web).await, &server).await;
}

#[tokio::test]
async fn who_is_not_allowed_is_refused_and_cut_on_both_sides() {
    let (node, mut web, policy, server) = joining().await;
    let (mut client, mut app) = used(&node, &mut web, &server).await;
    policy.send_replace(for_accounts(Action::Deny, &["shop/web"]));
    is_reset(&mut client).await;
    is_reset(&mut app).await;
    is_reset(&mut node.connect(&mut web).await).await;
    for reporter in BOTH {
        node.until("ambit_refusals_total", &[reporter, "reason=\"policy_denied\""], 2).await;
    }
    assert!(timeout(Duration::from_millis(20), server.accept()).await.is_err(), "it was connected");
    node.until("istio_tcp_sockets_open", &[], 0).await;
}

#[tokio::test]
async fn resets_pass_and_are_the_applications_affair() {
    let (node, mut web, _policy, server) = joining().await;
    for by_client in [true, false] {
        let (client, app) = used(&node, &mut web, &server).await;
        let (leaving, mut left) = if by_client { (client, app) } else { (app, client) };
        SockRef::from(&leaving).set_linger(Some(Duration::ZERO)).unwrap();
        drop(leaving);
        is_reset(&mut left).await;
    }
    node.until("istio_tcp_sockets_open", &[], 0).await;
    assert_eq!(node.metric("ambit_connection_failures_total", &[]), 0);
}

#[tokio::test]
async fn an_application_that_does_not_listen_is_a_refusal_at_both_ends() {
    let node = Node::joining(true).await;
    let (mut web, _) = node.pod("web", None, None);
    let (_cart, _policy) = node.pod("cart", None, None);
    is_reset(&mut node.connect(&mut web).await).await;
    for reporter in BOTH {
        node.until("ambit_refusals_total", &[reporter, "reason=\"connection_refused\""], 1).await;
    }
}

#[tokio::test]
async fn who_is_not_served_here_or_an_agent_that_ends_has_a_tunnel() {
    let (node, mut web, _policy, server) = joining().await;
    node.proxy.drain();
    ask(node.connect(&mut web).await, &server).await;
    assert_eq!(node.metric("ambit_handshakes_total", &["source"]), 1);
    let alone = Node::joining(true).await;
    let (mut web, _) = alone.pod("web", None, None);
    is_reset(&mut alone.connect(&mut web).await).await;
    alone.until("ambit_refusals_total", &["reporter=\"source\"", "connection_refused"], 1).await;
}

#[tokio::test]
async fn an_identity_without_a_certificate_is_refused() {
    for (kept, reporters) in [("cart", &BOTH[..]), ("web", &BOTH[..1])] {
        let (node, mut web, _policy, server) = joining().await;
        // They have believed each other before.
        ask(node.connect(&mut web).await, &server).await;
        node.keys.retain([identity(kept)]);
        is_reset(&mut node.connect(&mut web).await).await;
        for reporter in reporters {
            let labels = [*reporter, "reason=\"identity_unavailable\""];
            node.until("ambit_refusals_total", &labels, 1).await;
        }
    }
}

#[tokio::test]
async fn connections_keep_their_order() {
    let (node, mut web, _policy, server) = joining().await;
    let mut clients = Vec::new();
    for number in 0..16_u8 {
        let mut client = node.connect(&mut web).await;
        client.write_all(&[number]).await.unwrap();
        clients.push(client);
    }
    for number in 0..16_u8 {
        let (mut app, _) = timeout(SOON, server.accept()).await.expect("in time").unwrap();
        assert_eq!(app.read_u8().await.unwrap(), number);
    }
}
