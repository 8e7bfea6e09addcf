use std::{collections::BTreeMap, net::IpAddr};

use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use super::*;
use crate::policy::{Attribute, Change, Context, Field, Rule, Target, TrustDomains};

const ROOT: &str = "ambit-system";

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect()
}

fn web() -> Labels {
    labels(&[("app", "web")])
}

fn shop() -> Arc<str> {
    "shop".into()
}

fn peer(name: &str, selector: Labels, mode: Option<Mode>, ports: &[(u16, Mode)]) -> Change {
    let (namespace, own) = name.split_once('/').unwrap();
    Change::PeerAuthentication(Arc::new(PeerAuthentication {
        name: ObjectName::new(namespace, own),
        created: None,
        selector,
        mode,
        port_modes: BTreeMap::from_iter(ports.iter().copied()),
        doubt: None,
    }))
}

fn rule(name: &str, attribute: Attribute<'_>, values: &[&str]) -> Rule {
    let trust_domains = TrustDomains::new("cluster.local".parse().unwrap(), []);
    let context = Context { namespace: "shop", trust_domains: &trust_domains };
    let values: Vec<String> = values.iter().map(|value| (*value).to_owned()).collect();
    let field = Field::new(name, attribute, false, &values, context).unwrap();
    match attribute {
        Attribute::Port => Rule::new(vec![], vec![vec![field]], vec![]),
        _ => Rule::new(vec![vec![field]], vec![], vec![]),
    }
}

fn accounts(values: &[&str]) -> Rule {
    rule("from[0].source.serviceAccounts", Attribute::ServiceAccount, values)
}

fn policy(name: &str, action: Action, rules: Vec<Rule>) -> AuthorizationPolicy {
    AuthorizationPolicy {
        name: ObjectName::new("shop", name),
        target: Target::Pods(Labels::new()),
        action,
        provider: None,
        rules,
        dry_run: false,
        doubt: None,
    }
}

fn set(changes: impl IntoIterator<Item = Change>) -> PolicySet {
    let mut set = PolicySet::new(ROOT);
    for change in changes {
        set.apply(change);
    }
    set
}

fn authorization(policy: AuthorizationPolicy) -> Change {
    Change::AuthorizationPolicy(Arc::new(policy))
}

fn id(account: &str) -> SpiffeId {
    let (namespace, name) = account.split_once('/').unwrap();
    format!("spiffe://cluster.local/ns/{namespace}/sa/{name}").parse().unwrap()
}

fn facts(peer: Option<&SpiffeId>) -> Facts<'_> {
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    Facts {
        port: 8080,
        peer,
        source_ip: ip("10.0.0.9"),
        destination_ip: ip("10.0.0.1"),
        request: None,
        admitted: false,
        sni: None,
    }
}

fn told(explanation: &Explanation) -> Vec<String> {
    let then = |decision: &Decision| if *decision == Decision::Allow { "let in" } else { "refused" };
    explanation.remedies.iter().map(|remedy| format!("{}: {}", remedy.what, then(&remedy.then))).collect()
}

#[test]
fn the_origin_of_a_mode_is_the_narrowest_that_states_one() {
    let all = [
        peer("ambit-system/mesh", Labels::new(), Some(Mode::Strict), &[]),
        peer("shop/wide", Labels::new(), Some(Mode::Permissive), &[]),
        peer("shop/web", web(), Some(Mode::Strict), &[(8080, Mode::Disable)]),
    ];
    let states = |count: usize, port| {
        let origin = set(all[..count].to_vec()).mtls_origin(&shop(), &web(), port);
        let by = origin.rule.by.as_ref().map(ToString::to_string).unwrap_or_default();
        let overridden: Vec<String> = origin.overridden.iter().map(|other| other.by.to_string()).collect();
        (origin.scope.to_string(), origin.rule.mode, by, overridden.join(" "))
    };
    use MtlsMode::{Permissive, Strict};
    let row =
        |scope: &str, mode, by: &str, overridden: &str| (scope.into(), mode, by.into(), overridden.into());
    assert_eq!(states(0, Some(8080)), row("default", Permissive, "", ""));
    assert_eq!(states(1, Some(8080)), row("mesh", Strict, "ambit-system/mesh", ""));
    assert_eq!(states(2, Some(8080)), row("namespace", Permissive, "shop/wide", "ambit-system/mesh"));
    assert_eq!(states(3, Some(80)), row("workload", Strict, "shop/web", "shop/wide ambit-system/mesh"));
    assert_eq!(
        states(3, Some(8080)),
        row("port", Permissive, "shop/web", "shop/web shop/wide ambit-system/mesh")
    );
    assert_eq!(states(3, None), row("workload", Strict, "shop/web", "shop/wide ambit-system/mesh"));
    let mut unknown = set(all);
    unknown.set_incomplete(Some("a file cannot be read".into()));
    assert_eq!(unknown.mtls_origin(&shop(), &web(), Some(8080)).scope, MtlsScope::Unknown);
}

#[test]
fn refused_plaintext_is_told_what_would_let_it_in() {
    let strict = peer("shop/wide", Labels::new(), Some(Mode::Strict), &[]);
    let only_x = authorization(policy("only-x", Action::Allow, vec![accounts(&["a/x"])]));
    let policies = set([strict, only_x]);
    let (x, y) = (id("a/x"), id("a/y"));
    let explain = |identity| policies.explain(&shop(), &web(), &facts(None), Some(identity));
    assert_eq!(
        told(&explain(&x)),
        [
            "in mutual TLS, as spiffe://cluster.local/ns/a/sa/x: let in",
            "with mutual TLS PERMISSIVE on port 8080: refused"
        ]
    );
    assert_eq!(told(&explain(&y))[0], "in mutual TLS, as spiffe://cluster.local/ns/a/sa/y: refused");
}

