//! The configuration of the agent, complete and checked: what the composition root is built from.

mod settings;

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use ambit_core::model::{PathNormalization, TrustDomain};

use super::{
    ConfigError,
    folders::{CniDirs, private_folder},
    settings::read,
    values::{
        Bundling, BusyPolling, CaTrust, DataplaneLabel, HttpTelemetry, IssuerKind, KernelTls, LocalTraffic,
        Location, MapEntries, MetricsAuth, OutboundPolicy, PostQuantum, Sampling, Switch, VaultPath,
        VipNetworks,
    },
};
use crate::{
    authz::ProviderSettings,
    identity::{IstioSettings, VaultConfig, VaultLogin},
    telemetry::{CLUSTER, LogFormat, TraceSettings},
};

pub(crate) use settings::AgentSettings;

pub(crate) const DEFAULT_RUN_DIR: &str = "/run/ambit";
/// Where the chart has what outlives an agent.
pub(crate) const USUAL_STATE_DIR: &str = "/var/lib/ambit";
pub(crate) const DEFAULT_BPF_ROOT: &str = "/sys/fs/bpf";
/// Where Istio's charts mount them in a pod that asks istiod.
const DEFAULT_CA_ROOT: &str = "/var/run/secrets/istio/root-cert.pem";
const DEFAULT_CA_TOKEN: &str = "/var/run/secrets/tokens/istio-token";
const DEFAULT_CA_ROOT_KEY: &str = "root-cert.pem";
const DEFAULT_TTL: Duration = Duration::from_secs(24 * 3600);
/// Fits into the 30 seconds that Kubernetes gives a pod by default.
const DEFAULT_DRAIN: Duration = Duration::from_secs(25);
/// A night and a morning in which somebody notices.
const DEFAULT_POLICY_HOLD: Duration = Duration::from_secs(24 * 3600);
/// As Istio's control plane does it.
const DEFAULT_JWKS_REFRESH: Duration = Duration::from_secs(20 * 60);
/// Where Kubernetes mounts a pod's own token.
const POD_TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";
const DEFAULT_MAX_WORKERS: usize = 8;
/// One in a hundred, as Istio's.
const DEFAULT_SAMPLING: Sampling = Sampling(100);

