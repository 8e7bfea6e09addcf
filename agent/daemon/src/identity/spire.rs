//! The issuer `spire`: SVIDs from a SPIRE agent's Delegated Identity API (spiffe/spire-api-sdk) over its admin socket.
//!
//! One subscription for each identity, one for the bundles; what SPIRE rotates is in use at once. A subscription names the
//! identity's pods of the moment: it is made anew when they change, and the certificate at hand stays meanwhile. The keys are
//! SPIRE's, held in memory only. Leaves to app what is known of the pods, and to say when that changes.

use std::{
    collections::{HashMap, HashSet},
    error::Error as _,
    io, mem,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ambit_core::model::{SpiffeId, TrustDomain};
use ambit_proto::spire::delegatedidentity::{
    Selector, SubscribeToX509BundlesRequest, SubscribeToX509BundlesResponse, SubscribeToX509sviDsRequest,
    SubscribeToX509sviDsResponse, delegated_identity_client::DelegatedIdentityClient,
};
use hyper_util::rt::TokioIo;
use nix::unistd::geteuid;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::{
    net::UnixStream,
    sync::{Notify, watch},
    task::AbortHandle,
    time::{sleep, timeout},
};
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};
use tower::service_fn;
use tracing::{debug, warn};
use x509_parser::{certificate::X509Certificate, prelude::FromDer};
use zeroize::Zeroize;

use super::{Csr, IssueError, IssueFuture, Issued, Issuer, Renewed, TrustBundle, key::PrivateKey};
use crate::error::with_causes;

/// How long the SPIRE agent may take for the first answer of a subscription.
const FIRST_ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two subscriptions after one has ended: from the first to the last, doubled each time. One that is answered cuts
/// the pauses of all others short.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LAST_PAUSE: Duration = Duration::from_secs(4);
/// The same for that of the bundles: by it a SPIRE agent that is back is noticed.
const LAST_BUNDLES_PAUSE: Duration = Duration::from_secs(1);
/// How long changes of an identity's pods are collected before a subscription names the pods anew.
const SETTLE: Duration = Duration::from_millis(100);

/// What is known of the pods of this node that have an identity: type and value, such as `k8s` and `ns:shop`.
pub(crate) type Selectors = Arc<dyn Fn(&SpiffeId) -> Vec<(String, String)> + Send + Sync>;

/// Has a SPIRE agent hand out SVIDs.
pub(crate) struct SpireIssuer {
    shared: Arc<Shared>,
    bundles: AbortHandle,
}

struct Shared {
    channel: Channel,
    selectors: Selectors,
    trust: watch::Sender<Arc<TrustBundle>>,
    /// Grows when a subscription gets its first answer.
    answered: watch::Sender<u64>,
    renewed: Arc<Renewed>,
    subscriptions: Mutex<HashMap<SpiffeId, Subscription>>,
}

struct Subscription {
    latest: watch::Receiver<Latest>,
    /// The pods of the identity have changed.
    pods: Arc<Notify>,
    task: AbortHandle,
}

/// What the last answer said of an identity.
#[derive(Clone)]
enum Latest {
    Nothing,
    Svid(Arc<Svid>),
    /// SPIRE gives nothing for it.
    Refused(String),
    /// SPIRE could not be asked.
    Unreachable(String),
}

#[derive(PartialEq, Eq)]
struct Svid {
    chain: Vec<CertificateDer<'static>>,
    key: Vec<u8>,
}

impl Drop for Svid {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl SpireIssuer {
    /// Over the agent's admin socket; it need not be there yet. Must be called in a tokio runtime.
    pub(crate) fn new(socket: &Path, trust_domain: TrustDomain, selectors: Selectors) -> Self {
        let trust = watch::Sender::new(Arc::new(TrustBundle { roots: Vec::new() }));
        let shared = Arc::new(Shared {
            channel: channel(socket),
            selectors,
            trust,
            answered: watch::Sender::new(0),
            renewed: Arc::default(),
            subscriptions: Mutex::default(),
        });
        let bundles = tokio::spawn(follow_bundles(shared.clone(), trust_domain)).abort_handle();
        Self { shared, bundles }
    }

