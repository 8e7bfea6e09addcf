//! Which issuers of tokens this node's pods name, and how their keys are fetched.

use std::{collections::HashMap, sync::Arc, time::Duration};

use ambit_core::policy::WorkloadPolicy;
use ambit_proto::{admin::v1 as proto, policy::v1 as policy};
use tokio::{sync::watch, time::sleep};

use crate::{
    config::AgentConfig,
    discovery::{Feed, World},
    jwt::{Blocked, Fetching, IssuerStatus, JwksSettings, Tokens},
    telemetry::Telemetry,
};

/// How long changes are gathered.
const GATHER: Duration = Duration::from_millis(20);
/// Issuers that are told of.
const MOST: usize = 50;

/// As the configuration has it; nothing is fetched yet.
pub(super) fn open(config: &AgentConfig, telemetry: &Telemetry) -> Tokens {
    let fetching = Fetching {
        ca_file: config.jwks_ca_file.clone(),
        blocked: Arc::new(Blocked::and(config.jwks_blocked.iter().copied())),
    };
    Tokens::new(JwksSettings { fetching, refresh: config.jwks_refresh }, telemetry.clone())
}

/// Has the keys of the issuers fetched that policies of the node's pods name, and of no others; for ever.
pub(super) async fn follow(feed: Feed, node: String, tokens: Tokens) {
    let mut revisions = feed.subscribe();
    let mut pods = Pods::default();
    feed.synced().await;
    loop {
        revisions.mark_unchanged();
        pods.follow(&feed, &feed.world(), &node);
        tokens.follow(pods.0.values().flat_map(|policy| policy.borrow().tokens().to_vec()));
        // The sender lives as long as the feed.
        if revisions.changed().await.is_err() {
            return;
        }
        sleep(GATHER).await;
    }
}

/// The policies of the node's pods in the mesh, by UID.
#[derive(Default)]
struct Pods(HashMap<Arc<str>, watch::Receiver<Arc<WorkloadPolicy>>>);

impl Pods {
    fn follow(&mut self, feed: &Feed, world: &World, node: &str) {
        let enrolled: HashMap<_, _> =
            world.mesh.pods_on(node).filter(|pod| pod.enrolled).map(|pod| (pod.uid.clone(), pod)).collect();
        self.0.retain(|uid, _| enrolled.contains_key(uid));
        for (uid, pod) in enrolled {
            self.0.entry(uid).or_insert_with(|| feed.follow_policy(pod));
        }
    }
}

/// One issuer, for `ambit status`.
pub(super) fn issuer(status: &IssuerStatus) -> proto::Issuer {
    proto::Issuer {
        issuer: status.issuer.clone(),
        url: status.url.clone(),
        keys: u32::try_from(status.keys).unwrap_or(u32::MAX),
        fetched: status.fetched.map(Into::into),
        error: status.error.clone(),
    }
}

/// Issuers whose keys cannot be had, for `ambit status`.
pub(super) fn problems(issuers: &[IssuerStatus]) -> Vec<proto::Problem> {
    let troubled = issuers.iter().filter(|issuer| !issuer.error.is_empty()).take(MOST);
    troubled
        .map(|issuer| proto::Problem {
            file: "issuers".to_owned(),
            message: format!("{}: {}", issuer.issuer, trouble(issuer)),
            // Without an object it is shown to whoever asks for one namespace.
            ..proto::Problem::default()
        })
        .collect()
}

/// The same for `ambit analyze`. Keys that are in use are only worth a warning.
pub(super) fn findings(issuers: &[IssuerStatus]) -> Vec<policy::Finding> {
    let troubled = issuers.iter().filter(|issuer| !issuer.error.is_empty()).take(MOST);
    troubled
        .map(|issuer| policy::Finding {
            code: "issuer-keys".to_owned(),
            level: if issuer.keys == 0 { "error" } else { "warning" }.to_owned(),
            object: format!("issuer {}", issuer.issuer),
            message: trouble(issuer),
            place: "this agent".to_owned(),
            ..policy::Finding::default()
        })
        .collect()
}

fn trouble(issuer: &IssuerStatus) -> String {
    let what = match issuer.keys {
        0 => "its tokens are refused",
        _ => "those it had stay in use for up to a week",
    };
    format!("its keys cannot be fetched, and {what}: {}", issuer.error)
}

#[cfg(test)]
mod tests {
    use ambit_core::discovery::Settings;
    use tokio::time::timeout;

    use super::*;
    use crate::discovery::watch_folder;

    const MANIFESTS: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {ambit.dev/dataplane: enabled}}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, uid: w, labels: {app: web}}
spec: {nodeName: n1, serviceAccountName: web}
status: {phase: Running, podIP: 192.0.2.1, podIPs: [{ip: 192.0.2.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: far, namespace: shop, uid: f, labels: {app: far}}
spec: {nodeName: n2, serviceAccountName: far}
status: {phase: Running, podIP: 192.0.2.2, podIPs: [{ip: 192.0.2.2}]}
"#;

    /// Keys are fetched for the policies of this node's pods, and of no other, for as long as there is one.
    #[tokio::test]
    async fn issuers_are_followed_that_pods_of_the_node_name() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("pods.yaml"), MANIFESTS).unwrap();
        let policy = |app: &str, issuer: &str| {
            let text = format!(
                "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {{name: {app}, namespace: shop}}\n\
                 spec: {{selector: {{matchLabels: {{app: {app}}}}}, jwtRules: [{{issuer: {issuer}, jwksUri: 'http://127.0.0.1/'}}]}}\n"
            );
            std::fs::write(dir.path().join(format!("{app}.yaml")), text).unwrap();
        };
        policy("far", "other");
        let feed = watch_folder(dir.path(), Settings::default()).unwrap();
        let tokens = Tokens::default();
        let following = tokio::spawn(follow(feed, "n1".to_owned(), tokens.clone()));
        let named = async |expected: &[&str]| {
            let names = || tokens.issuers().into_iter().map(|issuer| issuer.issuer).collect::<Vec<_>>();
            let reached = async {
                while names() != expected {
                    sleep(Duration::from_millis(10)).await;
                }
            };
            assert!(timeout(Duration::from_secs(10), reached).await.is_ok(), "{expected:?}: {:?}", names());
        };
        policy("web", "first");
        named(&["first"]).await;
        policy("web", "second");
        named(&["second"]).await;
        std::fs::remove_file(dir.path().join("web.yaml")).unwrap();
        named(&[]).await;
        following.abort();
    }
}
