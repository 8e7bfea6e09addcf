//! A slow evaluator of policies as they are written, against the compiled ones, on random policies and connections.

mod requests;

use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use super::{outlook::foreseen, *};

/// Verdicts compared; the environment variable may ask for more.
const CASES: usize = 100_000;
const CASES_VARIABLE: &str = "AMBIT_POLICY_CASES";
/// Connections judged by one set of policies.
const CALLS: usize = 20;

#[derive(Clone, Debug)]
struct WrittenPolicy {
    namespace: &'static str,
    selector: Labels,
    action: Action,
    rules: Vec<WrittenRule>,
    dry_run: bool,
}

impl WrittenPolicy {
    fn read(&self, at: usize, trust_domains: &TrustDomains) -> AuthorizationPolicy {
        let Self { namespace, selector, action, rules, dry_run } = self;
        AuthorizationPolicy {
            target: Target::Pods(selector.clone()),
            dry_run: *dry_run,
            ..policy_in(namespace, &format!("p{at}"), *action, rules, trust_domains)
        }
    }
}

/// The verdict for the pod web in namespace shop, as the specification words it.
fn reference(policies: &[WrittenPolicy], call: &Call, ours: &[&str]) -> bool {
    let applies = |policy: &&WrittenPolicy| {
        let selected = policy.selector.iter().all(|(key, value)| key == "app" && value == "web");
        !policy.dry_run && selected && (policy.namespace == "shop" || policy.namespace == ROOT)
    };
    let of = |action| policies.iter().filter(applies).filter(move |policy| policy.action == action);
    let deny = |policy: &WrittenPolicy| {
        policy
            .rules
            .iter()
            .any(|rule| rule_matches(&without_unknown(rule, call), policy.namespace, call, ours))
    };
    let allow = |policy: &WrittenPolicy| {
        let known = policy.rules.iter().filter(|rule| !has_unknown(rule, call));
        known.into_iter().any(|rule| rule_matches(rule, policy.namespace, call, ours))
    };
    if (of(Action::Custom).any(deny) && !call.admitted) || of(Action::Deny).any(deny) {
        return false;
    }
    of(Action::Allow).count() == 0 || of(Action::Allow).any(allow)
}

/// Whether nothing can be said of the field.
fn is_unknown(field: &Written, call: &Call) -> bool {
    match &*positive(field.name).0 {
        "experimental" => true,
        "connection.sni" => call.sni.is_none() && call.request.is_none(),
        name => requests::FIELDS.contains(&name) && call.request.is_none(),
    }
}

fn has_unknown(rule: &WrittenRule, call: &Call) -> bool {
    let remote = |field: &Written| positive(field.name).0 == "remoteIpBlocks" && call.request.is_none();
    let unknown = |field: &Written| is_unknown(field, call) || remote(field);
    rule.from.iter().chain(&rule.to).flatten().chain(&rule.when).any(unknown)
}

fn without_unknown(rule: &WrittenRule, call: &Call) -> WrittenRule {
    let mut rule = rule.clone();
    rule.from.iter_mut().chain(&mut rule.to).chain([&mut rule.when]).for_each(|fields| {
        fields.retain(|field| !is_unknown(field, call));
    });
    rule
}

fn rule_matches(rule: &WrittenRule, namespace: &str, call: &Call, ours: &[&str]) -> bool {
    let all = |fields: &Vec<Written>| fields.iter().all(|field| field_holds(field, namespace, call, ours));
    (rule.from.is_empty() || rule.from.iter().any(all))
        && (rule.to.is_empty() || rule.to.iter().any(all))
        && all(&rule.when)
}