    /// The pods of these identities on this node have changed: SPIRE is asked with what is known of them now.
    pub(crate) fn pods_changed<'a>(&self, ids: impl IntoIterator<Item = &'a SpiffeId>) {
        let subscriptions = self.shared.subscriptions();
        let changed = ids.into_iter().filter_map(|id| subscriptions.get(id));
        changed.for_each(|subscription| subscription.pods.notify_one());
    }
}

impl Issuer for SpireIssuer {
    fn name(&self) -> &str {
        "spire"
    }

    fn issue(&self, csr: Csr) -> IssueFuture<'_> {
        Box::pin(async move {
            let mut latest = self.shared.subscribed(&csr.id);
            let mut trust = self.shared.trust.subscribe();
            let answer = async {
                // Both senders live as long as this issuer, or its subscription.
                let svid = latest.wait_for(|latest| !matches!(latest, Latest::Nothing)).await;
                let svid = svid.map_err(|_| IssueError::Internal)?.clone();
                let svid = match svid {
                    Latest::Svid(svid) => svid,
                    Latest::Refused(text) => return Err(IssueError::Refused(text)),
                    Latest::Unreachable(text) => return Err(IssueError::Unreachable(text)),
                    Latest::Nothing => return Err(IssueError::Internal),
                };
                let trust = trust.wait_for(|trust| !trust.roots.is_empty()).await;
                let roots = trust.map_err(|_| IssueError::Internal)?.roots.clone();
                let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(svid.key.clone()));
                Ok(Issued { chain: svid.chain.clone(), roots, key: Some(PrivateKey::from(key)) })
            };
            timeout(FIRST_ANSWER_TIMEOUT, answer)
                .await
                .unwrap_or(Err(IssueError::Timeout(FIRST_ANSWER_TIMEOUT)))
        })
    }

    fn trust(&self) -> Option<watch::Receiver<Arc<TrustBundle>>> {
        Some(self.shared.trust.subscribe())
    }

    fn retain(&self, ids: &HashSet<SpiffeId>) {
        let mut subscriptions = self.shared.subscriptions();
        subscriptions
            .extract_if(|id, _| !ids.contains(id))
            .for_each(|(_, subscription)| subscription.task.abort());
    }

    fn renewed(&self) -> Option<Arc<Renewed>> {
        Some(self.shared.renewed.clone())
    }
}

impl Drop for SpireIssuer {
    fn drop(&mut self) {
        self.bundles.abort();
        self.shared.subscriptions().values().for_each(|subscription| subscription.task.abort());
    }
}

impl Shared {
    fn subscriptions(&self) -> MutexGuard<'_, HashMap<SpiffeId, Subscription>> {
        self.subscriptions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The answers about `id`, from a subscription that is there or begins now.
    fn subscribed(self: &Arc<Self>, id: &SpiffeId) -> watch::Receiver<Latest> {
        let mut subscriptions = self.subscriptions();
        let subscription = subscriptions.entry(id.clone()).or_insert_with(|| {
            let (sender, latest) = watch::channel(Latest::Nothing);
            let pods = Arc::new(Notify::new());
            let follower = follow_svid(self.clone(), id.clone(), sender, pods.clone());
            Subscription { latest, pods, task: tokio::spawn(follower).abort_handle() }
        });
        subscription.latest.clone()
    }

    /// Lets `pause` pass, or less where another subscription is answered meanwhile.
    async fn rest(&self, pause: Duration) {
        let mut answered = self.answered.subscribe();
        sleep(FIRST_PAUSE).await;
        // The sender lives as long as this value.
        let _ = timeout(pause.saturating_sub(FIRST_PAUSE), answered.changed()).await;
    }

