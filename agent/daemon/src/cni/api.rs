//! The labels of a pod and its namespace, asked of the Kubernetes API with the agent's credentials.

use std::{path::Path, time::Duration};

use ambit_core::model::Labels;
use anyhow::Context as _;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::{
    Api, Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
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

/// Asks with the kubeconfig that the agent left in `dir`.
pub(super) fn labels(dir: &Path, pod: &PodRef) -> anyhow::Result<PodLabels> {
    let file = credentials::path(dir);
    let kubeconfig = Kubeconfig::read_from(&file)?;
    let runtime = Builder::new_current_thread().enable_all().build().context("runtime")?;
    runtime.block_on(async { timeout(LIMIT, ask(kubeconfig, pod)).await.context("the API is too slow")? })
}

async fn ask(kubeconfig: Kubeconfig, pod: &PodRef) -> anyhow::Result<PodLabels> {
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
