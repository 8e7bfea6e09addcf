mod analysis;
mod cases;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::*;
use crate::{
    discovery::{
        Change, Namespace, Pod, Protocol, ProviderPlace, Service, ServicePort, Settings, TargetPort,
    },
    model::{Labels, ObjectName, SpiffeId},
    policy::{
        self, Action, Attribute, AuthorizationPolicy, Context, Decision, Field, Mode, PeerAuthentication,
        Rule, Target, TrustDomains,
    },
};

const ROOT: &str = "ambit-system";

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect()
}

fn named(text: &str) -> ObjectName {
    let (namespace, name) = text.split_once('/').unwrap();
    ObjectName::new(namespace, name)
}

/// A cluster with namespace `shop` in the mesh and `plain` outside of it.
struct Scene {
    mesh: Mesh,
    policies: PolicySet,
}

impl Scene {
    fn new() -> Self {
        Self::of(Settings::default())
    }

    fn of(settings: Settings) -> Self {
        let mut mesh = Mesh::new(settings);
        for (name, meshed) in [("shop", true), ("plain", false), ("stock", true)] {
            let labels = if meshed { labels(&[("ambit.dev/dataplane", "enabled")]) } else { Labels::new() };
            mesh.apply(Change::Namespace(Arc::new(Namespace {
                name: name.into(),
                labels,
                http_telemetry: None,
            })));
        }
        Self { mesh, policies: PolicySet::new(ROOT) }
    }

    /// A pod with the service account and the label `app` of this name.
    fn pod(mut self, name: &str, app: &str, ip: &str, ports: &[u16]) -> Self {
        self.mesh.apply(Change::Pod(Arc::new(pod(name, app, ip, ports))));
        self
    }

    fn service(mut self, name: &str, app: &str, ip: &str, port: (&str, u16, u16)) -> Self {
        let service = Service {
            name: named(name),
            created: None,
            cluster_ips: vec![ip.parse().unwrap()],
            external_ips: vec![],
            ports: vec![ServicePort {
                name: port.0.to_owned(),
                port: port.1,
                node_port: None,
                target: TargetPort::Number(port.2),
                protocol: Protocol::Tcp,
                app_protocol: None,
            }],
            selector: labels(&[("app", app)]),
            session_affinity: None,
            local_only: false,
            external_local: false,
            publish_not_ready: false,
            distribution: None,
            source_ranges: Vec::new(),
            balancer_ips: Vec::new(),
        };
        self.mesh.apply(Change::Service(Arc::new(service)));
        self
    }

    fn peer(mut self, name: &str, app: Option<&str>, mode: Option<Mode>, ports: &[(u16, Mode)]) -> Self {
        self.policies.apply(policy::Change::PeerAuthentication(Arc::new(PeerAuthentication {
            name: named(name),
            created: None,
            selector: app.map(|app| labels(&[("app", app)])).unwrap_or_default(),
            mode,
            port_modes: ports.iter().copied().collect(),
            doubt: None,
        })));
        self
    }

    fn policy(mut self, name: &str, app: Option<&str>, action: Action, rules: Vec<Rule>) -> Self {
        let target = Target::Pods(app.map(|app| labels(&[("app", app)])).unwrap_or_default());
        let policy = AuthorizationPolicy {
            name: named(name),
            target,
            action,
            provider: None,
            rules,
            dry_run: false,
            doubt: None,
        };
        self.policies.apply(policy::Change::AuthorizationPolicy(Arc::new(policy)));
        self
    }

    fn cluster(&self) -> Cluster<'_> {
        Cluster { mesh: &self.mesh, policies: &self.policies }
    }

    fn ask(&self, source: &str, target: &str) -> Result<Answer, Unanswerable> {
        let source: Reference = source.parse()?;
        let (destination, port) = destination(target)?;
        let question = Question {
            source: &source,
            destination: &destination,
            port,
            namespace: None,
            source_ip: None,
            request: None,
        };
        explain(self.cluster(), &question)
    }

    /// Each case of an answer in a line.
    fn told(&self, source: &str, target: &str) -> Vec<String> {
        let answer = self.ask(source, target).unwrap_or_else(|error| panic!("{source} {target}: {error}"));
        answer.cases.iter().map(line).collect()
    }
}

fn pod(name: &str, app: &str, ip: &str, ports: &[u16]) -> Pod {
    let id = named(name);
    Pod {
        uid: name.into(),
        created: None,
        identity: SpiffeId::new("cluster.local".parse().unwrap(), &id.namespace, app).unwrap(),
        name: id,
        node: "n1".into(),
        ips: ip.parse().into_iter().collect(),
        host_ips: vec![],
        labels: labels(&[("app", app)]),
        host_network: false,
        terminal: false,
        deleting: false,
        ready: true,
        named_ports: BTreeMap::new(),
        ports: ports.to_vec(),
        probe_ports: vec![9000],
        host_ports: vec![],
        foreign_probes: vec![],
        netns: None,
        http_telemetry: None,
    }
}

