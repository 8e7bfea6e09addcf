use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::SystemTime};

use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, StatusCode, body::Bytes, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use rcgen::SanType;
use rustls::{ServerConfig, crypto::aws_lc_rs};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::{
    ca::callers::{Caller, Callers},
    identity::testing::{TestCa, id},
};

const FROM: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

/// An API server that knows one cluster: two nodes with an agent each, and some pods.
#[derive(Default)]
struct Fake {
    pods: Vec<Value>,
    requests: usize,
    reviews: usize,
    lists: usize,
    down: bool,
}

struct Running {
    _dir: tempfile::TempDir,
    kubeconfig: PathBuf,
    fake: Arc<Mutex<Fake>>,
}

fn pod(namespace: &str, name: &str, account: &str, node: &str, phase: &str) -> Value {
    json!({
        "metadata": {"namespace": namespace, "name": name, "uid": format!("uid-{name}"), "labels": {"a": "b"}},
        "spec": {"nodeName": node, "serviceAccountName": account, "containers": []},
        "status": {"phase": phase},
    })
}

impl Fake {
    fn answer(&mut self, request: &Request<Incoming>, body: &[u8]) -> (StatusCode, Value) {
        self.requests += 1;
        if self.down {
            return (StatusCode::INTERNAL_SERVER_ERROR, json!({"kind": "Status"}));
        }
        if request.headers().get("authorization").is_none_or(|value| value != "Bearer ca-token") {
            return (StatusCode::UNAUTHORIZED, json!({"kind": "Status"}));
        }
        let path = request.uri().path();
        let query = request.uri().query().unwrap_or_default();
        if path == "/apis/authentication.k8s.io/v1/tokenreviews" {
            self.reviews += 1;
            return (StatusCode::CREATED, self.review(&serde_json::from_slice(body).unwrap()));
        }
        if let Some(name) = path.strip_prefix("/api/v1/namespaces/ambit-system/pods/") {
            let found = self.pods.iter().find(|pod| pod["metadata"]["name"] == name);
            let none = json!({"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404});
            return found.map_or((StatusCode::NOT_FOUND, none), |pod| (StatusCode::OK, pod.clone()));
        }
        assert_eq!(path, "/api/v1/pods");
        self.lists += 1;
        let node = query.split('&').find_map(|part| part.strip_prefix("fieldSelector=spec.nodeName%3D"));
        let all: Vec<_> =
            self.pods.iter().filter(|pod| Some(pod["spec"]["nodeName"].as_str().unwrap()) == node).collect();
        // Pages of two, whatever was asked for.
        let from = query.split("continue=p%2B").nth(1).map_or(0, |from| from.parse::<usize>().unwrap());
        let to = all.len().min(from + 2);
        let next = if to < all.len() { format!("p+{to}") } else { String::new() };
        (StatusCode::OK, json!({"metadata": {"continue": next}, "items": all[from..to]}))
    }

    fn review(&self, review: &Value) -> Value {
        let user = |account: &str, pod: Option<(&str, &str)>, audience: &str| {
            let extra = pod.map_or(json!({}), |(name, uid)| {
                json!({"authentication.kubernetes.io/pod-name": [name], "authentication.kubernetes.io/pod-uid": [uid]})
            });
            let asked = review["spec"]["audiences"] == json!([audience]);
            json!({"status": {
                "authenticated": asked,
                "audiences": if asked { json!([audience]) } else { json!(null) },
                "user": {"username": format!("system:serviceaccount:{account}"), "extra": extra, "groups": ["x"]},
            }})
        };
        let mut answer = match review["spec"]["token"].as_str().unwrap() {
            "agent-a" => user("ambit-system:ambit", Some(("agent-a", "uid-agent-a")), "istio-ca"),
            "agent-b" => user("ambit-system:ambit", Some(("agent-b", "uid-agent-b")), "istio-ca"),
            "agent-gone" => user("ambit-system:ambit", Some(("agent-c", "uid-agent-c")), "istio-ca"),
            "agent-reborn" => user("ambit-system:ambit", Some(("agent-a", "uid-older")), "istio-ca"),
            "agent-unbound" => user("ambit-system:ambit", None, "istio-ca"),
            "impostor" => user("ambit-system:ambit", Some(("web", "uid-web")), "istio-ca"),
            "other-audience" => user("ambit-system:ambit", Some(("agent-a", "uid-agent-a")), "vault"),
            "web" => user("shop:web", Some(("web", "uid-web")), "istio-ca"),
            "old-server" => {
                json!({"status": {"authenticated": true, "user": {"username": "system:serviceaccount:shop:web"}}})
            }
            "person" => {
                json!({"status": {"authenticated": true, "audiences": ["istio-ca"], "user": {"username": "admin"}}})
            }
            _ => json!({"status": {"authenticated": false, "error": "invalid bearer token"}}),
        };
        answer["kind"] = json!("TokenReview");
        answer["apiVersion"] = json!("authentication.k8s.io/v1");
        answer
    }
}

impl Running {
    async fn start() -> Self {
        let fake = Arc::new(Mutex::new(Fake {
            pods: vec![
                pod("ambit-system", "agent-a", "ambit", "a", "Running"),
                pod("ambit-system", "agent-b", "ambit", "b", "Running"),
                pod("shop", "web", "web", "a", "Running"),
                pod("shop", "new", "new", "a", "Pending"),
                pod("shop", "job", "job", "a", "Succeeded"),
                pod("shop", "crashed", "crashed", "a", "Failed"),
                pod("bank", "teller", "teller", "b", "Running"),
            ],
            ..Fake::default()
        }));
        let ca = TestCa::new("kubernetes");
        let now = SystemTime::now();
        let (leaf, key) =
            ca.leaf(&[], now - Duration::from_secs(60), now + Duration::from_secs(600), |params| {
                params.subject_alt_names =
                    vec![SanType::DnsName("kubernetes.default.svc".try_into().unwrap())];
            });
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![leaf], key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, TlsAcceptor::from(Arc::new(config)), fake.clone()));
        let dir = tempfile::tempdir().unwrap();
        let kubeconfig = dir.path().join("kubeconfig");
        std::fs::write(dir.path().join("token"), "ca-token").unwrap();
        let root = pem::encode(&pem::Pem::new("CERTIFICATE", ca.certificate.as_ref()));
        std::fs::write(&kubeconfig, kubeconfig_text(addr, &root)).unwrap();
        Self { _dir: dir, kubeconfig, fake }
    }

