//! Providers over loopback: scripted servers by gRPC and by HTTP, and none at all.

pub(crate) mod grpc;
mod http;

use std::{
    collections::HashSet,
    sync::atomic::{AtomicUsize, Ordering},
};

use ::http::{Request, StatusCode};
use ambit_core::reason::Reason;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};

use super::*;

const CLIENT: &str = "198.18.1.2:40000";
const POD: &str = "198.18.2.2:8080";

/// Dials loopback, and counts.
struct Loopback {
    to: SocketAddr,
    dials: AtomicUsize,
    /// The pod is one of the provider's.
    is_provider: bool,
    revoke: watch::Sender<bool>,
    /// What carries the connections.
    carrying: Mutex<Vec<tokio::task::AbortHandle>>,
}

impl Loopback {
    fn to(to: SocketAddr) -> Self {
        let (dials, revoke) = (AtomicUsize::new(0), watch::Sender::new(false));
        Self { to, dials, is_provider: false, revoke, carrying: Mutex::default() }
    }

    /// Breaks all connections.
    fn cut(&self) {
        self.carrying.lock().unwrap().drain(..).for_each(|carrying| carrying.abort());
    }

    fn dials(&self) -> usize {
        self.dials.load(Ordering::Relaxed)
    }
}

impl Dialler for Loopback {
    fn pod(&self) -> PodKey {
        PodKey { uid: "pod".into(), source: POD.parse::<SocketAddr>().unwrap().ip() }
    }

    fn is_called_at(&self, _: &ProviderAddr) -> bool {
        self.is_provider
    }

