use clap::Parser;

use super::*;

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    settings: AgentSettings,
    #[arg(long)]
    config: Option<PathBuf>,
}

fn resolve(line: &[&str]) -> Result<AgentConfig, ConfigError> {
    let line = Line::try_parse_from(["agent"].iter().chain(line)).unwrap();
    AgentConfig::resolve(line.settings, line.config.as_deref())
}

/// The whole message, causes included.
fn message(error: ConfigError) -> String {
    format!("{:#}", anyhow::Error::from(error))
}

fn file(text: &str) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.yaml");
    fs::write(&path, text).unwrap();
    (dir, path.to_str().unwrap().to_owned())
}

const NEEDED: [&str; 6] = ["--node", "n1", "--manifests", "/m", "--ca-dir", "/ca"];

#[test]
fn defaults_are_those_of_the_help() {
    let config = resolve(&NEEDED).unwrap();
    assert_eq!(
        config,
        AgentConfig {
            node: "n1".to_owned(),
            source: SourceConfig::Folder("/m".into()),
            cluster_name: "Kubernetes".to_owned(),
            remote_clusters: None,
            cluster_local: vec![],
            run_dir: "/run/ambit".into(),
            state_dir: "/run/ambit".into(),
            metrics_addr: None,
            drain: Duration::from_secs(25),
            admin_addr: None,
            instance: String::new(),
            daemonset: None,
            log_filter: "info".to_owned(),
            log_format: LogFormat::Text,
            http_telemetry: HttpTelemetry::Policy,
            traces: None,
            svid_ttl: Duration::from_secs(86_400),
            trust_domain: TrustDomain::default(),
            cluster_domain: "cluster.local".to_owned(),
            root_namespace: "ambit-system".to_owned(),
            policy_hold: Duration::from_secs(86_400),
            dataplane_label: "ambit.dev/dataplane=enabled,disabled".parse().unwrap(),
            outbound_policy: Default::default(),
            observe_outbound: false,
            dns_capture: false,
            vip_ranges: "240.240.0.0/16,2001:2::/48".parse().unwrap(),
            egress_files: None,
            kubelet_cgroup: None,
            cgroup_root: None,
            bpf_root: "/sys/fs/bpf".into(),
            map_entries: MapEntries::default(),
            cni: None,
            cni_account: None,
            metrics_guarded: false,
            workers: default_workers(),
            trusted_proxies: 0,
            path_normalization: PathNormalization::Base,
            post_quantum: PostQuantum::Offer,
            local_traffic: LocalTraffic::Join,
            kernel_tls: KernelTls::Off,
            bundles: Bundling::Auto,
            busy_poll: BusyPolling::Auto,
            crl_file: None,
            trust_domain_aliases: vec![],
            trust_bundles: vec![],
            also_trust: vec![],
            jwks_ca_file: None,
            jwks_blocked: vec![],
            jwks_refresh: Duration::from_secs(1_200),
            issuer: IssuerConfig::Builtin { ca_dir: "/ca".into() },
            extension_providers: Vec::new(),
        }
    );
}

