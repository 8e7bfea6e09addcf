mod cases;
mod doubt;
mod external;
mod http;
mod outlook;
mod reference;
mod rehearsal;
mod sent;
mod token;

use std::{collections::BTreeMap, net::IpAddr};

use super::{
    value::{IpBlock, Pattern, Wildcard, port},
    *,
};
use crate::{
    model::{SpiffeId, Workload},
    policy::{self, Decision, Mode, PeerAuthentication, PolicySet, decide},
    reason::{Reason, Refusal},
};

use sent::Sent;

const ROOT: &str = "ambit-system";
/// Whom CUSTOM policies have asked.
const PROVIDER: &str = "opa";

/// A field as an object writes it: its name there, and its values.
#[derive(Clone, Debug)]
struct Written {
    name: &'static str,
    values: Vec<String>,
}

/// A rule as an object writes it.
#[derive(Clone, Debug, Default)]
struct WrittenRule {
    from: Vec<Vec<Written>>,
    to: Vec<Vec<Written>>,
    when: Vec<Written>,
}

fn field(name: &'static str, values: &[&str]) -> Written {
    Written { name, values: values.iter().map(|value| (*value).to_owned()).collect() }
}

/// The field without its negation.
fn positive(name: &str) -> (String, bool) {
    match name.strip_prefix("not") {
        Some(rest) => (rest[..1].to_lowercase() + &rest[1..], true),
        None => (name.to_owned(), false),
    }
}

impl Written {
    fn read(&self, namespace: &str, trust_domains: &TrustDomains) -> Field {
        let (name, negated) = positive(self.name);
        let attribute = match &*name {
            "principals" => Attribute::Principal,
            "namespaces" => Attribute::Namespace,
            "serviceAccounts" => Attribute::ServiceAccount,
            "trustDomains" => Attribute::TrustDomain,
            "ipBlocks" => Attribute::SourceIp,
            "remoteIpBlocks" => Attribute::RemoteIp,
            "ports" => Attribute::Port,
            "destination.ip" => Attribute::DestinationIp,
            "hosts" => Attribute::Host,
            "methods" => Attribute::Method,
            "paths" => Attribute::Path,
            "requestPrincipals" => Attribute::RequestPrincipal,
            "request.auth.audiences" => Attribute::Audience,
            "request.auth.presenter" => Attribute::Presenter,
            "connection.sni" => Attribute::Sni,
            _ => match (name.strip_prefix("request.headers"), name.strip_prefix("request.auth.claims")) {
                (Some(header), _) => Attribute::Header(header.trim_matches(['[', ']'])),
                (_, Some(path)) => Attribute::Claim(path),
                _ => Attribute::Unsupported,
            },
        };
        let context = Context { namespace, trust_domains };
        Field::new(self.name, attribute, negated, &self.values, context).unwrap()
    }
}

impl WrittenRule {
    fn read(&self, namespace: &str, trust_domains: &TrustDomains) -> Rule {
        let fields = |fields: &[Written]| -> Vec<Field> {
            fields.iter().map(|field| field.read(namespace, trust_domains)).collect()
        };
        let each = |alternatives: &[Vec<Written>]| alternatives.iter().map(|one| fields(one)).collect();
        Rule::new(each(&self.from), each(&self.to), fields(&self.when))
    }
}

fn from(sources: &[Written]) -> WrittenRule {
    WrittenRule { from: vec![sources.to_vec()], ..WrittenRule::default() }
}

fn to(operations: &[Written]) -> WrittenRule {
    WrittenRule { to: vec![operations.to_vec()], ..WrittenRule::default() }
}

fn anything() -> WrittenRule {
    WrittenRule::default()
}

fn local() -> TrustDomains {
    TrustDomains::new("cluster.local".parse().unwrap(), [])
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect()
}

/// A policy for all pods of namespace `shop`.
fn policy(name: &str, action: Action, rules: &[WrittenRule]) -> AuthorizationPolicy {
    policy_in("shop", name, action, rules, &local())
}

