//! The cluster that the CA serves: a service-account token is reviewed by the API server, a node's agent gets what runs on
//! its node (as with istiod's `CA_TRUSTED_NODE_ACCOUNTS`), and the CA itself may live in a Secret.
//!
//! Promises to refuse whatever the API server does not confirm, also when it cannot be asked, and never to ask it more than it is
//! asked: nothing is tried again, and those who ask the same at once are one. What it said is remembered for seconds, in tables of
//! bounded size.

mod api;
mod flights;
mod object;
mod roots;
mod secret;

use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use ambit_core::model::SpiffeId;
use k8s_openapi::api::authentication::v1::UserInfo;

pub(super) use object::ObjectError;
pub(super) use roots::RootConfigMap;
pub(super) use secret::RootSecret;

use self::{
    api::{ApiError, ApiServer, account_of},
    flights::Flights,
};
use super::{limits::Limits, refusal::Refusal};
use crate::{cluster::ClusterError, error::with_causes};

/// How long an accepted token is not reviewed again, nor its pod looked up.
const ACCEPTED: Duration = Duration::from_secs(30);
/// How long a list of a node's pods is believed.
const LISTED: Duration = Duration::from_secs(10);
/// A list older than this is not believed when it says no: the pod may have come since.
const FRESH: Duration = Duration::from_millis(500);
/// Entries in each table. Beyond it the table is emptied; it fills again by asking.
const MAX_ENTRIES: usize = 8192;
/// Bad tokens a second from one address that are reviewed; ten seconds' worth may come at once.
const BAD_TOKENS: u32 = 5;

/// What the CA is told of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KubernetesSettings {
    /// The kubeconfig whose current context is used; without it the cluster that this process is a pod of.
    pub(crate) kubeconfig: Option<PathBuf>,
    /// The audience that a token must be made for.
    pub(crate) audience: String,
    /// Service accounts, `(namespace, name)`, of agents: these may ask for what runs on their node.
    pub(crate) node_accounts: Vec<(String, String)>,
}

/// Callers of one cluster.
pub(crate) struct Cluster {
    api: ApiServer,
    audience: String,
    node_accounts: HashSet<(String, String)>,
    accepted: Recent<[u8; 32], Account>,
    nodes: Recent<String, Arc<HashSet<(String, String)>>>,
    bad_tokens: Limits<IpAddr>,
    reviews: Flights<[u8; 32], Account>,
    lists: Flights<String, Arc<HashSet<(String, String)>>>,
}

/// A service account that the API server vouches for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Account {
    /// Its namespace.
    pub(crate) namespace: String,
    /// Its name.
    pub(crate) name: String,
    /// The node whose agent it is; none if it stands for itself only.
    pub(crate) node: Option<String>,
}

impl Cluster {
    /// Does not ask anything yet; the error is about the login.
    pub(crate) async fn new(settings: KubernetesSettings) -> Result<Self, ClusterError> {
        Ok(Self {
            api: ApiServer::new(settings.kubeconfig.as_deref()).await?,
            audience: settings.audience,
            node_accounts: settings.node_accounts.into_iter().collect(),
            accepted: Recent::default(),
            nodes: Recent::default(),
            bad_tokens: Limits::new(BAD_TOKENS),
            reviews: Flights::default(),
            lists: Flights::default(),
        })
    }

    /// The Secret of a CA in this cluster.
    pub(super) fn root_secret(&self, namespace: &str, name: &str) -> RootSecret {
        RootSecret::new(self.api.client(), namespace, name)
    }

    /// A ConfigMap of this cluster for a CA's roots.
    pub(super) fn root_config_map(&self, namespace: &str, name: &str) -> RootConfigMap {
        RootConfigMap::new(self.api.client(), namespace, name)
    }

    /// The account that a token belongs to; `hash` is what it is remembered by.
    pub(crate) async fn review(&self, token: &str, hash: [u8; 32], from: IpAddr) -> Result<Account, Refusal> {
        if let Some((account, _)) = self.accepted.find(&hash, ACCEPTED) {
            return Ok(account);
        }
        let ask = || async {
            // Before it is asked: of those that come at once none may count on another's being bad.
            if !self.bad_tokens.take(&from, Instant::now()) {
                return Err(Refusal::Rate);
            }
            let reviewed = self.look_up(token).await;
            if !matches!(reviewed, Err(Refusal::UnknownCaller(_))) {
                self.bad_tokens.give_back(&from);
            }
            if let Ok(account) = &reviewed {
                self.accepted.keep(hash, account.clone());
            }
            reviewed
        };
        self.reviews.join(&hash, ask).await.0
    }