    async fn callers(&self) -> Callers {
        let cluster = Cluster::new(KubernetesSettings {
            kubeconfig: Some(self.kubeconfig.clone()),
            audience: "istio-ca".into(),
            node_accounts: vec![("ambit-system".into(), "ambit".into())],
        });
        let cluster = Arc::new(cluster.await.unwrap());
        Callers::open(None, Some(cluster), &"td1".parse().unwrap()).unwrap()
    }

    fn change(&self, change: impl FnOnce(&mut Fake)) {
        change(&mut self.fake.lock().unwrap());
    }
}

fn kubeconfig_text(addr: SocketAddr, root: &str) -> String {
    use data_encoding::BASE64;
    let data = BASE64.encode(root.as_bytes());
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: here\npreferences: {{}}\n\
         contexts:\n- name: here\n  context: {{cluster: one, user: ca, namespace: x}}\n\
         clusters:\n- name: one\n  cluster:\n    server: https://{addr}\n    certificate-authority-data: {data}\n    \
         tls-server-name: kubernetes.default.svc\n\
         users:\n- name: ca\n  user: {{tokenFile: token}}\n"
    )
}

async fn serve(listener: TcpListener, acceptor: TlsAcceptor, fake: Arc<Mutex<Fake>>) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (acceptor, fake) = (acceptor.clone(), fake.clone());
        tokio::spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let service = service_fn(move |mut request: Request<Incoming>| {
                let fake = fake.clone();
                async move {
                    let body = request.body_mut().collect().await.unwrap().to_bytes();
                    let (status, answer) = fake.lock().unwrap().answer(&request, &body);
                    let mut response = Response::new(Full::new(Bytes::from(answer.to_string())));
                    *response.status_mut() = status;
                    Ok::<_, Infallible>(response)
                }
            });
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn login(callers: &Callers, token: &str) -> Result<Caller, Refusal> {
    callers.authenticate(Some(token), None, FROM, &"td1".parse().unwrap()).await
}

