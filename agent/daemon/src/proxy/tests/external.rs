//! Providers in the mesh, reached as the pod that is called would reach them.

use super::*;
use crate::{
    authz::{
        Answer, Form, ProviderAddr, ProviderSettings, Providers, Subject,
        tests::{
            grpc::{allows, serve},
            settings,
        },
    },
    proxy::external::AsPod,
};

/// What is said of a provider at this host, in the name of the pod `web` as it is called at this address.
async fn asked(node: &Node, web: &Serving<Scripted>, host: &str, called: &str) -> Result<(), String> {
    let addr = ProviderAddr { namespace: None, host: host.into(), port: 80 };
    let provider = ProviderSettings { addr, ..settings(Form::Grpc) };
    let providers = Providers::new([provider], &node.proxy.0.telemetry);
    let workload = node.proxy.0.feed.world().mesh.workload_by_ip(WEB.parse().unwrap()).unwrap().clone();
    let called: SocketAddr = called.parse().unwrap();
    let dialler = AsPod { shared: &node.proxy.0, pod: &web.pod, workload: &workload, called };
    let subject = Subject {
        source: "198.18.9.9:4000".parse().unwrap(),
        peer: None,
        destination: called,
        own: &workload.identity,
        request: None,
        body: None,
    };
    match providers.ask("opa", &subject, &dialler).await {
        Answer::Admitted(_) => Ok(()),
        Answer::Denied { why, .. } => Err(why.to_string()),
    }
}

#[tokio::test]
async fn one_in_the_mesh_is_asked_through_a_tunnel_with_the_pods_identity() {
    let node = Node::new().await;
    let (web, policy, server) = node.both().await;
    let _provider = serve(server, allows());
    asked(&node, &web, CART, "198.18.1.2:8080").await.unwrap();
    assert_eq!(node.metric("ambit_handshakes_total", &["source"]), 1);
    let tunnel = ["source_principal=\"spiffe://cluster.local/ns/shop/sa/web\"", "mutual_tls"];
    node.until("istio_tcp_connections_opened_total", &tunnel, 1).await;
    // Its own policies hold.
    policy.send_replace(strict());
    asked(&node, &web, CART, "198.18.1.2:8080").await.unwrap();
    policy.send_replace(authorization::for_accounts(policy::Action::Deny, &["shop/web"]));
    let why = asked(&node, &web, CART, "198.18.1.2:8080").await.unwrap_err();
    assert!(why.contains("policy_denied"), "{why}");
}

#[tokio::test]
async fn one_that_is_the_pod_itself_is_not_asked() {
    let node = Node::new().await;
    let (web, _policy, _server) = node.both().await;
    let why = asked(&node, &web, WEB, &format!("{WEB}:80")).await.unwrap_err();
    assert!(why.contains("exclude its pods from CUSTOM policies"), "{why}");
    let why = asked(&node, &web, "opa.shop.svc.cluster.local", &format!("{WEB}:8080")).await.unwrap_err();
    assert!(why.contains("there is no service shop/opa"), "{why}");
}