fn policy_in(
    namespace: &str,
    name: &str,
    action: Action,
    rules: &[WrittenRule],
    trust_domains: &TrustDomains,
) -> AuthorizationPolicy {
    AuthorizationPolicy {
        name: ObjectName::new(namespace, name),
        target: Target::Pods(Labels::new()),
        action,
        provider: (action == Action::Custom).then(|| PROVIDER.into()),
        rules: rules.iter().map(|rule| rule.read(namespace, trust_domains)).collect(),
        dry_run: false,
        doubt: None,
    }
}

fn set(policies: impl IntoIterator<Item = AuthorizationPolicy>) -> PolicySet {
    let mut set = PolicySet::new(ROOT);
    for policy in policies {
        set.apply(policy::Change::AuthorizationPolicy(Arc::new(policy)));
    }
    set.set_providers([PROVIDER.into()]);
    set
}

/// Who connects where, and with what.
#[derive(Clone, Debug)]
struct Call {
    peer: Option<SpiffeId>,
    source: IpAddr,
    port: u16,
    request: Option<Sent>,
    sni: Option<&'static str>,
    admitted: bool,
}

impl Call {
    /// Without its request.
    fn facts(&self) -> Facts<'_> {
        let destination_ip = "10.0.0.1".parse().unwrap();
        let Self { peer, source: source_ip, port, sni, admitted, .. } = self;
        Facts {
            port: *port,
            peer: peer.as_ref(),
            source_ip: *source_ip,
            destination_ip,
            request: None,
            admitted: *admitted,
            sni: *sni,
        }
    }

    fn judged<T>(&self, judge: impl FnOnce(&Facts<'_>) -> T) -> T {
        let request = self.request.as_ref().map(Sent::read);
        judge(&Facts { request: request.as_ref(), ..self.facts() })
    }
}

/// A connection of that service account, as `namespace/name`, to port 8080.
fn by(account: &str) -> Call {
    let (namespace, name) = account.split_once('/').unwrap();
    let id = format!("spiffe://cluster.local/ns/{namespace}/sa/{name}");
    Call {
        peer: Some(id.parse().unwrap()),
        source: "10.0.0.9".parse().unwrap(),
        port: 8080,
        request: None,
        sni: None,
        admitted: false,
    }
}

fn plaintext() -> Call {
    Call { peer: None, ..by("a/b") }
}

fn on(port: u16, call: Call) -> Call {
    Call { port, ..call }
}

/// The verdict for a pod of namespace `shop` with labels `app: web`.
fn verdict(policies: &PolicySet, call: &Call) -> Decision {
    call.judged(|facts| decide(&web_of(policies), facts))
}

fn web_of(policies: &PolicySet) -> policy::WorkloadPolicy {
    policies.compile_for(&"shop".into(), &labels(&[("app", "web")]))
}

fn lets_in(policies: &PolicySet, call: &Call) -> bool {
    verdict(policies, call) == Decision::Allow
}

fn refusal(policies: &PolicySet, call: &Call) -> Refusal {
    let Decision::Deny(refusal) = verdict(policies, call) else { panic!("let in: {call:?}") };
    refusal
}

#[test]
fn a_policy_is_for_whom_it_selects() {
    let deny = || policy("p", Action::Deny, &[anything()]);
    let named =
        |namespace, target| AuthorizationPolicy { name: ObjectName::new(namespace, "p"), target, ..deny() };
    let pods = |pairs: &[(&str, &str)]| Target::Pods(labels(pairs));
    let services = |names: &[&str]| Target::Services(names.iter().map(|name| (*name).into()).collect());
    // The policy, and whether the pods web and db of namespace shop are refused, and a pod web of namespace other.
    let rows = [
        (named("shop", pods(&[])), [true, true, false]),
        (named("shop", pods(&[("app", "web")])), [true, false, false]),
        (named("shop", pods(&[("app", "web"), ("x", "y")])), [false, false, false]),
        (named(ROOT, pods(&[])), [true, true, true]),
        (named(ROOT, pods(&[("app", "web")])), [true, false, true]),
        (named("shop", services(&["front"])), [true, false, false]),
        (named("shop", services(&["front", "back"])), [true, true, false]),
        (named("shop", services(&["unknown"])), [false, false, false]),
        (named("shop", services(&[])), [false, false, false]),
        // A service of the root namespace has its pods there.
        (named(ROOT, services(&["front"])), [false, false, false]),
    ];
    for (row, (policy, expected)) in rows.into_iter().enumerate() {
        let mut policies = PolicySet::new(ROOT);
        let mut reach = policies.apply(policy::Change::AuthorizationPolicy(Arc::new(policy)));
        for (namespace, name, app) in
            [("shop", "front", "web"), ("shop", "back", "db"), (ROOT, "front", "web")]
        {
            reach.merge(
                policies.set_service(&ObjectName::new(namespace, name), Some(&labels(&[("app", app)]))),
            );
        }
        let pods = [("shop", "web"), ("shop", "db"), ("other", "web")];
        let refused = pods.map(|(namespace, app)| {
            let compiled = policies.compile_for(&namespace.into(), &labels(&[("app", app)]));
            decide(&compiled, &by("a/b").facts()) != Decision::Allow
        });
        assert_eq!(refused, expected, "row {row}");
        let covered = pods.map(|(namespace, app)| reach.covers(&pod(namespace, app)));
        assert_eq!(covered, expected, "row {row}, reach");
    }
}