/// The configuration of one agent. Paths are absolute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AgentConfig {
    /// The node served: `spec.nodeName` of its pods.
    pub(crate) node: String,
    /// Where the Kubernetes objects come from.
    pub(crate) source: SourceConfig,
    /// What this cluster is called.
    pub(crate) cluster_name: String,
    /// The namespace whose Secrets name other clusters; there are none if `None`.
    pub(crate) remote_clusters: Option<String>,
    /// Services that each cluster has for itself: a namespace, and one of it or all.
    pub(crate) cluster_local: Vec<(String, Option<String>)>,
    /// The folder of the status socket and the lock; it exists and only this user can write to it.
    pub(crate) run_dir: PathBuf,
    /// The folder of what outlives the agent, as it should the node's restart; it exists and only this user can write to it.
    pub(crate) state_dir: PathBuf,
    /// Where metrics and health are served over HTTP; nowhere if `None`.
    pub(crate) metrics_addr: Option<SocketAddr>,
    /// How long established connections may go on once the agent is to end.
    pub(crate) drain: Duration,
    /// Where the status is served to programs of this host; only over the socket if `None`.
    pub(crate) admin_addr: Option<SocketAddr>,
    /// What this process calls itself; empty if nothing.
    pub(crate) instance: String,
    /// Namespace and name of the DaemonSet that the agent belongs to.
    pub(crate) daemonset: Option<(String, String)>,
    /// What to log, in the form of RUST_LOG.
    pub(crate) log_filter: String,
    /// How log lines look.
    pub(crate) log_format: LogFormat,
    /// Whose requests are read where no policy needs it.
    pub(crate) http_telemetry: HttpTelemetry,
    /// Where spans go; nowhere if `None`.
    pub(crate) traces: Option<TraceSettings>,
    /// The lifetime of workload certificates: 10 seconds to 90 days.
    pub(crate) svid_ttl: Duration,
    /// The trust domain of all identities.
    pub(crate) trust_domain: TrustDomain,
    /// The DNS domain of services: `<name>.<namespace>.svc.<cluster domain>`.
    pub(crate) cluster_domain: String,
    /// The namespace whose policies hold for the whole mesh.
    pub(crate) root_namespace: String,
    /// How long policies stay in force without their definition.
    pub(crate) policy_hold: Duration,
    /// The label that opts in and out.
    pub(crate) dataplane_label: DataplaneLabel,
    /// Where pods may connect to whose namespace says nothing of it.
    pub(crate) outbound_policy: OutboundPolicy,
    /// Connections to outside the mesh are counted and logged.
    pub(crate) observe_outbound: bool,
    /// DNS of pods is captured where neither they nor their namespaces say anything of it.
    pub(crate) dns_capture: bool,
    /// Where addresses for hosts of ServiceEntries come from.
    pub(crate) vip_ranges: VipNetworks,
    /// Where files are that DestinationRules name, by namespace; nowhere if `None`.
    pub(crate) egress_files: Option<PathBuf>,
    /// Where cgroup v2 is mounted; to be found in /proc/mounts if `None`.
    pub(crate) cgroup_root: Option<PathBuf>,
    /// The cgroup that the kubelet runs in; to be found by its process if `None`.
    pub(crate) kubelet_cgroup: Option<PathBuf>,
    /// The BPF file system.
    pub(crate) bpf_root: PathBuf,
    /// How many entries eBPF maps have, where that is not the usual.
    pub(crate) map_entries: MapEntries,
    /// Where the CNI plugin is installed and chained; not at all if `None`.
    pub(crate) cni: Option<CniDirs>,
    /// Namespace and name of the service account that the CNI plugin asks the API as.
    pub(crate) cni_account: Option<(String, String)>,
    /// Whether metrics are only for bearers of a token whom the cluster's RBAC lets read them.
    pub(crate) metrics_guarded: bool,
    /// Threads of the runtime that carries traffic, 1 to 256.
    pub(crate) workers: usize,
    /// How many proxies in front of a client are believed about whose request it is, 0 to 16.
    pub(crate) trusted_proxies: usize,
    /// How paths of requests are rewritten.
    pub(crate) path_normalization: PathNormalization,
    /// Use of the hybrid post-quantum key exchange.
    pub(crate) post_quantum: PostQuantum,
    /// How pods of this node talk with each other.
    pub(crate) local_traffic: LocalTraffic,
    /// Whether the kernel seals and opens the records of tunnels.
    pub(crate) kernel_tls: KernelTls,
    /// How long who has passed on a message looks for the next one, 1 µs to 1 ms.
    pub(crate) busy_poll: BusyPolling,
    /// Whether small messages of many connections between two pods share packets.
    pub(crate) bundles: Bundling,
    /// The file of certificate revocation lists.
    pub(crate) crl_file: Option<PathBuf>,
    /// Trust domains beside our own whose identities are accepted.
    pub(crate) trust_domain_aliases: Vec<TrustDomain>,
    /// Foreign trust domains, each with the file of its roots; none of our own is among them.
    pub(crate) trust_bundles: Vec<(TrustDomain, PathBuf)>,
    /// Files of roots that are trusted beside the issuer's.
    pub(crate) also_trust: Vec<PathBuf>,
    /// Roots for the certificates of token issuers, beside the public ones.
    pub(crate) jwks_ca_file: Option<PathBuf>,
    /// Blocks of addresses that keys of token issuers are not fetched from, beside those that never are.
    pub(crate) jwks_blocked: Vec<(IpAddr, u8)>,
    /// How old such keys get: 1 second to 1 day.
    pub(crate) jwks_refresh: Duration,
    /// Where certificates come from.
    pub(crate) issuer: IssuerConfig,
    /// Who decides for CUSTOM policies; no two have the same name.
    pub(crate) extension_providers: Vec<ProviderSettings>,
}

/// Where the Kubernetes objects come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SourceConfig {
    /// A folder of manifests; it exists.
    Folder(PathBuf),
    /// The API of a cluster.
    Cluster {
        /// How to reach it; `None` in a pod of the cluster itself.
        kubeconfig: Option<PathBuf>,
    },
}

impl SourceConfig {
    /// What readiness waits for.
    pub(crate) fn gate(&self) -> &'static str {
        match self {
            Self::Folder(_) => "manifests",
            Self::Cluster { .. } => "cluster",
        }
    }
}

