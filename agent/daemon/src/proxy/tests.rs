//! Outbound and inbound over loopback, with a scripted pod in place of capture: what is dialled, refused, cut and told.

mod authorization;
mod external;
mod joined;
mod renewal;
mod requests;
mod sizes;

use std::fs;

use ambit_core::{
    discovery::Settings,
    model::{ClientAddr, Labels, ObjectName, OriginalDst},
    policy::{Mode, PeerAuthentication, PolicySet},
};
use socket2::SockRef;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::*;
use crate::{
    capture::Client,
    discovery::watch_folder,
    identity::{BuiltinCa, Clock, KeyStore, Renewed, SystemClock},
    tunnel::{tests::pair, tls::TlsSettings},
};

const SOON: Duration = Duration::from_secs(10);
const WEB: &str = "198.18.1.2";
const CART: &str = "198.18.2.2";
/// Nobody's address.
const STRANGER: &str = "198.18.9.9";

/// A pod whose dials lead where the test wants.
struct Scripted {
    uid: Arc<str>,
    /// Where connects to other pods end; refused if it is not set.
    peer: Option<SocketAddr>,
    /// Where connects to the application end; refused if it is not set.
    app: Option<SocketAddr>,
}

impl Scripted {
    async fn connect(to: Option<SocketAddr>) -> io::Result<TcpStream> {
        let stream = TcpStream::connect(to.ok_or(io::ErrorKind::ConnectionRefused)?).await?;
        SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        Ok(stream)
    }
}

impl Dial for Scripted {
    fn uid(&self) -> &Arc<str> {
        &self.uid
    }

    async fn dial_tunnel(&self, _: IpAddr, _: PodAddr) -> io::Result<TcpStream> {
        let stream = Self::connect(self.peer).await?;
        SockRef::from(&stream).set_linger(None)?;
        Ok(stream)
    }

    async fn dial_plain(&self, _: IpAddr, _: SocketAddr) -> io::Result<TcpStream> {
        Self::connect(self.peer).await
    }

    async fn deliver(&self, _: ClientAddr, _: PodAddr, _: bool) -> io::Result<TcpStream> {
        Self::connect(self.app).await
    }

    fn answered(&self, _: SocketAddr) {}

    fn unanswered(&self, _: SocketAddr) {}

    async fn until_released(&self) {
        std::future::pending().await
    }
}

/// One agent with the pods `web` and `cart`, both in the mesh.
struct Node {
    proxy: Proxy,
    neighbours: Arc<Neighbours<Scripted>>,
    keys: KeyStore,
    /// Has the identities named here get other certificates.
    renewed: Arc<Renewed>,
    _dir: TempDir,
}

impl Node {
    /// With a tunnel between its pods.
    async fn new() -> Self {
        Self::joining(false).await
    }

    async fn joining(join: bool) -> Self {
        let dir = TempDir::new().unwrap();
        let manifests = dir.path().join("manifests");
        fs::create_dir(&manifests).unwrap();
        let pod = |name: &str, ip: &str| {
            format!(
                "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, uid: {name}, \
                 labels: {{ambit.dev/dataplane: enabled}}}}\n\
                 spec: {{nodeName: n1, serviceAccountName: {name}}}\nstatus: {{podIP: {ip}, phase: Running}}\n"
            )
        };
        fs::write(manifests.join("pods.yaml"), pod("web", WEB) + &pod("cart", CART)).unwrap();
        let feed = watch_folder(&manifests, Settings::default()).unwrap();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let domain: ambit_core::model::TrustDomain = "cluster.local".parse().unwrap();
        let ca = BuiltinCa::open(&dir.path().join("ca"), domain.clone(), clock.clone()).unwrap();
        let renewed = Arc::new(Renewed::default());
        let issuer = Arc::new(renewal::Renewing(ca, renewed.clone()));
        let keys = KeyStore::new(issuer, clock.clone(), Duration::from_secs(3600));
        keys.retain(["web", "cart"].map(identity));
        let settings = TlsSettings { post_quantum: Default::default(), trust_domains: vec![domain] };
        let wallet = Wallet::new(keys.clone(), settings, clock);
        let capacity = Capacity { files: 1 << 20, memory: 1 << 30 };
        let proxy =
            Proxy::new(feed, wallet, Telemetry::new(), Judges::default(), capacity, Manner::default());
        Self { proxy, neighbours: Neighbours::new(join), keys, renewed, _dir: dir }
    }

    fn pod(
        &self,
        name: &str,
        peer: Option<SocketAddr>,
        app: Option<SocketAddr>,
    ) -> (Serving<Scripted>, Policy) {
        let (policy, followed) = watch::channel(Arc::default());
        let pod = Arc::new(Scripted { uid: name.into(), peer, app });
        (Serving::new(&self.proxy.0, &self.neighbours, pod, followed), policy)
    }