fn pod(namespace: &str, app: &str) -> Workload {
    Workload {
        name: ObjectName::new(namespace, "pod"),
        uid: "u".into(),
        identity: "spiffe://cluster.local/ns/a/sa/b".parse().unwrap(),
        node: "n".into(),
        ips: vec![],
        labels: labels(&[("app", app)]),
        named_ports: BTreeMap::new(),
        probe_ports: vec![],
        host_network: false,
        enrolled: true,
        netns: None,
        http_telemetry: false,
    }
}

#[test]
fn services_that_change_take_their_policies_along() {
    let target = Target::Services(vec!["front".into()]);
    let front = ObjectName::new("shop", "front");
    let mut policies = PolicySet::new(ROOT);
    assert!(policies.set_service(&front, Some(&labels(&[("app", "web")]))).is_empty(), "nobody asked for it");
    let deny = AuthorizationPolicy { target, ..policy("p", Action::Deny, &[anything()]) };
    policies.apply(policy::Change::AuthorizationPolicy(Arc::new(deny)));
    assert!(lets_in(&policies, &by("a/b")));
    assert!(policies.set_service(&front, Some(&labels(&[("app", "web")]))).covers(&pod("shop", "web")));
    assert!(!lets_in(&policies, &by("a/b")));
    let reach = policies.set_service(&front, Some(&labels(&[("app", "db")])));
    assert!(reach.covers(&pod("shop", "web")) && reach.covers(&pod("shop", "db")));
    assert!(lets_in(&policies, &by("a/b")));
    policies.set_service(&front, Some(&labels(&[("app", "web")])));
    // One without a selector has no pods that could be told.
    assert!(policies.set_service(&front, Some(&Labels::new())).covers(&pod("shop", "web")));
    assert!(lets_in(&policies, &by("a/b")));
    policies.set_service(&front, Some(&labels(&[("app", "web")])));
    let gone = policies.apply(policy::Change::AuthorizationPolicyGone(ObjectName::new("shop", "p")));
    assert!(gone.covers(&pod("shop", "web")) && policies.is_empty());
    assert!(policies.set_service(&front, None).is_empty(), "kept for a policy that is gone");
}

