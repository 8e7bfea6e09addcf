//! Against a server in this process that behaves as SPIRE documents its Delegated Identity API: not a real SPIRE agent.

use std::{pin::Pin, time::SystemTime};

use ambit_proto::spire::delegatedidentity::{
    Selector, Spiffeid, SubscribeToX509BundlesRequest, SubscribeToX509BundlesResponse,
    SubscribeToX509sviDsRequest, SubscribeToX509sviDsResponse, X509svid, X509svidWithKey,
    delegated_identity_server::{DelegatedIdentity, DelegatedIdentityServer},
};
use tokio::net::UnixListener;
use tokio_stream::{Stream, wrappers::UnixListenerStream};
use tonic::{Request, Response, Status};

use super::{svids::SETTLE, *};
use crate::{
    error::with_causes,
    identity::{
        KeyStore, SystemClock,
        testing::{TestCa, id},
    },
};

const WEB: &str = "spiffe://td1/ns/shop/sa/web";

/// What the server tells its subscribers; each new value goes out at once.
struct FaithfulSpire {
    svids: watch::Receiver<SubscribeToX509sviDsResponse>,
    bundles: watch::Receiver<SubscribeToX509BundlesResponse>,
    asked: Arc<Mutex<Vec<Selector>>>,
    /// Where set: only who names this pod's UID has an entry.
    only: Option<&'static str>,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn stream<T: Clone + Send + Sync + 'static>(mut values: watch::Receiver<T>) -> Answers<T> {
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move {
        loop {
            let value = values.borrow_and_update().clone();
            if sender.send(Ok(value)).await.is_err() || values.changed().await.is_err() {
                return;
            }
        }
    });
    Box::pin(tokio_stream::wrappers::ReceiverStream::new(receiver))
}

#[tonic::async_trait]
impl DelegatedIdentity for FaithfulSpire {
    type SubscribeToX509SVIDsStream = Answers<SubscribeToX509sviDsResponse>;
    type SubscribeToX509BundlesStream = Answers<SubscribeToX509BundlesResponse>;

    async fn subscribe_to_x509svi_ds(
        &self,
        request: Request<SubscribeToX509sviDsRequest>,
    ) -> Result<Response<Self::SubscribeToX509SVIDsStream>, Status> {
        let selectors = request.into_inner().selectors;
        let entry = self.only.is_none_or(|uid| selectors.iter().any(|one| one.value == uid));
        *self.asked.lock().unwrap() = selectors;
        if !entry {
            let nothing = SubscribeToX509sviDsResponse { x509_svids: vec![], federates_with: vec![] };
            return Ok(Response::new(stream(watch::Sender::new(nothing).subscribe())));
        }
        Ok(Response::new(stream(self.svids.clone())))
    }

    async fn subscribe_to_x509_bundles(
        &self,
        _: Request<SubscribeToX509BundlesRequest>,
    ) -> Result<Response<Self::SubscribeToX509BundlesStream>, Status> {
        Ok(Response::new(stream(self.bundles.clone())))
    }
}

/// The full set of one workload: a certificate of another identity, then its own.
fn set(ca: &TestCa) -> SubscribeToX509sviDsResponse {
    let now = SystemTime::now();
    let one = |path: &str| {
        let uri = format!("spiffe://td1{path}");
        let end = now + Duration::from_secs(3600);
        let (leaf, key) = ca.leaf(&[&uri], now - Duration::from_secs(60), end, |_| ());
        X509svidWithKey {
            x509_svid: Some(X509svid {
                cert_chain: vec![leaf.to_vec()],
                id: Some(Spiffeid { trust_domain: "td1".into(), path: path.into() }),
                expires_at: 0,
            }),
            x509_svid_key: key.secret_der().to_vec(),
        }
    };
    SubscribeToX509sviDsResponse {
        x509_svids: vec![one("/ns/shop/sa/other"), one("/ns/shop/sa/web")],
        federates_with: vec![],
    }
}

fn serve(socket: &Path, server: FaithfulSpire) {
    let incoming = UnixListenerStream::new(UnixListener::bind(socket).unwrap());
    let service = DelegatedIdentityServer::new(server);
    tokio::spawn(async move {
        tonic::transport::Server::builder().serve_with_incoming(service, incoming).await.unwrap();
    });
}

fn bundle(cas: &[&TestCa]) -> SubscribeToX509BundlesResponse {
    let der: Vec<u8> = cas.iter().flat_map(|ca| ca.certificate.to_vec()).collect();
    SubscribeToX509BundlesResponse {
        ca_certificates: [("spiffe://td1".to_owned(), der), ("spiffe://td2".to_owned(), vec![1])].into(),
    }
}

