//! Where answers about policies come from: an agent of this machine or of a cluster, or manifests.

use std::path::PathBuf;

use ambit_core::{
    discovery::Settings,
    model::{PathNormalization, TrustDomain},
};
use ambit_proto::policy::v1::policies_client::PoliciesClient;
use anyhow::{Context, anyhow, bail};
use clap::Args;
use tokio::{net::UnixStream, runtime::Builder, time::timeout};
use tonic::{Code, Response, Status, transport::Channel};

use super::{
    ask::{channel_over, explain},
    remote::Remote,
};
use crate::{
    authz::ProviderSettings,
    config::{DEFAULT_RUN_DIR, DataplaneLabel, ExtensionProviders, Location, Namespace, TrustDomains},
    diagnosis::Unable,
    discovery::{self, Reading, World},
    instance::RunDir,
};

/// How long an agent of this machine has: it may look at the whole cluster.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(12);
/// The longest answer taken, in bytes.
const MAX_ANSWER: usize = 64 * 1024 * 1024;

/// What manifests mean depends on these, as for an agent.
#[derive(Debug, Args)]
#[command(next_help_heading = "Manifests, instead of an agent")]
pub(super) struct Manifests {
    /// Look into folders within the folders as well
    #[arg(short = 'R', long)]
    recursive: bool,
    /// The namespace whose policies hold for the whole mesh
    #[arg(
        long,
        env = "AMBIT_ROOT_NAMESPACE",
        hide_env_values = true,
        value_name = "NAME",
        default_value = "ambit-system"
    )]
    root_namespace: Namespace,
    /// The SPIFFE trust domain of all identities
    #[arg(
        long,
        env = "AMBIT_TRUST_DOMAIN",
        hide_env_values = true,
        value_name = "DOMAIN",
        default_value = "cluster.local"
    )]
    trust_domain: TrustDomain,
    /// Other names of that trust domain
    #[arg(long, env = "AMBIT_TRUST_DOMAIN_ALIASES", hide_env_values = true, value_name = "DOMAIN[,DOMAIN]")]
    trust_domain_aliases: Option<TrustDomains>,
    /// How paths of requests are rewritten before they are judged
    #[arg(
        long,
        env = "AMBIT_PATH_NORMALIZATION",
        hide_env_values = true,
        value_name = "MODE",
        default_value_t = PathNormalization::Base
    )]
    path_normalization: PathNormalization,
    /// The external authorization providers that CUSTOM policies may name: a list in YAML, as the agent has it
    #[arg(long, env = "AMBIT_EXTENSION_PROVIDERS", hide_env_values = true, value_name = "YAML")]
    extension_providers: Option<ExtensionProviders>,
    /// The label that opts namespaces and pods in, and pods out
    #[arg(
        long,
        env = "AMBIT_DATAPLANE_LABEL",
        hide_env_values = true,
        value_name = "KEY=ENABLED[,DISABLED]"
    )]
    dataplane_label: Option<DataplaneLabel>,
}

/// The agent that is asked.
#[derive(Debug, Args)]
pub(super) struct Agents {
    /// The folder of the agent's status socket
    #[arg(long, env = "AMBIT_RUN_DIR", hide_env_values = true, value_name = "DIR", default_value = DEFAULT_RUN_DIR)]
    run_dir: Location,
    #[command(flatten)]
    remote: Remote,
}

/// Where an answer comes from: manifests, or an agent that knows the mesh.
#[derive(Debug, Args)]
pub(super) struct Source {
    /// Answer from the manifests in this folder or file, and ask no agent; may be given several times
    #[arg(long = "manifests", value_name = "PATH", conflicts_with_all = OF_AN_AGENT, help_heading = "Manifests, instead of an agent")]
    paths: Vec<Location>,
    #[command(flatten)]
    manifests: Manifests,
    #[command(flatten)]
    agents: Agents,
}