/// Where certificates come from, with all that is needed for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum IssuerConfig {
    /// The CA in a folder; it exists and only this user can write to it.
    Builtin {
        /// The folder.
        ca_dir: PathBuf,
    },
    /// A service that speaks Istio's CreateCertificate.
    Istio {
        /// What it is called in the log.
        name: &'static str,
        /// How to reach it.
        service: IstioSettings,
        /// Where it publishes the roots that workloads trust; with every certificate if `None`.
        published: Option<Publication>,
    },
    /// Certificates that others put into a folder.
    Files {
        /// The folder.
        dir: PathBuf,
    },
    /// Vault's PKI engine.
    Vault(Box<VaultConfig>),
    /// A SPIRE agent.
    Spire {
        /// Its admin socket.
        socket: PathBuf,
    },
}

/// Where a certificate service publishes its roots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Publication {
    /// In a file.
    File(PathBuf),
    /// In a ConfigMap of the cluster that the objects come from.
    ConfigMap {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// The key that holds them.
        key: String,
    },
}

impl AgentConfig {
    /// Completes settings with those of the config file and with the defaults.
    pub(crate) fn resolve(settings: AgentSettings, file: Option<&Path>) -> Result<Self, ConfigError> {
        let settings = settings.over(file.map(read).transpose()?.unwrap_or_default());
        if settings.manifests.is_some() {
            without_a_cluster(&settings)?;
        }
        let missing = |flag, variable| move || ConfigError::Missing { flag, variable };
        let issuer = issuer(&settings)?;
        let domain = || TrustDomain::default().as_str().to_owned();
        let trust_domain = settings.trust_domain.unwrap_or_default();
        let trust_domain_aliases = settings.trust_domain_aliases.map_or_else(Vec::new, |domains| domains.0);
        let trust_bundles = settings.trust_bundle.map_or_else(Vec::new, |bundles| bundles.0);
        let metrics_guarded = settings.metrics_auth.unwrap_or_default() == MetricsAuth::Token;
        let own = |domain: &TrustDomain| *domain == trust_domain || trust_domain_aliases.contains(domain);
        if let Some((domain, _)) = trust_bundles.iter().find(|(domain, _)| own(domain)) {
            return Err(ConfigError::OwnTrustDomain(domain.clone()));
        }
        let run_dir = settings.run_dir.map_or_else(|| DEFAULT_RUN_DIR.into(), |path| path.0);
        let node = settings.node.ok_or_else(missing("node", "AMBIT_NODE"))?.0;
        Ok(Self {
            node: node.clone(),
            source: match (settings.manifests, settings.kubeconfig) {
                (Some(_), Some(_)) => {
                    return Err(ConfigError::Both { first: "manifests", second: "kubeconfig" });
                }
                (Some(folder), None) => SourceConfig::Folder(folder.0),
                (None, kubeconfig) => SourceConfig::Cluster { kubeconfig: kubeconfig.map(|file| file.0) },
            },
            cluster_name: settings.cluster_id.map_or_else(|| CLUSTER.to_owned(), |name| name.0),
            remote_clusters: settings.remote_clusters.map(|namespace| namespace.0),
            cluster_local: settings.cluster_local.map_or_else(Vec::new, |services| services.0),
            state_dir: settings.state_dir.map_or_else(|| run_dir.clone(), |path| path.0),
            run_dir,
            metrics_addr: settings.metrics_addr.map(|addr| addr.0),
            drain: settings.drain.map_or(DEFAULT_DRAIN, |drain| drain.0),
            admin_addr: settings.admin_addr.map(|addr| addr.0),
            instance: settings.instance.map_or_else(String::new, |name| name.0),
            daemonset: settings.daemonset.map(|set| (set.namespace, set.name)),
            log_filter: settings.log.map_or_else(|| "info".to_owned(), |filter| filter.0),
            log_format: settings.log_format.unwrap_or_default(),
            http_telemetry: settings.http_telemetry.unwrap_or_default(),
            traces: settings.trace_endpoint.map(|url| TraceSettings {
                endpoint: url.0,
                sampled: settings.trace_sampling.unwrap_or(DEFAULT_SAMPLING).0,
                node,
            }),
            svid_ttl: settings.svid_ttl.map_or(DEFAULT_TTL, |ttl| ttl.0),
            trust_domain,
            cluster_domain: settings.cluster_domain.map_or_else(domain, |name| name.0),
            root_namespace: settings.root_namespace.map_or_else(|| "ambit-system".to_owned(), |name| name.0),
            policy_hold: settings.policy_hold.map_or(DEFAULT_POLICY_HOLD, |hold| hold.0),
            dataplane_label: settings.dataplane_label.unwrap_or_default(),
            outbound_policy: settings.outbound_policy.unwrap_or_default(),
            observe_outbound: settings.observe_outbound.unwrap_or_default() == Switch::On,
            dns_capture: settings.dns_capture.unwrap_or_default() == Switch::On,
            vip_ranges: settings.vip_ranges.unwrap_or_default(),
            egress_files: settings.egress_files.map(|path| path.0),
            cgroup_root: settings.cgroup_root.map(|path| path.0),
            kubelet_cgroup: settings.kubelet_cgroup.map(|path| path.0),
            map_entries: settings.map_entries.unwrap_or_default(),
            bpf_root: settings.bpf_root.map_or_else(|| DEFAULT_BPF_ROOT.into(), |path| path.0),
            cni: CniDirs::of(settings.cni_bin_dir, settings.cni_conf_dir)?,
            cni_account: settings.cni_account.map(|account| (account.namespace, account.name)),
            metrics_guarded,
            workers: settings.workers.map_or_else(default_workers, |workers| workers.0.get()),
            trusted_proxies: settings.trusted_proxies.map_or(0, |proxies| proxies.0),
            path_normalization: settings.path_normalization.unwrap_or_default(),
            post_quantum: settings.post_quantum.unwrap_or_default(),
            local_traffic: settings.local_traffic.unwrap_or_default(),
            kernel_tls: settings.kernel_tls.unwrap_or_default(),
            busy_poll: settings.busy_poll.unwrap_or_default(),
            bundles: settings.bundles.unwrap_or_default(),
            crl_file: settings.crl_file.map(|path| path.0),
            trust_domain_aliases,
            trust_bundles,
            also_trust: settings.also_trust.map_or_else(Vec::new, |files| files.0),
            jwks_ca_file: settings.jwks_ca_file.map(|file| file.0),
            jwks_blocked: settings.jwks_blocked.map_or_else(Vec::new, |blocks| blocks.0),
            jwks_refresh: settings.jwks_refresh.map_or(DEFAULT_JWKS_REFRESH, |refresh| refresh.0),
            issuer,
            extension_providers: settings.extension_providers.map_or_else(Vec::new, |providers| providers.0),
        })
    }

