//! The configuration of the CA service, complete and checked.

use std::{net::SocketAddr, path::Path, time::Duration};

use ambit_core::model::TrustDomain;
use rcgen::SanType;

use super::{
    ConfigError,
    folders::private_folder,
    settings::{read, settings},
    values::{
        Accounts, ClusterId, ListenAddr, Location, LogFilter, MetricsAuth, ObjectName, Rate, ServerNames, Ttl,
    },
};
use crate::{
    ca::{CaSettings, CaSource, KubernetesSettings},
    telemetry::LogFormat,
};

const DEFAULT_MAX_TTL: Duration = Duration::from_secs(24 * 3600);
const DEFAULT_AUDIENCE: &str = "istio-ca";
const DEFAULT_RATE: u32 = 50;
/// The ConfigMap of the roots, beside the Secret.
const DEFAULT_CONFIG_MAP: &str = "ambit-ca-root";
/// The names of the Service in front of the replicas, and of this machine.
const DEFAULT_NAMES: &str = "ambit-ca.ambit-system.svc,localhost";

settings! {
    struct CaServiceSettings;
    /// Where to serve certificate requests
    listen: ListenAddr, "AMBIT_CA_LISTEN", "ADDR";
    /// The folder of the CA; a self-signed one is made in it on first use
    ca_dir: Location, "AMBIT_CA_DIR", "DIR";
    /// The folder of a CA that somebody else keeps (ca-cert.pem, ca-key.pem, cert-chain.pem, root-cert.pem; or tls.crt, tls.key, ca.crt), instead of --ca-dir
    cacerts: Location, "AMBIT_CACERTS", "DIR";
    /// The Secret of a CA in the cluster, instead of --ca-dir; a self-signed one is made in it on first use
    root_secret: ObjectName, "AMBIT_CA_ROOT_SECRET", "NAMESPACE/NAME";
    /// The ConfigMap in which the CA's roots are published for agents to mount [default: with --root-secret, ambit-ca-root beside it]
    root_config_map: ObjectName, "AMBIT_CA_ROOT_CONFIG_MAP", "NAMESPACE/NAME";
    /// The file that says who may ask, by which token or certificate, and for what
    token_file: Location, "AMBIT_CA_CALLERS", "FILE";
    /// The kubeconfig of a cluster whose service accounts may ask; in a pod that is found without one
    kubeconfig: Location, "AMBIT_KUBECONFIG", "FILE";
    /// The audience that a service account's token must be made for [default: istio-ca]
    audience: ClusterId, "AMBIT_CA_AUDIENCE", "NAME";
    /// The service accounts of agents, which get what runs on their node [default: ambit-system/ambit]
    node_accounts: Accounts, "AMBIT_CA_NODE_ACCOUNTS", "NAMESPACE/NAME,..";
    /// Where to serve /metrics over HTTP, and /healthz as well; without it nothing is served
    metrics_addr: ListenAddr, "AMBIT_METRICS_ADDR", "ADDR";
    /// Who may read /metrics: everybody (none), or over TLS who bears a token that RBAC allows get on it (token) [default: none]
    metrics_auth: MetricsAuth, "AMBIT_METRICS_AUTH", "WHO";
    /// Where to serve /healthz alone over HTTP, for the kubelet's probes; without it nothing is served
    health_addr: ListenAddr, "AMBIT_CA_HEALTH_ADDR", "ADDR";
    /// The SPIFFE trust domain whose identities are signed [default: cluster.local]
    trust_domain: TrustDomain, "AMBIT_TRUST_DOMAIN", "DOMAIN";
    /// The longest lifetime signed, 10s to 90d [default: 24h]
    max_ttl: Ttl, "AMBIT_CA_MAX_TTL", "DURATION";
    /// The names and addresses in the service's own certificate [default: ambit-ca.ambit-system.svc,localhost and the address of --listen]
    dns_name: ServerNames, "AMBIT_CA_DNS_NAME", "NAMES";
    /// Certificates a second for one caller; ten seconds' worth may come at once [default: 50]
    rate: Rate, "AMBIT_CA_RATE", "N";
    /// What to log, in the form of RUST_LOG, such as info,audit=warn [default: info]
    log: LogFilter, "AMBIT_LOG", "FILTER";
    /// How to log: text or json [default: text]
    log_format: LogFormat, "AMBIT_LOG_FORMAT", "FORMAT";
}

