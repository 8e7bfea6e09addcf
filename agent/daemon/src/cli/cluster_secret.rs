//! `ambit cluster-secret`: the Secret by which agents of one cluster read another.
//!
//! Reads of that other cluster a service account's token and nothing else; writes nothing but its output.

use std::{collections::BTreeMap, time::Duration};

use ambit_core::discovery::Prefix;
use anyhow::{Context as _, bail};
use clap::Args;
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api, Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::json;
use tokio::{runtime::Builder, time::timeout};

use super::output;
use crate::{
    cluster::sentence,
    config::{ConfigMapKey, DnsName, Location, Namespace},
};

/// The account that agents of other clusters read this one as, and the Secret with its token.
const READER: &str = "ambit-cluster-reader";
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug, Args)]
#[command(after_help = "\
The Secret goes into the cluster whose agents are to read the other one; for pods of both to find each other, each gets the Secret of
the other. Its token is that of a service account that may read namespaces, pods and endpoint slices, and nothing else: have it made by
the chart (multicluster.reader=true) or by --account.

Examples:
  ambit cluster-secret --account | kubectl --context west apply -f -
  ambit cluster-secret --context west --name west | kubectl --context east apply -f -
  ambit cluster-secret --kubeconfig west.conf --name west --server https://203.0.113.7:6443
  ambit cluster-secret --context west --name west --trust-domain west.example | kubectl apply -f -
  ambit cluster-secret --context west --name west --pod-networks 10.8.0.0/14 | kubectl apply -f -")]
pub(super) struct ClusterSecretArgs {
    /// What the other cluster is called: its own --cluster-id (in the chart: clusterName)
    #[arg(long, value_name = "NAME", required_unless_present = "account")]
    name: Option<ConfigMapKey>,
    /// The kubeconfig that leads to it [default: as kubectl finds it]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<Location>,
    /// The context of that kubeconfig [default: its current one]
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
    /// Where agents reach its API, if not where the kubeconfig does
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    /// The trust domain of its identities, if it is another than that of the agents that read it
    #[arg(long, value_name = "DOMAIN")]
    trust_domain: Option<ambit_core::model::TrustDomain>,
    /// The networks of its pods: nothing goes there before agents have read it
    #[arg(long, value_name = "CIDR[,CIDR]", value_delimiter = ',', value_parser = network)]
    pod_networks: Vec<Prefix>,
    /// The namespace that ambit is installed in, in the other cluster
    #[arg(
        long,
        env = "AMBIT_NAMESPACE",
        hide_env_values = true,
        value_name = "NAME",
        default_value = "ambit-system"
    )]
    agent_namespace: Namespace,
    /// The namespace of the Secret that is printed: --remote-clusters of the agents that read it (in the chart: multicluster.namespace)
    #[arg(long, value_name = "NAME", default_value = "ambit-clusters")]
    secret_namespace: Namespace,
    /// The Secret of the other cluster with the token
    #[arg(long, value_name = "NAME", default_value = READER)]
    token_secret: DnsName,
    /// Print the account that agents read a cluster as, to be applied there
    #[arg(long, conflicts_with_all = ["name", "kubeconfig", "context", "server", "trust_domain", "pod_networks"])]
    account: bool,
}

fn network(text: &str) -> Result<Prefix, String> {
    let bad = || format!("{text:?} is no network such as 10.8.0.0/14");
    let (address, len) = text.split_once('/').ok_or_else(bad)?;
    let (address, len) = (address.parse().map_err(|_| bad())?, len.parse().map_err(|_| bad())?);
    Prefix::new(address, len).ok_or_else(bad)
}

pub(super) fn run(args: &ClusterSecretArgs) -> anyhow::Result<()> {
    if args.account {
        return output::emit(&account(&args.agent_namespace.0)?);
    }
    let name = &args.name.as_ref().context("--name is needed")?.0;
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let (mut server, token) = runtime.block_on(read(args))?;
    if let Some(stated) = &args.server {
        server.clone_from(stated);
    }
    if !server.starts_with("https://") {
        bail!("{server} is not https://HOST:PORT, and agents believe no server that they cannot verify");
    }
    output::emit(&secret(args, name, &server, &token)?)
}

/// What it takes to log in.
struct Token {
    token: String,
    ca: ByteString,
}

