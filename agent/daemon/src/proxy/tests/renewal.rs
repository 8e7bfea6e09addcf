//! Tunnels from before a certificate was renewed.

use super::*;
use crate::identity::{Csr, IssueFuture, Issuer};

/// A CA that also says when there is something new.
pub(super) struct Renewing(pub(super) BuiltinCa, pub(super) Arc<Renewed>);

impl Issuer for Renewing {
    fn name(&self) -> &str {
        "renewing"
    }

    fn issue(&self, csr: Csr) -> IssueFuture<'_> {
        self.0.issue(csr)
    }

    fn renewed(&self) -> Option<Arc<Renewed>> {
        Some(self.1.clone())
    }
}

impl Node {
    /// Has `name` get another certificate.
    async fn renew(&self, name: &str) {
        let id = identity(name);
        let before = self.keys.current(&id).unwrap().serial.clone();
        self.renewed.tell(id.clone());
        let renewed = async {
            while self.keys.current(&id).unwrap().serial == before {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(SOON, renewed).await.expect("another certificate");
    }

    async fn asked(&self, web: &mut Serving<Scripted>, server: &TcpListener) {
        ask(self.connect(web).await, server).await;
        self.until("istio_tcp_sockets_open", &[], 0).await;
    }

    fn handshakes(&self) -> u64 {
        self.metric("ambit_handshakes_total", &["source"])
    }
}

#[tokio::test]
async fn a_client_that_has_another_certificate_makes_another_tunnel() {
    let node = Node::new().await;
    let (mut web, _policy, server) = node.both().await;
    node.asked(&mut web, &server).await;
    node.asked(&mut web, &server).await;
    assert_eq!(node.handshakes(), 1);
    node.renew("web").await;
    node.asked(&mut web, &server).await;
    node.asked(&mut web, &server).await;
    assert_eq!(node.handshakes(), 2, "one new tunnel, which then serves the next");
}

#[tokio::test]
async fn a_server_that_has_another_certificate_lets_a_tunnel_serve_once_more() {
    let node = Node::new().await;
    let (mut web, _policy, server) = node.both().await;
    node.asked(&mut web, &server).await;
    node.renew("cart").await;
    for _ in 0..4 {
        node.asked(&mut web, &server).await;
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(node.handshakes(), 2);
}

#[tokio::test]
async fn where_no_tunnel_can_be_made_the_one_from_before_serves() {
    let node = Node::new().await;
    let (agent, server) = (listener().await, listener().await);
    let (mut web, _) = node.pod("web", Some(agent.local_addr().unwrap()), None);
    let (cart, _policy) = node.pod("cart", None, Some(server.local_addr().unwrap()));
    let capturing = node.capture(agent, WEB, cart);
    node.asked(&mut web, &server).await;
    node.renew("web").await;
    capturing.abort();
    assert!(capturing.await.unwrap_err().is_cancelled());
    node.asked(&mut web, &server).await;
    assert_eq!(node.handshakes(), 1);
}
