//! The way to the API of another cluster, by a kubeconfig that came over the network.
//!
//! Promises that such a kubeconfig makes the agent run nothing, read no file of its own, and believe no server that it cannot verify.

use kube::{
    Config,
    config::{AuthInfo, Cluster, KubeConfigOptions, Kubeconfig, KubeconfigError},
};

use super::CONNECT;

/// Why such a kubeconfig is not used. No word of its secrets is said.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RemoteConfigError {
    /// It is no kubeconfig.
    #[error("it cannot be read as a kubeconfig")]
    Unreadable(#[source] Box<KubeconfigError>),
    /// The context, cluster or user that it names is not in it.
    #[error("it has no {0}")]
    Missing(&'static str),
    /// It says something that is not taken from anyone.
    #[error("{field} is not taken: {instead}")]
    Refused {
        /// The field.
        field: &'static str,
        /// What to do.
        instead: &'static str,
    },
}

const ONLY_HTTPS: &str = "the server has to be https://HOST:PORT, and verified";
const NO_FILES: &str =
    "the file is not there on the agents' nodes; put its content in, as `kubectl config view --flatten` does";
const NO_PROGRAMS: &str =
    "agents run no programs of others; use a token, as `ambit cluster-secret` does, or a client certificate";

/// Server and login of its current context. Connects when it is used.
pub(crate) async fn config(kubeconfig: &str) -> Result<Config, RemoteConfigError> {
    let unreadable = |error| RemoteConfigError::Unreadable(Box::new(error));
    let all = Kubeconfig::from_yaml(kubeconfig).map_err(unreadable)?;
    let missing = RemoteConfigError::Missing;
    let current = all.current_context.as_deref().ok_or(missing("current-context"))?;
    let context = all.contexts.iter().find(|context| context.name == current);
    let context = context.and_then(|named| named.context.as_ref()).ok_or(missing("context of that name"))?;
    let cluster = all.clusters.iter().find(|cluster| cluster.name == context.cluster);
    let user = all.auth_infos.iter().find(|user| Some(&user.name) == context.user.as_ref());
    check_server(
        cluster.and_then(|named| named.cluster.as_ref()).ok_or(missing("cluster for its context"))?,
    )?;
    check_login(user.and_then(|named| named.auth_info.as_ref()).ok_or(missing("user for its context"))?)?;
    let mut config =
        Config::from_custom_kubeconfig(all, &KubeConfigOptions::default()).await.map_err(unreadable)?;
    config.connect_timeout = Some(CONNECT);
    Ok(config)
}

fn check_server(cluster: &Cluster) -> Result<(), RemoteConfigError> {
    let verified = cluster.insecure_skip_tls_verify != Some(true);
    let https = cluster.server.as_deref().is_some_and(|server| server.starts_with("https://"));
    refuse(&[
        (!verified, "insecure-skip-tls-verify", ONLY_HTTPS),
        (!https, "clusters[].cluster.server", ONLY_HTTPS),
        (cluster.certificate_authority.is_some(), "certificate-authority", NO_FILES),
    ])
}

fn check_login(user: &AuthInfo) -> Result<(), RemoteConfigError> {
    let token = user.token.is_some();
    let certificate = user.client_certificate_data.is_some() && user.client_key_data.is_some();
    refuse(&[
        (user.exec.is_some(), "exec", NO_PROGRAMS),
        (user.auth_provider.is_some(), "auth-provider", NO_PROGRAMS),
        (user.token_file.is_some(), "tokenFile", NO_FILES),
        (user.client_certificate.is_some(), "client-certificate", NO_FILES),
        (user.client_key.is_some(), "client-key", NO_FILES),
        (user.username.is_some() || user.password.is_some(), "username", NO_PROGRAMS),
        (!token && !certificate, "a user without token and client certificate", NO_PROGRAMS),
    ])
}

/// The first of these that is so.
fn refuse(all: &[(bool, &'static str, &'static str)]) -> Result<(), RemoteConfigError> {
    match all.iter().find(|(is_so, ..)| *is_so) {
        Some((_, field, instead)) => Err(RemoteConfigError::Refused { field, instead }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use crate::error::with_causes;

    use super::*;

    fn kubeconfig(cluster: &str, user: &str) -> String {
        format!(
            "{{apiVersion: v1, kind: Config, current-context: c, contexts: [{{name: c, context: {{cluster: k, user: u}}}}],\n \
             clusters: [{{name: k, cluster: {{{cluster}}}}}], users: [{{name: u, user: {{{user}}}}}]}}"
        )
    }

    #[tokio::test]
    async fn what_would_run_read_or_believe_anything_is_refused() {
        let (good, token) = ("server: 'https://192.0.2.1:6443'", "token: secret-word");
        let taken = config(&kubeconfig(good, token)).await.unwrap();
        assert_eq!(taken.cluster_url, "https://192.0.2.1:6443/");
        let certificate = "client-certificate-data: YQ==, client-key-data: YQ==";
        assert!(config(&kubeconfig(good, certificate)).await.is_ok());
        for (cluster, user, expected) in [
            ("server: 'http://192.0.2.1:6443'", token, "clusters[].cluster.server"),
            ("server: 'https://a', insecure-skip-tls-verify: true", token, "insecure-skip-tls-verify"),
            (
                "server: 'https://a', certificate-authority: /etc/hosts",
                token,
                "certificate-authority is not taken",
            ),
            (
                good,
                "exec: {apiVersion: client.authentication.k8s.io/v1, command: /bin/true}",
                "exec is not taken",
            ),
            (good, "token: a, auth-provider: {name: gcp, config: {}}", "auth-provider"),
            (good, "tokenFile: /var/run/secrets/token", "tokenFile"),
            (good, "client-certificate: /a, client-key-data: YQ==", "client-certificate is not taken"),
            (good, "client-certificate-data: YQ==, client-key: /a", "client-key is not taken"),
            (good, "username: secret-word, password: secret-word", "username"),
            (good, "", "without token"),
            (good, "client-certificate-data: YQ==", "without token"),
        ] {
            let error = with_causes(&config(&kubeconfig(cluster, user)).await.unwrap_err());
            assert!(error.contains(expected) && !error.contains("secret-word"), "{cluster} {user}: {error}");
        }
        for (text, expected) in [
            ("", "current-context"),
            ("kind: Config\ncurrent-context: c", "no context"),
            ("kind: [", "cannot be read as a kubeconfig"),
        ] {
            let error = with_causes(&config(text).await.unwrap_err());
            assert!(error.contains(expected), "{text:?}: {error}");
        }
    }
}
