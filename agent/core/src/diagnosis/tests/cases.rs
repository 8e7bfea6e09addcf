//! Cases in which implementations of Istio's API are known to differ, by number: those that take both a way through the mesh and a
//! policy. The others are beside the policies.

use super::*;
use crate::{
    discovery::{
        ClientSettings, ClientTls, ConnectionPool, DestinationRule, ExportTo, HostPattern, PortProtocol,
        Route, RouteError, TrafficPolicy,
    },
    model::{OriginalDst, Workload},
    reason::Reason,
};

fn route(scene: &Scene, from: &str, to: &str) -> Route {
    let client = Workload::clone(scene.mesh.pod(&named(from)).unwrap());
    scene.mesh.route(&client, OriginalDst(to.parse().unwrap()), 0, |_| None)
}

fn tunnel(scene: &Scene, from: &str, to: &str) -> Option<String> {
    match route(scene, from, to) {
        Route::Tunnel(endpoint) => Some(endpoint.addr.0.to_string()),
        _ => None,
    }
}

fn strict(scene: Scene) -> Scene {
    scene.peer("ambit-system/mesh", None, Some(Mode::Strict), &[])
}

fn refused(scene: &Scene, from: &str, to: &str) -> Option<Reason> {
    match &scene.ask(from, to).unwrap().cases[0].outcome {
        Outcome::Judged(explanation) => match &explanation.decision {
            Decision::Deny(refusal) => Some(refusal.reason),
            Decision::Allow => None,
        },
        _ => None,
    }
}

#[test]
fn case_43_a_load_balancer_leads_past_the_tunnel() {
    // What it is for nobody here knows; its connections arrive in plaintext, from its own address.
    let scene = strict(shop());
    assert!(matches!(route(&scene, "shop/web-5d4f7c9-x7k2p", "203.0.113.9:80"), Route::Passthrough));
    assert_eq!(refused(&scene, "203.0.113.9", "shop/cart-0:8080"), Some(Reason::MtlsRequired));
}

#[test]
fn case_44_a_headless_pod_is_reached_at_its_own_address() {
    let scene = strict(shop());
    let dialled = tunnel(&scene, "shop/web-5d4f7c9-x7k2p", "10.0.0.2:8080");
    assert_eq!(dialled.as_deref(), Some("10.0.0.2:8080"));
}

#[test]
fn case_45_a_port_that_the_service_has_not_is_closed() {
    let scene = shop();
    let way = route(&scene, "shop/web-5d4f7c9-x7k2p", "10.96.0.1:81");
    assert!(matches!(way, Route::Refuse(RouteError::UnknownPort { port: 81, .. })), "{way:?}");
    let asked = scene.ask("shop/deploy/web", "10.96.0.1:81");
    assert!(matches!(asked, Err(Unanswerable::NoSuchPort { port: 81, .. })), "{asked:?}");
}

#[test]
fn case_46_a_pod_that_calls_its_own_service_is_judged_as_itself() {
    let scene = Scene::new()
        .pod("shop/cart-0", "cart", "10.0.0.2", &[8080])
        .service("shop/cart", "cart", "10.96.0.1", ("http", 80, 8080))
        .policy("shop/only-web", None, Action::Allow, vec![accounts(&["web"])]);
    assert_eq!(tunnel(&scene, "shop/cart-0", "10.96.0.1:80").as_deref(), Some("10.0.0.2:8080"));
    assert_eq!(refused(&scene, "shop/cart-0", "10.96.0.1:80"), Some(Reason::PolicyDenied));
    let scene = scene.policy("shop/itself", None, Action::Allow, vec![accounts(&["cart"])]);
    assert_eq!(refused(&scene, "shop/cart-0", "10.96.0.1:80"), None);
    // By its own address nothing is captured, and no policy is asked.
    assert!(matches!(scene.ask("shop/cart-0", "10.0.0.2:8080").unwrap().cases[0].outcome, Outcome::ToItself));
}

#[test]
fn case_47_a_client_on_the_host_network_is_outside() {
    let mut scene = strict(shop());
    let host = Pod { host_network: true, ..pod("shop/host", "host", "192.0.2.1", &[]) };
    scene.mesh.apply(Change::Pod(Arc::new(host)));
    let answer = scene.ask("shop/host", "shop/cart-0:8080").unwrap();
    assert_eq!(line(&answer.cases[0]), "shop/host plain shop/cart-0:8080 refused mtls_required");
    // The kubelet's own way, on the ports that the pod declares for its probes, is said to be there.
    let answer = scene.ask("shop/host", "shop/cart-0:9000").unwrap();
    assert!(answer.cases[0].notes[0].contains("probes of port 9000 go past all policies"), "{answer:?}");
}

