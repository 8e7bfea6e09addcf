//! What is tested of requests, and the cases in which implementations of Istio's API are known to differ there, by number.

use super::*;
use crate::policy::PathNormalization;

fn when(name: &'static str, values: &[&str]) -> WrittenRule {
    WrittenRule { when: vec![field(name, values)], ..anything() }
}

/// Whether the rule, of the only policy, matches the request.
fn matches(rule: &WrittenRule, request: Sent) -> bool {
    let call = by("a/b").sends(request);
    let allowed = lets_in(&set([policy("allow", Action::Allow, std::slice::from_ref(rule))]), &call);
    let denied = !lets_in(&set([policy("deny", Action::Deny, std::slice::from_ref(rule))]), &call);
    assert_eq!(allowed, denied, "{rule:?}: ALLOW and DENY differ on {call:?}");
    allowed
}

fn get(target: &str) -> Sent {
    Sent::new("GET", target)
}

#[test]
fn case_20_hosts_are_compared_whole_and_whatever_the_case() {
    let hosts = |values: &[&str]| to(&[field("hosts", values)]);
    for (values, authority, expected) in [
        (&["example.com"][..], "EXAMPLE.com", true),
        (&["example.com"], "example.com:8080", false),
        (&["example.com", "example.com:*"], "Example.com:8080", true),
        (&["*.Example.com"], "a.example.COM", true),
        (&["*.example.com"], "example.com", false),
        (&["*"], "", false),
        (&["*"], "a", true),
        (&["api.*"], "API.example", true),
        (&["api.*"], "ap", false),
    ] {
        assert_eq!(matches(&hosts(values), get("/").to(authority)), expected, "{values:?} on {authority}");
    }
    assert!(matches(&to(&[field("notHosts", &["x"])]), get("/").to("y")));
}

#[test]
fn case_21_methods_are_case_sensitive() {
    assert!(!matches(&to(&[field("methods", &["get"])]), get("/")));
    assert!(matches(&to(&[field("methods", &["get", "GET"])]), get("/")));
    assert!(!matches(&to(&[field("notMethods", &["GET"])]), get("/")));
    // gRPC is POST.
    assert!(matches(&to(&[field("methods", &["P*"])]), Sent::new("POST", "/pkg.Svc/Method")));
}

#[test]
fn case_22_paths_are_compared_without_query() {
    let info = to(&[field("paths", &["/info*"])]);
    assert!(matches(&info, get("/information?x=1")));
    assert!(!matches(&info, get("/INFO")));
    assert!(matches(&to(&[field("paths", &["/info"])]), get("/info?a=/b#c")));
    assert!(!matches(&to(&[field("notPaths", &["*"])]), get("/")));
    assert!(!matches(&to(&[field("paths", &["/api/v1/*"])]), get("/api/v1")));
}

#[test]
fn case_23_dot_segments_and_slashes() {
    let admin = to(&[field("paths", &["/admin"])]);
    let sent = |mode| Sent::under(mode, "GET", "/x/..//admin");
    assert!(!matches(&admin, sent(PathNormalization::Base)), "it is //admin");
    assert!(matches(&admin, sent(PathNormalization::MergeSlashes)));
    assert!(!matches(&admin, sent(PathNormalization::None)));
}

#[test]
fn case_24_percent_encoding() {
    let admin = to(&[field("paths", &["/admin"])]);
    assert!(matches(&admin, get("/%61dmin")));
    assert!(!matches(&admin, get("/admin/")));
}

#[test]
fn case_25_a_star_within_is_itself() {
    let rule = to(&[field("paths", &["/a/*/b"])]);
    assert!(!matches(&rule, get("/a/x/b")));
    assert!(matches(&rule, get("/a/*/b")));
}

#[test]
fn templates_are_paths_too() {
    let rule = to(&[field("paths", &["/users/{*}/orders", "/static/{**}"])]);
    assert!(matches(&rule, get("/users/7/orders")) && matches(&rule, get("/static/a/b.css?v=1")));
    assert!(!matches(&rule, get("/users//orders")) && !matches(&rule, get("/static")));
}

#[test]
fn case_29_a_header_that_is_not_there_has_none_of_the_values() {
    let not_ok = when("notRequest.headers[x-a]", &["ok"]);
    assert!(matches(&not_ok, get("/")));
    assert!(!matches(&not_ok, get("/").with("X-A", "ok")));
    assert!(!matches(&when("request.headers[x-a]", &["*"]), get("/")));
}

#[test]
fn case_30_a_header_that_is_empty_is_there() {
    assert!(matches(&when("request.headers[X-A]", &["*"]), get("/").with("x-a", "")));
    assert!(!matches(&when("request.headers[x-a]", &["a*"]), get("/").with("x-a", "")));
}

#[test]
fn case_31_headers_that_are_repeated_are_joined() {
    let sent = || get("/").with("x", "a").with("x", "b");
    assert!(!matches(&when("request.headers[x]", &["a"]), sent()));
    assert!(matches(&when("request.headers[x]", &["a,b"]), sent()));
    assert!(matches(&when("request.headers[x]", &["a*"]), sent()));
    assert!(!matches(&when("request.headers[x]", &["A*"]), sent()));
}