async fn read(args: &ClusterSecretArgs) -> anyhow::Result<(String, Token)> {
    let options = KubeConfigOptions { context: args.context.clone(), ..Default::default() };
    let config = match &args.kubeconfig {
        Some(file) => Config::from_custom_kubeconfig(Kubeconfig::read_from(&file.0)?, &options).await,
        None => Config::from_kubeconfig(&options).await,
    };
    let config = config.context("the kubeconfig cannot be used")?;
    let server = config.cluster_url.to_string().trim_end_matches('/').to_owned();
    let secrets: Api<Secret> = Api::namespaced(Client::try_from(config)?, &args.agent_namespace.0);
    let (name, namespace) = (&args.token_secret.0, &args.agent_namespace.0);
    let asked = timeout(PATIENCE, secrets.get_opt(name)).await.context("the API does not answer in time")?;
    let found = asked.map_err(|error| anyhow::anyhow!("{}", sentence(&error)))?;
    let missing = || {
        format!(
            "there is no token in Secret {namespace}/{name} of {server}: install the chart there with multicluster.reader=true, or apply \
             what `ambit cluster-secret --account` prints"
        )
    };
    let mut data = found.and_then(|secret| secret.data).with_context(missing)?;
    let token = data.remove("token").filter(|token| !token.0.is_empty()).with_context(missing)?;
    let ca = data.remove("ca.crt").with_context(missing)?;
    Ok((server, Token { token: String::from_utf8(token.0).context("the token is not text")?, ca }))
}

fn secret(args: &ClusterSecretArgs, name: &str, server: &str, token: &Token) -> anyhow::Result<String> {
    let ca = data_encoding::BASE64.encode(&token.ca.0);
    let kubeconfig = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": name,
        "clusters": [{"name": name, "cluster": {"server": server, "certificate-authority-data": ca}}],
        "users": [{"name": name, "user": {"token": token.token}}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
    });
    let mut annotations = BTreeMap::from([("networking.istio.io/cluster", name.to_owned())]);
    if let Some(domain) = &args.trust_domain {
        annotations.insert("ambit.dev/trust-domain", domain.to_string());
    }
    if !args.pod_networks.is_empty() {
        let networks: Vec<String> = args.pod_networks.iter().map(ToString::to_string).collect();
        annotations.insert("ambit.dev/pod-networks", networks.join(","));
    }
    let object = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": format!("ambit-remote-secret-{}", name.to_ascii_lowercase().replace('_', "-")),
            "namespace": args.secret_namespace.0,
            "labels": {"istio/multiCluster": "true"},
            "annotations": annotations,
        },
        "stringData": {name: serde_yaml_ng::to_string(&kubeconfig)?},
    });
    Ok(serde_yaml_ng::to_string(&object)?)
}

/// The account, what it may read, and its token.
fn account(namespace: &str) -> anyhow::Result<String> {
    let metadata = json!({"name": READER, "namespace": namespace});
    let (anywhere, group) = (json!({"name": READER}), "rbac.authorization.k8s.io");
    let objects = [
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata, "automountServiceAccountToken": false}),
        json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {
                "name": READER, "namespace": namespace, "annotations": {"kubernetes.io/service-account.name": READER},
            },
            "type": "kubernetes.io/service-account-token",
        }),
        json!({
            "apiVersion": format!("{group}/v1"),
            "kind": "ClusterRole",
            "metadata": anywhere,
            "rules": [
                {"apiGroups": [""], "resources": ["namespaces", "pods"], "verbs": ["get", "list", "watch"]},
                {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["get", "list", "watch"]},
            ],
        }),
        json!({
            "apiVersion": format!("{group}/v1"),
            "kind": "ClusterRoleBinding",
            "metadata": anywhere,
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": READER},
            "subjects": [{"kind": "ServiceAccount", "name": READER, "namespace": namespace}],
        }),
    ];
    let texts = objects.iter().map(serde_yaml_ng::to_string).collect::<Result<Vec<_>, _>>()?;
    Ok(texts.join("---\n"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: ClusterSecretArgs,
    }

    #[tokio::test]
    async fn agents_take_what_is_printed() {
        let networks = "198.19.11.7/24,fd00:198::/48";
        let args =
            ["ambit", "--name", "West_1", "--trust-domain", "west.example", "--pod-networks", networks];
        let args = Cli::parse_from(args).args;
        let token = Token { token: "t".into(), ca: ByteString(b"not looked at".to_vec()) };
        let text = secret(&args, "West_1", "https://192.0.2.1:6443", &token).unwrap();
        let object: serde_json::Value = serde_yaml_ng::from_str(&text).unwrap();
        assert_eq!(object["metadata"]["name"], "ambit-remote-secret-west-1");
        assert_eq!(object["metadata"]["labels"]["istio/multiCluster"], "true");
        let annotations = &object["metadata"]["annotations"];
        assert_eq!(annotations["ambit.dev/trust-domain"], "west.example");
        assert_eq!(annotations["ambit.dev/pod-networks"], "198.19.11.0/24,fd00:198::/48");
        assert!(Cli::try_parse_from(["ambit", "--name", "w", "--pod-networks", "198.19.11.0"]).is_err());
        let kubeconfig = object["stringData"]["West_1"].as_str().unwrap();
        let config = crate::cluster::remote_config(kubeconfig).await;
        // The certificate in it is none: everything before that was taken.
        let told = config.map(|_| String::new()).unwrap_or_else(|error| crate::error::with_causes(&error));
        assert!(!told.contains("is not taken"), "{told}");
        assert_eq!(account("ambit-system").unwrap().matches("\n---\n").count(), 3);
    }
}
