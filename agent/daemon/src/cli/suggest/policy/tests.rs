//! What is suggested is read by our own reader, and judged as it will be.

use std::{fs, path::Path};

use ambit_core::{
    discovery::Settings,
    model::{Labels, SpiffeId},
    policy::{Decision, Facts, decide},
};
use ambit_proto::admin::v1::{ObservedOperation, ObservedSource, Party, SourceState};

use super::*;
use crate::discovery::watch_folder;

fn source(port: u32, identity: &str, ip: &str) -> ObservedSource {
    ObservedSource {
        port,
        party: Some(Party { identity: identity.to_owned(), ip: ip.to_owned(), ..Party::default() }),
        connections: 1,
        state: SourceState::InMesh.into(),
        ..ObservedSource::default()
    }
}

fn destination(workload: &str, app: &str, sources: Vec<ObservedSource>) -> ObservedDestination {
    ObservedDestination {
        namespace: "shop".to_owned(),
        workload: workload.to_owned(),
        label: if app.is_empty() { String::new() } else { "app".to_owned() },
        label_value: app.to_owned(),
        pods: 1,
        sources,
        ..ObservedDestination::default()
    }
}

fn agent(destinations: Vec<ObservedDestination>) -> ObservationsResponse {
    ObservationsResponse {
        root_namespace: "ambit-system".to_owned(),
        destinations,
        ..ObservationsResponse::default()
    }
}

const WEB: &str = "spiffe://td1/ns/shop/sa/web";
const CRON: &str = "spiffe://td1/ns/batch/sa/cron";

