use std::{collections::BTreeMap, time::Duration};

use super::*;
use crate::{
    discovery::{
        ExportTo,
        destination_rule::{ClientTls, ConnectionPool, TrafficPolicy},
    },
    model::{Labels, SpiffeId, TrustDomain},
};

fn client(namespace: &str, app: &str) -> Workload {
    Workload {
        name: ObjectName::new(namespace, app),
        uid: app.into(),
        identity: SpiffeId::new(TrustDomain::default(), namespace, "default").unwrap(),
        node: "n1".into(),
        ips: vec![],
        labels: Labels::from([("app".to_owned(), app.to_owned())]),
        named_ports: BTreeMap::new(),
        probe_ports: vec![],
        host_network: false,
        enrolled: true,
        http_telemetry: false,
        netns: None,
    }
}

fn settings(name: &ObjectName, tls: ClientTls) -> Arc<ClientSettings> {
    Arc::new(ClientSettings { rule: name.clone(), tls, pool: ConnectionPool::default() })
}

fn rule(id: &str, host: &str) -> DestinationRule {
    let (namespace, short) = id.split_once('/').unwrap();
    let name = ObjectName::new(namespace, short);
    DestinationRule {
        created: None,
        host: HostPattern::new(host),
        exported_to: ExportTo::All,
        selector: None,
        policy: Some(TrafficPolicy {
            default: settings(&name, ClientTls::IstioMutual),
            ports: BTreeMap::new(),
        }),
        name,
    }
}

fn private(rule: DestinationRule) -> DestinationRule {
    DestinationRule { exported_to: ExportTo::Only(vec![Arc::clone(&rule.name.namespace)]), ..rule }
}

fn to(namespaces: &[&str], rule: DestinationRule) -> DestinationRule {
    DestinationRule {
        exported_to: ExportTo::Only(namespaces.iter().map(|one| (*one).into()).collect()),
        ..rule
    }
}

fn selecting(app: &str, rule: DestinationRule) -> DestinationRule {
    DestinationRule { selector: Some(Labels::from([("app".to_owned(), app.to_owned())])), ..rule }
}

fn aged(created: i64, rule: DestinationRule) -> DestinationRule {
    DestinationRule { created: Some(created), ..rule }
}

fn silent(rule: DestinationRule) -> DestinationRule {
    DestinationRule { policy: None, ..rule }
}

fn set(rules: Vec<DestinationRule>) -> Rules {
    let mut set = Rules::default();
    for rule in rules {
        set.put(&rule.name.clone(), Some(Arc::new(rule)));
    }
    set
}

/// The rule that holds for a client of namespace `shop`, or another, to `db.data.svc.cluster.local`.
fn holds(rules: Vec<DestinationRule>, client: &Workload) -> Option<String> {
    let target = Target { namespace: "data", host: DB, port: 5432 };
    Some(set(rules).settings(client, target, "root")?.rule.to_string())
}

const DB: &str = "db.data.svc.cluster.local";

#[test]
fn the_first_namespace_with_a_match_counts() {
    let shop = client("shop", "web");
    let some = |text: &str| Some(text.to_owned());
    for (rules, expected) in [
        (vec![], None),
        (vec![rule("data/r", DB)], some("data/r")),
        (vec![rule("root/r", DB)], some("root/r")),
        (vec![rule("other/r", DB)], None),
        (vec![rule("shop/r", DB), rule("data/r", DB), rule("root/r", DB)], some("shop/r")),
        (vec![rule("data/r", DB), rule("root/r", DB)], some("data/r")),
        // A wildcard of a namespace that comes first goes before an exact host of another.
        (vec![rule("shop/r", "*.local"), rule("data/r", DB)], some("shop/r")),
        // Private rules are for clients of their own namespace.
        (vec![private(rule("shop/r", DB))], some("shop/r")),
        (vec![private(rule("data/r", DB)), rule("root/r", DB)], some("root/r")),
        (vec![private(rule("root/r", DB))], None),
        (vec![to(&["shop"], rule("data/r", DB))], some("data/r")),
        (vec![to(&["elsewhere"], rule("data/r", DB))], None),
        // A rule that says nothing of traffic hides those of later namespaces.
        (vec![silent(rule("shop/r", DB)), rule("root/r", DB)], None),
    ] {
        assert_eq!(holds(rules.clone(), &shop), expected, "{rules:#?}");
    }
}