#[test]
fn a_miss_names_the_field_and_what_it_is_held_against() {
    let policies = set([authorization(policy("only-x", Action::Allow, vec![accounts(&["a/x", "web"])]))]);
    let y = id("a/y");
    let explanation = policies.explain(&shop(), &web(), &facts(Some(&y)), None);
    let miss = explanation.policies[0].nearest.as_ref().unwrap();
    assert_eq!((miss.rule, miss.failing), (0, 1));
    assert_eq!((&*miss.wants, &*miss.has), ("one of a/x, shop/web", "a/y"));
    assert_eq!(
        told(&explanation),
        [
            "if rules[0].from[0].source.serviceAccounts of AuthorizationPolicy shop/only-x held for a/y: let in"
        ]
    );
}

#[test]
fn a_denial_says_what_would_follow_without_it() {
    let deny = |name| authorization(policy(name, Action::Deny, vec![accounts(&["a/y"])]));
    let y = id("a/y");
    let explain = |changes: Vec<Change>| told(&set(changes).explain(&shop(), &web(), &facts(Some(&y)), None));
    assert_eq!(explain(vec![deny("one")]), ["without AuthorizationPolicy shop/one: let in"]);
    assert_eq!(explain(vec![deny("one"), deny("two")]), ["without AuthorizationPolicy shop/one: refused"]);
}

#[test]
fn a_dry_run_is_told_of_with_what_it_would_do() {
    let dry = AuthorizationPolicy { dry_run: true, ..policy("dry", Action::Deny, vec![accounts(&["a/y"])]) };
    let y = id("a/y");
    let explanation = set([authorization(dry)]).explain(&shop(), &web(), &facts(Some(&y)), None);
    assert_eq!(explanation.decision, Decision::Allow);
    assert_eq!(explanation.policies[0].matched, Some(0));
    assert!(!explanation.policies[0].is_in_force());
    assert_eq!(told(&explanation), ["with AuthorizationPolicy shop/dry, now a dry run, in force: refused"]);
}

#[test]
fn rules_are_shown_in_a_line() {
    assert_eq!(Rule::default().to_string(), "everything");
    assert_eq!(accounts(&["x", "a/y"]).to_string(), "from serviceAccounts one of shop/x, a/y");
    assert_eq!(rule("to[0].operation.ports", Attribute::Port, &["8080"]).to_string(), "to ports 8080");
}

/// The mode as the API's documentation words it, looked up in all objects.
fn reference(objects: &[(&str, usize, &PeerAuthentication)], port: u16) -> MtlsMode {
    let oldest = |of: &dyn Fn(&str, &PeerAuthentication) -> bool| {
        let matching = objects.iter().filter(|(namespace, _, policy)| of(namespace, policy));
        matching
            .min_by_key(|(_, _, policy)| (policy.created.unwrap_or(i64::MAX), policy.name.name.to_string()))
    };
    let mesh = oldest(&|namespace, policy| namespace == ROOT && policy.selector.is_empty());
    let wide = oldest(&|namespace, policy| namespace == "shop" && policy.selector.is_empty());
    let own = oldest(&|namespace, policy| namespace == "shop" && policy.selector == web());
    let mut mode = Mode::Permissive;
    for (_, _, policy) in [mesh, wide, own].into_iter().flatten() {
        mode = policy.mode.unwrap_or(mode);
    }
    let of_port = own.and_then(|(_, _, policy)| policy.port_modes.get(&port).copied());
    if of_port.unwrap_or(mode) == Mode::Strict { MtlsMode::Strict } else { MtlsMode::Permissive }
}

#[test]
fn the_mode_and_its_origin_are_those_of_the_reference() {
    let mut random = StdRng::seed_from_u64(0x5eed_0a1b);
    let modes = [None, Some(Mode::Strict), Some(Mode::Permissive), Some(Mode::Disable)];
    for round in 0..20_000 {
        let count = random.random_range(0..=6);
        let written: Vec<(&str, usize, PeerAuthentication)> = (0..count)
            .map(|at| {
                let namespace = *[ROOT, "shop", "shop", "other"].choose(&mut random).unwrap();
                let selector = [Labels::new(), web(), labels(&[("app", "db")])];
                let selector = selector.choose(&mut random).unwrap().clone();
                let port = random.random_range(0..3_u16);
                let of_port = modes.choose(&mut random).copied().flatten();
                let ports = of_port.filter(|_| !selector.is_empty()).map(|mode| (8080 + port, mode));
                let policy = PeerAuthentication {
                    name: ObjectName::new(namespace, format!("p{at}")),
                    created: [None, Some(1), Some(2)].choose(&mut random).copied().unwrap(),
                    selector,
                    mode: modes.choose(&mut random).copied().unwrap(),
                    port_modes: ports.into_iter().collect(),
                    doubt: None,
                };
                (namespace, at, policy)
            })
            .collect();
        let policies =
            set(written.iter().map(|(_, _, policy)| Change::PeerAuthentication(Arc::new(policy.clone()))));
        let compiled = policies.compile_for(&shop(), &web());
        let borrowed: Vec<_> =
            written.iter().map(|(namespace, at, policy)| (*namespace, *at, policy)).collect();
        for port in 8080..8083 {
            let origin = policies.mtls_origin(&shop(), &web(), Some(port));
            assert_eq!(compiled.mtls(port), &origin.rule, "round {round}: {written:#?}");
            assert_eq!(origin.rule.mode, reference(&borrowed, port), "round {round}, {port}: {written:#?}");
            assert_eq!(origin.rule.by.is_none(), origin.scope == MtlsScope::Default);
        }
    }
}