/// The configuration of one CA service, complete and checked.
#[derive(Debug)]
pub(crate) struct CaConfig {
    /// What the service itself is told.
    pub(crate) service: CaSettings,
    /// Where metrics and health are served over HTTP; nowhere if `None`.
    pub(crate) metrics_addr: Option<SocketAddr>,
    /// Whether metrics are only for bearers of a token whom the cluster's RBAC lets read them; there is a cluster then.
    pub(crate) metrics_guarded: bool,
    /// Where health alone is served over HTTP; nowhere if `None`.
    pub(crate) health_addr: Option<SocketAddr>,
    /// What to log, in the form of RUST_LOG.
    pub(crate) log_filter: String,
    /// How log lines look.
    pub(crate) log_format: LogFormat,
}

impl CaConfig {
    /// Completes settings with those of the config file and with the defaults. `in_pod` says whether this process runs in
    /// a pod, so that there is a cluster without a kubeconfig.
    pub(crate) fn resolve(
        settings: CaServiceSettings,
        file: Option<&Path>,
        in_pod: bool,
    ) -> Result<Self, ConfigError> {
        let set = settings.over(file.map(read).transpose()?.unwrap_or_default());
        let missing = |flag, variable| move || ConfigError::Missing { flag, variable };
        let listen = set.listen.ok_or_else(missing("listen", "AMBIT_CA_LISTEN"))?.0;
        let both = |first, second| Err(ConfigError::Both { first, second });
        let source = match (set.ca_dir, set.cacerts, set.root_secret) {
            (Some(dir), None, None) => CaSource::Own(dir.0),
            (None, Some(dir), None) => CaSource::PluggedIn(dir.0),
            (None, None, Some(secret)) => CaSource::Secret { namespace: secret.namespace, name: secret.name },
            (None, None, None) => return Err(missing("ca-dir", "AMBIT_CA_DIR")()),
            (Some(_), Some(_), _) => return both("ca-dir", "cacerts"),
            (Some(_), None, Some(_)) => return both("ca-dir", "root-secret"),
            (None, Some(_), Some(_)) => return both("cacerts", "root-secret"),
        };
        let kubeconfig = set.kubeconfig.map(|path| path.0);
        let kubernetes = (kubeconfig.is_some() || in_pod).then(|| KubernetesSettings {
            kubeconfig,
            audience: set.audience.map_or_else(|| DEFAULT_AUDIENCE.to_owned(), |audience| audience.0),
            node_accounts: set.node_accounts.map_or_else(default_accounts, |accounts| accounts.0),
        });
        let publish = match (set.root_config_map, &source) {
            (Some(map), _) => Some((map.namespace, map.name)),
            (None, CaSource::Secret { namespace, .. }) => {
                Some((namespace.clone(), DEFAULT_CONFIG_MAP.to_owned()))
            }
            (None, _) => None,
        };
        let metrics_guarded = set.metrics_auth.unwrap_or_default() == MetricsAuth::Token;
        if (publish.is_some() || metrics_guarded) && kubernetes.is_none() {
            return Err(missing("kubeconfig", "AMBIT_KUBECONFIG")());
        }
        Ok(Self {
            service: CaSettings {
                listen,
                source,
                publish,
                trust_domain: set.trust_domain.unwrap_or_default(),
                max_ttl: set.max_ttl.map_or(DEFAULT_MAX_TTL, |ttl| ttl.0),
                names: names(set.dns_name, listen),
                kubernetes: match kubernetes {
                    None if set.token_file.is_none() => {
                        return Err(missing("token-file", "AMBIT_CA_CALLERS")());
                    }
                    kubernetes => kubernetes,
                },
                token_file: set.token_file.map(|path| path.0),
                rate: set.rate.map_or(DEFAULT_RATE, |rate| rate.0),
            },
            metrics_addr: set.metrics_addr.map(|addr| addr.0),
            metrics_guarded,
            health_addr: set.health_addr.map(|addr| addr.0),
            log_filter: set.log.map_or_else(|| "info".to_owned(), |filter| filter.0),
            log_format: set.log_format.unwrap_or_default(),
        })
    }

    /// Makes the private folder of the CA, if it is to have one.
    pub(crate) fn prepare_folders(&self) -> Result<(), ConfigError> {
        match &self.service.source {
            CaSource::Own(dir) => private_folder("ca-dir", dir),
            CaSource::PluggedIn(_) | CaSource::Secret { .. } => Ok(()),
        }
    }
}

fn default_accounts() -> Vec<(String, String)> {
    vec![("ambit-system".to_owned(), "ambit".to_owned())]
}