    /// Takes what comes to `listener` for connections from `source` to cart.
    fn capture(
        &self,
        listener: TcpListener,
        source: &'static str,
        cart: Serving<Scripted>,
    ) -> JoinHandle<()> {
        Self::capture_by(self.proxy.clone(), listener, source, cart)
    }

    fn capture_by(
        proxy: Proxy,
        listener: TcpListener,
        source: &'static str,
        mut cart: Serving<Scripted>,
    ) -> JoinHandle<()> {
        tokio::spawn(async move {
            loop {
                let (stream, peer) = listener.accept().await.unwrap();
                SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
                let source = ClientAddr(SocketAddr::new(source.parse().unwrap(), peer.port()));
                let destination = PodAddr(SocketAddr::new(CART.parse().unwrap(), 80));
                proxy.carry(
                    Accepted::Inbound { client: Client::Connected(stream), source, destination },
                    &mut cart,
                );
            }
        })
    }

    /// An application in web that has connected to cart.
    async fn connect(&self, web: &mut Serving<Scripted>) -> TcpStream {
        let (app, stream) = pair().await;
        SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
        let source = SocketAddr::new(WEB.parse().unwrap(), 40_000);
        let original_dst = OriginalDst(SocketAddr::new(CART.parse().unwrap(), 80));
        self.proxy.carry(Accepted::Outbound { client: Client::Connected(stream), source, original_dst }, web);
        app
    }

    /// The sum over all samples of a metric that have all of `labels`.
    fn metric(&self, name: &str, labels: &[&str]) -> u64 {
        let text = self.proxy.0.telemetry.encode();
        let lines = text.lines().filter(|line| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
                && labels.iter().all(|label| line.contains(label))
        });
        lines.map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()).sum()
    }

    async fn until(&self, name: &str, labels: &[&str], value: u64) {
        let reached = async {
            while self.metric(name, labels) != value {
                sleep(Duration::from_millis(5)).await;
            }
        };
        if timeout(SOON, reached).await.is_err() {
            panic!("{name} {labels:?} is {}, not {value}", self.metric(name, labels));
        }
    }

    /// web and cart on one node, the way between them, and the server's listener.
    async fn both(&self) -> (Serving<Scripted>, Policy, TcpListener) {
        let (agent, server) = (listener().await, listener().await);
        let (web, _) = self.pod("web", Some(agent.local_addr().unwrap()), None);
        let (cart, policy) = self.pod("cart", None, Some(server.local_addr().unwrap()));
        self.capture(agent, WEB, cart);
        (web, policy, server)
    }
}

type Policy = watch::Sender<Arc<WorkloadPolicy>>;

fn identity(name: &str) -> SpiffeId {
    format!("spiffe://cluster.local/ns/shop/sa/{name}").parse().unwrap()
}

async fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

fn strict() -> Arc<WorkloadPolicy> {
    let mut policies = PolicySet::new("ambit-system");
    policies.upsert(Arc::new(PeerAuthentication {
        name: ObjectName::new("shop", "default"),
        created: None,
        selector: Labels::new(),
        mode: Some(Mode::Strict),
        port_modes: Default::default(),
        doubt: None,
    }));
    Arc::new(policies.compile_for(&"shop".into(), &Labels::new()))
}

/// One question and answer, and the end both ways.
async fn ask(mut client: TcpStream, server: &TcpListener) {
    let answer = async {
        let (mut app, _) = server.accept().await.unwrap();
        let mut question = Vec::new();
        app.read_to_end(&mut question).await.unwrap();
        assert_eq!(question, b"how much?");
        app.write_all(b"five").await.unwrap();
    };
    let ask = async {
        client.write_all(b"how much?").await.unwrap();
        client.shutdown().await.unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"five");
    };
    timeout(SOON, async { tokio::join!(ask, answer) }).await.expect("in time");
}