#[test]
fn a_file_sets_everything_and_a_flag_goes_above_it() {
    let (_dir, path) = file(
        "# all of it\nnode: n2\nmanifests: /srv/m\nca-dir: /srv/ca\nrun-dir: /srv/run\n\
         metrics-addr: '[::]:15020'\nlog: info,access=warn\nlog-format: json\nsvid-ttl: 90s\n\
         trust-domain: td1\ncluster-domain: k8s.test\nroot-namespace: mesh\n\
         dataplane-label: istio.io/dataplane-mode=ambient,none\ncgroup-root: /cg\nbpf-root: /bpf\n\
         workers: 3\npost-quantum: off\nbusy-poll: 150us\n",
    );
    let config = resolve(&["--config", &path, "--node", "n9", "--workers", "5"]).unwrap();
    assert_eq!((config.node.as_str(), config.workers), ("n9", 5));
    assert_eq!(config.source, SourceConfig::Folder("/srv/m".into()));
    assert_eq!(config.run_dir, Path::new("/srv/run"));
    assert_eq!(config.metrics_addr, Some("[::]:15020".parse().unwrap()));
    assert_eq!((config.log_filter.as_str(), config.log_format), ("info,access=warn", LogFormat::Json));
    assert_eq!(config.svid_ttl, Duration::from_secs(90));
    assert_eq!(config.trust_domain.as_str(), "td1");
    assert_eq!((&*config.cluster_domain, &*config.root_namespace), ("k8s.test", "mesh"));
    assert_eq!(config.dataplane_label.disabled, "none");
    assert_eq!(config.cgroup_root.as_deref(), Some(Path::new("/cg")));
    assert_eq!(config.post_quantum, PostQuantum::Off);
    assert_eq!(config.busy_poll, BusyPolling::For(Duration::from_micros(150)));
    assert_eq!(resolve(&["--config", &path]).unwrap().workers, 3);
}