    /// Checks that the manifests are there and makes the private folders.
    pub(crate) fn prepare_folders(&self) -> Result<(), ConfigError> {
        if let SourceConfig::Folder(path) = &self.source {
            let unusable = |source| ConfigError::Folder { flag: "manifests", path: path.clone(), source };
            // Reading it once finds what is missing, not a folder, or not ours to read.
            fs::read_dir(path).map_err(unusable)?;
        }
        if let IssuerConfig::Builtin { ca_dir } = &self.issuer {
            private_folder("ca-dir", ca_dir)?;
        }
        private_folder("run-dir", &self.run_dir)?;
        private_folder("state-dir", &self.state_dir)
    }
}

/// An error if something is set that asks a cluster, for an agent that reads manifests.
fn without_a_cluster(settings: &AgentSettings) -> Result<(), ConfigError> {
    let guarded = settings.metrics_auth == Some(MetricsAuth::Token);
    let asks = [(guarded, "metrics-auth token"), (settings.remote_clusters.is_some(), "remote-clusters")];
    match asks.into_iter().find(|(set, _)| *set) {
        Some((_, second)) => Err(ConfigError::Both { first: "manifests", second }),
        None => Ok(()),
    }
}

/// The issuer chosen; what it cannot do without must be set.
fn issuer(settings: &AgentSettings) -> Result<IssuerConfig, ConfigError> {
    let path = |setting: &Option<Location>| setting.as_ref().map(|path| path.0.clone());
    let name = |setting: &Option<VaultPath>| setting.as_ref().map(|name| name.0.clone());
    let missing = |flag, variable| move || ConfigError::Missing { flag, variable };
    Ok(match settings.issuer.unwrap_or_default() {
        IssuerKind::Builtin => IssuerConfig::Builtin {
            ca_dir: path(&settings.ca_dir).ok_or_else(missing("ca-dir", "AMBIT_CA_DIR"))?,
        },
        IssuerKind::Ambit => istio("ambit", settings)?,
        IssuerKind::Istio => istio("istio", settings)?,
        IssuerKind::Files => IssuerConfig::Files {
            dir: path(&settings.cert_dir).ok_or_else(missing("cert-dir", "AMBIT_CERT_DIR"))?,
        },
        IssuerKind::Vault => {
            let login = match (path(&settings.vault_token_file), name(&settings.vault_login_role)) {
                (Some(file), _) => VaultLogin::Token { file },
                (None, Some(role)) => VaultLogin::Kubernetes {
                    mount: name(&settings.vault_login_mount).unwrap_or_else(|| "kubernetes".into()),
                    role,
                    jwt: path(&settings.vault_jwt_file).unwrap_or_else(|| POD_TOKEN.into()),
                },
                (None, None) => return Err(missing("vault-token-file", "AMBIT_VAULT_TOKEN_FILE")()),
            };
            let addr = settings.vault_addr.as_ref().map(|url| url.0.clone());
            let addr = addr.ok_or_else(missing("vault-addr", "AMBIT_VAULT_ADDR"))?;
            let ca_file = path(&settings.vault_ca_file);
            if ca_file.is_none() && addr.scheme_str() == Some("https") {
                return Err(missing("vault-ca-file", "AMBIT_VAULT_CA_FILE")());
            }
            IssuerConfig::Vault(Box::new(VaultConfig {
                addr,
                ca_file,
                mount: name(&settings.vault_mount).unwrap_or_else(|| "pki".into()),
                role: name(&settings.vault_role).unwrap_or_else(|| "ambit".into()),
                login,
            }))
        }
        IssuerKind::Spire => IssuerConfig::Spire {
            socket: path(&settings.spire_socket)
                .unwrap_or_else(|| "/tmp/spire-agent/private/admin.sock".into()),
        },
    })
}