async fn may(callers: &Callers, token: &str, uri: &str) -> Result<(), &'static str> {
    let caller = login(callers, token).await.map_err(|refusal| refusal.label())?;
    caller.authorize(&id(uri)).await.map_err(|refusal| refusal.label())
}

#[tokio::test]
async fn an_agent_gets_what_runs_on_its_node_and_nothing_else() {
    let api = Running::start().await;
    let callers = api.callers().await;
    let of = |namespace: &str, account: &str| format!("spiffe://td1/ns/{namespace}/sa/{account}");
    for (token, namespace, account, expected) in [
        ("agent-a", "shop", "web", Ok(())),
        ("agent-a", "shop", "new", Ok(())),
        ("agent-a", "ambit-system", "ambit", Ok(())),
        ("agent-a", "bank", "teller", Err("not_on_node")),
        ("agent-a", "shop", "job", Err("not_on_node")),
        ("agent-a", "shop", "crashed", Err("not_on_node")),
        ("agent-a", "bank", "web", Err("not_on_node")),
        ("agent-b", "bank", "teller", Ok(())),
        ("agent-b", "shop", "web", Err("not_on_node")),
        ("web", "shop", "web", Ok(())),
        ("web", "shop", "new", Err("not_on_node")),
    ] {
        assert_eq!(
            may(&callers, token, &of(namespace, account)).await,
            expected,
            "{token} {namespace}/{account}"
        );
    }
    let agent = login(&callers, "agent-a").await.unwrap();
    assert_eq!((agent.node(), agent.proof()), ("a", "node-account"));
}

#[tokio::test]
async fn tokens_that_prove_nothing_are_nobodys() {
    let api = Running::start().await;
    let callers = api.callers().await;
    for token in [
        "agent-gone",
        "agent-reborn",
        "agent-unbound",
        "impostor",
        "other-audience",
        "old-server",
        "person",
        "made-up",
    ] {
        let refused = login(&callers, token).await.unwrap_err();
        assert_eq!(refused, Refusal::UnknownCaller("token"), "{token}");
    }
    let nothing = callers.authenticate(None, None, FROM, &"td1".parse().unwrap()).await;
    assert_eq!(nothing.unwrap_err(), Refusal::NoCredentials);
}

#[tokio::test]
async fn answers_are_remembered_for_a_moment_and_a_new_pod_is_seen_at_once() {
    let api = Running::start().await;
    let callers = api.callers().await;
    for _ in 0..20 {
        may(&callers, "agent-a", "spiffe://td1/ns/shop/sa/web").await.unwrap();
    }
    api.change(|fake| assert_eq!((fake.reviews, fake.lists), (1, 3), "three pages once"));
    let late = "spiffe://td1/ns/shop/sa/late";
    assert!(may(&callers, "agent-a", late).await.is_err());
    api.change(|fake| fake.pods.push(pod("shop", "late", "late", "a", "Pending")));
    tokio::time::sleep(FRESH).await;
    may(&callers, "agent-a", late).await.expect("a list that says no is asked for again");
    api.change(|fake| assert_eq!(fake.reviews, 1));
}

#[tokio::test]
async fn without_an_answer_nobody_gets_in() {
    let api = Running::start().await;
    let callers = api.callers().await;
    may(&callers, "agent-a", "spiffe://td1/ns/shop/sa/web").await.unwrap();
    api.change(|fake| fake.down = true);
    assert_eq!(login(&callers, "agent-b").await.unwrap_err().label(), "authority");
    assert_eq!(
        may(&callers, "agent-a", "spiffe://td1/ns/shop/sa/web").await,
        Ok(()),
        "known for seconds still"
    );
    tokio::time::sleep(FRESH).await;
    assert_eq!(may(&callers, "agent-a", "spiffe://td1/ns/shop/sa/other").await, Err("authority"));
    api.change(|fake| fake.down = false);
    std::fs::write(api.kubeconfig.with_file_name("token"), "wrong").unwrap();
    assert_eq!(
        login(&api.callers().await, "agent-b").await.unwrap_err().label(),
        "authority",
        "the CA's own login fails"
    );
}