fn field_holds(field: &Written, namespace: &str, call: &Call, ours: &[&str]) -> bool {
    let (name, negated) = positive(field.name);
    let id = call.peer.as_ref();
    let id_of = |part: fn(&SpiffeId) -> String| id.map(part);
    let one = |value: &str| match &*name {
        "principals" => id.is_some_and(|id| {
            let text = id.to_string().replace("spiffe://", "");
            meant(value, ours).iter().any(|value| text_matches(value, &text))
        }),
        "namespaces" => id_of(|id| id.namespace().to_owned()).is_some_and(|text| starred(value, &text)),
        "trustDomains" => id_of(|id| id.trust_domain().to_string()).is_some_and(|text| {
            if ours.contains(&value) { ours.contains(&&*text) } else { starred(value, &text) }
        }),
        "serviceAccounts" => id.is_some_and(|id| {
            let full = if value.contains('/') { value.to_owned() } else { format!("{namespace}/{value}") };
            full == format!("{}/{}", id.namespace(), id.service_account())
        }),
        "ipBlocks" => in_block(value, call.source),
        "remoteIpBlocks" => in_block(value, requests::remote_ip(call)),
        "destination.ip" => in_block(value, "10.0.0.1".parse().unwrap()),
        "ports" => value.parse::<u32>().unwrap() == u32::from(call.port),
        other => requests::has(call, other, value),
    };
    field.values.iter().any(|value| one(value)) != negated
}

fn text_matches(pattern: &str, text: &str) -> bool {
    if pattern == "*" {
        !text.is_empty()
    } else if let Some(end) = pattern.strip_prefix('*') {
        text.ends_with(end)
    } else if let Some(start) = pattern.strip_suffix('*') {
        text.starts_with(start)
    } else {
        text == pattern
    }
}

fn starred(pattern: &str, text: &str) -> bool {
    match pattern.split_at_checked(1) {
        None => text.is_empty(),
        Some(("*", rest)) => (0..=text.len()).any(|at| starred(rest, &text[at..])),
        Some((byte, rest)) => text.strip_prefix(byte).is_some_and(|text| starred(rest, text)),
    }
}

fn meant(principal: &str, ours: &[&str]) -> Vec<String> {
    let parts: Vec<&str> = principal.split('/').collect();
    if parts.len() == 5 && (parts[0] == "cluster.local" || ours.contains(&parts[0])) {
        ours.iter().map(|domain| format!("{domain}/{}", parts[1..].join("/"))).collect()
    } else {
        vec![principal.to_owned()]
    }
}

fn in_block(block: &str, ip: IpAddr) -> bool {
    let bits = |ip: IpAddr| match ip.to_canonical() {
        IpAddr::V4(ip) => format!("{:032b}", ip.to_bits()),
        IpAddr::V6(ip) => format!("{:0128b}", ip.to_bits()),
    };
    let (address, prefix) = block.split_once('/').unwrap_or((block, "128"));
    let (own, other) = (bits(address.parse().unwrap()), bits(ip));
    let prefix = prefix.parse::<usize>().unwrap().min(own.len());
    own.len() == other.len() && own[..prefix] == other[..prefix]
}

const PRINCIPALS: &[&str] = &[
    "*",
    "td1/ns/a/sa/x",
    "cluster.local/ns/a/sa/x",
    "old/ns/b/sa/x",
    "td2/ns/a/sa/x",
    "*/sa/y",
    "*/ns/a/sa/x",
    "td1/ns/a/*",
    "td1*",
    "spiffe://td1/ns/a/sa/x",
    "td1/*/sa/x",
    "*x*",
];
const NAMES: &[&str] = &["a", "b", "ab", "a*", "*b", "*", "*a*", "c"];
const BLOCKS: &[&str] = &[
    "10.0.0.0/8",
    "10.0.0.9",
    "10.0.0.8/31",
    "192.0.2.0/24",
    "::ffff:10.0.0.9",
    "2001:db8::/32",
    "0.0.0.0/0",
    "::/0",
];

