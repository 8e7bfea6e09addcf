use std::sync::Arc;

use ambit_core::{
    model::SpiffeId,
    policy::{Action, AuthorizationPolicy, Decision, Doubt, Facts, PolicySet, Target, decide},
};

use super::*;

fn policy(entry: Entry) -> Arc<AuthorizationPolicy> {
    match entry.stated {
        Stated::Good(Change::Policies(PolicyChange::AuthorizationPolicy(policy)))
        | Stated::Strictest(Change::Policies(PolicyChange::AuthorizationPolicy(policy))) => policy,
        other => panic!("{other:?}"),
    }
}

/// Whether the spec, as the only policy, lets a connection of `a/x` to port 8080 in.
fn lets_in(spec: &str) -> bool {
    let mut policies = PolicySet::new("ambit-system");
    policies.apply(PolicyChange::AuthorizationPolicy(policy(read(&authorization_policy(spec)))));
    let id: SpiffeId = "spiffe://cluster.local/ns/a/sa/x".parse().unwrap();
    let [source_ip, destination_ip] = ["10.0.0.9", "10.0.0.1"].map(|ip| ip.parse().unwrap());
    let facts = Facts {
        port: 8080,
        peer: Some(&id),
        source_ip,
        destination_ip,
        request: None,
        admitted: false,
        sni: None,
    };
    let labels = [("app".to_owned(), "web".to_owned())].into();
    decide(&policies.compile_for(&"shop".into(), &labels), &facts) == Decision::Allow
}

/// As users write them.
#[test]
fn authorization_policies() {
    for (spec, expected) in [
        ("null", false),
        ("{}", false),
        ("{rules: [{}]}", true),
        ("{action: ALLOW, rules: [{from: null, to: null, when: null}]}", true),
        ("{action: DENY, rules: []}", true),
        ("{action: DENY, rules: [{}]}", false),
        ("{selector: {matchLabels: {app: db}}, action: DENY, rules: [{}]}", true),
        ("{selector: {matchLabels: {app: web}}, rules: [{from: [{source: {principals: ['*']}}]}]}", true),
        ("{rules: [{from: [{source: {principals: [cluster.local/ns/a/sa/x]}}]}]}", true),
        ("{rules: [{from: [{source: {principals: ['*/sa/x'], notNamespaces: [b], ipBlocks: null}}]}]}", true),
        ("{rules: [{from: [{source: {namespaces: [b]}}, {source: {serviceAccounts: [a/x]}}]}]}", true),
        ("{rules: [{from: [{source: {serviceAccounts: [x]}}]}]}", false),
        ("{rules: [{from: [{source: {trustDomains: ['cluster.*'], ipBlocks: [10.0.0.0/8, '::1']}}]}]}", true),
        ("{rules: [{from: [{source: {notIpBlocks: [10.0.0.0/8]}}]}]}", false),
        ("{rules: [{to: [{operation: {ports: ['80', '8080']}}]}]}", true),
        ("{rules: [{to: [{operation: {notPorts: ['8080']}}]}]}", false),
        (
            "{rules: [{when: [{key: source.ip, values: [10.0.0.9]}, {key: destination.port, notValues: ['80']}]}]}",
            true,
        ),
        ("{rules: [{when: [{key: source.namespace, values: [a], notValues: [b]}]}]}", true),
        (
            "{rules: [{when: [{key: source.principal, values: ['*']}, {key: destination.ip, values: [10.0.0.2]}]}]}",
            false,
        ),
        (
            "{rules: [{when: [{key: source.serviceAccount, values: [a/x]}, {key: source.trustDomain, values: ['*']}]}]}",
            true,
        ),
        // What can only be known within HTTP.
        ("{rules: [{to: [{operation: {paths: ['/{*}/x/{**}'], methods: [GET]}}]}]}", false),
        ("{rules: [{when: [{key: 'request.headers[x-a]', values: ['*']}]}]}", false),
        ("{rules: [{from: [{source: {remoteIpBlocks: [10.0.0.0/8]}}]}]}", false),
        ("{action: DENY, rules: [{when: [{key: 'request.auth.claims[a][b]', values: [x]}]}]}", false),
        ("{action: DENY, rules: [{to: [{operation: {ports: ['80'], notHosts: [x]}}]}]}", true),
        ("{action: DENY, rules: [{when: [{key: connection.sni, values: [x]}]}]}", false),
        ("{action: AUDIT, rules: [{}]}", true),
        ("{action: CUSTOM, provider: {name: opa}, rules: [{}]}", false),
        ("{action: CUSTOM, provider: {name: opa}, rules: [{to: [{operation: {ports: ['80']}}]}]}", true),
    ] {
        for version in ["v1", "v1beta1"] {
            let text = authorization_policy(spec).replace("istio.io/v1", &format!("istio.io/{version}"));
            assert!(read(&text).stated.is_good(), "{spec}: {:?}", read(&text).problem);
        }
        assert_eq!(lets_in(spec), expected, "{spec}");
    }
    let selecting = policy(read(&authorization_policy("{selector: {matchLabels: {app: web}}}")));
    let web = Target::Pods([("app".into(), "web".into())].into());
    assert_eq!((&selecting.target, selecting.action), (&web, Action::Allow));
    let target =
        "{targetRefs: [{kind: Service, group: '', name: web}, {kind: Service, group: core, name: db}]}";
    let services = policy(read(&authorization_policy(target)));
    assert_eq!(services.target, Target::Services(vec!["web".into(), "db".into()]));
}

