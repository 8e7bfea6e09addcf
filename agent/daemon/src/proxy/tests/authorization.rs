//! Verdicts of AuthorizationPolicies on tunnels and plaintext.

use ambit_core::policy::{
    self, Action, Attribute, AuthorizationPolicy, Context, Field, Rule, Target, TrustDomains,
};

use super::*;

/// A policy for all pods of namespace shop with one rule, for these service accounts.
pub(super) fn for_accounts(action: Action, accounts: &[&str]) -> Arc<WorkloadPolicy> {
    compiled([accounts_policy("accounts", action, accounts, false)])
}

fn compiled(policies: impl IntoIterator<Item = AuthorizationPolicy>) -> Arc<WorkloadPolicy> {
    let mut set = PolicySet::new("ambit-system");
    for policy in policies {
        set.apply(policy::Change::AuthorizationPolicy(Arc::new(policy)));
    }
    Arc::new(set.compile_for(&"shop".into(), &Labels::new()))
}

fn accounts_policy(name: &str, action: Action, accounts: &[&str], dry_run: bool) -> AuthorizationPolicy {
    let trust_domains = TrustDomains::new("cluster.local".parse().unwrap(), []);
    let context = Context { namespace: "shop", trust_domains: &trust_domains };
    let accounts: Vec<String> = accounts.iter().map(|account| (*account).to_owned()).collect();
    let source =
        Field::new("from[0].source.serviceAccounts", Attribute::ServiceAccount, false, &accounts, context);
    AuthorizationPolicy {
        name: ObjectName::new("shop", name),
        target: Target::Pods(Labels::new()),
        action,
        provider: None,
        rules: vec![Rule::new(vec![vec![source.unwrap()]], Vec::new(), Vec::new())],
        dry_run,
        doubt: None,
    }
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

/// Tunnels that are new, open, or refused: each is rehearsed once for what is to be rehearsed, and goes on as it would.
#[tokio::test]
async fn what_decides_nothing_is_tried_on_every_connection() {
    const REHEARSALS: &str = "ambit_policy_rehearsals_total";
    let node = Node::new().await;
    let (mut web, policy, server) = node.both().await;
    let dry = |name| accounts_policy(name, Action::Deny, &["shop/web"], true);
    policy.send_replace(compiled([dry("one")]));
    let mut client = node.connect(&mut web).await;
    client.write_all(b"x").await.unwrap();
    let (mut app, _) = server.accept().await.unwrap();
    app.read_exact(&mut [0]).await.unwrap();
    node.until(REHEARSALS, &["shop/one", "would_refuse"], 1).await;
    // A live connection, when there is something new to rehearse; not when something else changes.
    policy.send_replace(compiled([dry("two")]));
    node.until(REHEARSALS, &["shop/two", "would_refuse"], 1).await;
    client.write_all(b"y").await.unwrap();
    app.read_exact(&mut [0]).await.unwrap();
    let observed = node.proxy.0.telemetry.observations();
    assert!(observed.denials.is_empty());
    assert_eq!(observed.rehearsals.len(), 2, "{:?}", observed.rehearsals);
    // One that is refused: what would let it in is told, and does not.
    let only_other = accounts_policy("only-other", Action::Allow, &["shop/other"], false);
    let web_too = accounts_policy("web-too", Action::Allow, &["shop/web"], true);
    policy.send_replace(compiled([only_other, web_too]));
    is_reset(&mut client).await;
    is_reset(&mut node.connect(&mut web).await).await;
    // The open one before it was cut, and the new one.
    node.until(REHEARSALS, &["shop/web-too", "would_admit"], 2).await;
}