fn written(random: &mut StdRng, names: &[&'static str]) -> Written {
    let name = *names.choose(random).unwrap();
    let pool: &[&str] = match &*positive(name).0 {
        "principals" => PRINCIPALS,
        "namespaces" => NAMES,
        "trustDomains" => &["td1", "old", "td*", "*", "td2"],
        "serviceAccounts" => &["x", "a/x", "b/y", "shop/x"],
        "ipBlocks" | "remoteIpBlocks" => BLOCKS,
        "destination.ip" => &["10.0.0.1", "10.0.0.0/30", "10.0.0.2"],
        "ports" => &["80", "8080", "080", "0"],
        other => requests::values(other),
    };
    let count = random.random_range(1..=2);
    Written { name, values: (0..count).map(|_| (*pool.choose(random).unwrap()).to_owned()).collect() }
}

fn alternatives(random: &mut StdRng, names: &[&'static str]) -> Vec<Vec<Written>> {
    let count = random.random_range(0..=2);
    (0..count).map(|_| (0..random.random_range(1..=2)).map(|_| written(random, names)).collect()).collect()
}

const SOURCES: &[&str] = &[
    "principals",
    "notPrincipals",
    "namespaces",
    "notNamespaces",
    "serviceAccounts",
    "notServiceAccounts",
    "trustDomains",
    "notTrustDomains",
    "ipBlocks",
    "notIpBlocks",
    "remoteIpBlocks",
    "notRemoteIpBlocks",
    "requestPrincipals",
    "notRequestPrincipals",
];
const OPERATIONS: &[&str] = &[
    "ports",
    "ports",
    "notPorts",
    "methods",
    "notMethods",
    "paths",
    "paths",
    "notPaths",
    "hosts",
    "notHosts",
];
const CONDITIONS: &[&str] = &[
    "principals",
    "namespaces",
    "ipBlocks",
    "ports",
    "destination.ip",
    "request.headers[x]",
    "notRequest.headers[x]",
    "request.auth.claims[g]",
    "notRequest.auth.claims[a][b]",
    "request.auth.audiences",
    "request.auth.presenter",
    "connection.sni",
    "notConnection.sni",
    "experimental",
];

fn written_policy(random: &mut StdRng) -> WrittenPolicy {
    let rule = |random: &mut StdRng| WrittenRule {
        from: alternatives(random, SOURCES),
        to: alternatives(random, OPERATIONS),
        when: (0..random.random_range(0..=1)).map(|_| written(random, CONDITIONS)).collect(),
    };
    WrittenPolicy {
        namespace: ["shop", "shop", ROOT, "other"].choose(random).copied().unwrap(),
        selector: [labels(&[]), labels(&[("app", "web")]), labels(&[("app", "db")])]
            .choose(random)
            .cloned()
            .unwrap(),
        action: [Action::Allow, Action::Allow, Action::Deny, Action::Deny, Action::Audit, Action::Custom]
            .choose(random)
            .copied()
            .unwrap(),
        rules: (0..random.random_range(0..=3)).map(|_| rule(random)).collect(),
        dry_run: random.random_ratio(1, 8),
    }
}

fn call(random: &mut StdRng) -> Call {
    let mut one = |texts: &[&'static str]| *texts.choose(random).unwrap();
    let id = format!(
        "spiffe://{}/ns/{}/sa/{}",
        one(&["td1", "old", "td2"]),
        one(&["a", "b", "ab", "shop"]),
        one(&["x", "y"])
    );
    let source =
        one(&["10.0.0.9", "10.1.0.8", "192.0.2.1", "2001:db8::9", "::ffff:10.0.0.9"]).parse().unwrap();
    let port = one(&["80", "8080"]).parse().unwrap();
    let peer = random.random_ratio(3, 4).then(|| id.parse().unwrap());
    let sni = [None, Some(""), Some("a.example"), Some("b.test")].choose(random).copied().unwrap();
    let request = random.random_ratio(2, 3).then(|| requests::any(random));
    Call { peer, source, port, request, sni, admitted: random.random_ratio(1, 2) }
}

fn judge(policies: &[WrittenPolicy], trust_domains: &TrustDomains) -> PolicySet {
    set(policies.iter().enumerate().map(|(at, policy)| policy.read(at, trust_domains)))
}

#[test]
fn the_verdict_is_that_of_the_reference() {
    let cases = std::env::var(CASES_VARIABLE).ok().map_or(CASES, |text| text.parse().unwrap());
    let mut random = StdRng::seed_from_u64(0x0a3b_1e55);
    let trust_domains = TrustDomains::new("td1".parse().unwrap(), ["old".parse().unwrap()]);
    let ours = ["td1", "old"];
    let (mut let_in, mut refused, mut known_before) = (0, 0, 0);
    for _ in 0..cases / CALLS {
        let policies: Vec<WrittenPolicy> =
            (0..random.random_range(0..=4)).map(|_| written_policy(&mut random)).collect();
        let compiled = judge(&policies, &trust_domains);
        let denying = WrittenPolicy { action: Action::Deny, ..written_policy(&mut random) };
        let with_deny = judge(&[policies.clone(), vec![denying.clone()]].concat(), &trust_domains);
        let in_force = |policy: &WrittenPolicy| WrittenPolicy { dry_run: false, ..policy.clone() };
        let enforced = judge(&policies.iter().map(in_force).collect::<Vec<_>>(), &trust_domains);
        let without_allow = without_one_allow(&policies).map(|fewer| (judge(&fewer, &trust_domains), fewer));
        for _ in 0..CALLS {
            let call = call(&mut random);
            let verdict = lets_in(&compiled, &call);
            assert_eq!(verdict, reference(&policies, &call, &ours), "{call:?} by {policies:#?}");
            *(if verdict { &mut let_in } else { &mut refused }) += 1;
            // As that takes as long as a hundred verdicts.
            if random.random_ratio(1, 5) {
                explained(&compiled, &call, &policies, &trust_domains);
            }
            assert!(verdict || !lets_in(&with_deny, &call), "{call:?} by {policies:#?} and {denying:#?}");
            if let Some(before) = foreseen(&compiled, &call) {
                assert_eq!(verdict, before, "{call:?} by {policies:#?}");
                known_before += 1;
            }
            let rehearsed = rehearsal::rehearsed(&compiled, &call).0.is_some();
            assert_eq!(rehearsed, verdict && !lets_in(&enforced, &call), "{call:?} by {policies:#?}");
            if let Some((set, fewer)) = &without_allow {
                assert!(verdict || !lets_in(set, &call), "{call:?} by {policies:#?}, not by {fewer:#?}");
            }
        }
    }
    let share = cases / 5;
    assert!(
        let_in > share && refused > share,
        "{let_in} let in, {refused} refused: one of both is hardly tried"
    );
    assert!(known_before > share && known_before < cases, "{known_before} foreseen");
}

/// What is told of a verdict leads to that verdict, and what is told of a change is what the change does.
fn explained(set: &PolicySet, call: &Call, written: &[WrittenPolicy], trust_domains: &TrustDomains) {
    let web = labels(&[("app", "web")]);
    let explanation = call.judged(|facts| set.explain(&"shop".into(), &web, facts, None));
    assert_eq!(explanation.decision, verdict(set, call), "{call:?} by {written:#?}");
    let refused = explanation.policies.iter().any(PolicyVerdict::refuses);
    let mut allowing = explanation.policies.iter().filter(|told| told.is_allowing()).peekable();
    let allowed = allowing.peek().is_none() || allowing.any(|told| told.matched.is_some());
    let follows = !refused && allowed;
    assert_eq!(follows, explanation.decision == Decision::Allow, "{call:?}: {explanation:#?}");
    for remedy in &explanation.remedies {
        let at = |name: &ObjectName| name.name[1..].parse::<usize>().unwrap();
        let mut changed = written.to_vec();
        match &remedy.what {
            // What is left out keeps its place, so that the others keep their names.
            policy::What::Without(name) => changed[at(name)].dry_run = true,
            policy::What::InForce(name) => changed[at(name)].dry_run = false,
            _ => continue,
        }
        let then = lets_in(&judge(&changed, trust_domains), call);
        assert_eq!(then, remedy.then == Decision::Allow, "{call:?}, {remedy:?} by {written:#?}");
    }
}

/// The policies without one that allows, if another one stays that is for the pod.
fn without_one_allow(policies: &[WrittenPolicy]) -> Option<Vec<WrittenPolicy>> {
    let web = labels(&[("app", "web")]);
    let allows = |policy: &WrittenPolicy| {
        let for_pod = policy.selector.is_empty() || policy.selector == web;
        policy.action == Action::Allow && !policy.dry_run && for_pod && policy.namespace != "other"
    };
    let at = policies.iter().position(allows)?;
    let mut fewer = policies.to_vec();
    fewer.remove(at);
    fewer.iter().any(allows).then_some(fewer)
}