#[test]
fn a_refusal_names_policy_rule_and_field() {
    let deny = policy(
        "no-dev",
        Action::Deny,
        &[to(&[field("ports", &["1"])]), from(&[field("namespaces", &["dev"])])],
    );
    let refused = refusal(&set([deny]), &by("dev/x"));
    assert_eq!((refused.policy.as_deref(), refused.rule.as_deref()), (Some("shop/no-dev"), Some("rules[1]")));
    assert_eq!(
        &*refused.text,
        "spiffe://cluster.local/ns/dev/sa/x at 10.0.0.9 refused on port 8080: explicitly denied by AuthorizationPolicy \
         shop/no-dev rules[1]"
    );

    let near = WrittenRule {
        from: vec![
            vec![field("namespaces", &["a"])],
            vec![field("serviceAccounts", &["web"]), field("ipBlocks", &["10.0.0.0/8"])],
        ],
        ..to(&[field("ports", &["8080"])])
    };
    let far = WrittenRule { from: vec![vec![field("namespaces", &["a"])]], ..to(&[field("ports", &["1"])]) };
    let policies = set([policy("far", Action::Allow, &[far]), policy("near", Action::Allow, &[near])]);
    let refused = refusal(&policies, &by("dev/x"));
    assert_eq!((refused.policy.as_deref(), refused.rule.as_deref()), (Some("shop/near"), Some("rules[0]")));
    assert!(
        refused.text.contains("none allows it; nearest is AuthorizationPolicy shop/near rules[0]: "),
        "{refused}"
    );
    assert!(refused.text.ends_with("namespaces does not hold"), "{refused}");

    let http = policy("http", Action::Allow, &[to(&[field("methods", &["GET"])])]);
    let refused = refusal(&set([http]), &plaintext());
    assert!(refused.text.starts_with("plaintext from 10.0.0.9 refused on port 8080: "), "{refused}");
    assert!(
        refused.text.ends_with("methods can only be known of a request, and none of HTTP is read here"),
        "{refused}"
    );
    let nothing = refusal(&set([policy("none", Action::Allow, &[])]), &by("a/b"));
    assert_eq!((nothing.policy.as_deref(), nothing.rule), (Some("shop/none"), None));
    assert_eq!(nothing.reason, Reason::PolicyDenied);
}

#[test]
fn values_follow_the_grammar() {
    let id: SpiffeId = "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap();
    for (pattern, expected) in [
        ("*", true),
        ("cluster.local/ns/shop/sa/web", true),
        ("cluster.local/ns/shop/sa/we", false),
        ("cluster.local/ns/shop/sa/web2", false),
        ("cluster.local/ns/shop/*", true),
        ("cluster.local*", true),
        ("cluster.local/ns/shop/sa/web*", true),
        ("cluster.locale*", false),
        ("*/ns/shop/sa/web", true),
        ("*web", true),
        ("*cluster.local/ns/shop/sa/web", true),
        ("*xcluster.local/ns/shop/sa/web", false),
        // Only one end is magic.
        ("*shop*", false),
        ("cluster.local/*/web", false),
        ("", false),
        ("Cluster.local/ns/shop/sa/web", false),
        ("spiffe://cluster.local/ns/shop/sa/web", false),
    ] {
        assert_eq!(Pattern::new(pattern).matches(&id), expected, "{pattern:?}");
    }
    for (pattern, name, expected) in [
        ("*", "shop", true),
        ("sh*p", "shop", true),
        ("*o*", "shop", true),
        ("s*h*o*p*", "shop", true),
        ("*ab", "aab", true),
        ("a*a", "a", false),
        ("shop", "shops", false),
        ("*x", "shop", false),
    ] {
        assert_eq!(Wildcard::new(pattern).matches(name), expected, "{pattern:?} on {name:?}");
    }
    for (block, ip, expected) in [
        ("10.1.2.3/8", "10.9.9.9", true),
        ("10.1.2.3/8", "11.0.0.1", false),
        ("0.0.0.0/0", "1.2.3.4", true),
        ("0.0.0.0/0", "::1", false),
        ("::/0", "1.2.3.4", false),
        ("10.0.0.9", "10.0.0.9", true),
        ("10.0.0.9", "10.0.0.8", false),
        ("::ffff:10.0.0.0/104", "10.9.9.9", true),
        ("::ffff:10.0.0.1", "10.0.0.1", true),
        ("2001:db8::/32", "2001:db8:1::1", true),
        ("2001:db8::/32", "2001:db9::1", false),
    ] {
        assert_eq!(IpBlock::new(block).unwrap().contains(ip.parse().unwrap()), expected, "{block} {ip}");
    }
    for bad in ["", "10.0.0.0/33", "::/129", "10.0.0/8", "10.0.0.0/", "10.0.0.0/+8", "a", "10.0.0.1-10.0.0.2"]
    {
        assert_eq!(IpBlock::new(bad), None, "{bad}");
    }
    assert_eq!(["0", "65535", "080"].map(port), [Some(0), Some(65535), Some(80)]);
    assert_eq!(["65536", "+80", "-1", "80-90", "*", "", "http"].map(port), [None; 7]);
}