/// A certificate service, and where it publishes its roots.
fn istio(name: &'static str, settings: &AgentSettings) -> Result<IssuerConfig, ConfigError> {
    let path = |setting: &Option<Location>, default: &str| match setting {
        Some(path) => path.0.clone(),
        None => default.into(),
    };
    let missing = ConfigError::Missing { flag: "ca-address", variable: "AMBIT_CA_ADDRESS" };
    let address = settings.ca_address.as_ref().ok_or(missing)?;
    let cluster_id = settings.cluster_id.as_ref().map_or(CLUSTER, |cluster| &cluster.0);
    let service = IstioSettings {
        host: address.host.clone(),
        port: address.port,
        server_name: settings.ca_server_name.as_ref().map(|name| name.0.clone()),
        root: path(&settings.ca_root, DEFAULT_CA_ROOT),
        token_file: Some(path(&settings.ca_token_file, DEFAULT_CA_TOKEN)),
        cluster_id: cluster_id.to_owned(),
    };
    let both = |second| Err(ConfigError::Both { first: "ca-root-config-map", second });
    let published = match (&settings.ca_root_config_map, settings.ca_trust.unwrap_or_default()) {
        (Some(_), _) if settings.manifests.is_some() => return both("manifests"),
        (Some(_), _) if settings.ca_root.is_some() => return both("ca-root"),
        (Some(map), _) => Some(Publication::ConfigMap {
            namespace: map.namespace.clone(),
            name: map.name.clone(),
            key: settings.ca_root_key.as_ref().map_or(DEFAULT_CA_ROOT_KEY, |key| &key.0).to_owned(),
        }),
        (None, CaTrust::Root) => Some(Publication::File(service.root.clone())),
        (None, CaTrust::Answers) => None,
    };
    Ok(IssuerConfig::Istio { name, service, published })
}

fn default_workers() -> usize {
    thread::available_parallelism().map_or(1, |cores| cores.get().min(DEFAULT_MAX_WORKERS))
}

#[cfg(test)]
mod tests;