    async fn look_up(&self, token: &str) -> Result<Account, Refusal> {
        let unknown = || Refusal::UnknownCaller("token");
        let user = self.api.review(token, &self.audience).await.map_err(|error| unavailable(&error))?;
        let user = user.ok_or_else(unknown)?;
        let (namespace, name) = service_account(&user).ok_or_else(unknown)?;
        let mut account = Account { namespace, name, node: None };
        if !self.node_accounts.contains(&(account.namespace.clone(), account.name.clone())) {
            return Ok(account);
        }
        // A token that is bound to no pod says nothing of a node.
        let (pod, uid) = bound_pod(&user).ok_or_else(unknown)?;
        let found = self.api.pod(&account.namespace, pod).await.map_err(|error| unavailable(&error))?;
        let node = found
            .filter(|found| {
                found.metadata.uid.as_deref() == Some(uid) && account_of(found) == Some(&account.name)
            })
            .and_then(|found| found.spec?.node_name)
            .filter(|node| is_name(node));
        account.node = Some(node.ok_or_else(unknown)?);
        Ok(account)
    }

    /// Whether a pod with the service account of `id` runs on `node`.
    pub(crate) async fn runs_on(&self, node: &str, id: &SpiffeId) -> Result<bool, Refusal> {
        let wanted = (id.namespace().to_owned(), id.service_account().to_owned());
        if let Some((accounts, age)) = self.nodes.find(&node.to_owned(), LISTED)
            && (accounts.contains(&wanted) || age < FRESH)
        {
            return Ok(accounts.contains(&wanted));
        }
        let (accounts, own) = self.list(node).await;
        if accounts?.contains(&wanted) {
            return Ok(true);
        }
        // Another's list may be from before the pod came.
        Ok(!own && self.list(node).await.0?.contains(&wanted))
    }

    /// What runs on `node`, and whether it was asked for by this call.
    async fn list(&self, node: &str) -> (Result<Arc<HashSet<(String, String)>>, Refusal>, bool) {
        let key = node.to_owned();
        let ask = || async {
            let accounts = self.api.accounts_on(node).await.map_err(|error| unavailable(&error))?;
            let accounts = Arc::new(accounts);
            self.nodes.keep(key.clone(), accounts.clone());
            Ok(accounts)
        };
        self.lists.join(&key, ask).await
    }
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("audience", &self.audience).finish_non_exhaustive()
    }
}

/// Namespace and name, if the user is a service account.
fn service_account(user: &UserInfo) -> Option<(String, String)> {
    let (namespace, name) =
        user.username.as_deref()?.strip_prefix("system:serviceaccount:")?.split_once(':')?;
    (is_name(namespace) && is_name(name)).then(|| (namespace.to_owned(), name.to_owned()))
}

/// Name and UID of the pod that the user's token is bound to.
fn bound_pod(user: &UserInfo) -> Option<(&str, &str)> {
    let only = |key: &str| match user.extra.as_ref()?.get(key).map(Vec::as_slice) {
        Some([value]) if !value.is_empty() => Some(value.as_str()),
        _ => None,
    };
    let name = only("authentication.kubernetes.io/pod-name").filter(|name| is_name(name))?;
    Some((name, only("authentication.kubernetes.io/pod-uid")?))
}

/// Whether `text` is a name as Kubernetes has it, and so can stand in a path or a selector.
fn is_name(text: &str) -> bool {
    let legal = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-' || c == b'.';
    (1..=253).contains(&text.len()) && text.bytes().all(legal) && !text.starts_with('.')
}

fn unavailable(error: &ApiError) -> Refusal {
    let error = with_causes(error);
    tracing::warn!(error, "the Kubernetes API could not be asked; the request is refused");
    Refusal::Authority("the Kubernetes API cannot be asked".into())
}

/// What was learned lately.
#[derive(Debug)]
struct Recent<K, V>(Mutex<HashMap<K, (V, Instant)>>);

impl<K, V> Default for Recent<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash, V: Clone> Recent<K, V> {
    /// What was kept for `key` less than `limit` ago, and how long ago.
    fn find(&self, key: &K, limit: Duration) -> Option<(V, Duration)> {
        let entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (value, at) = entries.get(key)?;
        let age = at.elapsed();
        (age < limit).then(|| (value.clone(), age))
    }

    fn keep(&self, key: K, value: V) {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.len() >= MAX_ENTRIES {
            entries.clear();
        }
        entries.insert(key, (value, Instant::now()));
    }
}

#[cfg(test)]
mod tests;