#[test]
fn values_that_cannot_be_are_refused() {
    let trust_domains = local();
    let context = Context { namespace: "shop", trust_domains: &trust_domains };
    let bad = |attribute, values: &[&str]| {
        let values: Vec<String> = values.iter().map(|value| (*value).to_owned()).collect();
        Field::new("f", attribute, false, &values, context).unwrap_err()
    };
    assert_eq!(bad(Attribute::Principal, &[]).problem, "is an empty list");
    assert_eq!(bad(Attribute::Header("x"), &["a", ""]), InvalidValue { at: Some(1), problem: "is empty" });
    assert_eq!(bad(Attribute::Port, &["80", "http"]).at, Some(1));
    for account in ["a/b/c", "web*", "*", "/web", "a/", &"x".repeat(321)] {
        assert_eq!(bad(Attribute::ServiceAccount, &[account]).at, Some(0), "{account}");
    }
    assert_eq!(bad(Attribute::ServiceAccount, &["a"; 17]).at, None);
    assert_eq!(bad(Attribute::TrustDomain, &["a/b"]).at, Some(0));
}

#[test]
fn aliases_stand_for_each_other() {
    let domain = |name: &str| name.parse().unwrap();
    let two = TrustDomains::new(domain("td1"), [domain("old-td")]);
    let all = |workload: &str| ["td1", "old-td"].map(|domain| format!("{domain}/{workload}")).to_vec();
    for (principal, expected) in [
        ("td1/ns/foo/sa/bar", all("ns/foo/sa/bar")),
        ("old-td/ns/foo/sa/bar", all("ns/foo/sa/bar")),
        ("cluster.local/ns/foo/sa/bar", all("ns/foo/sa/bar")),
        ("cluster.local/ns/foo/sa/*", all("ns/foo/sa/*")),
        ("*-td/ns/foo/sa/bar", vec!["td1/ns/foo/sa/bar".into(), "*-td/ns/foo/sa/bar".into()]),
        ("other/ns/foo/sa/bar", vec!["other/ns/foo/sa/bar".into()]),
        ("*/ns/foo/sa/bar", vec!["*/ns/foo/sa/bar".into()]),
        ("td1/ns/foo/*", vec!["td1/ns/foo/*".into()]),
        ("td1*", vec!["td1*".into()]),
        ("*", vec!["*".into()]),
    ] {
        assert_eq!(two.principals(principal), expected, "{principal}");
    }
    assert_eq!(two.domains("old-td"), ["td1", "old-td"]);
    assert_eq!(two.domains("cluster.local"), ["cluster.local"]);
}

/// Ten thousand policies of ten rules: neither the verdict nor the compiling of a pod may look at all of them for long.
#[test]
fn many_policies_cost_little() {
    let rules: Vec<WrittenRule> = (0..10)
        .map(|at| from(&[Written { name: "principals", values: vec![format!("td/ns/n{at}/sa/s")] }]))
        .collect();
    let rules: Vec<Rule> = rules.iter().map(|rule| rule.read("shop", &local())).collect();
    let mut policies = PolicySet::new(ROOT);
    for at in 0..10_000 {
        let target = Target::Pods(labels(&[("app", &format!("a{at}"))]));
        let name = ObjectName::new("shop", format!("p{at}"));
        let policy =
            AuthorizationPolicy { name, target, rules: rules.clone(), ..policy("", Action::Allow, &[]) };
        policies.apply(policy::Change::AuthorizationPolicy(Arc::new(policy)));
    }
    let start = std::time::Instant::now();
    let compiled = policies.compile_for(&"shop".into(), &labels(&[("app", "a77")]));
    let compiling = start.elapsed();
    let call = by("a/b");
    let start = std::time::Instant::now();
    for _ in 0..1_000 {
        assert_ne!(decide(&compiled, &call.facts()), Decision::Allow);
    }
    let verdict = start.elapsed() / 1_000;
    println!("compile {compiling:?}, refusal {verdict:?}");
    // Far above what is needed: tests are not optimised, and share the machine.
    assert!(compiling.as_millis() < 200 && verdict.as_micros() < 500, "{compiling:?}, {verdict:?}");
}