#[tokio::test]
async fn bad_tokens_from_one_address_are_not_reviewed_without_end() {
    let api = Running::start().await;
    let callers = api.callers().await;
    login(&callers, "agent-a").await.unwrap();
    let mut last = None;
    for attempt in 0..400 {
        last = login(&callers, &format!("guess-{attempt}")).await.err();
        if last == Some(Refusal::Rate) {
            break;
        }
    }
    assert_eq!(last, Some(Refusal::Rate));
    login(&callers, "agent-a").await.expect("one that is known is not in the way of it");
}

/// An agent that starts asks for all its pods at once, and so does everybody when the API server comes back.
#[tokio::test]
async fn a_crowd_asks_the_api_server_once() {
    let api = Running::start().await;
    let callers = Arc::new(api.callers().await);
    let crowd = async |count: usize| {
        let mut crowd = tokio::task::JoinSet::new();
        for _ in 0..count {
            let callers = callers.clone();
            crowd.spawn(async move { may(&callers, "agent-a", "spiffe://td1/ns/shop/sa/web").await });
        }
        crowd.join_all().await
    };
    api.change(|fake| fake.down = true);
    assert!(crowd(200).await.iter().all(|answer| *answer == Err("authority")));
    api.change(|fake| {
        assert!(fake.requests <= 3, "{} requests for a failure", fake.requests);
        (fake.down, fake.requests) = (false, 0);
    });
    assert!(crowd(200).await.iter().all(|answer| *answer == Ok(())));
    api.change(|fake| {
        assert_eq!((fake.reviews, fake.lists, fake.requests), (1, 3, 5), "one token, one pod, three pages");
    });
}

#[tokio::test]
async fn bad_tokens_that_come_at_once_are_not_all_reviewed() {
    let api = Running::start().await;
    let callers = Arc::new(api.callers().await);
    let mut guesses = tokio::task::JoinSet::new();
    for guess in 0..400 {
        let callers = callers.clone();
        guesses.spawn(async move { login(&callers, &format!("guess-{guess}")).await.err() });
    }
    let refused = guesses.join_all().await;
    assert!(refused.iter().all(Option::is_some));
    let burst = 10 * BAD_TOKENS as usize;
    api.change(|fake| assert!(fake.reviews < 2 * burst, "{} bad tokens were reviewed", fake.reviews));
}

#[tokio::test]
async fn a_kubeconfig_that_cannot_serve_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config");
    std::fs::write(dir.path().join("token"), "t").unwrap();
    let root = pem::encode(&pem::Pem::new("CERTIFICATE", TestCa::new("kubernetes").certificate.as_ref()));
    let good = kubeconfig_text("127.0.0.1:6443".parse().unwrap(), &root);
    let problem = async |text: String| {
        std::fs::write(&path, text).unwrap();
        ApiServer::new(Some(&path)).await.map(drop).map_err(|error| with_causes(&error))
    };
    assert_eq!(problem(good.clone()).await, Ok(()));
    for (from, to, expected) in [
        ("current-context: here", "current-context: there", "there"),
        ("cluster: one", "cluster: two", "two"),
        ("https://", "http://", "is not https://"),
        ("tls-server-name: kubernetes.default.svc", "insecure-skip-tls-verify: true", "prove nothing"),
        ("tokenFile: token", "tokenFile: nowhere", "nowhere cannot be used"),
        ("tokenFile: token", "tokenFile: config", "the token and nothing else"),
        ("contexts:", "contexts: 5", "contexts"),
    ] {
        let error = problem(good.replace(from, to)).await.unwrap_err();
        assert!(error.contains(expected), "{to}: {error}");
    }
}