    fn dial<'a>(&'a self, _: &'a ProviderAddr) -> Dialling<'a> {
        Box::pin(async {
            self.dials.fetch_add(1, Ordering::Relaxed);
            let mut server = TcpStream::connect(self.to)
                .await
                .map_err(|error| Refusal::new(Reason::ConnectionRefused, error.to_string()))?;
            let (stream, mut client) = tokio::io::duplex(64 * 1024);
            let carrying = tokio::spawn(async move {
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
            self.carrying.lock().unwrap().push(carrying.abort_handle());
            let mut revoked = self.revoke.subscribe();
            let revoked = Box::pin(async move {
                let _ = revoked.wait_for(|revoked| *revoked).await;
            });
            Ok(Dialled { stream: Box::new(stream), revoked })
        })
    }
}

pub(crate) fn settings(form: Form) -> ProviderSettings {
    ProviderSettings {
        name: "opa".into(),
        addr: ProviderAddr { namespace: None, host: "opa.authz".into(), port: 9191 },
        timeout: Duration::from_secs(5),
        fail_open: false,
        status_on_error: StatusCode::FORBIDDEN,
        body: None,
        form,
    }
}

fn providers(settings: ProviderSettings) -> (Providers, Telemetry) {
    let telemetry = Telemetry::new();
    (Providers::new([settings], &telemetry), telemetry)
}

/// A request with these fields.
fn head(method: &str, uri: &str, fields: &[(&str, &str)]) -> Parts {
    let mut request = Request::builder().method(method).uri(uri).header("host", "shop.test:8080");
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

/// Asks `opa` about a request, or about a connection of which none is known.
async fn ask(providers: &Providers, dialler: &Loopback, request: Option<&Parts>) -> Answer {
    ask_with(providers, dialler, request, None).await
}

async fn ask_with(
    providers: &Providers,
    dialler: &Loopback,
    request: Option<&Parts>,
    body: Option<(&[u8], bool)>,
) -> Answer {
    let (web, cart) = ("spiffe://cluster.local/ns/shop/sa/web", "spiffe://cluster.local/ns/shop/sa/cart");
    let subject = Subject {
        source: CLIENT.parse().unwrap(),
        peer: Some(&web.parse().unwrap()),
        destination: POD.parse().unwrap(),
        own: &cart.parse().unwrap(),
        request,
        body,
    };
    providers.ask("opa", &subject, dialler).await
}

fn admitted(answer: Answer) -> Changes {
    match answer {
        Answer::Admitted(changes) => changes,
        Answer::Denied { why, .. } => panic!("denied: {why}"),
    }
}

fn denied(answer: Answer) -> (u16, String, String) {
    match answer {
        Answer::Denied { status, body, why, .. } => {
            (status.as_u16(), String::from_utf8(body.to_vec()).unwrap(), why.to_string())
        }
        Answer::Admitted(changes) => panic!("admitted: {changes:?}"),
    }
}

/// How many checks have ended so.
fn checks(telemetry: &Telemetry, result: &str) -> u64 {
    let label = format!("result=\"{result}\"");
    let text = telemetry.encode();
    let line =
        text.lines().find(|line| line.starts_with("ambit_ext_authz_checks_total") && line.contains(&label));
    line.map_or(0, |line| line.rsplit_once(' ').unwrap().1.parse().unwrap())
}

async fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn a_provider_that_is_not_configured_denies() {
    let dialler = Loopback::to(nobody().await);
    let (status, _, why) = denied(ask(&Providers::default(), &dialler, None).await);
    assert_eq!((status, dialler.dials()), (403, 0));
    assert!(why.contains("opa is not among the agent's extension providers"), "{why}");
}

#[tokio::test]
async fn one_that_is_away_is_decided_as_configured_and_comes_back_by_itself() {
    let place = nobody().await;
    let dialler = Loopback::to(place);
    let status_on_error = StatusCode::SERVICE_UNAVAILABLE;
    let (closed, telemetry) = providers(ProviderSettings { status_on_error, ..settings(Form::Grpc) });
    let (status, _, why) = denied(ask(&closed, &dialler, None).await);
    assert_eq!(status, 503);
    assert!(why.contains("opa cannot be asked: no connection to opa.authz:9191"), "{why}");
    assert_eq!(checks(&telemetry, "unreachable"), 1);
    let standing = &closed.standing()[0];
    assert!(standing.failing && standing.failed == 1 && standing.last_error.is_some(), "{standing:?}");

    let (open, telemetry) = providers(ProviderSettings { fail_open: true, ..settings(Form::Grpc) });
    admitted(ask(&open, &dialler, None).await);
    assert_eq!(checks(&telemetry, "failed_open"), 1);

    let _server = grpc::serve(TcpListener::bind(place).await.unwrap(), grpc::allows());
    admitted(ask(&closed, &dialler, None).await);
    let standing = &closed.standing()[0];
    assert!(!standing.failing && standing.allowed == 1, "{standing:?}");
}

#[tokio::test]
async fn one_that_does_not_answer_is_not_waited_for_longer_than_its_time() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dialler = Loopback::to(listener.local_addr().unwrap());
    for form in [Form::Grpc, Form::Http(Box::default())] {
        let timeout = Duration::from_millis(50);
        let (providers, telemetry) = providers(ProviderSettings { timeout, ..settings(form) });
        let started = Instant::now();
        let (status, _, why) = denied(ask(&providers, &dialler, Some(&head("GET", "/", &[]))).await);
        assert!(started.elapsed() < Duration::from_secs(2));
        assert_eq!((status, checks(&telemetry, "timed_out")), (403, 1));
        assert!(why.contains("has not answered within 50ms"), "{why}");
    }
}

/// Whoever comes to a provider may be an agent that asks it: that would never end.
#[tokio::test]
async fn nobody_is_asked_about_who_comes_to_a_provider() {
    let dialler = Loopback { is_provider: true, ..Loopback::to(nobody().await) };
    let (providers, _) = providers(ProviderSettings { fail_open: true, ..settings(Form::Grpc) });
    let (status, _, why) = denied(ask(&providers, &dialler, None).await);
    assert_eq!((status, dialler.dials()), (403, 0));
    assert!(why.contains("exclude its pods from CUSTOM policies"), "{why}");
}

#[tokio::test]
async fn http_is_not_asked_about_what_is_no_request() {
    let dialler = Loopback::to(nobody().await);
    let form = Form::Http(Box::default());
    let (providers, _) = providers(ProviderSettings { fail_open: true, ..settings(form) });
    let (status, _, why) = denied(ask(&providers, &dialler, None).await);
    assert_eq!((status, dialler.dials()), (403, 0));
    assert!(why.contains("can only be asked about HTTP requests"), "{why}");
}

#[tokio::test]
async fn a_body_that_is_too_long_is_not_shown_in_part_unless_that_is_allowed() {
    let dialler = Loopback::to(nobody().await);
    let body = Some(BodySettings { max_bytes: 4, allow_partial: false, as_bytes: false });
    let (providers, _) = providers(ProviderSettings { body, fail_open: true, ..settings(Form::Grpc) });
    assert_eq!(providers.wants_body("opa"), 4);
    let request = head("POST", "/", &[]);
    let answer = ask_with(&providers, &dialler, Some(&request), Some((b"1234", false))).await;
    assert_eq!(denied(answer).0, 413);
    assert_eq!(dialler.dials(), 0);
}

#[tokio::test]
async fn a_connection_is_kept_replaced_and_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let place = listener.local_addr().unwrap();
    let dialler = Loopback::to(place);
    let (providers, _) = providers(settings(Form::Grpc));
    let _server = grpc::serve(listener, grpc::allows());
    for _ in 0..5 {
        admitted(ask(&providers, &dialler, None).await);
    }
    assert_eq!(dialler.dials(), 1);
    // Many at a time, on the one that there is.
    let many = (0..200).map(|_| ask(&providers, &dialler, None));
    for answer in futures_of(many).await {
        admitted(answer);
    }
    assert_eq!(dialler.dials(), 1);
    // It breaks, which nobody has heard of yet.
    dialler.cut();
    admitted(ask(&providers, &dialler, None).await);
    assert_eq!(dialler.dials(), 2);
    // It may not be used any more.
    dialler.revoke.send_replace(true);
    tokio::time::sleep(Duration::from_millis(50)).await;
    dialler.revoke.send_replace(false);
    admitted(ask(&providers, &dialler, None).await);
    assert_eq!(dialler.dials(), 3);
    let local: HashSet<&str> = HashSet::new();
    providers.sweep(|uid| local.contains(uid));
    admitted(ask(&providers, &dialler, None).await);
    assert_eq!(dialler.dials(), 4, "the pod was gone");
}

/// A node that is gone says nothing, and resets nothing.
#[tokio::test]
async fn a_connection_on_which_nothing_comes_back_is_not_used_again() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dialler = Loopback::to(listener.local_addr().unwrap());
    let timeout = Duration::from_millis(500);
    let (providers, _) = providers(ProviderSettings { timeout, ..settings(Form::Grpc) });
    let (answer, _silent) = tokio::join!(ask(&providers, &dialler, None), listener.accept());
    assert!(denied(answer).2.contains("has not answered within"));
    let _server = grpc::serve(listener, grpc::allows());
    admitted(ask(&providers, &dialler, None).await);
    assert_eq!(dialler.dials(), 2);
}

/// All at a time.
async fn futures_of<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut waiting: Vec<_> = futures.map(Box::pin).collect();
    let mut done = Vec::new();
    std::future::poll_fn(move |cx| {
        waiting.retain_mut(|future| match future.as_mut().poll(cx) {
            std::task::Poll::Ready(output) => {
                done.push(output);
                false
            }
            std::task::Poll::Pending => true,
        });
        if waiting.is_empty() {
            std::task::Poll::Ready(std::mem::take(&mut done))
        } else {
            std::task::Poll::Pending
        }
    })
    .await
}