fn line(case: &Case) -> String {
    let sources: Vec<&str> = case.sources.iter().map(|client| &*client.name).collect();
    let pods: Vec<String> = case.destinations.iter().map(ToString::to_string).collect();
    let tls = if case.mutual_tls { "mtls" } else { "plain" };
    let verdict = match &case.outcome {
        Outcome::Judged(explanation) => match &explanation.decision {
            Decision::Allow => "let in".to_owned(),
            Decision::Deny(refusal) => format!("refused {}", refusal.reason),
        },
        other => format!("{other:?}"),
    };
    format!("{} {tls} {}:{} {verdict}", sources.join(","), pods.join(","), case.port)
}

fn field(name: &str, attribute: Attribute<'_>, values: &[&str]) -> Field {
    let trust_domains = TrustDomains::new("cluster.local".parse().unwrap(), []);
    let values: Vec<String> = values.iter().map(|value| (*value).to_owned()).collect();
    let context = Context { namespace: "shop", trust_domains: &trust_domains };
    Field::new(name, attribute, name.contains("not"), &values, context).unwrap()
}

fn accounts(values: &[&str]) -> Rule {
    let field = field("from[0].source.serviceAccounts", Attribute::ServiceAccount, values);
    Rule::new(vec![vec![field]], vec![], vec![])
}

fn ports(values: &[&str]) -> Rule {
    Rule::new(vec![], vec![vec![field("to[0].operation.ports", Attribute::Port, values)]], vec![])
}

fn shop() -> Scene {
    Scene::new()
        .pod("shop/web-5d4f7c9-x7k2p", "web", "10.0.0.1", &[8080])
        .pod("shop/cart-0", "cart", "10.0.0.2", &[8080])
        .pod("shop/cart-1", "cart", "10.0.0.3", &[8080])
        .pod("plain/old", "old", "10.0.0.4", &[])
        .pod("stock/web", "web", "10.0.0.5", &[])
        .service("shop/cart", "cart", "10.96.0.1", ("http", 80, 8080))
        .policy("shop/only-web", Some("cart"), Action::Allow, vec![accounts(&["web"])])
}

#[test]
fn parties_are_found_as_people_name_them() {
    let scene = shop();
    let let_in = ["shop/web-5d4f7c9-x7k2p mtls shop/cart-0,shop/cart-1:8080 let in"];
    for (source, target) in [
        ("shop/deploy/web", "shop/svc/cart:80"),
        ("shop/web-5d4f7c9-x7k2p", "cart.shop.svc.cluster.local:80"),
        ("web-5d4f7c9-x7k2p", "cart:80"),
        ("spiffe://cluster.local/ns/shop/sa/web", "shop/sts/cart:8080"),
        ("10.0.0.1", "10.96.0.1:80"),
        ("::ffff:10.0.0.1", "shop/cart:8080"),
        ("shop/sa/web", "shop/cart:80"),
        ("shop/sa/web", "spiffe://cluster.local/ns/shop/sa/cart:8080"),
    ] {
        assert_eq!(scene.told(source, target), let_in, "{source} {target}");
    }
    assert_eq!(
        scene.told("plain/old", "10.0.0.2:8080"),
        ["plain/old plain shop/cart-0:8080 refused policy_denied"]
    );
    assert_eq!(
        scene.told("192.0.2.1", "[10.0.0.2]:8080")[0],
        "192.0.2.1 plain shop/cart-0:8080 refused policy_denied"
    );
    let stranger = "spiffe://cluster.local/ns/elsewhere/sa/x";
    assert_eq!(
        scene.told(stranger, "shop/cart-1:8080"),
        [format!("{stranger} mtls shop/cart-1:8080 refused policy_denied")]
    );
}

#[test]
fn what_nobody_judges_is_said_to_be_so() {
    let scene = shop();
    assert_eq!(scene.told("shop/cart-0", "plain/old:80"), ["shop/cart-0 plain plain/old:80 NotInMesh"]);
    assert_eq!(scene.told("shop/cart-0", "shop/cart-0:8080"), ["shop/cart-0 mtls shop/cart-0:8080 ToItself"]);
    // By its service a pod is a client like any other.
    assert!(
        scene.told("shop/cart-0", "10.96.0.1:80").iter().all(|case| case.ends_with("refused policy_denied"))
    );
    assert_eq!(scene.told("shop/cart-0", "203.0.113.1:443"), ["shop/cart-0 plain :443 Outside"]);
}