#[test]
fn what_has_another_effect_is_told() {
    for (spec, expected, idle) in [
        (
            "{action: CUSTOM, provider: {name: x}, rules: [{}]}",
            "spec.provider.name: \"x\" is none of the extension providers (there is none): what the policy matches is refused",
            false,
        ),
        (
            "{rules: [{}, {when: [{key: experimental.envoy.filters.a, values: [x]}]}]}",
            "spec.rules[1].when[0].values: its key is not supported: a rule with it allows nothing",
            false,
        ),
        (
            "{action: DENY, rules: [{when: [{key: experimental.envoy.filters.a, notValues: [x]}]}]}",
            "spec.rules[0].when[0].notValues: its key is not supported: the rule matches by the rest of it",
            false,
        ),
        (
            "{targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: g}]}",
            "spec.targetRefs[0]: a Gateway is no target here",
            true,
        ),
        (
            "{targetRefs: [{kind: Service, name: s}, {group: networking.istio.io, kind: ServiceEntry, name: g}]}",
            "spec.targetRefs[1]: a ServiceEntry is no target here",
            false,
        ),
    ] {
        let entry = read(&authorization_policy(spec));
        let unsupported = entry.unsupported.as_deref().unwrap_or_default();
        assert!(unsupported.contains(expected) && entry.stated.is_good(), "{spec}: {unsupported}");
        assert_eq!((entry.idle, entry.problem.is_some()), (idle, true), "{spec}");
    }
    for spec in [
        "{rules: [{to: [{operation: {methods: [GET]}}]}]}",
        "{action: DENY, rules: [{to: [{operation: {methods: [GET], ports: ['80']}}]}]}",
        "{action: AUDIT, rules: [{when: [{key: connection.sni, values: [x]}]}]}",
    ] {
        let entry = read(&authorization_policy(spec));
        assert!(entry.unsupported.is_none() && entry.problem.is_none(), "{spec}: {:?}", entry.problem);
    }
    let blunt =
        read(&authorization_policy("{action: DENY, rules: [{}, {to: [{operation: {paths: [/a]}}]}]}"));
    assert!(blunt.unsupported.is_none(), "it is in force as it stands");
    let told = blunt.problem.unwrap().to_string();
    assert!(told.contains("spec.rules[1]: names only what HTTP tells, and no port"), "{told}");
    let whole = read(&authorization_policy("{selector: {}}"));
    assert!(whole.unsupported.is_none() && whole.problem.is_some() && policy(whole).doubt.is_none());
}

#[test]
fn a_dry_run_is_what_go_takes_for_true() {
    let rows =
        [("'true'", true, false), ("'1'", true, false), ("'false'", false, false), ("'yes'", false, true)];
    for (value, dry_run, told) in rows {
        let text = authorization_policy("{action: DENY, rules: [{}]}").replace(
            "namespace: shop",
            &format!("namespace: shop, annotations: {{istio.io/dry-run: {value}}}"),
        );
        let entry = read(&text);
        assert_eq!((entry.problem.is_some(), entry.idle), (told, false), "{value}");
        assert_eq!(policy(entry).dry_run, dry_run, "{value}");
    }
}