/// The names as they go into the certificate.
fn names(given: Option<ServerNames>, listen: SocketAddr) -> Vec<SanType> {
    let names = given.map_or_else(
        || {
            let mut names: Vec<String> = DEFAULT_NAMES.split(',').map(str::to_owned).collect();
            if !listen.ip().is_unspecified() {
                names.push(listen.ip().to_string());
            }
            names
        },
        |given| given.0,
    );
    let san = |name: String| match name.parse() {
        Ok(ip) => Some(SanType::IpAddress(ip)),
        // A name of the setting's kind is ASCII, as certificates ask for.
        Err(_) => name.try_into().ok().map(SanType::DnsName),
    };
    names.into_iter().filter_map(san).collect()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        settings: CaServiceSettings,
        #[arg(long)]
        config: Option<PathBuf>,
    }

    fn resolve(line: &str) -> Result<CaConfig, ConfigError> {
        let line = Line::try_parse_from(["ca"].into_iter().chain(line.split_whitespace())).unwrap();
        CaConfig::resolve(line.settings, line.config.as_deref(), false)
    }

    #[test]
    fn defaults_are_those_of_the_help() {
        let config = resolve("--listen 10.0.0.5:15012 --ca-dir /ca --token-file /callers").unwrap();
        let dns = |name: &str| SanType::DnsName(name.try_into().unwrap());
        assert_eq!(
            config.service,
            CaSettings {
                listen: "10.0.0.5:15012".parse().unwrap(),
                source: CaSource::Own("/ca".into()),
                publish: None,
                trust_domain: TrustDomain::default(),
                max_ttl: Duration::from_secs(86_400),
                names: vec![
                    dns("ambit-ca.ambit-system.svc"),
                    dns("localhost"),
                    SanType::IpAddress([10, 0, 0, 5].into())
                ],
                token_file: Some("/callers".into()),
                kubernetes: None,
                rate: 50,
            }
        );
        assert_eq!((config.metrics_addr, config.health_addr, config.metrics_guarded), (None, None, false));
        assert_eq!(config.log_filter, "info");
    }

    #[test]
    fn a_file_sets_everything_and_what_is_missing_or_too_much_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.yaml");
        std::fs::write(
            &path,
            "listen: '[::]:1'\ncacerts: /etc/cacerts\ntoken-file: /t\nmetrics-addr: 127.0.0.1:2\ntrust-domain: td1\n\
             max-ttl: 1h\ndns-name: ca.test, 10.1.2.3\nrate: 7\nlog: debug\nlog-format: json\n",
        )
        .unwrap();
        let config = resolve(&format!("--config {} --rate 9", path.display())).unwrap();
        assert_eq!(config.service.source, CaSource::PluggedIn(Path::new("/etc/cacerts").into()));
        assert_eq!((config.service.rate, config.service.max_ttl), (9, Duration::from_secs(3600)));
        assert_eq!(config.service.names.len(), 2);
        assert_eq!(config.log_format, LogFormat::Json);
        let config =
            resolve("--listen 1.2.3.4:5 --root-secret ambit-system/ambit-ca --kubeconfig /k").unwrap();
        let (namespace, name) = ("ambit-system".to_owned(), "ambit-ca".to_owned());
        let beside = Some((namespace.clone(), "ambit-ca-root".to_owned()));
        assert_eq!(config.service.publish, beside, "published where the Secret is");
        assert_eq!(config.service.source, CaSource::Secret { namespace, name });
        let guarded = resolve("--listen 1.2.3.4:5 --ca-dir /x --kubeconfig /k --metrics-auth token").unwrap();
        assert!(guarded.metrics_guarded);
        let line = "--listen 1.2.3.4:5 --cacerts /x --kubeconfig /k --root-config-map ns/roots";
        assert_eq!(resolve(line).unwrap().service.publish, Some(("ns".to_owned(), "roots".to_owned())));
        for (line, expected) in [
            ("--ca-dir /ca --token-file /t", "--listen is needed"),
            ("--listen 1.2.3.4:5 --token-file /t", "--ca-dir is needed"),
            ("--listen 1.2.3.4:5 --ca-dir /ca", "AMBIT_CA_CALLERS"),
            ("--listen 1.2.3.4:5 --ca-dir /ca --cacerts /x --token-file /t", "cannot both be set"),
            ("--listen 1.2.3.4:5 --cacerts /x --root-secret a/b --token-file /t", "cannot both be set"),
            ("--listen 1.2.3.4:5 --root-secret a/b --token-file /t", "--kubeconfig is needed"),
            ("--listen 1.2.3.4:5 --ca-dir /x --metrics-auth token --token-file /t", "--kubeconfig is needed"),
            (
                "--listen 1.2.3.4:5 --ca-dir /x --root-config-map a/b --token-file /t",
                "--kubeconfig is needed",
            ),
        ] {
            assert!(resolve(line).unwrap_err().to_string().contains(expected), "{line}");
        }
    }
}