#[test]
fn a_question_without_an_answer_says_what_to_do() {
    let scene = shop();
    for (source, target, expected) in [
        ("shop/nobody", "shop/cart-0:1", "there is no pod, workload or service nobody in namespace shop"),
        (
            "web",
            "shop/cart-0:1",
            "web is in several namespaces (shop, stock): write NAMESPACE/web, or pass --namespace",
        ),
        ("typo/web", "shop/cart-0:1", "nothing of that namespace is known; there is one in shop, stock"),
        ("shop/cart-0", "shop/svc/cart:81", "service shop/cart has no port 81: it has 80"),
        ("shop/cart-0", "plain/old", "no port of old is known: say which one"),
        ("a/b/c/d", "shop/cart-0:1", "is no pod, NAMESPACE/POD"),
        ("spiffe://x", "shop/cart-0:1", "is no pod, NAMESPACE/POD"),
        ("shop/cart-0", "shop/cart-0:99999", "is no pod, NAMESPACE/POD"),
        ("sh op/x", "shop/cart-0:1", "is no pod, NAMESPACE/POD"),
    ] {
        let error = scene.ask(source, target).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains(expected.trim_start_matches("; ")), "{source} {target}: {error:?}");
    }
}

#[test]
fn without_a_port_all_known_ones_are_told() {
    let scene = shop().peer("shop/cart", Some("cart"), None, &[(9090, Mode::Strict)]);
    assert_eq!(
        scene.told("plain/old", "shop/sts/cart"),
        [
            "plain/old plain shop/cart-0,shop/cart-1:8080 refused policy_denied",
            "plain/old plain shop/cart-0,shop/cart-1:9090 refused mtls_required",
        ]
    );
}

#[test]
fn a_pod_of_a_template_has_no_address_and_is_judged_all_the_same() {
    let scene = Scene::new().pod("shop/web", "web", "", &[]).pod("shop/cart", "cart", "", &[8080]).policy(
        "shop/here",
        Some("cart"),
        Action::Allow,
        vec![Rule::new(
            vec![vec![field("from[0].source.ipBlocks", Attribute::SourceIp, &["10.0.0.0/8"])]],
            vec![],
            vec![],
        )],
    );
    let answer = scene.ask("shop/web", "shop/cart:8080").unwrap();
    assert_eq!(line(&answer.cases[0]), "shop/web mtls shop/cart:8080 refused policy_denied");
    // It stands for several, which may connect to each other.
    let own = scene.ask("shop/cart", "shop/cart:8080").unwrap();
    assert_eq!(line(&own.cases[0]), "shop/cart mtls shop/cart:8080 refused policy_denied");
    assert!(answer.cases[0].notes[0].contains("--source-ip"), "{:?}", answer.cases[0].notes);
    let source: Reference = "shop/web".parse().unwrap();
    let (to, port) = destination("shop/cart:8080").unwrap();
    let source_ip = Some("10.1.1.1".parse().unwrap());
    let question =
        Question { source: &source, destination: &to, port, namespace: None, source_ip, request: None };
    let answer = explain(scene.cluster(), &question).unwrap();
    assert_eq!(line(&answer.cases[0]), "shop/web mtls shop/cart:8080 let in");
}

#[test]
fn a_big_cluster_has_a_bounded_answer() {
    let mut scene = Scene::new();
    for at in 0..300 {
        scene = scene.pod(
            &format!("shop/web-{at}"),
            "web",
            &format!("10.1.{}.{}", at / 250, at % 250 + 1),
            &[80],
        );
    }
    let answer = scene.ask("shop/sa/web", "shop/sts/web:80").unwrap();
    assert_eq!(answer.cases[0].sources.len(), 100, "{:?}", answer.notes);
    assert_eq!(answer.notes.len(), 2, "{:?}", answer.notes);
}

#[test]
fn a_check_groups_pods_for_which_the_same_holds() {
    let scene = shop()
        .peer("ambit-system/mesh", None, Some(Mode::Strict), &[])
        .peer("shop/cart", Some("cart"), None, &[(8080, Mode::Permissive)])
        .policy("ambit-system/all", None, Action::Deny, vec![ports(&["22"])]);
    let of = |text: &str| check(scene.cluster(), &text.parse().unwrap(), None).unwrap();
    let cart = of("shop/svc/cart");
    assert_eq!(cart.len(), 1);
    let names = |checked: &Checked| -> Vec<String> {
        checked.policies.iter().map(|policy| policy.name.to_string()).collect()
    };
    assert_eq!(names(&cart[0]), ["ambit-system/all", "shop/only-web"]);
    assert_eq!((cart[0].pods.len(), cart[0].in_mesh, cart[0].probe_ports.as_slice()), (2, true, &[9000][..]));
    assert_eq!(cart[0].mtls.scope, policy::MtlsScope::Mesh);
    let port = &cart[0].ports[0];
    assert_eq!((port.port, port.mtls.scope), (8080, policy::MtlsScope::Port));
    assert!(!of("plain/old")[0].in_mesh);
    assert!(check(scene.cluster(), &"10.9.9.9".parse().unwrap(), None).is_err());
}