#[tokio::test]
async fn svids_and_bundles_arrive_and_what_spire_rotates_is_in_use_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("admin.sock");
    let (old, new) = (TestCa::new("old"), TestCa::new("new"));
    let (svids, bundles) = (watch::Sender::new(set(&old)), watch::Sender::new(bundle(&[&old])));
    let asked = Arc::new(Mutex::new(Vec::new()));
    let server = FaithfulSpire {
        svids: svids.subscribe(),
        bundles: bundles.subscribe(),
        asked: asked.clone(),
        only: None,
    };

    let selectors: Selectors = Arc::new(|id| vec![("k8s".into(), format!("sa:{}", id.service_account()))]);
    let issuer = SpireIssuer::new(&socket, "td1".parse().unwrap(), selectors);
    let store = KeyStore::new(Arc::new(issuer), Arc::new(SystemClock), Duration::from_secs(3600));
    store.retain([id(WEB)]);
    // The agent of SPIRE comes later than ours.
    sleep(Duration::from_millis(300)).await;
    assert!(store.current(&id(WEB)).is_none());
    serve(&socket, server);
    let first = loop {
        if let Ok(svid) = store.svid(&id(WEB)).await {
            break svid;
        }
        sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(first.trust.roots, std::slice::from_ref(&old.certificate));
    let sent: Vec<_> = asked.lock().unwrap().iter().map(|selector| selector.value.clone()).collect();
    assert_eq!(sent, ["sa:web"]);

    let mut changes = store.subscribe();
    bundles.send_replace(bundle(&[&old, &new]));
    changes.changed().await.unwrap();
    let both = store.current(&id(WEB)).unwrap();
    assert_eq!((both.trust.roots.len(), &both.serial), (2, &first.serial));
    svids.send_replace(set(&new));
    while store.current(&id(WEB)).unwrap().serial == first.serial {
        sleep(Duration::from_millis(20)).await;
    }
    // A bundle that cannot be read changes nothing.
    let broken = SubscribeToX509BundlesResponse { ca_certificates: [("td1".to_owned(), vec![1, 2])].into() };
    bundles.send_replace(broken);
    sleep(Duration::from_millis(50)).await;
    assert_eq!(store.current(&id(WEB)).unwrap().trust.roots.len(), 2);
}