#[test]
fn the_cni_folders_come_together_or_not_at_all() {
    let line = |more: &[&'static str]| [&NEEDED[..], more].concat();
    let both = resolve(&line(&["--cni-bin-dir", "/b", "--cni-conf-dir", "/c"])).unwrap();
    assert_eq!(both.cni, Some(CniDirs { bin: "/b".into(), conf: "/c".into() }));
    for (given, missing) in
        [("--cni-bin-dir", "--cni-conf-dir is needed"), ("--cni-conf-dir", "--cni-bin-dir is needed")]
    {
        assert!(message(resolve(&line(&[given, "/x"])).unwrap_err()).contains(missing));
    }
}

#[test]
fn every_issuer_asks_for_what_it_needs_and_no_more() {
    let line = |more: &[&'static str]| [&["--node", "n1", "--manifests", "/m"], more].concat();
    let files = resolve(&line(&["--issuer", "files", "--cert-dir", "/certs"])).unwrap();
    assert_eq!(files.issuer, IssuerConfig::Files { dir: "/certs".into() });
    let vault = ["--issuer", "vault", "--vault-addr", "https://vault:8200"];
    assert!(message(resolve(&line(&vault)).unwrap_err()).contains("--vault-token-file is needed"));
    let vault = [&vault[..], &["--vault-login-role", "node"]].concat();
    assert!(message(resolve(&line(&vault)).unwrap_err()).contains("--vault-ca-file is needed"));
    let login = resolve(&line(&[&vault[..], &["--vault-ca-file", "/roots"]].concat())).unwrap();
    let IssuerConfig::Vault(login) = login.issuer else { panic!("{:?}", login.issuer) };
    assert_eq!((login.mount.as_str(), login.role.as_str()), ("pki", "ambit"));
    assert_eq!(
        login.login,
        VaultLogin::Kubernetes { mount: "kubernetes".into(), role: "node".into(), jwt: POD_TOKEN.into() }
    );
    assert!(resolve(&line(&["--issuer", "spire"])).is_ok());
    assert!(message(resolve(&line(&["--issuer", "files"])).unwrap_err()).contains("--cert-dir is needed"));
    let aliases = resolve(&line(&["--ca-dir", "/ca", "--trust-domain-aliases", "old,older"])).unwrap();
    assert_eq!(aliases.trust_domain_aliases.len(), 2);
}

#[test]
fn the_istio_issuer_needs_an_address_and_no_ca_of_its_own() {
    let line = ["--node", "n1", "--manifests", "/m", "--issuer", "istio"];
    assert!(message(resolve(&line).unwrap_err()).contains("set AMBIT_CA_ADDRESS"));
    let line = [&line[..], &["--ca-address", "https://istiod.istio-system.svc:15012"]].concat();
    let expected = IstioSettings {
        host: "istiod.istio-system.svc".into(),
        port: 15012,
        server_name: None,
        root: "/var/run/secrets/istio/root-cert.pem".into(),
        token_file: Some("/var/run/secrets/tokens/istio-token".into()),
        cluster_id: "Kubernetes".into(),
    };
    let issuer = |service: &IstioSettings, published: Option<Publication>| IssuerConfig::Istio {
        name: "istio",
        service: service.clone(),
        published,
    };
    assert_eq!(resolve(&line).unwrap().issuer, issuer(&expected, None));
    let line_of_ambit: Vec<&str> =
        line.iter().map(|word| if *word == "istio" { "ambit" } else { *word }).collect();
    let named = resolve(&[&line_of_ambit[..], &["--also-trust", "/old.pem,/new.pem"]].concat()).unwrap();
    assert!(matches!(named.issuer, IssuerConfig::Istio { name: "ambit", .. }), "the log names it");
    assert_eq!(named.also_trust, [PathBuf::from("/old.pem"), "/new.pem".into()]);
    let followed = resolve(&[&line[..], &["--ca-trust", "root"]].concat()).unwrap();
    assert_eq!(followed.issuer, issuer(&expected, Some(Publication::File(expected.root.clone()))));
    let map = ["--ca-root-config-map", "ambit-system/ambit-ca-root"];
    let error = message(resolve(&[&line[..], &map].concat()).unwrap_err());
    assert_eq!(error, "--ca-root-config-map and --manifests cannot both be set");
    let in_cluster = [&line[..2], &line[4..], &map].concat();
    let in_map = Publication::ConfigMap {
        namespace: "ambit-system".into(),
        name: "ambit-ca-root".into(),
        key: "root-cert.pem".into(),
    };
    assert_eq!(resolve(&in_cluster).unwrap().issuer, issuer(&expected, Some(in_map)));
    let error = message(resolve(&[&in_cluster[..], &["--ca-root", "/r"]].concat()).unwrap_err());
    assert_eq!(error, "--ca-root-config-map and --ca-root cannot both be set");
    let (_dir, path) = file(
        "issuer: istio\nca-address: '[::1]:443'\nca-server-name: ca.test\nca-root: /r\nca-token-file: /t\ncluster-id: c1\n",
    );
    let config = resolve(&["--node", "n1", "--manifests", "/m", "--config", &path]).unwrap();
    let expected = IstioSettings {
        host: "::1".into(),
        port: 443,
        server_name: Some("ca.test".into()),
        root: "/r".into(),
        token_file: Some("/t".into()),
        cluster_id: "c1".into(),
    };
    assert_eq!(config.issuer, issuer(&expected, None));
}

#[test]
fn what_is_needed_is_asked_for_by_all_its_names() {
    let error = message(resolve(&NEEDED[2..]).unwrap_err());
    assert_eq!(error, "--node is needed: pass the flag, set AMBIT_NODE, or put `node:` into the config file");
    assert!(message(resolve(&NEEDED[..4]).unwrap_err()).contains("set AMBIT_CA_DIR"));
}

#[test]
fn mistakes_in_the_file_name_the_file_and_the_key() {
    for (text, expected) in [
        (
            "nodes: n1\n",
            &["nodes", "unknown field `nodes`", "expected one of `node`, `manifests`, `kubeconfig`"][..],
        ),
        ("workers: lots\n", &["workers", "\"lots\"", "1 to 256"]),
        ("workers: -1\n", &["workers", "invalid type: integer `-1`"]),
        ("node: [n1]\n", &["node", "invalid type: sequence"]),
        ("node: true\n", &["node", "invalid type: boolean"]),
        ("node:\n", &["node", "invalid type: unit"]),
        ("metrics-addr: 15020\n", &["metrics-addr", "IP:port"]),
        ("svid-ttl: 10\n", &["svid-ttl", "unit"]),
        ("node: a\nnode: b\n", &["duplicate"]),
        ("- node\n", &["not a list of settings", "invalid type: sequence"]),
        ("node: a\n---\nnode: b\n", &["more than one document"]),
        ("node: {\n", &["node"]),
    ] {
        let (_dir, path) = file(text);
        let error = message(resolve(&["--config", &path]).unwrap_err());
        assert!(error.starts_with(&format!("config file {path}: ")), "{error}");
        for part in expected {
            assert!(error.contains(part), "{text:?}: {error}");
        }
    }
}

#[test]
fn an_empty_file_sets_nothing() {
    for text in ["", "# later\n", "---\n", "{}\n"] {
        let (_dir, path) = file(text);
        let line: Vec<&str> = NEEDED.into_iter().chain(["--config", &path]).collect();
        assert_eq!(resolve(&line).unwrap().node, "n1", "{text:?}");
    }
}

#[test]
fn only_a_regular_file_of_bounded_size_is_read() {
    let (dir, large) = file(&"#".repeat(1024 * 1024 + 1));
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for (path, expected) in [
        (large.as_str(), "larger than 1 MiB"),
        (fifo.to_str().unwrap(), "not a regular file"),
        ("/dev/zero", "not a regular file"),
        ("/nowhere/agent.yaml", "No such file"),
    ] {
        let error = message(resolve(&["--config", path]).unwrap_err());
        assert!(error.starts_with(&format!("cannot read the config file {path}: ")), "{error}");
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn without_a_folder_the_source_is_a_cluster() {
    let line = |more: &[&'static str]| [&["--node", "n1", "--ca-dir", "/ca"], more].concat();
    let source = |more| resolve(&line(more)).unwrap().source;
    assert_eq!(source(&[]), SourceConfig::Cluster { kubeconfig: None });
    assert_eq!(source(&["--kubeconfig", "/k"]), SourceConfig::Cluster { kubeconfig: Some("/k".into()) });
    let both = resolve(&line(&["--kubeconfig", "/k", "--manifests", "/m"])).unwrap_err();
    assert_eq!(message(both), "--manifests and --kubeconfig cannot both be set");
}

#[test]
fn metrics_are_guarded_where_a_cluster_can_be_asked() {
    let line = |more: &[&'static str]| [&["--node", "n1", "--ca-dir", "/ca"], more].concat();
    assert!(resolve(&line(&["--metrics-auth", "token"])).unwrap().metrics_guarded);
    assert!(!resolve(&line(&["--metrics-auth", "none", "--manifests", "/m"])).unwrap().metrics_guarded);
    let error = resolve(&line(&["--metrics-auth", "token", "--manifests", "/m"])).unwrap_err();
    assert_eq!(message(error), "--manifests and --metrics-auth token cannot both be set");
}

#[test]
fn manifests_must_be_there() {
    let mut config = resolve(&NEEDED).unwrap();
    config.source = SourceConfig::Folder("/nowhere/manifests".into());
    let error = message(config.prepare_folders().unwrap_err());
    assert!(error.starts_with("cannot use --manifests /nowhere/manifests: No such file"), "{error}");
}

#[test]
fn providers_are_a_list_in_the_file_and_a_text_elsewhere() {
    let list = "[{name: opa, envoyExtAuthzGrpc: {service: authz/opa, port: 9191}}]";
    let flag = resolve(&[&NEEDED[..], &["--extension-providers", list]].concat()).unwrap();
    let (_dir, path) = file(&format!("extension-providers: {list}\n"));
    let file_only = resolve(&[&NEEDED[..], &["--config", &path]].concat()).unwrap();
    assert_eq!(flag.extension_providers, file_only.extension_providers);
    assert_eq!(flag.extension_providers[0].addr.to_string(), "authz/opa:9191");
    let (_dir, path) = file("extension-providers: [{name: opa, zipkin: {}}]\n");
    let error = message(resolve(&[&NEEDED[..], &["--config", &path]].concat()).unwrap_err());
    assert!(error.contains("extension-providers") && error.contains("zipkin"), "{error}");
}