#[test]
fn pseudo_headers_are_headers() {
    assert!(matches(&when("request.headers[:method]", &["GET"]), get("/")));
    assert!(matches(&when("request.headers[:path]", &["/a?b*"]), get("/a?b=c")));
    assert!(matches(&when("request.headers[:authority]", &["shop.example"]), get("/")));
}

#[test]
fn remote_addresses_are_those_of_clients() {
    let rule = from(&[field("remoteIpBlocks", &["203.0.113.0/24"])]);
    assert!(matches(&rule, get("/").from("203.0.113.7")));
    assert!(matches(&rule, get("/").from("::ffff:203.0.113.7")));
    assert!(!matches(&rule, get("/")));
    assert!(matches(&from(&[field("notRemoteIpBlocks", &["203.0.113.0/24"])]), get("/")));
    assert!(matches(&from(&[field("ipBlocks", &["10.0.0.9"])]), get("/").from("203.0.113.7")));
}

/// All fields of one alternative, one of several alternatives, all conditions.
#[test]
fn rules_join_what_they_say_of_requests() {
    let rule = WrittenRule {
        from: vec![vec![field("namespaces", &["a"]), field("notRequestPrincipals", &["x/y"])]],
        to: vec![
            vec![field("methods", &["GET"]), field("paths", &["/r*"])],
            vec![field("methods", &["POST"]), field("ports", &["8080"])],
        ],
        when: vec![field("request.headers[x]", &["1"]), field("notRequest.headers[y]", &["1"])],
    };
    let good = || get("/read").with("x", "1");
    assert!(matches(&rule, good()));
    assert!(matches(&rule, Sent::new("POST", "/").with("x", "1")));
    assert!(!matches(&rule, get("/write").with("x", "1")));
    assert!(!matches(&rule, get("/read")));
    assert!(!matches(&rule, good().with("y", "1")));
    let dev = by("dev/b").sends(good());
    assert!(!lets_in(&set([policy("p", Action::Allow, &[rule])]), &dev));
}

#[test]
fn names_of_servers_are_those_of_tls() {
    let rule = when("connection.sni", &["*.example"]);
    let asks = |sni| Call { sni, ..by("a/b") };
    let allow = set([policy("p", Action::Allow, std::slice::from_ref(&rule))]);
    let deny = set([policy("p", Action::Deny, &[rule])]);
    // The name, and whether it is let in by ALLOW and refused by DENY: what is not known opens nothing.
    for (sni, allowed, denied) in [
        (Some("a.example"), true, true),
        (Some("b.test"), false, false),
        (Some(""), false, false),
        (None, false, true),
    ] {
        assert_eq!((lets_in(&allow, &asks(sni)), !lets_in(&deny, &asks(sni))), (allowed, denied), "{sni:?}");
    }
    let clear = by("a/b").sends(get("/"));
    assert!(!lets_in(&allow, &clear) && lets_in(&deny, &clear), "HTTP in clear text asks for no name");
}

#[test]
fn what_is_not_supported_opens_nothing() {
    let rule = || when("experimental.envoy.filters.x", &["1"]);
    for call in [by("a/b"), by("a/b").sends(get("/"))] {
        assert!(!lets_in(&set([policy("p", Action::Allow, &[rule()])]), &call));
        assert!(!lets_in(&set([policy("p", Action::Deny, &[rule()])]), &call));
    }
    let refused = refusal(&set([policy("p", Action::Allow, &[rule()])]), &by("a/b").sends(get("/")));
    assert!(
        refused
            .text
            .ends_with("experimental.envoy.filters.x is not supported: a rule with it lets nobody in"),
        "{refused}"
    );
}

#[test]
fn a_refusal_names_the_field_of_the_request() {
    let near =
        WrittenRule { to: vec![vec![field("methods", &["GET"]), field("paths", &["/a"])]], ..anything() };
    let far =
        WrittenRule { when: vec![field("request.headers[x]", &["1"])], ..to(&[field("paths", &["/b"])]) };
    let policies = set([policy("p", Action::Allow, &[far, near])]);
    let refused = refusal(&policies, &by("a/b").sends(Sent::new("POST", "/a")));
    assert_eq!((refused.rule.as_deref(), refused.field.as_deref()), (Some("rules[1]"), Some("methods")));
    assert!(refused.text.ends_with("shop/p rules[1]: methods does not hold"), "{refused}");
    let call = by("a/b").sends(Sent::new("POST", "/a"));
    let web = labels(&[("app", "web")]);
    let told = call.judged(|facts| policies.explain(&"shop".into(), &web, facts, None));
    let miss = told.policies[0].nearest.clone().unwrap();
    assert_eq!((&*miss.wants, &*miss.has, miss.needs_layer7), ("GET", "POST", false));
}
