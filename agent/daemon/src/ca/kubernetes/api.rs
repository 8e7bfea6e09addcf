//! What the CA asks of the API server, each within [`TIMEOUT`] and a few at a time.

use std::{collections::HashSet, path::Path, time::Duration};

use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec, UserInfo},
    core::v1::Pod,
};
use kube::{
    Api, Client,
    api::{ListParams, PostParams},
};
use tokio::{sync::Semaphore, time::timeout};

use crate::cluster::{self, ClusterError};

/// Pods listed for one node at most, by pages.
const PAGE: u32 = 500;
const MAX_PAGES: usize = 10;
/// How long one request may take, connecting and waiting for its turn included.
pub(super) const TIMEOUT: Duration = Duration::from_secs(5);
/// Requests under way at a time; more wait.
const CONCURRENCY: usize = 16;

/// The API server of the cluster.
pub(super) struct ApiServer {
    client: Client,
    slots: Semaphore,
}

/// Why the API server gave no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApiError {
    /// It took too long.
    #[error("the API server did not answer within {} s", TIMEOUT.as_secs())]
    Timeout,
    /// It could not be asked, or answered with an error.
    #[error("the API server")]
    Kube(#[from] Box<kube::Error>),
    /// More pods than can be.
    #[error("more than {} pods on node {node}", PAGE as usize * MAX_PAGES)]
    TooManyPods {
        /// The node.
        node: String,
    },
}

impl ApiServer {
    /// Logs in with the kubeconfig, or as a pod; asks nothing yet.
    pub(super) async fn new(kubeconfig: Option<&Path>) -> Result<Self, ClusterError> {
        Ok(Self { client: client(kubeconfig).await?, slots: Semaphore::new(CONCURRENCY) })
    }

    /// A client of it without the bounds of this type.
    pub(super) fn client(&self) -> Client {
        self.client.clone()
    }

    async fn bounded<T>(&self, call: impl Future<Output = kube::Result<T>>) -> Result<T, ApiError> {
        let call = async {
            // The semaphore is never closed.
            let _slot = self.slots.acquire().await.map_err(|_| ApiError::Timeout)?;
            call.await.map_err(|error| ApiError::Kube(Box::new(error)))
        };
        timeout(TIMEOUT, call).await.map_err(|_| ApiError::Timeout)?
    }

    /// Whom a token belongs to, if the API server accepts it and says that it is for this audience. An answer without
    /// audiences comes from a server that does not look at them.
    pub(super) async fn review(&self, token: &str, audience: &str) -> Result<Option<UserInfo>, ApiError> {
        let spec = TokenReviewSpec { token: token.to_owned(), audiences: Some(vec![audience.to_owned()]) };
        let review = TokenReview { spec, ..TokenReview::default() };
        let api: Api<TokenReview> = Api::all(self.client.clone());
        let status = self.bounded(api.create(&PostParams::default(), &review)).await?.status;
        Ok(status.and_then(|status| {
            let meant = status.audiences.is_some_and(|all| all.iter().any(|found| found == audience));
            let good = status.authenticated == Some(true) && status.error.unwrap_or_default().is_empty();
            status.user.filter(|_| good && meant)
        }))
    }

    /// One pod, if it is there.
    pub(super) async fn pod(&self, namespace: &str, name: &str) -> Result<Option<Pod>, ApiError> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        self.bounded(api.get_opt(name)).await
    }

    /// Namespaces and service accounts of the pods on `node` that may still run.
    pub(super) async fn accounts_on(&self, node: &str) -> Result<HashSet<(String, String)>, ApiError> {
        let api: Api<Pod> = Api::all(self.client.clone());
        let mut accounts = HashSet::new();
        let mut page = ListParams::default().fields(&format!("spec.nodeName={node}")).limit(PAGE);
        for _ in 0..MAX_PAGES {
            let list = self.bounded(api.list(&page)).await?;
            let there = list.items.into_iter().filter(|pod| {
                pod.spec.as_ref().is_some_and(|spec| spec.node_name.as_deref() == Some(node)) && is_live(pod)
            });
            accounts.extend(there.filter_map(|pod| {
                let account = account_of(&pod)?.clone();
                Some((pod.metadata.namespace?, account))
            }));
            match list.metadata.continue_.filter(|next| !next.is_empty()) {
                Some(next) => page = page.continue_token(&next),
                None => return Ok(accounts),
            }
        }
        Err(ApiError::TooManyPods { node: node.to_owned() })
    }
}

/// A client that gives up as soon as a caller would.
async fn client(kubeconfig: Option<&Path>) -> Result<Client, ClusterError> {
    let mut config = cluster::config(kubeconfig).await?;
    config.read_timeout = Some(TIMEOUT);
    config.write_timeout = Some(TIMEOUT);
    // Whoever asks for a certificate asks again by itself.
    config.default_retry = false;
    cluster::client(config)
}

/// The service account that a pod runs as.
pub(super) fn account_of(pod: &Pod) -> Option<&String> {
    pod.spec.as_ref()?.service_account_name.as_ref()
}

/// Whether its containers may still run. Those of a pod that succeeded do not either.
fn is_live(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    !matches!(phase, Some("Failed" | "Succeeded"))
}