    fn client(&self) -> DelegatedIdentityClient<Channel> {
        DelegatedIdentityClient::new(self.channel.clone())
    }
}

async fn follow_svid(shared: Arc<Shared>, id: SpiffeId, latest: watch::Sender<Latest>, pods: Arc<Notify>) {
    let mut pause = FIRST_PAUSE;
    loop {
        // Asked for anew each time: pods come and go.
        let named = (shared.selectors)(&id);
        let ended = tokio::select! {
            ended = subscribe(&shared, &id, &latest, named.clone(), &mut pause) => ended,
            () = others_than(&named, &shared, &id, &pods) => {
                debug!(%id, "its pods have changed; subscribing to its SVIDs with what is known of them now");
                continue;
            }
        };
        let text = explain(&ended);
        warn!(%id, error = text, "no SVIDs from SPIRE; subscribing again");
        // A certificate that is there stays in use: only who has none hears of it.
        latest.send_if_modified(|latest| {
            let none = !matches!(latest, Latest::Svid(_));
            if none {
                *latest = match ended.code() {
                    Code::PermissionDenied => Latest::Refused(text.clone()),
                    _ => Latest::Unreachable(text.clone()),
                };
            }
            none
        });
        tokio::select! {
            () = shared.rest(pause) => {}
            () = others_than(&named, &shared, &id, &pods) => {}
        }
        pause = (pause * 2).min(LAST_PAUSE);
    }
}

/// Waits until other things are known of the pods of `id` than `named`. What changes in quick succession counts as one change.
async fn others_than(named: &[(String, String)], shared: &Shared, id: &SpiffeId, pods: &Notify) {
    loop {
        pods.notified().await;
        sleep(SETTLE).await;
        if (shared.selectors)(id) != named {
            return;
        }
    }
}