#[test]
fn case_48_a_pod_that_opts_out_is_reached_in_plaintext_and_unjudged() {
    let mut scene = strict(shop());
    let mut out = pod("shop/out", "out", "10.0.0.8", &[80]);
    out.labels.insert("ambit.dev/dataplane".to_owned(), "disabled".to_owned());
    scene.mesh.apply(Change::Pod(Arc::new(out)));
    assert!(matches!(route(&scene, "shop/cart-0", "10.0.0.8:80"), Route::Plain(_)));
    assert!(matches!(scene.ask("shop/cart-0", "shop/out:80").unwrap().cases[0].outcome, Outcome::NotInMesh));
}

#[test]
fn case_49_tls_that_is_disabled_leaves_the_tunnel() {
    for tls in [ClientTls::Disable, ClientTls::Unset, ClientTls::IstioMutual] {
        let mut scene = strict(shop());
        let name = named("shop/cart");
        let settings = ClientSettings { rule: name.clone(), tls, pool: ConnectionPool::default() };
        scene.mesh.apply(Change::DestinationRule(Arc::new(DestinationRule {
            name,
            created: None,
            host: HostPattern::new("cart.shop.svc.cluster.local"),
            exported_to: ExportTo::All,
            selector: None,
            policy: Some(TrafficPolicy { default: Arc::new(settings), ports: BTreeMap::new() }),
        })));
        let way = route(&scene, "shop/web-5d4f7c9-x7k2p", "10.96.0.1:80");
        assert!(matches!(way, Route::Tunnel(_)), "{way:?}");
        assert_eq!(refused(&scene, "shop/web-5d4f7c9-x7k2p", "10.96.0.1:80"), None);
    }
}

/// Method, path and token are judged as on the way; a connection of which nothing is said depends on them.
#[test]
fn requests_are_judged_by_their_normalised_path_and_token() {
    let rule = Rule::new(
        vec![],
        vec![vec![
            field("to[0].operation.methods", Attribute::Method, &["GET"]),
            field("to[0].operation.paths", Attribute::Path, &["/items/{*}"]),
        ]],
        vec![],
    );
    let scene = Scene::new()
        .pod("shop/web-0", "web", "10.0.0.1", &[8080])
        .pod("shop/cart-0", "cart", "10.0.0.2", &[8080])
        .service("shop/cart", "cart", "10.96.0.1", ("http", 80, 8080))
        .policy("shop/p", Some("cart"), Action::Allow, vec![rule]);
    let [source, destination] = ["shop/web-0", "shop/svc/cart"].map(|text| text.parse().unwrap());
    let no_token = |_: &[Arc<policy::JwtRule>]| Token::None;
    let ask = |asked: Option<(&'static str, &'static str)>| {
        let request =
            asked.map(|(method, path)| Asked { method, path, host: None, headers: &[], token: &no_token });
        let question = Question {
            source: &source,
            destination: &destination,
            port: None,
            namespace: None,
            source_ip: None,
            request,
        };
        let answer = explain(scene.cluster(), &question).unwrap();
        let case = answer.cases.into_iter().next().unwrap();
        let Outcome::Judged(explanation) = &case.outcome else { panic!("{case:?}") };
        let let_in = explanation.decision == Decision::Allow;
        (let_in, case)
    };
    let (let_in, case) = ask(Some(("GET", "/items/../items/7?x=1")));
    let judged = case.request.unwrap();
    assert!(let_in && !case.per_request);
    assert_eq!((&*judged.path, &*judged.host, &*judged.token), ("/items/7", "cart", "none"));
    let (let_in, case) = ask(Some(("DELETE", "/items/7")));
    let Outcome::Judged(explanation) = case.outcome else { panic!() };
    assert!(!let_in);
    let changes: Vec<String> = explanation.remedies.iter().map(|remedy| remedy.what.to_string()).collect();
    assert!(
        changes.iter().any(|change| change.contains("to[0].operation.methods") && change.contains("DELETE")),
        "{changes:?}"
    );
    let (let_in, case) = ask(None);
    assert!(!let_in && case.per_request, "what is no HTTP is refused, and the rest depends");
    assert!(matches!(case.protocol, PortProtocol::Http(_)), "{:?}", case.protocol);
    let (let_in, case) = ask(Some(("GET", "/a%00b")));
    let Outcome::Judged(explanation) = case.outcome else { panic!() };
    let Decision::Deny(refusal) = explanation.decision else { panic!() };
    assert_eq!((let_in, refusal.reason), (false, Reason::MalformedRequest));
}