#[test]
fn clients_of_the_root_namespace_have_its_private_rules_first() {
    let root = client("root", "web");
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(holds(vec![rule("root/r", "*.local"), rule("data/r", DB)], &root), some("data/r"));
    assert_eq!(holds(vec![private(rule("root/r", "*.local")), rule("data/r", DB)], &root), some("root/r"));
    assert_eq!(holds(vec![rule("root/r", DB)], &root), some("root/r"));
}

#[test]
fn of_one_namespace_the_narrowest_host_counts_then_the_oldest_rule() {
    let shop = client("shop", "web");
    let some = |text: &str| Some(text.to_owned());
    for (rules, expected) in [
        (vec![rule("shop/a", "*"), rule("shop/b", "*.local")], some("shop/b")),
        (vec![rule("shop/a", "*.cluster.local"), rule("shop/b", "*.local")], some("shop/a")),
        (vec![rule("shop/a", "*.data.svc.cluster.local"), rule("shop/b", DB)], some("shop/b")),
        (vec![rule("shop/a", "db"), rule("shop/b", "*.example.com")], None),
        (vec![rule("shop/a", "DB.Data.svc.cluster.local")], some("shop/a")),
        (vec![aged(2, rule("shop/a", DB)), aged(1, rule("shop/b", DB))], some("shop/b")),
        (vec![aged(1, rule("shop/b", DB)), aged(1, rule("shop/a", DB))], some("shop/a")),
        (vec![rule("shop/a", DB), aged(9, rule("shop/b", DB))], some("shop/b")),
        // The oldest traffic policy, not the oldest rule.
        (vec![silent(aged(1, rule("shop/a", DB))), aged(2, rule("shop/b", DB))], some("shop/b")),
    ] {
        assert_eq!(holds(rules.clone(), &shop), expected, "{rules:#?}");
    }
}

#[test]
fn a_rule_that_selects_the_client_goes_before_one_for_all() {
    let (web, db) = (client("shop", "web"), client("shop", "db"));
    let some = |text: &str| Some(text.to_owned());
    let rules = || vec![aged(1, rule("shop/all", DB)), aged(2, selecting("web", rule("shop/web", DB)))];
    assert_eq!(holds(rules(), &web), some("shop/web"));
    assert_eq!(holds(rules(), &db), some("shop/all"));
    // Clients of other namespaces are nobody's whom it selects.
    assert_eq!(holds(vec![selecting("web", rule("data/r", DB))], &web), None);
    assert_eq!(holds(vec![selecting("web", rule("root/r", DB))], &web), None);
    assert_eq!(holds(vec![selecting("web", rule("data/r", DB))], &client("data", "web")), some("data/r"));
}

#[test]
fn case_50_a_port_that_is_named_replaces_all_that_is_said_for_others() {
    let name = ObjectName::new("shop", "r");
    let pool = ConnectionPool { connect_timeout: Some(Duration::from_secs(1)), ..ConnectionPool::default() };
    let own = Arc::new(ClientSettings { rule: name.clone(), tls: ClientTls::Unset, pool: pool.clone() });
    let policy = TrafficPolicy {
        default: settings(&name, ClientTls::IstioMutual),
        ports: BTreeMap::from([(5432, own)]),
    };
    let rules = set(vec![DestinationRule { policy: Some(policy), ..rule("shop/r", DB) }]);
    let at = |port| {
        let target = Target { namespace: "data", host: DB, port };
        rules.settings(&client("shop", "web"), target, "root").unwrap()
    };
    assert_eq!((&at(5432).tls, &at(5432).pool), (&ClientTls::Unset, &pool));
    assert_eq!((&at(5433).tls, &at(5433).pool), (&ClientTls::IstioMutual, &ConnectionPool::default()));
}

#[test]
fn what_rules_act_on_follows_them() {
    let mut rules = set(vec![rule("shop/a", "*.local"), rule("shop/b", "*.local"), rule("shop/c", DB)]);
    let name = |short: &str| ObjectName::new("shop", short);
    assert!(
        rules.act_on(DB) && rules.act_on("x.local") && !rules.act_on("local") && !rules.act_on("example.com")
    );
    rules.put(&name("a"), None);
    assert!(rules.act_on("x.local"));
    rules.put(&name("b"), None);
    assert!(!rules.act_on("x.local") && rules.act_on(DB));
    // DISABLE makes no connection another one.
    let off = TrafficPolicy { default: settings(&name("c"), ClientTls::Disable), ports: BTreeMap::new() };
    rules.put(&name("c"), Some(Arc::new(DestinationRule { policy: Some(off), ..rule("shop/c", DB) })));
    assert!(!rules.act_on(DB));
    assert!(set(vec![rule("shop/a", "*")]).act_on("anything"));
}