async fn is_reset(socket: &mut TcpStream) {
    let read = timeout(SOON, socket.read(&mut [0; 16])).await.expect("in time");
    assert_eq!(read.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_connection_goes_through_a_tunnel_and_the_next_one_reuses_it() {
    let node = Node::new().await;
    let (mut web, _policy, server) = node.both().await;
    for _ in 0..3 {
        ask(node.connect(&mut web).await, &server).await;
        node.until("istio_tcp_sockets_open", &[], 0).await;
    }
    assert_eq!(node.metric("ambit_handshakes_total", &["source"]), 1);
    assert_eq!(node.metric("ambit_tunnel_reuse_total", &[]), 2);
    let tunnel = ["reporter=\"destination\"", "connection_security_policy=\"mutual_tls\""];
    assert_eq!(node.metric("istio_tcp_received_bytes_total", &tunnel), 27);
    assert_eq!(node.metric("istio_tcp_sent_bytes_total", &tunnel), 12);
    // Asked for an end, the client opens another.
    node.proxy.drain();
    ask(node.connect(&mut web).await, &server).await;
    assert_eq!(node.metric("ambit_handshakes_total", &["source"]), 2);
}

#[tokio::test]
async fn a_tunnel_that_hardly_rests_ends_as_well_when_its_server_drains() {
    let node = Node::new().await;
    let (agent, server) = (listener().await, listener().await);
    let (mut web, _) = node.pod("web", Some(agent.local_addr().unwrap()), None);
    let Shared { feed, wallet, .. } = &*node.proxy.0;
    let capacity = Capacity { files: 1 << 20, memory: 1 << 30 };
    let (feed, wallet, judges) = (feed.clone(), wallet.clone(), Judges::default());
    let far = Proxy::new(feed, wallet, Telemetry::new(), judges, capacity, Manner::default());
    let cart = Arc::new(Scripted { uid: "cart".into(), peer: None, app: Some(server.local_addr().unwrap()) });
    let (_policy, followed) = watch::channel(Arc::default());
    let cart = Serving::new(&far.0, &node.neighbours, cart, followed);
    Node::capture_by(far.clone(), agent, WEB, cart);
    for _ in 0..3 {
        ask(node.connect(&mut web).await, &server).await;
        node.until("istio_tcp_sockets_open", &[], 0).await;
    }
    assert_eq!(node.metric("ambit_handshakes_total", &["source"]), 1);
    far.drain();
    for _ in 0..5 {
        ask(node.connect(&mut web).await, &server).await;
        node.until("istio_tcp_sockets_open", &[], 0).await;
    }
    assert!(node.metric("ambit_handshakes_total", &["source"]) > 1, "the tunnel goes on");
}

#[tokio::test]
async fn an_agent_that_cannot_be_reached_is_a_refusal_with_the_reason() {
    let node = Node::new().await;
    let (mut web, _policy) = node.pod("web", None, None);
    let mut client = node.connect(&mut web).await;
    is_reset(&mut client).await;
    let labels = ["reporter=\"source\"", "reason=\"connection_refused\""];
    node.until("ambit_refusals_total", &labels, 1).await;
}

#[tokio::test]
async fn a_server_that_refuses_is_a_reset_for_the_client_and_told_on_both_sides() {
    let node = Node::new().await;
    let agent = listener().await;
    let (mut web, _) = node.pod("web", Some(agent.local_addr().unwrap()), None);
    let (cart, _policy) = node.pod("cart", None, None);
    node.capture(agent, WEB, cart);
    let mut client = node.connect(&mut web).await;
    client.write_all(b"into the blue").await.unwrap();
    is_reset(&mut client).await;
    for reporter in ["reporter=\"source\"", "reporter=\"destination\""] {
        node.until("ambit_refusals_total", &[reporter, "reason=\"connection_refused\""], 1).await;
    }
}

#[tokio::test]
async fn a_peer_that_leaves_in_the_middle_of_a_handshake_is_a_refusal() {
    let node = Node::new().await;
    let agent = listener().await;
    let (mut web, _policy) = node.pod("web", Some(agent.local_addr().unwrap()), None);
    let mut client = node.connect(&mut web).await;
    drop(agent.accept().await.unwrap());
    is_reset(&mut client).await;
    node.until("istio_tcp_connections_failed_total", &["reporter=\"source\""], 1).await;
}

#[tokio::test]
async fn resets_go_through_the_whole_way() {
    let node = Node::new().await;
    let (mut web, _policy, server) = node.both().await;
    let mut client = node.connect(&mut web).await;
    client.write_all(b"x").await.unwrap();
    let (mut app, _) = server.accept().await.unwrap();
    app.read_exact(&mut [0]).await.unwrap();
    SockRef::from(&app).set_linger(Some(Duration::ZERO)).unwrap();
    drop(app);
    is_reset(&mut client).await;
    let mut client = node.connect(&mut web).await;
    client.write_all(b"x").await.unwrap();
    let (mut app, _) = server.accept().await.unwrap();
    app.read_exact(&mut [0]).await.unwrap();
    SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    is_reset(&mut app).await;
    node.until("istio_tcp_sockets_open", &[], 0).await;
    assert_eq!(node.metric("ambit_connection_failures_total", &[]), 0, "the applications' affair");
}

#[tokio::test]
async fn a_server_in_plaintext_may_speak_first() {
    let node = Node::new().await;
    let (agent, server) = (listener().await, listener().await);
    let (cart, _policy) = node.pod("cart", None, Some(server.local_addr().unwrap()));
    let mut client = TcpStream::connect(agent.local_addr().unwrap()).await.unwrap();
    node.capture(agent, STRANGER, cart);
    let (mut app, _) = server.accept().await.unwrap();
    app.write_all(b"220 hello").await.unwrap();
    let mut greeting = [0; 9];
    timeout(SOON, client.read_exact(&mut greeting)).await.unwrap().unwrap();
    assert_eq!(&greeting, b"220 hello");
    client.shutdown().await.unwrap();
    assert_eq!(app.read(&mut greeting).await.unwrap(), 0);
    app.shutdown().await.unwrap();
    assert_eq!(client.read(&mut greeting).await.unwrap(), 0);
}

#[tokio::test]
async fn plaintext_is_refused_under_strict_and_the_application_never_sees_it() {
    let node = Node::new().await;
    let (agent, server) = (listener().await, listener().await);
    let (cart, policy) = node.pod("cart", None, Some(server.local_addr().unwrap()));
    policy.send_replace(strict());
    let mut client = TcpStream::connect(agent.local_addr().unwrap()).await.unwrap();
    node.capture(agent, STRANGER, cart);
    client.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    is_reset(&mut client).await;
    node.until("ambit_refusals_total", &["destination", "reason=\"mtls_required\""], 1).await;
    assert!(timeout(Duration::from_millis(20), server.accept()).await.is_err());
}

#[tokio::test]
async fn a_live_connection_is_judged_again_by_its_own_pods_policy_alone() {
    let node = Node::new().await;
    let (agent, server) = (listener().await, listener().await);
    let (cart, policy) = node.pod("cart", None, Some(server.local_addr().unwrap()));
    let (_other, other_policy) = node.pod("web", None, None);
    let mut client = TcpStream::connect(agent.local_addr().unwrap()).await.unwrap();
    node.capture(agent, STRANGER, cart);
    client.write_all(b"x").await.unwrap();
    let (mut app, _) = server.accept().await.unwrap();
    app.read_exact(&mut [0]).await.unwrap();
    other_policy.send_replace(strict());
    sleep(Duration::from_millis(20)).await;
    assert_eq!(node.metric("ambit_policy_wakes_total", &[]), 0);
    policy.send_replace(Arc::default());
    node.until("ambit_policy_wakes_total", &[], 1).await;
    client.write_all(b"y").await.unwrap();
    app.read_exact(&mut [0]).await.unwrap();
    policy.send_replace(strict());
    is_reset(&mut client).await;
    is_reset(&mut app).await;
    assert_eq!(node.metric("ambit_policy_wakes_total", &[]), 2);
    node.until("ambit_refusals_total", &["destination", "reason=\"mtls_required\""], 1).await;
}

#[tokio::test]
async fn a_pod_that_has_left_the_mesh_keeps_what_it_has() {
    let node = Node::new().await;
    let (agent, server) = (listener().await, listener().await);
    let (cart, policy) = node.pod("cart", None, Some(server.local_addr().unwrap()));
    let mut client = TcpStream::connect(agent.local_addr().unwrap()).await.unwrap();
    node.capture(agent, STRANGER, cart);
    client.write_all(b"x").await.unwrap();
    let (mut app, _) = server.accept().await.unwrap();
    app.read_exact(&mut [0]).await.unwrap();
    drop(policy);
    sleep(Duration::from_millis(20)).await;
    client.write_all(b"y").await.unwrap();
    app.read_exact(&mut [0]).await.unwrap();
}

#[test]
fn a_refusal_is_passed_on_as_it_was_made() {
    // Whatever policy refused a plaintext client, the reason is the one that the verdict gave.
    let refusal = Refusal {
        policy: Some("shop/only-web".into()),
        rule: Some("rules[0]".into()),
        ..Refusal::new(Reason::PolicyDenied, "no rule allows 198.18.9.9")
    };
    assert_eq!(allowed(Decision::Deny(refusal.clone())).unwrap_err(), refusal);
    let cut = Cut::here(refusal.clone());
    assert!(cut.tell);
    match cut.ending() {
        Ending::Refused { refusal: told, by_peer: false } => assert_eq!(told, refusal),
        other => panic!("{other:?}"),
    }
    for error in [LegError::Refused(refusal.clone()), LegError::Reset(refusal.clone())] {
        match Cut::by_leg(error).ending() {
            Ending::Refused { refusal: told, by_peer: true } => assert_eq!(told, refusal),
            other => panic!("{other:?}"),
        }
    }
}