/// What Istio refuses, every type that may be wrong, and what is misspelt.
#[test]
fn bad_authorization_policies() {
    let source = |fields: &str| format!("{{rules: [{{from: [{{source: {{{fields}}}}}]}}]}}");
    let operation = |fields: &str| format!("{{rules: [{{to: [{{operation: {{{fields}}}}}]}}]}}");
    let when = |fields: &str| format!("{{rules: [{{when: [{{{fields}}}]}}]}}");
    let custom = |rule: &str| format!("{{action: CUSTOM, provider: {{name: x}}, rules: [{rule}]}}");
    let many = |item: &str, count: usize| vec![item; count].join(", ");
    let from = "spec.rules[0].from[0].source";
    let to = "spec.rules[0].to[0].operation";
    for (spec, expected) in [
        ("[]".to_owned(), "spec: invalid type".to_owned()),
        ("{selectors: {}}".into(), "spec.selectors: is no field".into()),
        ("{acton: DENY}".into(), "spec.acton: is no field".into()),
        ("{action: deny}".into(), "spec.action: \"deny\" is not one of ALLOW, DENY, AUDIT, CUSTOM".into()),
        ("{action: DENY}".into(), "spec.rules: is missing".into()),
        ("{action: CUSTOM, rules: [{}]}".into(), "spec.provider.name: is missing".into()),
        ("{provider: {name: x}}".into(), "spec.provider: goes with CUSTOM only".into()),
        (
            "{selector: {matchLabels: {a: 'b*'}}}".into(),
            "spec.selector.matchLabels: \"a: b*\": no wildcards".into(),
        ),
        (
            "{selector: {}, targetRefs: [{kind: Service, name: x}]}".into(),
            "spec: has more than one of selector".into(),
        ),
        ("{targetRef: {kind: Pod, name: x}}".into(), "spec.targetRef.kind: \"/Pod\" is not Service".into()),
        ("{targetRefs: [{kind: Service}]}".into(), "spec.targetRefs[0].name: is missing".into()),
        (
            "{targetRefs: [{kind: Service, name: x, namespace: y}]}".into(),
            "spec.targetRefs[0].namespace: must be empty".into(),
        ),
        (
            format!("{{targetRefs: [{}]}}", many("{kind: Service, name: x}", 17)),
            "spec.targetRefs: has more than 16".into(),
        ),
        (format!("{{rules: [{}]}}", many("{}", 513)), "spec.rules: has more than 512".into()),
        ("{rules: {}}".into(), "spec.rules: invalid type".into()),
        ("{rules: [null]}".into(), "spec.rules[0]: is not an object".into()),
        ("{rules: [{form: []}]}".into(), "spec.rules[0].form: is no field".into()),
        ("{rules: [{from: []}]}".into(), "spec.rules[0].from: is an empty list".into()),
        ("{rules: [{to: []}]}".into(), "spec.rules[0].to: is an empty list".into()),
        ("{rules: [{from: [{}]}]}".into(), format!("{from}: is not an object")),
        (
            "{rules: [{from: [{principals: [a]}]}]}".into(),
            "spec.rules[0].from[0].principals: is no field".into(),
        ),
        (source(""), format!("{from}: is empty")),
        (source("principals: []"), format!("{from}: is empty")),
        (source("principal: [a]"), format!("{from}.principal: is no field")),
        (source("principals: a"), format!("{from}.principals: is not a list of texts")),
        (source("principals: [1]"), format!("{from}.principals[0]: is not a text")),
        (source("principals: [a, '']"), format!("{from}.principals[1]: \"\" is empty")),
        (source("ipBlocks: [10.0.0.0/33]"), format!("{from}.ipBlocks[0]: \"10.0.0.0/33\" is not an IP")),
        (source("notRemoteIpBlocks: [x]"), format!("{from}.notRemoteIpBlocks[0]: \"x\" is not an IP")),
        (source("serviceAccounts: ['a/*']"), format!("{from}.serviceAccounts[0]: \"a/*\" is not NAME")),
        (source("serviceAccounts: [a], namespaces: [b]"), format!("{from}: has serviceAccounts beside")),
        (source("trustDomains: [a/b]"), format!("{from}.trustDomains[0]: \"a/b\" is not a trust domain")),
        (operation(""), format!("{to}: is empty")),
        (operation("ports: ['http']"), format!("{to}.ports[0]: \"http\" is not a port")),
        (operation("ports: [80]"), format!("{to}.ports[0]: is not a text: put it in quotes")),
        (operation("paths: ['/a{*}']"), format!("{to}.paths[0]: \"/a{{*}}\"")),
        (operation("notPaths: ['/{**}/{*}']"), format!("{to}.notPaths[0]: \"/{{**}}/{{*}}\"")),
        (when("values: [a]"), "spec.rules[0].when[0].key: is missing".into()),
        (when("key: source.ip"), "spec.rules[0].when[0]: has neither values nor notValues".into()),
        (
            when("key: source.ips, values: [10.0.0.1]"),
            "spec.rules[0].when[0].key: \"source.ips\" is no attribute".into(),
        ),
        (
            when("key: 'request.headers[]', values: [a]"),
            "spec.rules[0].when[0].key: \"request.headers[]\" is no attribute".into(),
        ),
        (when("key: source.ip, value: [a]"), "spec.rules[0].when[0].value: is no field".into()),
        (when("key: source.ip, values: [a]"), "spec.rules[0].when[0].values[0]: \"a\" is not an IP".into()),
        (
            custom("{from: [{source: {principals: [a]}}]}"),
            format!("{from}.principals: cannot stand in a CUSTOM"),
        ),
        (
            custom("{when: [{key: request.auth.audiences, values: [a]}]}"),
            "spec.rules[0].when[0].key: cannot stand in".into(),
        ),
    ] {
        let text = authorization_policy(&spec);
        let complaint = complaint(&text);
        let counts =
            "; until it can be read it counts as the strictest that it may say for all that it may select";
        assert!(
            complaint.starts_with(&format!("AuthorizationPolicy shop/p: {expected}")),
            "{spec}: {complaint}"
        );
        assert!(complaint.ends_with(counts) && !read(&text).stated.is_good(), "{complaint}");
        assert!(!lets_in(&spec), "{spec} lets in what it may refuse");
    }
}

