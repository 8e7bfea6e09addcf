//! The settings of `ambit agent`.

use ambit_core::model::{PathNormalization, TrustDomain};

use crate::{
    config::{
        settings::settings,
        values::{
            Bundling, BusyPolling, CaTrust, ClusterId, ClusterLocalServices, CollectorUrl, ConfigMapKey,
            DataplaneLabel, DnsName, Drain, ExtensionProviders, Hold, HttpTelemetry, IpBlocks, IssuerKind,
            KernelTls, KeyRefresh, ListenAddr, LocalTraffic, Location, Locations, LogFilter, LoopbackAddr,
            MapEntries, MetricsAuth, Namespace, ObjectName, OutboundPolicy, PostQuantum, Sampling,
            ServerName, ServiceAddr, Switch, TrustBundles, TrustDomains, TrustedProxies, Ttl, Url, VaultPath,
            VipNetworks, Workers,
        },
    },
    telemetry::LogFormat,
};

settings! {
    struct AgentSettings;
    /// The node that this agent serves, as in spec.nodeName of its pods
    node: DnsName, "AMBIT_NODE", "NAME";
    /// The folder of Kubernetes manifests to watch, instead of a cluster
    manifests: Location, "AMBIT_MANIFESTS", "DIR";
    /// How to reach the cluster whose objects to watch [default: the cluster that the agent runs in]
    kubeconfig: Location, "AMBIT_KUBECONFIG", "FILE";
    /// Who signs certificates: builtin, ambit (ambit ca), istio (istiod, istio-csr), files, vault or spire [default: builtin]
    issuer: IssuerKind, "AMBIT_ISSUER", "KIND";
    /// The folder of the built-in CA; made on first use
    ca_dir: Location, "AMBIT_CA_DIR", "DIR";
    /// Where the certificate service is, for --issuer ambit or istio
    ca_address: ServiceAddr, "AMBIT_CA_ADDRESS", "HOST:PORT";
    /// The roots that the certificate service's certificate must lead to [default: /var/run/secrets/istio/root-cert.pem]
    ca_root: Location, "AMBIT_CA_ROOT", "FILE";
    /// What workloads trust, for --issuer ambit or istio: answers (the roots that come with certificates) or root (what is in --ca-root, watched, for a CA that publishes its roots there) [default: answers]
    ca_trust: CaTrust, "AMBIT_CA_TRUST", "WHAT";
    /// The ConfigMap in which the certificate service publishes its roots, such as istio-system/istio-ca-root-cert, watched, instead of --ca-root: workloads trust these and no others
    ca_root_config_map: ObjectName, "AMBIT_CA_ROOT_CONFIG_MAP", "NAMESPACE/NAME";
    /// The key of that ConfigMap that holds the roots [default: root-cert.pem]
    ca_root_key: ConfigMapKey, "AMBIT_CA_ROOT_KEY", "KEY";
    /// The bearer token for the certificate service [default: /var/run/secrets/tokens/istio-token]
    ca_token_file: Location, "AMBIT_CA_TOKEN_FILE", "FILE";
    /// The name in the certificate service's certificate [default: the host of --ca-address]
    ca_server_name: ServerName, "AMBIT_CA_SERVER_NAME", "NAME";
    /// This cluster's name, for the certificate service, in metrics and logs, and among several clusters [default: Kubernetes]
    cluster_id: ClusterId, "AMBIT_CLUSTER_ID", "NAME";
    /// The namespace whose Secrets labelled istio/multiCluster=true hold kubeconfigs of other clusters, whose pods and endpoints are then read beside those of this one; for nothing else, since agents read all Secrets there [default: no other clusters]
    remote_clusters: Namespace, "AMBIT_REMOTE_CLUSTERS", "NAMESPACE";
    /// Services that each cluster has for itself, all of a namespace or one by one, beside those of kube-system and of the root namespace and default/kubernetes
    cluster_local: ClusterLocalServices, "AMBIT_CLUSTER_LOCAL", "NAMESPACE[/NAME][,..]";
    /// The folder for the status socket and the lock of this agent [default: /run/ambit]
    run_dir: Location, "AMBIT_RUN_DIR", "DIR";
    /// The folder for what is known of other clusters, by which an agent that starts goes until it has read them; best one that outlives a restart of the node [default: --run-dir]
    state_dir: Location, "AMBIT_STATE_DIR", "DIR";
    /// Where to serve /metrics and /healthz over HTTP; without it nothing is served
    metrics_addr: ListenAddr, "AMBIT_METRICS_ADDR", "ADDR";
    /// Who may read /metrics: everybody (none), or over TLS who bears a token that RBAC allows get on it (token) [default: none]
    metrics_auth: MetricsAuth, "AMBIT_METRICS_AUTH", "WHO";
    /// How long connections may go on after SIGTERM, or after another agent has taken over, 0s to 1h [default: 25s]
    drain: Drain, "AMBIT_DRAIN", "DURATION";
    /// Where to serve the status to programs of this host, for ambit status --kubeconfig; without it only over the socket
    admin_addr: LoopbackAddr, "AMBIT_ADMIN_ADDR", "ADDR";
    /// A name for this process, by which ambit status knows it from its predecessor and successor
    instance: ClusterId, "AMBIT_INSTANCE", "NAME";
    /// The DaemonSet that this agent belongs to: when it ends because that or its namespace is gone, it takes everything off the node
    daemonset: ObjectName, "AMBIT_DAEMONSET", "NAMESPACE/NAME";
    /// What to log, in the form of RUST_LOG, such as info,access=warn [default: info]
    log: LogFilter, "AMBIT_LOG", "FILTER";
    /// How to log: text or json [default: text]
    log_format: LogFormat, "AMBIT_LOG_FORMAT", "FORMAT";
    /// Which ports' requests are counted and logged: those that policies read anyway (policy), or of all pods in the mesh (all); pods and namespaces may say otherwise by the annotation ambit.dev/http-telemetry [default: policy]
    http_telemetry: HttpTelemetry, "AMBIT_HTTP_TELEMETRY", "WHICH";
    /// The collector that spans of requests are sent to by OTLP over gRPC, such as http://otel-collector.observability:4317; without it none are
    trace_endpoint: CollectorUrl, "AMBIT_TRACE_ENDPOINT", "URL";
    /// How many of the traces that begin here are sampled, in percent; those that come with a decision keep it [default: 1]
    trace_sampling: Sampling, "AMBIT_TRACE_SAMPLING", "PERCENT";
    /// The lifetime of workload certificates, 10s to 90d [default: 24h]
    svid_ttl: Ttl, "AMBIT_SVID_TTL", "DURATION";
    /// The SPIFFE trust domain of all identities [default: cluster.local]
    trust_domain: TrustDomain, "AMBIT_TRUST_DOMAIN", "DOMAIN";
    /// The DNS domain of the cluster's services [default: cluster.local]
    cluster_domain: DnsName, "AMBIT_CLUSTER_DOMAIN", "DOMAIN";
    /// The namespace whose policies hold for the whole mesh [default: ambit-system]
    root_namespace: Namespace, "AMBIT_ROOT_NAMESPACE", "NAMESPACE";
    /// How long policies stay in force whose definition is removed from the cluster, 0s to 90d [default: 24h]
    policy_hold: Hold, "AMBIT_POLICY_HOLD", "DURATION";
    /// How many proxies that have passed a request on are believed about its client, 0 to 16, beside the last: whose address stands in
    /// X-Forwarded-For in front of theirs is remote.ip [default: 0]
    trusted_proxies: TrustedProxies, "AMBIT_TRUSTED_PROXIES", "N";
    /// How paths of requests are rewritten: none, base, merge-slashes or decode-and-merge-slashes [default: base]
    path_normalization: PathNormalization, "AMBIT_PATH_NORMALIZATION", "MODE";
    /// The label that opts namespaces and pods in, and pods out [default: ambit.dev/dataplane=enabled,disabled]
    dataplane_label: DataplaneLabel, "AMBIT_DATAPLANE_LABEL", "KEY=ENABLED[,DISABLED]";
    /// Where pods may connect to whose namespace has no label ambit.dev/outbound-policy: ALLOW_ANY, or REGISTRY_ONLY (the cluster, and what a ServiceEntry names) [default: ALLOW_ANY]
    outbound_policy: OutboundPolicy, "AMBIT_OUTBOUND_POLICY", "POLICY";
    /// Whether connections to outside the mesh are counted and logged as others, for which they pass through the agent: off or on [default: off]
    observe_outbound: Switch, "AMBIT_OBSERVE_OUTBOUND", "WHETHER";
    /// Whether DNS of pods is captured that neither have a label ambit.dev/dns-capture nor have a namespace with one: off or on [default: off]
    dns_capture: Switch, "AMBIT_DNS_CAPTURE", "WHETHER";
    /// Where addresses come from for hosts of ServiceEntries that state none: a network of each family at most, or none; the same on all nodes [default: 240.240.0.0/16,2001:2::/48]
    vip_ranges: VipNetworks, "AMBIT_VIP_RANGES", "CIDR[,CIDR]";
    /// The folder with a folder for each namespace, in which the files are that DestinationRules name for its pods
    egress_files: Location, "AMBIT_EGRESS_FILES", "DIR";
    /// Where cgroup v2 is mounted [default: found in /proc/mounts]
    cgroup_root: Location, "AMBIT_CGROUP_ROOT", "PATH";
    /// The kubelet's cgroup, whose probes enrolled pods take in plaintext [default: found by its process]
    kubelet_cgroup: Location, "AMBIT_KUBELET_CGROUP", "PATH";
    /// The BPF file system, mounted there if it is not [default: /sys/fs/bpf]
    bpf_root: Location, "AMBIT_BPF_ROOT", "PATH";
    /// Other sizes of eBPF maps than the usual, for nodes and clusters that these are too small for
    map_entries: MapEntries, "AMBIT_MAP_ENTRIES", "MAP=N[,..]";
    /// Where the CNI plugin is installed, as the node itself sees it; with --cni-conf-dir only
    cni_bin_dir: Location, "AMBIT_CNI_BIN_DIR", "DIR";
    /// Where the CNI network configuration is that the plugin is chained to, as the node itself sees it
    cni_conf_dir: Location, "AMBIT_CNI_CONF_DIR", "DIR";
    /// The service account that the CNI plugin asks the API as while no agent runs; without it the plugin does not ask
    cni_account: ObjectName, "AMBIT_CNI_ACCOUNT", "NAMESPACE/NAME";
    /// How many threads carry traffic [default: one for each processor, at most 8]
    workers: Workers, "AMBIT_WORKERS", "N";
    /// Whether tunnels use the hybrid key exchange X25519MLKEM768: off, offer, prefer or require [default: offer]
    post_quantum: PostQuantum, "AMBIT_POST_QUANTUM", "WHEN";
    /// How pods of one node talk with each other: join (their connections are joined in the agent, and nothing leaves the node) or encrypt (over a tunnel, as between nodes) [default: join]
    local_traffic: LocalTraffic, "AMBIT_LOCAL_TRAFFIC", "HOW";
    /// Whether the kernel seals and opens the TLS records of tunnels, once a handshake is over: off, auto (where it can do all of it, from Linux 6.14 on) or force (also where it cannot renew keys, so that a tunnel ends with them; no start without kernel TLS) [default: off]
    kernel_tls: KernelTls, "AMBIT_KERNEL_TLS", "WHEN";
    /// How long who has passed on a message looks for the next one before its thread sleeps, as waking it takes longer than a message: off, auto (200us, unless the agent's cgroup has a CPU limit) or a time from 1us to 1ms [default: auto]
    busy_poll: BusyPolling, "AMBIT_BUSY_POLL", "TIME";
    /// Whether small messages of many connections between two pods share packets between the nodes: off, auto (while many connections speak at a time) or force (wherever there are two connections; for trying it out) [default: auto]
    bundles: Bundling, "AMBIT_BUNDLES", "WHEN";
    /// A file of certificate revocation lists, PEM or DER; watched
    crl_file: Location, "AMBIT_CRL_FILE", "FILE";
    /// Trust domains beside our own whose identities are accepted, joined by commas
    trust_domain_aliases: TrustDomains, "AMBIT_TRUST_DOMAIN_ALIASES", "DOMAIN[,DOMAIN]";
    /// Foreign trust domains whose identities are accepted, each with a file of its own roots; watched
    trust_bundle: TrustBundles, "AMBIT_TRUST_BUNDLE", "DOMAIN=FILE[,..]";
    /// Files of roots that are trusted beside the issuer's, while another issuer takes its place or has just done so; read at start
    also_trust: Locations, "AMBIT_ALSO_TRUST", "FILE[,..]";
    /// Roots that the certificates of token issuers may lead to, PEM, beside the public ones; read for each fetch of their keys
    jwks_ca_file: Location, "AMBIT_JWKS_CA_FILE", "FILE";
    /// Addresses that the keys of token issuers are not fetched from, beside this host's, link-local ones and clouds' metadata, such as 10.96.0.1,10.0.0.0/24
    jwks_blocked: IpBlocks, "AMBIT_JWKS_BLOCKED", "CIDR[,CIDR]";
    /// How old the keys of token issuers get before they are fetched again, 1s to 1d [default: 20m]
    jwks_refresh: KeyRefresh, "AMBIT_JWKS_REFRESH", "DURATION";
    /// Issuer files: the folder with <namespace>/<service account>/{tls.crt,tls.key,ca.crt}; watched
    cert_dir: Location, "AMBIT_CERT_DIR", "DIR";
    /// Issuer vault: its address, such as https://vault.example:8200; http for this host only
    vault_addr: Url, "AMBIT_VAULT_ADDR", "URL";
    /// Issuer vault: the roots that its own certificate leads to, PEM; needed for https
    vault_ca_file: Location, "AMBIT_VAULT_CA_FILE", "FILE";
    /// Issuer vault: where its PKI engine is mounted [default: pki]
    vault_mount: VaultPath, "AMBIT_VAULT_MOUNT", "PATH";
    /// Issuer vault: the role of the PKI engine to sign under [default: ambit]
    vault_role: VaultPath, "AMBIT_VAULT_ROLE", "NAME";
    /// Issuer vault: a file with a token, read again when it changes; or log in with --vault-login-role
    vault_token_file: Location, "AMBIT_VAULT_TOKEN_FILE", "FILE";
    /// Issuer vault: the role of the Kubernetes login
    vault_login_role: VaultPath, "AMBIT_VAULT_LOGIN_ROLE", "NAME";
    /// Issuer vault: where the Kubernetes login is mounted [default: kubernetes]
    vault_login_mount: VaultPath, "AMBIT_VAULT_LOGIN_MOUNT", "PATH";
    /// Issuer vault: the service account token of the Kubernetes login [default: the pod's own]
    vault_jwt_file: Location, "AMBIT_VAULT_JWT_FILE", "FILE";
    /// Issuer spire: the admin socket of the SPIRE agent [default: /tmp/spire-agent/private/admin.sock]
    spire_socket: Location, "AMBIT_SPIRE_SOCKET", "PATH";
    =>
    /// External authorization providers that CUSTOM policies may name: a list in YAML, as extensionProviders of Istio's mesh configuration has it, with envoyExtAuthzGrpc or envoyExtAuthzHttp; in the config file the list itself
    extension_providers: ExtensionProviders, "AMBIT_EXTENSION_PROVIDERS", "YAML";
}
