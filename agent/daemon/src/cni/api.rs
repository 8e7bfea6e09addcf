//! The labels of a pod and its namespace, asked of the Kubernetes API with the plugin's own account.

use std::{io, path::Path, time::Duration};

use ambit_core::model::Labels;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::{
    Api, Client, Config,
    config::{KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use tokio::{runtime::Builder, time::timeout};

use super::{credentials, protocol::PodRef};

/// How long the API has for its answers.
pub(super) const LIMIT: Duration = Duration::from_secs(2);

/// What the API says; `None` for what does not exist.
#[derive(Debug, Default)]
pub(super) struct PodLabels {
    pub(super) namespace: Option<Labels>,
    pub(super) pod: Option<Labels>,
}

/// Why the API said nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApiError {
    /// The agent has left no kubeconfig that can be used.
    #[error("the kubeconfig that the ambit agent left: {0}")]
    Kubeconfig(#[from] KubeconfigError),
    /// The API refused, or could not be reached.
    #[error("the Kubernetes API: {0}")]
    Request(#[from] kube::Error),
    /// This process cannot ask.
    #[error("cannot start the runtime: {0}")]
    Runtime(#[from] io::Error),
    /// The API did not answer in time.
    #[error("the Kubernetes API has not answered within {LIMIT:?}")]
    Slow,
}

/// Asks with the kubeconfig that the agent left in `dir`.
pub(super) fn labels(dir: &Path, pod: &PodRef) -> Result<PodLabels, ApiError> {
    let kubeconfig = Kubeconfig::read_from(credentials::path(dir))?;
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let labels = runtime.block_on(async { timeout(LIMIT, ask(kubeconfig, pod)).await });
    // A name that is still being looked up is not waited for.
    runtime.shutdown_background();
    labels.unwrap_or(Err(ApiError::Slow))
}

async fn ask(kubeconfig: Kubeconfig, pod: &PodRef) -> Result<PodLabels, ApiError> {
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    let client = Client::try_from(config)?;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let pods: Api<Pod> = Api::namespaced(client, &pod.namespace);
    let (namespace, pod) =
        tokio::try_join!(namespaces.get_metadata_opt(&pod.namespace), pods.get_metadata_opt(&pod.name))?;
    Ok(PodLabels {
        namespace: namespace.map(|found| found.metadata.labels.unwrap_or_default()),
        pod: pod.map(|found| found.metadata.labels.unwrap_or_default()),
    })
}