impl Source {
    /// The namespace of names without one; empty if it is not said.
    pub(super) fn namespace(&self) -> &str {
        self.agents.namespace()
    }

    /// The answer of an agent, or else that of the manifests.
    pub(super) fn ask<T>(
        &self,
        agent: impl AsyncFnOnce(PoliciesClient<Channel>) -> Result<Response<T>, Status>,
        manifests: impl FnOnce(&World) -> Result<T, Unable>,
    ) -> anyhow::Result<T> {
        if self.paths.is_empty() {
            return self.agents.ask(agent);
        }
        Ok(manifests(&self.manifests.read(&self.paths)?.world)?)
    }
}

/// The flags that name an agent, with which no manifests go.
pub(super) const OF_AN_AGENT: [&str; 8] =
    ["kubeconfig", "context", "cluster", "user", "impersonate", "node", "pod", "all_nodes"];

impl Manifests {
    /// Reads the manifests at these paths.
    pub(super) fn read(&self, paths: &[Location]) -> anyhow::Result<Reading> {
        let paths: Vec<PathBuf> = paths.iter().map(|path| path.0.clone()).collect();
        let reading = discovery::read_manifests(&paths, self.recursive, &self.settings())?;
        if reading.files == 0 {
            let hint = if self.recursive { "" } else { "; -R looks into folders within" };
            bail!("no *.yaml, *.yml or *.json in {}{hint}", paths[0].display());
        }
        Ok(reading)
    }

    fn settings(&self) -> Settings {
        let label = self.dataplane_label.clone().unwrap_or_default();
        let providers = self.extension_providers.as_ref().map_or(&[][..], |providers| &providers.0);
        Settings {
            trust_domain: self.trust_domain.clone(),
            trust_domain_aliases: self.trust_domain_aliases.clone().map(|all| all.0).unwrap_or_default(),
            root_namespace: self.root_namespace.0.as_str().into(),
            label: label.key.into(),
            enabled: label.enabled.into(),
            disabled: label.disabled.into(),
            path_normalization: self.path_normalization,
            providers: providers.iter().map(|provider| provider.name.clone()).collect(),
            provider_places: providers.iter().map(ProviderSettings::place).collect(),
            ..Settings::default()
        }
    }
}

impl Agents {
    /// The namespace of names without one; empty if it is not said.
    pub(super) fn namespace(&self) -> &str {
        self.remote.namespace().unwrap_or_default()
    }

    /// Asks the agent meant.
    pub(super) fn ask<T>(
        &self,
        ask: impl AsyncFnOnce(PoliciesClient<Channel>) -> Result<Response<T>, Status>,
    ) -> anyhow::Result<T> {
        let speak = async |channel| {
            let client = PoliciesClient::new(channel).max_decoding_message_size(MAX_ANSWER);
            ask(client).await.map(Response::into_inner).map_err(|status| told(&status))
        };
        if self.remote.wanted() {
            return self.remote.any(speak);
        }
        let runtime =
            Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
        runtime.block_on(async {
            let run_dir = &self.run_dir.0;
            let socket = RunDir::socket_path(run_dir);
            let stream = UnixStream::connect(&socket).await.map_err(|error| {
                explain(error, run_dir, &socket)
                    .context("for manifests instead of an agent pass --manifests PATH")
            })?;
            let answered = timeout(PATIENCE, async { speak(channel_over(stream).await?).await }).await;
            answered.unwrap_or_else(|_| bail!("the agent did not answer within {PATIENCE:?}; see its log"))
        })
    }
}

fn told(status: &Status) -> anyhow::Error {
    match status.code() {
        Code::InvalidArgument | Code::NotFound | Code::Unavailable if !status.message().is_empty() => {
            anyhow!("{}", status.message())
        }
        Code::Unimplemented => anyhow!("the agent is older than this command, and cannot answer it"),
        code => anyhow!("the agent could not answer: {} ({code:?})", status.message()),
    }
}
