//! AuthorizationPolicies from the API: in force, told of, and outliving their definition; RequestAuthentications.

use ambit_core::policy::{Decision, Facts, decide};

use super::*;

fn authorization(spec: Value, version: &str) -> Value {
    let mut object = policy("", version);
    object["kind"] = json!("AuthorizationPolicy");
    object["spec"] = spec;
    object
}

fn lets_in(world: &World) -> bool {
    let id = "spiffe://cluster.local/ns/a/sa/x".parse().unwrap();
    let [source_ip, destination_ip] = ["10.0.0.9", "10.0.0.1"].map(|ip| ip.parse().unwrap());
    let facts = Facts {
        port: 80,
        peer: Some(&id),
        source_ip,
        destination_ip,
        request: None,
        admitted: false,
        sni: None,
    };
    decide(&world.policies.compile_for(&"shop".into(), &Labels::new()), &facts) == Decision::Allow
}

#[tokio::test(start_paused = true)]
async fn a_policy_is_in_force_until_somebody_removes_it() {
    let mut bench = Bench::new("authorizationpolicies");
    let deny = json!({"action": "DENY", "rules": [{}]});
    let events = bench.list(&[authorization(deny.clone(), "5")], "6").await;
    bench.until("in force", |world| world.synced && !lets_in(world)).await;
    bench.definition.ends("first");
    events.send("DELETED", &authorization(deny, "7"));
    let world = bench.until("told", |world| !world.problems.is_empty()).await;
    assert!(!lets_in(&world), "gone with the definition");
    assert!(problems(&world)[0].contains("1 authorizationpolicies"), "{:?}", problems(&world));
    bench.definition.stands("first");
    events.send("ADDED", &authorization(json!({"rules": [{}]}), "8"));
    let world = bench.until("stated anew", lets_in).await;
    assert!(lets_in(&world));
}

/// For new connections and, by the same channel, for those that are open.
#[tokio::test(start_paused = true)]
async fn a_change_is_in_force_a_tenth_of_a_second_after_it_was_seen() {
    let mut bench = Bench::new("authorizationpolicies");
    let events = bench.list(&[], "6").await;
    bench.until("synced", |world| world.synced && lets_in(world)).await;
    for (spec, expected) in
        [(json!({"action": "DENY", "rules": [{}]}), false), (json!({"rules": [{}]}), true)]
    {
        let sent = tokio::time::Instant::now();
        events.send("MODIFIED", &authorization(spec, "7"));
        bench.until("in force", |world| lets_in(world) == expected).await;
        assert!(sent.elapsed() <= Duration::from_millis(100), "{:?}", sent.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_definition_nobody_is_let_in() {
    let mut bench = Bench::new("authorizationpolicies");
    bench.definition.is_gone();
    for _ in 0..5 {
        bench.call().await.refuse(404, "NotFound", "the server could not find the requested resource");
    }
    let world = bench.until("closed", |world| world.synced && !lets_in(world)).await;
    assert!(
        problems(&world)[0].contains("nobody is let in to any pod until it is"),
        "{:?}",
        problems(&world)
    );
    bench.definition.stands("first");
    bench.list(&[], "6").await;
    bench.until("known", |world| lets_in(world) && world.problems.is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_not_enforced_is_to_be_told_by_the_status() {
    let mut bench = Bench::new("authorizationpolicies");
    let filter = json!({"rules": [{"when": [{"key": "experimental.envoy.filters.a", "values": ["x"]}]}]});
    let events = bench.list(&[authorization(filter, "5")], "6").await;
    bench.until("synced", |world| world.synced).await;
    let wanted = |bench: &Bench| {
        let statuses = bench.feed.wanted_statuses();
        let (key, status) = statuses.iter().next().unwrap();
        assert_eq!(key.to_string(), "AuthorizationPolicy shop/p");
        (status.accepted, status.reason, status.message.clone())
    };
    let (accepted, reason, message) = wanted(&bench);
    assert!(message.starts_with("spec.rules[0].when[0].values: its key is not supported"), "{message}");
    assert_eq!((accepted, reason), (true, "UnsupportedValue"));
    for (spec, expected) in [
        (json!({"action": "CUSTOM", "provider": {"name": "x"}, "rules": [{}]}), (true, "UnsupportedValue")),
        (json!({"action": "DENY"}), (false, "Invalid")),
    ] {
        events.send("MODIFIED", &authorization(spec, "7"));
        bench.later().await;
        let (accepted, reason, message) = wanted(&bench);
        assert_eq!((accepted, reason), expected, "{message}");
    }
}

#[tokio::test(start_paused = true)]
async fn tokens_are_demanded_where_a_request_authentication_says_so() {
    let mut bench = Bench::new("requestauthentications");
    // A cluster need not have it, and nobody waits for it.
    bench.definition.is_gone();
    for _ in 0..5 {
        bench.call().await.refuse(404, "NotFound", "the server could not find the requested resource");
    }
    let issuers = |world: &World| {
        let compiled = world.policies.compile_for(&"shop".into(), &Labels::new());
        compiled.tokens().iter().map(|rule| rule.issuer.to_string()).collect::<Vec<_>>()
    };
    let world = bench.until("synced", |world| world.synced).await;
    assert!(lets_in(&world) && world.problems.is_empty(), "{:?}", problems(&world));
    let mut request = policy("", "5");
    request["kind"] = json!("RequestAuthentication");
    request["spec"] = json!({"jwtRules": [{"issuer": "a"}]});
    bench.definition.stands("first");
    let events = bench.list(std::slice::from_ref(&request), "6").await;
    let world = bench.until("in force", |world| issuers(world) == ["a"]).await;
    assert!(lets_in(&world) && world.problems.is_empty(), "{:?}", problems(&world));
    assert!(bench.feed.wanted_statuses().iter().next().is_none(), "there is nothing to tell");
    bench.definition.ends("first");
    events.send("DELETED", &request);
    let world = bench.until("told", |world| !world.problems.is_empty()).await;
    assert_eq!(issuers(&world), ["a"], "gone with the definition");
    bench.definition.stands("first");
    events.send("ADDED", &request);
    bench.until("stated anew", |world| world.problems.is_empty()).await;
    events.send("DELETED", &request);
    bench.until("gone", |world| issuers(world).is_empty()).await;
}