/// What can be read of a bad one counts, as far as that opens nothing.
#[test]
fn a_bad_policy_counts_as_the_strictest_that_it_may_say() {
    let bad = "{from: [{source: {namespaces: [1]}}]}";
    let good = "{from: [{source: {namespaces: [a]}}]}";
    let web = "selector: {matchLabels: {app: web}}";
    let db = "selector: {matchLabels: {app: db}}";
    let (content, scope) = (Some(Doubt::Content), Some(Doubt::Scope));
    for (spec, doubt, action, rules, expected) in [
        (format!("{{{web}, rules: [{bad}, {good}]}}"), content, Action::Allow, 1, true),
        (format!("{{{db}, rules: [{bad}]}}"), content, Action::Allow, 0, true),
        (format!("{{selector: 3, rules: [{good}]}}"), scope, Action::Allow, 0, false),
        (format!("{{{web}, action: DENY, rules: [{bad}]}}"), content, Action::Deny, 1, false),
        (format!("{{{web}, action: DENI, rules: [{good}]}}"), content, Action::Deny, 1, false),
        (format!("{{{web}, rules: [{good}], provider: {{}}}}"), content, Action::Deny, 1, false),
        (format!("{{{web}, rule: [{good}]}}"), scope, Action::Deny, 1, false),
        ("[]".to_owned(), scope, Action::Deny, 1, false),
        (format!("{{{web}, action: AUDIT, rules: [{bad}]}}"), content, Action::Audit, 0, true),
        (
            format!("{{targetRefs: [{{kind: Service, name: s}}, 1], rules: [{good}]}}"),
            scope,
            Action::Allow,
            0,
            false,
        ),
    ] {
        let policy = policy(read(&authorization_policy(&spec)));
        assert_eq!((policy.doubt, policy.action, policy.rules.len()), (doubt, action, rules), "{spec}");
        assert_eq!(lets_in(&spec), expected, "{spec}");
    }
}