/// Everything that was seen is let in by what is suggested, and whatever differs in one thing is not.
#[test]
fn what_was_seen_is_allowed_and_nothing_else() {
    let seen = [
        ("web", 8080, WEB, "10.0.0.1"),
        ("web", 8080, CRON, "10.0.0.2"),
        ("web", 9090, "", "10.0.0.3"),
        ("web", 9090, "", "2001:db8::3"),
        ("web", 8443, CRON, "10.0.0.2"),
        ("db", 5432, WEB, "10.0.0.1"),
        ("db", 5433, WEB, "10.0.0.1"),
    ];
    // Two nodes have each seen a part.
    let of = |app: &str, part: usize| {
        let own = seen.iter().enumerate().filter(|(at, row)| row.0 == app && at % 2 == part);
        destination(app, app, own.map(|(_, (_, port, id, ip))| source(*port, id, ip)).collect())
    };
    let agents = [0, 1].map(|part| agent(vec![of("web", part), of("db", part)]));
    let suggested = suggest(&agents, |_| true, false);
    for text in [suggested.yaml(None).unwrap(), suggested.json().unwrap()] {
        let policies = Policies::read(&text);
        for app in ["web", "db"] {
            for port in [8080, 9090, 8443, 5432, 5433, 1] {
                for identity in ["", WEB, CRON, "spiffe://td1/ns/shop/sa/webb", "spiffe://td2/ns/shop/sa/web"]
                {
                    for ip in ["10.0.0.1", "10.0.0.2", "10.0.0.3", "2001:db8::3"] {
                        let by_name = |row: &&(&str, u32, &str, &str)| {
                            row.0 == app && row.1 == port && row.2 == identity
                        };
                        // An identity may come from any address.
                        let expected =
                            seen.iter().filter(by_name).any(|row| !identity.is_empty() || row.3 == ip);
                        let let_in = policies.let_in(app, port as u16, identity, ip);
                        assert_eq!(let_in, expected, "{identity:?} at {ip} to {app}:{port} by\n{text}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_dry_run_lets_everybody_in() {
    let agents = [agent(vec![destination("web", "web", vec![source(80, WEB, "10.0.0.1")])])];
    let text = suggest(&agents, |_| true, true).yaml(None).unwrap();
    assert!(text.contains("istio.io/dry-run: 'true'"), "{text}");
    assert!(Policies::read(&text).let_in("web", 81, "", "10.0.0.9"));
}

#[test]
fn where_not_all_is_known_there_is_no_policy_and_a_word_about_it() {
    let one = || vec![source(80, WEB, "10.0.0.1")];
    let root = ObservedDestination { namespace: "ambit-system".to_owned(), ..destination("r", "r", one()) };
    let lost = ObservedDestination { incomplete: true, ..destination("lost", "lost", one()) };
    let agents =
        [agent(vec![destination("bare", "", one()), root, lost, destination("idle", "idle", vec![])])];
    let suggested = suggest(&agents, |_| true, false);
    let text = suggested.yaml(None).unwrap();
    assert!(suggested.policies.is_empty() && !text.contains("---"), "{text}");
    for (workload, why) in [
        ("shop/bare", "no label"),
        ("ambit-system/r", "root namespace"),
        ("shop/lost", "more sources"),
        ("shop/idle", "nobody has come"),
    ] {
        let told = text.lines().any(|line| line.contains(workload) && line.contains(why));
        assert!(told, "{workload}: {text}");
    }
    assert!(Policies::read(&text).let_in("bare", 1, "", "10.0.0.9"));
    let elsewhere = suggest(&agents, |namespace| namespace == "elsewhere", false);
    assert!(elsewhere.left_out.is_empty());
}

/// Workloads with one label share a policy, and names are legal and never shared.
#[test]
fn names_are_legal_and_one_of_a_kind() {
    let one = |port| vec![source(port, WEB, "10.0.0.1")];
    let agents = [agent(vec![
        destination("a", "Web.Shop", one(1)),
        destination("b", "Web.Shop", one(2)),
        destination("c", "web_shop", one(3)),
        destination("d", "X--y_", one(4)),
    ])];
    let suggested = suggest(&agents, |_| true, false);
    let names: Vec<&str> = suggested.policies.iter().map(|(_, policy)| &*policy.metadata.name).collect();
    assert_eq!(names, ["observed-web-shop", "observed-x--y", "observed-web-shop-2"]);
    let policies = Policies::read(&suggested.yaml(None).unwrap());
    for (app, port) in [("Web.Shop", 1), ("Web.Shop", 2), ("web_shop", 3)] {
        assert!(policies.let_in(app, port, WEB, "10.0.0.1"), "{app}:{port}");
        assert!(!policies.let_in(app, 4, WEB, "10.0.0.1"), "{app}");
    }
}

/// Policies as an agent reads them from a folder.
struct Policies(ambit_core::policy::PolicySet);

impl Policies {
    fn read(text: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(Path::new(dir.path()).join("suggested.yaml"), text).unwrap();
        let settings = Settings { trust_domain: "td1".parse().unwrap(), ..Settings::default() };
        let world = watch_folder(dir.path(), settings).unwrap().world();
        assert!(world.problems.is_empty(), "{:?}\n{text}", world.problems);
        Self(world.policies.clone())
    }

    fn let_in(&self, app: &str, port: u16, identity: &str, ip: &str) -> bool {
        let labels: Labels = [("app".to_owned(), app.to_owned())].into();
        let policy = self.0.compile_for(&"shop".into(), &labels);
        let peer: Option<SpiffeId> = (!identity.is_empty()).then(|| identity.parse().unwrap());
        let destination_ip = "10.0.0.200".parse().unwrap();
        let facts = Facts {
            port,
            peer: peer.as_ref(),
            source_ip: ip.parse().unwrap(),
            destination_ip,
            request: None,
            admitted: false,
            sni: None,
        };
        decide(&policy, &facts) == Decision::Allow
    }
}

/// Where one agent has not read all that a client sent, the port alone is named.
#[test]
fn methods_and_paths_are_suggested_where_all_requests_are_known() {
    let operation = |method: &str, paths: &[&str]| ObservedOperation {
        method: method.to_owned(),
        paths: paths.iter().map(|path| (*path).to_owned()).collect(),
    };
    let read = |port, identity, operations| ObservedSource {
        requests_known: true,
        operations,
        ..source(port, identity, "10.0.0.1")
    };
    let one = agent(vec![destination(
        "web",
        "web",
        vec![
            read(
                80,
                WEB,
                vec![operation("GET", &["/items/{*}", "/a"]), operation("HEAD", &["/a", "/items/{*}"])],
            ),
            read(81, WEB, vec![operation("GET", &["/a"])]),
            read(82, WEB, vec![]),
        ],
    )]);
    let two = agent(vec![destination(
        "web",
        "web",
        vec![read(80, WEB, vec![operation("POST", &[])]), source(81, WEB, "10.0.0.1")],
    )]);
    let text = suggest(&[one, two], |_| true, false).yaml(None).unwrap();
    Policies::read(&text);
    let rules = text.split("  rules:\n").nth(1).unwrap();
    let expected = "\x20 - from:
    - source:
        principals:
        - td1/ns/shop/sa/web
    to:
    - operation:
        ports:
        - '81'
  - from:
    - source:
        principals:
        - td1/ns/shop/sa/web
    to:
    - operation:
        ports:
        - '80'
        methods:
        - POST
    - operation:
        ports:
        - '80'
        methods:
        - GET
        - HEAD
        paths:
        - /a
        - /items/{*}
";
    assert_eq!(rules, expected);
    assert!(text.contains("# paths with {*}"), "{text}");
}