/// One subscription, to its end.
async fn subscribe(
    shared: &Shared,
    id: &SpiffeId,
    latest: &watch::Sender<Latest>,
    named: Vec<(String, String)>,
    pause: &mut Duration,
) -> Status {
    let selectors = named.into_iter().map(|(r#type, value)| Selector { r#type, value }).collect();
    let request = SubscribeToX509sviDsRequest { selectors };
    let mut answers = match shared.client().subscribe_to_x509svi_ds(request).await {
        Ok(answers) => answers.into_inner(),
        Err(status) => return status,
    };
    let mut first = true;
    loop {
        match answers.message().await {
            Ok(Some(answer)) => take_svids(shared, id, latest, answer),
            Ok(None) => return Status::unavailable("the SPIRE agent ended the subscription"),
            Err(status) => return status,
        }
        *pause = FIRST_PAUSE;
        if mem::take(&mut first) {
            shared.answered.send_modify(|count| *count += 1);
        }
    }
}

fn take_svids(
    shared: &Shared,
    id: &SpiffeId,
    latest: &watch::Sender<Latest>,
    answer: SubscribeToX509sviDsResponse,
) {
    let wanted = format!("/ns/{}/sa/{}", id.namespace(), id.service_account());
    let own = answer.x509_svids.into_iter().filter_map(|with_key| {
        let svid = with_key.x509_svid?;
        let name = svid.id.as_ref()?;
        let own = name.trust_domain == id.trust_domain().as_str() && name.path == wanted;
        own.then_some((svid, with_key.x509_svid_key))
    });
    // Where pods have entries of their own there is one for each: that of a pod that has gone ends first.
    let found = own.max_by_key(|(svid, _)| svid.expires_at).map(|(svid, key)| Svid {
        chain: svid.cert_chain.into_iter().map(CertificateDer::from).collect(),
        key,
    });
    let (now, renewed) = match found {
        Some(svid) => {
            let known = matches!(&*latest.borrow(), Latest::Svid(known) if **known == svid);
            (Latest::Svid(Arc::new(svid)), !known)
        }
        None => (Latest::Refused(format!("SPIRE has no entry that gives {id} to its pods")), true),
    };
    latest.send_replace(now);
    if renewed {
        shared.renewed.tell(id.clone());
    }
}

async fn follow_bundles(shared: Arc<Shared>, trust_domain: TrustDomain) {
    let mut pause = FIRST_PAUSE;
    loop {
        let ended = match shared.client().subscribe_to_x509_bundles(SubscribeToX509BundlesRequest {}).await {
            Ok(answers) => {
                let mut answers = answers.into_inner();
                let mut first = true;
                loop {
                    match answers.message().await {
                        Ok(Some(answer)) => {
                            pause = FIRST_PAUSE;
                            take_bundle(&shared, &trust_domain, &answer);
                            if mem::take(&mut first) {
                                shared.answered.send_modify(|count| *count += 1);
                            }
                        }
                        Ok(None) => break Status::unavailable("the SPIRE agent ended the subscription"),
                        Err(status) => break status,
                    }
                }
            }
            Err(status) => status,
        };
        warn!(error = explain(&ended), "no trust bundles from SPIRE; subscribing again");
        shared.rest(pause).await;
        pause = (pause * 2).min(LAST_BUNDLES_PAUSE);
    }
}

/// An answer without our bundle, or with one that cannot be read, changes nothing.
fn take_bundle(shared: &Shared, trust_domain: &TrustDomain, answer: &SubscribeToX509BundlesResponse) {
    let own = answer
        .ca_certificates
        .iter()
        .find(|(name, _)| name.strip_prefix("spiffe://").unwrap_or(name) == trust_domain.as_str());
    match own.and_then(|(_, der)| certificates(der)) {
        Some(roots) if !roots.is_empty() => {
            let bundle = TrustBundle { roots };
            shared.trust.send_if_modified(|trust| {
                let differs = **trust != bundle;
                if differs {
                    *trust = Arc::new(bundle);
                }
                differs
            });
        }
        _ => warn!(%trust_domain, "SPIRE gave no usable bundle of our trust domain"),
    }
}

/// Certificates one behind another; `None` if one cannot be read.
fn certificates(mut der: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    let mut found = Vec::new();
    while !der.is_empty() {
        let (rest, _) = X509Certificate::from_der(der).ok()?;
        found.push(CertificateDer::from(der[..der.len() - rest.len()].to_vec()));
        der = rest;
    }
    Some(found)
}

fn explain(status: &Status) -> String {
    let hint = match status.code() {
        Code::PermissionDenied => {
            " (is the agent's own SPIFFE ID among authorized_delegates, and is there an entry for the pod?)"
        }
        Code::Unavailable => " (is admin_socket_path of the SPIRE agent the --spire-socket?)",
        _ => "",
    };
    let cause = status.source().map(|cause| format!(": {}", with_causes(cause))).unwrap_or_default();
    let told: String = format!("{}{cause}", status.message()).chars().take(512).collect();
    format!("SPIRE says {:?}: {told}{hint}", status.code())
}

fn channel(socket: &Path) -> Channel {
    let socket = socket.to_owned();
    // The name is not looked up.
    Endpoint::from_static("http://spire").connect_with_connector_lazy(service_fn(move |_| {
        let socket = socket.clone();
        async move {
            let stream = UnixStream::connect(&socket).await?;
            check_owner(stream.peer_cred()?.uid(), geteuid().as_raw(), &socket)?;
            Ok::<_, io::Error>(TokioIo::new(stream))
        }
    }))
}

/// Whether the process behind the socket may say who our workloads are: the folder may lie where anybody can make one. Only
/// root's and our own may.
fn check_owner(owner: u32, own: u32, socket: &Path) -> io::Result<()> {
    if owner == 0 || owner == own {
        return Ok(());
    }
    let problem = format!(
        "{} belongs to a process of user {owner}, who is neither root nor the agent's own; run the SPIRE agent as root",
        socket.display()
    );
    Err(io::Error::new(io::ErrorKind::PermissionDenied, problem))
}

#[cfg(test)]
mod tests;
