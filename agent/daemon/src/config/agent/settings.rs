//! The settings of `ambit agent`.

use ambit_core::model::TrustDomain;

use crate::{
    config::{
        settings::settings,
        values::{
            CaTrust, ClusterId, ConfigMapKey, DataplaneLabel, DnsName, Drain, Hold, IssuerKind, ListenAddr,
            LocalTraffic, Location, Locations, LogFilter, LoopbackAddr, MapEntries, MetricsAuth, Namespace,
            ObjectName, PostQuantum, ServerName, ServiceAddr, TrustBundles, TrustDomains, Ttl, Url,
            VaultPath, Workers,
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
    /// The cluster's name for the certificate service [default: Kubernetes]
    cluster_id: ClusterId, "AMBIT_CLUSTER_ID", "NAME";
    /// The folder for the status socket and the lock of this agent [default: /run/ambit]
    run_dir: Location, "AMBIT_RUN_DIR", "DIR";
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
    /// The label that opts namespaces and pods in, and pods out [default: ambit.dev/dataplane=enabled,disabled]
    dataplane_label: DataplaneLabel, "AMBIT_DATAPLANE_LABEL", "KEY=ENABLED[,DISABLED]";
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
    /// A file of certificate revocation lists, PEM or DER; watched
    crl_file: Location, "AMBIT_CRL_FILE", "FILE";
    /// Trust domains beside our own whose identities are accepted, joined by commas
    trust_domain_aliases: TrustDomains, "AMBIT_TRUST_DOMAIN_ALIASES", "DOMAIN[,DOMAIN]";
    /// Foreign trust domains whose identities are accepted, each with a file of its own roots; watched
    trust_bundle: TrustBundles, "AMBIT_TRUST_BUNDLE", "DOMAIN=FILE[,..]";
    /// Files of roots that are trusted beside the issuer's, while another issuer takes its place or has just done so; read at start
    also_trust: Locations, "AMBIT_ALSO_TRUST", "FILE[,..]";
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
}
