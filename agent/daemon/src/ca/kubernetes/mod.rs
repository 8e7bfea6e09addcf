//! Callers by Kubernetes: a service-account token is reviewed by the API server, and a node's agent gets what runs on its
//! node (spec/wire.md §3.2).
//!
//! Promises to refuse whatever the API server does not confirm, also when it cannot be asked. What it said is remembered for
//! seconds, in tables of bounded size. Leaves HTTP to its client.

mod client;
mod config;
mod objects;

use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use ambit_core::model::SpiffeId;

pub(crate) use config::{ApiConfig, ApiConfigError};

use self::{
    client::{ApiClient, ApiError},
    objects::{Pod, PodList, TokenReview},
};
use super::{limits::Limits, refusal::Refusal};

/// How long an accepted token is not reviewed again, nor its pod looked up.
const ACCEPTED: Duration = Duration::from_secs(30);
/// How long a list of a node's pods is believed.
const LISTED: Duration = Duration::from_secs(10);
/// A list older than this is not believed when it says no: the pod may have come since.
const FRESH: Duration = Duration::from_millis(500);
/// Entries in each table. Beyond it the table is emptied; it fills again by asking.
const MAX_ENTRIES: usize = 8192;
/// Bad tokens a second from one address that are reviewed; ten seconds' worth may come at once.
const STRANGERS: u32 = 5;
/// Pods listed for one node at most, by pages.
const PAGE: usize = 500;
const MAX_PAGES: usize = 10;

/// What the CA is told of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KubernetesSettings {
    /// The API server and how to log in there.
    pub(crate) api: ApiConfig,
    /// The audience that a token must be made for.
    pub(crate) audience: String,
    /// Service accounts, `(namespace, name)`, of agents: these may ask for what runs on their node.
    pub(crate) node_accounts: Vec<(String, String)>,
}

/// Callers of one cluster.
#[derive(Debug)]
pub(crate) struct Cluster {
    api: ApiClient,
    audience: String,
    node_accounts: HashSet<(String, String)>,
    accepted: Recent<[u8; 32], Account>,
    nodes: Recent<String, HashSet<(String, String)>>,
    strangers: Limits<IpAddr>,
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
    pub(crate) fn new(settings: KubernetesSettings) -> Self {
        Self {
            api: ApiClient::new(settings.api),
            audience: settings.audience,
            node_accounts: settings.node_accounts.into_iter().collect(),
            accepted: Recent::default(),
            nodes: Recent::default(),
            strangers: Limits::new(STRANGERS),
        }
    }

    /// The account that a token belongs to; `hash` is what it is remembered by.
    pub(crate) async fn review(&self, token: &str, hash: [u8; 32], from: IpAddr) -> Result<Account, Refusal> {
        if let Some((account, _)) = self.accepted.find(&hash, ACCEPTED) {
            return Ok(account);
        }
        if !self.strangers.has_left(&from, Instant::now()) {
            return Err(Refusal::Rate);
        }
        let reviewed = self.ask(token).await;
        match &reviewed {
            Ok(account) => self.accepted.keep(hash, account.clone()),
            Err(Refusal::UnknownCaller(_)) => {
                self.strangers.take(&from, Instant::now());
            }
            Err(_) => {}
        }
        reviewed
    }

    async fn ask(&self, token: &str) -> Result<Account, Refusal> {
        let unknown = || Refusal::UnknownCaller("token");
        let review = TokenReview::request(token, &self.audience);
        let path = "/apis/authentication.k8s.io/v1/tokenreviews";
        let review: TokenReview = self.api.post(path, &review).await.map_err(|error| away(&error))?;
        let user = review.accepted(&self.audience).ok_or_else(unknown)?;
        let (namespace, name) = user.service_account().ok_or_else(unknown)?;
        let mut account = Account { namespace, name, node: None };
        if !self.node_accounts.contains(&(account.namespace.clone(), account.name.clone())) {
            return Ok(account);
        }
        // A token that is bound to no pod says nothing of a node.
        let (pod, uid) = user.pod().ok_or_else(unknown)?;
        let path = format!("/api/v1/namespaces/{}/pods/{pod}", account.namespace);
        let found: Option<Pod> = self.api.find(&path).await.map_err(|error| away(&error))?;
        let node = found
            .filter(|found| found.metadata.uid == uid && found.spec.service_account_name == account.name)
            .map(|found| found.spec.node_name)
            .filter(|node| objects::is_name(node));
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
        let accounts = self.list(node).await.map_err(|error| away(&error))?;
        let runs = accounts.contains(&wanted);
        self.nodes.keep(node.to_owned(), accounts);
        Ok(runs)
    }

    async fn list(&self, node: &str) -> Result<HashSet<(String, String)>, ApiError> {
        let mut accounts = HashSet::new();
        let base = format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{node}&limit={PAGE}");
        let mut path = base.clone();
        for _ in 0..MAX_PAGES {
            let list: PodList = self.api.get(&path).await?;
            let live = list.items.into_iter().filter(|pod| pod.spec.node_name == node && pod.is_live());
            accounts.extend(live.map(|pod| (pod.metadata.namespace, pod.spec.service_account_name)));
            match list.metadata.next.filter(|next| !next.is_empty()) {
                Some(next) => path = format!("{base}&continue={}", objects::escaped(&next)),
                None => return Ok(accounts),
            }
        }
        Err(ApiError::Answer("a node with too many pods".into()))
    }
}

fn away(error: &ApiError) -> Refusal {
    tracing::warn!(%error, "the Kubernetes API could not be asked; the request is refused");
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
