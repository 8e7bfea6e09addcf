//! Verdicts of AuthorizationPolicies on tunnels and plaintext.

use ambit_core::policy::{
    self, Action, Attribute, AuthorizationPolicy, Context, Field, Rule, Target, TrustDomains,
};

use super::*;

/// A policy for all pods of namespace shop with one rule, for these service accounts.
fn for_accounts(action: Action, accounts: &[&str]) -> Arc<WorkloadPolicy> {
    let trust_domains = TrustDomains::new("cluster.local".parse().unwrap(), []);
    let context = Context { namespace: "shop", trust_domains: &trust_domains };
    let accounts: Vec<String> = accounts.iter().map(|account| (*account).to_owned()).collect();
    let source =
        Field::new("from[0].source.serviceAccounts", Attribute::ServiceAccount, false, &accounts, context);
    let mut policies = PolicySet::new("ambit-system");
    policies.apply(policy::Change::AuthorizationPolicy(Arc::new(AuthorizationPolicy {
        name: ObjectName::new("shop", "accounts"),
        target: Target::Pods(Labels::new()),
        action,
        rules: vec![Rule::new(vec![vec![source.unwrap()]], Vec::new(), Vec::new())],
        dry_run: false,
        doubt: None,
    })));
    Arc::new(policies.compile_for(&"shop".into(), &Labels::new()))
}

const BOTH: [&str; 2] = ["reporter=\"source\"", "reporter=\"destination\""];
const DENIED: &str = "reason=\"policy_denied\"";

#[tokio::test]
async fn who_is_not_allowed_is_refused_on_both_sides() {
    let node = Node::new().await;
    let (mut web, policy, server) = node.both().await;
    policy.send_replace(for_accounts(Action::Allow, &["shop/web"]));
    ask(node.connect(&mut web).await, &server).await;
    policy.send_replace(for_accounts(Action::Allow, &["shop/other"]));
    is_reset(&mut node.connect(&mut web).await).await;
    for reporter in BOTH {
        node.until("ambit_refusals_total", &[reporter, DENIED], 1).await;
    }
    assert!(
        timeout(Duration::from_millis(20), server.accept()).await.is_err(),
        "the application was connected"
    );
}

#[tokio::test]
async fn a_tunnel_that_becomes_denied_is_cut_on_both_sides() {
    let node = Node::new().await;
    let (mut web, policy, server) = node.both().await;
    let mut client = node.connect(&mut web).await;
    client.write_all(b"x").await.unwrap();
    let (mut app, _) = server.accept().await.unwrap();
    app.read_exact(&mut [0]).await.unwrap();
    policy.send_replace(for_accounts(Action::Deny, &["shop/other"]));
    node.until("ambit_policy_wakes_total", &[], 1).await;
    client.write_all(b"y").await.unwrap();
    app.read_exact(&mut [0]).await.unwrap();
    policy.send_replace(for_accounts(Action::Deny, &["shop/web"]));
    is_reset(&mut client).await;
    is_reset(&mut app).await;
    for reporter in BOTH {
        node.until("ambit_refusals_total", &[reporter, DENIED], 1).await;
    }
}

/// Plaintext has no identity, and the application is not connected before it is known whether it is let in.
#[tokio::test]
async fn plaintext_is_not_one_of_those_that_are_allowed() {
    let node = Node::new().await;
    let (agent, server) = (listener().await, listener().await);
    let (cart, policy) = node.pod("cart", None, Some(server.local_addr().unwrap()));
    policy.send_replace(for_accounts(Action::Allow, &["shop/web"]));
    let mut client = TcpStream::connect(agent.local_addr().unwrap()).await.unwrap();
    node.capture(agent, STRANGER, cart);
    client.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    is_reset(&mut client).await;
    node.until("ambit_refusals_total", &["destination", DENIED], 1).await;
    assert!(timeout(Duration::from_millis(20), server.accept()).await.is_err());
}
