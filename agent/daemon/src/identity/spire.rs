//! The issuer `spire`: SVIDs from a SPIRE agent's Delegated Identity API (spiffe/spire-api-sdk) over its admin socket.
//!
//! One subscription for each identity, one for the bundles; what SPIRE rotates is in use at once. A subscription names the
//! identity's pods of the moment: it is made anew when they change, and the certificate at hand stays meanwhile. The keys are
//! SPIRE's, held in memory only. Leaves to app what is known of the pods, and to say when that changes.

mod bundles;
mod channel;
mod svids;

use std::{
    collections::{HashMap, HashSet},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ambit_core::model::{SpiffeId, TrustDomain};
use ambit_proto::spire::delegatedidentity::delegated_identity_client::DelegatedIdentityClient;
use tokio::{
    sync::{Notify, watch},
    task::AbortHandle,
    time::{sleep, timeout},
};
use tonic::transport::Channel;

use self::{channel::Way, svids::Latest};
use super::{Csr, Foreign, IssueError, IssueFuture, Issued, Issuer, Renewed, TrustBundle};

/// How long the SPIRE agent may take for the first answer of a subscription.
const FIRST_ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two subscriptions after one has ended: from the first to the last, doubled each time. One that is answered cuts
/// the pauses of all others short.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LAST_PAUSE: Duration = Duration::from_secs(4);
/// The same for that of the bundles: by it a SPIRE agent that is back is noticed.
const LAST_BUNDLES_PAUSE: Duration = Duration::from_secs(1);

/// What is known of the pods of this node that have an identity: type and value, such as `k8s` and `ns:shop`.
pub(crate) type Selectors = Arc<dyn Fn(&SpiffeId) -> Vec<(String, String)> + Send + Sync>;

/// Has a SPIRE agent hand out SVIDs.
pub(crate) struct SpireIssuer {
    shared: Arc<Shared>,
    bundles: AbortHandle,
}

struct Shared {
    way: Way,
    selectors: Selectors,
    trust: watch::Sender<Arc<TrustBundle>>,
    foreign: watch::Sender<Foreign>,
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

/// Why SPIRE gives nothing, or nothing newer.
#[derive(Clone, Debug)]
enum Trouble {
    /// It has answered, and gives nothing.
    Refused(String),
    /// It could not be asked.
    Unreachable(String),
}

impl SpireIssuer {
    /// Over the agent's admin socket; it need not be there yet. Must be called in a tokio runtime.
    pub(crate) fn new(socket: &Path, trust_domain: TrustDomain, selectors: Selectors) -> Self {
        let shared = Arc::new(Shared {
            way: Way::to(socket),
            selectors,
            trust: watch::Sender::new(Arc::new(TrustBundle { roots: Vec::new() })),
            foreign: watch::Sender::default(),
            answered: watch::Sender::new(0),
            renewed: Arc::default(),
            subscriptions: Mutex::default(),
        });
        let bundles = tokio::spawn(bundles::follow(shared.clone(), trust_domain)).abort_handle();
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
                let latest = latest.wait_for(Latest::is_known).await;
                let latest = latest.map_err(|_| IssueError::Internal)?.clone();
                let given = latest.answer().map_err(IssueError::from)?;
                let trust = trust.wait_for(|trust| !trust.roots.is_empty()).await;
                let roots = trust.map_err(|_| IssueError::Internal)?.roots.clone();
                Ok(Issued { chain: given.chain.clone(), roots, key: Some(given.hand_over()) })
            };
            timeout(FIRST_ANSWER_TIMEOUT, answer)
                .await
                .unwrap_or(Err(IssueError::Timeout(FIRST_ANSWER_TIMEOUT)))
        })
    }

    fn trust(&self) -> Option<watch::Receiver<Arc<TrustBundle>>> {
        Some(self.shared.trust.subscribe())
    }

    fn foreign(&self) -> Option<watch::Receiver<Foreign>> {
        Some(self.shared.foreign.subscribe())
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
            let (sender, latest) = watch::channel(Latest::default());
            let pods = Arc::new(Notify::new());
            let follower = svids::follow(self.clone(), id.clone(), sender, pods.clone());
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
        DelegatedIdentityClient::new(self.way.channel.clone())
    }
}

impl Trouble {
    fn text(&self) -> &str {
        let (Self::Refused(text) | Self::Unreachable(text)) = self;
        text
    }

    /// Whether both are of one sort.
    fn is_like(&self, other: &Self) -> bool {
        matches!(self, Self::Refused(_)) == matches!(other, Self::Refused(_))
    }
}

impl From<Trouble> for IssueError {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Refused(text) => Self::Refused(text),
            Trouble::Unreachable(text) => Self::Unreachable(text),
        }
    }
}

#[cfg(test)]
mod tests;