#[tokio::test]
async fn pods_that_change_are_named_anew_and_the_certificate_stays_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("admin.sock");
    let ca = TestCa::new("ca");
    let (svids, bundles) = (watch::Sender::new(set(&ca)), watch::Sender::new(bundle(&[&ca])));
    let asked = Arc::new(Mutex::new(Vec::new()));
    let server = FaithfulSpire {
        svids: svids.subscribe(),
        bundles: bundles.subscribe(),
        asked: asked.clone(),
        only: Some("pod-uid:1"),
    };
    serve(&socket, server);
    let uid = Arc::new(Mutex::new("pod-uid:1"));
    let selectors: Selectors = {
        let uid = uid.clone();
        Arc::new(move |_| vec![("k8s".into(), (*uid.lock().unwrap()).to_owned())])
    };
    let issuer = Arc::new(SpireIssuer::new(&socket, "td1".parse().unwrap(), selectors));
    let store = KeyStore::new(issuer.clone(), Arc::new(SystemClock), Duration::from_secs(3600));
    store.retain([id(WEB)]);
    let before = store.svid(&id(WEB)).await.unwrap();
    // Nothing that SPIRE would look at: it is not asked.
    asked.lock().unwrap().clear();
    issuer.pods_changed([&id(WEB)]);
    sleep(SETTLE * 3).await;
    assert!(asked.lock().unwrap().is_empty());

    // Another pod takes its place before SPIRE has an entry for it.
    *uid.lock().unwrap() = "pod-uid:2";
    issuer.pods_changed([&id(WEB)]);
    let limit = Duration::from_secs(5);
    timeout(limit, async {
        while asked.lock().unwrap().first().is_none_or(|one| one.value != "pod-uid:2") {
            sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("the new pod is not named");
    sleep(Duration::from_millis(100)).await;
    assert_eq!(store.current(&id(WEB)).unwrap().serial, before.serial, "the certificate at hand stays");

    // And then one that has an entry.
    svids.send_replace(set(&ca));
    *uid.lock().unwrap() = "pod-uid:1";
    issuer.pods_changed([&id(WEB)]);
    timeout(limit, async {
        while store.current(&id(WEB)).unwrap().serial == before.serial {
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("the new pod's certificate is not taken");
}

#[tokio::test]
async fn silence_after_a_certificate_is_doubted_and_trouble_that_lasts_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("admin.sock");
    let ca = TestCa::new("ca");
    let (svids, bundles) = (watch::Sender::new(set(&ca)), watch::Sender::new(bundle(&[&ca])));
    let server = FaithfulSpire {
        svids: svids.subscribe(),
        bundles: bundles.subscribe(),
        asked: Arc::default(),
        only: None,
    };
    serve(&socket, server);
    let issuer = SpireIssuer::new(&socket, "td1".parse().unwrap(), Arc::new(|_| Vec::new()));
    let store = KeyStore::new(Arc::new(issuer), Arc::new(SystemClock), Duration::from_secs(3600));
    store.retain([id(WEB)]);
    store.svid(&id(WEB)).await.unwrap();
    let error = || store.status()[0].last_error.clone().unwrap_or_default();
    let nothing = SubscribeToX509sviDsResponse { x509_svids: vec![], federates_with: vec![] };
    // While a key is tainted SPIRE has nothing for a moment.
    svids.send_replace(nothing.clone());
    sleep(Duration::from_millis(500)).await;
    svids.send_replace(set(&ca));
    sleep(Duration::from_secs(3)).await;
    assert_eq!(error(), "");
    svids.send_replace(nothing);
    sleep(Duration::from_millis(3_500)).await;
    assert!(error().contains("no entry"), "{}", error());
    assert!(store.current(&id(WEB)).is_some(), "the certificate is good all the same");
    svids.send_replace(set(&ca));
    sleep(Duration::from_millis(500)).await;
    assert_eq!(error(), "", "SPIRE gives one again");
}

#[tokio::test]
async fn a_spire_agent_that_is_away_is_told_before_and_after_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("admin.sock");
    let issuer = SpireIssuer::new(&socket, "td1".parse().unwrap(), Arc::new(|_| Vec::new()));
    let shared = issuer.shared.clone();
    // A certificate that was given before, and is over.
    let (now, ca) = (SystemTime::now(), TestCa::new("ca"));
    let (leaf, key) = ca.leaf(&[WEB], now - Duration::from_secs(60), now - Duration::from_secs(5), |_| ());
    shared.trust.send_replace(ca.trust());
    let csr = || Csr { id: id(WEB), der: Vec::new().into(), ttl: Duration::from_secs(60) };
    let given = svids::Given::new(vec![leaf], key.secret_der().to_vec());
    let (sender, latest) = watch::channel(Latest::of(given));
    let task = tokio::spawn(std::future::pending::<()>()).abort_handle();
    shared.subscriptions().insert(id(WEB), Subscription { latest, pods: Arc::default(), task });
    assert!(issuer.issue(csr()).await.is_ok(), "nothing speaks against it");
    sender.send_modify(|latest| latest.trouble = Some(Trouble::Unreachable("no SPIRE agent".into())));
    let error = with_causes(&issuer.issue(csr()).await.unwrap_err());
    assert!(error.contains("no SPIRE agent") && !error.contains("clock"), "{error}");
}

#[tokio::test]
async fn bundles_of_others_come_and_go_with_spire() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("admin.sock");
    let (ours, theirs) = (TestCa::new("ours"), TestCa::new("theirs"));
    let with = |domain: &str, der: Vec<u8>| {
        let mut answer = bundle(&[&ours]);
        answer.ca_certificates.remove("spiffe://td2");
        answer.ca_certificates.insert(domain.to_owned(), der);
        answer
    };
    let svids = watch::Sender::new(set(&ours));
    let bundles = watch::Sender::new(with("spiffe://td2", theirs.certificate.to_vec()));
    let server = FaithfulSpire {
        svids: svids.subscribe(),
        bundles: bundles.subscribe(),
        asked: Arc::default(),
        only: None,
    };
    serve(&socket, server);
    let issuer = SpireIssuer::new(&socket, "td1".parse().unwrap(), Arc::new(|_| Vec::new()));
    let mut foreign = issuer.foreign().unwrap();
    let td2: TrustDomain = "td2".parse().unwrap();
    let limit = Duration::from_secs(5);
    let first = timeout(limit, foreign.wait_for(|foreign| foreign.contains_key(&td2))).await.unwrap();
    assert_eq!(first.unwrap()[&td2].roots, std::slice::from_ref(&theirs.certificate));
    // One that cannot be read leaves the roots before it.
    bundles.send_replace(with("td2", vec![1, 2]));
    sleep(Duration::from_millis(200)).await;
    assert_eq!(foreign.borrow()[&td2].roots.len(), 1);
    bundles.send_replace(bundle(&[&ours]));
    bundles.send_replace({
        let mut alone = bundle(&[&ours]);
        alone.ca_certificates.remove("spiffe://td2");
        alone
    });
    timeout(limit, foreign.wait_for(|foreign| foreign.is_empty())).await.unwrap().unwrap();
}
