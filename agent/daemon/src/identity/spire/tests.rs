//! Against a server in this process that behaves as SPIRE documents its Delegated Identity API: not a real SPIRE agent.

use std::{pin::Pin, time::SystemTime};

use ambit_proto::spire::delegatedidentity::{
    Spiffeid, X509svid, X509svidWithKey,
    delegated_identity_server::{DelegatedIdentity, DelegatedIdentityServer},
};
use tokio::net::UnixListener;
use tokio_stream::{Stream, wrappers::UnixListenerStream};
use tonic::{Request, Response};

use super::*;
use crate::identity::{
    KeyStore, SystemClock,
    testing::{TestCa, id},
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

#[test]
fn only_root_or_we_ourselves_may_say_who_workloads_are() {
    let socket = Path::new("/tmp/spire-agent/private/admin.sock");
    for (owner, own, good) in
        [(0, 0, true), (0, 1000, true), (1000, 1000, true), (1000, 0, false), (1, 1000, false)]
    {
        let checked = check_owner(owner, own, socket);
        assert_eq!(checked.is_ok(), good, "{owner} for {own}: {checked:?}");
    }
    let text = check_owner(1000, 0, socket).unwrap_err().to_string();
    assert!(text.contains("user 1000") && text.contains("run the SPIRE agent as root"), "{text}");
}
